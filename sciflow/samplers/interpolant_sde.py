r"""A free diffusion coefficient: stochastic interpolants (Albergo et al. 2023; Ma et al. 2024).

For any schedule and any w(t) ≥ 0 the equation, run from t = 1 (noise) to t = 0 (data),

    dx = [v(x, t) + w(t) ε/(2s)] dt + √w(t) dW,      v = a' D + s' ε,    −ε/s = ∇log p_t,

has the law p_t at every time: the score's drift balances the noise. w = 0 is the
probability-flow ODE, w = 2 s² |dλ/dt| with λ = log(a/s) the reverse SDE of Song et al. (2021).

With D held fixed over a step [t', t] the noise e = (x − a D)/s obeys an Ornstein–Uhlenbeck equation
of rate w/(2s²), whose solution is the step of :mod:`~sciflow.samplers.ancestral` with

    φ = 1 − exp(−∫_{t'}^{t} w/s² dt).

So no step overshoots, however large w is, and the error is of first order in the step, as that of
Euler–Maruyama. Forms of w, times a scale:

* ``constant``: 1;   ``sigma``: s;   ``linear``: t;   ``bump``: sin²(πt);
* ``reverse``: 2 s² |dλ/dt|.

Where w falls more slowly than s towards the data (``constant``; ``linear`` and ``bump`` on a
variance-exploding schedule) the last steps draw all noise anew, and the order falls to 1/2, for
``constant`` on such a schedule to less.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from sciflow.paths import GaussianPath
from sciflow.samplers.ancestral import NoiseRefresh
from sciflow.samplers.plan import Plan
from sciflow.schedules import Schedule

__all__ = ["Diffusion", "InterpolantSDE", "refreshed_share"]

Diffusion = Literal["constant", "sigma", "linear", "bump", "reverse"]


def refreshed_share(schedule: Schedule, plan: Plan, form: Diffusion, scale: float) -> Tensor:
    """φ of every interval, float64 ``[n]``; 0 on the last, which ends in D."""
    if form not in get_args(Diffusion):
        raise ValueError(f"form must be one of {', '.join(get_args(Diffusion))}, not {form!r}")
    start, end = plan.start, plan.end
    if form == "reverse":
        a, s, b, r = plan.levels(schedule)
        share = 1 - (a * r / (b * s)) ** (2 * scale)
    else:
        # Gauss–Legendre in log t, in which w/s² dt is smooth down to t = 0.
        x, weights = (torch.from_numpy(y)[:, None] for y in np.polynomial.legendre.leggauss(32))
        floor = torch.where(end > 0, end, start)
        t = floor * (start / floor) ** ((1 + x) / 2)
        s = schedule(t)[1]
        w = {"constant": torch.ones_like(t), "sigma": s, "linear": t,
             "bump": torch.sin(math.pi * t) ** 2}[form]  # fmt: skip
        rate = (weights / 2 * w / s**2 * t).sum(0) * (start / floor).log()
        share = -torch.expm1(-scale * rate)
    return share.where(end > 0, torch.zeros_like(share))


class InterpolantSDE(NoiseRefresh):
    """The SDE of the module on any plan.

    Args:
        path: the field's path.
        plan: the intervals.
        form: w(t) up to its scale.
        scale: of w; 0 is DDIM and draws nothing.
        stream: name of the field's random numbers.
    """

    def __init__(self, path: GaussianPath, plan: Plan, form: Diffusion = "sigma",
                 scale: float = 1.0, stream: str = "field"):  # fmt: skip
        super().__init__(path, plan, refreshed_share(path.schedule, plan, form, scale), stream)
