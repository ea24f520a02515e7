r"""A linear map from context to horizon, made probabilistic: the "Linear" of TSDiff's tables.

    ŷ = m + s W (x − m)/s,   m and s the mean and standard deviation of the context x,

one W for all series, by ridge regression; a context that varies less than a tenth of its series
takes that tenth for s. (TSDiff divides by mean |x| and keeps m in; without it, series of unlike
kinds can share W: Li et al., *Revisiting Long-term Time Series Forecasting*, 2023.)

The last fifth of the windows in time chooses the ridge and gives the errors. A forecast adds whole
paths of those errors, so that their dependence between steps is that of real mistakes, in units of
s and of the error size σ_i of its series,

    σ_i² = (n_i mean e² over the series + n₀ mean e² over all) / (n_i + n₀),   n₀ = 10.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from domains.timeseries.baselines.base import Array, Ensemble, filled, uniforms
from domains.timeseries.series import Series
from sciflow.errors import InputError

__all__ = ["Linear"]

_RIDGES = tuple(10.0**k for k in range(-6, 1))
"""Candidates, as shares of the mean eigenvalue of XᵀX."""
_LEAST = 0.1
_PRIOR = 10


class Linear:
    """Ridge regression of the horizon on the context.

    Args:
        context: steps it looks back.
        windows: at most so many training windows, evenly spread.
    """

    def __init__(self, context: int, windows: int = 20000):
        self.context, self.windows = context, windows
        self.weights: Array | None = None
        self.errors = np.zeros((1, 0))
        self.sizes: dict[str, float] = {}
        self.size = 1.0

    def fit(self, series: Sequence[Series], horizon: int) -> Linear:
        """Learn W and the errors.

        Raises:
            InputError: no window of context and horizon is in the series.
        """
        x, y, when, track = self._windows(series, horizon)
        early = when < 0.8
        early[when.argmin()] = True
        late = ~early if (~early).any() else early
        best = (np.inf, _RIDGES[-1])
        for ridge in _RIDGES:
            error = np.abs(y[late] - x[late] @ _ridge(x[early], y[early], ridge)).mean()
            best = min(best, (float(error), ridge))
        errors = y[late] - x[late] @ _ridge(x[early], y[early], best[1])
        self.weights = _ridge(x, y, best[1])
        squares, which = (errors**2).mean(1), track[late]
        self.size = float(np.sqrt(squares.mean())) or 1.0
        names = _names(series)
        count = np.bincount(which, minlength=len(names))
        sums = np.bincount(which, squares, len(names)) + _PRIOR * self.size**2
        sizes = np.sqrt(sums / (count + _PRIOR))
        self.sizes = dict(zip(names, sizes.tolist(), strict=True))
        self.errors = errors / sizes[which][:, None]
        return self

    def predict(
        self, histories: Sequence[Series], horizon: int, samples: int = 100, seed: int = 0
    ) -> list[Ensemble]:
        if self.weights is None or self.weights.shape[1] != horizon:
            raise InputError(f"Linear is not fitted for a horizon of {horizon}; call fit first")
        result = []
        for history in histories:
            contexts = filled(history.values[-self.context :]).T
            x, mean, scale = self._inputs(contexts, _spread(history.values))
            point = mean + scale * (x @ self.weights)
            stream = f"linear/{history.name}/{len(history)}"
            row = (uniforms(seed, stream, samples, 1)[:, 0] * len(self.errors)).astype(int)
            size = np.array([self.sizes.get(n, self.size) for n in _names([history])])
            paths = self.errors[row][..., None] * (scale[:, 0] * size)
            result.append(Ensemble(point.T + paths))
        return result

    def _inputs(self, contexts: Array, spread: Array) -> tuple[Array, Array, Array]:
        """Normalised contexts with a constant, ``[N, L + 1]``; means and scales, ``[N, 1]``."""
        lack = self.context - contexts.shape[1]
        if lack > 0:
            contexts = np.pad(contexts, ((0, 0), (lack, 0)), mode="edge")
        mean = contexts.mean(1, keepdims=True)
        scale = np.maximum(contexts.std(1, keepdims=True), _LEAST * spread[:, None])
        scale = np.where(scale > 0, scale, 1.0)
        return np.concatenate(((contexts - mean) / scale, np.ones_like(scale)), 1), mean, scale

    def _windows(
        self, series: Sequence[Series], horizon: int
    ) -> tuple[Array, Array, Array, np.ndarray]:
        """Inputs, normalised targets, how late each window lies (0 to 1), and in which channel."""
        tracks = [s.values[:, [c]] for s in series for c in range(s.values.shape[1])]
        counts = [max(len(v) - horizon - min(self.context, len(v) // 2) + 1, 0) for v in tracks]
        stride = max(1, sum(counts) // self.windows)
        contexts, targets, when, track = [], [], [], []
        for j, (values, n) in enumerate(zip(tracks, counts, strict=True)):
            if not n:
                continue
            full = filled(values)[:, 0]
            first = len(full) - horizon - n + 1
            padded = np.pad(full, (max(self.context - first, 0), 0), mode="edge")
            view = sliding_window_view(padded, self.context + horizon)[-n:]
            truth = sliding_window_view(values[:, 0], horizon)[-n:]
            for i in range((n - 1) % stride, n, stride):
                if np.isfinite(truth[i]).all():
                    contexts.append(view[i, : self.context])
                    targets.append(truth[i])
                    when.append((i + 1) / n)
                    track.append(j)
        if not contexts:
            raise InputError("no series is long enough for a window of context and horizon")
        spread = np.concatenate([_spread(v) for v in tracks])[track]
        x, mean, scale = self._inputs(np.array(contexts), spread)
        return x, (np.array(targets) - mean) / scale, np.array(when), np.array(track)


def _names(series: Sequence[Series]) -> list[str]:
    return [f"{s.name}/{c}" for s in series for c in s.channels]


def _spread(values: Array) -> Array:
    """Standard deviation of what was observed of each channel, 0 where nothing was."""
    known = [v[np.isfinite(v)] for v in values.T]
    return np.array([v.std() if len(v) else 0.0 for v in known])


def _ridge(x: Array, y: Array, share: float) -> Array:
    """argmin |xW − y|² + λ|W|², λ = ``share`` of the mean eigenvalue of xᵀx."""
    gram = x.T @ x
    ridge = share * np.trace(gram) / len(gram)
    return np.linalg.solve(gram + ridge * np.eye(len(gram)), x.T @ y)
