"""Products of models: exact on Gaussians and tokens; sums and products of rewards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.guidance.several.composition import Product, all_of, any_of
from sciflow.guidance.weak.estimates import Instead
from sciflow.paths import CategoricalPath, GaussianPath
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.schedules import Cosine, Rectified, Schedule, VPLinear
from sciflow.spaces import Euclidean, Tokens
from sciflow.state import Context, State, Times
from sciflow.testing.targets import GaussianMixture, TokenTable, all_real

PAIR = [((1.0, -0.5), ((0.5, 0.2), (0.2, 0.4))), ((-0.3, 0.8), ((0.3, -0.1), (-0.1, 0.9)))]
THIRD = ((0.2, 0.1), ((2.0, 0.3), (0.3, 1.5)))


def gaussian(mean: Any, covariance: Any, schedule: Schedule | None = None) -> GaussianMixture:
    path = GaussianPath(Euclidean(2), schedule or Rectified())
    c = torch.as_tensor(covariance, dtype=torch.float64)
    return GaussianMixture(path, torch.as_tensor(mean, dtype=torch.float64)[None], c[None])


def product(weights: Sequence[float], schedule: Schedule | None = None) -> tuple[
    list[GaussianMixture], GaussianMixture
]:  # fmt: skip
    """Gaussians, and the normalised product of their powers."""
    every = [*PAIR, THIRD][: len(weights)]
    means = [torch.tensor(m, dtype=torch.float64) for m, _ in every]
    inverses = [torch.linalg.inv(torch.tensor(c, dtype=torch.float64)) for _, c in every]
    p = torch.stack([w * q for w, q in zip(weights, inverses, strict=True)]).sum(0)
    m = torch.stack([w * q @ x for w, q, x in zip(weights, inverses, means, strict=True)]).sum(0)
    factors = [gaussian(m, c, schedule) for m, c in every]
    return factors, gaussian(torch.linalg.solve(p, m), torch.linalg.inv(p), schedule)


def noisy(n: int = 7) -> State:
    x = Draws(0, torch.arange(n)).normal((1, 2), "x", dtype=torch.float64)
    return State({"x": x}, all_real(n))


@pytest.mark.parametrize("weights", [(1, 1), (2, -0.4), (1, 1, -1), (1.5, 0.5, -0.5)])
@pytest.mark.parametrize("schedule", [Rectified(), VPLinear()])
def test_a_product_of_gaussians_is_exact(weights: Sequence[float], schedule: Any) -> None:
    factors, exact = product(weights, schedule)
    model = Product(factors, weights, "normal")
    for t in (0.05, 0.4, 0.9):
        torch.testing.assert_close(model(noisy(), t)["x"], exact(noisy(), t)["x"], rtol=0,
                                   atol=1e-8)  # fmt: skip
    draws = Draws(0, torch.arange(7))
    ends = [Sampler(9)(d, all_real(7), draws, dtype=torch.float64).state["x"]
            for d in (model, exact)]  # fmt: skip
    # Pure noise is asked about at a little signal.
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=5e-3)


@pytest.mark.parametrize("weights", [(1, 1), (2, -1), (1, 1, -1)])
def test_the_sum_of_scores(weights: Sequence[float]) -> None:
    factors, _ = product(weights)
    model = Product(factors, weights, "score")
    for t in (0.2, 0.7):
        state = noisy()
        x = state["x"].requires_grad_(True)
        a, s = factors[0].path.schedule(torch.tensor(t, dtype=torch.float64))
        logs = [w * f.log_density(x, a, s).sum() for w, f in zip(weights, factors, strict=True)]
        score = torch.autograd.grad(torch.stack(logs).sum(), x)[0]
        clean = model(state, t)["x"]
        torch.testing.assert_close((a * clean - x) / s**2, score, rtol=1e-9, atol=1e-9)


def test_sums_of_scores_are_not_the_noisy_product() -> None:
    """Why Du et al. (2023) need Langevin steps: ``score`` has another law at the end."""
    factors, exact = product((1, 1))
    draws = Draws(0, torch.arange(3000))
    ends = [Sampler(40)(d, all_real(3000), draws, dtype=torch.float64).state["x"][:, 0]
            for d in (Product(factors, rule="normal"), Product(factors, rule="score"))]  # fmt: skip
    covariance = exact.vectors[0] @ exact.values[0].diag() @ exact.vectors[0].mT
    errors = [float((x.T.cov() - covariance).norm() / covariance.norm()) for x in ends]
    assert errors[0] < 0.08
    assert errors[1] > 3 * errors[0]


ROUND = [(0.8, -0.4), (-0.3, 0.9), (0.5, 0.1)]


@pytest.mark.parametrize("weights", [(1, 1), (1, -0.5), (2, 1, -1), (1.5, 1.5)])
@pytest.mark.parametrize("schedule", [Rectified(), VPLinear()])
@pytest.mark.parametrize("std", [1.0, 0.6])
def test_round_factors_of_the_width_of_the_data_have_an_exact_product(
    weights: Sequence[float], schedule: Any, std: float
) -> None:
    path, eye = GaussianPath(Euclidean(2), schedule, data_std=std), torch.eye(2).double()
    means = torch.tensor(ROUND[: len(weights)], dtype=torch.float64)
    w = torch.tensor(weights, dtype=torch.float64)
    factors = [GaussianMixture(path, m[None], std**2 * eye[None]) for m in means]
    middle, width = (w @ means / w.sum())[None], std**2 * eye[None] / w.sum()
    exact, model = GaussianMixture(path, middle, width), Product(factors, weights)
    # At every level of noise, pure noise included.
    for t in (0.0, 0.1, 0.6, 0.97, 1.0):
        torch.testing.assert_close(model(noisy(), t)["x"], exact(noisy(), t)["x"], rtol=0,
                                   atol=1e-8)  # fmt: skip


@pytest.mark.parametrize("method", ["ab3", "unipc3", "heun", "dpmpp2m", "ddpm"])
@pytest.mark.parametrize("weights", [(1, 1), (1, -0.5)])
def test_a_product_under_any_sampler_is_nearly_as_wide_as_it_is(
    weights: Sequence[float], method: str
) -> None:
    """Factors of other widths: with sums of scores the spread was 0.02 to 50 times this one."""
    path = GaussianPath(Euclidean(1), Rectified())
    means, variances = ((0.5,), (-0.3,)), (0.4, 0.6)
    factors = [
        GaussianMixture(path, torch.tensor([m]), torch.tensor([[[v]]]))
        for m, v in zip(means, variances, strict=True)
    ]
    precision = sum(w / v for w, v in zip(weights, variances, strict=True))
    draws = Draws(0, torch.arange(2000))
    x = Sampler(40, method=method)(Product(factors, weights), all_real(2000), draws,
                                   dtype=torch.float64).state["x"]  # fmt: skip
    assert 0.75 < float(x.std()) * precision**0.5 < 1.25


def test_weights_zero_and_one() -> None:
    factors, _ = product((1, 1, -1))
    state = noisy()
    for rule in ("round", "score", "normal"):
        model = Product(factors, (0, 1, 0), rule)  # type: ignore[arg-type]
        before = [f.calls for f in factors]
        assert torch.equal(model(state, 0.3)["x"], factors[1](state, 0.3)["x"])
        assert [f.calls - b for f, b in zip(factors, before, strict=True)] == [0, 2, 0]
        assert model.calls == 1
    model = Product(factors, (1, 1, -1))
    model(state, 0.3)
    assert model.calls == 3


def test_a_sample_does_not_depend_on_its_companions() -> None:
    factors, _ = product((1, 0.5))
    for rule in ("round", "score", "normal"):
        model = Product(factors, (1, 0.5), rule)  # type: ignore[arg-type]
        whole = model(noisy(), 0.5)["x"]
        part = model(noisy().index(torch.tensor([3])), 0.5)["x"]
        torch.testing.assert_close(whole[3:4], part, rtol=1e-12, atol=1e-12)


def test_padding_and_given_elements() -> None:
    factors, _ = product((1, 1))
    context = Context(torch.tensor([[True, True, False]]),
                      given={"x": torch.tensor([[True, False, False]])})  # fmt: skip
    x = Draws(0, [0]).normal((3, 2), "x", dtype=torch.float64) * context.mask[..., None]
    clean = Product(factors, rule="normal")(State({"x": x}, context), 0.5)["x"]
    assert torch.equal(clean[0, 0], x[0, 0])
    assert bool((clean[0, 2] == 0).all())
    alone = Product(factors, rule="normal")(State({"x": x[:, 1:2]}, all_real(1)), 0.5)["x"]
    torch.testing.assert_close(clean[:, 1:2], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["absorbing", "uniform"])
def test_a_product_of_tokens_is_exact(kind: Any) -> None:
    path = CategoricalPath(Tokens(3), Cosine(), kind)
    tables = [torch.tensor(p).double() for p in ([0.5, 0.3, 0.2], [0.2, 0.2, 0.6])]
    weights = (1.3, 0.8)
    whole = tables[0] ** weights[0] * tables[1] ** weights[1]
    model = Product([TokenTable(path, p) for p in tables], weights)
    exact = TokenTable(path, whole)
    state = State({"token": torch.arange(path.symbols)[:, None]}, all_real(path.symbols))
    for t in (0.2, 0.8):
        torch.testing.assert_close(model(state, t)["token"].softmax(-1),
                                   exact(state, t)["token"].softmax(-1))  # fmt: skip


class Asked(Denoiser):
    """A Gaussian whose mean is asked for; not asked for, it is wide."""

    def __init__(self) -> None:
        super().__init__()
        self.paths = {"x": GaussianPath(Euclidean(2), Rectified())}

    def forward(self, state: State, t: Times | float,
                previous: Prediction | None = None) -> Prediction:  # fmt: skip
        asked = state.context.conditions["where"]
        wide = asked.isnan().double()[:, None, None]
        a, s = self.paths["x"].schedule(torch.as_tensor(t, dtype=torch.float64))
        v, m, x = 0.2 + 1.8 * wide, asked.nan_to_num(0.0)[:, None, None], state["x"]
        return Prediction({"x": m + a * v / (a**2 * v + s**2) * (x - a * m)})


def test_conditions_are_models() -> None:
    state = noisy(4)
    asked = torch.tensor([0.0, 1.0, 2.0, math.nan]).double()
    state = State(state.fields, all_real(4).replace(conditions={"where": asked}))
    base = Asked()
    assert torch.equal(Instead(base, {})(state, 0.5)["x"], base(state, 0.5)["x"])
    one = Instead(base, {"where": 1.0})
    context = state.context.replace(conditions={"where": torch.ones(4).double()})
    assert torch.equal(one(state, 0.5)["x"], base(State(state.fields, context), 0.5)["x"])
    with pytest.raises(InputError, match="'colour'"):
        Instead(base, {"colour": 1.0})(state, 0.5)

    # p(x | 1) p(x | -0.5)/p(x) and p(x | 1) (p(x)/p(x | -0.5))^½, in closed form.
    other, bare = (Instead(base, {"where": v}) for v in (-0.5, math.nan))
    for weights in ((1.0, 1.0, -1.0), (1.0, -0.5, 0.5)):
        model = Product([one, other, bare], weights, "normal")
        precision = torch.tensor([1 / 0.2, 1 / 0.2, 1 / 2.0]).double()
        w = torch.tensor(weights).double()
        p = float(w @ precision)
        m = float((w * precision) @ torch.tensor([1.0, -0.5, 0.0]).double()) / p
        exact = gaussian([m, m], [[1 / p, 0.0], [0.0, 1 / p]])
        torch.testing.assert_close(model(state, 0.4)["x"], exact(state, 0.4)["x"], rtol=0,
                                   atol=1e-8)  # fmt: skip


def test_rewards_are_composed() -> None:
    def near(c: float) -> Any:
        def log_f(clean: State) -> Tensor:
            return -((clean["x"][:, 0, 0] - c) ** 2)

        return log_f

    f, g, state = near(0.0), near(1.0), noisy()
    torch.testing.assert_close(all_of(f, g)(state), f(state) + g(state))
    torch.testing.assert_close(all_of(f, g, weights=(1, -0.5))(state), f(state) - 0.5 * g(state))
    torch.testing.assert_close(any_of(f, g, weights=(0.2, 0.8))(state),
                               (0.2 * f(state).exp() + 0.8 * g(state).exp()).log())  # fmt: skip
    with pytest.raises(InputError, match="above 0"):
        any_of(f, g, weights=(1, -1))
    with pytest.raises(InputError, match="2 log-densities"):
        all_of(f, g, weights=(1,))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"weights": (1,)}, "give one each"), ({"weights": (0, 0)}, "all weights are 0"),
     ({"rule": "sum"}, "round, normal, score"), ({"weights": (1, -1)}, "more than 0")],
)  # fmt: skip
def test_settings_that_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Product(product((1, 1))[0], **wrong)
