r"""A model of angles that scaffolds motifs, though it was never told one.

Within a piece of the motif every angle is known, and the clean estimate has them (the replacement
of :mod:`sciflow.guidance.editing.inpainting`, number by number: the φ of a piece's first residue
and the ψ and ω of its last lie outside). Where there are several pieces, the bonds between them
turn until the pieces lie to one another as in the motif (:mod:`domains.proteins.closure`), by as
little as the noise still leaves open. It costs no network call. The finished chain is closed too.

The motif travels in the context, where :func:`domains.proteins.scaffolding.scaffold_state` puts it:
``extras["motif"]``, its atoms, and ``extras["piece"]``, which piece a residue belongs to, −1 none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from domains.proteins.closure import close
from domains.proteins.rebuild import bends_in_radians, internal_coordinates, standard_bends
from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.guidance.acting import check_interval
from sciflow.guidance.energy.strengths import open_variance
from sciflow.guides import Guide
from sciflow.model import Model
from sciflow.samplers.hooks import Step, after_inner
from sciflow.state import Context, State, Times, field_times

__all__ = ["MOTIF", "MotifGuidance", "free_bonds", "known_angles"]

_FINISHING = 40
"""Steps on the finished chain; its angles have no noise left, so that the least spread rules."""


def known_angles(context: Context) -> tuple[Tensor, Tensor]:
    """Which torsions and bends the pieces of a motif know, two bool ``[B, N, 3]``."""
    piece = context.extras["piece"]
    inside = piece >= 0
    follows = (piece[:, 1:] == piece[:, :-1]) & inside[:, 1:]
    nothing = torch.zeros_like(inside[:, :1])
    before, behind = torch.cat((nothing, follows), 1), torch.cat((follows, nothing), 1)
    return torch.stack((before, behind, behind), -1), torch.stack((inside, behind, behind), -1)


def free_bonds(context: Context) -> Tensor:
    """φ and ψ that may turn, bool ``[B, N, 2]``: of what is not given, nor a motif's."""
    free = context.mask[..., None].expand(*context.mask.shape, 2)
    if "torsions" in context.given:
        free = free & ~context.given["torsions"][..., None]
    if "piece" in context.extras:
        free = free & ~known_angles(context)[0][..., :2]
    return free


class MotifGuidance(Denoiser):
    """A model of angles whose chains carry the motif of their context; see the module.

    Args:
        denoiser: the model, guided or not.
        tolerance: σ in ångström, how nearly the motif's atoms are known.
        least: V in radians² that an angle is taken to have open at least.
        clash: c, factor on CA atoms that come too near; 0 leaves them.
        iterations: of closing, a call; 0 leaves the pieces where the model puts them.
        interval: times (first, last) of the shared clock between which chains are closed; pieces
            are known at all times.

    Raises:
        InputError: the model has no torsions, or a setting is out of its range.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        tolerance: float = 0.2,
        least: float = 0.06,
        clash: float = 10.0,
        iterations: int = 4,
        interval: tuple[float, float] = (0.0, 0.7),
    ):
        super().__init__()
        if "torsions" not in denoiser.paths:
            raise InputError(
                "the guide motif turns torsions, and this model has positions: there a motif is "
                "given exactly, with no guide"
            )
        if not (tolerance > 0 and least > 0 and clash >= 0 and iterations >= 0):
            raise InputError(
                "tolerance and least must be above 0, clash and iterations 0 or more, not "
                f"{tolerance:g}, {least:g}, {clash:g} and {iterations}"
            )
        check_interval(interval)
        self.denoiser, self.paths = denoiser, denoiser.paths
        self.tolerance, self.least, self.clash = tolerance, least, clash
        self.iterations = iterations
        self.interval = interval

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        """The estimate with the motif in it."""
        prediction = self.denoiser(state, t, previous)
        clean = State({**state.fields, **prediction.clean}, state.context)
        time = field_times(t, state)["torsions"]
        time = time if time.ndim == 1 else time.amax(1)
        acts = bool(((time >= self.interval[0]) & (time <= self.interval[1])).any())
        moved = self._carrying(clean, time, self.iterations if acts else 0)
        return Prediction({**prediction.clean, **moved})

    def after_step(self, step: Step) -> State:
        """The finished chain carries the motif, after the guided model's own hook."""
        step = after_inner(self.denoiser, step)
        if step.end > 0:
            return step.state
        time = torch.zeros(step.state.batch_size, dtype=torch.float64, device=step.state.device)
        moved = self._carrying(step.state, time, _FINISHING if self.iterations else 0)
        return step.state.replace(**moved)

    def _carrying(self, clean: State, t: Tensor, iterations: int) -> dict[str, Tensor]:
        """Torsions and bends with those of the pieces in place, closed."""
        context = clean.context
        if "piece" not in context.extras:
            raise InputError("the guide motif needs a motif: give --motif and --contig")
        piece, motif = context.extras["piece"], context.extras["motif"].double()
        y_torsions, y_bends = internal_coordinates(motif, context.mask)
        knows_torsion, knows_bend = known_angles(context)
        torsions = torch.where(knows_torsion, y_torsions.to(clean["torsions"]), clean["torsions"])
        bends = standard_bends(y_bends).to(clean["bends"])
        bends = torch.where(knows_bend, bends, clean["bends"])
        if iterations and (self.clash or int(piece.max()) > 0):
            v = open_variance(self.paths["torsions"], t).clamp(min=self.least)
            free = context.mask[..., None] & ~knows_torsion[..., :2]
            torsions = close(
                torsions, bends_in_radians(bends.double()), motif[:, :, :3], piece >= 0, free, v,
                self.tolerance, iterations, self.clash,
            )  # fmt: skip
            torsions = self.paths["torsions"].space.project(torsions, context)
        return {"torsions": torsions, "bends": bends}


def _motif(model: Model, settings: dict[str, Any], denoiser: Denoiser) -> Denoiser:
    return MotifGuidance(denoiser, settings["tolerance"], settings["least"], settings["clash"],
                         settings["iterations"], (settings["first"], settings["last"]))  # fmt: skip


MOTIF = Guide(
    "angles carry the motif of --motif, its pieces brought into place by the bonds between them",
    {"tolerance": 0.2, "least": 0.06, "clash": 10.0, "iterations": 4, "first": 0.0, "last": 0.7},
    _motif,
)
"""On by itself where a model of angles scaffolds; named to change its settings."""
