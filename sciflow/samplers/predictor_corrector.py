r"""Predictor–corrector sampling (Song et al. 2021): Langevin steps at each noise level.

After every step a second call at the new level moves x along the score and adds noise,

    x ← x + δ ∇log p_t(x) + √(2δ) z,      ∇log p_t = −ε/s,    ε = (x − a D)/s.

The step size asks for a ratio r of signal to noise, ‖δ ∇log p‖ / ‖√(2δ) z‖ = r. Song et al. put in
norms averaged over the batch, so that a sample depends on its companions (a known fault of
score_sde). The norms of the sample itself are no better: with δ ∝ ‖z‖²/‖∇log p(x)‖² the step
depends on x, and the law that stays invariant is p ‖∇log p‖², not p. We use what the norms are on
average where x is noise, ‖∇log p‖ = ‖z‖/s, at the sample's own level:

    δ = 2 r² s².

As s² ∇log p = a D − x, the step forgets a share of the noise. With D held fixed it is solved
exactly, with ρ = 1 − 2r²:

    x ← a D + ρ (x − a D) + s √(1 − ρ²) z,

the step of :mod:`~sciflow.samplers.ancestral` over an interval of no length with φ = 1 − ρ². Zero
ratio is the predictor alone, which is DDIM(η).
"""

from __future__ import annotations

import math

from sciflow.paths import GaussianPath
from sciflow.samplers.ancestral import NoiseRefresh, ancestral_share
from sciflow.samplers.plan import Plan

__all__ = ["LARGEST_RATIO", "PredictorCorrector"]

LARGEST_RATIO = math.sqrt(0.5)
"""With this ratio a Langevin step draws all noise anew."""


class PredictorCorrector(NoiseRefresh):
    """DDIM(η), with a Langevin step wherever the plan has an interval of no length.

    Args:
        path: the field's path.
        plan: the intervals; :meth:`Plan.doubled` has one corrector a level.
        ratio: signal to noise of a Langevin step, 0 to :data:`LARGEST_RATIO`.
        eta: fresh noise of the predictor.
        stream: name of the field's random numbers.
    """

    def __init__(self, path: GaussianPath, plan: Plan, ratio: float = 0.16, eta: float = 0.0,
                 stream: str = "field"):  # fmt: skip
        if not 0 <= ratio <= LARGEST_RATIO:
            raise ValueError(f"ratio must lie between 0 and sqrt(1/2), not {ratio}")
        share = ancestral_share(path, plan, eta)
        share[plan.start == plan.end] = 1 - (1 - 2 * ratio**2) ** 2
        super().__init__(path, plan, share, stream)
