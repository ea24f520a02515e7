"""Epsilon scaling: off is off, its formula, what is left alone, and scales fitted by norms."""

from __future__ import annotations

import pytest
import torch

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.guidance.epsilon_scaling import EpsilonScaling, fit_scale
from sciflow.paths import CategoricalPath, GaussianPath
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.schedules import Cosine, Rectified, Schedule, VarianceExploding
from sciflow.spaces import Euclidean, Tokens
from sciflow.state import State, Times
from sciflow.testing.targets import DiagonalGaussian, NamedMixture, TokenTable, all_real

SCHEDULES = [Rectified(), Cosine(), VarianceExploding()]


def gaussian(schedule: Schedule | None = None) -> DiagonalGaussian:
    path = GaussianPath(Euclidean(2), schedule or Cosine())
    return DiagonalGaussian(path, torch.tensor([1.0, -2.0]), torch.tensor([0.3, 2.0]))


class Louder(Denoiser):
    """The exact denoiser with its noise estimate too large by a factor."""

    def __init__(self, exact: DiagonalGaussian, factor: float):
        super().__init__()
        self.exact, self.paths, self.factor = exact, exact.paths, factor

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        x, clean = state["x"], self.exact(state, t, previous)["x"]
        a, s = self.exact.path.schedule(torch.as_tensor(t, dtype=torch.float64))
        eps = self.factor * (x - a * clean) / s
        return Prediction({"x": (x - s * eps) / a})


def noisy(n: int = 5) -> State:
    x = Draws(0, torch.arange(n)).normal((1, 2), "x", dtype=torch.float64)
    return State({"x": x}, all_real(n))


def test_one_is_no_scaling_bit_for_bit() -> None:
    sampler, args = Sampler(steps=7), (all_real(4), Draws(0, range(4)))
    plain = sampler(gaussian(), *args).state["x"]
    assert torch.equal(sampler(EpsilonScaling(gaussian(), 1.0), *args).state["x"], plain)
    assert not torch.equal(sampler(EpsilonScaling(gaussian(), 1.01), *args).state["x"], plain)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_mends_a_noise_estimate_that_is_too_large(schedule: Schedule) -> None:
    exact = gaussian(schedule)
    for t in (0.1, 0.5, 0.7):
        mended = EpsilonScaling(Louder(exact, 1.03), 1.03)(noisy(), t)["x"]
        torch.testing.assert_close(mended, exact(noisy(), t)["x"], rtol=1e-9, atol=1e-9)
    sloped = EpsilonScaling(Louder(exact, 1.01 + 0.05 * 0.4), 1.01, 0.05)(noisy(), 0.4)["x"]
    torch.testing.assert_close(sloped, exact(noisy(), 0.4)["x"], rtol=1e-9, atol=1e-9)


def test_almost_pure_noise_tokens_and_given_elements_are_left_alone() -> None:
    exact = gaussian(Rectified())
    model = EpsilonScaling(exact, 1.1)
    for t in (1.0, 0.97):
        assert torch.equal(model(noisy(), t)["x"], exact(noisy(), t)["x"])
    t = torch.tensor([0.5, 0.0, 0.5, 0.0, 0.5], dtype=torch.float64)
    moved = (model(noisy(), t)["x"] - exact(noisy(), t)["x"]).flatten(1).abs().amax(1)
    assert (moved > 1e-3).tolist() == (t > 0).tolist()
    named = NamedMixture(GaussianPath(Euclidean(2), Rectified()),
                         CategoricalPath(Tokens(3), Rectified()), torch.eye(3)[:, :2], 0.1,
                         [1.0, 1.0, 1.0])  # fmt: skip
    state = State({"x": noisy()["x"], "token": torch.full((5, 1), 3)}, all_real(5))
    a, b = EpsilonScaling(named, 1.1)(state, 0.5), named(state, 0.5)
    assert torch.equal(a["token"], b["token"]) and not torch.equal(a["x"], b["x"])


def standard(n: int) -> tuple[DiagonalGaussian, State]:
    """N(0, 1) and clean draws of it."""
    path = GaussianPath(Euclidean(1), Rectified())
    x = Draws(1, range(n)).normal((1, 1), "data", dtype=torch.float64)
    return DiagonalGaussian(path, torch.zeros(1), torch.ones(1)), State({"x": x}, all_real(n))


def test_fit_finds_nothing_to_mend_at_the_exact_flow() -> None:
    n = 20_000
    target, data = standard(n)
    sampler, draws = Sampler(steps=30, method="reab1"), Draws(2, torch.arange(n))
    scale, slope = fit_scale(target, data, draws, sampler)
    assert scale == pytest.approx(1, abs=0.02) and slope == 0
    b, k = fit_scale(target, data, draws, sampler, linear=True)
    assert b + k / 2 == pytest.approx(1, abs=0.02)


def test_fitted_scale_is_the_ratio_of_norms() -> None:
    """A step of DDIM multiplies N(0, 1) by cos Δθ, θ = atan(s/a), and its noise estimate too."""
    n = 20_000
    target, data = standard(n)
    sampler, draws = Sampler(steps=5, method="ab1", grid="uniform-u"), Draws(2, torch.arange(n))
    t = sampler.plan(target).start
    kept = torch.atan2(t, 1 - t).diff().cos().cumprod(0)
    scale, _ = fit_scale(target, data, draws, sampler)
    assert scale == pytest.approx(float(kept.mean()), abs=0.02) and scale < 0.9


def test_what_is_refused() -> None:
    for scale, slope in ((0.0, 0.0), (-1.0, 0.0), (1.0, -2.0), (float("nan"), 0.0)):
        with pytest.raises(InputError, match="numbers above 0"):
            EpsilonScaling(gaussian(), scale, slope)
    tokens = TokenTable(CategoricalPath(Tokens(2), Rectified()), torch.ones(2, 2))
    state = State({"token": torch.zeros(2, 2, dtype=torch.int64)}, all_real(2, 2))
    with pytest.raises(InputError, match="continuous field"):
        fit_scale(tokens, state, Draws(0, [0, 1]), Sampler(steps=2))
    with pytest.raises(InputError, match="no call"):
        fit_scale(gaussian(VarianceExploding()), noisy(), Draws(0, range(5)), Sampler(steps=1))
