r"""Churn (Karras et al. 2022, algorithm 2): a little noise before each step.

Before the step from σ_i = s/a the state is noised up to σ̂_i = (1 + γ_i) σ_i,

    γ_i = min(S_churn/n, √2 − 1) where S_tmin ≤ σ_i ≤ S_tmax, else 0,

and the step is made from there. In a plan this is an interval that starts above the last end: the
sampler's loop renoises every field by its own forward process, tokens as well. A multistep method
has no history there and is of order 1; ``heun`` is what the authors use.
"""

from __future__ import annotations

import math

import torch

from sciflow.samplers.plan import Plan
from sciflow.schedules import Schedule

__all__ = ["churned"]

_MOST = math.sqrt(2) - 1


def churned(
    plan: Plan, schedule: Schedule, churn: float, least: float = 0.0, most: float | None = None
) -> Plan:
    """The plan of one falling grid with starts raised by churn.

    The first interval stays: its state is a draw at its start already.

    Args:
        plan: intervals of a grid, see :meth:`Plan.along`.
        schedule: of the field that sets the pace.
        churn: S_churn.
        least: S_tmin, a noise level s/a.
        most: S_tmax; ``None`` is no bound.
    """
    a, s = schedule(plan.start)
    sigma = s / a
    raised = (sigma >= least) & (sigma <= (math.inf if most is None else most))
    raised[:1] = False
    gamma = min(churn / max(len(plan), 1), _MOST)
    if gamma == 0 or not bool(raised.any()):
        return plan
    # Where a field has no signal, σ is infinite and stays.
    target = torch.where(raised, (1 + gamma) * sigma, torch.ones_like(sigma))
    up = schedule.invert(lambda a, s: s / a, target)
    return Plan(torch.where(raised, torch.maximum(up, plan.start), plan.start), plan.end)
