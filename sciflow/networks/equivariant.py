r"""An E(3)-equivariant transformer over points, their types and the bonds between them.

Three streams: invariant atom features h_i, symmetric pair features e_ij and positions x_i. One block:

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
from sciflow.networks.embeddings import (
    ConditionEmbedding,
    LevelEmbedding,
    RadialBasis,
    masked_softmax,
)
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
        radial: number of radial functions.
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
        self.points, self.tokens, self.pairs = points, dict(tokens), dict(pairs)
        self.token_in = nn.ModuleDict({f: nn.Embedding(s, dim) for f, (s, _) in tokens.items()})
        self.pair_in = nn.ModuleDict({f: nn.Embedding(s, pair_dim) for f, (s, _) in pairs.items()})
        # Sums over a row of pair tokens: how many bonds of each order an atom already has.
        self.degree_in = nn.ModuleDict(
            {f: nn.Linear(s, dim, bias=False) for f, (s, _) in pairs.items()}
        )
        self.radial = RadialBasis(radial)
        self.distance_in = nn.Linear(radial + 1, pair_dim)
        self.fields = [points, *tokens, *pairs]
        self.level = LevelEmbedding(32)
        self.condition = ConditionEmbedding(conditions, dim)
        self.size = nn.Linear(2, dim)
        self.time = nn.Sequential(nn.Linear(32 * len(self.fields), dim), nn.SiLU(), nn.Linear(dim, dim))
        self.self_conditioning = self_conditioning
        if self_conditioning:
            self.token_back = nn.ModuleDict(
                {f: nn.Linear(c, dim, bias=False) for f, (_, c) in tokens.items()}
            )
            self.pair_back = nn.ModuleDict(
                {f: nn.Linear(c, pair_dim, bias=False) for f, (_, c) in pairs.items()}
            )
            self.distance_back = nn.Linear(radial + 1, pair_dim)
        self.blocks = nn.ModuleList([Block(dim, pair_dim, heads, radial // 3) for _ in range(depth)])
        self.norm_h, self.norm_e = nn.LayerNorm(dim), nn.LayerNorm(pair_dim)
        self.token_out = nn.ModuleDict({f: nn.Linear(dim, c) for f, (_, c) in tokens.items()})
        self.pair_mix = nn.Linear(dim, pair_dim)
        self.pair_out = nn.ModuleDict({
            f: nn.Sequential(nn.Linear(pair_dim, 2 * pair_dim), nn.SiLU(), nn.Linear(2 * pair_dim, c))
            for f, (_, c) in pairs.items()
        })  # fmt: skip

    def forward(
        self,
        inputs: dict[str, Tensor],
        levels: dict[str, Tensor],
        context: Context,
        previous: dict[str, Tensor] | None,
    ) -> dict[str, Tensor]:
        x0 = x = inputs[self.points]
        mask = context.mask
        off = ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
        pair_mask = mask[:, :, None] & mask[:, None, :] & off
        c = self._global(levels, context, x)

        d = _distances(x)
        e = self.distance_in(torch.cat((self.radial(d), d[..., None]), -1))
        h = c.new_zeros(())
        for f, (symbols, _) in self.pairs.items():
            e = e + self.pair_in[f](inputs[f])
            one_hot = F.one_hot(inputs[f], symbols).to(x.dtype) * pair_mask[..., None]
            h = h + self.degree_in[f](one_hot.sum(2))
        for f in self.tokens:
            h = h + self.token_in[f](inputs[f])
        if self.self_conditioning and previous is not None:
            back = _distances(previous[self.points])
            e = e + self.distance_back(torch.cat((self.radial(back), back[..., None]), -1))
            for f in self.pairs:
                e = e + self.pair_back[f](previous[f])
            for f in self.tokens:
                h = h + self.token_back[f](previous[f])
        h = h + (c if c.ndim == 3 else c[:, None])

        for block in self.blocks:
            h, e, x = block(h, e, x, c, mask, pair_mask)

        h = self.norm_h(h)
        outputs = {self.points: (x - x0) * mask[..., None]}
        outputs |= {f: self.token_out[f](h) for f in self.tokens}
        if self.pairs:
            g = self.pair_mix(h)
            e = self.norm_e(e) + g[:, :, None] + g[:, None]
            outputs |= {f: self.pair_out[f](e) for f in self.pairs}
        return outputs

    def _global(self, levels: dict[str, Tensor], context: Context, x: Tensor) -> Tensor:
        """Noise levels, size and conditions: ``[B, dim]``, or ``[B, N, dim]`` where levels differ."""
        n = context.mask.sum(1).to(x.dtype)
        size = self.size(torch.stack((n / 20 - 1, 4 / n.clamp(min=1)), -1))
        shared = size + self.condition(context.conditions, x)
        parts = [self.level(levels[f].to(x.dtype)) for f in self.fields]
        if any(p.ndim == 4 for p in parts):
            # Times given per pair reach the network through the pairs' own symbols; here their mean.
            parts = [p.mean(2) if p.ndim == 4 else p for p in parts]
        if any(p.ndim == 3 for p in parts):
            parts = [p if p.ndim == 3 else p[:, None].expand(-1, x.shape[1], -1) for p in parts]
            return F.silu(self.time(torch.cat(parts, -1)) + shared[:, None])
        return F.silu(self.time(torch.cat(parts, -1)) + shared)


class Block(nn.Module):
    """One round of attention, pair update and motion; see the module's formulas."""

    def __init__(self, dim: int, pair_dim: int, heads: int, radial: int):
        super().__init__()
        self.heads = heads
        self.norm_a = nn.LayerNorm(dim, elementwise_affine=False)
        self.norm_m = nn.LayerNorm(dim, elementwise_affine=False)
        self.norm_e = nn.LayerNorm(pair_dim)
        self.modulate = nn.Linear(dim, 6 * dim)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)
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
        self, h: Tensor, e: Tensor, x: Tensor, c: Tensor, mask: Tensor, pair_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        b, n, dim = h.shape
        m = self.modulate(c if c.ndim == 3 else c[:, None])
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = m.chunk(6, -1)

        q, k, v = (
            y.view(b, n, self.heads, -1).transpose(1, 2)
            for y in self.qkv(self.norm_a(h) * (1 + scale_a) + shift_a).chunk(3, -1)
        )
        u = self.norm_e(e)
        logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + self.bias(u).permute(0, 3, 1, 2)
        attention = masked_softmax(logits, pair_mask[:, None])
        values = (attention @ v).transpose(1, 2).reshape(b, n, -1)
        # [B, N, H, N] @ [B, N, N, P]: what the pairs themselves say, weighted by attention.
        from_pairs = (attention.transpose(1, 2) @ u).reshape(b, n, -1)
        h = h + (1 + gate_a) * self.out(torch.cat((values, from_pairs), -1))
        h = h + (1 + gate_m) * self.mlp(self.norm_m(h) * (1 + scale_m) + shift_m)

        difference = x[:, :, None] - x[:, None]
        d = _length(difference)
        g = self.pair_h(h)
        w = F.relu(self.pair_e(torch.cat((u, self.radial(d)), -1)) + g[:, :, None] + g[:, None])
        e = e + self.pair_out(w)
        push = self.move(w)[..., 0] * pair_mask / (1 + d)
        x = x + (push[..., None] * difference).sum(2) / n_real(mask)
        return h, e, x


def n_real(mask: Tensor) -> Tensor:
    """√(number of real points), ``[B, 1, 1]``: sums over partners keep their size."""
    return mask.sum(1).clamp(min=1).sqrt()[:, None, None]


def _length(difference: Tensor) -> Tensor:
    # The constant keeps the gradient finite where two points coincide (and on the diagonal).
    return (difference.square().sum(-1) + 1e-8).sqrt()


def _distances(x: Tensor) -> Tensor:
    return _length(x[:, :, None] - x[:, None])
