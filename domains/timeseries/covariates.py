"""Covariates by name, as numbers a network can read: standardised, with a mark where unknown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from domains.timeseries.series import Series
from sciflow.errors import InputError

__all__ = ["Covariates"]


@dataclass(frozen=True)
class Covariates:
    """Covariates by name, standardised by the training part.

    Attributes:
        names: of the columns.
        mean, std: of each.
        known_future: whether they are known over the horizon.
    """

    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    known_future: bool

    @classmethod
    def fit(cls, series: Sequence[Series], known_future: bool) -> Covariates | None:
        """Those of the series; ``None`` where they have none in common."""
        names = series[0].covariate_names
        if not names or any(s.covariate_names != names or s.covariates is None for s in series):
            return None
        values = np.concatenate([s.covariates[: len(s)] for s in series])  # type: ignore[index]
        std = np.nanstd(values, 0)
        return cls(names, tuple(np.nanmean(values, 0).tolist()),
                   tuple(np.where(std > 0, std, 1.0).tolist()), known_future)  # fmt: skip

    def of(self, series: Series, length: int) -> np.ndarray:
        """The first ``length`` steps of a series, ``[length, K]``; NaN where it tells nothing.

        Raises:
            InputError: one of the covariates is missing altogether.
        """
        result = np.full((length, len(self.names)), np.nan)
        have = dict(zip(series.covariate_names, range(len(series.covariate_names)), strict=True))
        if missing := [n for n in self.names if n not in have]:
            raise InputError(
                f"series {series.name!r} lacks the covariate {missing[0]!r}; the model was trained "
                f"with {', '.join(self.names)}"
            )
        assert series.covariates is not None
        part = series.covariates[:length, [have[n] for n in self.names]]
        result[: len(part)] = (part - np.array(self.mean)) / np.array(self.std)
        return result
