"""Gaps of a whole series, filled window by window from left to right.

Each window goes on from what the one before has drawn, path by path, so that paths are whole. What
lies in the last part of a window has little to its right; it is drawn anew by the next one.
"""

from __future__ import annotations

import numpy as np
import torch

from domains.timeseries.paths import PathDrawer, stream_of
from domains.timeseries.series import Series
from domains.timeseries.view import View

__all__ = ["imputed"]


def imputed(
    s: Series,
    samples: int,
    drawer: PathDrawer,
    length: int,
    told: np.ndarray | None = None,
    known_future: bool = False,
) -> np.ndarray:
    """Paths ``[S, T, C]``, observed values as they are.

    Args:
        s: the series.
        samples: how many paths.
        drawer: draws a window.
        length: of a window.
        told: covariates as the network reads them, ``[T, K]``.
        known_future: whether they are known beforehand.
    """
    y = torch.from_numpy(s.values)[None].repeat(samples, 1, 1)
    known, numbers, stride = torch.isfinite(y), torch.arange(samples), length // 2
    every = None if told is None else torch.from_numpy(told)[None].repeat(samples, 1, 1)
    for begin in range(0, max(len(s) - stride, 1), stride):
        end = min(begin + length, len(s))
        part = slice(max(end - length, 0), end)
        if bool(known[0, part].all()):
            continue
        window = y[:, part].masked_fill(~known[:, part], torch.nan)
        drawn = drawer(
            View(window, known[:, part], torch.ones_like(known[:, part]),
                 None if every is None else every[:, part], known_future),
            [stream_of(f"{s.name} {s.stamp(part.start)}")] * samples, numbers, samples,
        )  # fmt: skip
        last = len(s) if end == len(s) else begin + stride + length // 4
        inside = slice(part.start, min(end, last))
        y[:, inside] = drawn[:, : inside.stop - inside.start]
        known[:, inside] = True
    return y.numpy()
