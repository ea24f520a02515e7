"""Noise put in on the way: churn as published, and restarts in mid-trajectory."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sciflow.denoisers import Prediction
from sciflow.errors import InputError
from sciflow.paths import CategoricalPath, GaussianPath
from sciflow.random import Draws
from sciflow.samplers import METHODS, Plan, Sampler, time_grid
from sciflow.samplers.churn import churned
from sciflow.schedules import Cosine, Rectified, Schedule, VarianceExploding
from sciflow.spaces import Euclidean, Tokens
from sciflow.state import State, Times
from sciflow.testing.targets import DiagonalGaussian, GaussianMixture, NamedMixture, all_real

every_method = pytest.mark.parametrize("method", METHODS)


def gaussian(schedule: Schedule, variance: float = 0.3) -> DiagonalGaussian:
    return DiagonalGaussian(
        GaussianPath(Euclidean(1), schedule), torch.tensor([1.0]), torch.tensor([variance])
    )


def ring(kind: type[GaussianMixture] = GaussianMixture) -> GaussianMixture:
    angle = torch.arange(5) * 2 * math.pi / 5
    return kind(
        GaussianPath(Euclidean(2), Rectified(), "x0", 1.5),
        2 * torch.stack((angle.cos(), angle.sin()), -1),
        0.15 * torch.eye(2).expand(5, 2, 2),
        [0.1, 0.3, 0.2, 0.25, 0.15],
    )


def named() -> NamedMixture:
    angle = torch.arange(5) * 2 * math.pi / 5
    return NamedMixture(
        GaussianPath(Euclidean(2), Rectified()), CategoricalPath(Tokens(5), Rectified()),
        2 * torch.stack((angle.cos(), angle.sin()), -1), 0.25**2, [0.1, 0.3, 0.2, 0.25, 0.15],
    )  # fmt: skip


def sample(target: DiagonalGaussian | GaussianMixture, n: int, **settings: object) -> Tensor:
    report = Sampler(**settings)(  # type: ignore[arg-type]
        target, all_real(n), Draws(0, torch.arange(n)), dtype=torch.float64
    )
    return report.state["x"]


def sigmas(schedule: Schedule, times: Tensor) -> list[float]:
    a, s = schedule(times)
    return (s / a).tolist()


def test_churn_is_the_published_algorithm() -> None:
    """Karras et al. 2022, algorithm 2 with Euler's step, in their variables: a = 1, s = σ."""
    schedule, n = VarianceExploding(0.002, 80.0), 7
    target = gaussian(schedule)
    settings = {"steps": n, "method": "ab1", "grid": "karras", "churn": 2.0, "churn_min": 0.05,
                "churn_max": 50.0, "churn_noise": 1.007}  # fmt: skip
    sigma = sigmas(schedule, time_grid("karras", schedule, n))
    context, draws = all_real(4), Draws(0, torch.arange(4))
    x = target.path.prior(context, draws, "x/prior", torch.float64)
    raised = 0
    for i in range(n):
        gamma = min(2.0 / n, math.sqrt(2) - 1) if 0.05 <= sigma[i] <= 50 else 0.0
        up = sigma[i] * (1 + gamma)
        if gamma:
            z = target.path.space.noise(context, draws, "x/renoise", i, torch.float64)
            x = x + math.sqrt(up**2 - sigma[i] ** 2) * 1.007 * z
            raised += 1
        m, v = target.mean, target.variance
        d = m + v / (v + up**2) * (x - m)
        x = x + (sigma[i + 1] - up) * (x - d) / up
    assert 0 < raised < n - 1
    torch.testing.assert_close(sample(target, 4, **settings), x, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("schedule", [Rectified(), Cosine(), VarianceExploding()], ids=str)
def test_the_plan_of_churn(schedule: Schedule) -> None:
    times = time_grid("uniform-u", schedule, 10)
    plan = Plan.along(times)
    levels = sigmas(schedule, times)
    high = churned(plan, schedule, 3.0, 0.2, 2.0)
    assert torch.equal(high.end, plan.end)
    for i, level in enumerate(levels[:-1]):
        if i and 0.2 <= level <= 2.0:
            assert sigmas(schedule, high.start[i : i + 1])[0] == pytest.approx(1.3 * level)
        else:
            assert high.start[i] == plan.start[i]
    most = churned(plan, schedule, 100.0)
    assert sigmas(schedule, most.start[4:5])[0] == pytest.approx(math.sqrt(2) * levels[4])
    assert most.start[0] == plan.start[0] and bool((most.start <= 1).all())
    # Heun's correctors stay where they were: at intervals of no length.
    ages, twice = high.doubled().age, high.doubled()
    assert [age % 2 == 1 for age in ages] == (twice.start == twice.end).tolist()


@every_method
def test_churn_of_nothing_is_no_churn(method: str) -> None:
    """Bit for bit: at 0, and where no level lies within the bounds."""
    target = ring()
    plain = sample(target, 4, steps=9, method=method)
    for settings in ({"churn": 0.0}, {"churn": 5.0, "churn_min": 1e8}):
        assert torch.equal(sample(target, 4, steps=9, method=method, **settings), plain)
    assert not torch.equal(sample(target, 4, steps=9, method=method, churn=5.0), plain)


@every_method
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 20])
def test_calls_are_as_promised(method: str, steps: int) -> None:
    promised = steps - (METHODS[method].doubled and steps % 2 == 0)
    for settings in (
        {"churn": 4.0},
        {"restarts": 2, "restart_low": 0.1, "restart_time": 0.5},
        {"restarts": 1, "restart_low": 0.05, "restart_time": 0.3, "churn": 1.0, "grid": "karras"},
    ):
        target = named()
        report = Sampler(steps=steps, method=method, **settings)(  # type: ignore[arg-type]
            target, all_real(3), Draws(0, [0, 1, 2])
        )
        assert report.calls == target.calls
        # Rounds above 0 of a method of two calls a step have an even number of them.
        assert report.calls == promised
        assert not bool(report.broken.any())


def euler_variance(schedule: Schedule, plan: Plan, v: float) -> float:
    """Of Euler's method with the exact denoiser of N(0, v), noise in between: by recursion."""
    (a, s), (b, r) = (tuple(y.tolist() for y in schedule(t)) for t in (plan.start, plan.end))
    variance, age = a[0] ** 2 + s[0] ** 2, plan.age
    for i in range(len(plan)):
        if i and age[i] == 0:
            keep = a[i] / b[i - 1]
            variance = keep**2 * variance + s[i] ** 2 - keep**2 * r[i - 1] ** 2
        gain = a[i] * v / (a[i] ** 2 * v + s[i] ** 2)
        variance *= (b[i] * gain + r[i] / s[i] * (1 - a[i] * gain)) ** 2
    return variance


@pytest.mark.parametrize("schedule", [Rectified(), Cosine(), VarianceExploding()], ids=str)
def test_churn_keeps_the_law(schedule: Schedule) -> None:
    """With Euler's steps to the first order in the step, with Heun's to the second."""
    n, v, target = 4000, 0.3, gaussian(schedule)
    settings = {"method": "ab1", "grid": "uniform-u", "churn": 20.0}
    miss = [euler_variance(schedule, Sampler(steps=steps, **settings).plan(target), v) / v - 1  # type: ignore[arg-type]
            for steps in (101, 401)]  # fmt: skip
    assert abs(miss[0]) < 0.2 and miss[0] / miss[1] == pytest.approx(4, abs=1)
    euler = sample(target, n, steps=101, **settings)[:, 0]
    assert float(euler.var()) == pytest.approx(v * (1 + miss[0]), rel=4 * (2 / n) ** 0.5)
    heun = sample(target, n, steps=101, **{**settings, "method": "heun"})[:, 0]
    assert float(heun.var()) == pytest.approx(v, rel=4 * (2 / n) ** 0.5 + 0.01)
    for x in (euler, heun):
        assert float(x.mean()) == pytest.approx(1.0, abs=4 * (v / n) ** 0.5 + 0.01)


def test_churn_moves_tokens_too() -> None:
    """The joint law of point and token stays, and tokens already seen are masked again."""
    target, n = named(), 3000
    masked: list[int] = []

    class Watched(NamedMixture):
        def exact(self, state: State, times: object) -> dict[str, Tensor]:  # type: ignore[override]
            masked.append(int((state["token"] == 5).sum()))
            return target.exact(state, times)  # type: ignore[arg-type]

    watched = Watched(target.mixture.path, target.tokens, target.mixture.means, 0.1, [1.0] * 5)
    sampler = Sampler(steps=41, method="heun", churn=15.0, greedy=False)
    state = sampler(watched, all_real(n), Draws(0, torch.arange(n))).state
    assert any(later > earlier for earlier, later in pairwise(masked))
    pair = target.component(state["x"][:, 0]) * 5 + state["token"][:, 0]
    found = torch.bincount(pair, minlength=25).view(5, 5) / n
    assert float((found - target.joint()).abs().sum() / 2) < 0.06


@pytest.mark.parametrize("grid", ["uniform-u", "uniform-logsnr", "karras", "time"])
@pytest.mark.parametrize("method", ["ab2", "heun"])
def test_the_plan_of_restarts_in_mid_trajectory(grid: str, method: str) -> None:
    """Down to low, rounds from high to low, and on from low: K times, each a new history."""
    sampler = Sampler(steps=40, method=method, grid=grid, restarts=3, restart_low=0.12,
                      restart_time=0.4, restart_share=0.15)  # fmt: skip
    plan = sampler.plan(ring())
    start, end = plan.start.tolist(), plan.end.tolist()
    up = [i for i in range(1, len(plan)) if start[i] > end[i - 1]]
    assert len(up) == 3 and plan.age.count(0) == 4
    for i in up:
        assert start[i] == pytest.approx(0.4) and end[i - 1] == 0.12
    assert up[1] - up[0] == up[2] - up[1] == 6
    after = up[2] + 6
    assert start[after] == 0.12 and end[-1] == 0 and start[0] == float(plan.start.max())
    assert all(e <= s for s, e in plan)
    assert all(start[i + 1] == end[i] for i in range(len(plan) - 1) if i + 1 not in up)
    if method == "heun":
        assert [age % 2 == 1 for age in plan.age] == (plan.start == plan.end).tolist()
    else:
        assert len(set(plan)) + 2 * 6 == len(plan)


def test_restarts_that_do_not_fit_are_left_out() -> None:
    """Too few calls to pass through low, or a run that begins below it: the plain plan."""
    for steps, begin in ((1, 1.0), (3, 1.0), (20, 0.1)):
        plain = Sampler(steps=steps)
        restarts = replace(plain, restarts=2, restart_low=0.15, restart_time=0.4)
        one, other = (s.plan(ring(), begin) for s in (plain, restarts))
        assert torch.equal(one.start, other.start) and torch.equal(one.end, other.end)


def test_restarting_from_the_end_is_the_same_mechanism() -> None:
    """restart_low towards 0 tends to the restart of the finished sample."""
    target = ring()
    plans = [Sampler(steps=20, restarts=1, restart_low=low, restart_time=0.4).plan(target)
             for low in (0.0, 1e-6)]  # fmt: skip
    zero, low = plans
    assert len(zero) == len(low) and zero.age.count(0) == low.age.count(0) == 2
    assert float(zero.end[15]) == 0 and float(low.end[14]) == 1e-6


def test_published_restarts_mend_a_denoiser_that_errs_far_from_the_data() -> None:
    class Early(GaussianMixture):
        def forward(self, state: State, t: Times | float,
                    previous: Prediction | None = None) -> Prediction:  # fmt: skip
            clean = super().forward(state, t, previous)["x"]
            return Prediction({"x": clean * 1.1 if float(t) > 0.5 else clean})  # type: ignore[arg-type]

    one = torch.ones((), dtype=torch.float64)
    target = ring(Early)
    own = target.log_density(target.sample(3000), one, 0 * one + 1e-9).mean()

    def distance(**settings: object) -> float:
        x = sample(target, 3000, steps=60, **settings)[:, 0]
        return float(own - target.log_density(x, one, 0 * one + 1e-9).mean())

    again = distance(restarts=3, restart_low=0.1, restart_time=0.45, restart_share=0.2)
    assert again < 0.6 * distance()


@pytest.mark.parametrize("schedule", [Rectified(), Cosine(), VarianceExploding()], ids=str)
def test_restarts_keep_the_law(schedule: Schedule) -> None:
    n = 4000
    x = sample(gaussian(schedule), n, steps=60, restarts=3, restart_low=0.1, restart_time=0.4)[:, 0]
    assert float(x.mean()) == pytest.approx(1.0, abs=4 * (0.3 / n) ** 0.5 + 0.005)
    assert float(x.var()) == pytest.approx(0.3, rel=4 * (2 / n) ** 0.5 + 0.02)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"churn": -1.0}, "churn must be 0 .none. or more, not -1"),
     ({"churn_min": 2.0, "churn_max": 1.0}, "not from 2.0 to 1.0"),
     ({"churn_noise": 0.0}, "churn_noise must be above 0, not 0"),
     ({"restart_low": 0.2}, "below restart_time .0.1., not 0.2"),
     ({"restart_low": math.nan}, "not nan")],
    ids=str,
)  # fmt: skip
def test_settings_that_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(Sampler(), **wrong)  # type: ignore[arg-type]
