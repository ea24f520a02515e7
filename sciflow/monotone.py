r"""Monotone cubic interpolation: through every point, once differentiable, without overshoot.

On [t_i, t_{i+1}], with w = (t − t_i)/h and m the slopes at the knots (Hermite's form),

    y = (1 − w)²(1 + 2w) y_i + w²(3 − 2w) y_{i+1} + h w(1 − w) [(1 − w) m_i − w m_{i+1}].

Inside, 1/m is a mean of the inverse secants on both sides, weighted for uneven knots, and m = 0 at
extrema (Fritsch & Butland 1984). It is symmetric: 1 − y has the slopes −m.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["interpolate", "monotone_slopes"]


def monotone_slopes(t: Tensor, y: Tensor) -> Tensor:
    """Slopes at the knots, ``[..., n]``.

    At the ends three points decide, between a third of and three times the secant: the upper bound
    keeps a cubic monotone, and the lower one its derivative above 0.

    Args:
        t: rising knots ``[n]``, n ≥ 2.
        y: values ``[..., n]``.
    """
    h, d = t.diff(), y.diff() / t.diff()
    if len(h) == 1:
        return torch.cat((d, d), -1)
    before, after = d[..., :-1], d[..., 1:]
    same = before * after > 0
    p, q = (torch.where(same, x, torch.ones_like(x)) for x in (before, after))
    u, v = h[:-1] + 2 * h[1:], 2 * h[:-1] + h[1:]
    inner = torch.where(same, (u + v) / (u / p + v / q), torch.zeros_like(p))
    first = _end(h[0], h[1], d[..., :1], d[..., 1:2])
    last = _end(h[-1], h[-2], d[..., -1:], d[..., -2:-1])
    return torch.cat((first, inner, last), -1)


def _end(h: Tensor, h_next: Tensor, d: Tensor, d_next: Tensor) -> Tensor:
    three = ((2 * h + h_next) * d - h * d_next) / (h + h_next)
    flat = d == 0
    ratio = three / torch.where(flat, torch.ones_like(d), d)
    return torch.where(flat, torch.zeros_like(d), d * ratio.clamp(1 / 3, 3))


def interpolate(x: Tensor, t: Tensor, y: Tensor, slopes: Tensor) -> Tensor:
    """Values at ``x``, ``[..., *x.shape]``; differentiable in ``x``.

    Args:
        x: where, any shape, within the knots.
        t: rising knots ``[n]``.
        y: values ``[..., n]``.
        slopes: of :func:`monotone_slopes`, ``[..., n]``.
    """
    i = (torch.searchsorted(t, x.detach().contiguous()) - 1).clamp(0, len(t) - 2)
    h = t[i + 1] - t[i]
    w = (x - t[i]) / h
    r = 1 - w
    ends = r**2 * (1 + 2 * w) * y[..., i] + w**2 * (1 + 2 * r) * y[..., i + 1]
    return ends + h * w * r * (r * slopes[..., i] - w * slopes[..., i + 1])
