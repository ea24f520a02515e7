r"""DDIM and ancestral sampling for any schedule: a share φ of the noise is drawn anew.

    x_s = a_s D + s_s √(1 − φ) ε + s_s √φ z,      ε = (x_t − a_t D)/s_t,  z fresh noise.

Whatever φ is, x_s has the right law where D is x_0: stochastic samplers differ in it alone.

* η = 0: φ = 0, DDIM (Song et al. 2021), which draws nothing;
* η = 1: φ = τ = 1 − (a_t s_s / (a_s s_t))², the ancestral (DDPM) posterior; in between φ = η τ, and
  η > 1 is cut off at 1.

A free diffusion coefficient (:mod:`~sciflow.samplers.interpolant_sde`) and a Langevin corrector
(:mod:`~sciflow.samplers.predictor_corrector`) are further choices of φ.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.paths import GaussianPath
from sciflow.samplers.linear import LinearStepper
from sciflow.samplers.plan import Plan

__all__ = ["Ancestral", "NoiseRefresh", "ancestral_share"]


def ancestral_share(path: GaussianPath, plan: Plan, eta: float) -> Tensor:
    """φ of DDIM(η) on every interval, float64 ``[n]``."""
    a, s, b, r = plan.levels(path.schedule)
    share = (eta * (1 - (a * r / (b * s)) ** 2)).clamp(0, 1)
    # An interval of no length may lie where a = 0.
    return share.where(plan.start != plan.end, torch.zeros_like(share))


class NoiseRefresh(LinearStepper):
    """The step of the module's formula.

    Args:
        path: the field's path.
        plan: the intervals.
        share: φ of every interval, float64 ``[n]``.
        stream: name of the field's random numbers.
    """

    def __init__(self, path: GaussianPath, plan: Plan, share: Tensor, stream: str = "field"):
        a, s, b, r = plan.levels(path.schedule)
        old = r * (1 - share).sqrt() / s
        fresh = r * share.sqrt()
        super().__init__(path, old.tolist(), (b - old * a).tolist(), fresh.tolist(), stream=stream)


class Ancestral(NoiseRefresh):
    """DDIM(η).

    Args:
        path: the field's path.
        plan: the intervals.
        eta: see above.
        stream: name of the field's random numbers.
    """

    def __init__(self, path: GaussianPath, plan: Plan, eta: float = 1.0, stream: str = "field"):
        super().__init__(path, plan, ancestral_share(path, plan, eta), stream)
