r"""The loop that every sample comes from: one denoiser call a step, one stepper a field.

    for i in 0 … n − 1:
        D = denoiser(x, t_i)
        x_f = stepper_f(i, x_f, D_f)     for every field f

Continuous fields take a multistep, Heun or ancestral stepper, token fields the Markov jumps of
their corruption, all from the same estimate D and on one shared clock. Given elements never move.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
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
        broken: bool ``[B]``, samples in which a value became NaN or infinite; their fields are
            what they were then, and must not be used.
        where: for the first broken sample, "step …, field …, sample …, seed …"; else empty.
    """

    state: State
    calls: int
    broken: Tensor
    where: str = ""


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
        """
        dtype = dtype or torch.get_default_dtype()
        times = self.times(denoiser)
        paths = denoiser.paths
        state = State(
            {f: p.prior(context, draws, f"{f}/prior", dtype) for f, p in paths.items()}, context
        )
        state = _keep_given(state, given, paths)
        steppers = {f: self.stepper(f, p, times) for f, p in paths.items()}
        broken = torch.zeros(len(context), dtype=torch.bool, device=state.device)
        where = ""
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
            broken, where = _find_broken(state, broken, where, i, clock[i], draws)
            if progress is not None:
                progress(i + 1, n)
        fields = {f: paths[f].space.project(state[f], context) for f in paths}
        return SamplerReport(State(fields, context), n, broken, where)


def _keep_given(state: State, given: dict[str, Tensor] | None, paths: Any) -> State:
    if not given:
        return state
    fields = dict(state.fields)
    for name, value in given.items():
        mask = paths[name].space.expand(state.context.given[name], fields[name])
        fields[name] = torch.where(mask, value.to(fields[name].dtype), fields[name])
    return State(fields, state.context)


def _find_broken(state: State, broken: Tensor, where: str, i: int, t: float,
                 draws: Draws) -> tuple[Tensor, str]:  # fmt: skip
    for name, x in state.fields.items():
        # A sum is not finite exactly when a term is not (or overflows, which is as bad): one pass.
        if not x.is_floating_point() or bool(x.sum().isfinite()):
            continue
        bad = ~x.flatten(1).isfinite().all(1)
        fresh = bad & ~broken
        if not where and bool(fresh.any()):
            row = int(fresh.nonzero()[0])
            where = (
                f"step {i} (t = {t:.4g}), field {name}, sample {int(draws.samples[row])}, "
                f"seed {draws.seed}"
            )
        broken = broken | bad
    return broken, where
