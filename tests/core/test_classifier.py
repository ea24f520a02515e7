"""Classifier guidance with an exact p(c | x_t) is the exact conditional model."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from sciflow.denoisers import Network
from sciflow.errors import InputError
from sciflow.guidance import ClassifierGuidance
from sciflow.paths import CategoricalPath, GaussianPath
from sciflow.predictors import PropertyPredictor
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.schedules import Cosine, Rectified, Schedule, VPLinear
from sciflow.spaces import Euclidean, Tokens
from sciflow.state import Context, State, Times, field_times
from sciflow.testing.targets import DiagonalGaussian, TokenTable, all_real


class Nothing(Network):
    def forward(self, inputs, levels, context, previous):  # type: ignore[no-untyped-def]
        return {}


class LinearProperty(PropertyPredictor):
    """c = h·x_0 + r z for x_0 ~ N(m, diag v): p(c | x_t) is Gaussian in closed form."""

    def __init__(self, goal: DiagonalGaussian, h: Tensor, r: float):
        super().__init__(Nothing(), goal.paths, {"c": (0.0, 1.0)})
        self.goal, self.h, self.r = goal, h, r

    def log_prob(self, state: State, t: Times | float, wanted: Mapping[str, Tensor]) -> Tensor:
        a, s = self.goal.paths["x"].schedule(field_times(t, state)["x"])
        a, s = a[:, None], s[:, None]
        x, m, v = state["x"][:, 0], self.goal.mean, self.goal.variance
        gain = a * v / (a**2 * v + s**2)
        mean = ((m + gain * (x - a * m)) * self.h).sum(-1)
        spread = ((v - gain * a * v) * self.h**2).sum(-1) + self.r**2
        asked = ~wanted["c"].isnan()
        z = wanted["c"].nan_to_num() - mean
        return asked * -0.5 * (z**2 / spread + spread.log())


def gaussian(schedule: Schedule) -> DiagonalGaussian:
    mean = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64)
    variance = torch.tensor([1.0, 0.3, 2.0], dtype=torch.float64)
    return DiagonalGaussian(GaussianPath(Euclidean(3), schedule), mean, variance)


H = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def posterior(goal: DiagonalGaussian, r: float, c: float) -> tuple[Tensor, Tensor]:
    v = goal.variance
    k = v * H / ((v * H**2).sum() + r**2)
    return goal.mean + k * (c - (H * goal.mean).sum()), torch.diag(v) - torch.outer(k, H * v)


@pytest.mark.parametrize("schedule", [Rectified(), Cosine(), VPLinear()])
def test_the_law_is_that_given_the_property(schedule: Schedule) -> None:
    goal, r, c, n = gaussian(schedule), 0.4, 2.0, 4000
    predictor = LinearProperty(goal, H, r)
    context = all_real(n).replace(conditions={"c": torch.full((n,), c, dtype=torch.float64)})
    model = ClassifierGuidance(goal, predictor, 1.0, largest=math.inf)
    x = Sampler(steps=40)(model, context, Draws(0, range(n)), dtype=torch.float64).state["x"][:, 0]
    mean, covariance = posterior(goal, r, c)
    error = (x.mean(0) - mean) / (covariance.diagonal() / n).sqrt()
    assert float(error.abs().max()) < 4.0
    torch.testing.assert_close(x.T.cov(), covariance, rtol=0.1, atol=0.08)


def test_the_estimate_is_that_given_the_property() -> None:
    """D_c = E[x_0 | x_t, c] to rounding, at every time."""
    goal, r = gaussian(Rectified()), 0.4
    predictor, c = LinearProperty(goal, H, r), torch.tensor([2.0, -1.0], dtype=torch.float64)
    x = torch.tensor([[[0.3, 0.1, -0.4]], [[1.0, -0.2, 0.7]]], dtype=torch.float64)
    context = all_real(2).replace(conditions={"c": c})
    for t in (0.05, 0.4, 0.9):
        a, s = 1 - t, t
        precision = torch.diag(1 / goal.variance + a**2 / s**2) + torch.outer(H, H) / r**2
        right = goal.mean / goal.variance + a * x[:, 0] / s**2 + c[:, None] * H / r**2
        exact = torch.linalg.solve(precision, right.T).T
        model = ClassifierGuidance(goal, predictor, 1.0, largest=math.inf)
        found = model(State({"x": x}, context), t)["x"][:, 0]
        torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10)


class Additive(PropertyPredictor):
    """log p(c | x_0) = Σ_i θ[x_0^i] for independent tokens: additive, so the first order is all."""

    def __init__(self, path: CategoricalPath, law: Tensor, theta: Tensor):
        super().__init__(Nothing(), {"token": path}, {"c": (0.0, 1.0)})
        self.masked, self.theta = (law * theta.exp()).sum().log(), theta

    def log_prob(self, state: State, t: Times | float, wanted: Mapping[str, Tensor]) -> Tensor:
        each = torch.cat((self.theta, self.masked[None]))
        return (state["token"].to(each) * each).sum((1, 2))


def test_tokens_are_drawn_given_the_property() -> None:
    law = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    theta = torch.tensor([0.0, 1.0, -0.7], dtype=torch.float64)
    path = CategoricalPath(Tokens(3), Rectified())
    goal = TokenTable(path, law[:, None] * law, "token")
    n = 6000
    model = ClassifierGuidance(goal, Additive(path, law, theta), wanted={"c": torch.zeros(n)})
    context = Context(torch.ones(n, 2, dtype=torch.bool))
    x = Sampler(steps=6, greedy=False)(model, context, Draws(0, range(n))).state["token"]
    wanted = law * theta.exp() / (law * theta.exp()).sum()
    for i in range(2):
        expected = n * wanted
        chi2 = ((torch.bincount(x[:, i], minlength=3) - expected) ** 2 / expected).sum()
        assert float(chi2) < 2 + 4 * 2


def test_tokens_have_a_weight_of_their_own() -> None:
    law = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    theta = torch.tensor([0.0, 1.0, -0.7], dtype=torch.float64)
    path = CategoricalPath(Tokens(3), Rectified())
    goal, wanted = TokenTable(path, law, "token"), {"c": torch.zeros(2)}
    state = State({"token": torch.tensor([[3], [1]])}, Context(torch.ones(2, 1, dtype=torch.bool)))
    plain = goal(state, 0.5)["token"]
    found = {
        w: ClassifierGuidance(goal, Additive(path, law, theta), 1.0, wanted, tokens=w)(state, 0.5)
        for w in (0.0, 0.5)
    }
    assert torch.equal(found[0.0]["token"], plain)
    moved = found[0.5]["token"].softmax(-1)
    exact = (law * (0.5 * theta).exp())[None] / (law * (0.5 * theta).exp()).sum()
    torch.testing.assert_close(moved[0], exact)
    # What is seen is known already.
    assert torch.equal(found[0.5]["token"][1], plain[1])


def test_off_is_the_denoiser_itself_and_nobody_else_matters() -> None:
    goal = gaussian(Rectified())
    predictor, context = LinearProperty(goal, H, 0.4), all_real(3)
    wanted = torch.tensor([2.0, math.nan, -1.0], dtype=torch.float64)
    context = context.replace(conditions={"c": wanted})
    state = State({"x": Draws(0, range(3)).normal((1, 3), "x", dtype=torch.float64)}, context)
    plain = goal(state, 0.5)["x"]
    assert torch.equal(ClassifierGuidance(goal, predictor, 0.0)(state, 0.5)["x"], plain)
    early = ClassifierGuidance(goal, predictor, 2.0, interval=(0.6, 1.0))
    assert torch.equal(early(state, 0.5)["x"], plain)
    model = ClassifierGuidance(goal, predictor, 2.0)
    together = model(state, 0.5)["x"]
    assert torch.equal(together[1], plain[1])
    for i in range(3):
        alone = model(state.index(slice(i, i + 1)), 0.5)["x"]
        torch.testing.assert_close(alone[0], together[i], rtol=1e-12, atol=1e-12)


def test_a_move_is_capped_a_sample_at_a_time() -> None:
    goal = gaussian(Rectified())
    wanted = {"c": torch.tensor([100.0, 0.5], dtype=torch.float64)}
    state = State({"x": torch.zeros(2, 1, 3, dtype=torch.float64)}, all_real(2))
    predictor = LinearProperty(goal, H, 0.4)
    plain = goal(state, 0.5)["x"]
    free = ClassifierGuidance(goal, predictor, 1.0, wanted, largest=math.inf)(state, 0.5)["x"]
    capped = ClassifierGuidance(goal, predictor, 1.0, wanted, largest=2.0)(state, 0.5)["x"]
    assert float((capped - plain)[0].square().mean().sqrt()) == pytest.approx(2.0)
    assert torch.equal(capped[1], free[1])


def test_what_is_refused() -> None:
    goal = gaussian(Rectified())
    predictor = LinearProperty(goal, H, 0.4)
    for weight in (-1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="weight"):
            ClassifierGuidance(goal, predictor, weight)
    with pytest.raises(InputError, match="times"):
        ClassifierGuidance(goal, predictor, interval=(0.5, 0.2))
    with pytest.raises(InputError, match="largest"):
        ClassifierGuidance(goal, predictor, largest=0.0)
    plain = PropertyPredictor(Nothing(), goal.paths, {"c": (0.0, 1.0)})
    with pytest.raises(InputError, match="does not know 'd'; it knows: c"):
        plain.log_prob(State({"x": torch.zeros(1, 1, 3)}, all_real(1)), 0.5, {"d": torch.zeros(1)})
