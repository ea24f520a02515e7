"""Posterior methods against the exact posterior of Gaussian mixtures, at equal numbers of calls.

    python -m benchmarks.guidance [--quick] [--only SECTION] [--out FILE]

Targets: the 2-D ring of 8 and the 64-D mixture of 5 Gaussians of ``benchmarks.samplers``, measured
by y = A x + noise: one row for the ring (its posterior has two modes), 16 random rows for the
mixture, at a small and a large noise level. The posterior is a mixture too, known in closed form.

A call is an evaluation of the network or a product with its gradient; both are counted by a meter
around the model, and every method gets as many steps as its calls allow. K particles are K times
the calls, counted together: they have about 1/K of the steps. Columns:

    mean      distance of the means, in standard deviations of the exact posterior
    cov       |C - C_exact| / |C_exact|, Frobenius
    W1        distance of the exact posterior's cdf at the samples, along random lines, from uniform
    in 90 %   how many samples lie in the exact posterior's central 90 % along these lines
    truth     how often the x behind y lies in the samples' central 90 %

The row "exact draws" is what as many independent draws of the posterior give: nobody can do better.

The row "training-free" is TFG with the strengths that a search of 24 evaluations found for the same
target, noise and calls on other measurements with other noise. Its metric is W1 to the exact
posterior, so it is told more than the other rows; the calls of the search are printed and are not
in the table. TFG beside each of its special cases is ``benchmarks.training_free``.

The full run has 24 x 200 samples on the ring and 8 x 100 on the mixture: few enough for one core.

Entries of METHODS, ``(goal, measured, calls, draws) -> samples [B, d]``, run on every target; those
of SECTIONS, ``(quick) -> plain data``, are comparisons of their own, which they print.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import autoguidance_tree
from benchmarks.posteriors import Exact, Measured, Metered, judge, lines_of, most_steps, problem
from benchmarks.samplers import mixture, ring
from benchmarks.training_free import Problem, contest, sampled, searched
from sciflow.denoisers import Denoiser
from sciflow.guidance import (
    DecoupledAnnealing,
    MatrixMeasurement,
    Posterior,
    Superposition,
    sample_particles,
)
from sciflow.paths import GaussianPath
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.samplers.hooks import Step
from sciflow.schedules import Rectified
from sciflow.spaces import Euclidean
from sciflow.state import State
from sciflow.testing.targets import GaussianMixture, all_real

Method = Callable[[Metered, Measured, int, Draws], Tensor]
Guide = Callable[[Denoiser, Measured, Draws, int], Denoiser]
"""(model, measured, draws, steps of the sampler) -> guided model."""


def guided(guide: Guide, **settings: Any) -> Method:
    """A guided model under a sampler of as many steps as the calls allow."""

    def run(goal: Metered, measured: Measured, calls: int, draws: Draws) -> Tensor:
        def sample(steps: int, n: int) -> tuple[Tensor, int]:
            begin, rows = goal.calls, slice(n)
            model = guide(goal, measured.rows(rows), draws.rows(rows), steps)
            report = Sampler(steps=steps, **settings)(model, all_real(n), draws.rows(rows),
                                                      dtype=torch.float64)  # fmt: skip
            return report.state["x"][:, 0], goal.calls - begin

        return most_steps(goal, calls, sample, len(draws))[0]

    return run


def particles(k: int, **settings: Any) -> Method:
    """One of K weighted particles, K times the calls of one."""

    def run(goal: Metered, measured: Measured, calls: int, draws: Draws) -> Tensor:
        def sample(steps: int, n: int) -> tuple[Tensor, int]:
            begin = goal.calls
            seen = measured.rows(torch.arange(n).repeat_interleave(k))
            report = sample_particles(Sampler(steps=steps, **NOISY), goal, all_real(n),
                                      draws.rows(slice(n)), seen.log_f, k,
                                      dtype=torch.float64, **settings)  # fmt: skip
            return report.state["x"][:, 0], k * (goal.calls - begin)

        return most_steps(goal, calls, sample, len(draws))[0]

    return run


def training_free(goal: Metered, measured: Measured, calls: int, draws: Draws) -> Tensor:
    """TFG with the strengths that were found for this target, noise and number of calls."""
    assert isinstance(measured.instrument, MatrixMeasurement)
    sigma = float(measured.instrument.noise) ** 0.5
    strengths = found(Problem(goal.mixture, sigma), calls, len(draws) <= 600)
    return sampled(goal, strengths, measured, calls, draws)


@cache
def found(target: Problem, calls: int, quick: bool) -> dict[str, float]:
    trials = searched("tfg", target, calls, 12 if quick else 24, 8, 32)
    best = trials[0]
    print(f"    search: {len(trials)} evaluations of 256 samples, W1 {best.score:.3f}: "
          + ", ".join(f"{k} {v:g}" for k, v in best.parameters.items()), flush=True)  # fmt: skip
    return best.parameters


def posterior(**settings: Any) -> Guide:
    return lambda model, seen, draws, steps: Posterior(
        model, "x", seen.y, seen.instrument,
        **({"steps": steps} if settings.get("method") == "dps" else {}), **settings)  # fmt: skip


def decoupled(**settings: Any) -> Guide:
    return lambda model, seen, draws, steps: DecoupledAnnealing(
        model, "x", seen.y, seen.instrument, draws, **settings)  # fmt: skip


def unguided(model: Denoiser, seen: Measured, draws: Draws, steps: int) -> Denoiser:
    return model


FLOW: dict[str, Any] = {"method": "dpmpp2m", "grid": "uniform-logsnr"}
NOISY: dict[str, Any] = {"method": "ddpm", "grid": "uniform-logsnr"}
PUBLISHED_DPS = {"method": "ddpm", "grid": "time"}
AFRESH = {"method": "ddim", "eta": 1e9, "grid": "uniform-logsnr"}
COVARIANCES: dict[str, dict[str, Any]] = {
    "dps-scaled": {"method": "dps-scaled"},
    "pigdm": {"method": "pigdm"},
    "pigdm, no gradient": {"method": "pigdm", "through": "estimate"},
    "tmpd": {"method": "tmpd"},
    "mmps, 1 iteration": {"method": "mmps", "iterations": 1},
    "mmps, 3 iterations": {"method": "mmps", "iterations": 3},
}
METHODS: dict[str, Method] = {
    "unguided": guided(unguided, **FLOW),
    **{f"dps, zeta {zeta:g}": guided(posterior(method="dps", weight=zeta), **PUBLISHED_DPS)
       for zeta in (0.03, 0.1, 0.3, 1.0)},
    **{f"{name}; {way}": guided(posterior(**settings), **how)
       for name, settings in COVARIANCES.items()
       for way, how in (("flow", FLOW), ("ddpm", NOISY))},
    "daps, D; afresh": guided(decoupled(), **AFRESH),
    "daps, D; ddpm": guided(decoupled(), **NOISY),
    "daps, inner flow of 4; afresh": guided(decoupled(inner=Sampler(steps=4, **FLOW)), **AFRESH),
    "training-free": training_free,
    "particles (TDS, K=8)": particles(8, twisted=True),
    "particles (FK, K=8)": particles(8),
}  # fmt: skip
"""By name; others add their own."""

SECTIONS: dict[str, Callable[[bool], Any]] = {}
"""Comparisons without a measurement, such as compositions of models."""


def compare(name: str, goal: GaussianMixture, sigma: float, calls: int, count: int, n: int
            ) -> dict[str, Any]:  # fmt: skip
    """Every method on one target, ``count`` measurements with ``n`` samples each."""
    a, truth, y = problem(goal, sigma, count)
    d = a.shape[1]
    exact = Exact.of(goal, a, sigma**2, y)
    lines = lines_of(d)
    draws = Draws(0, torch.arange(count * n))
    measured = Measured(y.repeat_interleave(n, 0), MatrixMeasurement(a, sigma**2, (1, d)))
    rows = {"exact draws": judge(exact.sample(n, draws), exact, truth, lines) | {"calls": 0}}
    print(f"\n{name}, sigma_y {sigma:g}, {calls} calls, {count} measurements x {n} samples")
    print(f"  {'':34s}{'mean':>8s}{'cov':>8s}{'W1':>8s}{'in 90 %':>9s}{'truth':>8s}{'calls':>7s}")
    for method in ("exact draws", *METHODS):
        if method in METHODS:
            model = Metered(goal)
            x = METHODS[method](model, measured, calls, draws).view(count, n, d)
            if bool(x.isfinite().all()):
                rows[method] = judge(x, exact, truth, lines) | {"calls": model.calls}
            else:
                rows[method] = dict.fromkeys(rows["exact draws"], math.inf) | {"calls": model.calls}
        r = rows[method]
        over = "  over its calls" if r["calls"] > calls else ""
        mean, cov = (f"{r[key]:8.3f}" if r[key] < 1000 else f"{r[key]:8.0e}"
                      for key in ("mean", "cov"))  # fmt: skip
        print(f"  {method:34s}{mean}{cov}{r['w1']:8.3f}{r['in90']:9.3f}"
              f"{r['truth90']:8.3f}{r['calls']:7.0f}{over}", flush=True)  # fmt: skip
    return rows


def mixtures(quick: bool) -> dict[str, Any]:
    """The comparison of posterior methods on both targets."""
    result: dict[str, Any] = {}
    for name, goal, sigmas in (("ring", ring(), (0.1, 0.4)), ("mixture64", mixture(), (0.1, 0.5))):
        count, n = ((6, 100) if quick else (24, 200)) if name == "ring" else (
            (4, 50) if quick else (8, 100))  # fmt: skip
        for sigma in sigmas[:1] if quick else sigmas:
            for calls in (40,) if quick else (20, 50, 200):
                key = f"{name}, sigma {sigma:g}, {calls} calls"
                result[key] = compare(name, goal, sigma, calls, count, n)
    print("  calls of K particles: of all K together; calls of searches are not in the table")
    return result


def more_particles(quick: bool) -> dict[str, Any]:
    """The error of the posterior mean that K particles estimate, the steps being the same.

    Of one group of particles, by their weights, in standard deviations of the exact posterior;
    on the ring with the large noise. With blur is the width of the measured thing under the model.
    """
    goal, sigma = ring(), 0.4
    count, groups, steps = (4, 8, 20) if quick else (8, 40, 40)
    a, _, y = problem(goal, sigma, count)
    exact = Exact.of(goal, a, sigma**2, y)
    mean, covariance = exact.moments()
    sd = covariance.diagonal(dim1=1, dim2=2).sqrt()
    spread = float((a @ prior_covariance(goal) @ a.mT).squeeze())
    measured = Measured(y.repeat_interleave(groups, 0), MatrixMeasurement(a, sigma**2, (1, 2)))
    kinds = {"TDS": {"twisted": True}, "TDS, blur": {"twisted": True, "blur": spread / sigma**2},
             "FK": {}, "FK, blur": {"blur": spread / sigma**2}}  # fmt: skip
    counts, result = (1, 4, 16, 64), dict[str, Any]()
    print(f"\nparticles: error of the posterior mean, ring, sigma_y {sigma:g}, {steps} steps, "
          f"{count} measurements x {groups} groups")  # fmt: skip
    print(f"  {'':34s}" + "".join(f"{f'K = {k}':>8s}" for k in counts))
    for kind, settings in kinds.items():
        errors = {}
        for k in counts:
            seen = measured.rows(torch.arange(count * groups).repeat_interleave(k))
            report = sample_particles(
                Sampler(steps=steps, **NOISY), goal, all_real(count * groups),
                Draws(10, torch.arange(count * groups)), seen.log_f, k,
                dtype=torch.float64, **settings)  # type: ignore[arg-type]  # fmt: skip
            x = report.particles["x"].view(count, groups, k, 2)
            w = report.log_weights.exp().view(count, groups, k, 1)
            left = ((w * x).sum(2) - mean[:, None]) / sd[:, None]
            errors[str(k)] = float(left.square().mean().sqrt())
        print(f"  {kind:34s}" + "".join(f"{e:8.3f}" for e in errors.values()), flush=True)
        result[kind] = errors
    return result


def prior_covariance(goal: GaussianMixture) -> Tensor:
    """``[d, d]``."""
    within = (goal.vectors * goal.values[:, None]) @ goal.vectors.mT
    return Exact(goal.log_weights[None], goal.means[None], within).moments()[1][0]


def superposition(quick: bool) -> dict[str, Any]:
    """Two exact mixtures as one: OR beside the mixture of both, AND by how equal it keeps them."""
    path, eye = GaussianPath(Euclidean(2), Rectified()), torch.eye(2, dtype=torch.float64)
    means = torch.tensor([[[1.5, 0.0], [-1.0, 1.0]], [[0.5, 1.0], [-0.5, -1.5]]]).double()
    covariances = torch.tensor([[0.1, 0.3], [0.2, 0.15]]).double()[..., None, None] * eye
    inner = torch.tensor([[0.6, 0.4], [0.3, 0.7]]).double()
    pair = [GaussianMixture(path, *each) for each in zip(means, covariances, inner, strict=True)]
    outer = torch.tensor([0.3, 0.7]).double()
    whole = GaussianMixture(path, means.flatten(0, 1), covariances.flatten(0, 1),
                            (outer[:, None] * inner).flatten())  # fmt: skip
    mean, covariance = whole.log_weights.exp() @ whole.means, prior_covariance(whole)
    n, many = (500, (10, 40)) if quick else (4000, (10, 20, 40, 80, 160))
    samplers = {"sde": "ddpm", "ode": "ab3"}

    def errors(x: Tensor) -> dict[str, float]:
        found = x.T.cov()
        return {"mean": float(((x.mean(0) - mean) / covariance.diagonal().sqrt()).square()
                              .mean().sqrt()),
                "cov": float((found - covariance).norm() / covariance.norm())}  # fmt: skip

    def sample(model: Superposition, steps: int, form: str, gaps: list[Tensor]) -> Tensor:
        def watch(step: Step) -> State:
            a, s = path.schedule(torch.tensor(step.end, dtype=torch.float64))
            first, second = (q.log_density(step.state["x"][:, 0], a, s) for q in pair)
            gaps.append(first - second)
            return step.state

        return Sampler(steps=steps, method=samplers[form])(
            model, all_real(n), Draws(11, torch.arange(n)), dtype=torch.float64, after=watch
        ).state["x"][:, 0]  # fmt: skip

    result: dict[str, Any] = {"or": {"exact draws": errors(whole.sample(n, 3))}, "and": {}}
    print(f"\nOR of two mixtures, {n} samples: error of mean (in sd) and covariance")
    row = result["or"]["exact draws"]
    print(f"  {'exact draws':34s}{'':6s}{row['mean']:8.3f}{row['cov']:8.3f}")
    for rule in ("or", "average"):
        for form in samplers:
            for steps in many:
                model = Superposition(pair, rule, offsets=outer.log().tolist(), form=form)  # type: ignore[arg-type]
                row = errors(sample(model, steps, form, [])) | {"calls": model.calls}
                result["or"][f"{rule}, {form}, {steps} steps"] = row
                print(f"  {f'{rule}, {form}':34s}{steps:6d}{row['mean']:8.3f}{row['cov']:8.3f}",
                      flush=True)  # fmt: skip
    print("AND of the same: log q1 - log q2 after the steps, at t > 0: rms and median size; at the"
          " clean end: rms")  # fmt: skip
    for rule in ("and", "average"):
        for form in samplers:
            for steps in many:
                gaps: list[Tensor] = []
                model = Superposition(pair, rule, form=form)  # type: ignore[arg-type]
                sample(model, steps, form, gaps)
                way = torch.stack(gaps[:-1])
                row = {
                    "rms": float(way.square().mean().sqrt()),
                    "median": float(way.abs().median()),
                    "end": float(gaps[-1].square().mean().sqrt()),
                    "calls": model.calls,
                }
                result["and"][f"{rule}, {form}, {steps} steps"] = row
                print(f"  {f'{rule}, {form}':34s}{steps:6d}{row['rms']:8.3f}{row['median']:8.3f}"
                      f"{row['end']:8.3f}", flush=True)  # fmt: skip
    return result


def autoguidance(quick: bool) -> list[dict[str, Any]]:
    """Outliers and coverage on the 2-D tree, see ``benchmarks.autoguidance_tree``."""
    rows = autoguidance_tree.experiment(*((400, 16) if quick else ()))
    print("\nautoguidance on a 2-D tree\n" + autoguidance_tree.table(rows), flush=True)
    return [asdict(row) for row in rows]


SECTIONS |= {
    "mixtures": mixtures,
    "training-free": contest,
    "particles": more_particles,
    "superposition": superposition,
    "autoguidance": autoguidance,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few samples; two minutes")
    parser.add_argument("--only", choices=list(SECTIONS), help="one section")
    parser.add_argument("--out", type=Path, help="also write the JSON there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [arguments.only] if arguments.only else list(SECTIONS)
    result = {name: SECTIONS[name](arguments.quick) for name in chosen}
    text = json.dumps({"quick": arguments.quick, **result})
    if arguments.out:
        arguments.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
