"""Vectors with white noise: features, series, latent codes."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.random import Draws
from sciflow.spaces.base import Space
from sciflow.state import Context

__all__ = ["Euclidean"]


class Euclidean(Space):
    """ℝ^event per element with standard normal noise.

    Args:
        event: shape of one element's value, e.g. ``(3,)``; ``()`` for a scalar.
    """

    def __init__(self, *event: int):
        self.event = event

    def mask(self, context: Context) -> Tensor:
        return context.mask

    def noise(self, context: Context, draws: Draws, stream: str, step: int = 0,
              dtype: torch.dtype | None = None) -> Tensor:  # fmt: skip
        shape = (*context.mask.shape[1:], *self.event)
        x = draws.normal(shape, stream, step, dtype or torch.get_default_dtype(),
                         context.mask.device)  # fmt: skip
        return self.project(x, context)

    def project(self, x: Tensor, context: Context) -> Tensor:
        # A look at the mask is ten times cheaper than filling; on a GPU it would be a wait.
        if context.mask.device.type == "cpu" and bool(context.mask.all()):
            return x
        # Not a product: whatever padding holds, NaN included, is gone.
        return x.masked_fill(~self.expand(context.mask, x), 0)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """The point reached from ``x`` along the geodesic that starts with ``v``; flat: x + v."""
        return x + v

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The shortest tangent vector at ``x`` with exp_x(v) = ``y``; flat: y − x."""
        return y - x

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        """A gradient with respect to ``x``, or a network's output, in the coordinates of exp."""
        return v

    def transport(self, x: Tensor, v: Tensor, w: Tensor) -> Tensor:
        """The tangent vector ``w`` at ``x``, carried in parallel to exp_x(v)."""
        return w
