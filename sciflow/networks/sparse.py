r"""Equivariant message passing on a sparse graph, for systems too large for all pairs.

A point carries scalars h_i and vectors v_i (Schütt et al. 2021, PaiNN); points within a cutoff, and
bonded ones at any distance, exchange messages:

    e_ij += W relu( V e_ij + U h_i + U h_j ),             (w, a, b)_ij = c(r_ij) · Φ e_ij
    h_i  += Σ_j w_ij ∘ h_j,       v_i += Σ_j (a_ij ∘ v_j + b_ij ∘ u_ij)
    h_i, v_i mixed by ⟨U v_i, V v_i⟩ and |V v_i|,         F_i = W v_i,

u_ij the direction of x_j − x_i and c an envelope that reaches 0 smoothly at the cutoff, so outputs
are continuous in the positions. Padded samples are flattened to one list of points: time and memory
are proportional to points and edges, hence linear in the number of points at a fixed density.

Pair fields are [B, N, N] by their nature. Where there are any, the answer for pairs outside the
graph is fixed ("none"); systems of thousands of points have none (``pairs={}``), and then nothing
of size N² is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

from sciflow.denoisers import Network
from sciflow.networks.inputs import Modulation, PointInputs, SampleEmbedding
from sciflow.networks.neighbours import neighbours
from sciflow.networks.pairs import PairInputs, length
from sciflow.state import Context

__all__ = ["SparseMessagePassing"]

_NONE = 16.0
"""Logit of symbol 0 for a pair outside the graph; the others have 0: 1e-7 each."""
_SOFT = 1e-3
"""r / √(|r|² + this) stands for the direction of r: smooth where points coincide."""


class SparseMessagePassing(Network):
    """Denoises points, tokens on points and tokens on pairs of points, jointly.

    Args:
        points: name of the coordinate field ``[B, N, 3]``.
        tokens: ``{field: (symbols, classes)}`` on points: input alphabet and output logits.
        pairs: the same for fields on pairs; symbol 0 must mean "none". A pair with one of the
            other classes' symbols is an edge at any distance; a masked pair is not.
        conditions: ``{property: (mean, std)}``.
        dim: number of scalars a point; ``vectors`` of vectors; ``pair_dim`` width of edges.
        depth: number of rounds.
        radial: number of radial functions.
        cutoff: in units of the coordinates that the network sees.
        limit: at most about this many neighbours a point; keeps noise, which is denser than data,
            at linear cost too. Outputs then jump where the nearest neighbours change.
        self_conditioning: reserve inputs for a previous estimate.
    """

    def __init__(
        self,
        points: str,
        tokens: Mapping[str, Sequence[int]],
        pairs: Mapping[str, Sequence[int]],
        conditions: Mapping[str, Sequence[float]],
        dim: int = 128,
        vectors: int = 32,
        pair_dim: int = 32,
        depth: int = 4,
        radial: int = 24,
        cutoff: float = 4.0,
        limit: int | None = None,
        self_conditioning: bool = True,
    ):
        super().__init__()
        if not cutoff > 0:
            raise ValueError(f"cutoff must be positive, got {cutoff}")
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1 or None, got {limit}")
        self.points, self.pairs, self.vectors = points, dict(pairs), vectors
        self.cutoff, self.limit, self.self_conditioning = cutoff, limit, self_conditioning
        self.sample = SampleEmbedding([points, *tokens, *pairs], conditions, dim)
        self.point_in = PointInputs(tokens, pairs, dim, self_conditioning)
        self.pair_in = PairInputs(pairs, pair_dim, radial, self_conditioning)
        self.rounds = nn.ModuleList([Round(dim, vectors, pair_dim) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)
        self.coords_out = nn.Linear(vectors, 1, bias=False)
        self.token_out = nn.ModuleDict({f: nn.Linear(dim, c) for f, (_, c) in tokens.items()})
        if pairs:
            self.pair_mix = nn.Linear(dim, pair_dim)
            self.norm_e = nn.LayerNorm(pair_dim)
        wide = 2 * pair_dim
        self.pair_out = nn.ModuleDict({
            f: nn.Sequential(nn.Linear(pair_dim, wide), nn.ReLU(), nn.Linear(wide, c))
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
        mask = context.mask
        if not self.self_conditioning:
            previous = None
        x = inputs[self.points][mask]
        edges, bonded = self.graph(inputs, mask)
        i, j = edges
        c = self.sample(levels, context)
        h = self.point_in(inputs, mask, previous, c)[mask]
        c = c.expand(-1, mask.shape[1], -1)[mask]

        r = x[j] - x[i]
        d = length(r)
        envelope = torch.where(bonded, 1.0, _envelope(d / self.cutoff))
        at = _places(edges, mask)
        symbols = {f: inputs[f][at] for f in self.pairs}
        back, probabilities = None, None
        if previous is not None:
            back_x = previous[self.points][mask]
            back = length(back_x[j] - back_x[i])
            probabilities = {f: previous[f][at] for f in self.pairs}
        e = self.pair_in(symbols, d, probabilities, back)
        u = r * (r.square().sum(-1, keepdim=True) + _SOFT).rsqrt()
        v = h.new_zeros(len(h), 3, self.vectors)
        for one in self.rounds:
            h, v, e = one(h, v, e, u, edges, envelope, c)

        h = self.norm(h)
        flat = {self.points: self.coords_out(v)[..., 0]}
        flat |= {f: head(h) for f, head in self.token_out.items()}
        outputs = {
            f: y.new_zeros(*mask.shape, y.shape[-1]).masked_scatter(mask[..., None], y)
            for f, y in flat.items()
        }
        if len(self.pair_out):
            g = self.pair_mix(h)
            e = self.norm_e(e) + g[i] + g[j]
            for f, head in self.pair_out.items():
                outputs[f] = _spread(head(e), envelope, at, mask)
        return outputs

    def graph(self, inputs: Mapping[str, Tensor], mask: Tensor) -> tuple[Tensor, Tensor]:
        """Edges i < j between real points in a flat list, int64 ``[2, E]``, and which are bonds."""
        sample = mask.nonzero()[:, 0]
        near = neighbours(inputs[self.points][mask], sample, self.cutoff, self.limit)
        if not self.pairs:
            return near, torch.zeros(near.shape[1], dtype=torch.bool, device=mask.device)
        flat = mask.flatten().cumsum(0).view(mask.shape) - 1
        bonds = [near.new_empty(2, 0)]
        for f, (_, classes) in self.pairs.items():
            symbol = inputs[f].triu(1)
            real = mask[:, :, None] & mask[:, None]
            b, i, j = ((symbol > 0) & (symbol < classes) & real).nonzero().unbind(1)
            bonds.append(torch.stack((flat[b, i], flat[b, j])))
        bond = torch.cat(bonds, 1)
        m = len(sample)
        key = torch.cat((near[0] * m + near[1], bond[0] * m + bond[1])).unique()
        edges = torch.stack((key // max(m, 1), key % max(m, 1)))
        return edges, torch.isin(key, bond[0] * m + bond[1])


class Round(MessagePassing):
    """One exchange of messages and one mixing of scalars with vectors at every point."""

    def __init__(self, dim: int, vectors: int, pair_dim: int):
        super().__init__(aggr="sum", node_dim=0)
        self.dim, self.vectors = dim, vectors
        self.modulation = Modulation(dim, 2)
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.norm_e = nn.LayerNorm(pair_dim)
        self.pair_h = nn.Linear(dim, pair_dim)
        self.pair_e = nn.Linear(pair_dim, pair_dim)
        self.pair_out = nn.Linear(pair_dim, pair_dim)
        self.filter = nn.Linear(pair_dim, dim + 2 * vectors)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.mix = nn.Linear(vectors, 2 * vectors, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(dim + 2 * vectors, 3 * dim), nn.SiLU(), nn.Linear(3 * dim, dim + vectors)
        )

    def forward(self, h: Tensor, v: Tensor, e: Tensor, u: Tensor, edges: Tensor, envelope: Tensor,
                c: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """``h [M, dim]``, ``v [M, 3, vectors]``, ``e [E, P]``, ``u [E, 3]``, ``c [M, dim]``."""
        i, j = edges
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(c)
        g = self.pair_h(h)
        w = F.relu(self.pair_e(self.norm_e(e)) + g[i] + g[j])
        e = e + self.pair_out(w)
        filters = self.filter(w) * envelope[:, None]

        # Each edge once for its features, twice for its messages: i ← j and j ← i.
        both = torch.cat((edges.flip(0), edges), 1)
        value = self.value(self.norm(h) * scale_a + shift_a)
        total = self.propagate(
            both, h=value, v=v, filters=filters.repeat(2, 1), u=torch.cat((u, -u)),
            size=(len(h), len(h)),
        )  # fmt: skip
        degree = envelope.new_ones(len(h)).index_add(0, both[1], envelope.repeat(2))
        total = total * degree.rsqrt()[:, None]
        h = h + gate_a * self.out(total[:, : self.dim])
        v = v + total[:, self.dim :].unflatten(1, (3, -1))

        a, b = self.mix(v).chunk(2, -1)
        norms = (b.square().sum(1) + 1e-8).sqrt()
        n = self.norm(h) * scale_m + shift_m
        update, gate = self.mlp(torch.cat((n, (a * b).sum(1), norms), -1)).split(
            (self.dim, self.vectors), -1
        )
        return h + gate_m * update, v + a * gate.tanh()[:, None], e

    def message(self, h_j: Tensor, v_j: Tensor, filters: Tensor, u: Tensor) -> Tensor:
        """Scalars and vectors of one message, ``[2E, dim + 3·vectors]``."""
        w, a, b = filters.split((self.dim, self.vectors, self.vectors), -1)
        vector = v_j * a[:, None] + u[:, :, None] * b[:, None]
        return torch.cat((h_j * w, vector.flatten(1)), -1)


def _envelope(x: Tensor) -> Tensor:
    """1 − 28x⁶ + 48x⁷ − 21x⁸: flat at 0, two zero derivatives at 1 (Gasteiger et al. 2020)."""
    x = x.clamp(max=1.0)
    return 1 - x**6 * (28 - 48 * x + 21 * x * x)


def _places(edges: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(sample, row, column) of each edge in a padded ``[B, N, N]``."""
    sample, place = mask.nonzero().unbind(1)
    i, j = edges
    return sample[i], place[i], place[j]


def _spread(logits: Tensor, envelope: Tensor, at: tuple[Tensor, Tensor, Tensor],
            mask: Tensor) -> Tensor:  # fmt: skip
    """Edges' logits as ``[B, N, N, classes]``; they fade to "none" where the envelope does."""
    logits = logits.to(envelope.dtype)
    none = logits.new_zeros(logits.shape[1])
    none[0] = _NONE
    n = mask.shape[1]
    full = none.expand(len(mask), n, n, -1).clone()
    value = none + envelope[:, None] * (logits - none)
    b, i, j = at
    full = full.index_put((b, i, j), value)
    return full.index_put((b, j, i), value)
