r"""A plain transformer on points that reads raw coordinates; rotations are learned, not built in.

    h_i  = symbols + W [x_i, sin(ω x_i), cos(ω x_i)]
    A_ij = softmax_j( q_i·k_j/√c + b(bond_ij, φ(|x_i − x_j|)) )        attention, biased by pairs
    h_i += gate · W Σ_j A_ij v_j,        h_i += gate · MLP(h_i)
    F_i  = W h_i

Pair features are made once and only bias attention, so that nearly all work is matrix products on
points: the cheapest network a parameter on a CPU. Points are centred first (translations commute
exactly). Rotations do not: while training, each sample is rotated by a random R, and the output is
rotated back,

    F(x) = Rᵀ f(R x),      R a function of the noisy input itself,

(:mod:`sciflow.networks.rotations`), so that inputs, targets and the clean estimate stay in the
data's frame, the objective needs no change, and a training step remains a function of (seed, step)
bit for bit. In evaluation R = 1: deterministic, smooth, equivariant to rotations as far as it has
learned to be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sciflow.denoisers import Network
from sciflow.networks.attention import attend
from sciflow.networks.inputs import Modulation, PointInputs, SampleEmbedding
from sciflow.networks.pairs import PairInputs, distances
from sciflow.networks.rotations import rotation_from_points
from sciflow.state import Context

__all__ = ["AugmentedTransformer"]


class AugmentedTransformer(Network):
    """Denoises points, tokens on points and tokens on pairs of points, jointly.

    Args:
        points: name of the coordinate field ``[B, N, 3]``.
        tokens: ``{field: (symbols, classes)}`` on points: input alphabet and output logits.
        pairs: the same for fields on pairs.
        conditions: ``{property: (mean, std)}``.
        dim: width of point features; ``pair_dim`` of pair features.
        depth: number of blocks; ``heads`` of attention.
        radial: number of radial functions.
        waves: number of frequencies at which coordinates are read.
        self_conditioning: reserve inputs for a previous estimate.
    """

    def __init__(
        self,
        points: str,
        tokens: Mapping[str, Sequence[int]],
        pairs: Mapping[str, Sequence[int]],
        conditions: Mapping[str, Sequence[float]],
        dim: int = 192,
        pair_dim: int = 32,
        depth: int = 6,
        heads: int = 8,
        radial: int = 24,
        waves: int = 8,
        self_conditioning: bool = True,
    ):
        super().__init__()
        self.points, self.depth, self.heads = points, depth, heads
        self.self_conditioning = self_conditioning
        self.sample = SampleEmbedding([points, *tokens, *pairs], conditions, dim)
        self.point_in = PointInputs(tokens, pairs, dim, self_conditioning)
        self.pair_in = PairInputs(pairs, pair_dim, radial, self_conditioning)
        self.waves = Waves(waves)
        self.coords_in = nn.Linear(3 + 6 * waves, dim)
        if self_conditioning:
            self.coords_back = nn.Linear(3 + 6 * waves, dim)
        self.bias = nn.Linear(pair_dim, depth * heads)
        self.blocks = nn.ModuleList([Block(dim, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)
        self.coords_out = nn.Linear(dim, 3)
        nn.init.zeros_(self.coords_out.weight)
        nn.init.zeros_(self.coords_out.bias)
        self.token_out = nn.ModuleDict({f: nn.Linear(dim, c) for f, (_, c) in tokens.items()})
        self.pair_out = nn.ModuleDict(
            {f: PairHead(dim, pair_dim, c) for f, (_, c) in pairs.items()}
        )

    def forward(
        self,
        inputs: dict[str, Tensor],
        levels: dict[str, Tensor],
        context: Context,
        previous: dict[str, Tensor] | None,
    ) -> dict[str, Tensor]:
        """See :class:`~sciflow.denoisers.Network`."""
        mask = context.mask
        if not self.self_conditioning:
            previous = None
        x = _centred(inputs[self.points], mask)
        back = None if previous is None else _centred(previous[self.points], mask)
        rotation = rotation_from_points(x, mask) if self.training else None
        if rotation is not None:
            x = _turned(x, rotation)
            back = None if back is None else _turned(back, rotation)

        c = self.sample(levels, context)
        h = self.point_in(inputs, mask, previous, c) + self.coords_in(self.waves(x))
        if back is not None:
            h = h + self.coords_back(self.waves(back))
        e = self.pair_in(inputs, distances(x), previous, None if back is None else distances(back))
        e = F.relu(e)
        b, n = mask.shape
        bias = self.bias(e).view(b, n, n, self.depth, self.heads).permute(3, 0, 4, 1, 2)
        # A finite floor: a sample without points must not turn into NaN.
        bias = bias.masked_fill(~mask[:, None, None], torch.finfo(bias.dtype).min)
        for block, block_bias in zip(self.blocks, bias.unbind(0), strict=True):
            h = block(h, c, block_bias)

        h = self.norm(h)
        out = self.coords_out(h).to(x.dtype)
        if rotation is not None:
            out = _turned(out, rotation.mT)
        outputs = {self.points: out * mask[..., None]}
        outputs |= {f: head(h) for f, head in self.token_out.items()}
        return outputs | {f: head(h, e) for f, head in self.pair_out.items()}


class Waves(nn.Module):
    """Coordinates with sines and cosines at ``k`` frequencies, ``[..., 3] → [..., 3 + 6k]``."""

    frequencies: Tensor

    def __init__(self, k: int, lowest: float = 0.5, highest: float = 12.0):
        super().__init__()
        f = torch.exp(torch.linspace(math.log(lowest), math.log(highest), k))
        self.register_buffer("frequencies", f, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        angle = (x[..., None] * self.frequencies).flatten(-2)
        return torch.cat((x, angle.sin(), angle.cos()), -1)


class Block(nn.Module):
    """One round of biased attention and of a two-layer map, each with adaptive layer norm."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.modulation = Modulation(dim, 2)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.SiLU(), nn.Linear(4 * dim, dim))

    def forward(self, h: Tensor, c: Tensor, bias: Tensor) -> Tensor:
        """``h [B, N, dim]``, ``c [B, 1 or N, dim]``, ``bias [B, heads, N, N]``."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(c)
        qkv = self.qkv(self.norm(h) * scale_a + shift_a)
        h = h + gate_a * self.out(attend(qkv, self.heads, bias.to(qkv.dtype)))
        return h + gate_m * self.mlp(self.norm(h) * scale_m + shift_m)


class PairHead(nn.Module):
    """Logits of a symmetric pair: W relu( V e_ij + a_i + a_j + b_i ∘ b_j )."""

    def __init__(self, dim: int, pair_dim: int, classes: int):
        super().__init__()
        width = 2 * pair_dim
        self.point = nn.Linear(dim, 2 * width)
        self.pair = nn.Linear(pair_dim, width)
        self.out = nn.Linear(width, classes)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        """``h [B, N, dim]``, ``e [B, N, N, pair_dim]`` → ``[B, N, N, classes]``."""
        a, b = self.point(h).chunk(2, -1)
        w = self.pair(e) + a[:, :, None] + a[:, None] + b[:, :, None] * b[:, None]
        return self.out(F.relu(w))


def _turned(x: Tensor, rotation: Tensor) -> Tensor:
    """R x for ``x [B, N, 3]``; no matrix product, which autocast would round to bfloat16."""
    return (rotation[:, None] * x[..., None, :]).sum(-1)


def _centred(x: Tensor, mask: Tensor) -> Tensor:
    real = mask[..., None].to(x.dtype)
    n = real.sum(1, keepdim=True).clamp(min=1)
    return (x - (x * real).sum(1, keepdim=True) / n) * real
