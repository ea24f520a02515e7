r"""The loop that every sample comes from: one denoiser call a step, one stepper a field.

    for i in 0 … n − 1:
        D = denoiser(x, t_i)
        x_f = stepper_f(i, x_f, D_f)     for every field f

Continuous fields take a multistep, Heun or ancestral stepper, token fields the Markov jumps of
their corruption, all from the same estimate D and on one shared clock. Given elements never move.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.paths import CategoricalPath, GaussianPath, Path
from sciflow.random import Draws
from sciflow.samplers.ancestral import Ancestral
from sciflow.samplers.discrete import MarkovJumps
from sciflow.samplers.grids import GRIDS, time_grid
from sciflow.samplers.heun import Heun, doubled
from sciflow.samplers.multistep import AdamsBashforth
from sciflow.samplers.steppers import Stepper
from sciflow.state import Context, State

__all__ = ["METHODS", "Method", "Sampler", "SamplerReport"]

Method = Literal["ab1", "ab2", "ab3", "heun", "ddim", "ddpm"]
METHODS = get_args(Method)


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
        steps: network calls (``heun`` uses an odd number: two a step, one for the last).
        method: ab1, ab2, ab3 (velocity Adams–Bashforth), heun, ddim (any η) or ddpm (η = 1).
        grid: uniform-u, uniform-logsnr, karras or time; set by the first continuous field.
        eta: fresh noise of ``ddim``.
        token_eta: how often absorbing tokens are masked again.
        temperature: of token draws.
        greedy: end with the most probable tokens.
        logsnr_last: log(a/s) of the last call before the final denoising.
    """

    steps: int = 50
    method: Method = "ab2"
    grid: str = "uniform-u"
    eta: float = 0.0
    token_eta: float = 0.0
    temperature: float = 1.0
    greedy: bool = True
    logsnr_last: float = 5.0

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

    def config(self) -> dict[str, Any]:
        """Plain data; ``Sampler(**config)`` gives it back."""
        return asdict(self)

    def times(self, denoiser: Denoiser) -> Tensor:
        """The grid: one entry a network call, and the final 0."""
        paths = list(denoiser.paths.values())
        pace = next((p for p in paths if isinstance(p, GaussianPath)), paths[0])
        kind = self.grid if isinstance(pace, GaussianPath) else "time"
        if self.method == "heun":
            return doubled(time_grid(kind, pace.schedule, (self.steps + 1) // 2,
                                     logsnr_last=self.logsnr_last))  # fmt: skip
        return time_grid(kind, pace.schedule, self.steps, logsnr_last=self.logsnr_last)

    def stepper(self, name: str, path: Path, times: Tensor) -> Stepper:
        """The stepper of one field."""
        if isinstance(path, CategoricalPath):
            return MarkovJumps(
                path, times, self.token_eta, self.temperature, self.greedy, stream=name
            )
        if not isinstance(path, GaussianPath):
            raise TypeError(f"no stepper for the path of field {name!r}: {type(path).__name__}")
        match self.method:
            case "heun":
                return Heun(path, times)
            case "ddim" | "ddpm":
                return Ancestral(path, times, 1.0 if self.method == "ddpm" else self.eta, name)
            case _:
                return AdamsBashforth(path, times, order=int(self.method[-1]))

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoiser,
        context: Context,
        draws: Draws,
        given: dict[str, Tensor] | None = None,
        dtype: torch.dtype | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> SamplerReport:
        """Sample a batch.

        Args:
            denoiser: the model, guided or not.
            context: masks, conditions; ``context.given`` marks elements whose value is ``given``.
            draws: random numbers; sample i depends on (seed, ``draws.samples[i]``) alone.
            given: values of given elements, ``{field: [B, ...]}``.
            dtype: of continuous fields; default torch's.
            progress: called with (calls done, calls in all).

        Raises:
            InputError: the values of given elements and their marks in the context do not fit.
        """
        _check_given(given or {}, context, denoiser.paths)
        dtype = dtype or torch.get_default_dtype()
        times = self.times(denoiser)
        paths = denoiser.paths
        state = State(
            {f: p.prior(context, draws, f"{f}/prior", dtype) for f, p in paths.items()}, context
        )
        state = _keep_given(state, given, paths)
        steppers = {f: self.stepper(f, p, times) for f, p in paths.items()}
        reasons: dict[int, str] = {}
        previous: Prediction | None = None
        n = len(times) - 1
        clock = times.tolist()
        for i in range(n):
            prediction = denoiser(state, clock[i], previous)
            state = State(
                {f: steppers[f].step(i, state[f], prediction[f], context, draws) for f in paths},
                context,
            )
            state = _keep_given(state, given, paths)
            previous = prediction
            _find_broken(reasons, state, prediction, paths, i, clock[i], draws)
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
