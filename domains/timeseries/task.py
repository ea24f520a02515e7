"""A forecasting task: what may be learned from, and the windows on which a forecast is judged.

The test protocol is a set of rolling origins. At each the forecaster is given the history up to it
and asked for the next ``horizon`` values; truths of earlier windows are history of later ones, as
in gluonts. The training part ends before the first origin of its series, and the validation
windows are its own last horizons, so settings can be chosen without a look at the test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from domains.timeseries.series import Series
from sciflow.errors import InputError
from sciflow.subsets import evenly_spread

__all__ = ["ForecastTask", "Window", "rolling_task"]

Window = tuple[Series, Series]
"""History up to an origin, and the true values after it."""


@dataclass(frozen=True)
class ForecastTask:
    """A data set with its protocol.

    Attributes:
        name: of the data set.
        series: the training part of each series, nothing of the test windows.
        windows: (history, truth) of each test window; window after window, series by series.
        horizon: steps of a forecast, H.
        context: steps that a windowed model is given, TSDiff's where it has the set.
        season: steps of a season; scales MASE and MSIS, period of the seasonal naive forecast.
        lags: TSDiff's lags in steps, empty where it uses none.
        known_future: covariates of the history reach over the horizon (weather forecasts, day-ahead
            quantities); otherwise they end with it.
        validation: validation windows a series, as many as its test windows unless said otherwise.
    """

    name: str
    series: list[Series]
    windows: list[Window]
    horizon: int
    context: int
    season: int
    lags: tuple[int, ...] = ()
    known_future: bool = False
    validation: int = 1

    def training_series(self, before_validation: bool = False) -> list[Series]:
        """The training part; ``before_validation``: without its validation windows."""
        if not before_validation:
            return self.series
        n = self.validation * self.horizon
        return [cut(s, len(s) - n) for s in self.series if len(s) > n]

    def validation_windows(self, k: int | None = None) -> list[Window]:
        """The last ``k`` horizons of each training series as windows; default all ``validation``.

        Raises:
            InputError: more than ``training_series(before_validation=True)`` leaves out.
        """
        k = self.validation if k is None else k
        if not 0 < k <= self.validation:
            raise InputError(f"{self.name}: k is {k}; there are {self.validation} validation "
                             "windows a series")  # fmt: skip
        return [
            window(s, len(s) - i * self.horizon, self.horizon, self.known_future)
            for i in range(k, 0, -1)
            for s in self.series
            if len(s) > self.validation * self.horizon
        ]

    def subset(self, n: int) -> ForecastTask:
        """The ``n`` series that lie evenly spread in the list, with their windows."""
        if n >= len(self.series):
            return self
        kept = [self.series[i] for i in evenly_spread(len(self.series), n)]
        names = {s.name for s in kept}
        windows = [w for w in self.windows if w[0].name in names]
        return replace(self, series=kept, windows=windows)

    def joint(self) -> ForecastTask:
        """The same task with all series as channels of one; covariates are put side by side.

        Raises:
            InputError: the series do not share their time stamps.
        """
        c, name = len(self.series), self.name
        histories, truths = ([w[part] for w in self.windows] for part in (0, 1))
        windows = [
            (side_by_side(histories[i : i + c], name), side_by_side(truths[i : i + c], name))
            for i in range(0, len(self.windows), c)
        ]
        return replace(self, series=[side_by_side(self.series, self.name)], windows=windows)


def rolling_task(
    name: str, full: Sequence[Series], *, horizon: int, context: int, windows: int = 1,
    season: int | None = None, lags: tuple[int, ...] = (), known_future: bool = False,
    validation: int | None = None,
) -> ForecastTask:  # fmt: skip
    """The task whose test part is the last ``windows`` horizons of each series.

    Raises:
        InputError: there is no series.
    """
    if not full:
        raise InputError(f"{name}: no series")
    origins = [[len(s) - i * horizon for s in full] for i in range(windows, 0, -1)]
    return ForecastTask(
        name,
        [cut(s, n) for s, n in zip(full, origins[0], strict=True)],
        [
            window(s, n, horizon, known_future)
            for at in origins
            for s, n in zip(full, at, strict=True)
        ],
        horizon,
        context,
        full[0].season if season is None else season,
        lags,
        known_future,
        windows if validation is None else validation,
    )


def cut(series: Series, n: int, ahead: int = 0) -> Series:
    """The first ``n`` values, with covariates of ``ahead`` steps more."""
    covariates = None if series.covariates is None else series.covariates[: n + ahead]
    return series.replace(values=series.values[:n], covariates=covariates)


def window(series: Series, origin: int, horizon: int, known_future: bool) -> Window:
    """History up to ``origin`` and the ``horizon`` values from it on."""
    truth = series.replace(
        start=series.stamp(origin),
        values=series.values[origin : origin + horizon],
        covariates=None,
        covariate_names=(),
    )
    return cut(series, origin, horizon if known_future else 0), truth


def side_by_side(series: Sequence[Series], name: str) -> Series:
    """Series of one calendar as the channels of one."""
    first = series[0]
    for s in series:
        if (s.start, s.freq, len(s)) != (first.start, first.freq, len(first)):
            raise InputError(f"{name}: series {first.name!r} and {s.name!r} do not share their "
                             "time stamps, so they cannot be channels of one")  # fmt: skip
    told = [s for s in series if s.covariates is not None]
    return Series(
        name,
        first.start,
        first.freq,
        np.concatenate([s.values for s in series], 1),
        tuple(s.name for s in series),
        np.concatenate([s.covariates for s in told], 1) if told else None,
        tuple(f"{s.name}/{c}" for s in told for c in s.covariate_names),
    )
