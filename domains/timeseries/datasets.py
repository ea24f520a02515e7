"""The data sets of this domain, each as one :class:`ForecastTask` under its usual name.

``exchange_rate_nips`` and ``m4_hourly`` are TSDiff's (Kollovieh et al., NeurIPS 2023) to the last
value; ``m4_weekly`` is the M4 competition's. The others are real sets with a protocol stated here:

* ``m4_hourly``: models look back a fortnight (336 steps), TSDiff's 312, so that the same day of a
  week is known whichever half of the history is missing.
* ``ETTh1``: seven windows of a day up to row 14400, the end of the test part of long-term
  forecasting (rows behind it are used by nobody). Seven columns as seven series.
* ``beijing_pm25``: twelve stations with their real gaps, TSDiff's KDDCup setting (312 → 48) over a
  fortnight. Covariates are past only: nobody knows tomorrow's ozone.
* ``gefcom_solar``: a photovoltaic plant a day ahead, numerical weather forecasts known.
* ``weather_jena``: 21 instruments every ten minutes; the horizon of GIFT-Eval's short-term task on
  this station (48 steps, 20 windows), so that its leaderboard can be read beside ours, though the
  windows need not be the same. The logger's sentinel -9999 is a gap.
* ``los_loop``: 207 road sensors every five minutes, an hour ahead, as in traffic forecasting. One
  week only.
* ``epf``: day-ahead electricity prices of four markets, two exogenous forecasts known.
* ``ili``: influenza-like illness by week, 24 weeks ahead (the first horizon of long-term
  forecasting). Its season is the year, not gluonts' 1 of weeks.
* ``stock``: TimeGAN's Google shares; time stamps are business days, though the exchange's holidays
  are left out of the table.

The other sets of TSDiff and of gluonts are fetched on first use
(:mod:`domains.timeseries.downloads`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from domains.timeseries.downloads import DOWNLOADS
from domains.timeseries.series import Series
from domains.timeseries.task import ForecastTask, rolling_task
from sciflow.data import shared_data
from sciflow.errors import InputError
from sciflow.files import reading_arrays

__all__ = ["TASKS", "ForecastTask", "read_series"]


def exchange_rate_nips() -> ForecastTask:
    """Eight currencies a business day, 1990-2013: five windows of 30."""
    lags = tuple(range(30, 361, 30))
    full = read_series("exchange_rate_nips")
    return rolling_task("exchange_rate_nips", full, horizon=30, context=360, windows=5, lags=lags)


def m4_hourly() -> ForecastTask:
    """All 414 hourly series of the M4 competition, the last 48 hours asked for."""
    return rolling_task("m4_hourly", read_series("m4_hourly"), horizon=48, context=336)


def m4_weekly() -> ForecastTask:
    """All 359 weekly series of the M4 competition, the last 13 weeks asked for."""
    return rolling_task("m4_weekly", read_series("m4_weekly"), horizon=13, context=104)


def etth1() -> ForecastTask:
    """Oil temperature and loads of a transformer, hourly."""
    full = [s.head(14400) for s in read_series("ETTh1")]
    return rolling_task("ETTh1", full, horizon=24, context=336, windows=7)


def beijing_pm25() -> ForecastTask:
    """Fine dust at twelve stations of Beijing, hourly, with gaps."""
    full = read_series("beijing_multisite_pm25")
    return rolling_task("beijing_pm25", full, horizon=48, context=312, windows=7)


def gefcom_solar() -> ForecastTask:
    """Power of a photovoltaic plant (GEFCom2014), hourly, weather forecasts known."""
    full = read_series("gefcom2014_solar_z1")
    return rolling_task(
        "gefcom_solar", full, horizon=24, context=336, windows=7, known_future=True
    )  # fmt: skip


def weather_jena() -> ForecastTask:
    """21 instruments of the weather station at Jena in 2020, every ten minutes."""
    full = [
        s.replace(values=np.where(s.values == -9999, np.nan, s.values))
        for s in read_series("weather_jena2020")
    ]
    return rolling_task("weather_jena", full, horizon=48, context=432, windows=20)


def los_loop() -> ForecastTask:
    """Speed at 207 loop detectors of Los Angeles, every five minutes."""
    full = read_series("los_loop_speed")
    return rolling_task("los_loop", full, horizon=12, context=576, windows=7)


def epf() -> ForecastTask:
    """Day-ahead prices of electricity in BE, DE, FR and Nord Pool, hourly."""
    full = read_series("epf_short_exog")
    return rolling_task("epf", full, horizon=24, context=336, windows=7, known_future=True)


def ili() -> ForecastTask:
    """Influenza-like illness in the United States, weekly."""
    full = read_series("ili_national_illness")
    return rolling_task("ili", full, horizon=24, context=156, windows=7, season=52)


def stock() -> ForecastTask:
    """Prices and volume of Google's share a trading day, 2004-2019."""
    return rolling_task(
        "stock", read_series("stock_google_timegan"), horizon=24, context=120, windows=7
    )


TASKS: dict[str, Callable[[], ForecastTask]] = {
    "exchange_rate_nips": exchange_rate_nips,
    "m4_hourly": m4_hourly,
    "m4_weekly": m4_weekly,
    "ETTh1": etth1,
    "beijing_pm25": beijing_pm25,
    "gefcom_solar": gefcom_solar,
    "weather_jena": weather_jena,
    "los_loop": los_loop,
    "epf": epf,
    "ili": ili,
    "stock": stock,
    **{name: partial(source.task, name) for name, source in DOWNLOADS.items()},
}
"""Name → loader of every set; those of ``DOWNLOADS`` are fetched on first use."""


def read_series(name: str, folder: str | Path | None = None) -> list[Series]:
    """The series of a prepared ``.npz`` (``values``, ``offsets``, ``item_id``, ``start``, ``freq``,
    covariates).

    Args:
        name: of the file, without its ending.
        folder: holds it; default the shared data.

    Raises:
        InputError: it is not there, or not such a file.
    """
    root = shared_data() if folder is None else None
    if folder is None and root is None:
        raise InputError(f"the data set needs {name}.npz; set SCIFLOW_DATA to the folder of shared "
                         "data")  # fmt: skip
    path = (Path(folder) if folder is not None else Path(str(root)) / "timeseries") / f"{name}.npz"
    with reading_arrays(path, "a prepared data set") as file:
        data = {key: file[key] for key in file.files}
    freq, offsets = str(data["freq"]), data["offsets"]
    covariates = data.get("covariates")
    names: tuple[str, ...] = ()
    if covariates is not None:
        names = tuple(data["covariate_names"].tolist()) if "covariate_names" in data else ()
        names = names or tuple(f"exogenous{i + 1}" for i in range(covariates.shape[2]))
    return [
        Series(
            str(item),
            # The first stamp of this step on or after it: dummy starts need not be one.
            pd.date_range(str(start), periods=1, freq=freq)[0],
            freq,
            data["values"][offsets[i] : offsets[i + 1]],
            covariates=None if covariates is None else covariates[i],
            covariate_names=names,
        )
        for i, (item, start) in enumerate(zip(data["item_id"], data["start"], strict=True))
    ]
