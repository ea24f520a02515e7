r"""Refinement: the forecasts of any forecaster, moved towards what the model holds for likely.

The base forecast's paths are written in the frame of the history and moved in the energy

    U(x) = −log p_σ(x | history) + (λ/2σ²) |x − x_base|²,      ∇ log p_σ(x) = (D(x) − x)/σ²,

p_σ the model's law of the future blurred by noise of standard deviation σ (Kollovieh et al. 2023
take the denoising loss at one noise level, whose gradient this is):

    langevin      x ← x − (η σ²/2) ∇U + √η σ z, and at the end from σ down to 0: samples
    most-likely   x ← x − (η σ²/2) ∇U, and at the end D(x): the nearest likely path

λ says how far the base is trusted and σ how coarse its errors are. Paths of a base with fewer
samples than are asked for are repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from domains.timeseries.encoding import FIELD
from sciflow.denoisers import Denoiser
from sciflow.errors import InputError
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.state import State

__all__ = ["RefineMethod", "Refinement"]

RefineMethod = Literal["langevin", "most-likely"]


@dataclass(frozen=True)
class Refinement:
    """How to refine.

    Attributes:
        method: ``langevin`` or ``most-likely``.
        level: σ, in units of the frame (the naive forecast's error).
        trust: λ, of the base.
        iterations: moves, one network call each.
        step: η.
    """

    method: RefineMethod = "langevin"
    level: float = 2.0
    trust: float = 0.1
    iterations: int = 6
    step: float = 1.0

    def __post_init__(self) -> None:
        if self.method not in get_args(RefineMethod):
            raise InputError(
                f"unknown way to refine {self.method!r}; known: {', '.join(get_args(RefineMethod))}"
            )
        if not (self.level > 0 and self.trust >= 0 and self.iterations >= 1 and self.step > 0):
            raise InputError("level and step must be positive, trust at least 0, iterations 1")

    def __call__(self, denoiser: Denoiser, sampler: Sampler, batch: State, draws: Draws) -> Tensor:
        """The refined field.

        Args:
            denoiser: of the model.
            sampler: comes down from σ, ``langevin``.
            batch: history given, the base's values as the rest of the field, ``[B, L, C]``.
            draws: of the rows.
        """
        path, context = denoiser.paths[FIELD], batch.context
        wanted = torch.tensor(-2.0, dtype=torch.float64) * torch.tensor(self.level).log()
        t = path.schedule.at_logsnr(wanted)
        a, s = (float(v) for v in path.schedule(t))
        given, base = context.given[FIELD], batch[FIELD]
        # In the path's own units x_t = a (x_0 + σ ε); x below is x_t / a.
        x = base.clone()
        for i in range(self.iterations):
            with torch.no_grad():
                clean = denoiser(State({FIELD: _merged(a * x, base, given)}, context), float(t))
            pull = (clean[FIELD] - x) - self.trust * (x - base)
            x = x + self.step / 2 * pull
            if self.method == "langevin":
                z = path.space.noise(context, draws, f"{FIELD}/langevin", i, x.dtype)
                x = x + self.step**0.5 * (s / a) * z
            x = torch.where(given, base, x)
        start = _merged(a * x, base, given)
        if self.method == "most-likely":
            with torch.no_grad():
                return denoiser(State({FIELD: start}, context), float(t))[FIELD]
        report = sampler(denoiser, context, draws, {FIELD: base}, start={FIELD: start},
                         begin=float(t))  # fmt: skip
        return report.state[FIELD]


def _merged(x: Tensor, base: Tensor, given: Tensor) -> Tensor:
    """``x`` with given elements, which are clean at every time."""
    return torch.where(given, base, x)
