r"""An E(3)-equivariant transformer over points, their types and the bonds between them.

Three streams: invariant features h_i, symmetric pair features e_ij and positions x_i. One block:

    A_ij = softmax_j( q_i·k_j/√c + W e_ij )                            attention, biased by pairs
    h_i += gate · W [ Σ_j A_ij v_j ,  Σ_j A_ij e_ij ]
    h_i += gate · MLP(h_i)
    e_ij += MLP( e_ij, U h_i + U h_j, φ(|x_i − x_j|) )
    x_i += Σ_j w(e_ij) (x_i − x_j) / (1 + |x_i − x_j|)                 (Satorras et al. 2021)

Features see only distances, and positions move only along differences: rotations, reflections,
translations and permutations commute with the network. Scale, shift and gate come from the noise
level and the conditions (adaptive layer norm, Peebles & Xie 2023). Dense over pairs: for molecules
of up to about 100 atoms matrix products on padded batches beat message passing on a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sciflow.denoisers import Network
from sciflow.networks.embeddings import RadialBasis, masked_softmax
from sciflow.networks.inputs import Modulation, PointInputs, SampleEmbedding, pair_mask
from sciflow.networks.pairs import PairInputs, distances, length
from sciflow.state import Context

__all__ = ["EquivariantTransformer"]


class EquivariantTransformer(Network):
    """Denoises points, tokens on points and tokens on pairs of points, jointly.

    Args:
        points: name of the coordinate field ``[B, N, 3]``.
        tokens: ``{field: (symbols, classes)}`` on points: input alphabet and output logits.
        pairs: the same for fields on pairs.
        conditions: ``{property: (mean, std)}``.
        dim: width of atom features; ``pair_dim`` of pair features.
        depth: number of blocks; ``heads`` of attention.
        radial: number of radial functions of the input distances; blocks use a third of it.
        self_conditioning: reserve inputs for a previous estimate.
    """

    def __init__(
        self,
        points: str,
        tokens: Mapping[str, Sequence[int]],
        pairs: Mapping[str, Sequence[int]],
        conditions: Mapping[str, Sequence[float]],
        dim: int = 128,
        pair_dim: int = 32,
        depth: int = 6,
        heads: int = 8,
        radial: int = 24,
        self_conditioning: bool = True,
    ):
        super().__init__()
        self.points, self.self_conditioning = points, self_conditioning
        self.sample = SampleEmbedding([points, *tokens, *pairs], conditions, dim)
        self.point_in = PointInputs(tokens, pairs, dim, self_conditioning)
        self.pair_in = PairInputs(pairs, pair_dim, radial, self_conditioning)
        self.blocks = nn.ModuleList(
            [Block(dim, pair_dim, heads, radial // 3) for _ in range(depth)]
        )
        self.norm_h, self.norm_e = nn.LayerNorm(dim), nn.LayerNorm(pair_dim)
        self.token_out = nn.ModuleDict({f: nn.Linear(dim, c) for f, (_, c) in tokens.items()})
        self.pair_mix = nn.Linear(dim, pair_dim)
        width = 2 * pair_dim
        self.pair_out = nn.ModuleDict({
            f: nn.Sequential(nn.Linear(pair_dim, width), nn.SiLU(), nn.Linear(width, c))
            for f, (_, c) in pairs.items()
        })  # fmt: skip

    def forward(
        self,
        inputs: dict[str, Tensor],
        levels: dict[str, Tensor],
        context: Context,
        previous: dict[str, Tensor] | None,
    ) -> dict[str, Tensor]:
        """See :class:`~sciflow.denoisers.Network`."""
        start = x = inputs[self.points]
        mask = context.mask
        pairs = pair_mask(mask)
        if not self.self_conditioning:
            previous = None
        back = None if previous is None else distances(previous[self.points])
        c = self.sample(levels, context)
        h = self.point_in(inputs, mask, previous, c)
        e = self.pair_in(inputs, distances(x), previous, back)
        for block in self.blocks:
            h, e, x = block(h, e, x, c, mask, pairs)

        h = self.norm_h(h)
        outputs = {self.points: (x - start) * mask[..., None]}
        outputs |= {f: head(h) for f, head in self.token_out.items()}
        if len(self.pair_out):
            g = self.pair_mix(h)
            e = self.norm_e(e) + g[:, :, None] + g[:, None]
            outputs |= {f: head(e) for f, head in self.pair_out.items()}
        return outputs


class Block(nn.Module):
    """One round of attention, pair update and motion; see the module's formulas."""

    def __init__(self, dim: int, pair_dim: int, heads: int, radial: int):
        super().__init__()
        self.heads = heads
        self.norm_a = nn.LayerNorm(dim, elementwise_affine=False)
        self.norm_m = nn.LayerNorm(dim, elementwise_affine=False)
        self.norm_e = nn.LayerNorm(pair_dim)
        self.modulation = Modulation(dim, 2)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.bias = nn.Linear(pair_dim, heads)
        self.out = nn.Linear(dim + heads * pair_dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 3 * dim), nn.SiLU(), nn.Linear(3 * dim, dim))
        self.pair_h = nn.Linear(dim, pair_dim)
        self.pair_e = nn.Linear(pair_dim + radial, pair_dim)
        self.pair_out = nn.Linear(pair_dim, pair_dim)
        self.radial = RadialBasis(radial)
        self.move = nn.Linear(pair_dim, 1)
        nn.init.zeros_(self.move.weight)
        nn.init.zeros_(self.move.bias)

    def forward(
        self, h: Tensor, e: Tensor, x: Tensor, c: Tensor, mask: Tensor, pairs: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``h [B, N, dim]``, ``e [B, N, N, pair_dim]``, ``x [B, N, 3]``, ``c [B, 1 or N, dim]``."""
        b, n, dim = h.shape
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(c)

        q, k, v = (
            y.view(b, n, self.heads, dim // self.heads).transpose(1, 2)
            for y in self.qkv(self.norm_a(h) * scale_a + shift_a).chunk(3, -1)
        )
        u = self.norm_e(e)
        logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + self.bias(u).permute(0, 3, 1, 2)
        attention = masked_softmax(logits, pairs[:, None])
        values = (attention @ v).transpose(1, 2).reshape(b, n, dim)
        # [B, N, H, N] @ [B, N, N, P]: what the pairs themselves say, weighted by attention.
        from_pairs = (attention.transpose(1, 2) @ u).reshape(b, n, self.heads * u.shape[-1])
        h = h + gate_a * self.out(torch.cat((values, from_pairs), -1))
        h = h + gate_m * self.mlp(self.norm_m(h) * scale_m + shift_m)

        difference = x[:, :, None] - x[:, None]
        d = length(difference)
        g = self.pair_h(h)
        w = F.relu(self.pair_e(torch.cat((u, self.radial(d)), -1)) + g[:, :, None] + g[:, None])
        e = e + self.pair_out(w)
        push = self.move(w)[..., 0] * pairs / (1 + d)
        # Divided by √N, so that a sum over partners keeps its size from small to large systems.
        root = mask.sum(1).clamp(min=1).sqrt()[:, None, None]
        return h, e, x + (push[..., None] * difference).sum(2) / root
