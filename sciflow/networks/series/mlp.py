r"""Stacked maps of a whole series with skips: GPD's denoiser (Yang et al. 2024).

    h = W [x_1, known_1, real_1, features_1, …, x_L, …],     h += gate · W'' silu(W' norm(h)),
    F = V h + V' x

A series is one vector of its longest length, so that every step has weights of its own: nothing is
shared along time, and a shorter series is the longest one with the rest not real. That costs the
least time of all, and the most weights and data. GPD concatenates its skips; here they are added,
and the noise level shifts, scales and gates each block.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sciflow.denoisers import Network
from sciflow.networks.embeddings import LevelEmbedding
from sciflow.networks.inputs import Modulation
from sciflow.networks.series.inputs import SeriesInputs, rows_of
from sciflow.networks.series.mixing import ChannelMixing
from sciflow.state import Context

__all__ = ["SeriesMLP"]


class SeriesMLP(Network):
    """Denoises one field ``[B, L, C]`` of at most ``longest`` steps; channels meet by mixing maps.

    Args:
        field: its name.
        features: number of fixed numbers a time step and channel (``context.extras["features"]``).
        channels: the most channels a series can have.
        longest: the most time steps; steps beyond, which can only be padding, are not read.
        dim: width; ``depth`` blocks.
        depth: see ``dim``.
        dropout: of a block's output, while training.
    """

    def __init__(
        self,
        field: str,
        features: int,
        channels: int = 1,
        longest: int = 512,
        dim: int = 512,
        depth: int = 4,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.field, self.longest = field, longest
        self.inputs = SeriesInputs(field, features)
        self.embed = nn.Linear(longest * self.inputs.width, dim)
        self.channel = nn.Parameter(torch.zeros(channels, dim))
        self.level = nn.Sequential(LevelEmbedding(32), nn.Linear(32, dim), nn.SiLU())
        self.blocks = nn.ModuleList([_Block(dim, channels, dropout) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, longest)
        self.skip = nn.Linear(longest, longest, bias=False)
        for map_ in (self.out, self.skip):
            nn.init.zeros_(map_.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self,
        inputs: dict[str, Tensor],
        levels: dict[str, Tensor],
        context: Context,
        previous: dict[str, Tensor] | None,
    ) -> dict[str, Tensor]:
        """See :class:`~sciflow.denoisers.Network`."""
        x, level, real = self.inputs(inputs, levels, context)
        length, c = x.shape[1:3]
        # Negative padding crops.
        x = F.pad(x, (0, 0, 0, 0, 0, self.longest - length)).transpose(1, 2)
        channel = rows_of(self.channel, c)
        h = self.embed(x.flatten(2)) + channel
        signal, some = self.level(level)[:, None], real.any(1)[..., None]
        for block in self.blocks:
            h = block(h, signal, some)
        out = self.out(self.norm(h)) + self.skip(x[..., 0])
        return {self.field: F.pad(out, (0, length - self.longest)).transpose(1, 2)}


class _Block(nn.Module):
    def __init__(self, dim: int, channels: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.modulation = Modulation(dim, 1)
        self.mixing = ChannelMixing(channels)
        self.first, self.second = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, h: Tensor, signal: Tensor, some: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(signal)
        y = self.mixing(F.silu(self.first(self.norm(h) * scale + shift)), some)
        return h + gate * self.drop(self.second(y))
