r"""CFG++ (Chung et al. 2025): go to the guided estimate, with the unconditional noise.

    x_s = a_s D_g + s_s √(1 − φ) ε_u + s_s √φ z,     D_g = D_u + λ (D_c − D_u),   0 < λ ≤ 1,

where the plain step has the noise ε_g of D_g: guidance then only interpolates between estimates,
and the noise stays on the unconditional trajectory. A step takes x, D to

    x_s = a_s D + s_s √(1 − φ) (x − a_t D)/s_t + …,

and both agree for D = D_u + γ (D_c − D_u) with

    γ = λ / (1 − √(1 − φ) e^{−h}),      h = log(a_s/s_s) − log(a_t/s_t),

so CFG++ is classifier-free guidance with a weight w = γ − 1 that the plan sets: large where steps
are short, λ − 1 in the last step. As a change of D it runs under any sampler, and is what was
published under first-order ones (``ddim``, ``ddpm``, ``ab1``, ``dpm1``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.errors import InputError
from sciflow.guidance.weak.rules import Rule, Seen
from sciflow.paths import GaussianPath
from sciflow.samplers.ancestral import ancestral_share
from sciflow.samplers.plan import Plan

__all__ = ["PlusPlus"]


class PlusPlus(Rule):
    """CFG++ for a plan; the weight of the guidance is λ (0 is no guidance, as everywhere).

    Args:
        plan: of the sampler that runs, ``sampler.plan(denoiser)``.
        eta: of a stochastic sampler, 1 for ``ddpm``.
    """

    def __init__(self, plan: Plan, eta: float = 0.0):
        self.plan, self.eta = plan, eta
        self._tables: dict[GaussianPath, dict[float, float]] = {}

    def gains(self, path: GaussianPath) -> dict[float, float]:
        """γ/λ by the time of the call, for a field.

        Raises:
            InputError: steps of different lengths start at the same time.
        """
        if path in self._tables:
            return self._tables[path]
        a, s, b, r = self.plan.levels(path.schedule)
        share = ancestral_share(path, self.plan, self.eta)
        gains = 1 / (1 - (1 - share).sqrt() * a * r / (b * s))
        table: dict[float, float] = {}
        for (t, end), gain in zip(self.plan, gains.tolist(), strict=True):
            # The second call of a step of two calls stands where the next step starts.
            if t > end and table.setdefault(t, gain) != gain:
                raise InputError(
                    f"two steps of different length start at time {t:g}, where CFG++ has two "
                    "weights; use a plan without restarts in mid-trajectory"
                )
        self._tables[path] = table
        return table

    def __call__(self, seen: Seen, weight: float) -> Tensor:
        clock = float(seen.t.max())
        gain = self.gains(seen.path).get(clock)
        if gain is None or bool(((seen.t != clock) & (seen.t > 0)).any()):
            raise InputError(
                f"CFG++ is for the calls of its plan, and time {clock:g} is none of them; make the "
                "rule with the plan of the sampler that runs"
            )
        return torch.add(seen.weak, seen.strong - seen.weak, alpha=weight * gain)
