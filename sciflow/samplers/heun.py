r"""Heun's method: the trapezoidal rule on the probability-flow ODE, two calls a step.

In the coordinates of :mod:`sciflow.samplers.multistep`, dz/du = v(z, u):

    ẑ = z_n + h v_n,     z_{n+1} = z_n + h (v_n + v̂)/2,     h = u_{n+1} − u_n < 0,

with v̂ from a call at (ẑ, u_{n+1}). The last interval is one Euler step, i.e. D. On a plan that
visits every inner time twice (:meth:`Plan.doubled`) the sampler's loop calls the denoiser once an
interval for all fields alike; the second visit adds h (v̂ − v_n)/2.
"""

from __future__ import annotations

from sciflow.paths import GaussianPath
from sciflow.samplers.linear import LinearStepper
from sciflow.samplers.plan import Plan

__all__ = ["Heun"]


class Heun(LinearStepper):
    """Heun on a doubled plan.

    Intervals of odd age, of zero length, correct the prediction before them.
    """

    def __init__(self, path: GaussianPath, plan: Plan):
        a, s, b, r = (y.numpy() for y in plan.levels(path.schedule))
        width = r / (b + r) - s / (a + s)
        # v = ε − D = q (D + ρ x).
        q = -(a / s + 1)
        from_x, from_clean = r / s, b - a * r / s
        older: list[list[float]] = [[] for _ in range(len(plan))]
        for i, age in enumerate(plan.age):
            if age % 2 == 1:
                half = (b[i] + r[i]) * width[i - 1] / 2
                from_x[i], from_clean[i] = 1 + half / s[i], half * q[i]
                older[i] = [float(-half * q[i - 1])]
        super().__init__(path, from_x.tolist(), from_clean.tolist(), older=older,
                         remembered=(1 / (s * q)).tolist())  # fmt: skip
