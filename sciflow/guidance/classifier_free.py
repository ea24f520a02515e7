r"""Classifier-free guidance (Ho & Salimans 2022) for means, logits and points of a manifold.

    D_w = D(x, t, c) + w·( D(x, t, c) − D(x, t, ∅) ),
    log p_w = log p(· | c) + w·( log p(· | c) − log p(· | ∅) )      up to normalisation,

and on a manifold as for means, in the tangent space at x (:meth:`Path.extrapolate`).

w = 0 is the conditional model itself, bit for bit and at one call a step; w > 0 sharpens. The
guided denoiser is only used where the shared clock lies in ``interval`` (Kynkäänniemi et al. 2024):
what a condition decides is decided early, and late guidance pushes samples off the data.
"""

from __future__ import annotations

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.state import State, Times

__all__ = ["ClassifierFree"]


class ClassifierFree(Denoiser):
    """Moves the estimate away from the unconditional one.

    Args:
        denoiser: a conditional denoiser that accepts "not asked for" (NaN) conditions.
        weight: w ≥ 0.
        interval: times (first, last) of the shared clock between which guidance acts.
    """

    def __init__(
        self, denoiser: Denoiser, weight: float, interval: tuple[float, float] = (0.0, 1.0)
    ):
        super().__init__()
        if not weight >= 0:
            raise InputError(f"guidance weight must be 0 (off) or more, not {weight}")
        if not 0 <= interval[0] <= interval[1] <= 1:
            raise InputError(f"guidance acts between times 0 <= first <= last <= 1, not {interval}")
        self.denoiser, self.weight, self.interval = denoiser, weight, interval
        self.paths = denoiser.paths

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        conditional = self.denoiser(state, t, previous)
        outside = isinstance(t, float) and not self.interval[0] <= t <= self.interval[1]
        if self.weight == 0 or outside:
            return conditional
        bare = State(state.fields, state.context.unconditional())
        unconditional = self.denoiser(bare, t, previous)
        return Prediction(
            {
                name: path.extrapolate(state[name], conditional[name], unconditional[name],
                                       self.weight)
                for name, path in self.paths.items()
            }
        )  # fmt: skip
