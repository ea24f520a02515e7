r"""A model of angles whose chains are compact: bonds turn until the radius of gyration is right.

What brings a chain together is the sum of all its angles, and a step along the gradient of its size
overshoots: a bond in the middle moves half the chain. Of the chains near the estimate the likeliest
that is no larger than r times the law of globular chains, Rg⁰ = 2.2 N^0.38 Å, and does not run into
itself, is a problem of least squares,

    θ  ←  argmin_θ' Σ (θ' − θ)²/(2V) + (max(0, Rg/Rg⁰ − r)/0.02)²/2
                    + c Σ_{|i−j|>2} (max(0, 4.2 Å − d_ij)/0.5 Å)²/2,

V what the noise leaves open of an angle: a few steps of Levenberg and Marquardt a call
(:mod:`domains.proteins.closure`), at no network call. Every bond gives way a little, where it is
open. A chain that is asked for a radius of gyration has that as its r.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from domains.proteins.closure import close
from domains.proteins.motif_guidance import free_bonds
from domains.proteins.rebuild import bends_in_radians
from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.guidance.acting import check_interval
from sciflow.guidance.energy.strengths import open_variance
from sciflow.guides import Guide
from sciflow.model import Model
from sciflow.state import Context, State, Times, field_times

__all__ = ["COMPACT", "Compact"]


class Compact(Denoiser):
    """A model of angles with chains of a size; see the module.

    Args:
        denoiser: the model, guided or not.
        ratio: r, of chains that are asked for none.
        clash: c; 0 leaves clashes.
        least: V in radians² that an angle is taken to have open at least.
        iterations: steps a call.
        interval: times (first, last) of the shared clock between which it acts.

    Raises:
        InputError: the model has no torsions, or a setting is out of its range.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        ratio: float = 0.95,
        clash: float = 1.0,
        least: float = 0.02,
        iterations: int = 4,
        interval: tuple[float, float] = (0.0, 0.95),
    ):
        super().__init__()
        if "torsions" not in denoiser.paths:
            raise InputError(
                "the guide compact turns torsions, and this model has positions: there it is shape"
            )
        if not (ratio > 0 and clash >= 0 and least > 0) or iterations < 1:
            raise InputError(
                "rg_ratio and least must be above 0, clash 0 or more, iterations 1 or more, not "
                f"{ratio:g}, {least:g}, {clash:g} and {iterations}"
            )
        check_interval(interval)
        self.denoiser, self.paths = denoiser, denoiser.paths
        self.ratio, self.clash, self.least = ratio, clash, least
        self.iterations, self.interval = iterations, interval

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        """The estimate, compact."""
        prediction = self.denoiser(state, t, previous)
        time = field_times(t, state)["torsions"].double()
        time = time if time.ndim == 1 else time.amax(1)
        first, last = self.interval
        if not bool(((time >= first) & (time <= last)).any()):
            return prediction
        context, torsions = state.context, prediction.clean["torsions"]
        v = open_variance(self.paths["torsions"], time).clamp(min=self.least)
        moved = close(
            torsions, bends_in_radians(prediction.clean["bends"].double()), None, None,
            free_bonds(context), v, 1.0, self.iterations, self.clash, size=self._size(context),
        )  # fmt: skip
        moved = self.paths["torsions"].space.project(moved, context)
        return Prediction({**prediction.clean, "torsions": moved})

    def _size(self, context: Context) -> Tensor:
        default = torch.full((len(context),), self.ratio, dtype=torch.float64)
        default = default.to(context.mask.device)
        asked = context.conditions.get("rg_ratio")
        if asked is None:
            return default
        return torch.where(asked.isnan(), default, asked.double())


def _compact(model: Model, settings: dict[str, Any], denoiser: Denoiser) -> Denoiser:
    return Compact(denoiser, settings["rg_ratio"], settings["clash"], settings["least"],
                   settings["iterations"], (settings["first"], settings["last"]))  # fmt: skip


COMPACT = Guide(
    "bonds of a model of angles turn until chains are compact, by least squares",
    {"rg_ratio": 0.95, "clash": 1.0, "least": 0.02, "iterations": 4, "first": 0.0, "last": 0.95},
    _compact,
)
