r"""DDIM and ancestral sampling for any schedule, with one knob η.

    x_s = a_s D + s_s √(1 − η τ) ε + s_s √(η τ) z,      τ = 1 − (a_t s_s / (a_s s_t))²,

where ε = (x_t − a_t D)/s_t and z is fresh noise of the space. η = 0 is DDIM (Song et al. 2021) and
draws nothing; η = 1 is the ancestral (DDPM) posterior. η > 1 is cut off at ητ = 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.paths import GaussianPath
from sciflow.random import Draws
from sciflow.samplers.plan import Plan
from sciflow.samplers.steppers import Stepper
from sciflow.state import Context

__all__ = ["Ancestral"]


class Ancestral(Stepper):
    """DDIM(η).

    Args:
        path: the field's path.
        plan: the intervals.
        eta: see above.
        stream: name of the field's random numbers.
    """

    def __init__(self, path: GaussianPath, plan: Plan, eta: float = 1.0, stream: str = "field"):
        (a, s), (b, r) = path.schedule(plan.start), path.schedule(plan.end)
        tau = 1 - (a * r / (b * s)) ** 2
        fresh = (eta * tau).clamp(0, 1)
        old = r * (1 - fresh).sqrt() / s
        self.from_x = old.tolist()
        self.from_clean = (b - old * a).tolist()
        self.from_noise = (r * fresh.sqrt()).tolist()
        self.path, self.stream = path, stream

    def step(self, i: int, x: Tensor, clean: Tensor, context: Context, draws: Draws) -> Tensor:
        y = torch.add(x * self.from_x[i], clean, alpha=self.from_clean[i])
        if self.from_noise[i] > 0:
            z = self.path.space.noise(context, draws, f"{self.stream}/ancestral", i + 1, x.dtype)
            y = y.add_(z, alpha=self.from_noise[i])
        return y
