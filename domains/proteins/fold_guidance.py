r"""Folds by a model of frames, chemistry by a model of angles.

A network that sees torsions alone makes every place right and the chain extended, for what brings
ends together is the sum of all angles; one that sees frames makes compact folds, and small errors
of its places break bonds. So a chain begins with a fold y, drawn by a model of frames, and the
clean estimate θ⁰ of the angles gives way to it,

    θ  ←  argmin_θ' Σ (θ' − θ⁰)²/(2V)  +  min_{R,t} Σ_i |R x_i(θ') + t − y_i|²/(2σ²),

x_i the atoms N, CA, C that θ' builds, V what the noise leaves open of an angle: a few steps of
Levenberg and Marquardt a call (:mod:`domains.proteins.closure`). It is Bayes' rule for a fold that
is known to σ, which is wide: the fold says where the parts of the chain lie, and the network
what they are. The finished chain is left as the model made it.

A chain with a motif or given residues, or one that is re-designed, has no fold; its run is left to
the guide ``compact``, which pulls at the size alone.

Where the guide ``sheets`` plans sheets, the fold is drawn around the largest of them: its residues
are given to the model of frames, as a motif is, so that plan and fold want the same.

Superposition of models (:mod:`sciflow.guidance.several`) needs them to have the same fields; this
is how two with different ones meet.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from domains.proteins.beginnings import begins, draws_of, kept
from domains.proteins.closure import close
from domains.proteins.compact_guidance import COMPACT
from domains.proteins.encoding import Encoding, in_single_precision
from domains.proteins.rebuild import BEND_MEAN, bends_in_radians, rebuild
from domains.proteins.sheet_guidance import Sheets
from domains.proteins.sheets import SheetPlan
from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.guidance.acting import check_interval
from sciflow.guidance.energy.strengths import open_variance
from sciflow.guides import Guide
from sciflow.model import Model, load
from sciflow.samplers import Sampler
from sciflow.state import Context, State, Times, field_times

__all__ = ["FOLD", "Folded"]


class Folded(Denoiser):
    """A model of angles whose chains follow the folds of a model of frames; see the module.

    Args:
        denoiser: the model, guided or not.
        frames: the other one, under its own guides.
        encoding: of that one.
        sampler: its sampler.
        tolerance: σ in ångström.
        least: V in radians² that an angle is taken to have open at least.
        clash: factor on CA atoms that come too near; 0 leaves them.
        iterations: steps a call.
        interval: times (first, last) of the shared clock between which folds are followed.
        otherwise: the model for runs in which no chain has a fold; default ``denoiser``.

    Raises:
        InputError: the models have other fields, or a setting is out of its range.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        frames: Denoiser,
        encoding: Encoding,
        sampler: Sampler,
        tolerance: float = 4.5,
        least: float = 0.002,
        clash: float = 0.5,
        iterations: int = 3,
        interval: tuple[float, float] = (0.0, 0.95),
        otherwise: Denoiser | None = None,
    ):
        super().__init__()
        if "torsions" not in denoiser.paths:
            raise InputError("the guide fold turns torsions, and this model has positions")
        if "positions" not in frames.paths:
            raise InputError(
                "the guide fold draws folds by a model of frames, model=FOLDER, and the one that "
                f"is named has the fields {', '.join(frames.paths)}"
            )
        if not (tolerance > 0 and least > 0 and clash >= 0) or iterations < 1:
            raise InputError(
                "tolerance and least must be above 0, clash 0 or more, iterations 1 or more, not "
                f"{tolerance:g}, {least:g}, {clash:g} and {iterations}"
            )
        check_interval(interval)
        self.denoiser, self.paths = denoiser, denoiser.paths
        self.frames, self.encoding, self.sampler = frames, encoding, sampler
        self.tolerance, self.least, self.clash = tolerance, least, clash
        self.iterations, self.interval = iterations, interval
        self.otherwise = denoiser if otherwise is None else otherwise
        self._folds: Tensor | None = None
        self._follows: Tensor | None = None
        self._folded = False

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        """The estimate that follows the fold."""
        time = field_times(t, state)["torsions"].double()
        time = time if time.ndim == 1 else time.amax(1)
        if previous is None:
            # Folds belong to the chains, and must not change under way.
            self._follows = state.context.mask & ~kept(state)[:, None]
            self._folded = begins(time) and bool(self._follows.any())
        if not self._folded:
            return self.otherwise(state, t, previous)
        prediction = self.denoiser(state, t, previous)
        if previous is None:
            self._folds = self.draw(state)
        first, last = self.interval
        if not bool(((time >= first) & (time <= last)).any()):
            return prediction
        return Prediction(
            {**prediction.clean, "torsions": self._following(prediction, state, time)}
        )

    def draw(self, noise: State) -> Tensor:
        """Folds of chains that begin with this noise, N, CA, C ``[B, N, 3, 3]`` in ångström."""
        context, known = noise.context.replace(given={}), dict[str, Tensor]()
        plan = plan_of(self.denoiser)
        if plan is not None and bool(plan.planned.any()):
            inside = largest(plan)
            known = self._sheets(plan, inside, context)
            context = context.replace(given=dict.fromkeys(known, inside))
        report = self.sampler(self.frames, context, draws_of(noise), given=known)
        atoms = self.encoding.backbone(report.state)[:, :, :3]
        # A fold that broke is none: its chain is the model's own.
        sound = atoms.isfinite().flatten(1).all(1)
        if self._follows is not None:
            self._follows = self._follows & sound[:, None]
        return atoms.where(sound[:, None, None, None], 0.0)

    def _sheets(self, plan: SheetPlan, inside: Tensor, context: Context) -> dict[str, Tensor]:
        """Frames of chains with the torsions of their plans, about the centre of what is inside."""
        torsions = torch.nn.functional.pad(plan.torsions, (0, 1), value=math.pi)
        bends = torsions.new_tensor(BEND_MEAN).expand_as(torsions)
        fields = self.encoding.tensors(rebuild(torsions, bends), context.mask)
        real = inside[..., None].to(torsions)
        x = fields["positions"]
        centre = (x * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)
        fields["positions"] = (x - centre) * context.mask[..., None]
        return in_single_precision(fields)

    def _following(self, prediction: Prediction, state: State, time: Tensor) -> Tensor:
        torsions, follows = prediction.clean["torsions"], self._follows
        assert self._folds is not None and follows is not None
        v = open_variance(self.paths["torsions"], time).clamp(min=self.least)
        moved = close(
            torsions, bends_in_radians(prediction.clean["bends"].double()), self._folds, follows,
            follows[..., None].expand(*follows.shape, 2), v, self.tolerance, self.iterations,
            self.clash,
        )  # fmt: skip
        return self.paths["torsions"].space.project(moved, state.context)


def plan_of(denoiser: Denoiser) -> SheetPlan | None:
    """What the guide ``sheets`` plans, where it is one of those in ``denoiser``."""
    return next((d.drawn for d in denoiser.modules() if isinstance(d, Sheets)), None)


def largest(plan: SheetPlan) -> Tensor:
    """Residues of the largest sheet of each chain, bool ``[B, N]``."""
    planned = plan.planned
    starts = planned & ~torch.nn.functional.pad(planned, (1, 0))[:, :-1]
    number = starts.long().cumsum(1) * planned
    size = torch.nn.functional.one_hot(number, int(number.max()) + 1).sum(1)
    size[:, 0] = 0
    return planned & (number == size.argmax(1)[:, None])


def _fold(model: Model, settings: dict[str, Any], denoiser: Denoiser) -> Denoiser:
    other = load(settings["model"])
    if other.domain.name != model.domain.name:
        raise InputError(f"guide fold: {settings['model']!r} makes {other.domain.name}")
    steps = settings["steps"] or other.sampler.steps
    other.sampler = replace(other.sampler, steps=steps)
    frames, _ = other.under_guides(other.denoiser)
    otherwise = denoiser
    if not (model.has_guide("compact") or model.has_guide("shape")):
        otherwise = COMPACT.wrap(model, dict(COMPACT.settings), denoiser)
    return Folded(denoiser, frames, Encoding.from_config(other.config["encoding"]), other.sampler,
                  settings["tolerance"], settings["least"], settings["clash"],
                  settings["iterations"], (settings["first"], settings["last"]),
                  otherwise)  # fmt: skip


FOLD = Guide(
    "chains follow a fold that a model of frames draws for each by so many steps (0: its own); "
    "model=FOLDER of another",
    {"model": "proteins/frames", "steps": 50, "tolerance": 4.5, "least": 0.002, "clash": 0.5,
     "iterations": 3, "first": 0.0, "last": 0.95},
    _fold,
)  # fmt: skip
