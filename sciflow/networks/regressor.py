r"""Properties of a set of points, its types and bonds, at any noise level: one invariant answer.

The blocks of :class:`~sciflow.networks.equivariant.EquivariantTransformer`, then, over the real
points i with features h_i,

    g = [ mean_i h_i,  Σ_i h_i / 16,  |Σ_i q_i (x_i − x̄)| ],      q_i = W h_i − mean_j W h_j,

and an MLP of g and the embedded noise level. The sum serves what grows with size (polarisability),
the lengths of the sums of charges times positions what is a dipole moment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sciflow.denoisers import Network
from sciflow.networks.equivariant import Block
from sciflow.networks.inputs import PointInputs, SampleEmbedding, pair_mask
from sciflow.networks.pairs import PairInputs, distances, length
from sciflow.state import Context

__all__ = ["EquivariantRegressor"]

_TYPICAL_SIZE = 16.0


class EquivariantRegressor(Network):
    """Mean and log-variance of each property, in units of its spread over the data.

    Args:
        points: name of the coordinate field ``[B, N, 3]``.
        tokens: ``{field: (symbols, classes)}`` on points.
        pairs: the same for fields on pairs.
        properties: names, in the order of the outputs.
        dim: width of point features; ``pair_dim`` of pair features.
        depth: number of blocks; ``heads`` of attention.
        radial: number of radial functions of the input distances; blocks use a third of it.
        charges: number of moments.
    """

    def __init__(
        self,
        points: str,
        tokens: Mapping[str, Sequence[int]],
        pairs: Mapping[str, Sequence[int]],
        properties: Sequence[str],
        dim: int = 96,
        pair_dim: int = 24,
        depth: int = 4,
        heads: int = 6,
        radial: int = 24,
        charges: int = 4,
    ):
        super().__init__()
        self.points, self.properties = points, list(properties)
        self.sample = SampleEmbedding([points, *tokens, *pairs], {}, dim)
        self.point_in = PointInputs(tokens, pairs, dim, self_conditioning=False)
        self.pair_in = PairInputs(pairs, pair_dim, radial, self_conditioning=False)
        self.blocks = nn.ModuleList(
            [Block(dim, pair_dim, heads, radial // 3) for _ in range(depth)]
        )
        self.norm = nn.LayerNorm(dim)
        self.each = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.charge = nn.Linear(dim, charges, bias=False)
        self.head = nn.Sequential(
            nn.Linear(3 * dim + charges, 2 * dim), nn.SiLU(),
            nn.Linear(2 * dim, 2 * len(self.properties)),
        )  # fmt: skip

    def forward(
        self,
        inputs: dict[str, Tensor],
        levels: dict[str, Tensor],
        context: Context,
        previous: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """``{property: [B, 2]}``, mean and log-variance; see the module.

        Args:
            inputs: fields of unit variance; symbols, or weights of symbols ``[..., S]``.
            levels: log(s/a) of each field.
            context: the mask; conditions are not looked at.
            previous: not used.
        """
        start = x = inputs[self.points]
        mask = context.mask
        real = mask[..., None].to(x.dtype)
        n = real.sum(1).clamp(min=1)
        c = self.sample(levels, context.replace(conditions={}))
        h = self.point_in(inputs, mask, None, c)
        e = self.pair_in(inputs, distances(x), None, None)
        pairs = pair_mask(mask)
        for block in self.blocks:
            h, e, x = block(h, e, x, c, mask, pairs)
        h = self.norm(h)
        u = self.each(h) * real
        q = self.charge(h)
        q = (q - (q * real).sum(1, keepdim=True) / n[:, None]) * real
        moments = length(torch.einsum("bnq,bnd->bqd", q, start))
        level = (c * real).sum(1) / n if c.shape[1] > 1 else c[:, 0]
        total = u.sum(1)
        out = self.head(torch.cat((total / n, total / _TYPICAL_SIZE, moments, level), -1))
        return dict(zip(self.properties, out.view(len(out), -1, 2).unbind(1), strict=True))
