r"""Exact denoisers of angles and rotations.

A geodesic flow with uniform x_1 leads from x_0 to a point x_t whose tangent vector log_{x_0} x_t is
that of the uniform law, shrunk by κ. So Bayes' rule is explicit:

* circle: v is uniform on [−κπ, κπ), and E[log_{x_t} x_0 | x_t] is the mean of δ ∈ [−κπ, κπ] with
  weights p_0(x_t + δ): a quadrature over a smooth function;
* rotations, p_0 = Σ_k w_k δ(R_k): angles have the density (1 − cos ω)/π, so at the angle ω_k from
  R_k the posterior weight is w_k (1 − cos(ω_k/κ))/(1 − cos ω_k), where ω_k ≤ κπ, else 0.

A mixture of heat kernels that diffuses is a mixture of wider ones: its score is that of Σ_k w_k
p(x; m_k, √(v_k² + σ²)). Everything is computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from sciflow.paths import GeodesicPath
from sciflow.random import Draws
from sciflow.spaces import SO3, Torus
from sciflow.state import State
from sciflow.testing.targets import ExactDenoiser, all_real

__all__ = ["AngleMixture", "RotationMixture"]


class AngleMixture(ExactDenoiser):
    """Each angle an independent draw of Σ_k w_k WN(m_k, v_k²), one an element.

    Args:
        path: a geodesic path of ``Torus()``, flow or diffusion, with tangent prediction.
        means: ``[K]``.
        spreads: v, ``[K]``.
        weights: ``[K]``, made to sum to one.
        field: its name.
        nodes: of the quadrature.
    """

    def __init__(self, path: GeodesicPath, means: Sequence[float], spreads: Sequence[float],
                 weights: Sequence[float], field: str = "x", nodes: int = 32):  # fmt: skip
        super().__init__({field: path})
        self.path, self.field = path, field
        self.means, self.spreads, w = (
            torch.tensor(y, dtype=torch.float64) for y in (means, spreads, weights)
        )
        self.weights = w / w.sum()
        self.nodes, self.node_weights = (
            torch.from_numpy(y) for y in np.polynomial.legendre.leggauss(nodes)
        )

    def log_components(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """log w_k p(x; m_k, √(v_k² + σ²)), ``[..., K]``."""
        wide = (self.spreads**2 + torch.as_tensor(sigma)[..., None] ** 2).sqrt()
        d = x.double()[..., None] - self.means
        return self.weights.log() + Torus().log_density(d, torch.zeros(()), wide.expand(d.shape))

    def tangent(self, x: Tensor, c: Tensor) -> Tensor:
        """F(x, c), shaped as ``x``, for κ or σ = ``c > 0``."""
        if self.path.kind == "diffusion":
            wide = (self.spreads**2 + c[..., None] ** 2).sqrt()
            d = x.double()[..., None] - self.means
            score = Torus().score(d, torch.zeros(()), wide)
            return c * (self.log_components(x, c).softmax(-1) * score).sum(-1)
        delta = math.pi * c[..., None] * self.nodes
        log_p = self.log_components(x.double()[..., None] + delta).logsumexp(-1)
        w = (log_p - log_p.amax(-1, keepdim=True)).exp() * self.node_weights
        return (w * delta).sum(-1) / w.sum(-1) / c

    def exact(self, state: State, times: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """F, the network's output."""
        x = state[self.field]
        return {self.field: self.tangent(x, _scale(self.path, times[self.field], x)).to(x.dtype)}

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """``n`` exact draws of the data, float64 ``[n]``."""
        draws = Draws(seed, torch.arange(n))
        k = _choose(self.weights, draws)
        z = self.spreads[k, None].double()
        return Torus().diffuse(self.means[k, None], z, all_real(n), draws, "exact")[:, 0]


class RotationMixture(ExactDenoiser):
    """Each rotation an independent draw of Σ_k w_k IGSO3(R_k, v), of points R_k for v = 0.

    Args:
        path: a geodesic path of ``SO3()`` with tangent prediction; a flow needs v = 0.
        rotations: R, ``[K, 3, 3]``.
        weights: ``[K]``, made to sum to one.
        spread: v.
        field: its name.
    """

    def __init__(self, path: GeodesicPath, rotations: Tensor, weights: Tensor | Sequence[float],
                 spread: float = 0.0, field: str = "x"):  # fmt: skip
        if path.kind == "flow" and spread:
            raise ValueError("the posterior of a flow is known for points only: spread must be 0")
        super().__init__({field: path})
        self.path, self.field = path, field
        self.rotations, self.spread = rotations.double(), spread
        w = torch.as_tensor(weights, dtype=torch.float64)
        self.weights = w / w.sum()

    def tangent(self, x: Tensor, c: Tensor) -> Tensor:
        """F(x, c) ``[..., 3]`` for κ or σ = ``c > 0``."""
        space = SO3()
        x = x.double()[..., None, :, :]
        v = space.log(x, self.rotations)
        if self.path.kind == "diffusion":
            wide = (c**2 + self.spread**2).sqrt()[..., None]
            centre = self.rotations.expand(*v.shape[:-1], 3, 3)
            log_r = self.weights.log() + space.log_density(x, centre, wide.expand(v.shape[:-1]))
            score = space.score(x, centre, wide.expand(v.shape[:-1]))
            return c[..., None] * (log_r.softmax(-1)[..., None] * score).sum(-2)
        omega = torch.linalg.vector_norm(v, dim=-1)
        r = self.weights * shrunk_density(omega, c[..., None])
        # A numerical solution may step out of every ball; there the nearest point alone counts.
        nearest = torch.nn.functional.one_hot(omega.argmin(-1), len(self.weights))
        r = torch.where(r.sum(-1, keepdim=True) > 0, r, nearest.to(r.dtype))
        mean = (r[..., None] * v).sum(-2) / r.sum(-1, keepdim=True)
        return mean / c[..., None]

    def exact(self, state: State, times: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """F, the network's output."""
        x = state[self.field]
        c = _scale(self.path, times[self.field], x[..., 0, 0])
        return {self.field: self.tangent(x, c).to(x.dtype)}

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """``n`` exact draws of the data, float64 ``[n, 3, 3]``."""
        draws = Draws(seed, torch.arange(n))
        r = self.rotations[_choose(self.weights, draws), None]
        return SO3().diffuse(r, torch.tensor(self.spread), all_real(n), draws, "exact")[:, 0]


def shrunk_density(omega: Tensor, kappa: Tensor) -> Tensor:
    """Relative to the uniform law, that of exp(κ v) for uniform exp(v), up to a factor in κ."""
    # sin²(nω)/sin²(ω) as a quotient of sinc: finite at ω = 0.
    top = torch.sinc(omega / (2 * math.pi * kappa))
    inside = omega <= kappa * math.pi * (1 + 1e-9)
    return (top / torch.sinc(omega / (2 * math.pi))) ** 2 * inside


def _scale(path: GeodesicPath, t: Tensor, x: Tensor) -> Tensor:
    """c(t) shaped as ``x [B, N]``; 1 where t = 0, whose elements are their own estimate."""
    c = path.scale(t.double())
    c = c.masked_fill(c <= 0, 1.0)
    return (c if c.ndim == 2 else c[:, None]).expand(x.shape)


def _choose(weights: Tensor, draws: Draws) -> Tensor:
    u = draws.uniform((), "component", 0, torch.float64).contiguous()
    return torch.searchsorted(weights.cumsum(0), u).clamp(max=len(weights) - 1)
