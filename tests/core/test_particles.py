"""Weighted particles: consistent, unbiased, independent of the batch, under every sampler."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from sciflow.errors import InputError
from sciflow.guidance.particles.steering import ParticleReport, sample_particles, systematic
from sciflow.paths import CategoricalPath, GaussianPath
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.samplers.ancestral import Ancestral
from sciflow.schedules import Cosine, Rectified
from sciflow.spaces import Euclidean, Tokens
from sciflow.state import State
from sciflow.testing.targets import (
    DiagonalGaussian,
    ExactDenoiser,
    GaussianMixture,
    NamedMixture,
    TokenTable,
    all_real,
)

MEANS = torch.tensor([[1.5, 0.0], [-1.0, 1.0], [-0.5, -1.5]], dtype=torch.float64)
VARIANCES = torch.tensor([0.1, 0.3, 0.2], dtype=torch.float64)
ROW = torch.tensor([1.0, 0.5], dtype=torch.float64)


def mixture() -> GaussianMixture:
    path = GaussianPath(Euclidean(2), Rectified())
    covariances = VARIANCES[:, None, None] * torch.eye(2, dtype=torch.float64)
    return GaussianMixture(path, MEANS, covariances, [0.5, 0.3, 0.2])


class Seen:
    """log of N(y; ROW·x, variance), up to its height."""

    def __init__(self, y: float = 0.4, variance: float = 0.3):
        self.y, self.variance, self.sizes = y, variance, list[int]()

    def __call__(self, clean: State) -> Tensor:
        self.sizes.append(clean.batch_size)
        return -0.5 * (self.y - clean["x"][:, 0] @ ROW.to(clean["x"])) ** 2 / self.variance

    def posterior(self) -> tuple[Tensor, float]:
        """Mean of the mixture given y, and log E[e^r]."""
        s = VARIANCES * (ROW @ ROW) + self.variance
        miss = self.y - MEANS @ ROW
        log_w = mixture().log_weights - 0.5 * miss**2 / s - 0.5 * (s / self.variance).log()
        means = MEANS + (VARIANCES * miss / s)[:, None] * ROW
        return (log_w.softmax(0)[:, None] * means).sum(0), float(log_w.logsumexp(0))


def run(
    denoiser: ExactDenoiser, reward: Any, k: int, n: int = 5, steps: int = 12,
    method: str = "ddpm", eta: float = 0.0, first: int = 0, **more: Any,
) -> ParticleReport:  # fmt: skip
    sampler = Sampler(steps, method=method, eta=eta, greedy=False)
    draws = Draws(3, torch.arange(first, first + n))
    return sample_particles(sampler, denoiser, all_real(n), draws, reward, k,
                            dtype=torch.float64, **more)  # fmt: skip


def plain(denoiser: ExactDenoiser, n: int, steps: int = 12, method: str = "ddpm") -> Tensor:
    sampler = Sampler(steps, method=method)
    return sampler(denoiser, all_real(n), Draws(3, torch.arange(n)), dtype=torch.float64).state["x"]


def own_mean(report: ParticleReport) -> Tensor:
    """The estimate of E[x_0] of every group, ``[B, 2]``."""
    w = report.log_weights.exp()
    return (w[..., None] * report.particles["x"].view(*w.shape, 2)).sum(1)


@pytest.mark.parametrize(("twisted", "variance", "blur"), [(True, 0.3, 4.0), (False, 0.1, 10.0)])
def test_particles_converge_to_the_exact_posterior(
    twisted: bool, variance: float, blur: float
) -> None:
    n, counts, errors = 100, (1, 4, 16, 64), []
    reward = Seen(variance=variance)
    exact, evidence = reward.posterior()
    for k in counts:
        report = run(mixture(), reward, k, n, 40, twisted=twisted, blur=blur)
        error = own_mean(report) - exact
        errors.append(float((error**2).sum(1).mean()))
        z = (report.log_evidence - evidence).exp()
        assert abs(float(z.mean()) - 1) < 0.06 + 4 * float(z.std()) / math.sqrt(n)
    assert errors[0] > errors[1]
    # The squared error falls as 1/K; 100 groups tell each to an eighth.
    for before, now in pairwise(errors[1:]):
        assert 2.3 < before / now < 7
    bias = error.mean(0).abs()
    assert bool((bias < 0.05 + 4 * error.std(0) / math.sqrt(n)).all())


def law_of_ddpm(target: DiagonalGaussian, steps: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of x_0 as so many ancestral steps make it, ``[d]`` each."""
    sampler = Sampler(steps, method="ddpm")
    plan = sampler.plan(target)
    stepper = Ancestral(target.path, plan, 1.0)
    mean, variance = torch.zeros_like(target.mean), torch.ones_like(target.mean)
    for i, (t, _) in enumerate(plan):
        a, s = target.path.schedule(torch.tensor(t, dtype=torch.float64))
        slope = a * target.variance / (a**2 * target.variance + s**2)
        gain = stepper.from_x[i] + stepper.from_clean[i] * slope
        mean = gain * mean + stepper.from_clean[i] * (1 - slope * a) * target.mean
        variance = gain**2 * variance + stepper.from_noise[i] ** 2
    return mean, variance


@pytest.mark.parametrize("how", [
    {"twisted": True, "blur": 1.0}, {"potential": "difference"}, {"potential": "max"},
    {"potential": "sum", "scale": 0.5}, {"every": 3}, {"twisted": True, "every": 2},
])  # fmt: skip
@pytest.mark.parametrize("threshold", [0.0, 0.95, 2.0])
def test_the_evidence_is_unbiased_for_any_number_of_particles(
    how: dict[str, Any], threshold: float
) -> None:
    """Even where groups resample at some calls and not at others, and at five steps.

    The code of Singhal et al. drops the weights of groups that are not resampled, and is biased.
    """
    n, k, steps = 1500, 3, 5
    target = DiagonalGaussian(GaussianPath(Euclidean(1), Rectified()), torch.tensor([0.3]),
                              torch.tensor([0.8]))  # fmt: skip
    scale = how.get("scale", 1.0)

    def reward(clean: State) -> Tensor:
        return -0.5 * (clean["x"][:, 0, 0] - 1) ** 2 / scale

    report = run(target, reward, k, n, steps, threshold=threshold, **how)
    mean, variance = law_of_ddpm(target, steps)
    exact = (-0.5 * (mean - 1) ** 2 / (1 + variance)).exp() / (1 + variance).sqrt()
    z = report.log_evidence.exp()
    assert abs(float(z.mean() - exact)) < 4 * float(z.std()) / math.sqrt(n)
    assert float(z.std()) / math.sqrt(n) < 0.02 * float(exact)
    times = report.resampled.double()
    if threshold == 0:
        assert float(times.max()) == 0
    if threshold == 0.95:
        assert 0 < float(times.mean()) < len(report.ess_history)


@pytest.mark.parametrize("potential", ["difference", "max", "sum"])
def test_fkd_weights_are_kept_when_no_resampling_happens(potential: Any) -> None:
    reward = Seen()
    report = run(mixture(), reward, 4, threshold=0.0, potential=potential, scale=2.0)
    assert torch.equal(report.particles["x"], plain(mixture(), 20))
    r = reward(report.particles).view(5, 4)
    torch.testing.assert_close(report.rewards, r)
    torch.testing.assert_close(report.log_weights, (2 * r).log_softmax(1), rtol=0, atol=1e-12)
    torch.testing.assert_close(report.ess, 1 / ((2 * r).softmax(1) ** 2).sum(1))
    assert (report.resampled == 0).all()
    assert report.ess_history.shape == (11, 5)


def test_weights_of_a_group_last_until_it_is_resampled() -> None:
    """A group that is never resampled is the same whether or not others of its batch are."""
    never = run(mixture(), Seen(), 4, 40, threshold=0.0)
    some = run(mixture(), Seen(), 4, 40, threshold=0.4)
    kept = some.resampled == 0
    assert 5 < int(kept.sum()) < 35
    torch.testing.assert_close(some.log_weights[kept], never.log_weights[kept])
    assert torch.equal(some.state["x"][kept], never.state["x"][kept])


def test_best_of_n() -> None:
    reward = Seen()
    report = run(mixture(), reward, 6, threshold=0.0, pick="best")
    every = plain(mixture(), 30)
    r = reward(State({"x": every}, all_real(30))).view(5, 6)
    best = r.argmax(1) + 6 * torch.arange(5)
    assert torch.equal(report.state["x"], every[best])
    assert torch.equal(report.rewards.amax(1), r.amax(1))


def test_one_particle_and_no_reward_are_the_bare_sampler() -> None:
    assert torch.equal(run(mixture(), Seen(), 1).state["x"], plain(mixture(), 5))
    for twisted in (False, True):
        report = run(mixture(), Seen(), 3, scale=0.0, twisted=twisted)
        assert torch.equal(report.particles["x"], plain(mixture(), 15))
        assert (report.resampled == 0).all()
        assert bool((report.log_evidence.abs() < 1e-12).all())


@pytest.mark.parametrize("how", [{"twisted": True}, {"potential": "sum"}, {"pick": "best"}])
def test_a_group_depends_on_its_number_alone(how: dict[str, Any]) -> None:
    together = run(mixture(), Seen(variance=0.1), 4, 6, **how)
    assert float(together.resampled.double().mean()) > 0.5
    for i in (1, 4):
        alone = run(mixture(), Seen(variance=0.1), 4, 1, first=i, **how)
        assert torch.equal(alone.roots[0], together.roots[i])
        torch.testing.assert_close(alone.state["x"][0], together.state["x"][i])
        torch.testing.assert_close(alone.log_weights[0], together.log_weights[i])
        torch.testing.assert_close(alone.log_evidence[0], together.log_evidence[i])


@pytest.mark.parametrize("method", ["ab3", "reab2", "dpm3", "dpmpp2m", "unipc3", "heun", "ddim"])
def test_the_history_of_a_solver_moves_with_the_particles(method: str) -> None:
    """Under a deterministic solver every particle is the bare sample from its root's noise."""
    steps = 13
    report = run(mixture(), Seen(variance=0.1), 5, 8, steps, method, blur=10.0)
    assert bool((report.resampled > 0).any())
    roots = (report.roots + 5 * torch.arange(8)[:, None]).flatten()
    expected = plain(mixture(), 40, steps, method)[roots]
    torch.testing.assert_close(report.particles["x"], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("how", [{"twisted": True}, {}])
def test_copies_part_again(how: dict[str, Any]) -> None:
    """The random numbers stay with the rows."""
    report = run(mixture(), Seen(variance=0.05), 6, 8, blur=20.0, **how)
    assert int((report.roots.sort(1).values.diff(dim=1) == 0).sum()) > 5
    x = report.particles["x"].view(8, 6, 2)
    assert all(len(group.unique(dim=0)) == 6 for group in x)


def test_twisting_wastes_fewer_particles() -> None:
    reward = Seen(variance=0.05)
    bare, steered = (run(mixture(), reward, 16, 60, 40, blur=20.0, twisted=twisted)
                     for twisted in (False, True))  # fmt: skip
    exact = reward.posterior()[0]
    errors = [float(((own_mean(r) - exact) ** 2).sum(1).mean()) for r in (bare, steered)]
    assert errors[1] < 0.7 * errors[0]
    assert float(steered.resampled.double().mean()) < float(bare.resampled.double().mean())


@pytest.mark.parametrize("kind", ["absorbing", "uniform"])
def test_tokens_are_chosen_too(kind: Any) -> None:
    """One token a sample: its chain is exact at any number of steps."""
    n, table = 1500, torch.tensor([0.5, 0.3, 0.2]).double()
    target = TokenTable(CategoricalPath(Tokens(3), Cosine(), kind), table)
    gain = torch.tensor([0.2, 1.0, 2.5]).double()
    report = run(target, lambda clean: (clean["token"][:, 0].double() @ gain).log(), 4, n, 6,
                 threshold=0.8)  # fmt: skip
    z = report.log_evidence.exp()
    assert abs(float(z.mean() - table @ gain)) < 4 * float(z.std()) / math.sqrt(n)
    # Evidence and weights together make a ratio of unbiased numbers.
    hot = torch.nn.functional.one_hot(report.particles["token"].view(n, 4), 3).double()
    mass = (z[:, None, None] * report.log_weights.exp()[..., None] * hot).sum(1)
    error = mass.std(0) / math.sqrt(n)
    assert bool(((mass.mean(0) - table * gain).abs() < 4 * error).all())
    assert float(report.resampled.double().mean()) > 0.1


def test_mixed_states_are_steered_and_weighed() -> None:
    token = CategoricalPath(Tokens(3), Cosine(), "absorbing")
    target = NamedMixture(GaussianPath(Euclidean(2), Rectified()), token, MEANS, 0.2,
                          [0.5, 0.3, 0.2])  # fmt: skip

    def reward(clean: State) -> Tensor:
        """Component 1 by its name, and to the left."""
        return clean["token"][:, 0, 1].clamp(min=1e-6).log() - clean["x"][:, 0, 0]

    report = run(target, reward, 16, 30, 20, twisted=True)
    assert not bool(report.broken.any())
    assert float((report.state["token"] == 1).double().mean()) > 0.8
    assert float(report.state["x"][:, 0, 0].mean()) < -0.8


def test_systematic_draws() -> None:
    w = torch.tensor([[0.0, 0.31, 0.0, 0.69], [0.25, 0.25, 0.25, 0.25]]).double()
    u = torch.linspace(0.0005, 0.9995, 1000).double()
    counts = torch.stack([
        torch.nn.functional.one_hot(systematic(w, x.expand(2), 10), 4).sum(1) for x in u
    ]).double()  # fmt: skip
    torch.testing.assert_close(counts.mean(0), 10 * w, rtol=0, atol=5e-3)
    assert bool(((counts - 10 * w).abs() < 1).all())
    assert float(counts[:, 0, [0, 2]].max()) == 0


def test_a_reward_that_fails_on_the_way_costs_nothing_but_guidance() -> None:
    last: list[bool] = []

    def reward(clean: State) -> Tensor:
        r = Seen()(clean)
        last.append(clean["x"].requires_grad)
        return r if len(last) > 11 else r * math.nan

    report = run(mixture(), reward, 4, threshold=2.0)
    assert torch.equal(report.particles["x"], plain(mixture(), 20))
    r = Seen()(report.particles).view(5, 4)
    torch.testing.assert_close(report.log_weights, r.log_softmax(1))


def test_finished_samples_that_fail_are_never_chosen() -> None:
    def reward(clean: State) -> Tensor:
        x = clean["x"][:, 0, 0]
        return torch.where(x < 0, 0.0, math.nan) + 0 * x

    report = run(mixture(), reward, 8, 40)
    hopeless = (report.rewards == -math.inf).all(1)
    assert bool((report.state["x"][~hopeless, 0, 0] < 0).all())
    assert bool(report.log_evidence[hopeless].isneginf().all())
    assert bool(report.log_weights.exp().sum(1).sub(1).abs().lt(1e-12).all())


def test_costs_are_told() -> None:
    reward, target = Seen(), mixture()
    report = run(target, reward, 4, every=5)
    assert (report.calls, target.calls) == (4 * 12, 12)
    # At calls 0, 5 and 10, and of the finished samples.
    assert reward.sizes == [20] * 4
    assert report.reward_calls == 4 * 4
    twisted = run(target, reward, 4, twisted=True)
    assert (twisted.calls, twisted.reward_calls, target.calls) == (48, 4 * 13, 24)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"twisted": True, "method": "ab3"}, "fresh noise"),
        ({"twisted": True, "method": "ddim"}, "eta > 0"),
        ({"twisted": True, "method": "sde-dpmpp2m"}, "without history"),
        ({"twisted": True, "potential": "max"}, "difference"),
        ({"potential": "most"}, "difference, max, sum"),
        ({"pick": "worst"}, "draw, best"),
        ({"scale": -1.0}, "sign"),
        ({"k": 0}, "1 or more"),
    ],
)
def test_settings_that_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        run(mixture(), Seen(), **{"k": 2, **wrong})


def test_rewards_that_are_refused() -> None:
    with pytest.raises(InputError, match="one number a sample"):
        run(mixture(), lambda clean: clean["x"], 2)
    with pytest.raises(InputError, match="differentiable"):
        run(mixture(), lambda clean: clean["x"][:, 0, 0].detach(), 2, twisted=True)
