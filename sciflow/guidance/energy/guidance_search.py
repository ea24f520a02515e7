r"""Beam search of guidance strengths with any metric (after Ye et al. 2024, section 4 of TFG).

Strengths act over orders of magnitude and interact, so they are searched by doubling: from a weak
start, the best few configurations found so far are each varied in one strength at a time,

    θ  →  θ with θ_j replaced by min(θ_j · factor_j, largest_j),       for every j,

until nothing new comes of the best, or the budget is spent. All results are kept. A refinement goes
on from there with the square roots of the factors, upwards and downwards.

A strength that starts at 0 stays there, so that the search of a special case (ρ alone: DPS,
FreeDoM; ρ and γ̄: LGD; μ alone: MPGD) is this one with other starts. Where ``first`` says what
follows 0, it is one more value instead: whether a strength is used at all is then searched too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from sciflow.errors import InputError

__all__ = ["FACTORS", "LARGEST", "START", "Trial", "beam_search"]

START = {"rho": 0.25, "mu": 0.25, "gamma": 0.001}
FACTORS = {"rho": 2.0, "mu": 2.0, "gamma": 10.0}
LARGEST = {"rho": 8.0, "mu": 8.0, "gamma": 1.0}


@dataclass(frozen=True)
class Trial:
    """One configuration and what came of it.

    Attributes:
        parameters: the strengths.
        score: of the metric; the worst there is (±∞) for a failure.
        failure: why there is no score; else empty.
    """

    parameters: dict[str, float]
    score: float
    failure: str = ""


def beam_search(
    score: Callable[[dict[str, float]], float],
    start: Mapping[str, float] = START,
    factors: Mapping[str, float] = FACTORS,
    largest: Mapping[str, float] = LARGEST,
    *,
    first: Mapping[str, float] | None = None,
    whole: Collection[str] = (),
    beam: int = 2,
    sweeps: int = 6,
    refinements: int = 0,
    budget: int | None = None,
    lower_is_better: bool = True,
    progress: Callable[[Trial], None] | None = None,
) -> list[Trial]:
    """Every configuration that was tried, best first; equal ones in the order of trial.

    Args:
        score: of a configuration. One that raises, or gives NaN or an infinite number, has failed.
        start: strengths to begin with, 0 or more.
        factors: above 1, of every strength in ``start``.
        largest: bound of every strength in ``start``.
        first: what a strength of 0 is varied to, of those that may begin there.
        whole: names of strengths that are whole numbers; products are rounded.
        beam: how many of the best are varied in a sweep.
        sweeps: at most so many; the start and its own variations come before the first.
        refinements: how often the factors are replaced by their square roots, for as many sweeps.
        budget: evaluations of ``score`` at most.
        lower_is_better: of scores.
        progress: told of each trial.

    Raises:
        InputError: names or numbers do not fit.
    """
    first = first or {}
    _check(start, factors, largest, first, beam, sweeps, refinements, budget)
    worst = math.inf if lower_is_better else -math.inf
    trials: list[Trial] = []
    tried: set[tuple[float, ...]] = set()

    def attempt(parameters: dict[str, float]) -> None:
        key = tuple(parameters[name] for name in start)
        if key in tried or (budget is not None and len(trials) >= budget):
            return
        tried.add(key)
        trials.append(_attempted(score, parameters, worst))
        if progress is not None:
            progress(trials[-1])

    def ranked() -> list[Trial]:
        return sorted(trials, key=lambda x: x.score if lower_is_better else -x.score)

    def vary(parameters: Mapping[str, float], refinement: int) -> None:
        for name, value in parameters.items():
            factor = factors[name] ** 0.5**refinement
            others = [value * factor, value / factor] if refinement else [value * factor]
            if value == 0:
                others = [first.get(name, 0.0)]
            for other in others:
                other = max(round(other), 1) if name in whole else other
                attempt({**parameters, name: min(other, largest[name])})

    attempt(dict(start))
    vary(dict(start), 0)
    for refinement in range(refinements + 1):
        for _ in range(sweeps):
            before = len(trials)
            for trial in ranked()[:beam]:
                vary(trial.parameters, refinement)
            if len(trials) == before:
                break
    return ranked()


def _attempted(score: Callable[[dict[str, float]], float], parameters: dict[str, float],
               worst: float) -> Trial:  # fmt: skip
    # A strength that is too large breaks samplers and oracles in ways that cannot be foreseen.
    try:
        value = float(score(dict(parameters)))
    except Exception as error:
        return Trial(parameters, worst, f"{type(error).__name__}: {error}")
    if not math.isfinite(value):
        return Trial(parameters, worst, f"score {value}")
    return Trial(parameters, value)


def _check(start: Mapping[str, float], factors: Mapping[str, float], largest: Mapping[str, float],
           first: Mapping[str, float], beam: int, sweeps: int, refinements: int,
           budget: int | None) -> None:  # fmt: skip
    if not start:
        raise InputError("a search needs at least one strength to begin with")
    for name, value in start.items():
        if name not in factors or name not in largest:
            raise InputError(f"{name!r} has a start, but no factor or no largest value; give both")
        if not (factors[name] > 1 and 0 <= value <= largest[name] < math.inf):
            raise InputError(
                f"{name!r} must start between 0 and its largest value and grow by a factor above "
                f"1, not from {value} by {factors[name]} to {largest[name]}"
            )
    for name, value in first.items():
        if name not in start or not 0 < value <= largest[name]:
            raise InputError(
                f"what follows 0 of {name!r} must be above 0 and at most its largest value, and "
                f"the strength have a start; not {value}"
            )
    if beam < 1 or sweeps < 0 or refinements < 0 or (budget is not None and budget < 1):
        raise InputError(
            "a search has a beam of at least 1, 0 or more sweeps and refinements, and a budget of "
            f"at least 1, not {beam}, {sweeps}, {refinements} and {budget}"
        )
