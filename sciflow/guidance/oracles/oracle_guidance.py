r"""Guidance of the clean estimate by an oracle that only answers.

At chosen calls the clean estimate is decoded, the oracle is asked, and the estimate is moved along
the direction g that an :class:`~sciflow.guidance.oracles.zeroth_order.Ascent` finds,

    step:       D ← D + w P(g)              mean guidance; P a preconditioner, e.g. H⁻¹,
    posterior:  D ← D + w (s²/a) C ∇ log p  w ∇log p the oracle's, e.g. −∇E with w = 1/kT,

``iterations`` times in a row, no element further than ``cap`` a time. The field follows its
estimate under any sampler, the other fields through it. Between calls the last displacement is
kept, and once a sample's budget is spent it goes on unguided. All lengths are the oracle's
(ångström), only D is in units of the field. w = 0 is the bare denoiser, bit for bit, without a call
of the oracle.

ChemGuide (Shen et al. 2025) is ``LeastSquares`` in step form at every call of a long run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.guidance.acting import check_interval, gaussian_path
from sciflow.guidance.oracles.black_box import Ledger, Oracle, OracleReport
from sciflow.guidance.oracles.zeroth_order import Ascent
from sciflow.paths import CategoricalPath
from sciflow.random import Draws
from sciflow.state import Context, State, Times, field_times

__all__ = ["SAMPLE", "OracleGuidance", "numbered"]

SAMPLE = "sample"
"""Entry of ``context.extras`` that numbers the samples of a run, int64 ``[B]``."""


def numbered(context: Context, draws: Draws) -> Context:
    """The context with the number of each sample, for guidance that draws."""
    return context.replace(extras={**context.extras, SAMPLE: draws.samples.to(context.mask.device)})


class OracleGuidance(Denoiser):
    """Moves the clean estimate of one field by the answers of an oracle.

    The first call of a run (``previous`` is ``None``) starts the budget, the count of calls and the
    kept displacements anew. Guidance by conditions belongs inside, or the oracle is asked twice.

    Args:
        denoiser: the model, guided otherwise or not.
        oracle: see :class:`~sciflow.guidance.oracles.black_box.Oracle`.
        ascent: how directions are got from it.
        field: the name of the Gaussian field that moves.
        strength: w ≥ 0.
        form: "step" or "posterior", see the module.
        interval: times (first, last) of the field between which guidance acts.
        every: ask at every so manieth call in the interval.
        iterations: moves at each of these, each with an estimate of its own.
        cap: the furthest that an element moves in one of them, in physical units.
        budget: calls of the oracle a sample may cost in a run; ``None`` for any number.
        precondition: ``(clean, direction) -> direction`` for each sample on its own, "step" only.
        seed: of random directions; the samples' numbers are ``context.extras["sample"]``, see
            :func:`numbered`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        oracle: Oracle,
        ascent: Ascent,
        field: str,
        strength: float = 1.0,
        *,
        form: Literal["step", "posterior"] = "step",
        interval: tuple[float, float] = (0.0, 1.0),
        every: int = 1,
        iterations: int = 1,
        cap: float = 0.1,
        budget: int | None = None,
        precondition: Callable[[State, Tensor], Tensor] | None = None,
        seed: int = 0,
    ):
        super().__init__()
        path = gaussian_path(denoiser, field, "an oracle moves")
        if not strength >= 0:
            raise InputError(f"guidance strength must be 0 (off) or more, not {strength}")
        if form not in ("step", "posterior"):
            raise InputError(f"form must be 'step' or 'posterior', not {form!r}")
        if form == "posterior" and precondition is not None:
            raise InputError(
                "a preconditioner is for form='step'; 'posterior' has s²/a in its place"
            )
        check_interval(interval)
        if every < 1 or iterations < 1 or not cap > 0 or (budget is not None and budget < 0):
            raise InputError(
                "every and iterations must be at least 1, cap above 0 and budget 0 or more, not "
                f"{every}, {iterations}, {cap} and {budget}"
            )
        self.denoiser, self.paths, self.path = denoiser, denoiser.paths, path
        self.oracle, self.ascent, self.field, self.strength = oracle, ascent, field, strength
        self.form, self.interval, self.every, self.iterations = form, interval, every, iterations
        self.cap, self.budget, self.precondition, self.seed = cap, budget, precondition, seed
        self.reset()

    def reset(self) -> None:
        """Forget all runs and their cost."""
        self._runs: list[Ledger] = []
        self._turn, self._kept = torch.zeros(0, dtype=torch.int64), torch.zeros(0)
        self._call = 0

    @property
    def report(self) -> OracleReport:
        """What the runs since :meth:`reset` cost."""
        none = [torch.zeros(0, dtype=torch.int64)]
        return OracleReport(
            torch.cat([run.calls for run in self._runs] or none),
            torch.cat([run.failures for run in self._runs] or none),
        )

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        """The model's estimate, moved where guidance acts."""
        prediction = self.denoiser(state, t, previous)
        if self.strength == 0:
            return prediction
        estimate = prediction[self.field].detach()
        if previous is None or not self._runs or self._kept.shape != estimate.shape:
            self._runs.append(Ledger(len(estimate), self.budget))
            self._turn = torch.zeros(len(estimate), dtype=torch.int64)
            self._kept = torch.zeros_like(estimate, dtype=torch.float64)
            self._call = 0
        self._call += 1
        times = field_times(t, state)[self.field]
        latest = times.flatten(1).amax(1) if times.ndim > 1 else times
        active = (latest >= self.interval[0]) & (latest <= self.interval[1])
        if not bool(active.any()):
            return prediction
        due = active.cpu() & (self._turn % self.every == 0)
        self._turn += active.cpu()
        rows = due.nonzero()[:, 0]
        if len(rows):
            self._kept[rows] = self._displacement(state, prediction, times, rows)
        # Given elements (time 0) stay, and samples that are not guided keep their bits.
        expand = self.path.space.expand
        moving = expand(active, estimate) & expand(times > 0, estimate) & (self._kept != 0)
        moved = (prediction[self.field].double() + self._kept).to(estimate.dtype)
        clean = torch.where(moving, moved, prediction[self.field])
        return Prediction({**prediction.clean, self.field: clean})

    def _displacement(
        self, state: State, prediction: Prediction, times: Tensor, rows: Tensor
    ) -> Tensor:
        """How far the estimates of some rows are to move, float64 in units of the field."""
        clean = self._clean(state, prediction).index(rows)
        begin, ledger, space = clean[self.field], self._runs[-1], self.path.space
        scale = self._scale(times[rows], begin)
        for i in range(self.iterations):
            paid = ledger.affords(self.ascent.cost)[rows].nonzero()[:, 0]
            if not len(paid):
                break
            part = clean.index(paid)
            draws = self._draws(part) if self.ascent.random else None
            call = self._call * self.iterations + i
            found = self.ascent(self.oracle, part, self.field, space, draws, call)
            ledger.charge(rows[paid], found.calls, found.failures)
            g = found.direction
            if self.precondition is not None:
                g = self.precondition(part, g)
            move = self._capped(scale[paid] * g, part.context) / self.oracle.unit
            x = clean[self.field].clone()
            x[paid] = space.project(x[paid] + move, part.context)
            clean = clean.replace(**{self.field: x})
        return clean[self.field] - begin

    def _scale(self, times: Tensor, x: Tensor) -> Tensor:
        """What multiplies a direction per physical length to give a physical length."""
        w = torch.full_like(times, self.strength, dtype=torch.float64)
        if self.form == "posterior":
            a, s = self.path.schedule(times.double())
            w = w * self.oracle.unit**2 * s**2 / a.clamp(min=1e-9)
        return self.path.space.expand(w, x).expand(x.shape)

    def _capped(self, move: Tensor, context: Context) -> Tensor:
        """Each sample's move, shrunk as a whole so that no element goes further than the cap."""
        elements = self.path.space.mask(context).ndim
        size = (move**2).flatten(elements).sum(-1) if move.ndim > elements else move**2
        longest = size.flatten(1).amax(1).sqrt()
        shrink = (self.cap / longest.clamp(min=1e-300)).clamp(max=1)
        return move * self.path.space.expand(shrink, move)

    def _clean(self, state: State, prediction: Prediction) -> State:
        """The estimate as data: means in float64, the likeliest symbols."""
        fields = {}
        for name, path in self.paths.items():
            x = prediction[name].detach()
            tokens = isinstance(path, CategoricalPath)
            x = x.argmax(-1) if tokens else x.double()
            fields[name] = path.space.project(x, state.context)
        return State(fields, state.context)

    def _draws(self, part: State) -> Draws:
        if SAMPLE not in part.context.extras:
            raise InputError(
                f"random directions need the samples' numbers, context.extras[{SAMPLE!r}]; make "
                "the context with sciflow.guidance.numbered(context, draws)"
            )
        return Draws(self.seed, part.context.extras[SAMPLE].cpu())
