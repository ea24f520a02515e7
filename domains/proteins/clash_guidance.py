r"""The finished chain without clashes: bonds turn until no two CA atoms are too near.

Guidance by a gradient leaves a few: two residues that touch at the end are parted by turns of many
bonds at once, which a step along the gradient does not find. Those are the least turns that part
them (:func:`domains.proteins.closure.close` without a motif),

    min_θ Σ_k (θ_k − θ⁰_k)²/(2V) + c Σ_{|i−j|>2} (max(0, 4.2 Å − d_ij)/0.5 Å)²/2,

found once, after the last step, at no network call. A chain whose CA atoms are all that far apart
stays bit for bit. Given residues neither turn nor count.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from domains.proteins.closure import close
from domains.proteins.motif_guidance import free_bonds
from domains.proteins.rebuild import bends_in_radians
from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.guides import Guide
from sciflow.model import Model
from sciflow.samplers.hooks import Step, after_inner
from sciflow.state import State, Times

__all__ = ["UNCLASH", "Unclashed"]


class Unclashed(Denoiser):
    """A model of angles whose finished chains do not run into themselves; see the module.

    A chain that carries a motif is left to the guide ``motif``, which parts it as well.

    Args:
        denoiser: the model, guided or not.
        variance: V in radians², how far a bond may turn.
        clash: c.
        iterations: steps at most.

    Raises:
        InputError: the model has no torsions, or a setting is out of its range.
    """

    def __init__(
        self, denoiser: Denoiser, variance: float = 0.01, clash: float = 4.0, iterations: int = 40
    ):
        super().__init__()
        if "torsions" not in denoiser.paths:
            raise InputError(
                "the guide unclash turns torsions, and this model has positions; use the guide "
                "shape, which parts them by a gradient"
            )
        if not (variance > 0 and clash > 0 and iterations >= 1):
            raise InputError(
                "variance and clash must be above 0, iterations 1 or more, not "
                f"{variance:g}, {clash:g} and {iterations}"
            )
        self.denoiser, self.paths = denoiser, denoiser.paths
        self.variance, self.clash, self.iterations = variance, clash, iterations

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        """The estimate as it is."""
        return self.denoiser(state, t, previous)

    def after_step(self, step: Step) -> State:
        """The finished chain parted, after the guided model's own hook."""
        step = after_inner(self.denoiser, step)
        state = step.state
        if step.end > 0 or "piece" in state.context.extras:
            return state
        return state.replace(torsions=self._parted(state))

    def _parted(self, state: State) -> Tensor:
        context, torsions = state.context, state["torsions"]
        bends = bends_in_radians(state["bends"].double())
        variance = bends.new_full((len(bends),), self.variance)
        parted = close(torsions, bends, None, None, free_bonds(context), variance, 1.0,
                       self.iterations, self.clash)  # fmt: skip
        return self.paths["torsions"].space.project(parted, context)


def _unclash(model: Model, settings: dict[str, Any], denoiser: Denoiser) -> Denoiser:
    return Unclashed(denoiser, settings["variance"], settings["clash"], settings["iterations"])


UNCLASH = Guide(
    "bonds of the finished chain turn, by as little as it takes, until no two CA atoms clash",
    {"variance": 0.01, "clash": 4.0, "iterations": 40},
    _unclash,
)
