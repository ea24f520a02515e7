r"""A model of angles that builds sheets: strands where a plan has them, their pairs drawn together.

Sheets are bonds between residues far apart along the chain. A network that sees torsions alone
learns where strands lie and not what holds them, so that theirs never meet. Here every chain has a
plan (:mod:`domains.proteins.sheets`) of strands and tight turns, drawn once, and the clean estimate
follows it in two steps:

    θ  ←  θ + w V/(w V + σ²) (θ* − θ)                           the planned torsions known to σ,
    θ  ←  argmin  Σ (θ' − θ)²/(2V) + Σ (d − l)²/(2σ_d²) + clashes          pairs at their distances,

V what the noise leaves open of an angle, so that early on the plan decides and later the model. The
second is a few steps of Levenberg and Marquardt a call (:mod:`domains.proteins.closure`), by bonds
of the sheet alone. The finished chain is closed to the end by all its bonds, and clashes count
there. A network with these conditions is told the strand that is planned, and as much helix as
known chains have beside it. No network call is added.

The plan is drawn from the noise that a chain begins with (:mod:`domains.proteins.beginnings`);
asked for ``strand`` it has as much.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from domains.proteins.beginnings import begins, draws_of, kept
from domains.proteins.closure import close
from domains.proteins.rebuild import bends_in_radians
from domains.proteins.sheets import SheetPlan, draw_shares, plan_sheets
from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.guidance.acting import check_interval, check_weight
from sciflow.guidance.energy.strengths import open_variance
from sciflow.guides import Guide
from sciflow.model import Model
from sciflow.random import Draws
from sciflow.samplers.hooks import Step, after_inner
from sciflow.spaces.torus import wrap
from sciflow.state import Context, State, Times, field_times

__all__ = ["SHEETS", "Sheets"]

_TURN_SHARE = 0.6
"""Turns are as much narrower than strands."""
_COIL = 0.25
"""Of a chain, at least, beside helix asked for and strand drawn."""
_ORDER = 0.61
"""Helix and strand of known chains together."""
_FINISHING, _FINAL = 40, 0.05
"""Steps on the finished chain, and V in radians² that its bonds are taken to have open."""


class Sheets(Denoiser):
    """A model of angles whose chains have the sheets of a plan; see the module.

    Args:
        denoiser: the model, guided or not.
        weight: w; 0 is the model itself.
        share: of residues that are strand; NaN is what the run asks for, or else drawn.
        spread: σ in degrees.
        tolerance: σ_d in ångström.
        least: V in radians² that an angle is taken to have open at least.
        clash: factor on CA atoms that come too near in the finished chain.
        iterations: steps a call.
        interval: times (first, last) of the shared clock between which pairs are drawn together.

    Raises:
        InputError: the model has no torsions, or a setting is out of its range.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        weight: float = 1.0,
        share: float = math.nan,
        spread: float = 25.0,
        tolerance: float = 0.3,
        least: float = 0.01,
        clash: float = 10.0,
        iterations: int = 2,
        interval: tuple[float, float] = (0.0, 0.8),
    ):
        super().__init__()
        if "torsions" not in denoiser.paths:
            raise InputError("the guide sheets turns torsions, and this model has positions")
        check_weight(weight)
        check_interval(interval)
        if not (spread > 0 and tolerance > 0 and least > 0 and clash >= 0):
            raise InputError(
                "spread, tolerance and least must be above 0, clash 0 or more, not "
                f"{spread:g}, {tolerance:g}, {least:g} and {clash:g}"
            )
        if share < 0 or share > 1 or iterations < 1:
            raise InputError(
                "share is one of residues, 0 to 1, and iterations are 1 or more, not "
                f"{share:g} and {iterations}"
            )
        self.denoiser, self.paths = denoiser, denoiser.paths
        self.weight, self.share, self.spread = weight, share, math.radians(spread)
        self.tolerance, self.least, self.clash = tolerance, least, clash
        self.iterations, self.interval = iterations, interval
        self._plan: SheetPlan | None = None

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        """The estimate with the sheets of the plan in it."""
        time = field_times(t, state)["torsions"].double()
        time = time if time.ndim == 1 else time.amax(1)
        if previous is None:
            # Plans belong to the chains, and must not change under way.
            self._plan = self.plan(state) if self.weight > 0 and begins(time) else None
        if self._plan is None:
            return self.denoiser(state, t, previous)
        prediction = self.denoiser(self._told(state, self._plan), t, previous)
        clean = State({**state.fields, **prediction.clean}, state.context)
        plan, v = self._plan, open_variance(self.paths["torsions"], time)
        torsions = self._planned(clean["torsions"].double(), plan, v)
        if bool(((time >= self.interval[0]) & (time <= self.interval[1])).any()):
            v = v.clamp(min=self.least)
            torsions = self._closed(clean, torsions, plan, plan.planned, v, self.iterations, 0.0)
        return Prediction({**prediction.clean, **self._moved(clean, plan.planned, torsions)})

    def after_step(self, step: Step) -> State:
        """Pairs of the finished chain at their distances, after the guided model's own hook."""
        step = after_inner(self.denoiser, step)
        state, plan = step.state, self._plan
        if step.end > 0 or plan is None:
            return state
        moves = state.context.mask & plan.planned.any(1, keepdim=True)
        v = torch.full_like(plan.links.length[:, 0], _FINAL)
        torsions = self._closed(state, state["torsions"].double(), plan, moves, v, _FINISHING,
                                self.clash)  # fmt: skip
        return state.replace(**self._moved(state, moves, torsions))

    @property
    def drawn(self) -> SheetPlan | None:
        """The plan of the run under way; ``None`` where its chains have none."""
        return self._plan

    def plan(self, noise: State) -> SheetPlan:
        """The plan of chains that begin with this noise."""
        x, context = noise["torsions"], noise.context
        draws = draws_of(noise)
        shares = self._shares(context.apply(Tensor.cpu), draws).masked_fill(kept(noise).cpu(), 0)
        return plan_sheets(context.lengths.cpu(), x.shape[1], shares, draws).to(x.device)

    def _told(self, state: State, plan: SheetPlan) -> State:
        """The state with the contents of its plan as conditions, where nothing else is asked."""
        context, conditions = state.context, dict(state.context.conditions)
        strand = plan.strand.sum(1) / context.lengths.clamp(min=1)
        for name, value in (("strand", strand), ("helix", (_ORDER - strand).clamp(min=0))):
            if name in conditions:
                x = conditions[name]
                # Where nothing is planned the model is left to itself.
                conditions[name] = torch.where(x.isnan() & (strand > 0), value.to(x), x)
        return State(state.fields, context.replace(conditions=conditions))

    def _shares(self, context: Context, draws: Draws) -> Tensor:
        """Strand that chains are to have, ``[B]``."""
        nothing = torch.full((len(context),), math.nan, dtype=torch.float64)
        told = nothing.masked_fill(nothing.isnan(), self.share)
        asked = {k: context.conditions.get(k, nothing).double() for k in ("helix", "strand")}
        room = (1 - _COIL - asked["helix"].nan_to_num()).clamp(min=0)
        drawn = torch.minimum(draw_shares(draws), room)
        shares = told.where(~told.isnan(), asked["strand"])
        return shares.where(~shares.isnan(), drawn).clamp(0, 1)

    def _planned(self, torsions: Tensor, plan: SheetPlan, v: Tensor) -> Tensor:
        """Bayes' rule for the estimate and the plan."""
        wide = self.spread**2
        variance = torch.where(plan.turn, wide * _TURN_SHARE**2, wide)
        gain = self.weight * v[:, None] / (self.weight * v[:, None] + variance) * plan.planned
        away = wrap(plan.torsions - torsions[..., :2])
        return torch.cat((torsions[..., :2] + gain[..., None] * away, torsions[..., 2:]), -1)

    def _closed(self, clean: State, torsions: Tensor, plan: SheetPlan, moves: Tensor, v: Tensor,
                iterations: int, clash: float) -> Tensor:  # fmt: skip
        bends = bends_in_radians(clean["bends"].double())
        links = plan.links.scaled(self.weight**0.5 / self.tolerance)
        free = moves[..., None].expand(*moves.shape, 2)
        return close(torsions, bends, None, None, free, v, 1.0, iterations, clash, links)

    def _moved(self, clean: State, moves: Tensor, torsions: Tensor) -> dict[str, Tensor]:
        """The field with new torsions where residues move; the others stay bit for bit."""
        x = clean["torsions"]
        moved = self.paths["torsions"].space.project(torsions.to(x), clean.context)
        return {"torsions": torch.where(moves[..., None], moved, x)}


def _sheets(model: Model, settings: dict[str, Any], denoiser: Denoiser) -> Denoiser:
    share = settings["share"]
    try:
        share = float(share) if share else math.nan
    except ValueError:
        raise InputError(
            f"guide sheets, share: write a number from 0 to 1, not {share!r}"
        ) from None
    return Sheets(denoiser, settings["weight"], share, settings["spread"], settings["tolerance"],
                  settings["least"], settings["clash"], settings["iterations"],
                  (settings["first"], settings["last"]))  # fmt: skip


SHEETS = Guide(
    "sheets after a plan of strands and turns, as much as is asked for or known chains have",
    {"weight": 1.0, "share": "", "spread": 25.0, "tolerance": 0.3, "least": 0.01, "clash": 10.0,
     "iterations": 2, "first": 0.0, "last": 0.8},
    _sheets,
)  # fmt: skip
