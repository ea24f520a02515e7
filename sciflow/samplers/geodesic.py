r"""Steps along geodesics: angles and rotations.

The probability-flow ODE of a geodesic path is dx/dc = −F(x, c) for flows and diffusions alike
(:mod:`sciflow.paths.geodesic`), with c F = log_x(D). Over [c_{n+1}, c_n], h = c_n − c_{n+1},

    x_{n+1} = exp_x(h F̄),
    order 1:   F̄ = F_n                               (1 − c_{n+1}/c_n of the way to D)
    order 2:   F̄ = F_n + (h/2h′)(F_n − P F_{n−1})     Adams–Bashforth, h′ the step before
    Heun:      F̄ = (F_n + P⁻¹ F̂)/2                    with F̂ from a second call at exp_x(h F_n)

Vectors of other points are carried along the geodesic that joins them, in parallel (P), before they
are added. An ODE moved by exp of a mean of its velocities has a local error of h³, as its first
commutator is; so order 2 holds on curved spaces too (and would without P, with errors 10 to 20 %
larger on a rotating field). The first step of order 2 is mended by the
second, and the last is one of order 1 that ends in D, as in :mod:`sciflow.samplers.multistep`.

Ancestral (diffusion only): of the noise that remains, σ′, a share φ = η (1 − σ′²/σ²) is fresh,

    x_{n+1} ~ heat kernel of σ′√φ at exp_x((1 − (σ′/σ) √(1 − φ)) log_x D),

which in flat space is the exact posterior for η = 1, and here has its first order. A flow has no
noise to renew: it follows its ODE whatever η is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sciflow.paths import GeodesicPath
from sciflow.random import Draws
from sciflow.samplers.plan import Plan
from sciflow.samplers.steppers import Stepper
from sciflow.state import Context

__all__ = ["GeodesicStepper", "geodesic_stepper"]

_FIRST_ORDER = ("ab1", "reab1", "ddim")
_STOCHASTIC = ("ddpm", "sde", "sde-dpmpp2m")


class GeodesicStepper(Stepper):
    """Euler, Adams–Bashforth, Heun or ancestral steps on a manifold.

    Args:
        path: the field's path.
        plan: the intervals; doubled for ``heun``.
        order: 1 or 2.
        heun: intervals of odd age correct the step before them; needs a doubled plan.
        eta: the share of fresh noise, for diffusions; above 0 every step is of order 1.
        stream: name of the field's random numbers.
    """

    remembers = ("old", "base", "moved")

    def __init__(self, path: GeodesicPath, plan: Plan, order: int = 2, heun: bool = False,
                 eta: float = 0.0, stream: str = "field"):  # fmt: skip
        if order not in (1, 2):
            raise ValueError(f"order must be 1 or 2, not {order}")
        self.path, self.stream = path, stream
        eta = eta if path.kind == "diffusion" else 0.0
        start, end = (path.scale(t).tolist() for t in (plan.start, plan.end))
        self.start = start
        self.corrects = [heun and age % 2 == 1 for age in plan.age]
        # Of log_x D / c now and one call before.
        self.weights: list[tuple[float, float]] = []
        self.fresh: list[float] = []
        for i, age in enumerate(plan.age):
            c, d = start[i], end[i]
            phi = min(max(eta * (1 - (d / c) ** 2), 0.0), 1.0)
            now, before = c - d * math.sqrt(1 - phi), 0.0
            back = start[i - 1] - c if age else 0.0
            # A repeated time (a path that has reached its widest) carries no information twice.
            if order == 2 and not heun and eta == 0 and d > 0 and back > 1e-12:
                slope = now * now / (2 * back) + (back / 2 if age == 1 else 0.0)
                now, before = now + slope, -slope
            self.weights.append((now, before))
            self.fresh.append(d * math.sqrt(phi))
        self.width = [c - d for c, d in zip(start, end, strict=True)]
        self.old: Tensor | None = None
        self.base: Tensor | None = None
        self.moved: Tensor | None = None

    def step(self, i: int, x: Tensor, clean: Tensor, context: Context, draws: Draws) -> Tensor:
        space = self.path.space
        f = space.log(x, clean) / self.start[i]
        if self.corrects[i]:
            assert self.base is not None and self.old is not None and self.moved is not None
            f = space.transport(x, -self.moved, f)
            return space.exp(self.base, (self.width[i - 1] / 2) * (self.old + f))
        now, before = self.weights[i]
        v = now * f
        if before:
            assert self.old is not None
            v = torch.add(v, self.old, alpha=before)
        if any(self.corrects):
            self.base, self.moved, self.old = x, v, f
        else:
            self.old = space.transport(x, v, f)
        y = space.exp(x, v)
        if self.fresh[i] > 0:
            spread = torch.tensor(self.fresh[i], dtype=torch.float64, device=x.device)
            y = space.diffuse(y, spread, context, draws, f"{self.stream}/ancestral", i + 1)
        return y


def geodesic_stepper(path: GeodesicPath, plan: Plan, method: str, eta: float, doubled: bool,
                     name: str) -> GeodesicStepper:  # fmt: skip
    """The stepper nearest to the method of the flat fields of the same sample.

    Args:
        path: the field's path.
        plan: the intervals.
        method: name of the method. ``ab1``, ``ddim`` and the stochastic ones have counterparts;
            all others take order 2.
        eta: fresh noise of ``ddim``.
        doubled: the plan visits inner times twice: Heun.
        name: of the field's random numbers.
    """
    fresh = eta if method == "ddim" else float(method in _STOCHASTIC)
    order = 1 if method in _FIRST_ORDER or fresh else 2
    return GeodesicStepper(path, plan, order, doubled, 0.0 if doubled else fresh, name)
