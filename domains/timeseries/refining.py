r"""Refinement: the forecasts of any forecaster, joined with the model's and moved to likely paths.

Two forecasts of the same values are best weighed by their errors (Bates and Granger 1969). In the
frame of the history, with V the variance of the model's paths about their mean m, and R that of the
base's errors, the base b has the weight

    w = V/(V + R),      R = max(variance of the base's paths, mean |b − m|² − V),

mean over the steps asked for: a base errs as much as it says, and at least as much as its distance
from the model shows. A base that states no spread, all paths alike, is held for as good as the
naive forecast, R = 1, which is the unit of the frame. Path i begins at

    x_i = m_i + w (b_i − m_i),          m_i the model's path i, b_i the base's,

which is a draw of the law of the truth given both, N(m + w (b − m), (1 − w) V), where both state
their spread, are Gaussian and err independently, the base's errors correlated in time as the
model's are. (Errors that both make leave its intervals too narrow.) It then moves in the energy of
that law (Kollovieh et al. 2023 take the denoising loss at one noise level for the model's part,
whose gradient this is),

    ∇U(x) = −s(x) − (w/(1 − w)) (s(x) − s(b_i)),      s(x) = (D(x) − x)/σ²,

with s the score of the model's law of the future blurred by noise of standard deviation σ:

    langevin      x ← x − (η/2) σ² (1 − w) ∇U + √(η (1 − w)) σ z, then from σ down to 0: samples
    most-likely   x ← x − (η/2) σ² (1 − w) ∇U, then D(x): the nearest likely path

whose law is the same where σ² is small against V. w = 0 forgets the base, 1 keeps it as it is.
Paths of a base with fewer samples than are asked for are repeated.
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

__all__ = ["PILOT", "RefineMethod", "Refinement", "base_weight"]

RefineMethod = Literal["langevin", "most-likely"]

PILOT = 50
"""Paths from which the weight is found, however many are asked for."""


def base_weight(own: Tensor, base: Tensor, asked: Tensor) -> tuple[float, float]:
    """w of a base and V of the model, see the formulas of the module.

    Args:
        own: the model's paths in the frame, ``[S, L, C]``.
        base: the base's, alike.
        asked: bool ``[L, C]``: the steps that both forecast.
    """
    own, base = (x.double()[:, asked] for x in (own, base))
    distance = float((base.mean(0) - own.mean(0)).square().mean())
    model, stated = (float(x.var(0, unbiased=False).mean()) for x in (own, base))
    error = max(stated if stated > 0 else 1.0, distance - model)
    return model / (model + error), model


@dataclass(frozen=True)
class Refinement:
    """How to refine.

    Attributes:
        method: ``langevin`` or ``most-likely``.
        level: σ, as a share of the model's own spread √V.
        trust: w, of the base; ``None``: from the spread of both.
        iterations: moves, one network call each; 0 joins the forecasts and no more.
        step: η.
    """

    method: RefineMethod = "langevin"
    level: float = 0.5
    trust: float | None = None
    iterations: int = 3
    step: float = 1.0

    def __post_init__(self) -> None:
        if self.method not in get_args(RefineMethod):
            raise InputError(
                f"unknown way to refine {self.method!r}; known: {', '.join(get_args(RefineMethod))}"
            )
        if not (self.level > 0 and self.iterations >= 0 and self.step > 0):
            raise InputError("level and step must be positive, iterations at least 0")
        if self.trust is not None and not 0 <= self.trust <= 1:
            raise InputError(f"trust is the weight of the base, 0 to 1, not {self.trust}")

    def calls(self, run: int) -> int:
        """Network calls a path, of which one run of the sampler takes ``run``."""
        if not self.iterations:
            return run
        # The score at the base, the moves, and the way down.
        return run + 1 + self.iterations + (run if self.method == "langevin" else 1)

    def __call__(
        self,
        denoiser: Denoiser,
        sampler: Sampler,
        batch: State,
        own: Tensor,
        weight: float,
        variance: float,
        draws: Draws,
    ) -> Tensor:
        """The refined field.

        Args:
            denoiser: of the model.
            sampler: comes down from σ, ``langevin``.
            batch: history given, the base's values as the rest of the field, ``[B, L, C]``.
            own: the model's paths, alike.
            weight: w.
            variance: V.
            draws: of the rows.
        """
        path, context = denoiser.paths[FIELD], batch.context
        given, base = context.given[FIELD], batch[FIELD]
        x = own + weight * (base - own)
        if weight == 1 or variance == 0 or self.iterations == 0:
            return torch.where(given, base, x)
        level = torch.tensor(self.level * variance**0.5, dtype=torch.float64)
        t = path.schedule.at_logsnr(-level.log())
        a, s = (float(v) for v in path.schedule(t))

        def towards(x: Tensor) -> Tensor:
            """σ² s(x). In the path's own units x_t = a (x_0 + σ ε); x is x_t / a."""
            here = State({FIELD: torch.where(given, base, a * x)}, context)
            with torch.no_grad():
                return denoiser(here, float(t))[FIELD] - x

        pull = weight * towards(base)
        for i in range(self.iterations):
            x = x + self.step / 2 * (towards(x) - pull)
            if self.method == "langevin":
                z = path.space.noise(context, draws, f"{FIELD}/langevin", i, x.dtype)
                x = x + (self.step * (1 - weight)) ** 0.5 * (s / a) * z
            x = torch.where(given, base, x)
        if self.method == "most-likely":
            return x + towards(x)
        start = torch.where(given, base, a * x)
        report = sampler(denoiser, context, draws, {FIELD: base}, start={FIELD: start},
                         begin=float(t))  # fmt: skip
        return report.state[FIELD]
