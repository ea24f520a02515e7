r"""An equivariant transformer whose features are spherical tensors (e3nn irreps), dense over pairs.

A point carries scalars, vectors, ... up to degree L: h_i = ⊕_l h_i^l, each l with parity (−1)^l.
One block attends with the pair's spherical harmonics inside the values,

    m_i = Σ_j Σ_l A_ij g_l(e_ij) ( V h_j ⊗ Y^l(r_ij) ),       h_i += gate · W m_i,

where A_ij = softmax_j(q_i·k_j/√c + b(e_ij)) and the radial gate g_l are invariant, and ⊗ keeps the
Clebsch–Gordan paths into natural parity (Thomas et al. 2018; Fuchs et al. 2020). Weights are one a
head, not one a channel, so the sum over j is taken *before* the coupling:

    Σ_j a_ij (h_j ⊗ Y_ij) = CG · [ Σ_j a_ij Y_ij h_jᵀ ],

a batched matrix product over pairs and a coupling over points only. (A channel-wise
e3nn.o3.TensorProduct over the pairs of 64 × 18 atoms takes 0.18 s on one CPU thread, more than this
whole network.) Positions are read through differences alone: rotations, reflections, translations
and permutations commute exactly.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from e3nn import o3
from torch import Tensor, nn

from sciflow.denoisers import Network
from sciflow.networks.embeddings import masked_softmax
from sciflow.networks.inputs import Modulation, PointInputs, SampleEmbedding, pair_mask
from sciflow.networks.pairs import PairInputs, distances
from sciflow.state import Context

__all__ = ["TensorFieldNetwork"]

_SOFT = 1e-3
"""r / √(|r|² + this) stands for the direction of r: smooth where points coincide."""


class TensorFieldNetwork(Network):
    """Denoises points, tokens on points and tokens on pairs of points, jointly.

    Args:
        points: name of the coordinate field ``[B, N, 3]``.
        tokens: ``{field: (symbols, classes)}`` on points: input alphabet and output logits.
        pairs: the same for fields on pairs.
        conditions: ``{property: (mean, std)}``.
        dim: number of scalars a point; degree l has ``dim / 2^(l+1)`` channels for l ≥ 1.
        pair_dim: width of pair features.
        depth: number of blocks; ``heads`` of attention.
        degree: largest degree L of features and harmonics.
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
        depth: int = 4,
        heads: int = 4,
        degree: int = 2,
        radial: int = 24,
        self_conditioning: bool = True,
    ):
        super().__init__()
        channels = [dim, *(dim // 2 ** (k + 1) for k in range(1, degree + 1))]
        if degree < 1 or any(c == 0 or c % heads for c in channels):
            raise ValueError(
                f"degree {degree} needs dim/2^(l+1) channels divisible by heads for every l >= 1, "
                f"got {channels} with {heads} heads; choose dim as a multiple of "
                f"{heads * 2 ** (max(degree, 1) + 1)} and degree >= 1"
            )
        self.points, self.self_conditioning = points, self_conditioning
        self.channels = channels
        self.harmonics = o3.Irreps.spherical_harmonics(degree)
        self.sample = SampleEmbedding([points, *tokens, *pairs], conditions, dim)
        self.point_in = PointInputs(tokens, pairs, dim, self_conditioning)
        self.pair_in = PairInputs(pairs, pair_dim, radial, self_conditioning)
        self.pair_point = nn.Linear(dim, pair_dim)
        self.start = nn.Linear(pair_dim, sum(channels[1:]))
        # Only vectors leave the last block; higher degrees have told the scalars what they know.
        kept = [degree] * (depth - 1) + [1]
        self.blocks = nn.ModuleList([Block(channels, pair_dim, heads, k) for k in kept])
        self.coords_out = nn.Linear(channels[1], 1, bias=False)
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
        x, mask = inputs[self.points], context.mask
        if not self.self_conditioning:
            previous = None
        real = pair_mask(mask)
        c = self.sample(levels, context)
        s = self.point_in(inputs, mask, previous, c)
        back = None if previous is None else distances(previous[self.points])
        g = self.pair_point(s)
        e = self.pair_in(inputs, distances(x), previous, back) + g[:, :, None] + g[:, None]
        y = self._harmonics(x)
        h = [s[None], *self._start(e, y, real)]
        for block in self.blocks:
            h, e = block(h, e, y, c, real)

        h = _normed(h)
        s = h[0][0]
        # Components of degree 1 are x, y, z in this order.
        move = self.coords_out(h[1])[..., 0].permute(1, 2, 0)
        outputs = {self.points: move * mask[..., None]}
        outputs |= {f: head(s) for f, head in self.token_out.items()}
        if len(self.pair_out):
            g = self.pair_mix(s)
            e = self.norm_e(e) + g[:, :, None] + g[:, None]
            outputs |= {f: head(e) for f, head in self.pair_out.items()}
        return outputs

    def _start(self, e: Tensor, y: Tensor, real: Tensor) -> list[Tensor]:
        """Σ_j w(e_ij) Y^l(r_ij) / √n for l ≥ 1, ``[2l+1, B, N, channels]`` each."""
        scale = real.any(2).sum(1).clamp(min=1).to(e.dtype).rsqrt()
        w = self.start(F.relu(e)) * (real * scale[:, None, None])[..., None]
        return [
            torch.einsum("bmij,bijc->mbic", y[:, k * k : (k + 1) ** 2], part)
            for k, part in enumerate(w.split(self.channels[1:], -1), start=1)
        ]

    def _harmonics(self, x: Tensor) -> Tensor:
        """Y(r_ij) of r_ij = x_j − x_i, component-normalised: ``[B, harmonics, N, N]``."""
        r = x[:, None] - x[:, :, None]
        u = r * (r.square().sum(-1, keepdim=True) + _SOFT).rsqrt()
        y = o3.spherical_harmonics(self.harmonics, u, normalize=False, normalization="component")
        return y.permute(0, 3, 1, 2)


class Block(nn.Module):
    """One round of tensor attention, scalar-gated update and pair update.

    Args:
        channels: number of channels of each degree.
        pair_dim: width of pair features.
        heads: of attention.
        kept: largest degree that is passed on.
    """

    degree: Tensor

    def __init__(self, channels: Sequence[int], pair_dim: int, heads: int, kept: int):
        super().__init__()
        dim, degrees = channels[0], range(len(channels))
        self.heads, self.gated = heads, list(channels[1 : kept + 1])
        self.modulation = Modulation(dim, 2)
        self.norm_e = nn.LayerNorm(pair_dim)
        self.query_key = nn.Linear(dim, 2 * dim)
        self.pair = nn.Linear(pair_dim, heads * (1 + len(channels)))
        degree = torch.tensor([k for k in degrees for _ in range(2 * k + 1)])
        self.register_buffer("degree", degree, persistent=False)
        self.value = nn.ModuleList([nn.Linear(n, n, bias=k == 0) for k, n in enumerate(channels)])
        self.mix = nn.ModuleList([
            nn.Linear(sum(channels[a] for a, _ in _paths(len(channels), k)), n, bias=k == 0)
            for k, n in enumerate(channels)
        ])  # fmt: skip
        self.mlp = nn.Sequential(
            nn.Linear(sum(channels), 3 * dim), nn.SiLU(), nn.Linear(3 * dim, dim + sum(self.gated))
        )
        self.turn = nn.ModuleList([nn.Linear(n, n, bias=False) for n in self.gated])
        self.pair_h = nn.Linear(dim, pair_dim)
        self.pair_e = nn.Linear(pair_dim, pair_dim)
        self.pair_out = nn.Linear(pair_dim, pair_dim)

    def forward(self, h: list[Tensor], e: Tensor, y: Tensor, c: Tensor,
                real: Tensor) -> tuple[list[Tensor], Tensor]:  # fmt: skip
        """``h[l] [2l+1, B, N, channels]``, ``e [B, N, N, P]``, ``y [B, M, N, N]``."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(c)
        u = self.norm_e(e)
        scalars, *higher = _normed(h)
        m = self._attend([scalars * scale_a + shift_a, *higher], u, y, real)
        h = [h[0] + gate_a * m[0], *(x + update for x, update in zip(h[1:], m[1:], strict=True))]

        scalars, *higher = _normed(h)
        # Lengths of the higher degrees feed the scalars; the scalars gate the higher degrees.
        lengths = [x.square().mean(0) for x in higher]
        out = self.mlp(torch.cat((scalars[0] * scale_m + shift_m, *lengths), -1))
        update, *gates = out.split([h[0].shape[-1], *self.gated], -1)
        gated = zip(h[1:], higher, self.turn, gates, strict=False)
        h = [h[0] + gate_m * update, *(x + turn(n) * g.tanh() for x, n, turn, g in gated)]

        g = self.pair_h(h[0][0])
        w = F.relu(self.pair_e(u) + g[:, :, None] + g[:, None])
        return h, e + self.pair_out(w)

    def _attend(self, h: list[Tensor], u: Tensor, y: Tensor, real: Tensor) -> list[Tensor]:
        b, n, heads = u.shape[0], u.shape[1], self.heads
        q, key = (
            x.unflatten(-1, (heads, -1)).transpose(1, 2)
            for x in self.query_key(h[0][0]).chunk(2, -1)
        )
        logits, *gates = self.pair(u).unflatten(-1, (-1, heads)).permute(3, 0, 4, 1, 2).unbind(0)
        logits = logits + q @ key.mT * q.shape[-1] ** -0.5
        attention = masked_softmax(logits, real[:, None])
        weights = torch.stack([attention * (1 + g) for g in gates], 2)
        # Each head's weight of every component of Y: [B, H, M, N, N].
        a = weights.index_select(2, self.degree) * y[:, None]

        values = [
            linear(x).unflatten(-1, (heads, -1)).permute(1, 3, 2, 0, 4)
            for linear, x in zip(self.value, h, strict=True)
        ]
        widths = [v.shape[3] * v.shape[4] for v in values]
        total = a.flatten(2, 3) @ torch.cat([v.flatten(3) for v in values], -1)
        total = total.view(b, heads, len(self.degree), n, sum(widths))
        # [M, 2l+1, B, N, H, c] a degree, so that the coupling is one matrix product.
        products = [
            part.unflatten(-1, v.shape[3:]).permute(2, 4, 0, 3, 1, 5).flatten(4)
            for part, v in zip(total.split(widths, -1), values, strict=True)
        ]
        coupled = _couple(products)
        return [linear(x) for linear, x in zip(self.mix, coupled, strict=True)]


def _normed(h: list[Tensor]) -> list[Tensor]:
    """Scalars: layer norm. Degree l ≥ 1: divided by the root mean square of all components."""
    higher = [x * (x.square().mean((0, -1), keepdim=True) + 1e-4).rsqrt() for x in h[1:]]
    return [F.layer_norm(h[0], h[0].shape[-1:]), *higher]


def _couple(products: list[Tensor]) -> list[Tensor]:
    """``products[l] [M, 2l+1, B, N, channels]`` → ``[2k+1, B, N, Σ channels]`` of each degree k."""
    degrees = len(products)
    results: dict[tuple[int, int, int], Tensor] = {}
    for a, x in enumerate(products):
        matrix = _clebsch_gordan(degrees, a, x.dtype, x.device)
        rows = (matrix @ x.flatten(2).flatten(0, 1)).unflatten(-1, x.shape[2:])
        at = 0
        for k in range(degrees):
            for one, y in _paths(degrees, k):
                if one == a:
                    results[k, a, y] = rows[at : at + 2 * k + 1]
                    at += 2 * k + 1
    return [
        torch.cat([results[k, a, y] for a, y in _paths(degrees, k)], -1) for k in range(degrees)
    ]


def _natural(degree: int) -> o3.Irrep:
    return o3.Irrep(degree, (-1) ** degree)


@functools.cache
def _paths(degrees: int, result: int) -> list[tuple[int, int]]:
    """(degree of h, degree of Y) that couple to ``result`` with natural parity."""
    return [
        (a, y)
        for a in range(degrees)
        for y in range(degrees)
        if _natural(result) in list(_natural(a) * _natural(y))
    ]


@functools.cache
def _clebsch_gordan(degrees: int, a: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """All paths of features of degree ``a``: ``[Σ (2k+1), M·(2a+1)]``, exact in any precision.

    Not a buffer: a float32 buffer turned into float64 would break equivariance at 1e-7.
    """
    # A tensor born in inference mode could not be used in training later.
    with torch.inference_mode(False), torch.no_grad():
        rows = []
        for k in range(degrees):
            for one, y in _paths(degrees, k):
                if one != a:
                    continue
                full = torch.zeros(degrees**2, 2 * a + 1, 2 * k + 1, dtype=torch.float64)
                # Harmonics of degree y stand at y², ..., (y+1)² − 1.
                w = o3.wigner_3j(y, a, k, dtype=torch.float64)
                full[y * y : (y + 1) ** 2] = w * (2 * k + 1) ** 0.5
                rows.append(full.flatten(0, 1).T)
        return torch.cat(rows).to(device, dtype)
