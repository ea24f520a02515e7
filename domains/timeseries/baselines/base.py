"""What a baseline is, and the two forms that its forecasts take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from domains.timeseries.series import Series
from sciflow.random import Draws

__all__ = ["BaseForecast", "BaseForecaster", "Ensemble", "QuantileTable", "filled", "uniforms"]

Array = NDArray[np.float64]


class BaseForecast(Protocol):
    """The law of the ``H`` values after a history, a channel at a time."""

    @property
    def samples(self) -> Array:
        """Paths ``[S, H, C]``."""

    def quantile(self, q: float) -> Array:
        """``[H, C]``."""

    def mean(self) -> Array:
        """``[H, C]``."""


class BaseForecaster(Protocol):
    """A forecaster that can be judged beside ours, or refined by it."""

    def fit(self, series: Sequence[Series], horizon: int) -> BaseForecaster:
        """Learn from the training parts; returns itself. What learns nothing does nothing."""

    def predict(
        self, histories: Sequence[Series], horizon: int, samples: int = 100, seed: int = 0
    ) -> Sequence[BaseForecast]:
        """One forecast a history."""


@dataclass(frozen=True)
class Ensemble:
    """A forecast as equally likely paths ``[S, H, C]``."""

    samples: Array

    def quantile(self, q: float) -> Array:
        return np.quantile(self.samples, q, axis=0)

    def mean(self) -> Array:
        return self.samples.mean(0)


@dataclass(frozen=True)
class QuantileTable:
    """A forecast as quantiles, linear between them on the scale of a normal variable.

    Beyond the outer quantiles the last slope goes on, which is exact for a Gaussian law.

    Attributes:
        levels: increasing, ``[K]`` with K ≥ 2.
        values: ``[K, H, C]``, not decreasing along K.
        paths: how many samples to tell.
    """

    levels: tuple[float, ...]
    values: Array
    paths: int = 100

    def quantile(self, q: float) -> Array:
        z = ndtri(self.levels)
        k = int(np.clip(np.searchsorted(z, ndtri(q)), 1, len(z) - 1))
        weight = (ndtri(q) - z[k - 1]) / (z[k] - z[k - 1])
        return (1 - weight) * self.values[k - 1] + weight * self.values[k]

    def mean(self) -> Array:
        """Mean of the stratified samples."""
        return self.samples.mean(0)

    @property
    def samples(self) -> Array:
        """Sample i is the (i + ½)/S quantile at every step: marginals exact, steps comonotone."""
        return np.stack([self.quantile((i + 0.5) / self.paths) for i in range(self.paths)])


def uniforms(seed: int, stream: str, samples: int, *shape: int) -> Array:
    """Uniforms ``[samples, *shape]``; row i depends on (seed, stream, i) alone."""
    draws = Draws(seed, range(samples))
    import torch

    return draws.uniform(shape, stream, dtype=torch.float64).numpy()


def filled(values: Array) -> Array:
    """``values [T, C]`` with gaps filled linearly, ends by the nearest value, and nothing by 0."""
    result, steps = values.copy(), np.arange(len(values))
    for c in range(values.shape[1]):
        known = np.isfinite(values[:, c])
        if not known.any():
            result[:, c] = 0.0
        elif not known.all():
            result[:, c] = np.interp(steps, steps[known], values[known, c])
    return result
