r"""Conjugate gradients, a system a sample: what a posterior's pull is solved with.

The matrix is only ever applied, v ↦ Σ_y v + A V Aᵀ v: its products may be gradients of a network.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["conjugate_gradients"]


def conjugate_gradients(
    system: Callable[[Tensor], Tensor],
    b: Tensor,
    iterations: int,
    least: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """v with ``system(v) = b`` for a symmetric positive definite system in each sample.

    A sample stops where its residual has vanished, or where rounding (or a network that is no
    gradient) makes the system indefinite; its companions go on.

    Args:
        system: linear, ``[B, *m]`` to ``[B, *m]``.
        b: right-hand sides.
        iterations: at most.
        least: a linear map that the system exceeds, as Σ + A V Aᵀ does Σ; a sample also stops
            where it does not.
    """
    v, r = torch.zeros_like(b), b
    p, rr = r, _dot(r, r)
    floor = (8 * torch.finfo(b.dtype).eps) ** 2 * rr.detach()
    alive = rr.detach() > 0
    for _ in range(iterations):
        if not bool(alive.any()):
            break
        q = system(p)
        pq = _dot(p, q)
        alive = alive & (pq.detach() > (0.0 if least is None else _dot(p, least(p)).detach()))
        alpha = torch.where(alive, rr / torch.where(alive, pq, 1.0), 0.0)
        v, r = v + _like(alpha, p) * p, r - _like(alpha, q) * q
        new = _dot(r, r)
        alive = alive & (new.detach() > floor)
        beta = torch.where(alive, new / torch.where(alive, rr, 1.0), 0.0)
        p, rr = r + _like(beta, p) * p, new
    return v


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).flatten(1).sum(1)


def _like(value: Tensor, x: Tensor) -> Tensor:
    return value.reshape(-1, *(1,) * (x.ndim - 1))
