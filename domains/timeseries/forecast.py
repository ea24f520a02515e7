"""What a forecaster answers: sample paths with their time stamps, and what is asked of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from domains.timeseries.series import Series

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Forecast", "Imputation"]


@dataclass(frozen=True)
class Forecast:
    """Equally likely continuations of a series.

    Attributes:
        series_name: of the series.
        channels: names of its C columns.
        index: time stamps of the H steps.
        samples: paths, float64 ``[S, H, C]``.
        calls: network evaluations a path.
        history: the series that was continued, for pictures; ``None`` where it was not kept.
    """

    series_name: str
    channels: tuple[str, ...]
    index: pd.DatetimeIndex
    samples: NDArray[np.float64]
    calls: int = 0
    history: Series | None = field(default=None, repr=False)

    def mean(self) -> NDArray[np.float64]:
        """Mean of the paths, ``[H, C]``."""
        return self.samples.mean(0)

    def median(self) -> NDArray[np.float64]:
        """Median of the paths, ``[H, C]``."""
        return self.quantile(0.5)

    def quantile(self, q: float) -> NDArray[np.float64]:
        """Quantile of the paths, ``[H, C]``."""
        return np.quantile(self.samples, q, axis=0)

    def to_frame(self, levels: tuple[float, ...] = (50, 80, 95)) -> pd.DataFrame:
        """A long table with the mean, the median and the ends of central intervals."""
        from domains.timeseries.writing import forecast_table

        return forecast_table([self], levels)

    def plot(self, truth: Series | None = None, **settings: Any) -> Figure:
        """History, median and intervals (and the truth, if given); a matplotlib figure."""
        from domains.timeseries.plots import plot_forecast

        return plot_forecast(self, self.history, truth, **settings)


@dataclass(frozen=True)
class Imputation:
    """A series with its gaps filled, so many times.

    Attributes:
        series: as it was given.
        samples: whole paths, observed values as they were, float64 ``[S, T, C]``.
    """

    series: Series
    samples: NDArray[np.float64]

    def filled(self) -> Series:
        """The series with the mean of the paths in its gaps."""
        values = np.where(self.series.observed, self.series.values, self.samples.mean(0))
        return self.series.replace(values=values)

    def quantile(self, q: float) -> NDArray[np.float64]:
        """Quantile of the paths, ``[T, C]``; where a value was observed it is that value."""
        return np.quantile(self.samples, q, axis=0)
