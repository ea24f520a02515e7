r"""Classifier-free guidance (Ho & Salimans 2022) for means, logits and points of a manifold.

    D_w = D(x, t, c) + w·( D(x, t, c) − D(x, t, ∅) ),
    log p_w = log p(· | c) + w·( log p(· | c) − log p(· | ∅) )      up to normalisation,

guidance by a weak estimate (:mod:`sciflow.guidance.weak.away`): the same model, asked for nothing.

w = 0 is the conditional model itself, bit for bit and at one call a step; w > 0 sharpens. The
guided denoiser is only used where the shared clock lies in ``interval`` (Kynkäänniemi et al. 2024):
what a condition decides is decided early, and late guidance pushes samples off the data.

With a weight for each condition the weak models are asked for all but that one,

    D_w = D(c) + Σ_i w_i ( D(c) − D(c without c_i) ),
    p_w ∝ p(x | c) Π_i p(c_i | x, the other conditions)^w_i  at each noise level,

at a call a condition. Equal weights are the common w where conditions are independent given x.
"""

from __future__ import annotations

from collections.abc import Mapping

from sciflow.denoisers import Denoiser
from sciflow.errors import InputError
from sciflow.guidance.weak.away import MoveAway, Weight
from sciflow.guidance.weak.estimates import Unasked
from sciflow.guidance.weak.rules import Rule

__all__ = ["ClassifierFree"]


class ClassifierFree(MoveAway):
    """Moves the estimate away from the unconditional one.

    Args:
        denoiser: a conditional denoiser that accepts "not asked for" (NaN) conditions.
        weight: w ≥ 0, or a function of the time; or ``{condition: weight}``.
        interval: times (first, last) of the shared clock between which guidance acts.
        logsnr: instead of it, the least and largest log(a/s) of the first continuous field.
        rule: see :mod:`sciflow.guidance.weak.rules`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        weight: Weight | Mapping[str, Weight],
        interval: tuple[float, float] = (0.0, 1.0),
        *,
        logsnr: tuple[float, float] | None = None,
        rule: Rule | None = None,
    ):
        if isinstance(weight, Mapping):
            if not weight:
                raise InputError("no weights: name at least one condition, or give one number")
            weak = [Unasked(denoiser, [name]) for name in weight]
            weights = list(weight.values())
        else:
            weak, weights = [Unasked(denoiser)], [weight]
        super().__init__(denoiser, weak, weights, interval, logsnr=logsnr, rule=rule)
