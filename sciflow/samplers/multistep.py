r"""Adams–Bashforth in velocity coordinates: the default for continuous fields.

With z = x/(a + s) and u = s/(a + s) the probability-flow ODE of any schedule reads

    dz/du = v,     v = ε − D,     ε = (x − a D)/s,

so one solver serves VP, VE and rectified schedules alike. Over [u_n, u_{n+1}] the velocity is
replaced by the Lagrange polynomial through its last ``order`` values,

    z_{n+1} = z_n + Σ_i c_i v_{n−i},     c_i = ∫ Π_{j≠i} (u − u_{n−j})/(u_{n−i} − u_{n−j}) du.

The last interval (to u = 0) is one step of order 1, which is D itself. The first is of order 1 too,
an error of h² v′/2 that alone would hold order 3 down to 2: the second step of orders 2 and 3 adds
(u_1 − u_0)(v_1 − v_0)/2, the trapezoidal rule in hindsight, at no further call. Expressed in x,

    x_{n+1} = (κ_{n+1}/κ_n) x_n + κ_{n+1} Σ_i c_i v_{n−i},     κ = a + s.

On the given plan all coefficients are computed once, as Python floats. Where the plan noises the
state up again (a restart), the history is forgotten.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sciflow.paths import GaussianPath
from sciflow.random import Draws
from sciflow.samplers.plan import Plan
from sciflow.samplers.steppers import Stepper
from sciflow.state import Context

__all__ = ["AdamsBashforth", "lagrange_integrals"]


def lagrange_integrals(nodes: np.ndarray, low: float, high: float) -> np.ndarray:
    """∫_low^high of each Lagrange basis polynomial of ``nodes`` (largest relative error 1e-12)."""
    width = high - low
    weights = np.empty(len(nodes))
    for i, node in enumerate(nodes):
        # In the scaled variable (u − low)/width the polynomial's coefficients stay of order one.
        roots = (np.delete(nodes, i) - low) / width
        basis = np.poly1d(roots, r=True) / np.prod((node - low) / width - roots)
        integral = basis.integ()
        weights[i] = (integral(1.0) - integral(0.0)) * width
    return weights


class AdamsBashforth(Stepper):
    """Linear multistep of order 1 (Euler = DDIM), 2 or 3.

    Args:
        path: the field's path.
        plan: the intervals.
        order: 1, 2 or 3.
    """

    def __init__(self, path: GaussianPath, plan: Plan, order: int = 2):
        if order not in (1, 2, 3):
            raise ValueError(f"order must be 1, 2 or 3, not {order}")
        a, s = (y.numpy() for y in path.schedule(plan.start))
        b, r = (y.numpy() for y in path.schedule(plan.end))
        u, v, kappa = s / (a + s), r / (b + r), b + r
        self.noise_scale = list(zip((1 / s).tolist(), (a / s).tolist(), strict=True))
        self.keep = (kappa / (a + s)).tolist()
        self.weights: list[list[float]] = []
        for i, age in enumerate(plan.age):
            m = 1 if r[i] == 0 else min(order, age + 1)
            # A repeated time (a grid clamped at its end) carries no information twice.
            while m > 1 and min(-np.diff(u[i - m + 1 : i + 1])) <= 1e-12:
                m -= 1
            c = lagrange_integrals(u[i - m + 1 : i + 1][::-1], u[i], v[i])
            if age == 1 and m == 2:
                # Trapezoid in hindsight for the first step, which had one velocity only.
                c += (u[i] - u[i - 1]) / 2 * np.array([1.0, -1.0])
            self.weights.append([float(kappa[i] * w) for w in c])
        self.order = order
        self.history: list[Tensor] = []

    def step(self, i: int, x: Tensor, clean: Tensor, context: Context, draws: Draws) -> Tensor:
        # v = ε − D = x/s − (a/s + 1) D.
        one_over_s, a_over_s = self.noise_scale[i]
        v = torch.add(x * one_over_s, clean, alpha=-(a_over_s + 1))
        self.history = [v, *self.history[: self.order - 1]]
        x = x * self.keep[i]
        for weight, velocity in zip(self.weights[i], self.history, strict=False):
            x = x.add_(velocity, alpha=weight)
        return x
