r"""Angles: torsions, phases, directions in the plane. One circle a coordinate.

Values lie in [−π, π). exp adds and wraps, log is the shortest way round, and the noise is uniform.
Heat spreads a point μ to the wrapped normal, which has two series (Jacobi's theta function),

    p(x; μ, σ) = Σ_k N(x − μ + 2πk; 0, σ²) = (1/2π) [1 + 2 Σ_{n≥1} e^{−n²σ²/2} cos n(x − μ)].

The images on the left converge fast for small σ, the Fourier series on the right for large σ; they
meet at σ² ≈ 2π, where both need three terms. (Jing et al. 2022, torsional diffusion, tabulate it.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sciflow.random import Draws
from sciflow.spaces.euclidean import Euclidean
from sciflow.state import Context

__all__ = ["Torus", "wrap", "wrapped_log_density", "wrapped_score"]

_SWITCH = 2.5
"""√(2π): images below, Fourier above. Left out is less than 1e-16 at this σ."""
_IMAGES, _WAVES = 3, 3


def wrap(x: Tensor) -> Tensor:
    """``x`` up to whole turns, in [−π, π); exact where it lies there already."""
    x = x - 2 * math.pi * (x / (2 * math.pi)).round()
    # What rounding leaves at the seam.
    x = torch.where(x >= math.pi, x - 2 * math.pi, x)
    return torch.where(x < -math.pi, x + 2 * math.pi, x)


def wrapped_log_density(d: Tensor, sigma: Tensor) -> Tensor:
    """log p of the wrapped normal at ``d`` = x − μ, per radian.

    Args:
        d: angles, any shape.
        sigma: standard deviations above 0, broadcastable to ``d``.
    """
    narrow = sigma.clamp(max=_SWITCH)
    _, log_w = _images(d, narrow)
    few = log_w.logsumexp(-1) - narrow.log() - math.log(2 * math.pi) / 2
    n, q = _waves(d, sigma)
    many = torch.log1p(2 * (q * (n * d[..., None]).cos()).sum(-1)) - math.log(2 * math.pi)
    return torch.where(sigma < _SWITCH, few, many)


def wrapped_score(d: Tensor, sigma: Tensor) -> Tensor:
    """d/dx log p of the wrapped normal; see :func:`wrapped_log_density`."""
    narrow = sigma.clamp(max=_SWITCH)
    z, log_w = _images(d, narrow)
    few = -(log_w.softmax(-1) * z).sum(-1) / narrow**2
    n, q = _waves(d, sigma)
    angle = n * d[..., None]
    many = -2 * (n * q * angle.sin()).sum(-1) / (1 + 2 * (q * angle.cos()).sum(-1))
    return torch.where(sigma < _SWITCH, few, many)


def _images(d: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The images of ``d`` and their log-weights, ``[..., 2·images + 1]``."""
    k = torch.arange(-_IMAGES, _IMAGES + 1, dtype=d.dtype, device=d.device)
    z = wrap(d)[..., None] + 2 * math.pi * k
    return z, -0.5 * (z / sigma[..., None]) ** 2


def _waves(d: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Wave numbers and e^{−n²σ²/2}, ``[..., waves]``."""
    n = torch.arange(1, _WAVES + 1, dtype=d.dtype, device=d.device)
    return n, torch.exp(-0.5 * (n * sigma.clamp(min=_SWITCH)[..., None]) ** 2)


class Torus(Euclidean):
    """Angles in radians, [−π, π), with uniform noise.

    Args:
        event: shape of one element's value, e.g. ``(7,)`` for seven torsions; ``()`` for one angle.
    """

    def noise(self, context: Context, draws: Draws, stream: str, step: int = 0,
              dtype: torch.dtype | None = None) -> Tensor:  # fmt: skip
        """Uniform angles."""
        shape = (*context.mask.shape[1:], *self.event)
        u = draws.uniform(shape, stream, step, torch.float64, context.mask.device)
        return self.project(((2 * u - 1) * math.pi).to(dtype or torch.get_default_dtype()), context)

    def project(self, x: Tensor, context: Context) -> Tensor:
        return super().project(wrap(x), context)

    def color(self, gradient: Tensor, context: Context) -> Tensor:
        return super().project(gradient, context)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        return wrap(x + v)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return wrap(y - x)

    def log_density(self, x: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
        """log p(x; μ, σ) of the wrapped normal of each angle, shaped as ``x``.

        Args:
            x: angles.
            mean: μ.
            sigma: σ > 0, ``[]``, ``[B]``, one an element, or broadcastable to ``x``.
        """
        d = x - mean
        return wrapped_log_density(d, self.expand(sigma, d).to(d.dtype))

    def score(self, x: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
        """∇_x log p(x; μ, σ), a tangent vector at ``x``; see :meth:`log_density`."""
        d = x - mean
        return wrapped_score(d, self.expand(sigma, d).to(d.dtype))

    def diffuse(self, x: Tensor, sigma: Tensor, context: Context, draws: Draws, stream: str,
                step: int = 0) -> Tensor:  # fmt: skip
        """Draws of the wrapped normal around ``x``; where σ = 0, ``x`` itself."""
        z = draws.normal(x.shape[1:], stream, step, x.dtype, x.device)
        return self.project(x + self.expand(sigma, x).to(x.dtype) * z, context)
