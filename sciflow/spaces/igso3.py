r"""IGSO(3): where heat spreads a rotation, as a function of the angle ω from its centre.

With the metric in which a tangent vector's length is its angle, Brownian motion of variance σ² a
tangent coordinate has, relative to the uniform (Haar) measure, the density

    f(ω) = Σ_{l≥0} (2l+1) e^{−l(l+1)σ²/2} sin((l+½)ω)/sin(ω/2)                   (characters)
         = √(2π) e^{σ²/8} σ⁻³ ω/sin(ω/2) e^{−ω²/2σ²} [1 + Σ_{k≥1} …]             (images)

(Nikolayev & Savyolov 1970; Leach et al. 2022, whose ε² is σ²/2; Yim et al. 2023, whose t is σ²).
The second form is Poisson's summation of the first, over the geodesics that go round k times more,

    … = 2(−1)^k e^{−a²/2σ²} [cosh y − (a²/σ²) sinh(y)/y],      a = 2πk,  y = aω/σ².

Leach et al. keep k ≤ 1 for small σ; with k ≤ 4 and l ≤ 4 the two meet at σ² = 2π to 1e-16, so that
no long series is ever needed. The angle itself has the density f(ω)(1 − cos ω)/π.

A draw takes its axis and radius r from three normals z, and maps r to the angle ω by the increasing
function that turns one law into the other, F_σ(ω) = χ₃(r): inversion of the angle's distribution,
in a variable in which the answer, ω ≈ σr, is smooth. It is tabulated once, to 1e-5.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

__all__ = ["angle_density", "heat_angle", "log_density", "radial_score"]

_SWITCH = 2.5
_IMAGES, _CHARACTERS = 4, 4
_SMALLEST, _LARGEST, _FARTHEST = 0.05, 8.0, 8.0
"""Ends of the table: below, ω/σr − 1 goes as σ²; above, the law is uniform to 1e-28; r is that of
the normal, which passes 8 once in 1e14 draws."""
_SIGMAS, _RADII = 225, 113
_SINHC = [1 / math.factorial(2 * n + 1) for n in range(10)]
_BEND = [2 * n / math.factorial(2 * n + 1) for n in range(1, 11)]
"""Coefficients of sinh(y)/y and of (cosh y − sinh(y)/y)/y² in powers of y²."""


def log_density(omega: Tensor, sigma: Tensor) -> Tensor:
    """log f(ω) relative to the uniform measure, float64.

    Args:
        omega: angles in [0, π].
        sigma: σ > 0, broadcastable.
    """
    omega, sigma = omega.double(), sigma.double()
    narrow = sigma.clamp(max=_SWITCH)
    half = torch.sinc(omega / (2 * math.pi))
    few = (
        math.log(2 * math.sqrt(2 * math.pi)) + narrow**2 / 8 - 3 * narrow.log() - half.log()
        - (omega / narrow) ** 2 / 2 + _images(omega, narrow)[0].log()
    )  # fmt: skip
    return torch.where(sigma < _SWITCH, few, _characters(omega, sigma)[0].log())


def radial_score(omega: Tensor, sigma: Tensor) -> Tensor:
    """(d log f/dω)/ω, float64: the score at R = M exp(v) is this times v; see :func:`log_density`.

    It is finite at ω = 0, and −1/σ² for small σ.
    """
    omega, sigma = omega.double(), sigma.double()
    narrow = sigma.clamp(max=_SWITCH)
    s, slope = _images(omega, narrow)
    few = _bend(omega) - 1 / narrow**2 + slope / s
    f, slope = _characters(omega, sigma)
    return torch.where(sigma < _SWITCH, few, slope / f)


def angle_density(omega: Tensor, sigma: Tensor) -> Tensor:
    """The density of the angle, f(ω)(1 − cos ω)/π, float64."""
    return log_density(omega, sigma).exp() * (2 / math.pi) * (omega.double() / 2).sin() ** 2


def heat_angle(radius: Tensor, sigma: Tensor) -> Tensor:
    """ω/r of the angle ω that belongs to a normal of radius r; 0 where σ = 0. float64.

    Args:
        radius: r = |z| of three standard normals z.
        sigma: σ ≥ 0, broadcastable.
    """
    r, sigma = torch.broadcast_tensors(radius.double(), sigma.double())
    table = _table().to(r.device)
    kept = sigma.clamp(max=_LARGEST)
    height = (kept.clamp(min=_SMALLEST).log() - math.log(_SMALLEST)) * (
        (_SIGMAS - 1) / math.log(_LARGEST / _SMALLEST)
    )
    i, w_i = _cubic(height, _SIGMAS)
    j, w_j = _cubic(r.clamp(max=_FARTHEST) * ((_RADII - 1) / _FARTHEST), _RADII)
    rows = [sum(w_j[b] * table[(i + a) * _RADII + j + b] for b in range(4)) for a in range(4)]
    bent = sum(w * row for w, row in zip(w_i, rows, strict=True)) - 1
    ratio = kept * (1 + bent * (kept / _SMALLEST).clamp(max=1) ** 2)
    return torch.minimum(ratio, math.pi / r.clamp(min=1e-6))


def _bend(omega: Tensor) -> Tensor:
    """d/dω log(ω/sin(ω/2)), divided by ω: (1/ω − cot(ω/2)/2)/ω."""
    small = omega < 0.1
    x = omega.masked_fill(small, 1.0)
    w = omega**2
    series = 1 / 12 + w * (1 / 720 + w * (1 / 30240 + w * (1 / 1209600 + w / 47900160)))
    return torch.where(small, series, (1 / x - 0.5 / (x / 2).tan()) / x)


def _images(omega: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The bracket S of the module's text, and its derivative divided by ω."""
    k = torch.arange(1, _IMAGES + 1, dtype=omega.dtype, device=omega.device)
    omega, sigma = omega[..., None], sigma[..., None]
    c = (2 * math.pi * k / sigma) ** 2
    y = 2 * math.pi * k * omega / sigma**2
    # All hyperbolic functions carry e^{−a²/2σ²}, without which they overflow.
    scale = (-c / 2).exp()
    up, down = (y - c / 2).exp(), (-y - c / 2).exp()
    near = y < 1
    far_y = y.masked_fill(near, 1.0)
    cosh = (up + down) / 2
    sinhc = torch.where(near, scale * _series(y, _SINHC), (up - down) / (2 * far_y))
    bend = torch.where(near, scale * _series(y, _BEND), (cosh - sinhc) / far_y**2)
    sign = 2 - 4 * (k % 2)
    total = 1 + (sign * (cosh - c * sinhc)).sum(-1)
    return total, (sign * c * (sinhc - c * bend)).sum(-1) / sigma[..., 0] ** 2


def _series(y: Tensor, coefficients: list[float]) -> Tensor:
    """Σ_n c_n y^{2n}, where y < 1."""
    square, total = y.clamp(max=1) ** 2, torch.zeros_like(y)
    for c in reversed(coefficients):
        total = total * square + c
    return total


def _characters(omega: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """f as Σ_m c_m cos(mω), and f'/ω."""
    m = torch.arange(_CHARACTERS + 1, dtype=omega.dtype, device=omega.device)
    wide = sigma.clamp(min=_SWITCH)[..., None]
    weight = (2 * m + 1) * (-0.5 * m * (m + 1) * wide**2).exp()
    # χ_l = 1 + 2 Σ_{m ≤ l} cos(mω), so c_m sums the weights of l ≥ m.
    c = 2 * weight.flip(-1).cumsum(-1).flip(-1)
    angle = m * omega[..., None]
    f = (c * angle.cos()).sum(-1) - c[..., 0] / 2
    return f, -(m**2 * c * torch.sinc(angle / math.pi)).sum(-1)


def _cubic(x: Tensor, n: int) -> tuple[Tensor, list[Tensor]]:
    """The first of four neighbouring nodes of 0 … n − 1 around x, and their Lagrange weights."""
    first = (x.floor().long() - 1).clamp(0, n - 4)
    u = x - first
    return first, [
        -(u - 1) * (u - 2) * (u - 3) / 6,
        u * (u - 2) * (u - 3) / 2,
        -u * (u - 1) * (u - 3) / 2,
        u * (u - 1) * (u - 2) / 6,
    ]


@lru_cache(maxsize=1)
def _table() -> Tensor:
    """ω/(σr) on a grid of log σ and r, float64, flat ``[sigmas · radii]``."""
    from scipy.interpolate import CubicSpline
    from scipy.special import gammainccinv, gammaincinv

    sigma = np.exp(np.linspace(math.log(_SMALLEST), math.log(_LARGEST), _SIGMAS))
    # Panels that shrink towards the far end, where radii of rare normals are told apart.
    x = 1 - (1 - np.linspace(0, 1, 257)) ** 6
    node, weight = np.polynomial.legendre.leggauss(4)
    edges = np.minimum(math.pi, 9.5 * sigma)[:, None] * x
    width = np.diff(edges)
    points = edges[:, :-1, None] + width[..., None] * (node + 1) / 2
    p = angle_density(torch.from_numpy(points), torch.from_numpy(sigma)[:, None, None]).numpy()
    mass = (p * weight).sum(-1) * width / 2
    below = np.cumsum(mass, 1)
    above = np.cumsum(mass[:, ::-1], 1)[:, ::-1] - mass
    at_zero = np.exp(log_density(torch.zeros(()), torch.from_numpy(sigma)).numpy())
    grid = np.linspace(0, _FARTHEST, _RADII)
    rows = []
    for k, s in enumerate(sigma):
        with np.errstate(divide="ignore"):
            squares = np.where(below[k] < 0.5, gammaincinv(1.5, np.minimum(below[k], 0.5)),
                               gammainccinv(1.5, np.minimum(above[k], 0.5)))  # fmt: skip
        r = np.sqrt(2 * squares)
        some = np.isfinite(r) & (r < _FARTHEST + 1)
        # At r = 0 both distributions are cubic: f(0) ω³/6π = √(2/π) r³/3.
        ratio = np.cbrt(2 * math.sqrt(2 * math.pi) / at_zero[k]) / s
        ratios = np.concatenate(([ratio], edges[k, 1:][some] / (s * r[some])))
        rows.append(CubicSpline(np.concatenate(([0.0], r[some])), ratios)(grid))
    return torch.from_numpy(np.stack(rows)).flatten()
