"""How channels of a series learn of one another where a network treats each by itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ChannelMixing"]


class ChannelMixing(nn.Module):
    """h_c ← h_c + Σ_d M_cd h_d over real channels; M begins at zero, one channel has none.

    Args:
        channels: the most that a series can have.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.map = nn.Parameter(torch.zeros(channels, channels)) if channels > 1 else None

    def forward(self, h: Tensor, real: Tensor) -> Tensor:
        """``h [B, C, ..., dim]``; ``real`` bool ``[B, C, ..., 1]``. C may be padded."""
        if self.map is None:
            return h
        rest = h.shape[1] - len(self.map)
        # Negative padding crops: fewer channels than the most.
        m = F.pad(self.map, (0, rest, 0, rest))
        return h + torch.einsum("cd,bd...->bc...", m, h * real)
