r"""A random field with Neumann walls, diagonal in the cosines of the box.

The field that coefficients and sources of Darcy and Poisson data are drawn from,

    ε(x) = Σ_k λ_k^{1/2} ξ_k φ_k(x),   φ_k(x) ∝ Π_a cos(π k_a x_a/L_a),   λ_k ∝ S(π k/L),

with S the spectral density of the kernel, (2ν/ℓ² + |ω|²)^{−ν−d/2} for Matérn: the stochastic PDE
(2ν/ℓ² − Δ)^{(ν+d/2)/2} ε = white noise with ∂ε/∂n = 0 on the walls (Lindgren et al. 2011). The law
N(0, (−Δ + 9)^{−2}) of the Darcy data of Li et al. 2021 (*Fourier neural operator*) is Matérn with
ν = 1, ℓ = √2/3 on the unit square, but for its scale and its constant mode, which they leave out.

Its covariance is the kernel summed over mirror images, k with the period 2L and σ = ±1 an axis,

    C(x, y) = Σ_σ k_{2L}(x − σ y)/V,

with V such that the *mean* variance over the box is 1. The variance is not constant: it rises
within a length scale of a wall, to twice its value inside, and four times in an edge of two walls.

On a grid C is diagonalised by the matrix Φ of cosines cos(π k x_i/L), k = 0 … n − 1 (the transform
DCT-II of cells, DCT-I of nodes) with M = n cells, or n − 1 between nodes, an axis:

    C = Φ (w r/M) Φᵀ,   Φ⁻¹ = (w/M) Φᵀ p,   C⁻¹ = p Φ (w/(M r)) Φᵀ p,   det C = Π r/Π p.

r are the eigenvalues of the torus of 2M points, w = 1 for waves 0 and M and else 2, p the weights
of the points (½ for a node on a wall, else 1). r_k holds λ_k and those finer modes that look like
mode k on the grid, so the law at the points is that of the function itself on every grid; without
them a coarse grid would lack their variance. ξ_k is drawn by mode, so one seed gives one field.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sciflow.spaces.covariances import Covariance, check_regular, embed
from sciflow.spaces.kernels import Kernel

__all__ = ["CosineCovariance", "mirror"]


class CosineCovariance(Covariance):
    """The covariance of a field with Neumann walls at the points of a grid.

    Args:
        eigenvalues: r by mode, float64, shape of the grid; see :func:`mirror`.
        shape: points of the grid.
        dtype: in which fields are made.
        device: where.
        ends: whether the points include both ends of each axis (nodes), or lie in cells.
    """

    def __init__(self, eigenvalues: Tensor, shape: Sequence[int], dtype: torch.dtype,
                 device: torch.device, ends: bool):  # fmt: skip
        self.shape = self.latent = tuple(shape)
        self.axes = tuple(range(-len(self.shape), 0))
        self.exact, self.ends = eigenvalues, ends
        weights, points = torch.ones(self.shape).double(), torch.ones(self.shape).double()
        for axis, n in enumerate(self.shape):
            w = torch.full((n,), 2.0, dtype=torch.float64)
            w[0] = 1
            p = torch.ones_like(w)
            if ends:
                w[-1] = 1
                p[0] = p[-1] = 0.5
            along = [n if axis == b else 1 for b in range(len(self.shape))]
            weights, points = weights * w.view(along), points * p.view(along)
        weights = weights / math.prod(n - ends for n in self.shape)
        self.log_points = points.log().sum()
        self.spectrum = (weights * eigenvalues).to(device, dtype)
        self.scale = (weights * eigenvalues).sqrt().to(device, dtype)
        self.inverse = (weights / eigenvalues).to(device, dtype)
        self.points = points.to(device, dtype)
        # e^{−iπk/(2n)}: cells lie half a step from the wall, nodes on it.
        waves = [torch.arange(n, dtype=torch.float64) * (-math.pi / (2 * n)) for n in self.shape]
        twist = [torch.zeros_like(x) if ends else x for x in waves]
        kind = torch.complex128 if dtype == torch.float64 else torch.complex64
        self.twist = [torch.polar(torch.ones_like(x), x).to(device, kind) for x in twist]

    def root(self, z: Tensor) -> Tensor:
        return self._synthesis(self.scale * z)

    def times(self, x: Tensor) -> Tensor:
        return self._synthesis(self.spectrum * self._analysis(x))

    def solve(self, x: Tensor) -> Tensor:
        check_regular(self.exact)
        return self.points * self._synthesis(self.inverse * self._analysis(self.points * x))

    def logdet(self) -> Tensor:
        check_regular(self.exact)
        return self.exact.log().sum() - self.log_points

    def _synthesis(self, z: Tensor) -> Tensor:
        """Φ z: the field with amplitudes z, DCT-III of cells and DCT-I of nodes."""
        for axis, twist in zip(self.axes, self.twist, strict=True):
            z = z.movedim(axis, -1)
            n = z.shape[-1]
            z = torch.fft.fft(z * twist, 2 * (n - self.ends)).real[..., :n].movedim(-1, axis)
        return z

    def _analysis(self, x: Tensor) -> Tensor:
        """Φᵀ x, DCT-II of cells and DCT-I of nodes (without the halves at the ends)."""
        for axis, twist in zip(self.axes, self.twist, strict=True):
            x = x.movedim(axis, -1)
            n = x.shape[-1]
            waves = torch.fft.rfft(x, 2 * (n - self.ends))[..., :n]
            x = (waves * twist).real.movedim(-1, axis)
        return x


def mirror(kernel: Kernel, size: Sequence[float], shape: Sequence[int], ends: bool) -> Tensor:
    """The eigenvalues r by mode of a box with Neumann walls, float64 of the given shape.

    Args:
        kernel: of the field; not ``white``, which has no walls.
        size: of the box, an axis, in the units of the kernel's length.
        shape: points of the grid.
        ends: whether the points include both ends of each axis.
    """
    cells = [n - ends for n in shape]
    steps = [length / n for length, n in zip(size, cells, strict=True)]
    values = embed(kernel, [2 * n for n in cells], steps, periodic=True)
    return values[tuple(slice(n) for n in shape)] / kernel.mirrored_variance(size)
