r"""Measurements of one field: y = H(x_0) + η, η ~ N(0, Σ_y), H linear (then A) or not.

Guidance needs of an instrument only how it acts, forwards and backwards, and how noisy it is. Each
sample of the batch may have an instrument of its own. A non-linear one acts at a clean estimate as
its tangent there, H(x) ≈ H(x̂) + A (x − x̂): :func:`linearized`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from sciflow.errors import InputError

__all__ = ["MatrixMeasurement", "Measurement", "NonlinearMeasurement", "Observed", "dense",
           "linearized"]  # fmt: skip


class Noise(Protocol):
    """The noise of an instrument; ``y [B, *m]``."""

    def covariance(self, y: Tensor) -> Tensor:
        """Σ_y y, ``[B, *m]``."""

    def precision(self, y: Tensor) -> Tensor:
        """Σ_y⁻¹ y, ``[B, *m]``; 0 where nothing is measured."""

    def root(self, z: Tensor) -> Tensor:
        """Σ_y^½ z: a draw of the noise from standard normals ``z [B, *m]``."""

    def count(self, y: Tensor) -> Tensor:
        """How many numbers of each row are measured, int64 ``[B]``."""


@runtime_checkable
class Measurement(Noise, Protocol):
    """What a linear measurement with Gaussian noise must offer; ``x [B, ...]``, ``y [B, *m]``."""

    def apply(self, x: Tensor) -> Tensor:
        """A x, ``[B, *m]``."""

    def adjoint(self, y: Tensor) -> Tensor:
        """Aᵀ y, shaped as the field."""

    def rows(self, index: Tensor | slice) -> Measurement:
        """The instruments of some samples of the batch."""


@dataclass(frozen=True)
class MatrixMeasurement:
    """A matrix on the flattened field.

    Attributes:
        matrix: A, ``[m, n]`` for all samples or ``[B, m, n]``, n numbers of a sample's field.
        noise: Σ_y: ``[m, m]`` or ``[B, m, m]``, symmetric; or a variance for all, or ``[m]`` of
            them.
        shape: of the field of one sample, ``n`` numbers.
    """

    matrix: Tensor
    noise: Tensor | float
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        n = torch.Size(self.shape).numel()
        if self.matrix.ndim not in (2, 3) or self.matrix.shape[-1] != n:
            raise InputError(
                f"a measurement of a field {list(self.shape)} is a matrix [m, {n}] or [B, m, {n}], "
                f"not {list(self.matrix.shape)}"
            )

    def apply(self, x: Tensor) -> Tensor:
        """A x, ``[B, m]``."""
        return (self.matrix.to(x) @ x.flatten(1)[..., None])[..., 0]

    def adjoint(self, y: Tensor) -> Tensor:
        """Aᵀ y, ``[B, *shape]``."""
        return (self.matrix.to(y).mT @ y[..., None])[..., 0].reshape(len(y), *self.shape)

    def covariance(self, y: Tensor) -> Tensor:
        """Σ_y y, ``[B, m]``."""
        noise = self._noise(y)
        return noise * y if noise.ndim < 2 else (noise @ y[..., None])[..., 0]

    def precision(self, y: Tensor) -> Tensor:
        """Σ_y⁻¹ y, ``[B, m]``."""
        noise = self._noise(y)
        return y / noise if noise.ndim < 2 else torch.linalg.solve(noise, y[..., None])[..., 0]

    def root(self, z: Tensor) -> Tensor:
        """Σ_y^½ z, ``[B, m]``."""
        noise = self._noise(z)
        if noise.ndim < 2:
            return noise.sqrt() * z
        values, vectors = torch.linalg.eigh(noise)
        return (vectors @ (values.clamp(min=0).sqrt()[..., None] * (vectors.mT @ z[..., None])))[
            ..., 0
        ]

    def count(self, y: Tensor) -> Tensor:
        """All m, ``[B]``."""
        return torch.full((len(y),), y[0].numel(), device=y.device)

    def rows(self, index: Tensor | slice) -> MatrixMeasurement:
        """The instruments of some samples."""
        noise = self.noise
        if isinstance(noise, Tensor) and noise.ndim == 3:
            noise = noise[index]
        matrix = self.matrix[index] if self.matrix.ndim == 3 else self.matrix
        return MatrixMeasurement(matrix, noise, self.shape)

    def _noise(self, like: Tensor) -> Tensor:
        return torch.as_tensor(self.noise, dtype=like.dtype, device=like.device)


@dataclass(frozen=True)
class Observed:
    """Some numbers of the field are seen, the others are not; y is shaped as the field.

    Attributes:
        mask: bool, shaped as the field ``[B, ...]``, true where seen; y should hold 0 elsewhere.
        variance: of the noise: a number, or shaped as the field.
    """

    mask: Tensor
    variance: Tensor | float

    def apply(self, x: Tensor) -> Tensor:
        """The numbers that are seen, 0 elsewhere."""
        return x.masked_fill(~self.mask, 0)

    def adjoint(self, y: Tensor) -> Tensor:
        """The same as :meth:`apply`."""
        return y.masked_fill(~self.mask, 0)

    def covariance(self, y: Tensor) -> Tensor:
        """Variance times y; 1 where nothing is seen, and any value does."""
        return self._seen(y, 1.0) * y

    def precision(self, y: Tensor) -> Tensor:
        """y over the variance, 0 where nothing is seen."""
        return (y / self._seen(y, 1.0)).masked_fill(~self.mask, 0)

    def root(self, z: Tensor) -> Tensor:
        """Noise where something is seen, else 0."""
        return self._seen(z, 0.0).sqrt() * z

    def count(self, y: Tensor) -> Tensor:
        """How many are seen, ``[B]``."""
        return self.mask.flatten(1).sum(1)

    def rows(self, index: Tensor | slice) -> Observed:
        """The instruments of some samples."""
        variance = self.variance
        if isinstance(variance, Tensor) and variance.ndim:
            variance = variance[index]
        return Observed(self.mask[index], variance)

    def _seen(self, y: Tensor, elsewhere: float) -> Tensor:
        variance = torch.as_tensor(self.variance, dtype=y.dtype, device=y.device)
        return torch.where(self.mask, variance, elsewhere)


@dataclass(frozen=True)
class NonlinearMeasurement:
    """Any differentiable function of the field, each row by itself.

    Attributes:
        function: ``h(x, *parameters)``, ``[B, ...]`` to ``[B, *m]``, differentiable twice in torch.
        variance: of the noise: a number, or a tensor ``[B, *m]`` or ``[1, *m]``.
        parameters: tensors ``[B, ...]`` that the function also takes: angles, positions of sensors.
    """

    function: Callable[..., Tensor]
    variance: Tensor | float
    parameters: tuple[Tensor, ...] = ()

    def apply(self, x: Tensor) -> Tensor:
        """H(x), ``[B, *m]``."""
        return self.function(x, *self.parameters)

    def at(self, x: Tensor) -> Measurement:
        """The tangent at ``x``, a linear measurement; see :func:`linearized`."""
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_(True)
            y = self.apply(x)
            if not y.requires_grad:
                raise InputError(
                    "what is measured does not depend on the field by differentiable torch "
                    "operations: no detach, numpy or rounding in the function"
                )
            probe = torch.zeros_like(y, requires_grad=True)
            # Linear in the probe: its own derivative is the product in the other direction.
            pulled = torch.autograd.grad(y, x, probe, create_graph=True, materialize_grads=True)[0]
        return _Tangent(self, x, y, probe, pulled)

    def covariance(self, y: Tensor) -> Tensor:
        """Variance times y."""
        return self._noise(y) * y

    def precision(self, y: Tensor) -> Tensor:
        """y over the variance."""
        return y / self._noise(y)

    def root(self, z: Tensor) -> Tensor:
        """z times the standard deviation."""
        return self._noise(z).sqrt() * z

    def count(self, y: Tensor) -> Tensor:
        """All numbers of y, ``[B]``."""
        return torch.full((len(y),), y[0].numel(), device=y.device)

    def rows(self, index: Tensor | slice) -> NonlinearMeasurement:
        """The instruments of some samples."""
        variance = self.variance
        if isinstance(variance, Tensor) and variance.ndim and len(variance) > 1:
            variance = variance[index]
        return NonlinearMeasurement(self.function, variance, tuple(p[index] for p in
                                                                   self.parameters))  # fmt: skip

    def _noise(self, like: Tensor) -> Tensor:
        return torch.as_tensor(self.variance, dtype=like.dtype, device=like.device)


@dataclass(frozen=True)
class _Tangent:
    """A = ∂H/∂x at one point by products of automatic differentiation, both ways."""

    base: NonlinearMeasurement
    x: Tensor
    y: Tensor
    probe: Tensor
    pulled: Tensor

    def apply(self, x: Tensor) -> Tensor:
        if not self.pulled.requires_grad:
            return torch.zeros_like(self.y)
        return self._product(self.pulled, self.probe, x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._product(self.y, self.x, y)

    def covariance(self, y: Tensor) -> Tensor:
        return self.base.covariance(y)

    def precision(self, y: Tensor) -> Tensor:
        return self.base.precision(y)

    def root(self, z: Tensor) -> Tensor:
        return self.base.root(z)

    def count(self, y: Tensor) -> Tensor:
        return self.base.count(y)

    def rows(self, index: Tensor | slice) -> Measurement:
        return self.base.rows(index).at(self.x[index])

    def _product(self, outputs: Tensor, inputs: Tensor, w: Tensor) -> Tensor:
        return torch.autograd.grad(
            outputs, inputs, w,
            retain_graph=True, create_graph=torch.is_grad_enabled(), materialize_grads=True,
        )[0]  # fmt: skip


def linearized(measurement: Measurement | NonlinearMeasurement, x: Tensor) -> Measurement:
    """The measurement itself if it is linear (has no ``at``), else its tangent at ``x``."""
    at: Callable[[Tensor], Measurement] | None = getattr(measurement, "at", None)
    return cast(Measurement, measurement) if at is None else at(x)


def dense(measurement: Measurement, x: Tensor) -> tuple[Tensor, Tensor]:
    """A ``[B, m, n]`` and Σ_y ``[B, m, m]`` as matrices, column by column.

    Args:
        measurement: of fields shaped as ``x``.
        x: ``[B, ...]``; only its shape counts.
    """
    n = x[0].numel()
    basis = torch.eye(n, dtype=x.dtype, device=x.device).view(n, 1, *x.shape[1:])
    columns = [measurement.apply(e.expand(x.shape)) for e in basis]
    a = torch.stack([c.flatten(1) for c in columns], -1)
    shape, m = columns[0].shape, a.shape[1]
    basis = torch.eye(m, dtype=x.dtype, device=x.device).view(m, 1, *shape[1:])
    noise = [measurement.covariance(e.expand(shape)).flatten(1) for e in basis]
    return a, torch.stack(noise, -1)
