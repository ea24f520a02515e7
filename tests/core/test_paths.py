"""Paths: prediction types invert, corruption has its law, posteriors are Bayes' rule."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from sciflow.paths import CategoricalPath, GaussianPath
from sciflow.random import Draws
from sciflow.schedules import Cosine, Rectified, Schedule, SubVP, VarianceExploding, VPLinear
from sciflow.spaces import Euclidean, Tokens, ZeroCoM
from sciflow.state import Context
from sciflow.testing.targets import all_real

PREDICTIONS = ["x0", "eps", "v", "score", "velocity", "edm"]
SCHEDULES = [Rectified(), Rectified(2.0), Cosine(), VPLinear(), SubVP(), VarianceExploding()]
MARGINAL = [0.5, 0.3, 0.2]
KINDS = ["absorbing", "uniform", "marginal"]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)
every_kind = pytest.mark.parametrize("kind", KINDS)


def gaussian(schedule: Schedule, prediction: str = "edm", data_std: float = 1.7) -> GaussianPath:
    return GaussianPath(Euclidean(3), schedule, prediction, data_std)  # type: ignore[arg-type]


def categorical(
    kind: str, schedule: Schedule | None = None, pairs: bool = False
) -> CategoricalPath:
    marginal = MARGINAL if kind == "marginal" else None
    return CategoricalPath(Tokens(3, pairs), schedule or Rectified(), kind, marginal)  # type: ignore[arg-type]


@every_schedule
@every_prediction
def test_output_and_clean_are_inverses(schedule: Schedule, prediction: str) -> None:
    path, context = gaussian(schedule, prediction), all_real(5, 4)
    g = torch.Generator().manual_seed(0)
    x, d = torch.randn(2, 5, 4, 3, generator=g, dtype=torch.float64)
    t = torch.tensor([1e-3, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64)
    f = path.output(d, x, t)
    assert bool(f.isfinite().all())
    torch.testing.assert_close(path.clean(f, x, t, context), d, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(path.output(path.clean(f, x, t, context), x, t), f)


@every_schedule
def test_outputs_mean_what_their_names_say(schedule: Schedule) -> None:
    """With x_t = a x_0 + s ε, each type's F for D = x_0 is its own textbook formula."""
    g = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 4, 2, 3, generator=g, dtype=torch.float64)
    t = torch.tensor([0.1, 0.4, 0.6, 0.9], dtype=torch.float64)
    a, s = (y[:, None, None] for y in schedule(t))
    h = 1e-6
    (a1, s1), (a0, s0) = schedule(t + h), schedule(t - h)
    da, ds = ((y[:, None, None] / (2 * h)) for y in (a1 - a0, s1 - s0))
    x = a * x0 + s * eps
    sd = 1.7
    edm = (x0 - a * sd**2 / (a**2 * sd**2 + s**2) * x) * (a**2 * sd**2 + s**2).sqrt() / (s * sd)
    expected = {"x0": x0, "eps": eps, "v": a * eps - s * x0, "score": -eps / s,
                "velocity": da * x0 + ds * eps, "edm": edm}  # fmt: skip
    for prediction, f in expected.items():
        found = gaussian(schedule, prediction, sd).output(x0, x, t)
        torch.testing.assert_close(found, f, rtol=1e-5, atol=1e-6)


@every_schedule
def test_edm_has_unit_variance_in_and_out(schedule: Schedule) -> None:
    sd, n = 0.4, 40_000
    path = gaussian(schedule, "edm", sd)
    draws, context = Draws(0, torch.arange(n)), all_real(n)
    x0 = sd * draws.normal((1, 3), "data", dtype=torch.float64)
    for u in (0.05, 0.5, 0.95):
        t = torch.full((n,), u, dtype=torch.float64)
        x = path.corrupt(x0, t, context, draws, "noise")
        assert float(path.network_input(x, t).var()) == pytest.approx(1.0, abs=0.02)
        assert float(path.output(x0, x, t).var()) == pytest.approx(1.0, abs=0.02)


@every_schedule
@every_prediction
def test_one_type_of_number_all_through(schedule: Schedule, prediction: str) -> None:
    path, context = gaussian(schedule, prediction), all_real(2, 4)
    x = torch.randn(2, 4, 3)
    for t in (torch.tensor([0.3, 1.0]), torch.tensor([0.3, 1.0], dtype=torch.float64)):
        out = path.clean(torch.zeros_like(x), x, t, context)
        assert out.dtype == torch.float32 and bool(out.isfinite().all())
        level = path.level(t)
        assert bool((level.abs() <= 8).all()) and bool(level[1] > level[0])


@every_schedule
@every_prediction
def test_what_is_given_is_its_own_estimate(schedule: Schedule, prediction: str) -> None:
    """Also in gradients, where 0/0 of an unused branch would spread NaN."""
    path, context = gaussian(schedule, prediction), all_real(2, 4)
    x = torch.randn(2, 4, 3)
    f = torch.randn(2, 4, 3, requires_grad=True)
    t = torch.tensor([[0.0, 0.5, 0.0, 0.9]] * 2)
    clean = path.clean(f, x, t, context)
    assert torch.equal(clean[:, 0], x[:, 0]) and torch.equal(clean[:, 2], x[:, 2])
    clean.square().sum().backward()
    assert f.grad is not None and bool(f.grad.isfinite().all())
    assert not bool(f.grad[:, 0].any()) and bool(f.grad[:, 1].any())
    loss = path.loss(clean, x + 1, x, t, context)
    assert bool(loss.isfinite().all())
    moved = torch.where(t[..., None] > 0, 0.0, 5.0)
    assert torch.equal(path.loss(clean + moved, x + 1, x, t, context), loss)


def test_loss_is_the_error_of_the_output_over_real_elements() -> None:
    context = Context(torch.arange(6) < torch.tensor([6, 2])[:, None])
    g = torch.Generator().manual_seed(0)
    x0, d, x = torch.randn(3, 2, 6, 3, generator=g, dtype=torch.float64)
    t = torch.tensor([0.3, 0.8], dtype=torch.float64)
    for prediction in PREDICTIONS:
        path = gaussian(Cosine(), prediction)
        loss = path.loss(d, x0, x, t, context)
        error = (path.output(d, x, t) - path.output(x0, x, t)) ** 2
        expected = torch.stack([error[0].mean(), error[1, :2].mean()])
        torch.testing.assert_close(loss, expected)
        dirty = d.clone()
        dirty[1, 2:] = torch.nan
        assert torch.equal(path.loss(dirty, x0, x, t, context), loss)


@every_schedule
def test_gaussian_corruption(schedule: Schedule) -> None:
    n = 20_000
    path, context, draws = gaussian(schedule), all_real(n), Draws(0, torch.arange(n))
    x0 = torch.full((n, 1, 3), 2.0, dtype=torch.float64)
    t = torch.full((n,), 0.6, dtype=torch.float64)
    a, s = schedule(t[0])
    x = path.corrupt(x0, t, context, draws, "noise")
    assert float(x.mean()) == pytest.approx(2 * float(a), abs=4 * float(s) / math.sqrt(3 * n))
    assert float(x.std()) == pytest.approx(float(s), rel=0.02)
    assert torch.equal(path.corrupt(x0, 0 * t, context, draws, "noise"), x0)
    prior = path.prior(context, draws, "prior", torch.float64)
    a1, s1 = schedule(torch.ones((), dtype=torch.float64))
    assert float(prior.std()) == pytest.approx(math.hypot(1.7 * float(a1), float(s1)), rel=0.02)


def test_corruption_of_points_stays_centred_and_spares_padding() -> None:
    path = GaussianPath(ZeroCoM(3), Rectified())
    context = Context(torch.arange(6) < torch.tensor([6, 2])[:, None])
    x0 = path.space.project(torch.randn(2, 6, 3), context)
    x = path.corrupt(x0, torch.tensor([0.5, 1.0]), context, Draws(0, [0, 1]), "noise")
    assert float(x.sum(1).abs().max()) < 1e-5 and not bool(x[1, 2:].any())


def chi_square(counts: Tensor, p: Tensor) -> float:
    """In standard deviations above its mean; symbols of probability zero must not occur."""
    assert not bool(counts[p == 0].any())
    counts, p = counts[p > 0].double(), p[p > 0]
    if len(p) == 1:
        return 0.0
    expected = counts.sum() * p
    return float(
        (((counts - expected) ** 2 / expected).sum() - len(p) + 1) / math.sqrt(2 * len(p) - 2)
    )


@every_kind
@pytest.mark.parametrize("schedule", [Rectified(), Cosine(), VPLinear()], ids=str)
def test_token_corruption_has_its_marginal(kind: str, schedule: Schedule) -> None:
    n = 30_000
    path, context, draws = categorical(kind, schedule), all_real(n), Draws(1, torch.arange(n))
    pi = path.stationary
    for u in (0.15, 0.5, 0.85):
        t = torch.full((n,), u, dtype=torch.float64)
        alpha = float(path.keep(t)[0])
        for k in range(3):
            x0 = torch.full((n, 1), k)
            x = path.corrupt(x0, t, context, draws, f"noise{k}", 3)
            p = (1 - alpha) * pi
            p[k] += alpha
            assert chi_square(torch.bincount(x.flatten(), minlength=len(pi)), p) < 4
    x0 = torch.randint(0, 3, (n, 1))
    assert torch.equal(path.corrupt(x0, torch.zeros(n), context, draws, "noise"), x0)
    prior = path.prior(context, draws, "prior", torch.float64)
    assert chi_square(torch.bincount(prior.flatten(), minlength=len(pi)), pi) < 4


@every_kind
def test_pairs_are_corrupted_as_pairs(kind: str) -> None:
    path = categorical(kind, pairs=True)
    context = Context(torch.arange(6) < torch.tensor([6, 3])[:, None])
    draws = Draws(0, torch.arange(2))
    x0 = path.space.project(torch.randint(0, 3, (2, 6, 6)), context)
    by_atom = torch.tensor([[0.0, 0.0, 0.0, 0.9, 0.9, 0.9]] * 2)
    for t in (torch.tensor([0.4, 0.9]), by_atom):
        x = path.corrupt(x0, t, context, draws, "noise")
        assert torch.equal(x, x.transpose(1, 2))
        assert not bool(x[1, 3:].any()) and not bool(x.diagonal(dim1=1, dim2=2).any())
    assert torch.equal(x[:, :3, :3], x0[:, :3, :3])
    assert not torch.equal(x, x0)


@every_kind
@pytest.mark.parametrize(("alpha_t", "alpha_s"), [(0.3, 0.6), (0.0, 0.2), (0.7, 1.0), (0.0, 1.0)])
def test_posterior_is_bayes_rule(kind: str, alpha_t: float, alpha_s: float) -> None:
    path = categorical(kind)
    k, pi = path.symbols, path.stationary
    one = torch.eye(k, dtype=torch.float64)

    def q(keep: float) -> Tensor:
        """Rows: from; columns: to."""
        return keep * one + (1 - keep) * pi.expand(k, k)

    to_s, s_to_t = q(alpha_s), q(alpha_t / alpha_s)
    p0 = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    for x_t in range(k):
        # By enumeration of the joint p(x_0) q(x_s | x_0) q(x_t | x_s).
        evidence = {i: sum(float(to_s[i, j] * s_to_t[j, x_t]) for j in range(k)) for i in range(3)}
        expected = torch.zeros(k, dtype=torch.float64)
        for i, j in itertools.product(range(3), range(k)):
            if evidence[i] > 0:
                # p_0 is the network's p(x_0 | x_t): weights of q(x_s | x_t, x_0), not a prior.
                expected[j] += p0[i] * to_s[i, j] * s_to_t[j, x_t] / evidence[i]
        if expected.sum() == 0:
            continue
        found = path.posterior(p0, torch.tensor(x_t), torch.tensor(alpha_t), torch.tensor(alpha_s))
        torch.testing.assert_close(found, expected / expected.sum(), rtol=1e-6, atol=1e-7)


@every_kind
def test_known_tokens_are_certain_and_cost_nothing(kind: str) -> None:
    path, context = categorical(kind), Context(torch.tensor([[True, True, True, False]]))
    x0 = torch.tensor([[2, 1, 0, 0]])
    x_t = torch.tensor([[2, path.symbols - 1, 1, 0]])
    t = torch.tensor([[0.0, 0.6, 0.6, 0.6]])
    clean = path.clean(torch.zeros(1, 4, 3), x_t, t, context)
    p = clean.softmax(-1)
    assert float(p[0, 0, 2]) == 1.0
    assert torch.equal(p[0, 1], torch.full((3,), 1 / 3))
    # Under absorbing noise what is seen is true; elsewhere it may be noise.
    assert float(p[0, 2, 1]) == pytest.approx(1.0 if kind == "absorbing" else 1 / 3)
    loss = path.loss(clean, x0, x_t, t, context)
    unknown = 1 if kind == "absorbing" else 2
    assert float(loss) == pytest.approx(unknown * math.log(3) / 3)
    dirty = clean.clone()
    dirty[0, 3] = 50.0
    assert torch.equal(path.loss(dirty, x0, x_t, t, context), loss)


@every_kind
def test_exact_logits_minimise_the_loss(kind: str) -> None:
    n = 4000
    path, context, draws = categorical(kind), all_real(n, 3), Draws(0, torch.arange(n))
    p = torch.tensor([0.6, 0.3, 0.1])
    x0 = Tokens(3).sample(p.expand(n, 3, 3), draws.uniform((3,), "data"))
    t = torch.full((n,), 0.7)
    x = path.corrupt(x0, t, context, draws, "noise")
    alpha, pi = float(path.keep(t[0])), path.stationary
    here = torch.nn.functional.one_hot(x, path.symbols)[..., :3]
    exact = (p * (alpha * here + (1 - alpha) * pi[x][..., None])).clamp(min=1e-12).log().float()

    def loss(logits: Tensor) -> float:
        return float(path.loss(path.clean(logits, x, t, context), x0, x, t, context).mean())

    best = loss(exact)
    for shift in torch.eye(3):
        assert loss(exact + 0.3 * shift) > best


def test_configurations_describe_the_path() -> None:
    config = gaussian(Cosine(), "v").config()
    assert config["schedule"] == {"kind": "cosine", "power": 1.0} and config["prediction"] == "v"
    assert config["kind"] == "gaussian" and config["data_std"] == 1.7
    assert categorical("marginal").config()["marginal"] == MARGINAL
    assert categorical("uniform", pairs=True).config()["pairs"] is True
    other = gaussian(Cosine(), "v").with_schedule(Rectified(2.0))
    assert other.schedule == Rectified(2.0) and other.prediction == "v" and other.data_std == 1.7
    token = categorical("marginal").with_schedule(Cosine())
    assert token.kind == "marginal" and token.stationary.tolist() == pytest.approx(MARGINAL)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown prediction type 'noise'"):
        gaussian(Cosine(), "noise")
    with pytest.raises(ValueError, match="unknown corruption 'mask'"):
        categorical("mask")
    with pytest.raises(ValueError, match="3 frequencies"):
        CategoricalPath(Tokens(3), Rectified(), "marginal", [0.5, 0.5])
