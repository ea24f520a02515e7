r"""Heun's method: the trapezoidal rule on the probability-flow ODE, two calls a step.

In the coordinates of :mod:`sciflow.samplers.multistep`, dz/du = v(z, u):

    ẑ = z_n + h v_n,     z_{n+1} = z_n + h (v_n + v̂)/2,     h = u_{n+1} − u_n < 0,

with v̂ from a call at (ẑ, u_{n+1}). The last interval is one Euler step, i.e. D. Implemented as a
multistep method on a plan that visits every inner time twice (:meth:`Plan.doubled`), so the
sampler's loop calls the denoiser once an interval for all fields alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.paths import GaussianPath
from sciflow.random import Draws
from sciflow.samplers.plan import Plan
from sciflow.samplers.steppers import Stepper
from sciflow.state import Context

__all__ = ["Heun"]


class Heun(Stepper):
    """Heun on a doubled plan.

    Intervals of odd age, of zero length, replace the prediction before them by the corrected value.
    """

    def __init__(self, path: GaussianPath, plan: Plan):
        (a, s), (b, r) = path.schedule(plan.start), path.schedule(plan.end)
        self.noise_scale = list(zip((1 / s).tolist(), (a / s).tolist(), strict=True))
        self.kappa = list(zip((a + s).tolist(), (b + r).tolist(), strict=True))
        self.width = (r / (b + r) - s / (a + s)).tolist()
        self.corrects = [age % 2 == 1 for age in plan.age]
        self.start: Tensor | None = None
        self.slope: Tensor | None = None

    def step(self, i: int, x: Tensor, clean: Tensor, context: Context, draws: Draws) -> Tensor:
        one_over_s, a_over_s = self.noise_scale[i]
        v = torch.add(x * one_over_s, clean, alpha=-(a_over_s + 1))
        here, there = self.kappa[i]
        if self.corrects[i]:
            assert self.start is not None and self.slope is not None
            return (self.start + (self.width[i - 1] / 2) * (self.slope + v)) * there
        self.start, self.slope = x / here, v
        return (self.start + self.width[i] * v) * there
