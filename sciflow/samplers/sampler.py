r"""The loop that every sample comes from: one denoiser call a step, one stepper a field.

    for interval i = (start, end) of the plan:
        x_f = renoise_f(x_f)             for every field f, where start lies above the last end
        D = denoiser(x, start)
        x_f = stepper_f(i, x_f, D_f)     for every field f

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

import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.paths import CategoricalPath, GaussianPath, Path
from sciflow.random import Draws
from sciflow.samplers.churn import churned
from sciflow.samplers.discrete import TokenMethod
from sciflow.samplers.grids import GRIDS, check_times, given_times, time_grid
from sciflow.samplers.interpolant_sde import Diffusion
from sciflow.samplers.methods import METHODS, stepper_of
from sciflow.samplers.plan import Plan
from sciflow.samplers.predictor_corrector import LARGEST_RATIO
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
class Sampler:
    """How to integrate; plain data, so it can be saved with a model.

    Attributes:
        steps: network calls in all (methods of two calls a step use an odd number of them).
        method: how continuous fields move, a name in :data:`~sciflow.samplers.methods.METHODS`.
        grid: power-u, uniform-u, uniform-logsnr, karras or time, on the schedule of the first
            continuous field; or the list of the times of the calls, as many as ``steps``.
        extrapolate: the last step of ``ab`` and ``reab`` methods too uses earlier estimates, not
            the last alone: nearer to the exact flow from about ten calls on, where the denoiser is
            smooth; the last estimate of a network is cleaner.
        eta: fresh noise of ``ddim``, ``dpmpp2m``, ``dpmpp3m`` and ``pc``.
        diffusion: w(t) of ``sde``; see :mod:`sciflow.samplers.interpolant_sde`.
        diffusion_scale: of w; 0 is the probability-flow ODE.
        langevin_ratio: signal to noise of a Langevin step of ``pc``, 0 to √½.
        token_eta: how often absorbing tokens are masked again.
        token_method: how tokens move; see :mod:`sciflow.samplers.discrete`.
        temperature: of token draws.
        greedy: end with the most probable tokens.
        cache: keep the estimate while no token of the batch has changed (Sahoo et al. 2024): the
            same samples from fewer calls. For states of absorbing tokens only, and denoisers whose
            answer depends neither on the time nor on their last answer.
        logsnr_last: log(a/s) of the last call before the final denoising.
        restarts: how often the sample is noised up and denoised again.
        restart_time: to what time of the shared clock.
        restart_low: from what time on; 0 is the finished sample.
        restart_share: the part of ``steps`` that each restart takes, rounded down; where that is
            no call at all there are no restarts.
        churn: S_churn, how much the noise is raised before the steps of a pass in all.
        churn_min: S_tmin, the least noise level s/a that is raised.
        churn_max: S_tmax, the largest; ``None`` is no bound.
        churn_noise: S_noise, a factor on the noise of churn, and of restarts from above 0.
    """

    steps: int = 50
    method: str = "ab3"
    grid: str | Sequence[float] = "power-u"
    extrapolate: bool = False
    eta: float = 0.0
    diffusion: Diffusion = "sigma"
    diffusion_scale: float = 1.0
    langevin_ratio: float = 0.16
    token_eta: float = 0.0
    token_method: TokenMethod = "ancestral"
    temperature: float = 1.0
    greedy: bool = True
    cache: bool = False
    logsnr_last: float = 5.0
    restarts: int = 0
    restart_time: float = 0.1
    restart_low: float = 0.0
    restart_share: float = 0.2
    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float | None = None
    churn_noise: float = 1.0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"unknown method {self.method!r}; known: {', '.join(METHODS)}")
        if not isinstance(self.grid, str):
            # A tuple: samplers are compared and hashed.
            object.__setattr__(self, "grid", check_times(self.grid))
            if self.restarts:
                raise InputError("restarts need a named grid, not a list of times")
        elif self.grid not in GRIDS:
            raise InputError(f"unknown time grid {self.grid!r}; known: {', '.join(GRIDS)}")
        if self.steps < 1:
            raise InputError(f"a sampler needs at least 1 network call, not {self.steps}")
        if self.extrapolate and not self.method.startswith(("ab", "reab")):
            raise InputError(
                f"extrapolate is of the methods ab1 to ab3 and reab1 to reab3, not {self.method!r}"
            )
        if not self.eta >= 0:
            raise InputError(f"eta must be 0 (no fresh noise) or more, not {self.eta}")
        if self.diffusion not in get_args(Diffusion):
            raise InputError(
                f"unknown diffusion {self.diffusion!r}; known: {', '.join(get_args(Diffusion))}"
            )
        if not self.diffusion_scale >= 0:
            raise InputError(
                f"diffusion_scale must be 0 (no fresh noise) or more, not {self.diffusion_scale}"
            )
        if not 0 <= self.langevin_ratio <= LARGEST_RATIO:
            raise InputError(
                "langevin_ratio must lie between 0 (no Langevin steps) and sqrt(1/2), where all "
                f"noise is drawn anew, not {self.langevin_ratio}"
            )
        if not 0 <= self.token_eta <= 1:
            raise InputError(f"token_eta must lie between 0 and 1, not {self.token_eta}")
        if self.token_method not in get_args(TokenMethod):
            raise InputError(
                f"unknown token method {self.token_method!r}; "
                f"known: {', '.join(get_args(TokenMethod))}"
            )
        if not self.temperature > 0:
            raise InputError(
                f"temperature must be above 0, not {self.temperature}; a small one gives the most "
                "probable tokens"
            )
        if self.restarts < 0:
            raise InputError(f"restarts must be 0 or more, not {self.restarts}")
        if not 0 < self.restart_time <= 1:
            raise InputError(f"restart_time must be above 0 and at most 1, not {self.restart_time}")
        if not 0 <= self.restart_low < self.restart_time:
            raise InputError(
                "a restart goes up: restart_low must be 0 or more and below restart_time "
                f"({self.restart_time:g}), not {self.restart_low}"
            )
        if not (self.restart_share >= 0 and self.restarts * self.restart_share < 1):
            raise InputError(
                f"{self.restarts} restarts of {self.restart_share:g} of the calls each leave "
                "none for the first pass; ask for fewer or a smaller restart_share"
            )
        if not self.churn >= 0:
            raise InputError(f"churn must be 0 (none) or more, not {self.churn}")
        if not 0 <= self.churn_min < (math.inf if self.churn_max is None else self.churn_max):
            raise InputError(
                "churn is for noise levels from churn_min, at least 0, to a larger churn_max, not "
                f"from {self.churn_min} to {self.churn_max}"
            )
        if not self.churn_noise > 0:
            raise InputError(f"churn_noise must be above 0, not {self.churn_noise}")

    def config(self) -> dict[str, Any]:
        """Plain data; ``Sampler(**config)`` gives it back."""
        return asdict(self)

    def plan(self, denoiser: Denoiser, begin: float = 1.0) -> Plan:
        """The intervals of a run, one network call each.

        Args:
            denoiser: its first continuous field sets the pace of the grid.
            begin: the time of the shared clock to begin at.
        """
        return self._plan(denoiser.paths, begin)

    def _plan(self, paths: Mapping[str, Path], begin: float) -> Plan:
        again = int(self.steps * self.restart_share + 1e-9) if self.restarts else 0
        low, high = self.restart_low, min(self.restart_time, begin)
        if low < high and (part := self._pass(paths, again, high, low)):
            left = self.steps - self.restarts * len(part)
            if plan := self._pass(paths, left, begin, through=low):
                return plan.restarted(part, self.restarts)
        return self._pass(paths, self.steps, begin)

    def _pass(
        self, paths: Mapping[str, Path], calls: int, begin: float, end: float = 0.0,
        through: float = 0.0,
    ) -> Plan:  # fmt: skip
        """One way down in ``calls`` calls; empty if those are too few to end or pass there."""
        every = list(paths.values())
        pace = next((p for p in every if isinstance(p, GaussianPath)), every[0])
        twice = METHODS[self.method].doubled
        steps = (calls + (end == 0)) // 2 if twice else calls
        if steps < 1 + (through > 0):
            return Plan.along(torch.zeros(1))
        if end > 0:
            times = _down_to(end, self._times(pace, 1000, begin, logsnr_last=5.0), steps)
        else:
            times = self._times(pace, steps, begin, self.logsnr_last)
        if through > 0:
            times[1:-1][(times[1:-1] - through).abs().argmin()] = through
        plan = Plan.along(times)
        if self.churn > 0:
            plan = churned(plan, pace.schedule, self.churn, self.churn_min, self.churn_max)
        return plan.doubled() if twice else plan

    def _times(self, pace: Path, n: int, begin: float, logsnr_last: float) -> Tensor:
        if not isinstance(self.grid, str):
            return given_times(self.grid, n, begin)
        if not isinstance(pace, GaussianPath):
            return time_grid("time", pace.schedule, n, logsnr_last=logsnr_last, begin=begin)
        return time_grid(self.grid, pace.schedule, n, logsnr_last=logsnr_last, begin=begin,
                         data_std=pace.data_std)  # fmt: skip

    def _renoise(self, path: Path, x: Tensor, s: float, t: float, context: Context, draws: Draws,
                 stream: str, step: int) -> Tensor:  # fmt: skip
        if self.churn_noise != 1 and isinstance(path, GaussianPath):
            return path.renoise(x, s, t, context, draws, stream, step, self.churn_noise)
        return path.renoise(x, s, t, context, draws, stream, step)

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
        paths = denoiser.paths
        plan, prepared = _prepared(self, begin, tuple(paths.items()))
        if self.cache:
            _check_cache(denoiser)
        if start is None:
            start = {f: p.prior(context, draws, f"{f}/prior", dtype) for f, p in paths.items()}
        state = _keep_given(State(dict(start), context), given, paths)
        # A run's history is in its own copy.
        steppers = {f: copy(stepper) for f, stepper in prepared.items()}
        reasons: dict[int, str] = {}
        previous: Prediction | None = None
        n, last, calls, seen = len(plan), begin, 0, state
        for i, (t, end) in enumerate(plan):
            if i and t > last:
                state = State(
                    {f: self._renoise(p, state[f], last, t, context, draws, f"{f}/renoise", i)
                     for f, p in paths.items()},
                    context,
                )  # fmt: skip
                state = _keep_given(state, given, paths)
            last = end
            if previous is None or not (self.cache and _same(state, seen)):
                prediction, calls = denoiser(state, t, previous), calls + 1
            seen = state
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
        return SamplerReport(State(fields, context), calls, broken, where, reasons)


@lru_cache(maxsize=16)
def _prepared(
    settings: Sampler, begin: float, fields: tuple[tuple[str, Path], ...]
) -> tuple[Plan, dict[str, Stepper]]:
    """The plan and the steppers' coefficients, which batch after batch share.

    They cost milliseconds. A path is its own key: its schedule is not changed but replaced by
    :meth:`~sciflow.paths.Path.with_schedule`, which makes another path.
    """
    plan = settings._plan(dict(fields), begin)
    return plan, {name: stepper_of(name, path, plan, settings) for name, path in fields}


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


def _down_to(end: float, fine: Tensor, n: int) -> Tensor:
    """n + 1 times to ``end``, spaced as the falling grid ``fine`` is."""
    place = np.interp(-end, -fine.numpy(), np.arange(len(fine)))
    times = np.interp(np.linspace(0, place, n + 1), np.arange(len(fine)), fine.numpy())
    times[-1] = end
    return torch.from_numpy(times)


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
        if math.isfinite(x.sum().item()):
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
