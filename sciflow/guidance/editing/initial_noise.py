r"""Choosing the noise that a sample comes from: refined by guidance, or optimised for an energy.

**Refinement** (noise level guidance; Mannering et al. 2025). Before the first step x_T is moved to
where the guided and the unguided model differ in favour of the guided one,

    x_T ← x_T + η clip(D − D_weak),      then a little fresh noise, then |x_T| as it was drawn.

By Tweedie (a/s²)(D_c − D_∅) = C ∇ log p(c | x_T): noise is chosen in which the condition is already
visible. Written with D, not with ε = (x − a D)/s, the step also exists where a(1) = 0. The paper
sets |x_T| = √d; its own norm is the same in many dimensions, and has the right law in few.

**Optimisation** (Novack et al. 2024, DITTO). x_T is changed by gradients through the whole sampler,

    max  log f(x_0(x_T)) + w log p(r)/p(r*),    r = |x_T|,   log p(r) = (d − 1) log r − r²/2 + …,

with few steps (one or two in DITTO-2); see :mod:`sciflow.guidance.editing.differentiable`. The
penalty is the density of the norm of noise, whose mode is r* = √(d − 1): the density of x_T itself
would pull it to 0, which no noise ever is. It binds the norm alone. Steps are Adam's (Kingma & Ba
2015) with one second moment a sample and field, so that they turn with the sample and do not depend
on padding or companions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sciflow.denoisers import Denoiser
from sciflow.errors import InputError
from sciflow.guidance.editing.differentiable import differentiable_sample
from sciflow.paths import GaussianPath, Path
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.state import Context, State

__all__ = ["NoiseReport", "optimise_noise", "refine_noise"]

_FIRST, _SECOND = 0.9, 0.99
"""Decay of Adam's moments; the second is quicker than published, for rounds are few."""
_TINY = 1e-12


@dataclass(frozen=True)
class NoiseReport:
    """Noise to begin with, ``sampler(..., start=report.start)``.

    Attributes:
        start: fields at the first time.
        calls: evaluations of denoisers, those that were made twice for the gradient included.
        log_f: of :func:`optimise_noise`, before every round and at the end, ``[rounds + 1, B]``.
    """

    start: dict[str, Tensor]
    calls: int
    log_f: Tensor | None = None


@torch.no_grad()
def refine_noise(
    denoiser: Denoiser,
    context: Context,
    draws: Draws,
    weak: Denoiser | None = None,
    rounds: int = 20,
    step: float = 0.1,
    most: float = 0.5,
    jitter: float = math.sqrt(1e-3),
    dtype: torch.dtype | None = None,
    start: Mapping[str, Tensor] | None = None,
    begin: float = 1.0,
) -> NoiseReport:
    """Noise moved to where ``denoiser`` differs from ``weak``; two calls a round.

    Tokens, and points of manifolds, stay as they were drawn. ``step`` 0 is the noise as it was, bit
    for bit and without a call.

    Args:
        denoiser: the conditional or guided model.
        context: of the batch.
        draws: of the batch; the noise is the sampler's own.
        weak: what to move away from; default ``denoiser`` with conditions "not asked for".
        rounds: how often.
        step: η.
        most: differences are shortened to this norm a sample, in standard deviations of the data.
        jitter: standard deviation of the fresh noise of a round.
        dtype: of continuous fields; default torch's.
        start: fields at ``begin``; default a draw of the prior.
        begin: where on the shared clock the run will begin.

    Raises:
        InputError: a number that cannot be.
    """
    if rounds < 0 or not (step >= 0 and most > 0 and jitter >= 0):
        raise InputError(
            "refinement needs rounds >= 0, step >= 0, most > 0 and jitter >= 0, not "
            f"{rounds}, {step}, {most}, {jitter}"
        )
    fields = _start(denoiser.paths, context, draws, dtype, start)
    if step == 0 or rounds == 0:
        return NoiseReport(fields, 0)
    gaussian = _gaussian(denoiser.paths)
    first = {f: _norm(p, fields[f], context) for f, p in gaussian.items()}
    for k in range(rounds):
        strong = denoiser(State(fields, context), begin)
        base = (denoiser(State(fields, context.unconditional()), begin) if weak is None
                else weak(State(fields, context), begin))  # fmt: skip
        fields = dict(fields)
        for name, path in gaussian.items():
            space, x = path.space, fields[name]
            away = space.project(strong[name] - base[name], context) / path.data_std
            size = space.inner(away, away, context).clamp(min=0).sqrt()
            gain = step * (most / size.clamp(min=_TINY)).clamp(max=1.0)
            x = x + space.expand(gain, x).to(x.dtype) * away
            if jitter > 0:
                z = space.noise(context, draws, f"{name}/refine", k + 1, x.dtype)
                x = torch.add(x, z, alpha=jitter)
            mean = path.prior_moments(context, x)[0]
            back = first[name] / _norm(path, x, context).clamp(min=_TINY)
            fields[name] = mean + space.expand(back, x).to(x.dtype) * (x - mean)
    return NoiseReport(fields, 2 * rounds)


def optimise_noise(
    sampler: Sampler,
    denoiser: Denoiser,
    context: Context,
    draws: Draws,
    log_f: Callable[[State], Tensor],
    rounds: int = 20,
    learning_rate: float = 0.05,
    norm_weight: float = 1.0,
    given: dict[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
    start: Mapping[str, Tensor] | None = None,
    begin: float = 1.0,
    recompute: bool = True,
) -> NoiseReport:
    """Noise whose sample has a high ``log_f``; each sample's best round is what comes back.

    Every Gaussian field's noise is moved. Tokens are drawn with the same random numbers in every
    round, and ``log_f`` sees the probabilities of their last estimate: they follow the points as
    far as that estimate leaves them open, so a schedule that reveals them late serves best.
    A round costs the sampler's calls, twice with ``recompute``.

    Args:
        sampler: of few steps; the same must be used with the noise found.
        denoiser: the model, guided or not, differentiable.
        context: of the batch.
        draws: of the batch.
        log_f: the clean state to a log-density ``[B]``, differentiable; tokens are probabilities
            ``[B, *elements, K]``.
        rounds: gradient steps.
        learning_rate: root mean square step of a number, in units of the noise.
        norm_weight: w of the norm's density; 0 lets the noise grow without bound.
        given: values of given elements, as for the sampler.
        dtype: of continuous fields; default torch's.
        start: fields at ``begin``; default a draw of the prior.
        begin: where on the shared clock the run begins.
        recompute: keep no network's graph, but call it again on the way back.

    Raises:
        InputError: a number that cannot be, or a ``log_f`` that is not one number a sample.
    """
    if rounds < 0 or not (learning_rate > 0 and norm_weight >= 0):
        raise InputError(
            "optimisation needs rounds >= 0, learning_rate > 0 and norm_weight >= 0, not "
            f"{rounds}, {learning_rate}, {norm_weight}"
        )
    gaussian = _gaussian(denoiser.paths)
    fields = _start(denoiser.paths, context, draws, dtype, start)
    best, best_value = dict(fields), torch.full((len(context),), -math.inf, dtype=torch.float64,
                                                device=context.mask.device)  # fmt: skip
    first = {f: torch.zeros_like(fields[f]) for f in gaussian}
    second = {f: torch.zeros_like(best_value) for f in gaussian}
    seen, calls = [], 0
    for k in range(rounds + 1):
        with torch.set_grad_enabled(k < rounds):
            x = {f: fields[f].detach().requires_grad_(k < rounds) for f in gaussian}
            clean, used = differentiable_sample(sampler, denoiser, context, draws, {**fields, **x},
                                                given, begin, recompute and k < rounds)  # fmt: skip
            energy = log_f(clean)
            if energy.shape != best_value.shape:
                raise InputError(
                    f"log_f gives one number a sample, [{len(context)}], not {list(energy.shape)}"
                )
            value = energy.double()
            for name, path in gaussian.items():
                if norm_weight > 0:
                    value = value + norm_weight * _log_norm(path, x[name], context)
            found = (torch.autograd.grad(value.sum(), list(x.values()), allow_unused=True)
                     if k < rounds and value.requires_grad else [None] * len(x))  # fmt: skip
        calls += used()
        seen.append(energy.detach())
        value = value.detach()
        better = value > best_value
        best_value = torch.where(better, value, best_value)
        fields, best = dict(fields), dict(best)
        for (name, path), g in zip(gaussian.items(), found, strict=True):
            space, here = path.space, x[name].detach()
            best[name] = torch.where(space.expand(better, here), here, best[name])
            if g is None:
                continue
            # A sample whose energy broke goes back to its best noise.
            sound = value.isfinite() & g.flatten(1).isfinite().all(1)
            g = torch.where(space.expand(sound, g), g, 0)
            slope = space.color(g, context)
            size = space.sum(g * slope, context).double() / _count(path, here, context)
            second[name] = _SECOND * second[name] + (1 - _SECOND) * size.clamp(min=0)
            m = _FIRST * first[name] + (1 - _FIRST) * slope
            first[name] = torch.where(space.expand(sound, m), m, 0)
            root = (second[name] / (1 - _SECOND ** (k + 1))).sqrt() + _TINY
            pace = learning_rate / root / (1 - _FIRST ** (k + 1))
            moved = here + space.expand(pace, here).to(here.dtype) * first[name]
            fields[name] = torch.where(space.expand(sound, here), moved, best[name])
    return NoiseReport(best, calls, torch.stack(seen))


def _gaussian(paths: Mapping[str, Path]) -> dict[str, GaussianPath]:
    gaussian = {f: p for f, p in paths.items() if isinstance(p, GaussianPath)}
    if not gaussian:
        raise InputError(f"the noise of Gaussian fields can be chosen; fields: {', '.join(paths)}")
    return gaussian


def _start(paths: Mapping[str, Path], context: Context, draws: Draws, dtype: torch.dtype | None,
           start: Mapping[str, Tensor] | None) -> dict[str, Tensor]:  # fmt: skip
    """What the sampler would begin with."""
    if start is not None:
        return dict(start)
    kind = dtype or torch.get_default_dtype()
    return {f: p.prior(context, draws, f"{f}/prior", kind) for f, p in paths.items()}


def _norm(path: GaussianPath, x: Tensor, context: Context) -> Tensor:
    """|x_T| in units of the noise, ``[B]``."""
    mean, scale = path.prior_moments(context, x)
    w = (x - mean) / scale
    return path.space.inner(w, w, context).clamp(min=0).sqrt()


def _count(path: GaussianPath, x: Tensor, context: Context) -> Tensor:
    return path.space.dimensions(x, context).double().clamp(min=1)


def _log_norm(path: GaussianPath, x: Tensor, context: Context) -> Tensor:
    """log p(r) less its largest value, float64 ``[B]``."""
    mean, scale = path.prior_moments(context, x)
    w = (x - mean) / scale
    square = path.space.inner(w, w, context).double().clamp(min=_TINY)
    d = _count(path, x, context) - 1
    return (torch.xlogy(d, square) - torch.xlogy(d, d) - square + d) / 2
