r"""The loop that every sample comes from: one denoiser call a step, one stepper a field.

    for interval i = (start, end) of the plan:
        x_f = renoise_f(x_f)             for every field f, where start lies above the last end
        D = denoiser(x, start)
        x_f = stepper_f(i, x_f, D_f)     for every field f

Continuous fields take a multistep, Heun or ancestral stepper, token fields the Markov jumps of
their corruption, all from the same estimate D and on one shared clock. Given elements never move.

Restarts (Xu et al. 2023) noise the finished sample up again and denoise it anew, which mends errors
made on the way: those of earlier steps are contracted, and the network sees what it saw in
training. The noise of a restart is that of the path, with its coupling; here all fields restart
together, and a restart begins from the clean sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.paths import CategoricalPath, GaussianPath, Path
from sciflow.random import Draws
from sciflow.samplers.grids import GRIDS, time_grid
from sciflow.samplers.methods import METHODS, stepper_of
from sciflow.samplers.plan import Plan
from sciflow.state import Context, State

__all__ = ["Sampler", "SamplerReport"]


@dataclass(frozen=True)
class SamplerReport:
    """What a run produced.

    Attributes:
        state: the clean fields.
        calls: evaluations of the denoiser.
        broken: bool ``[B]``, samples in which a value became NaN or infinite; their fields must not
            be used.
        where: for the first broken sample, "step …, field …, sample …, seed …"; else empty.
        reasons: the same for every broken row of the batch.
    """

    state: State
    calls: int
    broken: Tensor
    where: str = ""
    reasons: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sampler:
    """How to integrate; plain data, so it can be saved with a model.

    Attributes:
        steps: network calls in all (methods of two calls a step use an odd number of them).
        method: how continuous fields move, a name in :data:`~sciflow.samplers.methods.METHODS`.
        grid: uniform-u, uniform-logsnr, karras or time; set by the first continuous field.
        eta: fresh noise of ``ddim``.
        token_eta: how often absorbing tokens are masked again.
        temperature: of token draws.
        greedy: end with the most probable tokens.
        logsnr_last: log(a/s) of the last call before the final denoising.
        restarts: how often the finished sample is noised up and denoised again.
        restart_time: to what time of the shared clock.
        restart_share: the part of ``steps`` that each restart takes, rounded down; where that is
            no call at all there are no restarts.
    """

    steps: int = 50
    method: str = "ab2"
    grid: str = "uniform-u"
    eta: float = 0.0
    token_eta: float = 0.0
    temperature: float = 1.0
    greedy: bool = True
    logsnr_last: float = 5.0
    restarts: int = 0
    restart_time: float = 0.1
    restart_share: float = 0.2

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"unknown method {self.method!r}; known: {', '.join(METHODS)}")
        if self.grid not in GRIDS:
            raise InputError(f"unknown time grid {self.grid!r}; known: {', '.join(GRIDS)}")
        if self.steps < 1:
            raise InputError(f"a sampler needs at least 1 network call, not {self.steps}")
        if not self.eta >= 0:
            raise InputError(f"eta must be 0 (no fresh noise) or more, not {self.eta}")
        if not 0 <= self.token_eta <= 1:
            raise InputError(f"token_eta must lie between 0 and 1, not {self.token_eta}")
        if not self.temperature > 0:
            raise InputError(
                f"temperature must be above 0, not {self.temperature}; a small one gives the most "
                "probable tokens"
            )
        if self.restarts < 0:
            raise InputError(f"restarts must be 0 or more, not {self.restarts}")
        if not 0 < self.restart_time <= 1:
            raise InputError(f"restart_time must be above 0 and at most 1, not {self.restart_time}")
        if not (self.restart_share >= 0 and self.restarts * self.restart_share < 1):
            raise InputError(
                f"{self.restarts} restarts of {self.restart_share:g} of the calls each leave "
                "none for the first pass; ask for fewer or a smaller restart_share"
            )

    def config(self) -> dict[str, Any]:
        """Plain data; ``Sampler(**config)`` gives it back."""
        return asdict(self)

    def plan(self, denoiser: Denoiser, begin: float = 1.0) -> Plan:
        """The intervals of a run, one network call each.

        Args:
            denoiser: its first continuous field sets the pace of the grid.
            begin: the time of the shared clock to begin at.
        """
        again = int(self.steps * self.restart_share + 1e-9) if self.restarts else 0
        plan = self._pass(denoiser, self.steps - self.restarts * again, begin)
        for _ in range(self.restarts if again else 0):
            plan = plan.then(self._pass(denoiser, again, min(self.restart_time, begin)))
        return plan

    def _pass(self, denoiser: Denoiser, calls: int, begin: float) -> Plan:
        paths = list(denoiser.paths.values())
        pace = next((p for p in paths if isinstance(p, GaussianPath)), paths[0])
        kind = self.grid if isinstance(pace, GaussianPath) else "time"
        twice = METHODS[self.method].doubled
        steps = (calls + 1) // 2 if twice else calls
        grid = time_grid(kind, pace.schedule, steps, logsnr_last=self.logsnr_last, begin=begin)
        return Plan.along(grid).doubled() if twice else Plan.along(grid)

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoiser,
        context: Context,
        draws: Draws,
        given: dict[str, Tensor] | None = None,
        dtype: torch.dtype | None = None,
        progress: Callable[[int, int], None] | None = None,
        start: Mapping[str, Tensor] | None = None,
        begin: float = 1.0,
    ) -> SamplerReport:
        """Sample a batch.

        Args:
            denoiser: the model, guided or not.
            context: masks, conditions; ``context.given`` marks elements whose value is ``given``.
            draws: random numbers; sample i depends on (seed, ``draws.samples[i]``) alone.
            given: values of given elements, ``{field: [B, ...]}``.
            dtype: of continuous fields; default torch's.
            progress: called with (calls done, calls in all).
            start: the fields at time ``begin``; default a draw of the prior.
            begin: where on the shared clock to begin.

        Raises:
            InputError: the values of given elements and their marks in the context do not fit.
        """
        _check_given(given or {}, context, denoiser.paths)
        dtype = dtype or torch.get_default_dtype()
        plan = self.plan(denoiser, begin)
        paths = denoiser.paths
        if start is None:
            start = {f: p.prior(context, draws, f"{f}/prior", dtype) for f, p in paths.items()}
        state = _keep_given(State(dict(start), context), given, paths)
        steppers = {f: stepper_of(f, p, plan, self) for f, p in paths.items()}
        reasons: dict[int, str] = {}
        previous: Prediction | None = None
        n, last = len(plan), begin
        for i, (t, end) in enumerate(plan):
            if i and t > last:
                state = State(
                    {f: p.renoise(state[f], last, t, context, draws, f"{f}/renoise", i)
                     for f, p in paths.items()},
                    context,
                )  # fmt: skip
                state = _keep_given(state, given, paths)
            last = end
            prediction = denoiser(state, t, previous)
            state = State(
                {f: steppers[f].step(i, state[f], prediction[f], context, draws) for f in paths},
                context,
            )
            state = _keep_given(state, given, paths)
            previous = prediction
            _find_broken(reasons, state, prediction, paths, i, t, draws)
            if progress is not None:
                progress(i + 1, n)
        fields = {f: paths[f].space.project(state[f], context) for f in paths}
        broken = torch.zeros(len(context), dtype=torch.bool, device=state.device)
        broken[list(reasons)] = True
        where = next(iter(reasons.values()), "")
        return SamplerReport(State(fields, context), n, broken, where, reasons)


def _check_given(given: Mapping[str, Tensor], context: Context, paths: Mapping[str, Path]) -> None:
    marked = {name for name, mask in context.given.items() if bool(mask.any())}
    unknown = sorted((set(given) | marked) - set(paths))
    if unknown:
        raise InputError(f"elements of {unknown[0]!r} are given; fields: {', '.join(paths)}")
    if marked - set(given):
        raise InputError(
            f"the values of given elements of {sorted(marked - set(given))} are missing"
        )
    if set(given) - set(context.given):
        unmarked = sorted(set(given) - set(context.given))
        raise InputError(f"context.given does not mark which elements of {unmarked} are given")


def _keep_given(
    state: State, given: Mapping[str, Tensor] | None, paths: Mapping[str, Path]
) -> State:
    if not given:
        return state
    fields = dict(state.fields)
    for name, value in given.items():
        mask = paths[name].space.expand(state.context.given[name], fields[name])
        fields[name] = torch.where(mask, value.to(fields[name].dtype), fields[name])
    return State(fields, state.context)


def _find_broken(
    reasons: dict[int, str],
    state: State,
    prediction: Prediction,
    paths: Mapping[str, Path],
    i: int,
    t: float,
    draws: Draws,
) -> None:
    """Add to ``reasons`` the rows that are broken since this step."""
    for name, path in paths.items():
        # A symbol is always finite; what it was drawn from may not be.
        x = prediction[name] if isinstance(path, CategoricalPath) else state[name]
        # A sum is not finite exactly when a term is not (or overflows, which is as bad): one pass.
        if bool(x.sum().isfinite()):
            continue
        bad = x.isnan() | x.isposinf()
        if not isinstance(path, CategoricalPath):
            bad = bad | x.isneginf()
        bad = bad & path.space.expand(path.space.mask(state.context), bad)
        for row in bad.flatten(1).any(1).nonzero().flatten().tolist():
            number = int(draws.samples[row])
            reasons.setdefault(
                row, f"step {i} (t = {t:.4g}), field {name}, sample {number}, seed {draws.seed}"
            )
