r"""Edits of samples that exist: noised and denoised again, or taken to their noise and back.

**SDEdit** (Meng et al. 2022): the sample is noised up to time t0 and denoised from there. A small
t0 keeps all but details, t0 = 1 nothing; data stay data at any t0, if the model is right.

**Noise space** (Song et al. 2021). The probability flow run upwards takes a sample to its noise,

    dz/du = (z − D)/u,      z = x/(a + s),  u = s/(a + s),

and down again to itself. Between the noises of two samples, the sphere through both (White 2016)
has the norms that noise has,

    sin((1 − w)θ)/sin θ · x + sin(wθ)/sin θ · y,      θ the angle between x and y.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sciflow.denoisers import Denoiser
from sciflow.errors import InputError
from sciflow.likelihood.clock import Clock, noise_share
from sciflow.likelihood.runge_kutta import TABLEAUX, Values, solve_fixed, stage_places
from sciflow.paths import CategoricalPath, GaussianPath, Path
from sciflow.random import Draws
from sciflow.samplers import Sampler, SamplerReport
from sciflow.state import Context, State, field_times

__all__ = ["Encoded", "encode", "interpolate", "noised", "sdedit", "spherical"]


def noised(
    paths: Mapping[str, Path], state: State, t: float, draws: Draws, stream: str = "edit"
) -> State:
    """A draw of x_t for clean ``state``; given elements stay.

    Args:
        paths: one a field.
        state: clean fields.
        t: of the shared clock.
        draws: of the batch.
        stream: name of the random numbers.
    """
    fields = {}
    for name, path in paths.items():
        clean = path.space.project(state[name], state.context)
        x = path.renoise(clean, 0.0, t, state.context, draws, f"{name}/{stream}")
        given = state.context.given.get(name)
        fields[name] = x if given is None else x.where(~path.space.expand(given, x), clean)
    return State(fields, state.context)


def sdedit(sampler: Sampler, denoiser: Denoiser, state: State, t0: float,
           draws: Draws) -> SamplerReport:  # fmt: skip
    """Clean samples near ``state``: noised to ``t0`` and denoised.

    Known parts (:class:`~sciflow.guidance.Replacement`) must stand in ``state`` already.

    Args:
        sampler: how to come down; its ``steps`` are all spent below ``t0``.
        denoiser: the model, guided or not.
        state: clean fields; elements that ``context.given`` marks are kept.
        t0: where on the shared clock to begin, above 0 to 1.
        draws: of the batch.

    Raises:
        InputError: ``t0`` outside (0, 1].
    """
    if not 0 < t0 <= 1:
        raise InputError(f"an edit begins at a time above 0 (nothing changes) to 1, not {t0}")
    start = noised(denoiser.paths, state, t0, draws)
    return sampler(denoiser, state.context, draws, given=_given(state), dtype=_dtype(state),
                   start=start.fields, begin=t0)  # fmt: skip


@dataclass(frozen=True)
class Encoded:
    """Where samples come from.

    Attributes:
        state: x at t = 1; fields that were given in full are as they were.
        calls: evaluations of the denoiser.
    """

    state: State
    calls: int


@torch.no_grad()
def encode(denoiser: Denoiser, state: State, steps: int = 30, method: str = "rk4",
           begin: float = 1e-3) -> Encoded:  # fmt: skip
    """The noise from which the probability flow makes ``state``.

    ``Sampler(...)(denoiser, context, draws, given=..., start=encoded.state.fields)`` with an ODE
    method leads back, up to the errors of both integrations.

    Args:
        denoiser: the model, guided or not; called without feedback (``previous``).
        state: clean Gaussian fields; fields of other kinds must be given in full.
        steps: of a grid u = u_b + (u_1 − u_b)(n/steps)².
        method: ``heun`` (2 calls a step), ``rk4`` (4) or ``dopri5`` (6).
        begin: t_b: up to there the flow is free of noise, x = a x_0.

    Raises:
        InputError: an unknown method, no step, a field without a flow that is not given.
    """
    if method not in TABLEAUX:
        raise InputError(f"unknown method {method!r}; known: {', '.join(TABLEAUX)}")
    if steps < 1 or not 0 < begin < 1:
        raise InputError(f"steps >= 1 and 0 < begin < 1 are needed, not {steps} and {begin}")
    paths, context, calls = _flowing(denoiser.paths, state), state.context, 0
    clock = Clock({name: path.schedule for name, path in paths.items()})

    def level(name: str, t: Tensor) -> tuple[Tensor, Tensor]:
        a, s = paths[name].schedule(t)
        return a + s, noise_share(a, s)

    def still(name: str, x: Tensor, other: Tensor) -> Tensor:
        given = context.given.get(name)
        return x if given is None else x.where(~paths[name].space.expand(given, x), other)

    def slope(u: Tensor, y: Values, step: int) -> Values:
        nonlocal calls
        t = clock.time(u)
        rates = clock.rates(t)
        fields, shares = {}, []
        for name, z in zip(paths, y, strict=True):
            kappa, share = level(name, t)
            fields[name] = still(name, (kappa * z).to(z), state[name])
            shares.append(rates[name] / share)
        prediction, calls = denoiser(state.replace(**fields), float(t)), calls + 1
        return tuple(
            still(name, paths[name].space.project(z - prediction[name], context) * share.to(z),
                  torch.zeros_like(z))
            for name, z, share in zip(paths, y, shares, strict=True)
        )  # fmt: skip

    start, end = clock.share(begin), clock.share(1.0)
    nodes = [start + (end - start) * (i / steps) ** 2 for i in range(steps + 1)]
    clock.prepare(stage_places(nodes, TABLEAUX[method]).to(state.device))
    first, one = (torch.tensor(t, dtype=torch.float64, device=state.device) for t in (begin, 1.0))
    y = tuple(p.space.project(state[f], context) * (1 - level(f, first)[1]).to(state[f])
              for f, p in paths.items())  # fmt: skip
    y = solve_fixed(slope, y, nodes, TABLEAUX[method])
    noise = {f: still(f, (level(f, one)[0] * z).to(z), state[f])
             for f, z in zip(paths, y, strict=True)}  # fmt: skip
    return Encoded(state.replace(**noise), calls)


def spherical(path: GaussianPath, x: Tensor, y: Tensor, weight: Tensor | float,
              context: Context) -> Tensor:  # fmt: skip
    """The point ``weight`` of the way from noise ``x`` to noise ``y`` on the sphere through both.

    Angles are those of the space's own noise, correlated or not. Independent noises of many
    dimensions stand at right angles, and what is between them is again noise.

    Args:
        path: of the field.
        x: at t = 1, ``[B, ...]``.
        y: see ``x``.
        weight: 0 (x) to 1 (y), a number or ``[B]``.
        context: of the batch.
    """
    space, mean = path.space, path.prior_moments(context, x)[0]
    x, y = x - mean, y - mean
    xx, yy, xy = (space.inner(p, q, context) for p, q in ((x, x), (y, y), (x, y)))
    cosine = xy / (xx * yy).sqrt().clamp(min=torch.finfo(x.dtype).tiny)
    angle = cosine.clamp(-1, 1).arccos()
    w = torch.as_tensor(weight, dtype=angle.dtype, device=angle.device)
    # The sphere is flat between neighbours, and has no shortest way between opposites.
    flat = angle.sin() < 1e-6
    sine = torch.where(flat, torch.ones_like(angle), angle.sin())
    from_x = torch.where(flat, 1 - w, ((1 - w) * angle).sin() / sine)
    from_y = torch.where(flat, w, (w * angle).sin() / sine)
    return mean + space.expand(from_x, x).to(x) * x + space.expand(from_y, y).to(y) * y


def interpolate(
    sampler: Sampler,
    denoiser: Denoiser,
    first: State,
    second: State,
    weights: Sequence[float],
    draws: Draws,
    steps: int = 30,
) -> list[SamplerReport]:
    """Samples between samples: both encoded, mixed on the sphere, and denoised.

    Args:
        sampler: an ODE method, e.g. ``ab3``.
        denoiser: the model, guided or not.
        first: clean fields.
        second: clean fields of the same context.
        weights: where to look, 0 (first) to 1 (second); one report each.
        draws: of the batch; an ODE draws nothing.
        steps: of :func:`encode`, twice.

    Raises:
        InputError: other masks, or given elements that differ: there is no state between them.
    """
    context, paths = first.context, _flowing(denoiser.paths, first)
    same = torch.equal(context.mask, second.context.mask) and all(
        torch.equal(first[f], second[f]) for f in first if f not in paths
    )
    if not same:
        raise InputError("two samples can be mixed where their masks and given fields are the same")
    ends = [encode(denoiser, State(s.fields, context), steps).state for s in (first, second)]
    reports = []
    for weight in weights:
        start = dict(ends[0].fields)
        for name, path in paths.items():
            start[name] = spherical(path, start[name], ends[1][name], weight, context)
        reports.append(sampler(denoiser, context, draws, given=_given(first),
                               dtype=_dtype(first), start=start))  # fmt: skip
    return reports


def _flowing(paths: Mapping[str, Path], state: State) -> dict[str, GaussianPath]:
    """Gaussian fields; all others must be given in full."""
    times = field_times(1.0, state)
    for name, path in paths.items():
        real = path.space.mask(state.context)
        free = (path.space.expand(times[name], real) > 0) & real
        if not isinstance(path, GaussianPath) and bool(free.any()):
            kind = "tokens jump" if isinstance(path, CategoricalPath) else "it is a manifold"
            raise InputError(
                f"field {name!r} has no flow to a noise of its own ({kind}): mark all of its "
                f"elements in context.given[{name!r}]"
            )
    flowing = {f: p for f, p in paths.items() if isinstance(p, GaussianPath)}
    if not flowing:
        raise InputError(f"no Gaussian field among {', '.join(paths)}")
    return flowing


def _given(state: State) -> dict[str, Tensor] | None:
    return {f: state[f] for f in state.context.given if f in state} or None


def _dtype(state: State) -> torch.dtype | None:
    return next((x.dtype for x in state.values() if x.is_floating_point()), None)
