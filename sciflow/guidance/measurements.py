r"""Linear measurements of one field: y = A x_0 + η, η ~ N(0, Σ_y).

Guidance needs of an instrument only how it acts, forwards and backwards, and how noisy it is. Each
sample of the batch may have an instrument of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sciflow.errors import InputError

__all__ = ["MatrixMeasurement", "Measurement", "Observed", "dense"]


@runtime_checkable
class Measurement(Protocol):
    """What a linear measurement with Gaussian noise must offer; ``x [B, ...]``, ``y [B, *m]``."""

    def apply(self, x: Tensor) -> Tensor:
        """A x, ``[B, *m]``."""

    def adjoint(self, y: Tensor) -> Tensor:
        """Aᵀ y, shaped as the field."""

    def covariance(self, y: Tensor) -> Tensor:
        """Σ_y y, ``[B, *m]``."""

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
        noise = torch.as_tensor(self.noise, dtype=y.dtype, device=y.device)
        return noise * y if noise.ndim < 2 else (noise @ y[..., None])[..., 0]

    def rows(self, index: Tensor | slice) -> MatrixMeasurement:
        """The instruments of some samples."""
        noise = self.noise
        if isinstance(noise, Tensor) and noise.ndim == 3:
            noise = noise[index]
        matrix = self.matrix[index] if self.matrix.ndim == 3 else self.matrix
        return MatrixMeasurement(matrix, noise, self.shape)


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
        return (
            torch.where(
                self.mask, torch.as_tensor(self.variance, dtype=y.dtype, device=y.device), 1.0
            )
            * y
        )

    def rows(self, index: Tensor | slice) -> Observed:
        """The instruments of some samples."""
        variance = self.variance
        if isinstance(variance, Tensor) and variance.ndim:
            variance = variance[index]
        return Observed(self.mask[index], variance)


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
