r"""Covariances of a random field on a set of points as linear maps: root, product, inverse.

On a grid a stationary covariance is a piece of a circulant matrix, which the Fourier transform
diagonalises. A periodic domain is itself circulant. An open box is embedded in a larger torus
(Dietrich & Newsam 1997), here with the kernel summed over its images, which has no negative
eigenvalue to be clipped, and so far from itself across the seam that they correlate by less than
``SEAM`` = 1e-8. The torus has the same size in physical units on every grid whose number of
cells is a multiple of four.

The root is taken in the Hartley basis cas θ = cos θ + sin θ, real and orthonormal,

    x_j = n^{−1/2} Σ_k λ_k^{1/2} cas(2π k·j/M) z_k,      cov x = C exactly, as λ_k = λ_{−k}.

The normal numbers belong to waves, not to points: a number drawn for wave k is the same on every
grid, so one seed gives one field, seen at several resolutions, up to what the coarser one cannot
hold.

Scattered points have a dense matrix and its Cholesky factor.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from sciflow.errors import InputError
from sciflow.spaces.kernels import Kernel

__all__ = ["SEAM", "Covariance", "DenseCovariance", "GridCovariance", "check_regular", "embed"]

SEAM = 1e-8
"""Correlation of opposite edges of an open box, across the seam of the torus around it."""
_LARGEST = 2**26
"""Points of the largest torus that is tried."""
_SINGULAR = 1e-13
"""Least eigenvalue, relative to the largest one, of a covariance that is inverted."""


class Covariance(ABC):
    """C on n points, acting on the last axes of a tensor.

    Attributes:
        latent: shape of the normal numbers that :meth:`root` turns into a field.
    """

    latent: tuple[int, ...]

    @abstractmethod
    def root(self, z: Tensor) -> Tensor:
        """A z with A Aᵀ = C: ``[..., *latent]`` to ``[..., *points]``."""

    @abstractmethod
    def times(self, x: Tensor) -> Tensor:
        """C x."""

    @abstractmethod
    def solve(self, x: Tensor) -> Tensor:
        """C⁻¹ x.

        Raises:
            InputError: C cannot be inverted in float64.
        """

    @abstractmethod
    def logdet(self) -> Tensor:
        """log det C; raises as :meth:`solve` does."""


class GridCovariance(Covariance):
    """A circulant covariance, seen at the first points of its torus.

    Args:
        eigenvalues: of the circulant matrix, by wave, float64, shape of the torus; none negative.
        shape: points of the grid, at most those of the torus.
        dtype: in which fields are made.
        device: where.
    """

    def __init__(self, eigenvalues: Tensor, shape: Sequence[int], dtype: torch.dtype,
                 device: torch.device):  # fmt: skip
        self.shape, self.latent = tuple(shape), tuple(eigenvalues.shape)
        self.axes = tuple(range(-len(self.shape), 0))
        self.whole = self.shape == self.latent
        self.exact = eigenvalues
        half = eigenvalues[..., : self.latent[-1] // 2 + 1]
        self.eigenvalues = half.to(device, dtype)
        self.scale = (eigenvalues / eigenvalues.numel()).sqrt().to(device, dtype)
        self.order = [_order(n).to(device) for n in self.latent]

    def root(self, z: Tensor) -> Tensor:
        for axis, order in zip(self.axes, self.order, strict=True):
            z = z.index_select(z.ndim + axis, order)
        waves = torch.fft.fftn(self.scale * z, dim=self.axes)
        return self._crop(waves.real - waves.imag)

    def times(self, x: Tensor) -> Tensor:
        return self._crop(self._filter(x, self.eigenvalues))

    def solve(self, x: Tensor) -> Tensor:
        self._check()
        return self._filter(x, 1 / self.eigenvalues)

    def logdet(self) -> Tensor:
        self._check()
        return self.exact.log().sum()

    def _filter(self, x: Tensor, response: Tensor) -> Tensor:
        waves = torch.fft.rfftn(x, s=self.latent, dim=self.axes)
        return torch.fft.irfftn(waves * response, s=self.latent, dim=self.axes)

    def _crop(self, x: Tensor) -> Tensor:
        for axis, n in zip(self.axes, self.shape, strict=True):
            x = x.narrow(axis, 0, n)
        return x

    def _check(self) -> None:
        if not self.whole:
            raise InputError("the embedding of an open box has no inverse on the box alone")
        check_regular(self.exact)


class DenseCovariance(Covariance):
    """A covariance matrix and its Cholesky factor, a sample each.

    Args:
        matrix: ``[..., N, N]``, float64; an element without a partner (padding) has a row and a
            column of the unit matrix.
        shape: points; default N.
        dtype: in which fields are made.
    """

    def __init__(self, matrix: Tensor, shape: Sequence[int] | None = None,
                 dtype: torch.dtype = torch.float64):  # fmt: skip
        self.matrix, self.dtype = matrix, dtype
        self.shape = tuple(shape) if shape is not None else (matrix.shape[-1],)
        self.latent = self.shape
        self.factor, info = torch.linalg.cholesky_ex(matrix)
        pivots = self.factor.diagonal(dim1=-2, dim2=-1)
        largest = matrix.diagonal(dim1=-2, dim2=-1).amax(-1)
        self.regular = not bool((info > 0).any()) and bool(
            (pivots.amin(-1) ** 2 > _SINGULAR * largest).all()
        )

    def root(self, z: Tensor) -> Tensor:
        self._check()
        return self._apply(self.factor, z)

    def times(self, x: Tensor) -> Tensor:
        return self._apply(self.matrix, x)

    def solve(self, x: Tensor) -> Tensor:
        self._check()
        flat = x.flatten(-len(self.shape)).to(self.matrix.dtype)
        solved = torch.cholesky_solve(flat.transpose(-1, -2), self.factor).transpose(-1, -2)
        return solved.reshape(x.shape).to(self.dtype)

    def logdet(self) -> Tensor:
        self._check()
        return 2 * self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def _apply(self, matrix: Tensor, x: Tensor) -> Tensor:
        flat = x.flatten(-len(self.shape)).to(matrix.dtype)
        return (flat @ matrix.transpose(-1, -2)).reshape(x.shape).to(self.dtype)

    def _check(self) -> None:
        if not self.regular:
            raise _singular()


def embed(kernel: Kernel, cells: Sequence[int], steps: Sequence[float],
          periodic: bool) -> Tensor:  # fmt: skip
    """Eigenvalues of the circulant covariance around a grid, float64, shape of its torus.

    Args:
        kernel: its covariance function.
        cells: extent of the grid in steps, an axis.
        steps: distance of neighbours, an axis, in the units of the kernel's length.
        periodic: the grid is a torus itself; otherwise it is a box, and its torus is larger.

    Raises:
        InputError: the torus around the box would be too large.
    """
    if kernel.kind == "white":
        return torch.ones(*cells, dtype=torch.float64)
    torus = list(cells) if periodic else _around(kernel, cells, steps)
    axes = tuple(range(len(torus)))
    lags = [
        (torch.arange(n // 2 + 1, dtype=torch.float64) * h).reshape(
            [-1 if axis == b else 1 for b in axes]
        )
        for axis, n, h in zip(axes, torus, steps, strict=True)
    ]
    row = kernel.periodic(lags, [n * h for n, h in zip(torus, steps, strict=True)])
    for axis, n in enumerate(torus):
        i = torch.arange(n)
        row = row.index_select(axis, torch.minimum(i, n - i))
    values = torch.fft.fftn(row).real
    # λ_k = λ_{−k} to the last bit: the covariance of the Hartley root rests on it.
    mirrored = values.flip(axes).roll((1,) * len(axes), axes)
    # A kernel summed over its images has no negative eigenvalue; what rounding makes of 0 may be.
    return ((values + mirrored) / 2).clamp(min=0)


def _around(kernel: Kernel, cells: Sequence[int], steps: Sequence[float]) -> list[int]:
    """Points of the torus around a box, an axis; its size does not depend on the resolution."""
    reach = kernel.reach(SEAM)
    torus = [
        # In quarters of the box, so that grids of several resolutions share one torus.
        math.ceil(n * math.ceil(4 * (1 + reach * length / (n * h)) - 1e-9) / 4)
        for n, h, length in zip(cells, steps, kernel.lengths(len(cells)), strict=True)
    ]
    if math.prod(torus) > _LARGEST:
        raise InputError(
            f"noise of length scale {_words(kernel.lengths(len(cells)))} on an open box of "
            f"{_words([n * h for n, h in zip(cells, steps, strict=True)])} needs a torus of "
            f"{_words(torus)} points around it, too many; take a shorter length scale, fewer "
            "points, a periodic domain or scattered points"
        )
    return torus


def check_regular(eigenvalues: Tensor) -> None:
    """Raise an :class:`InputError` unless a covariance can be inverted in float64."""
    if float(eigenvalues.min()) < _SINGULAR * float(eigenvalues.max()):
        raise _singular()


def _order(n: int) -> Tensor:
    """Where the number of each wave is drawn: waves 0, 1, −1, 2, −2, … have places 0, 1, 2, …"""
    k = torch.arange(n)
    return torch.where(k <= n // 2, 2 * k - 1, 2 * (n - k)).clamp(min=0)


def _singular() -> InputError:
    return InputError(
        "the covariance of this noise is singular in double precision, so its inverse (a "
        "likelihood) is not defined; take a rougher kernel (smaller nu), a shorter length scale "
        "or points that lie farther apart"
    )


def _words(values: Sequence[float]) -> str:
    return " x ".join(f"{x:g}" for x in values)
