r"""Strengths of guidance as functions of time, and those that repeat a published step.

A strength is a number or a function of t. Papers often write guidance as an increment of the next
state,

    x_s = step(x_t, D) + k_t ∇_{x_t} L + b Δ,       (a, s) at t, (b, r) at the next time,

where ours is a change of D. A step with the coefficient c of D (for DDIM b − a √(1−φ) r/s) turns
the one into the other: the increment δ of the state is the change δ/c of D. On a fine grid c is
small, so that a number which is constant in a paper is a strength that grows with the number of
steps. :func:`increments` makes the tables of a plan, with TFG's shapes, of mean 1 over the steps:

    increase: α_t,   decrease: 1 − α_t,   constant: 1,    α_t = ᾱ_t/ᾱ_s,  ᾱ = a²/(a² + s²).

Papers assume a² + s² = 1. Any other Gaussian path is that one with x/κ for x, κ² = a² + s², where
TFG's k_t = ρ_t/√α_t is ρ_t (b/a) κ_t², and DPS' or FreeDoM's k_t = ρ_t is ρ_t κ_t κ_s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sciflow.errors import InputError
from sciflow.paths import GaussianPath, GeodesicPath, Path
from sciflow.paths.base import LEVEL_LIMIT
from sciflow.samplers.ancestral import Ancestral
from sciflow.samplers.plan import Plan

__all__ = [
    "AtCalls",
    "Increments",
    "Shape",
    "Strength",
    "Strengths",
    "bayes_gain",
    "by_field",
    "increments",
    "open_variance",
    "strength_at",
    "time_of_noise",
]

Strength = float | Callable[[Tensor], Tensor]
"""A number, or a function of times (float64, any shape)."""
Strengths = Strength | Mapping[str, Strength]
"""One for all fields, or one a field."""
ShapeName = Literal["increase", "decrease", "constant"]
Shape = ShapeName | Callable[[Tensor], Tensor]


def bayes_gain(path: GaussianPath, t: Tensor) -> Tensor:
    """s²/a, with a counted as at least e⁻⁸ s: the unit of ρ, shaped as ``t``."""
    a, s = path.schedule(t)
    return s**2 / torch.maximum(a, s * math.exp(-LEVEL_LIMIT))


def open_variance(path: Path, t: Tensor) -> Tensor:
    """V, what x_t leaves open of x_0: the unit of μ, and √V that of γ̄; 1 for tokens."""
    if isinstance(path, GaussianPath):
        a, s = path.schedule(t)
        return (s * path.data_std) ** 2 / ((a * path.data_std) ** 2 + s**2)
    if isinstance(path, GeodesicPath):
        c = path.scale(t) ** 2
        return c / (1 + c)
    return torch.ones_like(t)


def strength_at(strength: Strength, t: Tensor) -> Tensor:
    """A strength at times of any shape."""
    if callable(strength):
        return torch.as_tensor(strength(t), dtype=t.dtype, device=t.device).expand(t.shape)
    return torch.full_like(t, strength)


def time_of_noise(path: Path, limit: float) -> float:
    """When s/a of a Gaussian field is ``limit`` standard deviations of the data."""
    assert isinstance(path, GaussianPath)
    target = torch.tensor(limit * path.data_std, dtype=torch.float64)
    return float(path.schedule.invert(lambda a, s: s / a, target))


def by_field(name: str, given: Strengths, fields: Sequence[str]) -> dict[str, Strength]:
    """Strengths by field, without those that are the number 0.

    Args:
        name: what they are called.
        given: one for all ``fields``, or some by name.
        fields: which may have one.

    Raises:
        InputError: another field has one, or a number is negative or not finite.
    """
    every = dict(given) if isinstance(given, Mapping) else dict.fromkeys(fields, given)
    if unknown := sorted(set(every) - set(fields)):
        raise InputError(
            f"{name} is not of field {unknown[0]!r}; it may be of: {', '.join(fields) or 'none'}"
        )
    for x in every.values():
        if isinstance(x, int | float) and not 0 <= x < math.inf:
            raise InputError(f"{name} must be 0 (none) or more, and finite, not {x}")
    return {f: x for f, x in every.items() if callable(x) or x != 0}


@dataclass(frozen=True)
class AtCalls:
    """A strength known at the calls of a plan; any other time takes that of the nearest call.

    Attributes:
        times: of the calls, float64 ``[n]``.
        values: ``[n]``.
    """

    times: Tensor
    values: Tensor

    def __call__(self, t: Tensor) -> Tensor:
        nearest = (t.double()[..., None] - self.times.to(t.device)).abs().argmin(-1)
        return self.values.to(t.device)[nearest].to(t.dtype)


@dataclass(frozen=True)
class Increments:
    """The strengths with which our denoiser makes a published step; see the module.

    Attributes:
        rho: of k_t ∇ L.
        mu: of the steps of Δ.
        lift: of b Δ.
        gamma: of the smoothing.
    """

    rho: Strength
    mu: Strength
    lift: Strength
    gamma: Strength


def increments(
    plan: Plan,
    path: GaussianPath,
    eta: float = 0.0,
    rho: float = 0.0,
    mu: float = 0.0,
    gamma: float = 0.0,
    shapes: tuple[Shape, Shape] = ("constant", "constant"),
    over_alpha: bool = False,
    steady_gamma: bool = False,
) -> Increments:
    """Published numbers as strengths of :class:`~sciflow.guidance.TrainingFree`.

    They hold for the sampler ``ddim`` with the same ``eta`` (``ddpm`` has 1) on this very plan, and
    for a guidance without a noise limit.

    Args:
        plan: of the sampler.
        path: of the field.
        eta: of the sampler.
        rho: number before ∇_{x_t} L in the increment of the state.
        mu: number before ∇_z L in a step of the clean estimate.
        gamma: standard deviation of the smoothing, in units of s/κ.
        shapes: of ρ_t and of μ_t; a function of t is brought to mean 1 too.
        over_alpha: k_t = ρ_t/√α_t (TFG), not ρ_t.
        steady_gamma: ``gamma`` is the standard deviation at all times.

    Raises:
        InputError: the plan has steps of no length (methods of two calls a step), or a shape is
            unknown.
    """
    c = torch.tensor(Ancestral(path, plan, eta).from_clean, dtype=torch.float64)
    if bool((plan.start == plan.end).any()):
        raise InputError(
            "published steps are those of 'ddim' and 'ddpm', one call each; this plan is of a "
            "method with two calls a step"
        )
    a, s, b, r = plan.levels(path.schedule)
    # Where a path ends in noise alone, its least signal is what bayes_gain takes it for.
    a = torch.maximum(a, s * math.exp(-LEVEL_LIMIT))
    kappa, later = (a**2 + s**2).sqrt(), (b**2 + r**2).sqrt()
    alpha = (a * later / (b * kappa)) ** 2
    step = rho * _shape(shapes[0], alpha, plan.start)
    step = step * (b / a * kappa**2 if over_alpha else kappa * later)
    v = open_variance(path, plan.start)
    width = gamma * (1.0 if steady_gamma else s / kappa)

    def table(values: Tensor) -> AtCalls:
        return AtCalls(plan.start, values)

    return Increments(
        table(step / (c * bayes_gain(path, plan.start))) if rho else 0.0,
        table(mu * _shape(shapes[1], alpha, plan.start) / v) if mu else 0.0,
        table(b / c),
        table(width / v.sqrt()) if gamma else 0.0,
    )


def _shape(shape: Shape, alpha: Tensor, t: Tensor) -> Tensor:
    """Of mean 1 over the calls."""
    if callable(shape):
        values = torch.as_tensor(shape(t), dtype=torch.float64).expand(t.shape)
    elif shape in get_args(ShapeName):
        values = {"increase": alpha, "decrease": 1 - alpha}.get(shape, torch.ones_like(alpha))
    else:
        raise InputError(f"unknown shape {shape!r}; known: {', '.join(get_args(ShapeName))}")
    return values / values.mean()
