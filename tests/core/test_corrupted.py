"""Learning from corrupted data: closed forms, a Gaussian and a network, mean and covariance."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sciflow.denoisers import Denoiser, Network, NetworkDenoiser, Prediction
from sciflow.errors import InputError, NonFiniteError
from sciflow.guidance.measured.measurements import MatrixMeasurement, Observed
from sciflow.objectives import DenoisingObjective
from sciflow.paths import GaussianPath
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.schedules import Rectified
from sciflow.spaces import Euclidean
from sciflow.state import Context, State, Times
from sciflow.testing.targets import all_real
from sciflow.training.corrupted import (
    CorruptedData,
    Expectation,
    MStep,
    gaussian_step,
    learn,
    network_step,
)
from sciflow.training.gaussian_fit import GaussianDenoiser, fit_gaussian_em

D = 3
MEAN = torch.tensor([1.0, -0.5, 0.2], dtype=torch.float64)
ROOT = torch.tensor([[1.0, 0, 0], [0.6, 0.5, 0], [-0.3, 0.4, 0.7]], dtype=torch.float64)
COVARIANCE = ROOT @ ROOT.T
NOISE = 0.1
PATH = GaussianPath(Euclidean(D), Rectified())
SAMPLER = Sampler(steps=10, method="ab3")


def truth(n: int, seed: int = 1) -> Tensor:
    z = Draws(seed, torch.arange(n)).normal((D,), "truth", dtype=torch.float64)
    return (MEAN + z @ ROOT.T)[:, None]


def half_observed(n: int, seed: int = 1) -> CorruptedData:
    """Each number is seen with probability one half, with noise of its own."""
    draws = Draws(seed, torch.arange(n))
    seen = draws.uniform((1, D), "seen", dtype=torch.float64) < 0.5
    noise = draws.normal((1, D), "noise", dtype=torch.float64)
    y = torch.where(seen, truth(n, seed) + NOISE * noise, 0.0)
    return CorruptedData("x", y, Observed(seen, NOISE**2), all_real(n))


def projected(n: int) -> CorruptedData:
    """Two random directions of each sample."""
    draws = Draws(2, torch.arange(n))
    a = draws.normal((2, D), "matrix", dtype=torch.float64)
    noise = draws.normal((2,), "noise", dtype=torch.float64)
    y = (a @ truth(n, 2)[:, 0, :, None])[..., 0] + NOISE * noise
    return CorruptedData("x", y, MatrixMeasurement(a, NOISE**2, (1, D)), all_real(n))


def tolerance(n: int, times: float = 4.0) -> tuple[Tensor, Tensor]:
    """``times`` standard errors of mean and covariance where half, or a quarter of pairs, is seen.

    Var m̂_i ≤ v_i/(n/2) and Var ĉ_ij ≤ (v_i v_j + c_ij²)/(n/4) with v the variance of y, since EM
    uses at least what the samples in which i (and j) were seen would tell.
    """
    v = COVARIANCE.diagonal() + NOISE**2
    return (times * (2 * v / n).sqrt(),
            times * (4 * (v[:, None] * v + COVARIANCE**2) / n).sqrt())  # fmt: skip


def assert_recovered(mean: Tensor, covariance: Tensor, n: int, times: float = 4.0) -> None:
    for found, exact, limit in zip((mean.flatten(), covariance), (MEAN, COVARIANCE),
                                   tolerance(n, times), strict=True):  # fmt: skip
        assert bool(((found - exact).abs() < limit).all()), (found, exact, limit)


def log_likelihood(data: CorruptedData, m: Tensor, c: Tensor) -> float:
    """Mean log p(y) over the numbers that were seen."""
    assert isinstance(data.measurement, Observed)
    total = 0.0
    for y, seen in zip(data.y[:, 0], data.measurement.mask[:, 0], strict=True):
        if bool(seen.any()):
            cov = c[seen][:, seen] + NOISE**2 * torch.eye(int(seen.sum()), dtype=torch.float64)
            law = torch.distributions.MultivariateNormal(m.flatten()[seen], cov)
            total += float(law.log_prob(y[seen]))
    return total / len(data)


@pytest.mark.parametrize("make", [half_observed, projected])
def test_the_closed_form_recovers_mean_and_covariance(make: object) -> None:
    data = make(4000)  # type: ignore[operator]
    assert_recovered(*fit_gaussian_em(data.y, data.measurement, (1, D)), 4000)


def test_the_closed_form_climbs_the_likelihood_to_its_top() -> None:
    """More rounds never lower log p(y), and no small change of the answer raises it."""
    data = half_observed(50)
    values = [log_likelihood(data, *fit_gaussian_em(data.y, data.measurement, (1, D), k, 0.0))
              for k in (1, 2, 4, 8, 300)]  # fmt: skip
    assert values == sorted(values)
    m, c = fit_gaussian_em(data.y, data.measurement, (1, D), 2000, 1e-12)
    top = log_likelihood(data, m, c)
    for i in range(D):
        for step in (-0.03, 0.03):
            e = torch.zeros(1, D, dtype=torch.float64)
            e[0, i] = step
            assert log_likelihood(data, m + e, c) < top
            assert log_likelihood(data, m, c + torch.diag(e[0])) < top


def test_without_corruption_the_fit_is_the_sample_s_own_moments() -> None:
    x = truth(500)
    everything = Observed(torch.ones(500, 1, D, dtype=torch.bool), 1e-12)
    m, c = fit_gaussian_em(x, everything, (1, D))
    torch.testing.assert_close(m, x.mean(0))
    torch.testing.assert_close(c, x[:, 0].T.cov(correction=0), rtol=1e-6, atol=1e-6)


def test_posterior_samples_fit_their_own_measurement() -> None:
    """Seen numbers within noise; unseen ones have the truth's law, given what was seen."""
    n = 4000
    data = half_observed(n)
    samples, broken = Expectation(SAMPLER, D, batch_size=1500)(
        GaussianDenoiser(PATH, MEAN[None], COVARIANCE), data, 0, torch.float64
    )  # fmt: skip
    x, seen = samples["x"], data.measurement.mask  # type: ignore[attr-defined]
    assert not bool(broken.any()) and x.shape == (n, 1, D)
    misfit = (x - data.y)[seen]
    assert float(misfit.std()) < 1.1 * NOISE and abs(float(misfit.mean())) < 0.1 * NOISE
    # Posterior draws of data from the prior are the prior's: the whole law comes back.
    error = 4 * (COVARIANCE.diagonal() / n).sqrt()
    assert bool(((x.mean((0, 1)) - MEAN).abs() < error).all())
    spread = ((COVARIANCE.diagonal()[:, None] * COVARIANCE.diagonal() + COVARIANCE**2) / n).sqrt()
    assert bool(((x[:, 0].T.cov() - COVARIANCE).abs() < 4 * spread).all())


def test_em_recovers_a_gaussian_from_a_wrong_beginning() -> None:
    """Sampling EM from N(0, 1): the draws add at most the spread of the estimate again."""
    n = 3000
    data = half_observed(n)
    start = GaussianDenoiser(PATH, torch.zeros(1, D), torch.eye(D))
    rounds: list[float] = []

    def distance(k: int, samples: State) -> None:
        rounds.append(float((samples["x"][:, 0].T.cov() - COVARIANCE).abs().max()))

    found = learn(start, data, gaussian_step(PATH), 12, Expectation(SAMPLER, D, batch_size=n),
                  dtype=torch.float64, progress=distance)  # fmt: skip
    assert isinstance(found, GaussianDenoiser)
    assert_recovered(found.mean, found.covariance, n, 4 * math.sqrt(2))
    assert len(rounds) == 12 and rounds[-1] < 0.5 * rounds[0]
    # And it stays near the estimate of greatest likelihood, by the spread of one round's draws.
    m, c = fit_gaussian_em(data.y, data.measurement, (1, D))
    limits = tolerance(n, 4.0)
    assert bool(((found.mean - m).abs() < limits[0]).all())
    assert bool(((found.covariance - c).abs() < limits[1]).all())


def test_posterior_samples_do_not_depend_on_batches() -> None:
    data = half_observed(7)
    prior = GaussianDenoiser(PATH, MEAN[None], COVARIANCE)
    whole, part = (
        Expectation(SAMPLER, 2, batch_size=size)(prior, data, 5)[0]["x"] for size in (7, 3)
    )
    torch.testing.assert_close(part, whole, rtol=1e-5, atol=1e-5)
    other = Expectation(SAMPLER, 2, batch_size=7)(prior, data, 6)[0]["x"]
    assert float((other - whole).abs().max()) > 0.1


class Broken(GaussianDenoiser):
    """NaN for samples whose first number is far from the mean, or for all."""

    everything = False

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        clean = super().forward(state, t, previous)["x"]
        bad = (torch.arange(len(clean)) % 2 == 0) | self.everything
        return Prediction({"x": clean + torch.where(bad, math.nan, 0.0)[:, None, None]})


def test_broken_samples_are_left_out_and_none_left_is_an_error() -> None:
    data = half_observed(6)
    seen: list[int] = []
    broken = Broken(PATH, MEAN[None], COVARIANCE)
    found = learn(broken, data, gaussian_step(PATH), 1, Expectation(SAMPLER),
                  progress=lambda k, s: seen.append(len(s["x"])))  # fmt: skip
    assert isinstance(found, GaussianDenoiser) and seen == [3]
    assert bool(found.covariance.isfinite().all())
    broken.everything = True
    with pytest.raises(NonFiniteError, match="round 0"):
        learn(broken, data, gaussian_step(PATH), 1, Expectation(SAMPLER))


def test_what_cannot_be() -> None:
    data = half_observed(4)
    with pytest.raises(InputError, match="one measurement a sample"):
        CorruptedData("x", data.y, data.measurement, all_real(3))
    with pytest.raises(InputError, match="rounds"):
        learn(GaussianDenoiser(PATH, MEAN[None], COVARIANCE), data, gaussian_step(PATH), 0)


class Perceptron(Network):
    """Two hidden layers on the field and its level."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(D + 1, width), nn.SiLU(), nn.Linear(width, width),
                                    nn.SiLU(), nn.Linear(width, D))  # fmt: skip

    def forward(
        self,
        inputs: dict[str, Tensor],
        levels: dict[str, Tensor],
        context: Context,
        previous: dict[str, Tensor] | None,
    ) -> dict[str, Tensor]:
        x = inputs["x"]
        level = levels["x"].reshape(len(x), 1, 1).expand(*x.shape[:2], 1)
        return {"x": self.layers(torch.cat((x, level / 4), -1))}


def training(model: NetworkDenoiser, out: Path, steps: int) -> MStep:
    return network_step(model, DenoisingObjective(), out, steps=steps, batch_size=256, lr=3e-3,
                        warmup=20, accelerator="cpu", checkpoint_every=10**6)  # fmt: skip


def test_a_network_keeps_its_weights_from_round_to_round(tmp_path: Path) -> None:
    """Round 1 begins with the very weights that round 0 ended with."""
    data, model = half_observed(64), NetworkDenoiser(Perceptron(), {"x": PATH})
    before: list[Tensor] = []
    after: list[Tensor] = []
    step = training(model, tmp_path, 2)

    def spy(samples: State, k: int) -> Denoiser:
        before.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        found = step(samples, k)
        after.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        return found

    start = GaussianDenoiser(PATH, *fit_gaussian_em(data.y, data.measurement, (1, D), 3))
    found = learn(start, data, spy, 2, Expectation(SAMPLER, D))
    assert isinstance(found, NetworkDenoiser) and len(before) == 2
    assert torch.equal(before[1], after[0]) and not torch.equal(before[0], after[0])
    assert [(tmp_path / f"round-{k}" / "log.csv").is_file() for k in range(2)] == [True, True]
    with pytest.raises(InputError, match="one row"):
        grid = State({"x": torch.zeros(2, 2, 2, D)}, Context(torch.ones(2, 2, 2, dtype=torch.bool)))
        step(grid, 5)


@pytest.mark.slow
def test_em_with_a_network_recovers_mean_and_covariance(tmp_path: Path) -> None:
    """Trained by the objective of the project on its own posterior draws, from half the numbers."""
    n = 4000
    data = half_observed(n)
    start = GaussianDenoiser(PATH, *fit_gaussian_em(data.y, data.measurement, (1, D), 3))
    step = training(NetworkDenoiser(Perceptron(), {"x": PATH}), tmp_path, 1000)
    model = learn(start, data, step, 3, Expectation(Sampler(steps=20), 2, batch_size=n))
    x = Sampler(steps=30)(model, all_real(8000), Draws(9, torch.arange(8000))).state["x"][:, 0]
    x = x.double()
    # Sampling EM's own error, and 5 % of each standard deviation for the network's.
    sd = COVARIANCE.diagonal().sqrt()
    limits = tolerance(n, 4 * math.sqrt(2))
    assert bool(((x.mean(0) - MEAN).abs() < limits[0] + 0.05 * sd).all())
    error = (x.T.cov() - COVARIANCE).abs()
    assert bool((error < limits[1] + 0.1 * sd[:, None] * sd).all()), error
