r"""Which way to move a clean sample, from an oracle that only answers: estimates without gradients.

With directions u_j ~ N(0, C) of the space's own noise (zero centre of mass, zero in padding), drawn
from (seed, sample, call) alone, and all answers of an estimate taken in one batch:

* :class:`TwoPoint`, of a value f that is to rise (Nesterov & Spokoiny 2017):
      g = 1/q Σ_j [f(x + c u_j) − f(x − c u_j)]/2c · u_j  →  C ∇f;
* :class:`LeastSquares`, of a vector F (forces) that is to approach a target F*, of −½|F − F*|²:
      g = −1/q Σ_j ⟨F − F*, F(x + c u_j) − F(x − c u_j)⟩/2c · u_j,
  or with the product ⟨·,·⟩ element by element ("per atom", Shen et al. 2025, ChemGuide): only the
  diagonal blocks of the Jacobian remain, a small bias for a variance smaller by their number;
* :class:`ForceNorm`: where F is a gradient field its Jacobian −H is symmetric, so that the gradient
  of ½|F|² is a directional derivative of F *along F itself*; two more calls give it exactly,
      −∇½|F|² = H F = −|F| [F(x + h F/|F|) − F(x − h F/|F|)]/2h;
* :class:`EnergyDescent`: F itself, −∇E, at one call.

For white noise the expected cosine of the two-point estimate to the gradient is about √(q/(q + d))
in d dimensions. A side that fails is replaced by the centre (one-sided difference); where both do
the direction is left out, where the centre does the sample gets zero. Steps are in physical units;
one below 100 times the rounding of what the oracle sees would differentiate noise and is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sciflow.errors import InputError
from sciflow.guidance.oracles.black_box import Oracle
from sciflow.random import Draws
from sciflow.spaces import Space
from sciflow.state import State

__all__ = ["Ascent", "EnergyDescent", "Estimate", "ForceNorm", "LeastSquares", "TwoPoint"]

_ROUNDINGS = 100


@dataclass(frozen=True)
class Estimate:
    """A direction and what it cost.

    Attributes:
        direction: C times the gradient of what is to rise, per physical length; like the field.
        calls: of the oracle, ``[B]``.
        failures: how many of them failed, ``[B]``.
    """

    direction: Tensor
    calls: Tensor
    failures: Tensor


class Ascent(Protocol):
    """A way to get a direction from an oracle."""

    @property
    def cost(self) -> int:
        """The most calls of the oracle that one estimate takes for a sample."""

    @property
    def random(self) -> bool:
        """Whether it draws."""

    def __call__(self, oracle: Oracle, clean: State, field: str, space: Space,
                 draws: Draws | None = None, call: int = 0) -> Estimate:  # fmt: skip
        """The direction in which to move ``clean[field]``.

        Args:
            oracle: the black box.
            clean: data; the field in float64.
            field: what is moved.
            space: of the field.
            draws: random numbers of the rows.
            call: number of the estimate in the run.
        """


@dataclass(frozen=True)
class _RandomDirections:
    """Differences along q random directions, and the centre: 1 + 2q calls."""

    directions: int = 4
    step: float = 1e-3
    random = True

    def __post_init__(self) -> None:
        _check(self.directions, self.step)

    @property
    def cost(self) -> int:
        return 1 + 2 * self.directions


@dataclass(frozen=True)
class TwoPoint(_RandomDirections):
    """Symmetric differences of a value along random directions.

    Attributes:
        directions: q; 1 + 2q calls.
        step: c, in physical units.
    """

    def __call__(self, oracle: Oracle, clean: State, field: str, space: Space,
                 draws: Draws | None = None, call: int = 0) -> Estimate:  # fmt: skip
        u, centre, change, failures = _differences(self, oracle, clean, field, space, draws, call)
        if centre.ndim != 1:
            raise InputError("a two-point estimate is of one number a sample; use LeastSquares")
        return Estimate(_mean(_like(change, u) * u, change), _all(self.cost, centre), failures)


@dataclass(frozen=True)
class LeastSquares(_RandomDirections):
    """Differences of a vector along random directions, to bring it near a target.

    Attributes:
        directions: q; 1 + 2q calls.
        step: c, in physical units.
        per_element: multiply element by element; see the module.
        target: name of the entry of ``context.extras`` shaped as the vector; zero if ``None``.
    """

    per_element: bool = True
    target: str | None = None

    def __call__(self, oracle: Oracle, clean: State, field: str, space: Space,
                 draws: Draws | None = None, call: int = 0) -> Estimate:  # fmt: skip
        u, centre, change, failures = _differences(self, oracle, clean, field, space, draws, call)
        product = _residual(centre, clean, self.target) * change
        axes = space.mask(clean.context).ndim if self.per_element else 1
        # Axis 0 counts the directions.
        product = product.flatten(1 + axes).sum(-1) if product.ndim > 1 + axes else product
        g = _mean(-_like(product, u) * u, change)
        return Estimate(space.project(g, clean.context), _all(self.cost, centre), failures)


@dataclass(frozen=True)
class ForceNorm:
    """Down the squared norm of a gradient field, exactly, by two calls along the field.

    Attributes:
        step: h, the whole length of the move, in physical units.
        target: as in :class:`LeastSquares`.
    """

    step: float = 1e-2
    target: str | None = None
    cost = 3
    random = False

    def __post_init__(self) -> None:
        _check(1, self.step)

    def __call__(self, oracle: Oracle, clean: State, field: str, space: Space,
                 draws: Draws | None = None, call: int = 0) -> Estimate:  # fmt: skip
        context = clean.context
        centre = oracle(clean)
        calls, failures = _all(1, centre), _failed(centre).long()
        r = space.project(_residual(centre, clean, self.target).nan_to_num(), context)
        size = space.sum(r * r, context).sqrt()
        direction = torch.zeros_like(r)
        # At rest, or where nothing is known, there is nowhere to look.
        rows = (size > 0).nonzero()[:, 0]
        if len(rows):
            part, along = clean.index(rows), (r / _like(size.clamp(min=1e-300), r))[rows]
            # The move is spread over the sample: its largest number is what rounding eats.
            largest = along.abs().flatten(1).amax(1).min()
            _check_rounding(self.step * float(largest), oracle, part[field])
            answers = _probe(oracle, part, field, self.step * torch.stack((along, -along)))
            calls[rows] += 2
            failures[rows] += _failed(answers.flatten(0, 1)).view(2, -1).sum(0)
            change = _slope(centre[rows], answers[0], answers[1], self.step).nan_to_num()
            direction[rows] = -_like(size[rows], change) * change
        return Estimate(space.color(direction, context), calls, failures)


@dataclass(frozen=True)
class EnergyDescent:
    """Along the vector that the oracle answers with: a force, minus the gradient of an energy."""

    cost = 1
    random = False

    def __call__(self, oracle: Oracle, clean: State, field: str, space: Space,
                 draws: Draws | None = None, call: int = 0) -> Estimate:  # fmt: skip
        centre = oracle(clean)
        direction = space.color(centre.nan_to_num(), clean.context)
        return Estimate(direction, _all(1, centre), _failed(centre).long())


def _differences(
    how: TwoPoint | LeastSquares, oracle: Oracle, clean: State, field: str, space: Space,
    draws: Draws | None, call: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Directions ``[q, B, ...]``, the answer at the centre, differences along each, failures."""
    if draws is None:
        raise InputError("random directions need draws; give the guidance the draws of its batch")
    x, q = clean[field], how.directions
    _check_rounding(how.step, oracle, x)
    u = torch.stack([space.noise(clean.context, draws, f"{field}/zeroth-order", q * call + j,
                                 x.dtype) for j in range(q)])  # fmt: skip
    moves = how.step * torch.cat((torch.zeros_like(u[:1]), u, -u))
    answers = _probe(oracle, clean, field, moves)
    centre, plus, minus = answers[0], answers[1 : q + 1], answers[q + 1 :]
    failures = _failed(answers.flatten(0, 1)).view(len(moves), -1).sum(0)
    return u, centre, _slope(centre, plus, minus, how.step), failures


def _probe(oracle: Oracle, clean: State, field: str, moves: Tensor) -> Tensor:
    """Answers at ``clean`` moved by each of ``moves [p, B, ...]``, asked in one batch."""
    p, size = moves.shape[:2]
    x = clean[field] + moves / oracle.unit
    many = clean.index(torch.arange(size, device=moves.device).repeat(p))
    return oracle(many.replace(**{field: x.flatten(0, 1)})).unflatten(0, (p, size))


def _slope(centre: Tensor, plus: Tensor, minus: Tensor, step: float) -> Tensor:
    """Symmetric differences; one-sided where a side is NaN, NaN where nothing can be said."""
    right, left = (plus - centre) / step, (centre - minus) / step
    both = (plus - minus) / (2 * step)
    return torch.where(plus.isnan(), left, torch.where(minus.isnan(), right, both + 0 * centre))


def _mean(terms: Tensor, change: Tensor) -> Tensor:
    """Mean over the directions (axis 0) of which the change is known; zero where there is none."""
    known = ~change.flatten(2).isnan().any(2) if change.ndim > 2 else ~change.isnan()
    total = terms.where(_like(known, terms), torch.zeros_like(terms)).sum(0)
    return total / _like(known.sum(0).clamp(min=1), total)


def _residual(centre: Tensor, clean: State, target: str | None) -> Tensor:
    if target is None:
        return centre
    if target not in clean.context.extras:
        known = ", ".join(clean.context.extras) or "none"
        raise InputError(f"the target context.extras[{target!r}] is missing; there are: {known}")
    return centre - clean.context.extras[target].to(centre)


def _failed(answers: Tensor) -> Tensor:
    return answers.flatten(1).isnan().any(1) if answers.ndim > 1 else answers.isnan()


def _all(calls: int, like: Tensor) -> Tensor:
    return torch.full((len(like),), calls, dtype=torch.int64, device=like.device)


def _like(value: Tensor, x: Tensor) -> Tensor:
    return value.reshape(value.shape + (1,) * (x.ndim - value.ndim))


def _check(directions: int, step: float) -> None:
    if directions < 1 or not 0 < step < float("inf"):
        raise InputError(
            f"an estimate needs 1 or more directions and a step above 0, not {directions} and "
            f"{step}; steps of 1e-3 to 1e-2 ångström are sane for molecules"
        )


def _check_rounding(step: float, oracle: Oracle, x: Tensor) -> None:
    eps = max(torch.finfo(oracle.dtype).eps, torch.finfo(x.dtype).eps)
    rounding = max(oracle.resolution, eps * oracle.unit * float(x.abs().max()))
    if step < _ROUNDINGS * rounding:
        raise InputError(
            f"a step of {step:.3g} cannot be resolved: what the oracle sees is rounded to "
            f"{rounding:.3g}; use a step of {_ROUNDINGS * rounding:.3g} or more, or an oracle that "
            "takes more digits"
        )
