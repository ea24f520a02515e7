r"""Seasonal naive: next Monday as last Monday. With season 1 it is the last value.

The point forecast repeats the last season. The probabilistic one lets it walk, season after season,
by errors that the method made before,

    y*_{t} = y*_{t−m} + e_{u},   e_u = y_u − y_{u−m} less its mean,

where each season takes a run of m successive errors from a random place of the history, so that
errors near in time stay together (block bootstrap; Hyndman & Athanasopoulos, *Forecasting:
Principles and Practice*, 5.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from domains.timeseries.baselines.base import Array, Ensemble, uniforms
from domains.timeseries.series import Series

__all__ = ["SeasonalNaive"]


@dataclass(frozen=True)
class SeasonalNaive:
    """The value one season ago.

    Attributes:
        season: steps, m; 1 for the last value.
        bootstrap: as a law; otherwise a point, all samples being alike.
    """

    season: int
    bootstrap: bool = False

    def fit(self, series: Sequence[Series], horizon: int) -> SeasonalNaive:
        return self

    def predict(
        self, histories: Sequence[Series], horizon: int, samples: int = 100, seed: int = 0
    ) -> list[Ensemble]:
        return [self._one(h, horizon, samples, seed) for h in histories]

    def _one(self, history: Series, horizon: int, samples: int, seed: int) -> Ensemble:
        m = self.season if self.season < len(history) else 1
        seasons = -(-horizon // m)
        last = last_season(history.values, m)
        point = np.tile(last, (seasons, 1))[:horizon]
        if not self.bootstrap:
            return Ensemble(np.broadcast_to(point, (samples, *point.shape)))
        stream = f"naive/{history.name}/{len(history)}"
        u = uniforms(seed, stream, samples, seasons, point.shape[1])
        steps = np.empty((samples, seasons * m, point.shape[1]))
        for c in range(point.shape[1]):
            runs = _error_runs(history.values[:, c], m)
            chosen = (u[..., c] * len(runs)).astype(int)
            steps[..., c] = runs[chosen].cumsum(1).reshape(samples, -1)
        return Ensemble(point + steps[:, :horizon])


def last_season(values: Array, m: int) -> Array:
    """The latest observed value of each of the next ``m`` phases, ``[m, C]``.

    A phase never observed takes the last value of all; a channel never observed takes 0.
    """
    t, c = values.shape
    padded = np.full((-(-t // m) * m, c), np.nan)
    padded[len(padded) - t :] = values
    grid = padded.reshape(-1, m, c)
    known = np.isfinite(grid)
    latest = len(grid) - 1 - known[::-1].argmax(0)
    result = np.take_along_axis(grid, latest[None], 0)[0]
    for j in range(c):
        seen = values[np.isfinite(values[:, j]), j]
        result[np.isnan(result[:, j]), j] = seen[-1] if len(seen) else 0.0
    return result


def _error_runs(y: Array, m: int) -> Array:
    """All runs of ``m`` successive seasonal errors less their mean, ``[N, m]``; gaps count as 0."""
    e = y[m:] - y[:-m] if len(y) > m else np.zeros(0)
    e = np.nan_to_num(e - (np.nanmean(e) if np.isfinite(e).any() else 0.0))
    if len(e) < m:
        e = np.resize(e, m) if len(e) else np.zeros(m)
    return np.lib.stride_tricks.sliding_window_view(e, m)
