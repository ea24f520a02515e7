"""What residues see of themselves, of their neighbours along the chain and of each other.

All of it is read in the residue's own frame, and so invariant to motions and not to reflections.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from domains.proteins.chain import ALPHABET
from domains.proteins.frames import Frames
from domains.proteins.letters import FIELD
from sciflow.networks.pairs import length

__all__ = ["NeighbourGeometry", "PairGeometry", "ResidueInputs"]


class ResidueInputs(nn.Module):
    """What a residue knows of itself: torsions and bends, or its kind; its place says nothing."""

    def __init__(self, fields: Sequence[str], dim: int):
        super().__init__()
        sizes = {"torsions": 12, "bends": 3}
        self.maps = nn.ModuleDict({f: nn.Linear(k, dim) for f, k in sizes.items() if f in fields})
        self.kind = nn.Embedding(len(ALPHABET) + 1, dim) if FIELD in fields else None

    def forward(self, fields: Mapping[str, Tensor]) -> Tensor:
        """Features ``[B, N, dim]``, or 0 where there is nothing to know."""
        total: Tensor | None = None
        if self.kind is not None:
            x = fields[FIELD]
            # An estimate is probabilities, of what may be masked a symbol.
            total = self.kind(x) if not x.is_floating_point() else x @ self.kind.weight[:-1]
        for name, linear in self.maps.items():
            x = fields[name]
            if name == "torsions":
                x = torch.cat((x.sin(), x.cos(), (2 * x).sin(), (2 * x).cos()), -1)
            h = linear(x)
            total = h if total is None else total + h
        if total is None:
            return next(iter(fields.values())).new_zeros(())
        return total


class PairGeometry(nn.Module):
    """What residue i sees of residue j in its own frame, ``[B, N, N, dim]``."""

    centres: Tensor

    def __init__(self, dim: int, residue_dim: int, radial: int, nearest: float = 2.0,
                 farthest: float = 30.0):  # fmt: skip
        super().__init__()
        self.centre = nn.Linear(4, residue_dim)
        # Equal steps of log d: fine where residues touch.
        self.register_buffer(
            "centres", torch.linspace(math.log(nearest), math.log(farthest), radial),
            persistent=False,
        )  # fmt: skip
        self.width = math.log(farthest / nearest) / (radial - 1)
        self.linear = nn.Linear(radial + 3 + 9, dim)

    def forward(self, frames: Frames) -> Tensor:
        """Of frames in ångström, (``[B, N, 3, 3]``, ``[B, N, 3]``)."""
        rotation, place = frames
        apart = place[:, None] - place[:, :, None]
        d = length(apart)
        local = torch.einsum("bika,bijk->bija", rotation, apart / (d[..., None] + 1.0))
        turn = torch.einsum("bika,bjkc->bijac", rotation, rotation)
        g = torch.exp(-(((d.log()[..., None] - self.centres) / self.width) ** 2))
        return self.linear(torch.cat((g, local, turn.flatten(-2)), -1))

    def residues(self, frames: Frames, mask: Tensor) -> Tensor:
        """Where the centre of the chain lies, as its residues see it, ``[B, N, residue_dim]``."""
        rotation, place = frames
        real = mask[..., None].to(place)
        centre = (place * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)
        v = (rotation.mT @ (centre - place)[..., None])[..., 0] / 10.0
        # Bounded: an early estimate may be as long as its chain.
        far = length(v)[..., None]
        return self.centre(torch.cat((v / (1 + far), far.log1p()), -1))


class NeighbourGeometry(nn.Module):
    """What a residue sees of those at most ``reach`` from it along the chain, ``[B, N, dim]``.

    Places R_iᵀ(t_j − t_i)/(4 Å + d) and turns R_iᵀR_j of j = i ± 1, …, i ± reach, side by side:
    what makes torsions and turns of helices. Pair features tell the same to attention, which sums
    over all residues, and through a narrower channel.
    """

    offsets: Tensor

    def __init__(self, dim: int, reach: int):
        super().__init__()
        offsets = [k for k in range(-reach, reach + 1) if k]
        self.register_buffer("offsets", torch.tensor(offsets), persistent=False)
        self.inner = nn.Linear(12 * len(offsets), dim)
        self.outer = nn.Linear(dim, dim)
        nn.init.zeros_(self.outer.weight)

    def forward(self, frames: Frames, mask: Tensor, index: Tensor) -> Tensor:
        """Of frames in ångström, real residues and their places along the chain ``[1 or B, N]``."""
        rotation, place = frames
        n = mask.shape[1]
        j = torch.arange(n, device=mask.device)[:, None] + self.offsets
        inside = (j >= 0) & (j < n)
        j = j.clamp(0, max(n - 1, 0))
        # Where the chain is broken, or another begins, a row of the batch is no neighbour.
        linked = index[:, j] - index[:, :, None] == self.offsets
        seen = inside & linked & mask[:, j] & mask[:, :, None]
        apart = place[:, j] - place[:, :, None]
        local = torch.einsum("bika,bijk->bija", rotation, apart / (length(apart)[..., None] + 4.0))
        turn = torch.einsum("bika,bijkc->bijac", rotation, rotation[:, j])
        x = torch.cat((local, turn.flatten(-2)), -1) * seen[..., None]
        out: Tensor = self.outer(nn.functional.silu(self.inner(x.flatten(-2))))
        return out
