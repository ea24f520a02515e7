"""What every network of series reads of a time step and channel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sciflow.paths.base import LEVEL_LIMIT
from sciflow.state import Context

__all__ = ["SeriesInputs", "rows_of"]


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
        known = torch.zeros_like(real)
        if level.ndim > 1:
            level = level.reshape(level.shape + (1,) * (x.ndim - level.ndim)).expand_as(x)
            # Time 0 stands at the path's lowest level: the element is given.
            known = level <= -LEVEL_LIMIT
            # The unknown elements of a sample share one level.
            level = level.masked_fill(known | ~real, -LEVEL_LIMIT).flatten(1).amax(1)
        parts = [torch.stack((x, known.to(x.dtype), real.to(x.dtype)), -1)]
        if self.features:
            parts.append(context.extras["features"].to(x.dtype))
        return torch.cat(parts, -1) * real[..., None], level, real


def rows_of(table: Tensor, n: int) -> Tensor:
    """The first ``n`` rows of ``[M, dim]``, one a channel or place.

    A padded batch may be longer and wider than any series: beyond the last row stand zeros.
    """
    return F.pad(table, (0, 0, 0, max(n - len(table), 0)))[:n]
