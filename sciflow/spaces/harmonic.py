r"""Points on springs: noise in which neighbours of a chain or graph stay near each other.

    p(x) ∝ exp(−½ κ Σ_(i,j) w_ij |x_i − x_j|²) = exp(−½ κ xᵀ L x),      κ = dim/bond²,

with L the graph Laplacian (Jing et al. 2023, EigenFold). Modulo translation this is a normal
distribution with covariance C = L⁺/κ, the pseudo-inverse. On a tree with unit weights each bond has
the root mean square length ``bond``: the noise is an ideal polymer, whose radius grows as √N and
whose scale therefore suits the data at every length.

With the projector P on Σ_i x_i = 0 and the normal matrix M = L + 11ᵀ/n of the real points,

    L⁺ = P M⁻¹ P,      x = P R⁻ᵀ z  for M = R Rᵀ,

so a Cholesky factor does what an eigenbasis would, without its arbitrary signs: the noise does not
depend on padding. Where points are given the frame is fixed by them and P is left out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sciflow.errors import InputError
from sciflow.random import Draws
from sciflow.spaces.zero_com import ZeroCoM
from sciflow.state import Context

__all__ = ["Harmonic"]

_LOOSE = 1e-9
"""A pivot of M below this part of its largest entry means that a piece hangs on nothing."""


class Harmonic(ZeroCoM):
    """Points in ``dim`` dimensions, centred, with springs along the edges of a connected graph.

    Args:
        dim: of the points.
        bond: root mean square length of a spring of weight 1 in a chain, in units of the data.
        field: name of the field, so that its given points hold the frame.
        edges: entry of ``context.extras`` with weights ``[B, N, N]``, symmetric and not negative
            (an adjacency matrix, bool or numbers); default a chain in the order of the points.

    Raises:
        InputError: the bond is not above 0.
    """

    def __init__(self, dim: int = 3, bond: float = 1.0, field: str | None = None,
                 edges: str | None = None):  # fmt: skip
        super().__init__(dim, field)
        if not bond > 0:
            raise InputError(
                f"the length of a bond must be above 0, not {bond}; it is in units of the data"
            )
        self.bond, self.edges, self.stiffness = bond, edges, dim / bond**2

    def laplacian(self, context: Context) -> Tensor:
        """L of the real points, float64 ``[B, N, N]``, zero where padded.

        Raises:
            InputError: the weights are missing, not symmetric or negative.
        """
        real = context.mask
        pairs = real[:, :, None] & real[:, None, :]
        if self.edges is None:
            # The place of each real point in its chain: padding may lie anywhere.
            place = real.long().cumsum(1)
            w = ((place[:, :, None] - place[:, None, :]).abs() == 1).double()
        else:
            found = context.extras.get(self.edges)
            if found is None or found.shape != pairs.shape:
                given = "nothing" if found is None else f"a tensor {list(found.shape)}"
                raise InputError(
                    f"harmonic noise needs weights {list(pairs.shape)} as "
                    f"context.extras[{self.edges!r}], got {given}"
                )
            w = found.double()
        w = w.masked_fill(~pairs, 0)
        if bool((w < 0).any()) or not torch.equal(w, w.transpose(1, 2)):
            raise InputError(
                "the weights of springs must be symmetric and not negative; of a directed list of "
                "edges enter both directions"
            )
        w = w - torch.diag_embed(w.diagonal(dim1=1, dim2=2))
        return torch.diag_embed(w.sum(2)) - w

    def noise(self, context: Context, draws: Draws, stream: str, step: int = 0,
              dtype: torch.dtype | None = None) -> Tensor:  # fmt: skip
        dtype = dtype or torch.get_default_dtype()
        shape = (context.mask.shape[1], self.dim)
        z = draws.normal(shape, stream, step, torch.float64, context.mask.device)
        upper = self._factor(context).transpose(1, 2)
        x = torch.linalg.solve_triangular(upper, z, upper=True) / self.stiffness**0.5
        return self.project(x.to(dtype), context)

    def color(self, gradient: Tensor, context: Context) -> Tensor:
        """L⁺/κ times a gradient (M⁻¹/κ where given points hold the frame)."""
        g = self.project(gradient, context)
        x = torch.cholesky_solve(g.double(), self._factor(context)) / self.stiffness
        return self.project(x.to(gradient.dtype), context)

    def whiten(self, x: Tensor, context: Context) -> Tensor:
        """κ L x, the inverse of :meth:`color` on centred points."""
        y = self.project(x, context)
        return self.project((self.stiffness * (self._matrix(context) @ y.double())).to(x.dtype),
                            context)  # fmt: skip

    def inner(self, x: Tensor, y: Tensor, context: Context) -> Tensor:
        """κ xᵀ L y of each sample, ``[B]``."""
        return self.sum(self.project(x, context) * self.whiten(y, context), context)

    def logdet(self, context: Context) -> Tensor:
        """log det C on centred points, float64 ``[B]``."""
        # M is L on them, and 1 on the constant that they leave out, as on padding.
        half = self._factor(context).diagonal(dim1=1, dim2=2).log().sum(1)
        like = half.new_zeros(*context.mask.shape, self.dim)
        freedom = self.dimensions(like, context).double()
        return -2 * self.dim * half - freedom * math.log(self.stiffness)

    def _matrix(self, context: Context) -> Tensor:
        """M = L + 11ᵀ/n on real points, 1 on padding, float64 ``[B, N, N]``."""
        real = context.mask.double()
        n = real.sum(1).clamp(min=1)[:, None, None]
        ones = real[:, :, None] * real[:, None, :] / n
        return self.laplacian(context) + ones + torch.diag_embed(1 - real)

    def _factor(self, context: Context) -> Tensor:
        matrix = self._matrix(context)
        factor, info = torch.linalg.cholesky_ex(matrix)
        pivots = factor.diagonal(dim1=1, dim2=2).amin(1) ** 2
        loose = (info > 0) | ~(pivots > _LOOSE * matrix.diagonal(dim1=1, dim2=2).amax(1))
        if bool(loose.any()):
            row = int(loose.nonzero()[0])
            raise InputError(
                f"the springs of sample {row} of the batch leave it in pieces, whose distance has "
                "no noise; join them with an edge, of small weight if need be"
            )
        return factor
