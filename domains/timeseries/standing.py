r"""Where a window stands in the whole of its series: what a look back of some days cannot tell.

A network that sees a window in its own units cannot know whether a calm week was calm for this
series, and so not what comes back to the usual level. Two numbers say it. With n values known of
the series, those before the window and those given in it, of mean M and standard deviation S, and
m and s those of the given ones alone,

    asinh((M − m)/s),    log(S/s),

both 0 where nothing is known before the window, or nothing in it. They move and scale with the
series, as the rest of the window does (:mod:`domains.timeseries.frame`).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from domains.timeseries.frame import Frame

__all__ = ["NUMBERS", "moments_before", "running_moments", "standing"]

NUMBERS = 2
_LEAST = 1e-4
"""Of S/s: a window that varies ten thousand times as much as all that was before is no news."""


def moments_before(values: NDArray[np.float64], step: int) -> Tensor:
    """Number, mean and variance of what is known before a step of ``[T, C]``, ``[3, C]``."""
    return running_moments(values[: max(step, 0)])[-1]


def running_moments(values: NDArray[np.float64]) -> Tensor:
    """Number, mean and variance of the known values before each step, ``[T + 1, 3, C]``."""
    known = np.isfinite(values)
    # Sums of squares about a value of the series itself: its level costs no digits.
    first = np.array([next(iter(v[k]), 0.0) for v, k in zip(values.T, known.T, strict=True)])
    z = np.where(known, values - first, 0.0)
    sums = [np.concatenate([np.zeros((1, z.shape[1])), np.cumsum(x, 0)]) for x in (known, z, z**2)]
    n = np.maximum(sums[0], 1)
    mean = sums[1] / n
    variance = np.maximum(sums[2] / n - mean**2, 0)
    return torch.from_numpy(
        np.stack([sums[0], np.where(sums[0] > 0, first + mean, 0.0), variance], 1)
    )


def standing(before: Tensor, given: Tensor, frame: Frame) -> Tensor:
    """The two numbers for every step of windows, ``[B, L, C, 2]``.

    Args:
        before: moments of what is known before each window, ``[B, 3, C]``.
        given: bool ``[B, L, C]``.
        frame: of what is given.
    """
    n, mean, variance = (x[:, None] for x in before.unbind(1))
    own, m, s = given.sum(1, keepdim=True).to(mean), frame.centre, frame.spread
    # In units of the window, in which both parts are of ordinary size.
    away, total = (mean - m) / s, (n + own).clamp(min=1)
    centre = n * away / total
    spread = n * (variance / s**2 + (away - centre) ** 2) + own * (1 + centre**2)
    spread = (spread / total).clamp(min=_LEAST**2).sqrt()
    told = (n > 0) & (own > 0)
    numbers = torch.stack((centre.asinh(), spread.log()), -1)
    return numbers.masked_fill(~told[..., None], 0.0).expand(*given.shape, NUMBERS)
