"""TFG after its search beside each of its special cases after theirs: the same budget, equal calls.

    python -m benchmarks.training_free [--quick] [--only TEXT] [--out FILE]

TFG's space is (rho, mu, gamma, N_iter, N_recur, time dependence). DPS, LGD, MPGD, FreeDoM and UGD
are subspaces of it, constant in time; each is searched over the numbers that it has, by the same
search with the same number of evaluations, from "no guidance" on: a number is 0 (or 1) until the
search finds that more of it pays. So no case is held back by what another needs, and none sees
another's trials. Strengths are in our units (:mod:`sciflow.guidance.energy.training_free`), in
which a constant is the Bayesian weight; the papers' constants differ from it by their schedules.
TFG's time dependence is a strength times (1 - V(t)/V(1))^power, V what x_t leaves open of x_0: 0 is
constant, more acts later.

Every evaluation may make as many network calls a sample as every other one: a product with the
gradient is a call, and N_recur passes are N_recur times the steps.

Search and test are on different measurements with different noise. The metric is W1 to the exact
posterior (of the non-linear measurements by quadrature). Errors that are printed are those of the
test; beside them the paired difference to TFG with its standard error over measurements, and who
wins by more than two of them.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from benchmarks.posteriors import (
    Cloud,
    Exact,
    Measured,
    Metered,
    lines_of,
    most_steps,
    problem,
    w1,
)
from benchmarks.samplers import mixture, ring
from sciflow.denoisers import Denoiser
from sciflow.guidance import (
    MatrixMeasurement,
    NonlinearMeasurement,
    TrainingFree,
    Trial,
    beam_search,
)
from sciflow.guidance.energy.strengths import Strength, open_variance
from sciflow.paths import GaussianPath
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.testing.targets import GaussianMixture, all_real

__all__ = ["CASES", "PROBLEMS", "Problem", "contest", "sampled", "searched"]

Strengths = dict[str, float]

CASES = {
    "dps": ("rho",),
    "lgd": ("rho", "gamma"),
    "mpgd": ("mu",),
    "freedom": ("rho", "recurrence"),
    "ugd": ("rho", "mu", "iterations", "recurrence"),
    "tfg": ("rho", "mu", "gamma", "iterations", "recurrence", "power"),
}
"""The numbers that each method has."""
NONE = {"rho": 0.0, "mu": 0.0, "gamma": 0.0, "iterations": 1.0, "recurrence": 1.0, "power": 0.0}
FIRST = {"rho": 1 / 64, "mu": 1 / 64, "gamma": 1 / 16, "power": 1.0}
FACTORS = {"rho": 4.0, "mu": 4.0, "gamma": 4.0, "iterations": 2.0, "recurrence": 2.0, "power": 4.0}
LARGEST = {"rho": 8.0, "mu": 8.0, "gamma": 1.0, "iterations": 4.0, "recurrence": 4.0, "power": 16.0}
WHOLE = ("iterations", "recurrence")
COPIES = 8
SAMPLER: dict[str, Any] = {"method": "ddpm", "grid": "uniform-logsnr"}
METRIC, DRAWN = 8, 9
"""Seeds of a search: lines of its metric, random numbers of its samples."""


@dataclass(frozen=True)
class Problem:
    """A prior and a measurement of it.

    Attributes:
        goal: the prior.
        sigma: of the noise.
        bend: the number ``[..., 1]`` that is measured of x ``[..., 2]``; ``None`` is A x.
    """

    goal: GaussianMixture
    sigma: float
    bend: Callable[[Tensor], Tensor] | None = None

    @property
    def dimensions(self) -> int:
        return self.goal.means.shape[1]

    def draw(self, count: int, n: int, seed: int) -> tuple[Measured, Exact | Cloud]:
        """``count`` measurements, each for ``n`` samples, and their posteriors."""
        a, truth, y = problem(self.goal, self.sigma, count, seed)
        variance = self.sigma**2
        if self.bend is None:
            instrument = MatrixMeasurement(a, variance, (1, self.dimensions))
            exact = Exact.of(self.goal, a, variance, y)
            return Measured(y.repeat_interleave(n, 0), instrument), exact
        bend = self.bend
        y = bend(truth) + (y - truth @ a.mT)

        def log_f(points: Tensor) -> Tensor:
            return -0.5 * (y - bend(points)[:, 0]) ** 2 / variance

        instrument_ = NonlinearMeasurement(lambda x: bend(x[:, 0]), variance)
        return Measured(y.repeat_interleave(n, 0), instrument_), Cloud.of(self.goal, log_f)


PROBLEMS = {
    "ring, A x, 0.1": Problem(ring(), 0.1),
    "ring, |x1|, 0.1": Problem(ring(), 0.1, lambda x: x[..., :1].abs()),
    "ring, x1^2, 0.2": Problem(ring(), 0.2, lambda x: x[..., :1] ** 2),
    "ring, x1 x2, 0.1": Problem(ring(), 0.1, lambda x: x[..., :1] * x[..., 1:]),
    "64-D, A x, 0.1": Problem(mixture(), 0.1),
}


def guide(model: Denoiser, strengths: Strengths, seen: Measured, draws: Draws) -> TrainingFree:
    """A model with these strengths."""
    path, power = model.paths["x"], strengths["power"]
    assert isinstance(path, GaussianPath)

    def rising(x: float) -> Strength:
        if x == 0 or power == 0:
            return x
        return lambda t: x * (1 - open_variance(path, t) / path.data_std**2) ** power

    return TrainingFree(
        model, seen.log_f, rising(strengths["rho"]), rising(strengths["mu"]), strengths["gamma"],
        iterations=round(strengths["iterations"]), copies=COPIES if strengths["gamma"] else 1,
        draws=draws,
    )  # fmt: skip


def sampled(goal: Metered, some: Strengths, seen: Measured, calls: int, draws: Draws,
            known: dict[Any, int] | None = None) -> Tensor:  # fmt: skip
    """Samples ``[B, d]`` of as many steps as the calls allow, with these strengths.

    Args:
        goal: the model.
        some: strengths that are not those of :data:`NONE`.
        seen: the measurement.
        calls: of every sample.
        draws: random numbers.
        known: numbers of steps found before, by what decides them.
    """
    strengths = NONE | some

    def sample(steps: int, n: int) -> tuple[Tensor, int]:
        begin, rows = goal.calls, slice(n)
        model = guide(goal, strengths, seen.rows(rows), draws.rows(rows))
        sampler = Sampler(steps=steps, recurrence=round(strengths["recurrence"]), **SAMPLER)
        report = sampler(model, all_real(n), draws.rows(rows), dtype=torch.float64)
        return report.state["x"][:, 0], goal.calls - begin

    key = (strengths["rho"] > 0, strengths["recurrence"])
    if known is None or key not in known:
        x, steps = most_steps(goal, calls, sample, len(draws))
        if known is not None:
            known[key] = steps
        return x
    x, goal.calls = sample(known[key], len(draws))
    return x


def searched(name: str, target: Problem, calls: int, budget: int, count: int, n: int,
             beam: int = 3) -> list[Trial]:  # fmt: skip
    """Trials of a search of one of :data:`CASES`, best first.

    Args:
        name: of the case.
        target: what to search on, with measurements of the search's own.
        calls: of every sample.
        budget: evaluations.
        count: measurements.
        n: samples of each.
        beam: see :func:`~sciflow.guidance.beam_search`.
    """
    seen, exact = target.draw(count, n, seed=2)
    lines, draws = lines_of(target.dimensions, METRIC), Draws(DRAWN, torch.arange(count * n))
    model, known = Metered(target.goal), dict[Any, int]()

    def score(some: Strengths) -> float:
        x = sampled(model, some, seen, calls, draws, known).view(count, n, -1)
        assert model.calls <= calls
        return float(w1(x, exact, lines).mean()) if bool(x.isfinite().all()) else math.nan

    def own(values: Strengths) -> Strengths:
        return {k: v for k, v in values.items() if k in CASES[name]}

    return beam_search(score, own(NONE), own(FACTORS), own(LARGEST), first=own(FIRST), whole=WHOLE,
                       beam=beam, sweeps=20, refinements=2, budget=budget)  # fmt: skip


@dataclass
class Result:
    """A case on a problem.

    Attributes:
        strengths: found.
        validation: W1 there.
        evaluations: of the search.
        errors: W1 of each test measurement.
    """

    strengths: Strengths
    validation: float
    evaluations: int
    errors: Tensor = field(repr=False)

    def against(self, other: Result) -> tuple[float, float]:
        """Mean of the differences of the errors, and its standard error."""
        d = self.errors - other.errors
        return float(d.mean()), float(d.std() / math.sqrt(len(d)))


def contest(quick: bool, only: str = "") -> dict[str, Any]:
    """Every case on every problem."""
    calls, budget = 50, 16 if quick else 120
    answer: dict[str, Any] = {}
    wins = {name: [0, 0, 0] for name in CASES if name != "tfg"}
    for title, target in PROBLEMS.items():
        if only not in title:
            continue
        large = target.dimensions > 2
        count, n = (8, 24) if quick else (8, 40) if large else (16, 40)
        tests, m = (8, 24) if quick else (24, 80) if large else (96, 64)
        seen, exact = target.draw(tests, m, seed=1)
        lines, draws = lines_of(target.dimensions), Draws(0, torch.arange(tests * m))
        floor = float(w1(exact.sample(m, draws), exact, lines).mean())
        print(f"\n{title}: W1 to the exact posterior at {calls} calls, {tests} measurements x {m} "
              f"samples; exact draws {floor:.4f}", flush=True)  # fmt: skip
        results: dict[str, Result] = {}
        for name in CASES:
            begin = perf_counter()
            trials = searched(name, target, calls, budget, count, n)
            best = trials[0]
            x = sampled(Metered(target.goal), best.parameters, seen, calls, draws)
            errors = w1(x.view(tests, m, -1), exact, lines)
            results[name] = Result(best.parameters, best.score, len(trials), errors)
            found = ", ".join(f"{k} {v:.3g}" for k, v in best.parameters.items()
                              if v != NONE[k])  # fmt: skip
            print(f"  {name:8s} {float(errors.mean()):.4f}  (search {best.score:.4f}, "
                  f"{len(trials)} evaluations, {perf_counter() - begin:.0f} s: {found or 'none'})",
                  flush=True)  # fmt: skip
        for name, tally in wins.items():
            gap, error = results[name].against(results["tfg"])
            tally[0 if gap > 2 * error else 2 if gap < -2 * error else 1] += 1
            print(f"    {name:8s} - tfg: {gap:+.4f} +- {error:.4f}")
        answer[title] = {"exact draws": floor} | {
            name: {"strengths": r.strengths, "search": r.validation, "evaluations": r.evaluations,
                   "test": float(r.errors.mean()), "against tfg": r.against(results["tfg"])}
            for name, r in results.items()
        }  # fmt: skip
    tallies = ", ".join(f"{name} {a}/{b}/{c}" for name, (a, b, c) in wins.items())
    print(f"\n  problems that TFG wins, ties, loses by two standard errors: {tallies}", flush=True)
    return answer | {"wins, ties, losses": wins}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few samples: does it run?")
    parser.add_argument("--only", default="", help="problems whose name contains this")
    parser.add_argument("--out", type=Path, help="also write the JSON there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    text = json.dumps(contest(arguments.quick, arguments.only))
    if arguments.out:
        arguments.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
