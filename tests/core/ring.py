"""Where solvers are measured: an exact denoiser that is not linear, a stepper alone on a plan."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sciflow.paths import GaussianPath
from sciflow.random import Draws
from sciflow.samplers import Plan
from sciflow.samplers.steppers import Stepper
from sciflow.schedules import Rectified, Schedule
from sciflow.spaces import Euclidean
from sciflow.state import State
from sciflow.testing.targets import DiagonalGaussian, GaussianMixture, all_real

Make = Callable[[GaussianPath, Plan], Stepper]


def mixture(schedule: Schedule | None = None, prediction: str = "edm") -> GaussianMixture:
    """Five unequal, tilted Gaussians around a ring."""
    angle = torch.arange(5) * 2 * math.pi / 5
    roots = 0.3 * torch.randn(5, 2, 2, generator=torch.Generator().manual_seed(0))
    return GaussianMixture(
        GaussianPath(Euclidean(2), schedule or Rectified(), prediction, 1.5),  # type: ignore[arg-type]
        2 * torch.stack((angle.cos(), angle.sin()), -1),
        roots @ roots.mT + 0.05 * torch.eye(2),
        [0.1, 0.3, 0.2, 0.25, 0.15],
    )


def integrate(target: GaussianMixture | DiagonalGaussian, make: Make, plan: Plan | Tensor,
              x: Tensor, stop: int = 0) -> Tensor:  # fmt: skip
    """Steps along a plan, or between times, to ``stop`` intervals before the end."""
    plan = Plan.along(plan) if isinstance(plan, Tensor) else plan
    context, draws = all_real(*x.shape[:2]), Draws(0, torch.arange(len(x)))
    stepper = make(target.path, plan)
    for i, (t, _) in list(enumerate(plan))[: len(plan) - stop]:
        x = stepper.step(i, x, target(State({"x": x}, context), t)["x"], context, draws)
    return x
