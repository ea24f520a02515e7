r"""A transformer on patches of a series: one token is ``patch`` time steps of one channel.

    h_k = W [x_k, known_k, real_k, features_k] + position_k + channel,   k = one patch
    h  += gate · attention(h),     h += gate · MLP(h)         (adaptive norms carry the noise level)
    F_k = W h_k

A patch is best one period of the season, so that a token is a day, and attention compares days
(Nie et al. 2023 for patches; Peebles & Xie 2023 for adaptive norms). On a CPU it costs a fifth to a
tenth of a state-space network of equal quality, because nearly all of its work is a few matrix
products. Tokens of all channels attend to one another; a series of one channel is the plain case.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sciflow.denoisers import Network
from sciflow.networks.attention import attend
from sciflow.networks.embeddings import LevelEmbedding
from sciflow.networks.inputs import Modulation
from sciflow.networks.series.inputs import SeriesInputs, rows_of
from sciflow.state import Context

__all__ = ["PatchTransformer"]


class PatchTransformer(Network):
    """Denoises one field ``[B, L, C]``; L may be any length up to the longest.

    Args:
        field: its name.
        patch: time steps of a token.
        features: number of fixed numbers a time step and channel (``context.extras["features"]``).
        channels: the most channels a series can have.
        longest: the most time steps.
        dim: width; ``depth`` blocks with ``heads`` of attention.
        dropout: of attention's and the MLP's outputs, while training.
    """

    def __init__(
        self,
        field: str,
        patch: int,
        features: int,
        channels: int = 1,
        longest: int = 512,
        dim: int = 96,
        depth: int = 4,
        heads: int = 4,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.field, self.patch = field, patch
        self.inputs = SeriesInputs(field, features)
        self.tokens = -(-longest // patch)
        self.embed = nn.Linear(patch * self.inputs.width, dim)
        self.position = nn.Parameter(0.02 * _waves(self.tokens, dim))
        self.channel = nn.Parameter(torch.zeros(channels, dim))
        self.level = nn.Sequential(LevelEmbedding(32), nn.Linear(32, dim), nn.SiLU())
        self.blocks = nn.ModuleList([_Block(dim, heads, dropout) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, patch)
        nn.init.zeros_(self.out.weight)
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
        b, length, c, width = x.shape
        rest = -length % self.patch
        x = F.pad(x, (0, 0, 0, 0, 0, rest))
        real = F.pad(real, (0, 0, 0, rest))
        n = x.shape[1] // self.patch
        x = x.view(b, n, self.patch, c, width).permute(0, 3, 1, 2, 4)
        x = x.reshape(b, c, n, self.patch * width)
        place, channel = (rows_of(p, k) for p, k in ((self.position, n), (self.channel, c)))
        h = self.embed(x) + place + channel[:, None]
        h = h.flatten(1, 2)
        some = real.view(b, n, self.patch, c).any(2).transpose(1, 2).reshape(b, 1, 1, c * n)
        # A finite floor: a sample without any real step must not turn into NaN.
        bias = torch.zeros_like(some, dtype=h.dtype)
        bias = bias.masked_fill(~some, torch.finfo(h.dtype).min)
        signal = self.level(level)[:, None]
        for block in self.blocks:
            h = block(h, signal, bias)
        out = self.out(self.norm(h)).view(b, c, n, self.patch).permute(0, 2, 3, 1)
        return {self.field: out.reshape(b, n * self.patch, c)[:, :length]}


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.drop = heads, nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.modulation = Modulation(dim, 2)
        self.qkv, self.merge = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 3 * dim), nn.SiLU(), nn.Linear(3 * dim, dim))

    def forward(self, h: Tensor, c: Tensor, bias: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(c)
        values = attend(self.qkv(self.norm(h) * scale_a + shift_a), self.heads, bias)
        h = h + gate_a * self.drop(self.merge(values))
        return h + gate_m * self.drop(self.mlp(self.norm(h) * scale_m + shift_m))


def _waves(n: int, dim: int) -> Tensor:
    """Sines and cosines of the place, unit variance, ``[n, dim]``."""
    place = torch.arange(n)[:, None] / torch.logspace(0, 2, dim // 2)
    return 2**0.5 * torch.cat((place.sin(), place.cos()), -1)
