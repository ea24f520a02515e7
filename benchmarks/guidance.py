"""Posterior methods against the exact posterior of Gaussian mixtures, at equal numbers of calls.

    python -m benchmarks.guidance [--quick] [--only SECTION] [--out FILE]

Targets: the 2-D ring of 8 and the 64-D mixture of 5 Gaussians of ``benchmarks.samplers``, measured
by y = A x + noise: one row for the ring (its posterior has two modes), 16 random rows for the
mixture, at a small and a large noise level. The posterior is a mixture too, known in closed form.

A call is an evaluation of the network or a product with its gradient; both are counted by a meter
around the model, and every method gets as many steps as its calls allow. Columns:

    mean      distance of the means, in standard deviations of the exact posterior
    cov       |C - C_exact| / |C_exact|, Frobenius
    W1        distance of the exact posterior's cdf at the samples, along random lines, from uniform
    in 90 %   how many samples lie in the exact posterior's central 90 % along these lines
    truth     how often the x behind y lies in the samples' central 90 %

The row "exact draws" is what as many independent draws of the posterior give: nobody can do better.

Entries of METHODS, ``(goal, measured, calls, draws) -> samples [B, d]``, run on every target; those
of SECTIONS, ``(quick) -> plain data``, are comparisons of their own, which they print.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.samplers import mixture, ring
from sciflow.denoisers import Denoiser, Prediction
from sciflow.guidance import DecoupledAnnealing, MatrixMeasurement, Posterior
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.state import State, Times
from sciflow.testing.targets import GaussianMixture, all_real


class Metered(Denoiser):
    """A target that counts its ``calls``: evaluations, and products with its gradient."""

    def __init__(self, mixture: GaussianMixture):
        super().__init__()
        self.mixture, self.paths, self.calls = mixture, mixture.paths, 0

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        prediction = self.mixture(state, t, previous)
        self.calls += 1
        for x in prediction.clean.values():
            if x.requires_grad:
                x.register_hook(self._product)
        return prediction

    def _product(self, gradient: Tensor) -> None:
        self.calls += 1


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes:
        y: ``[B, m]``.
        instrument: of the field x ``[B, 1, d]``.
    """

    y: Tensor
    instrument: MatrixMeasurement

    def rows(self, index: Tensor | slice) -> Measured:
        return Measured(self.y[index], self.instrument.rows(index))

    def log_f(self, clean: State) -> Tensor:
        """log p(y | x), ``[B]``, up to a constant."""
        left = self.y.to(clean["x"]) - self.instrument.apply(clean["x"])
        return -0.5 * (left * self.instrument.precision(left)).sum(1)


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

        low, high = 1, calls + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if sample(middle, 1)[1] <= calls else (low, middle)
        goal.calls = 0  # What finding the number of steps took is not the method's cost.
        return sample(low, len(draws))[0]

    return run


def posterior(**settings: Any) -> Guide:
    return lambda model, seen, draws, steps: Posterior(
        model, "x", seen.y, seen.instrument,
        **({"steps": steps} if settings.get("method") == "dps" else {}), **settings)  # fmt: skip


def decoupled(**settings: Any) -> Guide:
    return lambda model, seen, draws, steps: DecoupledAnnealing(
        model, "x", seen.y, seen.instrument, draws, **settings)  # fmt: skip


def unguided(model: Denoiser, seen: Measured, draws: Draws, steps: int) -> Denoiser:
    return model


FLOW = {"method": "dpmpp2m", "grid": "uniform-logsnr"}
NOISY = {"method": "ddpm", "grid": "uniform-logsnr"}
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
}  # fmt: skip
"""Others add their own: particles, training-free guidance after its search, ..."""

SECTIONS: dict[str, Callable[[bool], Any]] = {}
"""Comparisons without a measurement, such as compositions of models."""


@dataclass(frozen=True)
class Exact:
    """The posterior of a mixture for each of Y measurements.

    Attributes:
        log_weights: ``[Y, K]``.
        means: ``[Y, K, d]``.
        covariances: ``[K, d, d]``; they do not depend on y.
    """

    log_weights: Tensor
    means: Tensor
    covariances: Tensor

    @classmethod
    def of(cls, goal: GaussianMixture, a: Tensor, variance: float, y: Tensor) -> Exact:
        prior = (goal.vectors * goal.values[:, None]) @ goal.vectors.mT
        seen = a @ prior @ a.mT + variance * torch.eye(len(a), dtype=torch.float64)
        gain = torch.linalg.solve(seen, a @ prior).mT
        left = y[:, None] - goal.means @ a.mT
        evidence = torch.distributions.MultivariateNormal(torch.zeros(len(a)).double(), seen)
        means = goal.means + torch.einsum("kdm,ykm->ykd", gain, left)
        log_weights = (goal.log_weights + evidence.log_prob(left)).log_softmax(-1)
        return cls(log_weights, means, prior - gain @ a @ prior)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean ``[Y, d]`` and covariance ``[Y, d, d]``."""
        w = self.log_weights.exp()
        mean = torch.einsum("yk,ykd->yd", w, self.means)
        left = self.means - mean[:, None]
        between = torch.einsum("yk,ykd,yke->yde", w, left, left)
        return mean, torch.einsum("yk,kde->yde", w, self.covariances) + between

    def cdf(self, x: Tensor, lines: Tensor) -> Tensor:
        """Of u·x for samples ``[Y, n, d]`` and lines ``[R, d]``: ``[Y, n, R]``."""
        sd = torch.einsum("rd,kde,re->rk", lines, self.covariances, lines).sqrt()
        middle = torch.einsum("rd,ykd->yrk", lines, self.means)
        z = ((x @ lines.mT)[..., None] - middle[:, None]) / sd
        p = torch.special.ndtr(z)
        return (p * self.log_weights.exp()[:, None, None]).sum(-1)

    def sample(self, n: int, draws: Draws) -> Tensor:
        """``[Y, n, d]``."""
        y, k, d = self.means.shape
        u = draws.uniform((), "component", dtype=torch.float64).view(y, n)
        edges = self.log_weights.exp().cumsum(-1)[:, None]
        pick = (u[..., None] > edges).sum(-1).clamp(max=k - 1)
        root = torch.linalg.cholesky(self.covariances)
        z = draws.normal((d,), "exact", dtype=torch.float64).view(y, n, d)
        mean = self.means.gather(1, pick[..., None].expand(y, n, d))
        return mean + (root[pick] @ z[..., None])[..., 0]


def judge(x: Tensor, exact: Exact, truth: Tensor, lines: Tensor) -> dict[str, float]:
    """The columns of the table for samples ``[Y, n, d]``."""
    mean, covariance = exact.moments()
    left = x - x.mean(1, keepdim=True)
    found = left.mT @ left / (x.shape[1] - 1)
    sd = covariance.diagonal(dim1=1, dim2=2).sqrt()
    p = exact.cdf(x, lines)
    ideal = (torch.arange(x.shape[1], dtype=torch.float64) + 0.5) / x.shape[1]
    along = (x @ lines.mT).quantile(torch.tensor([0.05, 0.95]).double(), dim=1)
    at = truth @ lines.mT
    return {
        "mean": float(((x.mean(1) - mean) / sd).square().mean().sqrt()),
        "cov": float(((found - covariance).flatten(1).norm(dim=1)
                      / covariance.flatten(1).norm(dim=1)).mean()),
        "w1": float((p.sort(dim=1).values - ideal[:, None]).abs().mean()),
        "in90": float(((p > 0.05) & (p < 0.95)).double().mean()),
        "truth90": float(((at > along[0]) & (at < along[1])).double().mean()),
    }  # fmt: skip


def problem(goal: GaussianMixture, sigma: float, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """A ``[m, d]``, truths ``[Y, d]`` and measurements ``[Y, m]``."""
    d = goal.means.shape[1]
    a = torch.tensor([[0.9, 0.436]]).double()
    if d > 2:
        a = Draws(5, torch.arange(16)).normal((d,), "rows", dtype=torch.float64) / math.sqrt(d)
    truth = goal.sample(count, seed=1)
    noise = Draws(6, torch.arange(count)).normal((len(a),), "noise", dtype=torch.float64)
    return a, truth, truth @ a.mT + sigma * noise


def compare(name: str, goal: GaussianMixture, sigma: float, calls: int, count: int, n: int
            ) -> dict[str, Any]:  # fmt: skip
    """Every method on one target, ``count`` measurements with ``n`` samples each."""
    a, truth, y = problem(goal, sigma, count)
    d = a.shape[1]
    exact = Exact.of(goal, a, sigma**2, y)
    lines = Draws(7, torch.arange(16)).normal((d,), "lines", dtype=torch.float64)
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
        print(f"  {method:34s}{r['mean']:8.3f}{r['cov']:8.3f}{r['w1']:8.3f}{r['in90']:9.3f}"
              f"{r['truth90']:8.3f}{r['calls']:7.0f}{over}", flush=True)  # fmt: skip
    return rows


def mixtures(quick: bool) -> dict[str, Any]:
    """The comparison of posterior methods on both targets."""
    result: dict[str, Any] = {}
    for name, goal, sigmas in (("ring", ring(), (0.1, 0.4)), ("mixture64", mixture(), (0.1, 0.5))):
        count, n = ((6, 100) if quick else (40, 400)) if name == "ring" else (
            (4, 50) if quick else (16, 200))  # fmt: skip
        for sigma in sigmas[:1] if quick else sigmas:
            for calls in (40,) if quick else (20, 50, 200):
                key = f"{name}, sigma {sigma:g}, {calls} calls"
                result[key] = compare(name, goal, sigma, calls, count, n)
    return result


SECTIONS["mixtures"] = mixtures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few samples; about a minute")
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
