r"""A linear map from context to horizon: the "Linear" of TSDiff's tables, made probabilistic.

    ŷ = s W (x/s, 1),   s = mean |x| of the context x,

one W for all series, by ridge regression. The last fifth of the windows in time chooses the ridge
and gives the errors; a forecast adds whole paths of those errors, scaled by s, so that both the
spread and its dependence between steps are those of real mistakes.
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


class Linear:
    """Ridge regression of the horizon on the context.

    Args:
        context: steps it looks back.
        windows: at most so many training windows, evenly spread.
    """

    def __init__(self, context: int, windows: int = 20000):
        self.context, self.windows = context, windows
        self.weights: Array | None = None
        self.errors: Array | None = None

    def fit(self, series: Sequence[Series], horizon: int) -> Linear:
        """Learn W and the errors.

        Raises:
            InputError: no series is longer than the horizon.
        """
        x, y, when = self._windows(series, horizon)
        early = when < 0.8
        early[when.argmin()] = True
        late = ~early if (~early).any() else early
        best = (np.inf, _RIDGES[-1])
        for ridge in _RIDGES:
            error = np.abs(y[late] - x[late] @ _ridge(x[early], y[early], ridge)).mean()
            best = min(best, (float(error), ridge))
        self.errors = y[late] - x[late] @ _ridge(x[early], y[early], best[1])
        self.weights = _ridge(x, y, best[1])
        return self

    def predict(
        self, histories: Sequence[Series], horizon: int, samples: int = 100, seed: int = 0
    ) -> list[Ensemble]:
        if self.weights is None or self.errors is None or self.weights.shape[1] != horizon:
            raise InputError(f"Linear is not fitted for a horizon of {horizon}; call fit first")
        result = []
        for history in histories:
            x, scale = self._inputs(filled(history.values[-self.context :]).T)
            point = (x @ self.weights).T * scale.T
            stream = f"linear/{history.name}/{len(history)}"
            row = (uniforms(seed, stream, samples, 1)[:, 0] * len(self.errors)).astype(int)
            result.append(Ensemble(point + self.errors[row][..., None] * scale.T))
        return result

    def _inputs(self, contexts: Array) -> tuple[Array, Array]:
        """Scaled contexts with a constant, ``[N, L + 1]``, and the scales ``[N, 1]``."""
        lack = self.context - contexts.shape[1]
        if lack > 0:
            contexts = np.pad(contexts, ((0, 0), (lack, 0)), mode="edge")
        scale = np.abs(contexts).mean(1, keepdims=True)
        scale = np.where(scale > 0, scale, 1.0)
        return np.concatenate((contexts / scale, np.ones_like(scale)), 1), scale

    def _windows(self, series: Sequence[Series], horizon: int) -> tuple[Array, Array, Array]:
        """Inputs, scaled targets, and how late each window lies in its series (0 to 1)."""
        tracks = [s.values[:, [c]] for s in series for c in range(s.values.shape[1])]
        counts = [max(len(v) - horizon - min(self.context, len(v) // 2) + 1, 0) for v in tracks]
        stride = max(1, sum(counts) // self.windows)
        contexts, targets, when = [], [], []
        for values, n in zip(tracks, counts, strict=True):
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
        if not contexts:
            raise InputError("no series is long enough for a window of context and horizon")
        x, scale = self._inputs(np.array(contexts))
        return x, np.array(targets) / scale, np.array(when)


def _ridge(x: Array, y: Array, share: float) -> Array:
    """argmin |xW − y|² + λ|W|², λ = ``share`` of the mean eigenvalue of xᵀx."""
    gram = x.T @ x
    ridge = share * np.trace(gram) / len(gram)
    return np.linalg.solve(gram + ridge * np.eye(len(gram)), x.T @ y)
