"""What every network of series reads of a time step and channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sciflow.state import Context

__all__ = ["SeriesInputs"]

_LEAST = -12.0
"""Level below which an element counts as known: a given one stands at the clamp of the path."""


class SeriesInputs(nn.Module):
    """Noisy value, whether it is known, whether it is real, and the context's features.

    Args:
        field: name of the series.
        features: number of ``context.extras["features"]``, ``[B, L, C, features]``.
    """

    def __init__(self, field: str, features: int):
        super().__init__()
        self.field, self.features, self.width = field, features, 3 + features

    def forward(
        self, inputs: dict[str, Tensor], levels: dict[str, Tensor], context: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(inputs ``[B, L, C, width]``, noise level of the sample ``[B]``, real ``[B, L, C]``)."""
        x, level, real = inputs[self.field], levels[self.field], context.mask
        if level.ndim == 1:
            known = torch.zeros_like(real)
        else:
            given = context.given.get(self.field)
            known = torch.zeros_like(real) if given is None else given
            # All unknown elements of a sample share one level.
            level = level.masked_fill(known | ~real, -torch.inf).flatten(1).amax(1)
            level = level.clamp(min=_LEAST)
        parts = [torch.stack((x, known.to(x.dtype), real.to(x.dtype)), -1)]
        if self.features:
            parts.append(context.extras["features"].to(x.dtype))
        return torch.cat(parts, -1) * real[..., None], level, real
