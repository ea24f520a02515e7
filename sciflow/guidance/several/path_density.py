r"""Log-densities of several models along one path, in the clock of the signal-to-noise ratio.

With Ŷ = a x/s², Λ = a²/s² and q° the noise alone (see
:mod:`sciflow.guidance.several.superposition`)

    d log q_i/q° = ⟨D_i, dŶ⟩ − ½ (|D_i|² + tr_P V_i) dΛ,     ⟨u, v⟩ = uᵀ C⁻¹ v,

where P are the directions in which the path has no noise: none for the reverse SDE, all for an ODE.

On a manifold heat takes the place of noise, Λ = 1/σ² and x has no origin: with u_i = log_x D_i and
dx = log_x x' the step of the reverse process from σ to σ',

    d log q_i = ⟨u_i, dx⟩/σ'² − ½ |u_i|² (1/σ'² − 1/σ²),

which in flat space is the formula above, measured from x.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sciflow.paths import CategoricalPath, GaussianPath, GeodesicPath, Path
from sciflow.state import Context, State

__all__ = [
    "DEGENERATE",
    "Form",
    "Seen",
    "free_elements",
    "free_numbers",
    "gram_matrix",
    "has_density",
    "log_density",
    "log_gain",
    "noise_gain",
    "point_gain",
    "shrink",
    "signal",
    "solve",
    "speed",
    "spread_of_noise",
    "token_gain",
]

Form = Literal["sde", "ode"]
DEGENERATE = 1e-6
"""Directions in which models differ less than this share of the widest are left alone."""


@dataclass(frozen=True)
class Seen:
    """What was known of a continuous field at a call."""

    y: Tensor  # Ŷ, [B, ...]
    ratio: float  # Λ
    clean: Tensor  # D_i, [B, M, ...]
    spread: Tensor | None  # tr V_i over directions without noise, [B, M]
    known: Tensor | None  # the same of N(0, σ_d² C), [B, 1]


def has_density(path: Path) -> bool:
    """Whether the density of a field can be followed: not that of a geodesic flow.

    Given x_0 a flow's x_t is uniform in a ball, whose edge alone has a score, and the clean
    estimate does not tell it.
    """
    return not isinstance(path, GeodesicPath) or path.kind == "diffusion"


def shrink(path: GaussianPath, ratio: float) -> float:
    """D = this · Ŷ, and V = this · C, for data N(0, σ_d² C)."""
    return path.data_std**2 / (1 + ratio * path.data_std**2)


def free_elements(path: Path, name: str, context: Context) -> Tensor:
    """Bool ``[B, *elements]``: real elements of a field that are not given."""
    mask = path.space.mask(context)
    given = context.given.get(name)
    return mask if given is None else mask & ~path.space.expand(given, mask)


def free_numbers(path: Path, name: str, state: State) -> Tensor:
    """How many numbers of a field are free, ``[B]``."""
    x = state[name]
    free = path.space.expand(free_elements(path, name, state.context), x)
    given = path.space.sum(torch.ones_like(x) * ~free, state.context)
    return (path.space.dimensions(x, state.context) - given).double()


def signal(path: Path, x: Tensor, name: str, context: Context, t: float) -> tuple[Tensor, float]:
    """Ŷ with zeros where nothing is free, and Λ."""
    a, s = _scales(path, t)
    free = path.space.expand(free_elements(path, name, context), x)
    return (x.double() * (a / s**2)).masked_fill(~free, 0), (a / s) ** 2


def speed(path: Path, t: float) -> float:
    """How fast a field is seen at ``t``: the growth of Λ over a little time."""
    a, s = path.schedule(torch.tensor([t, 0.98 * t], dtype=torch.float64))
    late, early = ((a / s) ** 2).tolist()
    return float(early - late)


def spread_of_noise(path: Path, t: float) -> float:
    """V of N(0, σ_d² C), in units of C."""
    assert isinstance(path, GaussianPath)
    a, s = _scales(path, t)
    return shrink(path, (a / s) ** 2)


def inner(path: Path, context: Context, u: Tensor, v: Tensor) -> Tensor:
    """⟨u_i, v_i⟩ of every model, ``[B, M]``; ``v`` may be one for all."""
    others = v.unbind(1) if v.ndim == u.ndim else [v] * u.shape[1]
    return torch.stack([path.space.inner(x, y, context)
                        for x, y in zip(u.unbind(1), others, strict=True)], 1)  # fmt: skip


def log_gain(path: Path, context: Context, old: Seen, new: Seen,
          form: Form | None = None) -> Tensor:  # fmt: skip
    """The change of log q_i/q° between two places, ``[B, M]``.

    Args:
        path: of the field.
        context: of the batch.
        old: at the last call.
        new: where x is now.
        form: if the models were asked at ``new`` too.
    """

    def at(place: Seen, other: Seen) -> Tensor:
        value = inner(path, context, place.clean, new.y - old.y)
        square = inner(path, context, place.clean, place.clean)
        if place.spread is not None and other.spread is not None:
            known = place.spread.where(place.spread.isfinite(), other.spread)
            square = square + known.nan_to_num(0.0)
        return value - 0.5 * (new.ratio - old.ratio) * square

    if form == "ode":
        return 0.5 * (at(old, new) + at(new, old))
    # Itô's integral takes the estimate of the noisier end.
    return at(new, old) if form == "sde" and new.ratio < old.ratio else at(old, new)


def noise_gain(path: Path, context: Context, old: Seen, new: Seen, form: Form) -> Tensor:
    """:func:`log_gain` of N(0, σ_d² C), whose errors are those of the models, ``[B, 1]``."""
    assert isinstance(path, GaussianPath)
    before, now = (
        Seen(z.y, z.ratio, shrink(path, z.ratio) * z.y[:, None], z.known, None) for z in (old, new)
    )
    return log_gain(path, context, before, now, form)


def gram_matrix(path: Path, context: Context, clean: Tensor) -> Tensor:
    """⟨D_i − D̄, D_j − D̄⟩, ``[B, M, M]``."""
    e = clean - clean.mean(1, keepdim=True)
    return torch.stack([inner(path, context, e, x) for x in e.unbind(1)], 2)


def solve(gram: Tensor, wanted: Tensor) -> Tensor:
    """w of least norm with Σ w = 0 and G w = ``wanted`` up to a constant, ``[B, M]``."""
    centred = wanted - wanted.mean(1, keepdim=True)
    inverse = torch.linalg.pinv(gram, rtol=DEGENERATE, hermitian=True)
    w = (inverse @ centred[..., None])[..., 0]
    return w - w.mean(1, keepdim=True)


def token_gain(path: Path, name: str, state: State, before: Tensor, parts: Sequence[Tensor],
               alpha: float, now: float) -> Tensor:  # fmt: skip
    """The change of log q_i/q° of a token field in a step, ``[B, M]``.

    Args:
        path: of the field.
        name: of the field.
        state: after the step.
        before: symbols before it.
        parts: p_i(x_0) of each model there.
        alpha: how many tokens were kept there.
        now: the same after it.
    """
    assert isinstance(path, CategoricalPath)
    if now <= alpha:
        return torch.zeros(len(before), len(parts), dtype=torch.float64, device=before.device)
    chain, after = path.within(state.context), state[name][..., None]
    at, to = (torch.tensor(v, dtype=torch.float64) for v in (alpha, now))
    free = free_elements(path, name, state.context)
    here = [chain.posterior(p, before, at, to).gather(-1, after)[..., 0] for p in parts]
    return torch.stack(
        [path.space.sum(h.clamp(min=1e-30).log() * free, state.context) for h in here], 1
    )


def point_gain(path: Path, name: str, state: State, before: Tensor, vectors: Tensor, sigma: float,
               now: float) -> Tensor:  # fmt: skip
    """The change of log q_i of a field of points of a manifold in a step, ``[B, M]``.

    Args:
        path: of the field, a diffusion.
        name: of the field.
        state: after the step.
        before: points before it.
        vectors: u_i of each model there, ``[B, M, ...]``.
        sigma: of the heat there.
        now: the same after it.
    """
    assert isinstance(path, GeodesicPath)
    if now >= sigma:
        return vectors.new_zeros(vectors.shape[:2])
    moved = path.space.log(before.double(), state[name].double())
    free = path.space.expand(free_elements(path, name, state.context), moved)
    step, gained = moved * free / now**2, 1 / now**2 - 1 / sigma**2
    return torch.stack(
        [path.space.sum(u * step - 0.5 * gained * u**2 * free, state.context)
         for u in vectors.unbind(1)], 1,
    )  # fmt: skip


def log_density(paths: Mapping[str, Path], state: State, t: float,
                log_ratio: Mapping[str, Tensor], reference: Mapping[str, Tensor]
                ) -> Tensor:  # fmt: skip
    """log q_i(x_t) = log N(x; 0, (a² σ_d² + s²) C) + what the sums of q_i exceed those of it by.

    Fields of tokens and of points of a manifold count relative to pure noise.

    Args:
        paths: of the fields.
        state: the fields.
        t: the time.
        log_ratio: sums of the steps so far of each model, ``[B, M]`` a field.
        reference: the same of N(0, σ_d² C), ``[B, 1]`` a continuous field.
    """
    total = torch.stack(list(log_ratio.values())).sum(0)
    for name, known in reference.items():
        path, x = paths[name], state[name]
        assert isinstance(path, GaussianPath)
        a, s = _scales(path, t)
        variance = (a * path.data_std) ** 2 + s**2
        free = path.space.expand(free_elements(path, name, state.context), x)
        y = x.double().masked_fill(~free, 0)
        size = path.space.inner(y, y, state.context) / variance
        size = size + path.space.logdet(state.context)
        size = size + free_numbers(path, name, state) * math.log(2 * math.pi * variance)
        total = total - known - 0.5 * size[:, None]
    return total


def _scales(path: Path, t: float) -> tuple[float, float]:
    a, s = path.schedule(torch.tensor(t, dtype=torch.float64))
    return float(a), float(s)
