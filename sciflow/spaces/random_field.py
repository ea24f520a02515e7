r"""Functions on a domain: noise is a Gaussian random field whose law does not know the grid.

White noise on a grid has no limit as the grid is refined; a network that has learned to remove it
at one resolution meets another noise at the next. Here the noise is a function, drawn from

    ε ~ GP(0, k),     k a Matérn or squared-exponential kernel with k(0) = 1, lengths in metres,

so that the law of its values at points common to two grids is the same on both (Lim et al. 2023,
*Score-based diffusion models in function space*). The corrupted field, the denoiser and the
sampler are then functions too, and one trained network serves every resolution.

A grid is ``[B, *points]``, as the context's mask says at the call, on a box of ``size``:

* ``cells``: values at cell centres, (i + ½) h, h = size/points;
* ``nodes``: values at nodes that include both ends, i h, h = size/(points − 1).

A ``periodic`` domain is a torus (its grid has h = size/points, whatever its name), with the kernel
summed over images; an ``open`` one is a box whose opposite edges know nothing of each other; a
``neumann`` one a box with ∂ε/∂n = 0 on its walls, where the variance is 1 in the mean only.
Elements may also be scattered points, with coordinates in ``context.extras``.

False elements of a mask are holes in the domain, not padding: the spacing follows from the whole
shape. Among scattered points they are padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from sciflow.errors import InputError
from sciflow.random import Draws
from sciflow.spaces.base import Space
from sciflow.spaces.cosine_covariance import CosineCovariance, mirror
from sciflow.spaces.covariances import Covariance, DenseCovariance, GridCovariance, embed
from sciflow.spaces.kernels import Kernel
from sciflow.state import Context

__all__ = ["Boundary", "Placement", "RandomField"]

Boundary = Literal["open", "periodic", "neumann"]
Placement = Literal["cells", "nodes"]
_DENSE = 4096
"""Most points of an open grid whose covariance is inverted."""
_NUGGET = 1e-9
"""Independent variance of scattered points: sensors may coincide."""


class RandomField(Space):
    """Fields ``[B, *points]``, or ``[B, *points, C]`` with channels, in one to three dimensions.

    Args:
        size: extent of the domain, an axis, in physical units.
        kernel: covariance function of the noise, lengths in the same units.
        channels: number of channels of an element; ``None`` for no axis of channels at all.
        boundary: ``open``, ``periodic`` or ``neumann``, for all axes.
        placement: where the points of a grid lie, ``cells`` or ``nodes``.
        channel_covariance: ``[C, C]``, positive definite; default independent channels.
        points: the field lives at scattered points, whose coordinates ``[B, N, d]`` are this entry
            of ``context.extras``; default on a grid.

    Raises:
        InputError: sizes, kernel and channels do not fit together.
    """

    def __init__(
        self,
        size: Sequence[float],
        kernel: Kernel,
        channels: int | None = None,
        boundary: Boundary = "open",
        placement: Placement = "cells",
        channel_covariance: Sequence[Sequence[float]] | Tensor | None = None,
        points: str | None = None,
    ):
        self.size = tuple(float(x) for x in size)
        if not (1 <= len(self.size) <= 3 and all(x > 0 for x in self.size)):
            raise InputError(
                f"a domain has one to three axes of a size above 0, not {list(size)}; give the "
                "extent of each axis in the units of the length scale"
            )
        for name, value, known in (("boundary", boundary, Boundary),
                                   ("placement", placement, Placement)):  # fmt: skip
            if value not in get_args(known):
                raise InputError(f"unknown {name} {value!r}; known: {', '.join(get_args(known))}")
        kernel.lengths(len(self.size))
        self.kernel, self.channels, self.points = kernel, channels, points
        self.boundary, self.placement = boundary, placement
        self.event = () if channels is None else (channels,)
        self.mixing = _channel_root(channel_covariance, channels)
        self._cache: dict[tuple[object, ...], Covariance] = {}

    def mask(self, context: Context) -> Tensor:
        return context.mask

    def project(self, x: Tensor, context: Context) -> Tensor:
        return x.masked_fill(~self.expand(context.mask, x), 0)

    def noise(self, context: Context, draws: Draws, stream: str, step: int = 0,
              dtype: torch.dtype | None = None) -> Tensor:  # fmt: skip
        """A random field; one seed gives one field on grids of any resolution, see above."""
        dtype, device = dtype or torch.get_default_dtype(), context.mask.device
        covariance = self.covariance(context, _working(dtype))
        names = [stream] if self.channels is None else [
            f"{stream}/channel{c}" for c in range(self.channels)
        ]  # fmt: skip
        z = [draws.normal(covariance.latent, name, step, _working(dtype), device) for name in names]
        x = covariance.root(torch.stack(z, 1))
        if self.mixing is not None:
            x = torch.tensordot(self.mixing.to(x), x, ([1], [1])).movedim(0, 1)
        return self.project(self._last(x).to(dtype), context)

    def color(self, gradient: Tensor, context: Context) -> Tensor:
        """C times a gradient, C being the covariance of the noise at the real elements."""
        x = self._first(self.project(gradient, context))
        x = self._mix(self.covariance(context, x.dtype).times(x), inverse=False)
        return self.project(self._last(x).to(gradient.dtype), context)

    def whiten(self, x: Tensor, context: Context) -> Tensor:
        """C⁻¹ x, the inverse of :meth:`color`.

        Defined on periodic and Neumann grids, on open ones of up to 4096 points, and at scattered
        points.

        Raises:
            InputError: the grid has holes or is too large, or C is singular in double precision.
        """
        y = self._first(self.project(x, context))
        y = self._mix(self._invertible(context, y.dtype).solve(y), inverse=True)
        return self.project(self._last(y).to(x.dtype), context)

    def inner(self, x: Tensor, y: Tensor, context: Context) -> Tensor:
        """xᵀ C⁻¹ y of each sample, ``[B]``; raises as :meth:`whiten` does."""
        return self.sum(self.project(x, context) * self.whiten(y, context), context)

    def logdet(self, context: Context) -> Tensor:
        """log det C of each sample, float64 ``[B]``; raises as :meth:`whiten` does."""
        one = self._invertible(context, torch.float64).logdet()
        total = one.expand(len(context)).to(context.mask.device) * (self.channels or 1)
        if self.mixing is not None:
            elements = self.count(context).double()
            total = total + elements * 2 * self.mixing.diagonal().log().sum().to(total)
        return total

    def covariance(self, context: Context, dtype: torch.dtype = torch.float64) -> Covariance:
        """The covariance of one channel at the elements of ``context``.

        Args:
            context: its mask (of a grid), or its coordinates.
            dtype: of the fields that it makes.
        """
        if self.points is not None:
            return self._scattered(context, dtype)
        shape, device = self._shape(context), context.mask.device
        key = (shape, dtype, str(device), "grid")
        if key not in self._cache:
            # The numbers of another type or device come from the same eigenvalues.
            known = self._cache.get((shape, torch.float64, "cpu", "grid"))
            exact = getattr(known, "exact", None)
            white = self.kernel.kind == "white"
            if self.boundary == "neumann" and not white:
                if exact is None:
                    exact = mirror(self.kernel, self.size, shape, self._at_ends)
                made: Covariance = CosineCovariance(exact, shape, dtype, device, self._at_ends)
            else:
                if exact is None:
                    cells = [n - 1 if self._at_ends and not white else n for n in shape]
                    steps = self.steps(shape)
                    exact = embed(self.kernel, cells, steps, self.boundary == "periodic")
                made = GridCovariance(exact, shape, dtype, device)
            self._cache[key] = made
        return self._cache[key]

    def steps(self, shape: Sequence[int]) -> tuple[float, ...]:
        """Distance of neighbours on a grid of the given shape, an axis, in physical units."""
        less = 1 if self._at_ends else 0
        return tuple(length / (n - less) for length, n in zip(self.size, shape, strict=True))

    def coordinates(self, shape: Sequence[int]) -> Tensor:
        """Where the points of a grid lie, float64 ``[*shape, d]``, in physical units."""
        offset = 0.5 if self.placement == "cells" else 0.0
        axes = [
            (torch.arange(n, dtype=torch.float64) + offset) * h
            for n, h in zip(shape, self.steps(shape), strict=True)
        ]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)

    @property
    def _at_ends(self) -> bool:
        """Whether the points of a grid include both ends of each axis."""
        return self.placement == "nodes" and self.boundary != "periodic"

    def _invertible(self, context: Context, dtype: torch.dtype) -> Covariance:
        covariance = self.covariance(context, dtype)
        if self.points is not None:
            return covariance
        if not bool(context.mask.all()):
            raise InputError(
                "the inverse of the noise covariance (a likelihood) is not defined on a grid with "
                "holes; give the real elements as scattered points instead"
            )
        if not isinstance(covariance, GridCovariance) or covariance.whole:
            return covariance
        shape = self._shape(context)
        n = math.prod(shape)
        if n > _DENSE:
            raise InputError(
                f"an open grid of {n} points is too large to invert its covariance; at most "
                f"{_DENSE} points, or a periodic or Neumann domain"
            )
        key = (shape, dtype, str(context.mask.device), "dense")
        if key not in self._cache:
            x = self.coordinates(shape).flatten(0, -2).to(context.mask.device)
            self._cache[key] = DenseCovariance(self._matrix(x), shape, dtype)
        return self._cache[key]

    def _scattered(self, context: Context, dtype: torch.dtype) -> DenseCovariance:
        assert self.points is not None
        x, d = context.extras.get(self.points), len(self.size)
        if x is None or x.shape != (*context.mask.shape, d) or context.mask.ndim != 2:
            given = "nothing" if x is None else f"a tensor {list(x.shape)}"
            raise InputError(
                f"a field at scattered points needs coordinates {[*context.mask.shape, d]} as "
                f"context.extras[{self.points!r}], and a mask [B, N]; got {given}"
            )
        real = context.mask
        matrix = self._matrix(self.project(x.double(), context))
        # Padding is independent of everything, so that no real point depends on it.
        matrix = matrix * (real[:, :, None] & real[:, None, :])
        own = torch.where(real, _NUGGET, 1.0)
        return DenseCovariance(matrix + torch.diag_embed(own.to(matrix)), dtype=dtype)

    def _matrix(self, x: Tensor) -> Tensor:
        rows = [y[..., :, None] for y in x.double().unbind(-1)]
        columns = [y[..., None, :] for y in x.double().unbind(-1)]
        if self.boundary == "neumann":
            return self.kernel.mirrored(rows, columns, self.size)
        lags = [a - b for a, b in zip(rows, columns, strict=True)]
        if self.boundary == "periodic":
            return self.kernel.periodic(lags, self.size)
        return self.kernel.at(lags)

    def _shape(self, context: Context) -> tuple[int, ...]:
        shape, least = tuple(context.mask.shape[1:]), 2 if self._at_ends else 1
        if len(shape) != len(self.size) or min(shape) < least:
            raise InputError(
                f"a domain of {len(self.size)} axes needs a mask [B, *points] with as many axes of "
                f"at least {least} points, not {list(context.mask.shape)}"
            )
        return shape

    def _first(self, x: Tensor) -> Tensor:
        """Channels before the elements, where the transforms want them."""
        x = x[..., None] if self.channels is None else x
        return x.movedim(-1, 1).to(_working(x.dtype))

    def _last(self, x: Tensor) -> Tensor:
        x = x.movedim(1, -1)
        return x[..., 0] if self.channels is None else x

    def _mix(self, x: Tensor, inverse: bool) -> Tensor:
        if self.mixing is None:
            return x
        k = self.mixing @ self.mixing.T
        k = torch.linalg.inv(k) if inverse else k
        return torch.tensordot(k.to(x), x, ([1], [1])).movedim(0, 1)


def _working(dtype: torch.dtype) -> torch.dtype:
    """Fourier transforms know no half precision."""
    return dtype if dtype == torch.float64 else torch.float32


def _channel_root(
    covariance: Sequence[Sequence[float]] | Tensor | None, channels: int | None
) -> Tensor | None:
    if covariance is None:
        return None
    k = torch.as_tensor(covariance, dtype=torch.float64)
    fits = k.shape == (channels, channels) and torch.equal(k, k.T)
    root, info = torch.linalg.cholesky_ex(k) if fits else (k, torch.ones(()))
    if bool(info.any()):
        raise InputError(
            f"the covariance of {channels} channels must be symmetric, positive definite and "
            f"{channels} x {channels}, not {k.tolist()}"
        )
    return root
