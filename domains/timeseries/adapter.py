"""Time series on the core: one model that forecasts, fills gaps, refines and synthesises.

Heavy imports (torch, pandas) happen inside methods: asking for the domain's name or its data sets
costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sciflow.domain import Domain, OracleAnswer, Progress, Property
from sciflow.errors import InputError
from sciflow.targets import Target

if TYPE_CHECKING:
    from torch import Tensor

    from domains.timeseries.series import Series
    from domains.timeseries.task import ForecastTask
    from domains.timeseries.windows import Windows
    from sciflow.denoisers import NetworkDenoiser
    from sciflow.model import Model
    from sciflow.objectives import DenoisingObjective
    from sciflow.random import Draws
    from sciflow.state import Context, State

__all__ = ["TimeSeries"]

_REFERENCE_SIZE = 2048


class TimeSeries(Domain):
    """Series at equal steps of time, any number of channels, gaps included."""

    name = "timeseries"
    summary = "forecast, impute, refine and synthesise series with one model"
    default_model = "timeseries/hourly"
    properties: ClassVar[Mapping[str, Property]] = {}
    datasets: ClassVar[Mapping[str, str]] = {
        "hourly": "several hourly sets together, for a model that meets new series",
        "m4_hourly": "414 hourly series of the M4 competition",
        "m4_weekly": "359 weekly series of the M4 competition",
        "exchange_rate_nips": "8 exchange rates, business days",
        "ETTh1": "electricity transformer temperature, 7 hourly columns",
        "beijing_pm25": "PM2.5 at 12 stations, hourly, with real gaps and weather",
        "gefcom_solar": "a photovoltaic plant, hourly, weather forecasts known",
        "weather_jena": "21 instruments of a weather station, 10 minutes",
        "los_loop": "207 road sensors, 5 minutes",
        "epf": "day-ahead electricity prices of 4 markets, exogenous forecasts known",
        "ili": "influenza-like illness, 7 weekly columns",
        "stock": "Google shares, 6 daily columns",
    }
    packages = ("pandas",)
    training: ClassVar[Mapping[str, Any]] = {"steps": (2500, 4000), "lr": 2e-3}

    # --- training ---------------------------------------------------------------------------

    def presets(self) -> Sequence[str]:
        from domains.timeseries.networks import PRESETS

        return list(PRESETS)

    def dataset(self, source: str | Path, progress: Progress | None = None) -> ForecastTask:
        from domains.timeseries.datasets import TASKS
        from domains.timeseries.own import hourly, own_task

        if str(source) in TASKS:
            return TASKS[str(source)]()
        if str(source) == "hourly":
            return hourly()
        allowed = f"files: CSV, parquet or JSON lines; data sets: hourly, {', '.join(TASKS)}"
        return own_task(self.require_file(source, allowed))

    def prepare(
        self,
        dataset: ForecastTask,
        preset: str,
        conditions: Sequence[str],
        like: Mapping[str, Any] | None = None,
    ) -> tuple[dict[str, Any], Windows, Windows]:
        from dataclasses import asdict

        from domains.timeseries.covariates import Covariates
        from domains.timeseries.networks import PRESETS, patch_of
        from domains.timeseries.own import anchoring_season, history_length
        from domains.timeseries.windows import Patterns, Windows

        self.require_preset(preset)
        train = dataset.training_series(before_validation=True)
        if like is None:
            season = anchoring_season(train, dataset.season, dataset.horizon)
            covariates = Covariates.fit(train, dataset.known_future)
            patch = patch_of(dataset.season, dataset.horizon)
            config: dict[str, Any] = {
                "freq": train[0].freq,
                "season": season,
                "context": history_length(dataset, season, patch),
                "horizon": -(-dataset.horizon // patch) * patch,
                "lags": [168] if train[0].freq == "h" and season == 24 else [],
                "channels": max(len(s.channels) for s in train),
                "covariates": None if covariates is None else asdict(covariates),
                "patterns": asdict(Patterns.beside(covariates)),
                "network": PRESETS[preset] | ({"patch": patch} if preset == "patches" else {}),
                "path": {"schedule": {"kind": "rectified"}, "prediction": "edm"},
                "conditions": {},
                "sampler": {"steps": 60, "method": "ab3", "restarts": 2, "restart_time": 0.5},
                "forecasting": {"steps": 8, "method": "ab2"},
            }
        else:
            config = {k: v for k, v in like.items() if k not in ("domain", "dataset")}
        config = {"domain": self.name, "dataset": dataset.name, **config}
        known = config["covariates"]
        covariates = None if known is None else Covariates(**known)
        settings = (config["context"], config["horizon"], config["season"])
        data = Windows(train, *settings, Patterns(**config["patterns"]), config["lags"], covariates)
        if len(data) == 0:
            raise InputError(
                f"{dataset.name}: no series is long enough for one window; the longest has "
                f"{max(map(len, train))} steps, a forecast {config['horizon']} after at least "
                f"{max(2 * config['season'], config['horizon'])}"
            )
        held_out = Windows(dataset.series, *settings, None, config["lags"], covariates,
                           origins=dataset.validation)  # fmt: skip
        return config, data, held_out

    def denoiser(self, config: Mapping[str, Any]) -> NetworkDenoiser:
        from domains.timeseries.networks import build_denoiser

        return build_denoiser(config)

    def objective(self, config: Mapping[str, Any]) -> DenoisingObjective:
        from sciflow.objectives import DenoisingObjective

        return DenoisingObjective(beta=1.5, stratify=True)

    def calibrate(self, model: Model, dataset: ForecastTask) -> dict[str, Any]:
        """The spread of forecasts; see :mod:`domains.timeseries.calibration`."""
        from domains.timeseries.calibration import fitted_spread
        from domains.timeseries.forecaster import Forecaster

        fitted = fitted_spread(Forecaster(model), dataset)
        gamma = fitted.pop("prior_scale")
        forecasting = {**model.config["forecasting"], "prior_scale": gamma}
        return {"forecasting": forecasting, "spread": fitted}

    # --- sampling ---------------------------------------------------------------------------

    def reference(self, data: Windows) -> dict[str, Tensor]:
        """Mean, spread and start of a fixed random part of the windows: what synthesis draws."""
        import torch

        from domains.timeseries.frame import frame_of
        from sciflow.reference import fixed_part

        y = data.window(fixed_part(len(data), _REFERENCE_SIZE))
        real = torch.isfinite(y)
        frame = frame_of(y, real, data.season)
        return {"centre": frame.centre[:, 0], "spread": frame.spread[:, 0]}

    def context(
        self,
        config: Mapping[str, Any],
        reference: Mapping[str, Tensor],
        draws: Draws,
        targets: Mapping[str, Target],
    ) -> Context:
        """Whole windows of which nothing is given, each of a training window's mean and spread."""
        from domains.timeseries.encoding import free_context

        rows = draws.integers(len(reference["centre"]), "timeseries/row")
        return free_context(config, reference["centre"][rows], reference["spread"][rows])

    def encode(self, config: Mapping[str, Any], records: Sequence[Series]) -> State:
        from domains.timeseries.encoding import encode_free

        return encode_free(config, records)

    def decode(self, config: Mapping[str, Any], state: State) -> list[Series]:
        from domains.timeseries.encoding import decode_series

        return decode_series(config, state)

    # --- files ------------------------------------------------------------------------------

    def read(self, path: str | Path, dropped: list[InputError] | None = None) -> list[Series]:
        from domains.timeseries.tables import read_table

        return read_table(path).series

    def write(self, records: Sequence[Series], folder: Path) -> list[Path]:
        from domains.timeseries.writing import series_table, write_table

        return [write_table(series_table(records), folder / "series.csv")]

    # --- judging ----------------------------------------------------------------------------

    def verdicts(self, records: Sequence[Series]) -> list[str]:
        """A series is sound where it is finite."""
        import numpy as np

        return ["" if np.isfinite(s.values).all() else "not finite" for s in records]

    def describe(self, records: Sequence[Series]) -> list[dict[str, Any]]:
        import numpy as np

        return [
            {
                "steps": len(s),
                "channels": len(s.channels),
                "mean": float(np.nanmean(s.values)),
                "std": float(np.nanstd(s.values)),
            }
            for s in records
        ]

    def oracle(
        self,
        records: Sequence[Series],
        properties: Sequence[str],
        jobs: int = -1,
        progress: Progress | None = None,
    ) -> list[OracleAnswer]:
        if progress is not None:
            progress(len(records), len(records))
        return [OracleAnswer({}, why) for why in self.verdicts(records)]

    def evaluate(self, records: Sequence[Series], thorough: bool = False) -> dict[str, float]:
        """How much of the series is season, trend-free roughness, and their autocorrelation."""
        from domains.timeseries.shape import shape_of

        return shape_of(records)

    def picture(self, record: Series) -> str:
        from domains.timeseries.plots import series_svg

        return series_svg(record)

    # --- contract tests ---------------------------------------------------------------------

    def examples(self, n: int, seed: int = 0) -> list[Series]:
        import numpy as np
        import pandas as pd

        from domains.timeseries.series import Series

        t = np.arange(96)
        return [
            Series(
                f"example-{seed + i}",
                pd.Timestamp("2024-01-01"),
                "h",
                10 + np.sin(2 * np.pi * t / 24 + seed + i) + 0.1 * np.cos(1.7 * t * (i + 1)),
            )
            for i in range(n)
        ]
