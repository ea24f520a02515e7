r"""Forecasts from an exact model of a seasonal Gaussian process, against the exact conditional law.

    k(d) = w₁ exp(−2 sin²(π d/24)/ℓ² − d/480) + w₂ exp(−d/24) + w₃ [d = 0]

is a season that drifts, an Ornstein–Uhlenbeck process and noise. Its denoiser is linear and known,
and so is the law of what is missing given what is seen, N(m, S): what the methods add is their own
error alone. The score is the expected CRPS over truths from that law, in closed form: it exceeds
the exact law's, σ/√π, by ∫ (F − G)² at each step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from domains.timeseries.encoding import FIELD
from domains.timeseries.methods import SAMPLERS, Method, guided
from sciflow.denoisers import Denoiser, Prediction
from sciflow.paths import GaussianPath
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.schedules import schedule_from_config
from sciflow.spaces import Euclidean
from sciflow.state import Context, State
from sciflow.testing.targets import ExactDenoiser

SEASON, LENGTH, HISTORY, WINDOWS, PATHS = 24, 120, 96, 6, 64


class SeasonalProcess(ExactDenoiser):
    """D(x_t) = a K (a² K + s²)⁻¹ x_t for windows ``[B, L, 1]``."""

    def __init__(self) -> None:
        schedule = schedule_from_config({"kind": "rectified"})
        self_path = GaussianPath(Euclidean(), schedule, "edm")
        super().__init__({FIELD: self_path})
        self.path = self_path
        d = (torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)).abs().double()
        season = torch.exp(-2 * torch.sin(math.pi * d / SEASON) ** 2 / 0.64 - d / 480)
        self.covariance = 0.7 * season + 0.25 * torch.exp(-d / SEASON) + 0.05 * (d == 0)
        self.values, self.vectors = torch.linalg.eigh(self.covariance)

    def exact(self, state: State, times: Mapping[str, Tensor]) -> dict[str, Tensor]:
        a, s = self.path.schedule(times[FIELD][:, None])
        z = (state[FIELD][..., 0].double() @ self.vectors) * a * self.values
        return {FIELD: ((z / (a**2 * self.values + s**2)) @ self.vectors.T)[..., None]}

    def sample(self, n: int) -> Tensor:
        z = torch.randn(n, LENGTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return z @ torch.linalg.cholesky(self.covariance).T

    def conditional(self, y: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of what is not given, of one window."""
        k, hidden = self.covariance, ~given
        weights = torch.linalg.solve(k[given][:, given], k[given][:, hidden]).T
        variance = k[hidden][:, hidden] - weights @ k[given][:, hidden]
        return weights @ y[given], variance.diagonal().sqrt()


class Counted(Denoiser):
    """Counts evaluations of the model and, by a hook, products with its Jacobian."""

    def __init__(self, denoiser: ExactDenoiser):
        super().__init__()
        self.denoiser, self.paths = denoiser, denoiser.paths
        self.calls = self.products = 0

    def forward(self, state: State, t: object, previous: Prediction | None = None) -> Prediction:
        self.calls += 1
        prediction = self.denoiser(state, t, previous)
        clean = prediction[FIELD]
        if clean.requires_grad:
            clean.register_hook(self._product)
        return prediction

    def _product(self, gradient: Tensor) -> None:
        self.products += 1


def crps_against(x: Tensor, m: Tensor, sd: Tensor) -> Tensor:
    """E|X − Y| − E|X − X'|/2 with Y ~ N(m, sd²), of draws ``x [S, n]``, unbiased."""
    normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
    z = (x - m) / sd
    first = (sd * (z * (2 * normal.cdf(z) - 1) + 2 * normal.log_prob(z).exp())).mean(0)
    n = len(x)
    weights = (2 * torch.arange(1, n + 1) - n - 1).double()[:, None]
    return first - (weights * x.sort(0).values).sum(0) / (n * (n - 1))


@cache
def loss(method: Method, task: str) -> tuple[float, int, int]:
    """CRPS over that of the exact law less 1, model evaluations, products."""
    process = SeasonalProcess()
    y = process.sample(WINDOWS)
    given = (torch.arange(LENGTH) < HISTORY).expand(WINDOWS, -1).clone()
    if task == "gaps":
        given = torch.rand(given.shape, generator=torch.Generator().manual_seed(1)) > 0.3
        given[:, 40:60] = False
    rows = given.repeat_interleave(PATHS, 0)[..., None]
    seen = torch.where(rows, y.repeat_interleave(PATHS, 0)[..., None], 0.0).float()
    counted = Counted(process)
    kappa = ((torch.arange(PATHS) + 1) / (PATHS + 1)).repeat(WINDOWS)
    report = replace(Sampler(), **SAMPLERS[method])(
        guided(method, counted, seen, rows, kappa),
        Context(torch.ones_like(rows)),
        Draws(0, torch.arange(len(rows))),
    )
    x = report.state[FIELD][..., 0].double().view(WINDOWS, PATHS, LENGTH)
    found, best = 0.0, 0.0
    for i in range(WINDOWS):
        m, sd = process.conditional(y[i], given[i])
        found += float(crps_against(x[i][:, ~given[i]], m, sd).sum())
        best += float(sd.sum()) / math.pi**0.5
    return found / best - 1, counted.calls, counted.products


@pytest.mark.parametrize("task", ["forecast", "gaps"])
def test_self_guidance_is_nearly_exact(task: str) -> None:
    """Within 5 % of the exact law's CRPS, in at most 20 calls and one product a step."""
    excess, calls, products = loss("self-guidance", task)
    assert calls <= 20 and products == 7
    assert excess < 0.05


@pytest.mark.parametrize(("task", "most"), [("forecast", 0.12), ("gaps", 0.35)])
def test_replacement_is_biased(task: str, most: float) -> None:
    """What it is known for: x_t of the rest does not follow y, the more so between observations."""
    excess, calls, products = loss("replacement", task)
    assert calls == 20 and products == 0
    assert excess < most
    assert loss("self-guidance", task)[0] < excess
