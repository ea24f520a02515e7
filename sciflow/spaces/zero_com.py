r"""Point clouds without their centre: ℝ^{N×3} modulo translation.

The noise is the standard normal projected onto the subspace Σ_i x_i = 0 (Köhler et al. 2020;
Hoogeboom et al. 2022), so that a translation-invariant density exists at every noise level. Where
some elements are given the frame is fixed by them, and the noise of the others is not projected.
"""

from __future__ import annotations

from torch import Tensor

from sciflow.spaces.euclidean import Euclidean
from sciflow.state import Context

__all__ = ["ZeroCoM"]


class ZeroCoM(Euclidean):
    """Points in ``dim`` dimensions with their centre of mass (over real points) at the origin."""

    def __init__(self, dim: int = 3, field: str | None = None):
        super().__init__(dim)
        self.dim, self.field = dim, field

    def project(self, x: Tensor, context: Context) -> Tensor:
        x = super().project(x, context)
        mask = self.expand(context.mask, x)
        n = mask.sum(1, keepdim=True).clamp(min=1)
        centred = (x - x.sum(1, keepdim=True) / n) * mask
        fixed = self._fixed(context)
        # A sample with given points keeps its frame; the others of the batch are still centred.
        return centred if fixed is None else x.where(self.expand(fixed, x), centred)

    def anchor(self, x: Tensor, context: Context) -> Tensor:
        """Where points are given, their centre is the origin (padding stays zero)."""
        given = context.given.get(self.field) if self.field else None
        if given is None:
            return x
        known = self.expand(given & context.mask, x)
        n = known.sum(1, keepdim=True)
        centre = (x * known).sum(1, keepdim=True) / n.clamp(min=1)
        return x.where(n == 0, (x - centre) * self.expand(context.mask, x))

    def dimensions(self, x: Tensor, context: Context) -> Tensor:
        """(N − 1)·dim, or N·dim where given points fix the frame."""
        fixed = self._fixed(context)
        lost = self.dim * context.mask.any(1).long()
        return super().dimensions(x, context) - (lost if fixed is None else lost * ~fixed)

    def _fixed(self, context: Context) -> Tensor | None:
        """Which samples have given points, bool ``[B]``; ``None`` where nobody has."""
        given = context.given.get(self.field) if self.field else None
        return None if given is None else (given & context.mask).any(1)
