"""Densities of models: closed forms, mixtures, tables, probes, gradients, Itô's formula."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sciflow.denoisers import Denoiser, Network, NetworkDenoiser, Prediction
from sciflow.errors import InputError
from sciflow.likelihood import FlowLikelihood, ItoDensity, TokenLikelihood
from sciflow.likelihood.divergence import Probes
from sciflow.likelihood.runge_kutta import TABLEAUX, solve_adaptive, solve_fixed
from sciflow.paths import CategoricalPath, GaussianPath, Path
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.schedules import Cosine, Rectified, Schedule, SubVP, VarianceExploding, VPLinear
from sciflow.spaces import Euclidean, Kernel, RandomField, Space, Tokens, ZeroCoM
from sciflow.state import Context, State, Times, field_times
from sciflow.testing.targets import (
    DiagonalGaussian,
    ExactDenoiser,
    GaussianMixture,
    NamedMixture,
    TokenTable,
    all_real,
)

SCHEDULES = [Rectified(), Rectified(2.0), Cosine(), VPLinear(), SubVP(), VarianceExploding()]
ONE = torch.ones((), dtype=torch.float64)
MEAN = torch.tensor([0.5, -1.0], dtype=torch.float64)
VARIANCE = torch.tensor([0.3, 2.0], dtype=torch.float64)


def points(n: int, *shape: int, seed: int = 3) -> Tensor:
    return Draws(seed, torch.arange(n)).normal(shape, "points", dtype=torch.float64)


def normal(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """log N(x; mean, diag variance) of each sample ``[B, ...]``."""
    return -0.5 * ((x - mean) ** 2 / variance + (2 * math.pi * variance).log()).flatten(1).sum(1)


def gaussian(schedule: Schedule | None = None, prediction: str = "edm") -> DiagonalGaussian:
    path = GaussianPath(Euclidean(2), schedule or Rectified(), prediction)  # type: ignore[arg-type]
    return DiagonalGaussian(path, MEAN, VARIANCE)


def mixture(schedule: Schedule | None = None) -> GaussianMixture:
    angle = torch.arange(5) * 2 * math.pi / 5
    roots = 0.3 * torch.randn(5, 2, 2, generator=torch.Generator().manual_seed(0))
    return GaussianMixture(
        GaussianPath(Euclidean(2), schedule or Rectified(), data_std=1.5),
        2 * torch.stack((angle.cos(), angle.sin()), -1),
        roots @ roots.mT + 0.05 * torch.eye(2),
        [0.1, 0.3, 0.2, 0.25, 0.15],
    )


class Centred(ExactDenoiser):
    """Centred points, standard normal times ``scale`` on the space of legal values."""

    def __init__(self, scale: float = 0.7, space: Space | None = None) -> None:
        self.path = GaussianPath(space or ZeroCoM(3), Rectified())
        super().__init__({"x": self.path})
        self.scale = scale

    def exact(self, state: State, times: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = self.path.space.project(state["x"].double(), state.context)
        a, s = (self.path.space.expand(y, x) for y in self.path.schedule(times["x"]))
        v = self.scale**2
        return {"x": a * v / (a**2 * v + s**2).clamp(min=1e-300) * x}


@pytest.mark.parametrize("method", TABLEAUX)
def test_runge_kutta_has_its_order(method: str) -> None:
    """y' = y cos u, y = exp(sin u)."""

    def f(u: Tensor, y: tuple[Tensor, ...], step: int) -> tuple[Tensor, ...]:
        return (y[0] * u.cos(),)

    y = (torch.ones(1, 1, dtype=torch.float64),)
    errors = []
    for n in (8, 16):
        nodes = [2 * i / n for i in range(n + 1)]
        end = solve_fixed(f, y, nodes, TABLEAUX[method])[0]
        errors.append(abs(float(end) - math.exp(math.sin(2))))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(TABLEAUX[method].order, abs=0.5)


def test_adaptive_steps_belong_to_each_sample() -> None:
    """A stiff companion changes nothing, a broken one ends, and tolerance is obeyed."""
    rates = torch.tensor([[1.0], [300.0], [math.nan]], dtype=torch.float64)

    def slope(rows: slice) -> Any:
        return lambda u, y, step: (-rates[rows] * (y[0] - u[:, None].cos()),)

    def end(rows: slice, tolerance: float = 1e-9) -> Tensor:
        y = (torch.full((len(rates[rows]), 1), 2.0, dtype=torch.float64),)
        return solve_adaptive(slope(rows), y, 0.0, 1.0, TABLEAUX["dopri5"], tolerance)[0]

    exact = 2 * math.exp(-1) + (math.cos(1) + math.sin(1) - math.exp(-1)) / 2
    together = end(slice(0, 3))
    assert torch.equal(end(slice(0, 1)), together[:1]) and bool(together[2].isnan())
    assert float(together[0]) == pytest.approx(exact, abs=1e-8)
    assert float(end(slice(0, 1), 1e-4)) != float(together[0])
    with pytest.raises(InputError, match="larger tolerance"):
        y = (torch.ones(1, 1, dtype=torch.float64),)
        solve_adaptive(slope(slice(0, 1)), y, 0.0, 1.0, TABLEAUX["dopri5"], 1e-12, limit=3)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("begin", [0.0, 0.1])
def test_a_gaussian_has_its_closed_form(schedule: Schedule, begin: float) -> None:
    """Pushed to t = 1 by the exact flow, where the prior of the path is; to 1e-6."""
    target, x = gaussian(schedule), points(8, 1, 2)
    found = FlowLikelihood(begin=begin, method="dopri5", steps=18)(target, state(x))
    (a, s), (b, r) = (schedule(torch.tensor(u, dtype=torch.float64)) for u in (begin, 1.0))
    # The data smoothed by σ = s/a: N(m, v + σ²), whose flow in y = x/a is linear.
    smoothed = VARIANCE + (s / a) ** 2
    slope = b * ((VARIANCE + (r / b) ** 2) / smoothed).sqrt() if b > 0 else r / smoothed.sqrt()
    end = b * MEAN + slope * (x - MEAN)
    scale = (b**2 + r**2) * ONE if b > 0 else r**2 * ONE
    exact = normal(end, 0 * MEAN, scale.expand(2)) + slope.log().sum()
    torch.testing.assert_close(found.log_density, exact, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.noise["x"], end, rtol=0, atol=1e-6 * float(scale.sqrt()))
    if b == 0:
        truth = normal(x, MEAN, smoothed)
        torch.testing.assert_close(found.log_density, truth, rtol=0, atol=1e-6)
    bits = -found.log_density / (2 * math.log(2))
    torch.testing.assert_close(found.bits_per_dimension, bits)
    assert not bool(found.standard_error.any()) and found.dimensions.tolist() == [2] * 8


def test_a_prior_with_a_mean_is_the_one_that_samples_begin_with() -> None:
    """What signal is left at t = 1 is of the mean: the prior of a Gaussian is its exact law."""
    mean = torch.full((2,), 1.5, dtype=torch.float64)
    path = GaussianPath(Euclidean(2), VarianceExploding(0.01, 2.0), data_std=0.6,
                        data_mean=lambda context, like: mean.expand(like.shape))  # fmt: skip
    x, variance = points(8, 1, 2), torch.full((2,), 0.36, dtype=torch.float64)
    found = FlowLikelihood(begin=0.0, steps=18)(DiagonalGaussian(path, mean, variance), state(x))
    torch.testing.assert_close(found.log_density, normal(x, mean, variance), rtol=0, atol=1e-6)
    prior = path.prior(all_real(4000, 1), Draws(0, torch.arange(4000)), "x", torch.float64)
    assert prior.mean((0, 1)).tolist() == pytest.approx([1.5, 1.5], abs=0.15)


@pytest.mark.parametrize("prediction", ["x0", "eps", "v", "score", "velocity", "edm"])
def test_the_density_does_not_know_what_the_network_predicts(prediction: str) -> None:
    x = points(4, 1, 2)
    found = FlowLikelihood(begin=1e-3)(gaussian(Rectified(), prediction), state(x))
    reference = normal(x, MEAN, VARIANCE + (1e-3 / 0.999) ** 2)
    torch.testing.assert_close(found.log_density, reference, rtol=0, atol=2e-6)


@pytest.mark.parametrize("settings", [{"method": "rk4", "steps": 50}, {"tolerance": 1e-6}, {}],
                         ids=str)  # fmt: skip
def test_a_mixture_has_its_exact_density(settings: dict[str, Any]) -> None:
    target = mixture()
    x = target.sample(40)[:, None]
    exact = target.log_density(x[:, 0], ONE, 0 * ONE)
    found = FlowLikelihood(begin=0.0, **settings)(target, state(x))
    torch.testing.assert_close(found.log_density, exact, rtol=0, atol=1e-4)
    assert found.calls == target.calls < 250


def test_begun_later_it_is_the_density_of_smoothed_data() -> None:
    target = mixture()
    x = target.sample(20)[:, None]
    found = FlowLikelihood(begin=0.1)(target, state(x)).log_density
    exact = target.log_density(x[:, 0], ONE, ONE / 9)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-4)
    sharp = target.log_density(x[:, 0], ONE, 0 * ONE)
    assert float((exact - sharp).abs().max()) > 0.1


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_centred_points_have_fewer_dimensions(chunk: int) -> None:
    """N points: a normal law in 3(N − 1) dimensions, with padding that holds anything."""
    space, target = ZeroCoM(3), Centred()
    context = Context(torch.arange(6) < torch.tensor([6, 4, 2, 1])[:, None])
    x = 0.7 * space.noise(context, Draws(0, torch.arange(4)), "x", dtype=torch.float64)
    dimensions = torch.tensor([15.0, 9.0, 3.0, 0.0], dtype=torch.float64)
    exact = -0.5 * ((x / 0.7) ** 2).sum((1, 2)) - dimensions * math.log(0.7 * (2 * math.pi) ** 0.5)
    dirty = torch.where(context.mask[..., None], x, math.nan)
    for given in (x, dirty):
        found = FlowLikelihood(begin=0.0, steps=10, chunk=chunk)(
            target, State({"x": given}, context)
        )
        torch.testing.assert_close(found.log_density, exact, rtol=0, atol=1e-6)
        assert found.dimensions.tolist() == dimensions.tolist()
    assert space.dimensions(x, context).tolist() == dimensions.tolist()
    # A given point fixes the frame: 3 for each of the others.
    known = context.replace(given={"x": torch.arange(6) < torch.ones(4, 1)})
    free = ZeroCoM(3, "x")
    assert free.dimensions(x, known).tolist() == [18, 12, 6, 3]


@pytest.mark.parametrize("event", [(), (2,), (2, 2)])
def test_exact_divergence_of_any_shape(event: tuple[int, ...]) -> None:
    """flow_matching's exact_divergence indexes [:, i] and fails on [B, 2, 2] (IndexError)."""
    target, n = Centred(1.3, Euclidean(*event)), 3
    x = points(5, n, *event)
    found = FlowLikelihood(begin=0.0, steps=12)(target, State({"x": x}, all_real(5, n)))
    variance = torch.tensor(1.3**2, dtype=torch.float64)
    torch.testing.assert_close(found.log_density, normal(x, 0 * x, variance.expand(x.shape[1:])),
                               rtol=0, atol=1e-6)  # fmt: skip


def test_noise_that_is_a_random_field() -> None:
    """Data N(0, v C), noise N(0, C): by the space's own inner product and log det C."""
    space = RandomField((1.0,), Kernel("matern", 0.3, 0.5), boundary="periodic")
    target, context = Centred(1.3, space), all_real(4, 8)
    x = 1.3 * space.noise(context, Draws(0, torch.arange(4)), "x", dtype=torch.float64)
    eye = torch.eye(8, dtype=torch.float64)
    c = torch.stack([space.color(e.expand(4, 8), context)[0] for e in eye])
    zero = torch.zeros(8, dtype=torch.float64)
    exact = torch.distributions.MultivariateNormal(zero, 1.69 * c).log_prob(x)
    found = FlowLikelihood(begin=0.0, steps=12)(target, State({"x": x}, context))
    torch.testing.assert_close(found.log_density, exact, rtol=0, atol=1e-6)
    some = context.replace(given={"x": torch.arange(8) < torch.ones(4, 1)})
    with pytest.raises(InputError, match="correlated"):
        FlowLikelihood()(target, State({"x": x}, some))


def test_a_given_part_is_what_the_density_is_conditional_on() -> None:
    """Two correlated points; p(x_2 | x_1), p(x_1), and their product, p(x_1, x_2)."""
    c = torch.tensor([[1.0, 0.8], [0.8, 1.5]], dtype=torch.float64)
    path = GaussianPath(Euclidean(), Rectified())

    class Pair(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.paths = {"x": path}

        def forward(
            self, state: State, t: Times | float, previous: Prediction | None = None
        ) -> Prediction:
            x = state["x"]
            a, s = path.schedule(field_times(t, state)["x"])
            a, s = (y if y.ndim == 2 else y[:, None].expand(x.shape) for y in (a, s))
            # Cov x_0 = c, x_t = a x_0 + s ε with a time for each point.
            noisy = a[:, :, None] * c * a[:, None] + torch.diag_embed(s**2)
            gain = torch.linalg.solve(noisy, a[:, :, None] * c).mT
            return Prediction({"x": (gain @ x[..., None])[..., 0]})

    x = points(6, 2)
    given = all_real(6, 2).replace(given={"x": torch.tensor([[True, False]]).expand(6, 2)})
    found = FlowLikelihood(begin=0.0)(Pair(), State({"x": x}, given))
    mean, variance = 0.8 * x[:, :1], (c[1, 1] - 0.8**2)[None]
    exact = normal(x[:, 1:], mean, variance)
    torch.testing.assert_close(found.log_density, exact, rtol=0, atol=1e-6)
    assert found.dimensions.tolist() == [1] * 6
    whole = FlowLikelihood(begin=0.0)(Pair(), State({"x": x}, all_real(6, 2)))
    torch.testing.assert_close(whole.log_density, exact + normal(x[:, :1], ONE * 0, c[0, :1]),
                               rtol=0, atol=1e-6)  # fmt: skip


class Independent(Denoiser):
    """Two fields that know nothing of each other, on one clock."""

    def __init__(self, first: DiagonalGaussian, second: DiagonalGaussian) -> None:
        super().__init__()
        self.parts = {"x": first, "y": second}
        self.paths = {name: part.path for name, part in self.parts.items()}

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        times = field_times(t, state)
        return Prediction({
            f: part(State({"x": state[f]}, state.context), {"x": times[f]})["x"]
            for f, part in self.parts.items()
        })  # fmt: skip


def test_fields_with_clocks_of_their_own_add_up() -> None:
    x, y = points(5, 1, 2), points(5, 1, 2, seed=4)
    target = Independent(gaussian(Rectified()), gaussian(Rectified(2.0)))
    for settings in ({"steps": 20}, {"tolerance": 1e-6}):
        found = FlowLikelihood(begin=1e-3, **settings)(target, State({"x": x, "y": y}, all_real(5)))  # type: ignore[arg-type]
        exact = sum(
            normal(z, MEAN, VARIANCE + (s / (1 - s)) ** 2) for z, s in ((x, 1e-3), (y, 1e-6))
        )
        torch.testing.assert_close(found.log_density, exact, rtol=0, atol=1e-5)
        assert found.dimensions.tolist() == [4] * 5


def tilted() -> GaussianMixture:
    """A correlated Gaussian, on which a Rademacher probe is not exact."""
    covariance = torch.tensor([[[1.0, 0.9], [0.9, 1.5]]])
    return GaussianMixture(GaussianPath(Euclidean(2), Rectified()), torch.zeros(1, 2), covariance)


@pytest.mark.parametrize("probe", ["rademacher", "normal"])
@pytest.mark.parametrize("fresh", [False, True])
def test_random_probes_are_unbiased_and_divided_by_their_number(probe: str, fresh: bool) -> None:
    """bayesflow #772 summed over probes and never divided: wrong by the factor of their number."""
    x = points(1, 1, 2).expand(400, 1, 2)
    kind: dict[str, Any] = {"divergence": "hutchinson", "probe": probe, "fresh": fresh,
                            "method": "rk4", "steps": 12}  # fmt: skip
    exact = FlowLikelihood(method="rk4", steps=12)(tilted(), state(x[:1])).log_density
    spread = []
    for probes in (1, 4):
        settings = FlowLikelihood(probes=probes, **kind)
        found = settings(tilted(), state(x), Draws(0, torch.arange(400)))
        error = found.log_density - exact
        se = float(error.std()) / 20
        assert abs(float(error.mean())) < 4 * se
        spread.append(float(error.std()))
        if probes == 4:
            # What is reported for one sample is the spread between samples.
            squares = float(found.standard_error.square().mean().sqrt())
            assert squares == pytest.approx(spread[1], rel=0.2)
        else:
            assert bool(found.standard_error.isnan().all())
    assert spread[0] / spread[1] == pytest.approx(2.0, rel=0.2)


def test_fresh_probes_average_along_the_trajectory() -> None:
    x = points(1, 1, 2).expand(200, 1, 2)
    spread = {}
    for fresh in (False, True):
        settings = FlowLikelihood(divergence="hutchinson", fresh=fresh, method="rk4", steps=24)
        found = settings(tilted(), state(x), Draws(0, torch.arange(200)))
        spread[fresh] = float(found.log_density.std())
    assert spread[True] < 0.5 * spread[False]


def test_probes_see_centred_points_only() -> None:
    """E g gᵀ is the projection: the trace of a projected Jacobian is that of the subspace."""
    space = ZeroCoM(3)
    context = Context(torch.arange(4) < torch.tensor([4, 3])[:, None])
    context = context.apply(lambda m: m.repeat_interleave(2000, 0))
    x = torch.zeros(4000, 4, 3, dtype=torch.float64)
    probes = Probes.draw(space, context, context.mask, x, Draws(0, torch.arange(4000)),
                         "normal", 1, "p", 0, 1)  # fmt: skip
    y = x.requires_grad_(True)
    found = probes.traces(2 * y + 1, y, False)[:, 0]
    for rows, d in ((slice(0, 2000), 9), (slice(2000, 4000), 6)):
        # 2 |g|² has mean 2d and variance 8d.
        assert float(found[rows].mean()) == pytest.approx(2 * d, abs=4 * (8 * d / 2000) ** 0.5)


@pytest.mark.parametrize("settings", [
    {"method": "rk4", "steps": 10}, {"tolerance": 1e-5},
    {"method": "rk4", "steps": 10, "divergence": "hutchinson", "probes": 2},
    {"method": "heun", "steps": 10, "divergence": "hutchinson", "fresh": True},
], ids=str)  # fmt: skip
def test_a_sample_depends_neither_on_companions_nor_on_padding(settings: dict[str, Any]) -> None:
    likelihood, n = FlowLikelihood(**settings), 3
    path = GaussianPath(Euclidean(2), Rectified())
    target = GaussianMixture(path, torch.tensor([[2.0, 0.0], [-1.0, 1.0]]),
                             torch.tensor([[[1.0, 0.5], [0.5, 1.0]]] * 2))  # fmt: skip
    mask = torch.arange(n) < torch.tensor([3, 2, 1, 3, 2])[:, None]
    x = points(5, n, 2) * mask[..., None]
    draws = Draws(1, torch.arange(5))
    whole = likelihood(target, State({"x": x}, Context(mask)), draws).log_density
    rows = torch.tensor([3, 1])
    part = likelihood(target, State({"x": x[rows]}, Context(mask[rows])), draws.rows(rows))
    torch.testing.assert_close(part.log_density, whole[rows], rtol=0, atol=1e-11)
    longer = State({"x": F.pad(x, (0, 0, 0, 4), value=7.0)}, Context(F.pad(mask, (0, 4))))
    padded = likelihood(target, longer, draws).log_density
    torch.testing.assert_close(padded, whole, rtol=0, atol=1e-11)


class Small(Network):
    """A smooth function of field and level, with weights of its own."""

    def __init__(self, event: int = 2) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.first = torch.nn.Parameter(0.5 * torch.randn(event + 1, 8, generator=g).double())
        self.second = torch.nn.Parameter(0.5 * torch.randn(8, event, generator=g).double())

    def forward(
        self,
        inputs: dict[str, Tensor],
        levels: dict[str, Tensor],
        context: Context,
        previous: dict[str, Tensor] | None,
    ) -> dict[str, Tensor]:
        x = inputs["x"]
        level = levels["x"].reshape(len(x), *(1,) * (x.ndim - 1)).expand(*x.shape[:-1], 1)
        h = torch.cat((x, level / 8), -1) @ self.first
        return {"x": h.tanh() @ self.second}


@pytest.mark.parametrize("kind", ["exact", "hutchinson"])
def test_gradients_reach_data_and_weights(kind: str) -> None:
    """flow_matching #59: with enable_grad=True its gradients were None. Here: differences."""
    model = NetworkDenoiser(Small(), {"x": GaussianPath(Euclidean(2), Rectified())})
    likelihood = FlowLikelihood(method="rk4", steps=4, divergence=kind)  # type: ignore[arg-type]
    draws, x = Draws(0, torch.arange(3)), points(3, 1, 2)

    def value(x: Tensor) -> Tensor:
        return likelihood(model, state(x), draws, differentiable=True).log_density.sum()

    y = x.clone().requires_grad_(True)
    weights = list(model.parameters())
    grads = torch.autograd.grad(value(y), [y, *weights])
    h = 1e-5
    for i, (tensor, grad) in enumerate(zip([x, *weights], grads, strict=True)):
        where = (0,) * tensor.ndim
        ends = []
        for step in (h, -h):
            with torch.no_grad():
                tensor[where] += step
                ends.append(float(value(x)))
                tensor[where] -= step
        assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(float(grad[where]), rel=1e-6), i
    plain = likelihood(model, state(x), draws)
    assert not plain.log_density.requires_grad
    with torch.no_grad():
        again = likelihood(model, state(x), draws)
    torch.testing.assert_close(again.log_density, plain.log_density)


def test_gradient_of_an_adaptive_density_is_the_score() -> None:
    target, x = mixture(), mixture().sample(6)[:, None]
    y = x.clone().requires_grad_(True)
    found = FlowLikelihood(begin=0.0, tolerance=1e-7)(target, state(y), differentiable=True)
    (grad,) = torch.autograd.grad(found.log_density.sum(), y)
    z = x.clone().requires_grad_(True)
    (score,) = torch.autograd.grad(target.log_density(z[:, 0], ONE, 0 * ONE).sum(), z)
    torch.testing.assert_close(grad, score, rtol=1e-3, atol=1e-3)


def test_a_mixed_state_needs_its_tokens_given() -> None:
    """p(x | token) of the named mixture: Bayes' rule on its components."""
    means = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [-1.0, -1.5]])
    paths = GaussianPath(Euclidean(2), Rectified()), CategoricalPath(Tokens(3), Rectified())
    target = NamedMixture(*paths, means, 0.1, [1.0, 2.0, 1.0])
    x, token = means.double()[[0, 1, 2, 1], None] + 0.3 * points(4, 1, 2), torch.tensor([[1]] * 4)
    mixed = State({"x": x, "token": token}, all_real(4))
    with pytest.raises(InputError, match=r"context.given\['token'\]"):
        FlowLikelihood()(target, mixed)
    given = mixed.context.replace(given={"token": torch.ones(4, 1, dtype=torch.bool)})
    found = FlowLikelihood(begin=0.0)(target, State(mixed.fields, given)).log_density
    log_c = target.mixture.components(x[:, 0], ONE, 0 * ONE)[0]
    log_c = log_c - target.mixture.log_weights
    weights = target.joint()[:, 1] / target.joint()[:, 1].sum()
    exact = (log_c + weights.log()).logsumexp(-1)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-4)


@pytest.mark.parametrize("wrong", [
    {"method": "euler"}, {"steps": 0}, {"probes": 0}, {"chunk": 0}, {"begin": 1.0},
    {"divergence": "some"}, {"probe": "uniform"}, {"tolerance": 0.0},
    {"tolerance": 1e-5, "fresh": True},
], ids=str)  # fmt: skip
def test_settings_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        FlowLikelihood(**wrong)


def test_random_probes_need_draws() -> None:
    with pytest.raises(InputError, match="draws"):
        FlowLikelihood(divergence="hutchinson")(gaussian(), state(points(2, 1, 2)))


def table(*sizes: int) -> Tensor:
    g = torch.Generator().manual_seed(1)
    p = torch.rand(*sizes, generator=g, dtype=torch.float64) ** 3 + 0.01
    return p / p.sum()


def tokens(x: Tensor) -> State:
    return State({"token": x}, all_real(*x.shape))


@pytest.mark.parametrize("schedule", [Rectified(), Rectified(2.0), Cosine(), VPLinear()], ids=str)
def test_the_token_bound_is_tight_for_the_exact_denoiser(schedule: Schedule) -> None:
    """All rows of a table of 3³, each many times: the mean is log p within its error."""
    p = table(3, 3, 3)
    target = TokenTable(CategoricalPath(Tokens(3), schedule), p)
    x = torch.tensor(list(itertools.product(range(3), repeat=3))).repeat_interleave(100, 0)
    found = TokenLikelihood(16)(target, tokens(x), Draws(0, torch.arange(len(x))))
    values = found.log_probability.view(27, 100)
    z = (values.mean(1) - p.flatten().log()) / (values.std(1) / 10)
    assert float(z.abs().max()) < 4.5
    # Stratified: less spread than the reported error, which takes the draws as independent.
    assert float(values.std(1).mean()) < float(found.standard_error.mean())
    assert found.calls == 16 and found.tokens.tolist() == [3] * 2700
    torch.testing.assert_close(found.perplexity, (-found.log_probability / 3).exp())


class Tempered(Denoiser):
    """A table's posteriors, sharpened: conditionals of no joint distribution."""

    def __init__(self, inner: TokenTable) -> None:
        super().__init__()
        self.inner, self.paths = inner, inner.paths

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        logits = self.inner(state, t)["token"].log_softmax(-1)
        known = (state["token"] < 3)[..., None]
        return Prediction({"token": torch.where(known, logits, 1.7 * logits)})


def test_token_fields_with_clocks_of_their_own() -> None:
    """Two fields of one joint table: the order of unmasking changes, the bound stays tight."""
    p = table(3, 3)
    schedules = {"a": Rectified(), "b": Rectified(3.0)}
    paths = {name: CategoricalPath(Tokens(3), schedule) for name, schedule in schedules.items()}
    target = TokenTable(paths["a"], p)

    class Split(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.paths = paths

        def forward(
            self, state: State, t: Times | float, previous: Prediction | None = None
        ) -> Prediction:
            both = torch.cat((state["a"], state["b"]), 1)
            logits = target(State({"token": both}, all_real(*both.shape)), 0.5)["token"]
            return Prediction({"a": logits[:, :1], "b": logits[:, 1:]})

    x = torch.tensor(list(itertools.product(range(3), repeat=2))).repeat_interleave(100, 0)
    both = State({"a": x[:, :1], "b": x[:, 1:]}, all_real(900))
    found = TokenLikelihood(8)(Split(), both, Draws(0, torch.arange(900)))
    values = found.log_probability.view(9, 100)
    z = (values.mean(1) - p.flatten().log()) / (values.std(1) / 10)
    assert float(z.abs().max()) < 4.0 and found.tokens.tolist() == [2] * 900


def test_the_token_bound_bounds() -> None:
    """A model whose conditionals fit no joint law: two orders, Jensen, by enumeration."""
    p = table(3, 3)
    model = Tempered(TokenTable(CategoricalPath(Tokens(3), Rectified()), p))
    x = torch.tensor(list(itertools.product(range(3), repeat=2)))

    def conditional(masked: list[bool], of: int) -> Tensor:
        noisy = torch.where(torch.tensor(masked), 3, x)
        log_p = model(tokens(noisy), 0.5)["token"].log_softmax(-1)
        return log_p[:, of].gather(1, x[:, of, None])[:, 0]

    orders = [conditional([True, True], 0) + conditional([False, True], 1),
              conditional([True, True], 1) + conditional([True, False], 0)]  # fmt: skip
    bound, exact = torch.stack(orders).mean(0), torch.stack(orders).exp().mean(0).log()
    assert float((exact - bound).min()) >= 0 and float((exact - bound).max()) > 0.01
    rows = x.repeat_interleave(400, 0)
    found = TokenLikelihood(8)(model, tokens(rows), Draws(0, torch.arange(len(rows))))
    values = found.log_probability.view(9, 400)
    z = (values.mean(1) - bound) / (values.std(1) / 20)
    assert float(z.abs().max()) < 4.0


def test_given_tokens_pairs_and_padding_are_counted_once() -> None:
    """Uniform logits cost log K a free token, whatever is masked: without any error."""

    class Uniform(Denoiser):
        def __init__(self, path: Path) -> None:
            super().__init__()
            self.paths = {"token": path}

        def forward(
            self, state: State, t: Times | float, previous: Prediction | None = None
        ) -> Prediction:
            return Prediction({"token": torch.zeros(*state["token"].shape, 3)})

    mask = torch.arange(4) < torch.tensor([4, 3, 1])[:, None]
    context, draws = Context(mask), Draws(0, torch.arange(3))
    given = context.replace(given={"token": torch.arange(4) < torch.ones(3, 1)})
    cases: list[tuple[Space, Context, list[int], tuple[int, ...]]] = [
        (Tokens(3), context, [4, 3, 1], (4,)), (Tokens(3), given, [3, 2, 0], (4,)),
        (Tokens(3, pairs=True), context, [6, 3, 0], (4, 4)),
    ]  # fmt: skip
    for space, known, count, shape in cases:
        model = Uniform(CategoricalPath(space, Rectified()))  # type: ignore[arg-type]
        x = torch.zeros(3, *shape, dtype=torch.int64)
        found = TokenLikelihood(4)(model, State({"token": x}, known), draws)
        assert found.tokens.tolist() == count
        exact = -torch.tensor(count) * math.log(3)
        torch.testing.assert_close(found.log_probability, exact.double())


def test_token_bounds_depend_neither_on_companions_nor_on_padding() -> None:
    p = table(3, 3)
    model = TokenTable(CategoricalPath(Tokens(3), Rectified()), p)
    x, draws = torch.tensor([[0, 1], [2, 2], [1, 0]]), Draws(5, torch.arange(3))
    whole = TokenLikelihood(8)(model, tokens(x), draws).log_probability
    one = TokenLikelihood(8)(model, tokens(x[1:2]), draws.rows(slice(1, 2))).log_probability
    torch.testing.assert_close(one, whole[1:2])


def test_the_bound_is_that_of_absorbing_tokens() -> None:
    target = TokenTable(CategoricalPath(Tokens(3), Rectified(), "uniform"), table(3, 3))
    with pytest.raises(InputError, match="absorbing"):
        TokenLikelihood()(target, tokens(torch.zeros(2, 2, dtype=torch.int64)), Draws(0, [0, 1]))
    with pytest.raises(InputError, match="no token field"):
        TokenLikelihood()(gaussian(), given_state(points(2, 1, 2)), Draws(0, [0, 1]))
    with pytest.raises(InputError, match="strata"):
        TokenLikelihood(0)


class Recorded(Denoiser):
    """Keeps what it was last asked about."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner, self.paths = inner, inner.paths

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        self.state, self.t = state, t
        return self.inner(state, t, previous)


def ito_error(steps: int, schedule: Schedule, grid: str, n: int = 200) -> Tensor:
    target = mixture(schedule)
    tracker = ItoDensity(target)
    seen = Recorded(tracker)
    sampler = Sampler(steps=steps, method="ddpm", grid=grid)
    sampler(seen, all_real(n), Draws(0, torch.arange(n)), dtype=torch.float64)
    a, s = schedule(torch.tensor(tracker.time, dtype=torch.float64))
    assert tracker.time == seen.t
    return tracker.log_density - target.log_density(seen.state["x"][:, 0], a, s)


@pytest.mark.parametrize("schedule", [Rectified(), VarianceExploding(0.01, 30.0)], ids=str)
def test_the_ito_density_has_strong_order_one_half(schedule: Schedule) -> None:
    few, many = (ito_error(n, schedule, "uniform-logsnr") for n in (50, 400))
    rms = [float(e.square().mean().sqrt()) for e in (few, many)]
    assert rms[0] < 1.0 and math.log(rms[0] / rms[1]) / math.log(8) == pytest.approx(0.5, abs=0.2)
    assert abs(float(many.mean())) < 4 * rms[1] / 200**0.5 + 0.05


def test_a_grid_from_pure_noise_is_followed_too() -> None:
    """At t = 1 the rectified schedule has no signal, and x/a no value."""
    error = ito_error(200, Rectified(), "uniform-u")
    assert float(error.square().mean().sqrt()) < 0.7 and bool(error.isfinite().all())


def test_one_model_follows_the_samples_of_another() -> None:
    """The drift may be anyone's: a Gaussian model's density along samples of the mixture."""
    target = mixture()
    path = target.path
    other = GaussianMixture(path, torch.zeros(1, 2), 2 * torch.eye(2)[None])

    class Both(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.paths, self.follower = target.paths, ItoDensity(other)

        def forward(
            self, state: State, t: Times | float, previous: Prediction | None = None
        ) -> Prediction:
            self.follower(state, t)
            return target(state, t)

    both = Both()
    seen = Recorded(both)
    sampler = Sampler(steps=300, method="ddpm", grid="uniform-logsnr")
    sampler(seen, all_real(200), Draws(0, torch.arange(200)), dtype=torch.float64)
    a, s = path.schedule(torch.tensor(both.follower.time, dtype=torch.float64))
    exact = other.log_density(seen.state["x"][:, 0], a, s)
    error = both.follower.log_density - exact
    assert float(error.square().mean().sqrt()) < 0.1 * float(exact.std()) + 0.1


def test_following_changes_no_sample_and_begins_anew_with_each_run() -> None:
    target, sampler = mixture(), Sampler(steps=12, method="ddpm")
    tracker, draws = ItoDensity(target), Draws(0, torch.arange(5))
    runs = [sampler(tracker, all_real(5), draws).state["x"] for _ in range(2)]
    first = tracker.log_density
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], sampler(target, all_real(5), draws).state["x"])
    sampler(tracker, all_real(2), draws.rows(torch.tensor([3, 1])))
    torch.testing.assert_close(tracker.log_density, first[[3, 1]], rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="sample with this denoiser"):
        _ = ItoDensity(target).log_density
    with pytest.raises(InputError, match="shared clock"):
        tracker(state(points(2, 1, 2)), torch.tensor([0.5, 0.6]))


def state(x: Tensor) -> State:
    return State({"x": x}, all_real(*x.shape[:2]))


def given_state(x: Tensor) -> State:
    context = all_real(*x.shape[:2])
    return State({"x": x}, context.replace(given={"x": context.mask}))
