"""Gaussian teleportation: exact flows of Gaussians, any covariance, and calls saved on mixtures."""

from __future__ import annotations

import math

import pytest
import torch

from sciflow.errors import InputError
from sciflow.paths import CategoricalPath, GaussianPath
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.samplers.teleport import GaussianFit, fit_gaussian, skip_time, teleport, teleported
from sciflow.schedules import Cosine, Rectified, Schedule, VarianceExploding, VPLinear
from sciflow.spaces import Euclidean, Tokens
from sciflow.state import Context, State
from sciflow.testing.targets import DiagonalGaussian, GaussianMixture, NamedMixture, all_real

SCHEDULES = [Rectified(), Cosine(), VPLinear(), VarianceExploding()]


def tilted(schedule: Schedule) -> tuple[GaussianMixture, GaussianFit]:
    """One Gaussian with a full covariance in 3-D, and the same as a fit."""
    root = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.3, 0.0], [-0.5, 0.2, 0.1]], dtype=torch.float64)
    mean, cov = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), root @ root.mT
    values, vectors = torch.linalg.eigh(cov)
    target = GaussianMixture(GaussianPath(Euclidean(3), schedule), mean[None], cov[None])
    return target, GaussianFit(mean, vectors, values)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_is_the_flow_of_a_diagonal_gaussian(schedule: Schedule) -> None:
    mean, variance = torch.tensor([1.0, -2.0]), torch.tensor([0.3, 2.0])
    target = DiagonalGaussian(GaussianPath(Euclidean(2), schedule), mean, variance)
    fit = GaussianFit(mean.double(), torch.eye(2, dtype=torch.float64), variance.double())
    x = Draws(0, torch.arange(6)).normal((4, 2), "x", dtype=torch.float64)
    for start, end in ((1.0, 0.4), (0.7, 0.0)):
        times = torch.tensor([start, end], dtype=torch.float64)
        exact = target.flow(x, times[0], times[1])
        found = teleport(x, target.path, fit, start, end)
        torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_solves_the_ode_of_any_covariance(schedule: Schedule) -> None:
    """Against the order-3 solver with many calls."""
    target, fit = tilted(schedule)
    x = target.path.prior(all_real(5), Draws(0, range(5)), "x", torch.float64)
    sampler = Sampler(steps=400, method="ab3", grid="uniform-u", logsnr_last=9.0)
    end = sampler(target, all_real(5), Draws(0, range(5)), start={"x": x}, dtype=x.dtype).state["x"]
    exact = teleport(x, target.path, fit, 1.0, 0.0)
    torch.testing.assert_close(end, exact, rtol=0, atol=2e-3 * float(exact.abs().max()))


def test_two_jumps_are_one() -> None:
    target, fit = tilted(Cosine())
    x = Draws(0, range(3)).normal((2, 3), "x", dtype=torch.float64)
    there = teleport(x, target.path, fit, 0.9, 0.5)
    torch.testing.assert_close(
        teleport(there, target.path, fit, 0.5, 0.2), teleport(x, target.path, fit, 0.9, 0.2)
    )
    torch.testing.assert_close(teleport(there, target.path, fit, 0.5, 0.9), x)


def test_fit_finds_mean_and_covariance() -> None:
    target, true = tilted(Rectified())
    data = target.sample(50_000)
    full, low = fit_gaussian(data), fit_gaussian(data, rank=1)
    torch.testing.assert_close(full.mean, true.mean, rtol=0, atol=0.03)
    cov = (full.basis * full.variances) @ full.basis.mT
    torch.testing.assert_close(cov, (true.basis * true.variances) @ true.basis.mT, rtol=0.05,
                               atol=0.02)  # fmt: skip
    assert low.basis.shape == (3, 1)
    assert float(low.variances[0]) == pytest.approx(float(full.variances[-1]))
    assert low.rest == pytest.approx(float(full.variances[:2].mean()))
    # With nothing but the mean variance it is the isotropic formula.
    round_fit = fit_gaussian(data, rank=0)
    x = Draws(0, range(2)).normal((3,), "x", dtype=torch.float64)
    (a, b), (s, r) = target.path.schedule(torch.tensor([0.8, 0.3], dtype=torch.float64))
    f = ((b**2 * round_fit.rest + r**2) / (a**2 * round_fit.rest + s**2)).sqrt()
    expected = b * round_fit.mean + f * (x - a * round_fit.mean)
    torch.testing.assert_close(teleport(x, target.path, round_fit, 0.8, 0.3), expected)


def test_saves_calls_on_a_mixture() -> None:
    """Seven calls from a skip to 5 standard deviations beat seven from pure noise."""
    angle = torch.arange(5) * 2 * math.pi / 5
    means = torch.stack((angle.cos(), angle.sin()), -1)
    path = GaussianPath(Euclidean(2), VPLinear(), data_std=0.72)
    target = GaussianMixture(path, means, torch.eye(2).expand(5, 2, 2) * 0.02,
                             [0.1, 0.3, 0.2, 0.25, 0.15])  # fmt: skip
    context, draws = all_real(300), Draws(0, torch.arange(300))
    end = Sampler(steps=150)(target, context, draws, dtype=torch.float64).state["x"]
    few = Sampler(steps=7, method="dpmpp2m", grid="uniform-logsnr")
    time = skip_time(path)
    start = teleported(target, context, draws, {"x": fit_gaussian(target.sample(20_000))}, time,
                       torch.float64)  # fmt: skip
    plain = few(target, context, draws, dtype=torch.float64).state["x"]
    report = few(target, context, draws, start=start, begin=time, dtype=torch.float64)
    error = [float((x - end).square().mean().sqrt()) for x in (plain, report.state["x"])]
    assert report.calls == 7 and error[1] < 0.75 * error[0]


def test_each_sample_jumps_alone_and_padding_stays_empty() -> None:
    target, fit = tilted(Rectified())
    mask = torch.tensor([[True, True], [True, False]])
    draws = Draws(0, [3, 4])
    both = teleported(target, Context(mask), draws, {"x": fit}, 0.8)["x"]
    one = teleported(target, Context(mask[1:]), draws.rows(slice(1, 2)), {"x": fit}, 0.8)["x"]
    assert torch.equal(both[1:], one) and not bool(both[1, 1].any())
    x = State({"x": both}, Context(mask))
    assert bool(target(x, 0.8)["x"].isfinite().all())


def test_skip_time_is_a_noise_level_of_the_data() -> None:
    path = GaussianPath(Euclidean(2), Cosine(), data_std=3.0)
    a, s = path.schedule(torch.tensor(skip_time(path, 4.0), dtype=torch.float64))
    assert float(s / a) == pytest.approx(12.0)


def test_what_is_refused() -> None:
    target, fit = tilted(Rectified())
    args = (all_real(2), Draws(0, [0, 1]))
    with pytest.raises(InputError, match="'x' has no Gaussian"):
        teleported(target, *args, {}, 0.5)
    with pytest.raises(InputError, match="at most 1, not 0"):
        teleported(target, *args, {"x": fit}, 0.0)
    named = NamedMixture(GaussianPath(Euclidean(2), Rectified()),
                         CategoricalPath(Tokens(3), Rectified()), torch.zeros(3, 2), 0.1,
                         [1.0, 1.0, 1.0])  # fmt: skip
    with pytest.raises(InputError, match="'token' is not continuous"):
        teleported(named, *args, {"x": fit_gaussian(torch.eye(2))}, 0.5)
    with pytest.raises(InputError, match="does not fit"):
        teleport(torch.zeros(2, 1, 2), target.path, fit, 1.0, 0.5)
    with pytest.raises(InputError, match="at least 2 values"):
        fit_gaussian(torch.zeros(1, 3))
    with pytest.raises(InputError, match="between 0 and 3, not 4"):
        fit_gaussian(torch.zeros(5, 3), rank=4)
