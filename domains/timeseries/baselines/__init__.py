"""Forecasters of others, to be judged beside ours or refined by it: name → constructor."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from domains.timeseries.baselines.base import (
    BaseForecast,
    BaseForecaster,
    Ensemble,
    QuantileTable,
)
from domains.timeseries.baselines.linear import Linear
from domains.timeseries.baselines.naive import SeasonalNaive
from domains.timeseries.baselines.statistical import Statistical
from domains.timeseries.baselines.table import TableForecaster

__all__ = [
    "BASELINES",
    "BaseForecast",
    "BaseForecaster",
    "Ensemble",
    "Linear",
    "QuantileTable",
    "SeasonalNaive",
    "Statistical",
    "TableForecaster",
]


def _statistical(model: str, context: int, season: int) -> BaseForecaster:
    return Statistical(model, season)


BASELINES: dict[str, Callable[[int, int], BaseForecaster]] = {
    "naive": lambda context, season: SeasonalNaive(1),
    "seasonal-naive": lambda context, season: SeasonalNaive(season),
    "seasonal-naive-bootstrap": lambda context, season: SeasonalNaive(season, bootstrap=True),
    "linear": lambda context, season: Linear(context),
    "ets": partial(_statistical, "AutoETS"),
    "theta": partial(_statistical, "AutoTheta"),
    "arima": partial(_statistical, "AutoARIMA"),
}
"""(context, season) → a baseline."""
