r"""Covariance functions of random fields, in physical units, on the line, plane or in space.

    Matérn ν:              k(r) = 2^{1−ν}/Γ(ν) z^ν K_ν(z),    z = √(2ν) r/ℓ,
    squared exponential:   k(r) = exp(−r²/(2ℓ²)),             the limit ν → ∞.

Both are mixtures of Gaussians, which separate over the axes. With s ~ Gamma(ν),

    k(r) = E_s exp(−ν r²/(2 s ℓ²)),

so the kernel of the torus, k_P(x) = Σ_m k(x + mP) over all images, is a one-dimensional integral of
products of theta functions, exact for any ν and ℓ; the trapezoidal rule in log s converges
exponentially (Trefethen & Weideman 2014). It is divided by k_P(0): the marginal variance is 1.

A field of the stochastic PDE (κ² − Δ)^{α/2} u = white noise, the (τ, α) of the generators of PDE
data sets, is Matérn with ν = α − d/2 and ℓ = √(2ν)/κ, up to its variance (Lindgren et al. 2011).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from sciflow.errors import InputError

__all__ = ["Kernel", "KernelKind"]

KernelKind = Literal["matern", "squared-exponential", "white"]
_LOG_TINY = 39.0
"""Weights and Gaussians below e⁻³⁹ = 1e-17 do not count beside 1."""


@dataclass(frozen=True)
class Kernel:
    """A stationary covariance function with k(0) = 1.

    Attributes:
        kind: matern, squared-exponential or white (no correlation at all: the limit ℓ → 0).
        length: ℓ, for all axes or one an axis, in the units of the coordinates.
        nu: the smoothness ν of ``matern``; the field has derivatives up to any order below ν.
    """

    kind: KernelKind = "matern"
    length: float | tuple[float, ...] = 0.1
    nu: float = 1.5

    def __post_init__(self) -> None:
        if self.kind not in get_args(KernelKind):
            known = ", ".join(get_args(KernelKind))
            raise InputError(f"unknown kernel {self.kind!r}; known: {known}")
        if isinstance(self.length, list):
            object.__setattr__(self, "length", tuple(self.length))
        lengths = self.length if isinstance(self.length, tuple) else (self.length,)
        if self.kind != "white" and not all(0 < x < math.inf for x in lengths):
            raise InputError(
                f"a length scale must be above 0 and finite, not {self.length}; "
                "for noise without correlation use the kernel 'white'"
            )
        if self.kind == "matern" and not 0 < self.nu <= 200:
            raise InputError(
                f"nu must be above 0 and at most 200, not {self.nu}; the limit of large nu is the "
                "kernel 'squared-exponential'"
            )

    def lengths(self, axes: int) -> tuple[float, ...]:
        """One length scale an axis."""
        if not isinstance(self.length, tuple):
            return (self.length,) * axes
        if len(self.length) != axes:
            raise InputError(f"{len(self.length)} length scales for a domain of {axes} axes")
        return self.length

    def at(self, lags: Sequence[Tensor]) -> Tensor:
        """k at lags given by axis (float64, broadcast against each other)."""
        squares = [
            (x / length) ** 2 for x, length in zip(lags, self.lengths(len(lags)), strict=True)
        ]
        q = torch.stack(torch.broadcast_tensors(*squares)).sum(0)
        match self.kind:
            case "white":
                return (q == 0).to(q.dtype)
            case "squared-exponential":
                return (-q / 2).exp()
            case "matern":
                return _matern((2 * self.nu * q).sqrt(), self.nu)

    def periodic(self, lags: Sequence[Tensor], periods: Sequence[float]) -> Tensor:
        """The kernel of the torus with the given ``periods``; see :meth:`at`."""
        if self.kind == "white":
            turns = (x - p * (x / p).round() for x, p in zip(lags, periods, strict=True))
            return self.at(list(turns))
        lengths = self.lengths(len(lags))
        total, top = torch.zeros(()), 0.0
        for weight, rate in zip(*self._mixture(), strict=True):
            term, peak = torch.full((), weight, dtype=torch.float64), weight
            for x, length, period in zip(lags, lengths, periods, strict=True):
                term = term * _theta(x, rate / length**2, period)
                peak *= float(_theta(torch.zeros((), dtype=torch.float64), rate / length**2,
                                     period))  # fmt: skip
            total, top = total + term, top + peak
        return total / top

    def mirrored(self, x: Sequence[Tensor], y: Sequence[Tensor], size: Sequence[float]) -> Tensor:
        """Covariance of a field with ∂ε/∂n = 0 on the walls of a box, whose mean variance is 1.

        Args:
            x: coordinates by axis (float64, broadcast against those of ``y``), from a corner.
            y: coordinates of the other point.
            size: of the box, an axis.
        """
        if self.kind == "white":
            return self.at([a - b for a, b in zip(x, y, strict=True)])
        lags = [(a - b, a + b) for a, b in zip(x, y, strict=True)]
        total, top = torch.zeros(()), 0.0
        for weight, rate in zip(*self._mixture(), strict=True):
            term, peak = torch.full((), weight, dtype=torch.float64), weight
            for (near, image), length, side in zip(lags, self.lengths(len(x)), size, strict=True):
                b, period = rate / length**2, 2 * side
                term = term * (_theta(near, b, period) + _theta(image, b, period))
                peak *= float(_theta(torch.zeros((), dtype=torch.float64), b, period))
            total, top = total + term, top + peak
        return total / top / self.mirrored_variance(size)

    def mirrored_variance(self, size: Sequence[float]) -> float:
        """Mean over a box of Σ_σ k_{2L}(x − σx), the kernel of period 2L and its mirror images."""
        lengths = self.lengths(len(size))
        zero, total, top = torch.zeros((), dtype=torch.float64), 0.0, 0.0
        for weight, rate in zip(*self._mixture(), strict=True):
            mean, peak = weight, weight
            for length, side in zip(lengths, size, strict=True):
                b = rate / length**2
                own = float(_theta(zero, b, 2 * side))
                mean *= own + math.sqrt(math.pi / b) / (2 * side)
                peak *= own
            total, top = total + mean, top + peak
        return total / top

    def reach(self, least: float) -> float:
        """The distance, in length scales, beyond which k < ``least``, by bisection."""
        low, high = 0.0, 1.0
        scaled = Kernel(self.kind, 1.0, self.nu)

        def correlated(r: float) -> bool:
            return float(scaled.at([torch.tensor(r, dtype=torch.float64)])) >= least

        while correlated(high):
            high *= 2
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if correlated(middle) else (low, middle)
        return high

    def _mixture(self) -> tuple[list[float], list[float]]:
        """Weights w and rates b with k(r) = Σ w exp(−b (r/ℓ)²); the weights sum to 1."""
        if self.kind == "squared-exponential":
            return [1.0], [0.5]
        nu = self.nu
        step = min(0.25, 0.5 / math.sqrt(nu))
        low = (math.lgamma(nu + 1) - _LOG_TINY) / nu
        high = math.log(nu + 12 * math.sqrt(nu) + _LOG_TINY)
        y = np.arange(low, high, step)
        w = np.exp(nu * y - np.exp(y) - math.lgamma(nu))
        return (w / w.sum()).tolist(), (nu / 2 * np.exp(-y)).tolist()


def _matern(z: Tensor, nu: float) -> Tensor:
    p = round(nu - 0.5)
    if nu == p + 0.5 and p <= 4:
        # e^{−z} times a polynomial; its coefficients by ascending power of 2z.
        factorial = math.factorial
        terms = [
            factorial(p) * factorial(2 * p - j)
            / (factorial(2 * p) * factorial(p - j) * factorial(j)) * (2 * z) ** j
            for j in range(p + 1)
        ]  # fmt: skip
        return (-z).exp() * torch.stack(terms).sum(0)
    from scipy.special import kve

    y = np.atleast_1d(z.clamp(min=1e-12).cpu().numpy())
    # In logarithms: z^ν and K_ν each leave the range of float64 where their product does not.
    with np.errstate(divide="ignore"):
        log_k = np.log(kve(nu, y)) - y + nu * np.log(y) + (1 - nu) * math.log(2) - math.lgamma(nu)
    return torch.where(z > 1e-8, torch.from_numpy(np.exp(log_k)).to(z).view(z.shape), 1.0)


def _theta(x: Tensor, rate: float, period: float) -> Tensor:
    """Σ_m exp(−b (x + mP)²), by the sum or by its Fourier series, whichever is short."""
    x = x - period * (x / period).round()
    narrow = rate * period**2
    if narrow > math.pi:
        images = math.ceil(math.sqrt(_LOG_TINY / narrow) - 0.5)
        total = (-rate * x**2).exp()
        for m in range(1, images + 1):
            total = total + (-rate * (x - m * period) ** 2).exp()
            total = total + (-rate * (x + m * period) ** 2).exp()
        return total
    decay = math.pi**2 / narrow
    waves = torch.ones_like(x)
    for k in range(1, math.ceil(math.sqrt(_LOG_TINY / decay)) + 1):
        waves = waves + 2 * math.exp(-decay * k * k) * (2 * math.pi * k / period * x).cos()
    return math.sqrt(math.pi / rate) / period * waves
