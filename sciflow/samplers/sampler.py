r"""The loop that every sample comes from: one denoiser call a step, one stepper a field.

    for interval i = (start, end) of the plan:
        x_f = renoise_f(x_f)             for every field f, where start lies above the last end
        D = denoiser(x, start)
        x_f = stepper_f(i, x_f, D_f)     for every field f

with two places at which a run may be reached into (:mod:`sciflow.samplers.hooks`).
Continuous fields take a multistep, Heun or ancestral stepper, token fields the Markov jumps of
their corruption, all from the same estimate D and on one shared clock. Given elements never move.

Restarts (Xu et al. 2023) noise the sample up again and denoise it anew, which mends errors made on
the way: those of earlier steps are contracted, and the network sees what it saw in training. All
fields restart together, from ``restart_low`` up to ``restart_time``: in mid-trajectory, as
published, or (0, the default) from the clean sample, whose noise is that of the path with its
coupling. Churn (Karras et al. 2022) is the same in small, before every step
(:mod:`sciflow.samplers.churn`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.paths import CategoricalPath, GaussianPath, Path
from sciflow.random import Draws
from sciflow.samplers.finite import Watch
from sciflow.samplers.hooks import After, Select, Step, hook_of
from sciflow.samplers.methods import stepper_of
from sciflow.samplers.passes import plan_of
from sciflow.samplers.plan import Plan
from sciflow.samplers.settings import SamplerSettings
from sciflow.samplers.steppers import Stepper
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
class Sampler(SamplerSettings):
    """How to integrate; plain data, so it can be saved with a model.

    Its settings are those of :class:`~sciflow.samplers.settings.SamplerSettings`.
    """

    def plan(self, denoiser: Denoiser, begin: float = 1.0) -> Plan:
        """The intervals of a run, one network call each.

        Args:
            denoiser: its first continuous field sets the pace of the grid.
            begin: the time of the shared clock to begin at.
        """
        return plan_of(self, denoiser.paths, begin)

    def prior(self, denoiser: Denoiser, context: Context, draws: Draws,
              dtype: torch.dtype | None = None, scales: Tensor | None = None
              ) -> dict[str, Tensor]:  # fmt: skip
        """What a run starts from, by ``prior_scale``.

        Args:
            denoiser: whose fields.
            context: masks, conditions.
            draws: those of the run.
            dtype: of continuous fields; default torch's.
            scales: one more factor a sample on the noise of Gaussian fields, ``[B]``: where some
                samples are to spread wider than others.
        """
        dtype = dtype or torch.get_default_dtype()
        start = {}
        for name, path in denoiser.paths.items():
            x = path.prior(context, draws, f"{name}/prior", dtype)
            if isinstance(path, GaussianPath) and not (self.prior_scale == 1 and scales is None):
                mean, _ = path.prior_moments(context, x)
                noise = self.prior_scale * (x - mean)
                if scales is not None:
                    noise = scales.to(x).reshape(-1, *[1] * (x.ndim - 1)) * noise
                x = mean + noise
            start[name] = x
        return start

    def _renoise(self, path: Path, x: Tensor, s: float, t: float, context: Context, draws: Draws,
                 stream: str, step: int) -> Tensor:  # fmt: skip
        if self.churn_noise != 1 and isinstance(path, GaussianPath):
            return path.renoise(x, s, t, context, draws, stream, step, self.churn_noise)
        return path.renoise(x, s, t, context, draws, stream, step)

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
        steppers: Mapping[str, Callable[[Path, Plan], Stepper]] | None = None,
        select: Select | None = None,
        after: After | None = None,
        differentiable: bool = False,
    ) -> SamplerReport:
        """Sample a batch.

        Args:
            denoiser: the model, guided or not.
            context: masks, conditions; ``context.given`` marks elements whose value is ``given``.
            draws: random numbers; sample i depends on (seed, ``draws.samples[i]``) alone.
            given: values of given elements, ``{field: [B, ...]}``.
            dtype: of continuous fields; default torch's.
            progress: called with (calls done, calls in all).
            start: the fields at time ``begin``; default :meth:`prior`.
            begin: where on the shared clock to begin.
            steppers: what makes the stepper of a field in place of ``method``, for solvers with
                more than settings to them (:mod:`sciflow.samplers.dpm_solver_v3`). The plan is
                still that of ``method``; keep one object, its coefficients are remembered.
            select: which rows go on, after every call; see :mod:`sciflow.samplers.hooks`.
            after: moves the state after every step, and after the ``after_step`` of a denoiser
                that has one.
            differentiable: keep the graph of gradients, where they are enabled. Memory grows with
                the calls; :func:`~sciflow.guidance.editing.differentiable.differentiable_sample`
                keeps it small.

        Raises:
            InputError: the values of given elements and their marks in the context do not fit, or
                a stepper is for a field that does not exist.
        """
        with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
            paths = denoiser.paths
            if given or context.given:
                _check_given(given or {}, context, paths)
            if unknown := sorted(set(steppers or {}) - set(paths)):
                raise InputError(f"a stepper is for {unknown[0]!r}; fields: {', '.join(paths)}")
            if self.cache:
                _check_cache(denoiser)
            if start is None:
                start = self.prior(denoiser, context, draws, dtype)
            state = _keep_given(State(dict(start), context), given, paths)
            makers = tuple((steppers or {}).items())
            intervals, prepared = _prepared(self, begin, tuple(paths.items()), makers)
            # A run's history is in its own copy.
            moving = {f: copy(stepper) for f, stepper in prepared.items()}
            moves = [(f, stepper.step) for f, stepper in moving.items()]
            hooks = [h for h in (hook_of(denoiser), after) if h is not None]
            # Whoever else moves the state might mend it, too.
            lasting = not hooks and select is None and all(s.keeps_broken for s in moving.values())
            watch = Watch(paths, state, draws, lasting)
            # A symbol is always finite; what it was drawn from may not be.
            tokens = [f for f, p in paths.items() if isinstance(p, CategoricalPath)]
            previous: Prediction | None = None
            last, calls, seen = begin, 0, state
            for i, (t, end) in enumerate(intervals):
                if i and t > last:
                    noisy = {f: self._renoise(p, state[f], last, t, context, draws, f"{f}/renoise",
                                              i) for f, p in paths.items()}  # fmt: skip
                    state = _keep_given(State(noisy, context), given, paths)
                last = end
                if previous is None or not (self.cache and _same(state, seen)):
                    prediction, calls = denoiser(state, t, previous), calls + 1
                if select is not None and (rows := select(i, t, state, prediction)) is not None:
                    state = State({f: x[rows] for f, x in state.items()}, context)
                    prediction = prediction.index(rows)
                    for stepper in moving.values():
                        stepper.take(rows)
                seen, x, clean = state, state.fields, prediction.clean
                state = State(
                    {f: step(i, x[f], clean[f], context, draws) for f, step in moves}, context
                )
                for hook in hooks:
                    state = hook(Step(i, t, end, seen, prediction, state))
                if given:
                    state = _keep_given(state, given, paths)
                previous = prediction
                shown = state.fields
                if tokens:
                    shown = {**shown, **{f: clean[f] for f in tokens}}
                watch.show(i, t, shown)
                if progress is not None:
                    progress(i + 1, len(intervals))
            watch.look()
            fields = {f: p.space.project(state[f], context) for f, p in paths.items()}
        broken = torch.zeros(len(context), dtype=torch.bool, device=state.device)
        if watch.reasons:
            broken[list(watch.reasons)] = True
        where = next(iter(watch.reasons.values()), "")
        return SamplerReport(State(fields, context), calls, broken, where, watch.reasons)


@lru_cache(maxsize=16)
def _prepared(
    settings: Sampler,
    begin: float,
    fields: tuple[tuple[str, Path], ...],
    makers: tuple[tuple[str, Callable[[Path, Plan], Stepper]], ...],
) -> tuple[list[tuple[float, float]], dict[str, Stepper]]:
    """The plan's intervals and the steppers' coefficients, which batch after batch share.

    They cost milliseconds. A path is its own key: its schedule is not changed but replaced by
    :meth:`~sciflow.paths.Path.with_schedule`, which makes another path.
    """
    plan = plan_of(settings, dict(fields), begin)
    own = dict(makers)
    return list(plan), {
        name: own[name](path, plan) if name in own else stepper_of(name, path, plan, settings)
        for name, path in fields
    }


def _check_cache(denoiser: Denoiser) -> None:
    for name, path in denoiser.paths.items():
        if not (isinstance(path, CategoricalPath) and path.kind == "absorbing"):
            raise InputError(
                f"cache keeps estimates of absorbing tokens, and field {name!r} is something else; "
                "set cache to False"
            )
    if getattr(denoiser, "self_conditioning", False):
        raise InputError(
            "a self-conditioned denoiser answers anew at every call; set cache to False"
        )


def _same(a: State, b: State) -> bool:
    return all(torch.equal(x, b[f]) for f, x in a.items())


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
