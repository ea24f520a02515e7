r"""Heun's method: the trapezoidal rule on the probability-flow ODE, two calls a step.

In the coordinates of :mod:`sciflow.samplers.multistep`, dz/du = v(z, u):

    ẑ = z_n + h v_n,     z_{n+1} = z_n + h (v_n + v̂)/2,     h = u_{n+1} − u_n < 0,

with v̂ from a call at (ẑ, u_{n+1}). The last interval is one Euler step, i.e. D. Implemented as a
multistep method on a grid whose every time but the ends is visited twice, so the sampler's loop
calls the denoiser once per entry for all fields alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.paths import GaussianPath
from sciflow.random import Draws
from sciflow.samplers.steppers import Stepper
from sciflow.state import Context

__all__ = ["Heun", "doubled"]


def doubled(times: Tensor) -> Tensor:
    """The grid (t_0, t_1, t_1, t_2, t_2, …, t_{n−1}, t_{n−1}, 0): 2n − 1 calls for n steps."""
    if len(times) < 3:
        return times
    inner = times[1:-1].repeat_interleave(2)
    return torch.cat((times[:1], inner, times[-1:]))


class Heun(Stepper):
    """Heun on a :func:`doubled` grid.

    Even intervals predict; odd ones, of zero length, replace the prediction by the corrected value.
    """

    def __init__(self, path: GaussianPath, times: Tensor):
        a, s = (y.tolist() for y in path.schedule(times.double()))
        self.a, self.s = a, s
        self.u = [si / (ai + si) for ai, si in zip(a, s, strict=True)]
        self.kappa = [ai + si for ai, si in zip(a, s, strict=True)]
        self.start: Tensor | None = None
        self.slope: Tensor | None = None

    def step(self, i: int, x: Tensor, clean: Tensor, context: Context, draws: Draws) -> Tensor:
        v = torch.add(x / self.s[i], clean, alpha=-(self.a[i] / self.s[i] + 1))
        if i % 2 == 1:
            assert self.start is not None and self.slope is not None
            h = self.u[i] - self.u[i - 1]
            return (self.start + (h / 2) * (self.slope + v)) * self.kappa[i]
        self.start, self.slope = x / self.kappa[i], v
        return (self.start + (self.u[i + 1] - self.u[i]) * v) * self.kappa[i + 1]
