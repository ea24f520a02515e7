"""The record of this domain: one series on a regular grid of time stamps, gaps included."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from domains.timeseries.frequency import season_of
from sciflow.errors import InputError

__all__ = ["Series"]


@dataclass(frozen=True)
class Series:
    """Values at equal steps of a calendar; what was not observed is NaN.

    Attributes:
        name: its ``unique_id``.
        start: first time stamp.
        freq: pandas' name of the step, e.g. ``"h"``, ``"B"``, ``"W-TUE"``, ``"10min"``.
        values: float64 ``[T, C]``.
        channels: names of the C columns.
        covariates: float64 ``[T', K]`` on the same grid, NaN where unknown. T' > T where they are
            known beforehand (a holiday, a weather forecast), T' = T where not.
        covariate_names: of the K columns.

    Raises:
        InputError: the parts do not fit together.
    """

    name: str
    start: pd.Timestamp
    freq: str
    values: np.ndarray
    channels: tuple[str, ...] = ("y",)
    covariates: np.ndarray | None = None
    covariate_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        values = np.asarray(self.values, dtype=np.float64)
        object.__setattr__(self, "values", values[:, None] if values.ndim == 1 else values)
        if self.values.ndim != 2 or self.values.shape[1] != len(self.channels):
            raise InputError(
                f"series {self.name!r}: values are {list(self.values.shape)}; they must be "
                f"[T, {len(self.channels)}] for channels {', '.join(self.channels)}"
            )
        if self.covariates is not None:
            covariates = np.asarray(self.covariates, dtype=np.float64)
            object.__setattr__(self, "covariates", covariates)
            shape = (len(covariates), len(self.covariate_names))
            if covariates.shape != shape or len(covariates) < len(self.values):
                raise InputError(
                    f"series {self.name!r}: covariates are {list(covariates.shape)}; they must be "
                    f"[T' >= {len(self.values)}, {len(self.covariate_names)}]"
                )

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def index(self) -> pd.DatetimeIndex:
        """The time stamps of the values, ``[T]``."""
        return pd.date_range(self.start, periods=len(self), freq=self.freq)

    def stamp(self, step: int) -> pd.Timestamp:
        """Time stamp of a step, of the values (from 0 on) or after them.

        By arithmetic of the offset: an index of a thousand weeks takes 50 ms.
        """
        if self.start.tz is not None:
            # Where clocks are put back, a day of pandas 2 is 24 hours in a sum, not in an index.
            return pd.date_range(self.start, periods=step + 1, freq=self.freq)[-1]
        first = pd.date_range(self.start, periods=1, freq=self.freq)[0]
        return first + step * pd.tseries.frequencies.to_offset(self.freq)

    def future(self, horizon: int) -> pd.DatetimeIndex:
        """The ``horizon`` time stamps after the last."""
        return pd.date_range(self.stamp(len(self)), periods=horizon, freq=self.freq)

    @property
    def season(self) -> int:
        """Steps of the usual season of this frequency (24 for hours), 1 where there is none."""
        return season_of(self.freq)

    @property
    def observed(self) -> np.ndarray:
        """True where a value was observed, bool ``[T, C]``."""
        return np.isfinite(self.values)

    def head(self, n: int) -> Series:
        """The first ``n`` values; covariates are all kept, for they may be known beforehand."""
        return self.replace(values=self.values[:n])

    def tail(self, n: int) -> Series:
        """The last ``n`` values, with their covariates and what is known of the future."""
        first = max(len(self) - n, 0)
        covariates = None if self.covariates is None else self.covariates[first:]
        return self.replace(
            values=self.values[first:], start=self.stamp(first), covariates=covariates
        )

    def hidden(self, rows: slice | np.ndarray, covariates: bool = True) -> Series:
        """The series without its values at some steps.

        Args:
            rows: which.
            covariates: that nothing is known there, as of a station that was silent: covariates
                that end with the values are hidden, too; those that are known beforehand stay.
        """
        values, told = self.values.copy(), self.covariates
        values[rows] = np.nan
        if covariates and told is not None and len(told) == len(self):
            told = told.copy()
            told[rows] = np.nan
        return self.replace(values=values, covariates=told)

    def channel(self, name: str) -> Series:
        """One channel as a series of its own."""
        i = self.channels.index(name)
        return self.replace(
            name=f"{self.name}/{name}" if len(self.channels) > 1 else self.name,
            values=self.values[:, i : i + 1],
            channels=(name,),
        )

    def replace(self, **changes: Any) -> Series:
        """A copy with some attributes changed."""
        return replace(self, **changes)
