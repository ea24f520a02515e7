"""Training-free guidance: the papers' own updates, exactness on Gaussians, row by row, tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.guidance.energy.published import PUBLISHED, as_published
from sciflow.guidance.energy.strengths import increments
from sciflow.guidance.energy.training_free import TrainingFree
from sciflow.paths import CategoricalPath, GaussianPath, GeodesicPath, Path
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.schedules import Cosine, Rectified, Schedule, VarianceExploding, VPLinear
from sciflow.spaces import Euclidean, RandomField, Tokens, Torus, ZeroCoM
from sciflow.spaces.kernels import Kernel
from sciflow.state import Context, State, Times, field_times
from sciflow.testing.targets import (
    DiagonalGaussian,
    GaussianMixture,
    NamedMixture,
    TokenTable,
    all_real,
)

N = 5
MATRIX = torch.tensor([[1.0, -0.5], [0.3, 0.8], [0.2, 0.4]], dtype=torch.float64)
VALUES = torch.tensor([0.4, -0.2, 0.1], dtype=torch.float64)


def mixture(schedule: Schedule | None = None) -> GaussianMixture:
    means = torch.tensor([[1.0, 0.5], [-0.8, -0.2], [0.1, -1.0]])
    root = torch.tensor([[0.4, 0.1], [0.0, 0.3]])
    path = GaussianPath(Euclidean(2), schedule or VPLinear())
    return GaussianMixture(path, means, (root @ root.T).expand(3, 2, 2), [0.5, 0.3, 0.2])


def residual(clean: State) -> Tensor:
    """−‖y − H(x)‖² with a bent H."""
    r = VALUES.to(clean["x"]) - torch.tanh(clean["x"] @ MATRIX.T.to(clean["x"]))
    return -(r**2).flatten(1).sum(1)


class Paper:
    """The loop of a paper, variance preserving, in its own letters: ᾱ, ε, x_{t−1}."""

    def __init__(self, plan: Any, seed: int = 3, eta: float = 0.0):
        self.model, self.plan, self.eta = mixture(), list(plan), eta
        self.context, self.draws = all_real(N, 1), Draws(seed, torch.arange(N))
        self.steps = list(dict.fromkeys(self.plan))
        self.alphas = [self.abar(t) / self.abar(s) for t, s in self.steps]

    def abar(self, t: float) -> float:
        return float(VPLinear()(torch.tensor(t, dtype=torch.float64))[0]) ** 2

    def noise(self, stream: str, step: int) -> Tensor:
        return self.draws.normal((1, 2), stream, step, torch.float64)

    def x0(self, x: Tensor, t: float) -> Tensor:
        return self.model(State({"x": x}, self.context), t)["x"]

    def gradient(self, f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            (g,) = torch.autograd.grad(f(x).sum(), x)
        return g

    def ddim(self, x0: Tensor, eps: Tensor, t: float, s: float, z: Tensor) -> Tensor:
        before, now = self.abar(s), self.abar(t)
        sigma = math.sqrt(self.eta * (1 - before) / (1 - now) * (1 - now / before))
        rest = math.sqrt(max(1 - before - sigma**2, 0.0))
        return math.sqrt(before) * x0 + rest * eps + sigma * z

    def run(self, update: Callable[..., Tensor]) -> Tensor:
        x, last = self.noise("x/prior", 0), 1.0
        for i, (t, s) in enumerate(self.plan):
            if i and t > last:
                alpha = self.abar(t) / self.abar(last)
                x = math.sqrt(alpha) * x + math.sqrt(1 - alpha) * self.noise("x/renoise", i)
            now = self.abar(t)
            x0 = self.x0(x, t)
            eps = (x - math.sqrt(now) * x0) / math.sqrt(1 - now)
            x = update(x, x0, eps, t, s, self.noise("x/ancestral", i + 1), i)
            last = s
        return x


def ours(sampler: Sampler, guided: Denoiser, seed: int = 3) -> Tensor:
    report = sampler(guided, all_real(N, 1), Draws(seed, torch.arange(N)), dtype=torch.float64)
    assert not bool(report.broken.any())
    return report.state["x"]


def f_of(x: Tensor) -> Tensor:
    return residual(State({"x": x}, all_real(len(x), 1)))


def compare(a: Tensor, b: Tensor, unguided: Tensor) -> None:
    """Equal to 1e-9, and far from what there is without guidance."""
    assert float((a - unguided).abs().max()) > 0.01
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_dps_is_the_published_update() -> None:
    """Algorithm 1 of Chung et al.: DDPM, then −ζ′/‖r‖ ∇‖r‖², the norm of the sample itself."""
    sampler = Sampler(steps=7, method="ddpm")
    paper = Paper(sampler.plan(mixture()), eta=1.0)

    def update(x: Tensor, x0: Tensor, eps: Tensor, t: float, s: float, z: Tensor, i: int) -> Tensor:
        now, before = paper.abar(t), paper.abar(s)
        alpha, beta = now / before, 1 - now / before
        mean = math.sqrt(before) * beta / (1 - now) * x0
        mean = mean + math.sqrt(alpha) * (1 - before) / (1 - now) * x
        step = mean + math.sqrt(beta * (1 - before) / (1 - now)) * z
        norm = (-f_of(x0)).sqrt()
        g = paper.gradient(lambda v: -f_of(paper.x0(v, t)), x)
        return step - 0.1 / norm[:, None, None] * g

    guided = as_published("dps", mixture(), residual, sampler.plan(mixture()), eta=1.0, rho=0.1)
    compare(ours(sampler, guided), paper.run(update), ours(sampler, mixture()))
    assert (guided.calls, guided.energies) == (7, 7)


def test_lgd_is_the_published_update() -> None:
    """log 1/m Σ f(x̂_0 + r_t z_j), r_t = √(1 − ᾱ_t), differentiated through the network."""
    sampler = Sampler(steps=6, method="ddim", eta=0.25)
    paper = Paper(sampler.plan(mixture()), eta=0.25)

    def update(x: Tensor, x0: Tensor, eps: Tensor, t: float, s: float, z: Tensor, i: int) -> Tensor:
        copies = [paper.noise(f"x/smoothing{j}", i) for j in range(4)]

        def smooth(v: Tensor) -> Tensor:
            clean = paper.x0(v, t)
            values = [f_of(clean + math.sqrt(1 - paper.abar(t)) * c).exp() for c in copies]
            return (sum(values) / len(values)).log()  # type: ignore[union-attr]

        return paper.ddim(x0, eps, t, s, z) + 0.3 * paper.gradient(smooth, x)

    guided = as_published(
        "lgd", mixture(), residual, sampler.plan(mixture()), eta=0.25, rho=0.3, gamma=1.0,
        copies=4, draws=Draws(3, torch.arange(N)),
    )  # fmt: skip
    compare(ours(sampler, guided), paper.run(update), ours(sampler, mixture()))
    assert (guided.calls, guided.energies) == (6, 24)


def test_mpgd_is_the_published_update() -> None:
    """The clean estimate steps down the loss, the noise stays the network's own."""
    sampler = Sampler(steps=6, method="ddim", eta=0.5)
    paper = Paper(sampler.plan(mixture()), eta=0.5)

    def update(x: Tensor, x0: Tensor, eps: Tensor, t: float, s: float, z: Tensor, i: int) -> Tensor:
        return paper.ddim(x0 + 0.2 * paper.gradient(f_of, x0), eps, t, s, z)

    guided = as_published("mpgd", mixture(), residual, sampler.plan(mixture()), eta=0.5, mu=0.2)
    compare(ours(sampler, guided), paper.run(update), ours(sampler, mixture()))


def test_freedom_is_the_published_update() -> None:
    """DDPM, then ρ_t times the gradient, and time travel: each step three times."""
    sampler = Sampler(steps=5, method="ddpm", recurrence=3)
    plan = sampler.plan(mixture())
    paper = Paper(plan, eta=1.0)

    def learning_rate(t: Tensor) -> Tensor:
        return VPLinear()(t)[0]

    rates = [float(learning_rate(torch.tensor(t, dtype=torch.float64))) for t, _ in paper.steps]
    mean = sum(rates) / len(rates)

    def loss(v: Tensor, t: float) -> Tensor:
        return f_of(paper.x0(v, t))

    def update(x: Tensor, x0: Tensor, eps: Tensor, t: float, s: float, z: Tensor, i: int) -> Tensor:
        rate = 0.05 * float(learning_rate(torch.tensor(t, dtype=torch.float64))) / mean
        return paper.ddim(x0, eps, t, s, z) + rate * paper.gradient(
            lambda v: f_of(paper.x0(v, t)), x
        )

    guided = as_published("freedom", mixture(), residual, plan, eta=1.0, rho=0.05,
                           shapes=(learning_rate, "constant"))  # fmt: skip
    compare(ours(sampler, guided), paper.run(update), ours(sampler, mixture()))
    assert guided.calls == 15


def test_ugd_is_the_published_update() -> None:
    """ε̂ = ε + w s ∇ℓ − √(ᾱ/(1−ᾱ)) Δ_0, m backward steps from the unguided x̂_0, recurrence."""
    sampler = Sampler(steps=5, method="ddim", recurrence=2)
    paper = Paper(sampler.plan(mixture()))

    def update(x: Tensor, x0: Tensor, eps: Tensor, t: float, s: float, z: Tensor, i: int) -> Tensor:
        now = paper.abar(t)
        forward = paper.gradient(lambda v: -f_of(paper.x0(v, t)), x)
        guided = eps + 0.4 * math.sqrt(1 - now) * forward
        delta = torch.zeros_like(x0)
        for _ in range(3):
            delta = delta + 0.1 * paper.gradient(f_of, x0 + delta)
        guided = guided - math.sqrt(now / (1 - now)) * delta
        moved = (x - math.sqrt(1 - now) * guided) / math.sqrt(now)
        return paper.ddim(moved, guided, t, s, z)

    guided = as_published("ugd", mixture(), residual, rho=0.4, mu=0.1, iterations=3)
    compare(ours(sampler, guided), paper.run(update), ours(sampler, mixture()))
    assert (guided.calls, guided.energies) == (10, 30)


def test_classifier_guidance_is_the_published_update() -> None:
    """Algorithm 2 of Dhariwal & Nichol: ε̂ = ε − √(1−ᾱ) ∇ log p(c | x_t), then DDIM."""
    sampler = Sampler(steps=6, method="ddim")
    paper = Paper(sampler.plan(mixture()))

    def classifier(state: State, t: Times | float) -> Tensor:
        width = 1 + field_times(t, state)["x"]
        return -((state["x"].sum((1, 2)) - 0.5) ** 2) / width

    def update(x: Tensor, x0: Tensor, eps: Tensor, t: float, s: float, z: Tensor, i: int) -> Tensor:
        g = paper.gradient(lambda v: -((v.sum((1, 2)) - 0.5) ** 2) / (1 + t), x)
        now = paper.abar(t)
        guided = eps - 0.7 * math.sqrt(1 - now) * g
        moved = (x - math.sqrt(1 - now) * guided) / math.sqrt(now)
        return paper.ddim(moved, guided, t, s, z)

    guided = as_published("classifier", mixture(), classifier, rho=0.7)
    compare(ours(sampler, guided), paper.run(update), ours(sampler, mixture()))
    assert guided.calls == 6


SHAPES: list[tuple[Any, Any]] = [("increase", "increase"), ("increase", "decrease"),
                                 ("constant", "increase")]  # fmt: skip


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_tfg_is_the_published_update(shapes: tuple[Any, Any]) -> None:
    """Algorithm 1 of Ye et al. with everything on; ρ_t = ρ̄ T s(t)/Σ s."""
    sampler = Sampler(steps=5, method="ddim", eta=1.0, recurrence=2)
    plan = sampler.plan(mixture())
    paper = Paper(plan, eta=1.0)
    tables = {"increase": paper.alphas, "decrease": [1 - a for a in paper.alphas],
              "constant": [1.0] * 5}  # fmt: skip

    def share(shape: str, t: float, s: float) -> float:
        table = tables[shape]
        return table[paper.steps.index((t, s))] * len(table) / sum(table)

    def update(x: Tensor, x0: Tensor, eps: Tensor, t: float, s: float, z: Tensor, i: int) -> Tensor:
        now, before = paper.abar(t), paper.abar(s)
        copies = [paper.noise(f"x/smoothing{j}", i) for j in range(3)]

        def smooth(clean: Tensor) -> Tensor:
            spread = 0.5 * math.sqrt(1 - now)
            return torch.stack([f_of(clean + spread * c) for c in copies]).logsumexp(0)

        rho, mu = 0.2 * share(shapes[0], t, s), 0.1 * share(shapes[1], t, s)
        delta_t = rho * paper.gradient(lambda v: smooth(paper.x0(v, t)), x)
        moved = x0
        for _ in range(4):
            moved = moved + mu * paper.gradient(smooth, moved)
        step = paper.ddim(x0, eps, t, s, z)
        return step + delta_t / math.sqrt(now / before) + math.sqrt(before) * (moved - x0)

    guided = as_published(
        "tfg", mixture(), residual, plan, eta=1.0, rho=0.2, mu=0.1, gamma=0.5, shapes=shapes,
        iterations=4, copies=3, draws=Draws(3, torch.arange(N)),
    )  # fmt: skip
    compare(ours(sampler, guided), paper.run(update), ours(sampler, mixture()))


@pytest.mark.parametrize("schedule", [Rectified(), VarianceExploding(sigma_max=20.0)], ids=str)
def test_tfg_on_another_path_is_the_published_update_of_the_normalised_state(
    schedule: Schedule,
) -> None:
    """x/√(a²+s²) is variance preserving: there the paper's update, letter by letter."""
    sampler, begin = Sampler(steps=6, method="ddim"), 0.95
    model = mixture(schedule)
    plan = sampler.plan(model, begin)
    start = Draws(1, torch.arange(N)).normal((1, 2), "start", 0, torch.float64)
    context, draws = all_real(N, 1), Draws(1, torch.arange(N))
    a, s = (y.tolist() for y in schedule(torch.cat((plan.start, plan.end[-1:]))))
    x = start / math.hypot(a[0], s[0])
    paper = Paper(plan)
    for i, (t, _) in enumerate(plan):
        k, later = math.hypot(a[i], s[i]), math.hypot(a[i + 1], s[i + 1])
        now, before = (a[i] / k) ** 2, (a[i + 1] / later) ** 2

        def estimate(v: Tensor, t: float = t, k: float = k) -> Tensor:
            return model(State({"x": k * v}, context), t)["x"]

        x0 = estimate(x)
        eps = (x - math.sqrt(now) * x0) / math.sqrt(1 - now)
        # Both shapes are constant here.
        delta = 0.05 * paper.gradient(lambda v, e=estimate: f_of(e(v)), x)  # type: ignore[misc]
        moved = x0 + 0.1 * paper.gradient(f_of, x0) - x0
        x = math.sqrt(before) * x0 + math.sqrt(1 - before) * eps
        x = x + delta / math.sqrt(now / before) + math.sqrt(before) * moved
    guided = as_published("tfg", model, residual, plan, rho=0.05, mu=0.1,
                           shapes=("constant", "constant"))  # fmt: skip

    def sampled(denoiser: Denoiser) -> Tensor:
        return sampler(denoiser, context, draws, dtype=torch.float64, start={"x": start},
                       begin=begin).state["x"]  # fmt: skip

    compare(sampled(guided), x, sampled(model))


def round_gaussian(schedule: Schedule, std: float = 1.0, d: int = 2) -> DiagonalGaussian:
    path = GaussianPath(Euclidean(d), schedule, data_std=std)
    mean = torch.linspace(-0.5, 0.7, d, dtype=torch.float64)
    return DiagonalGaussian(path, mean, torch.full((d,), std**2, dtype=torch.float64))


SCHEDULES = [VPLinear(), Rectified(), Cosine(), VarianceExploding(sigma_max=20.0)]
H = torch.tensor([0.7, -0.4], dtype=torch.float64)


def tilt(clean: State) -> Tensor:
    """⟨h, x_0⟩: the data's law becomes p(x_0) exp⟨h, x_0⟩."""
    return (clean["x"] * H).flatten(1).sum(1)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("strengths", [(1.0, 0.0), (0.0, 1.0), (0.25, 0.75)], ids=str)
def test_unit_strength_is_bayes_rule_on_a_tilted_gaussian(
    schedule: Schedule, strengths: tuple[float, float]
) -> None:
    """E[x_0 | x_t] under p exp⟨h, x⟩ is D + V h; ρ + μ = 1 gives it in any split; to 1e-10."""
    model = round_gaussian(schedule, 1.3)
    x = 2 * Draws(0, torch.arange(N)).normal((1, 2), "x", 0, torch.float64)
    guided = TrainingFree(model, tilt, *strengths, noise_limit=None)
    for t in (0.05, 0.4, 0.8):
        state = State({"x": x}, all_real(N, 1))
        a, s = (float(y) for y in schedule(torch.tensor(t, dtype=torch.float64)))
        v = 1.3**2 * s**2 / (1.3**2 * a**2 + s**2)
        torch.testing.assert_close(guided(state, t)["x"], model(state, t)["x"] + v * H,
                                   rtol=1e-10, atol=1e-10)  # fmt: skip


def test_smoothing_by_the_posterior_spread_gives_the_exact_posterior_mean() -> None:
    """LGD with γ̄ = 1 on a round Gaussian: E[x_0 | x_t, y] as m grows; without it, far off."""
    model, y, noise = round_gaussian(Cosine()), 1.2, 0.5
    a, s = (float(c) for c in Cosine()(torch.tensor(0.6, dtype=torch.float64)))
    x = Draws(0, torch.arange(3)).normal((1, 2), "x", 0, torch.float64)
    state = State({"x": x}, all_real(3, 1))
    row = torch.tensor([1.0, -0.5], dtype=torch.float64)

    def log_f(clean: State) -> Tensor:
        return -((clean["x"] @ row - y) ** 2).sum(1) / (2 * noise**2)

    clean, v = model(state, 0.6)["x"], s**2 / (a**2 + s**2)
    gain = v * row / (v * (row @ row) + noise**2)
    exact = gain * (y - clean @ row)[..., None]

    def error(gamma: float, copies: int) -> float:
        guided = TrainingFree(model, log_f, 1.0, gamma=gamma, copies=copies)
        found = guided(state, 0.6)["x"].detach() - clean
        return float((found - exact).norm() / exact.norm())

    assert error(0.0, 1) > 1.0
    assert error(1.0, 400) < 0.15


def test_a_gradient_on_a_random_field_is_multiplied_by_the_covariance_of_the_noise() -> None:
    """For x_0 ~ N(0, v C) and log f = ⟨h, x_0⟩ the mean moves by V C h: smooth, on any grid."""
    space = RandomField((1.0,), Kernel("matern", 0.2, 1.5))
    path = GaussianPath(space, Rectified(), data_std=0.8)

    class Prior(Denoiser):
        paths: ClassVar = {"u": path}

        def forward(
            self, state: State, t: Times | float, previous: Prediction | None = None
        ) -> Prediction:
            a, s = path.schedule(field_times(t, state)["u"])
            return Prediction({"u": (a * 0.64 / (a**2 * 0.64 + s**2))[:, None] * state["u"]})

    context = all_real(2, 16)
    x = space.noise(context, Draws(0, torch.arange(2)), "x", 0, torch.float64)
    state, v = State({"u": x}, context), 0.64 * 0.25 / (0.64 * 0.25 + 0.25)

    def sensor(clean: State) -> Tensor:
        return 0.9 * clean["u"][:, 4]

    h = torch.zeros(2, 16, dtype=torch.float64)
    h[:, 4] = 0.9
    expected = Prior()(state, 0.5)["u"] + v * space.color(h, context)
    for strengths in ((1.0, 0.0), (0.0, 1.0)):
        found = TrainingFree(Prior(), sensor, *strengths)(state, 0.5)["u"]
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert float((found - Prior()(state, 0.5)["u"]).abs().min()) > 1e-4


def test_beyond_the_noise_limit_the_jacobian_is_taken_at_it() -> None:
    """V is within (σ a/s)² of its end there; at t = 1, where s²/a is infinite, all is finite."""
    model = round_gaussian(Rectified())
    x = Draws(0, torch.arange(N)).normal((1, 2), "x", 0, torch.float64)
    state = State({"x": x}, all_real(N, 1))
    guided = TrainingFree(model, tilt, 1.0)
    for t in (1.0, 0.95):
        before = guided.calls
        shift = guided(state, t)["x"] - model(state, t)["x"]
        torch.testing.assert_close(shift, H.expand_as(shift), rtol=0.05, atol=0)
        assert guided.calls - before == 2
    before = guided.calls
    guided(state, 0.5)
    assert guided.calls - before == 1
    for name in ("tfg", "dps"):
        plan = Sampler(steps=4, method="ddim").plan(model)
        first = as_published(name, model, residual, plan, rho=1.0)(state, 1.0)["x"]
        assert bool(first.isfinite().all())


def everything(model: Denoiser, **options: Any) -> TrainingFree:
    return TrainingFree(model, residual, 0.4, 0.3, 0.5, iterations=2, copies=2, clip=0.7, **options)


class Chain(Denoiser):
    """A small fixed network whose elements see each other, and no padding."""

    def __init__(self, path: Path):
        super().__init__()
        self.paths = {"x": path}

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        x, path = state["x"], self.paths["x"]
        mask = path.space.expand(state.context.mask, x)
        mean = (x * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        level = path.space.expand(field_times(t, state)["x"], x)
        y = torch.tanh(1.3 * x - 0.4 * mean) * (1 - level)
        return Prediction({"x": path.space.project(y, state.context)})


@pytest.mark.parametrize("clip", [None, 0.3])
def test_strength_depends_neither_on_companions_nor_on_padding(clip: float | None) -> None:
    """The peers' bugs: a norm over the whole batch (DPS: strength ∝ 1/√B), centres over padding."""
    path = GaussianPath(ZeroCoM(2), VPLinear())
    lengths = torch.tensor([3, 5, 2, 4])
    context = Context(torch.arange(5) < lengths[:, None])
    draws = Draws(0, torch.arange(4))
    x = path.prior(context, draws, "x", torch.float64)

    def log_f(clean: State) -> Tensor:
        # Not invariant to translation, and its gradient is not zero in padding.
        return -((clean["x"] - torch.tensor([0.3, 1.0])) ** 2).sum((1, 2)) * 50

    def masked(clean: State) -> Tensor:
        square = (clean["x"] - torch.tensor([0.3, 1.0])) ** 2
        return -path.space.sum(square, clean.context)

    plan = Sampler(steps=3, method="ddim").plan(Chain(path))

    def made(name: str, own: Draws) -> TrainingFree:
        if name == "dps":
            return as_published("dps", Chain(path), masked, plan, rho=0.5, clip=clip)
        return TrainingFree(Chain(path), log_f, 0.5, 0.5, 0.5, copies=3, clip=clip, draws=own)

    with torch.no_grad():
        for name in ("all", "dps"):
            whole = made(name, draws)(State({"x": x}, context), 0.7)["x"]
            free = Chain(path)(State({"x": x}, context), 0.7)["x"]
            assert float(whole.sum(1).abs().max()) < 1e-12
            assert bool((whole[0, 3:] == 0).all())
            assert float((whole - free).flatten(1).abs().amax(1).min()) > 1e-3
            for i, n in enumerate(lengths.tolist()):
                alone = State({"x": x[i : i + 1, :n]}, all_real(1, n))
                found = made(name, draws.rows(slice(i, i + 1)))(alone, 0.7)["x"]
                torch.testing.assert_close(found[0], whole[i, :n], rtol=1e-12, atol=1e-12)


def test_without_draws_a_sample_still_does_not_depend_on_its_companions() -> None:
    """A seed gives all rows one noise, whatever their number."""
    model, x = mixture(), Draws(0, torch.arange(N)).normal((1, 2), "x", 0, torch.float64)
    whole = everything(model)(State({"x": x}, all_real(N, 1)), 0.5)["x"]
    part = everything(model)(State({"x": x[2:4]}, all_real(2, 1)), 0.5)["x"]
    torch.testing.assert_close(part, whole[2:4], rtol=1e-12, atol=1e-12)
    with pytest.raises(InputError, match="draws of 3 samples for a batch of 5"):
        everything(model, draws=Draws(0, range(3)))(State({"x": x}, all_real(N, 1)), 0.5)


def test_a_clipped_gradient_has_the_length_asked_for_and_a_short_one_stays() -> None:
    """The peer's rule, clip/mean g² in place of its root, shrinks long gradients as 1/‖g‖."""
    model = round_gaussian(VPLinear())
    state = State({"x": torch.zeros(3, 1, 2, dtype=torch.float64)}, all_real(3, 1))
    factor = torch.tensor([0.1, 10.0, 1000.0], dtype=torch.float64)

    def log_f(clean: State) -> Tensor:
        return factor * clean["x"].sum((1, 2))

    t = 0.5
    shift = TrainingFree(model, log_f, mu=1.0, clip=2.0)(state, t)["x"] - model(state, t)["x"]
    a, s = VPLinear()(torch.tensor(t, dtype=torch.float64))
    v = float(s**2 / (a**2 + s**2))
    rms = (shift**2).mean((1, 2)).sqrt() / v
    torch.testing.assert_close(rms, torch.tensor([0.1, 2.0, 2.0], dtype=torch.float64))


METHODS = ["ab3", "ddim", "ddpm", "heun", "unipc2", "dpmpp2m"]


@pytest.mark.parametrize("method", METHODS)
def test_weight_zero_is_the_unguided_sample_bit_for_bit_at_one_call(method: str) -> None:
    sampler = Sampler(steps=5, method=method, eta=0.5 if method == "ddim" else 0.0)
    free = ours(sampler, mixture())
    off = [
        TrainingFree(mixture(), residual, gamma=1.0, copies=3),
        TrainingFree(mixture(), residual, lambda t: 0 * t, lambda t: 0 * t),
        everything(mixture(), interval=(0.0, 0.0)),
    ]
    for guided in off:
        assert torch.equal(ours(sampler, guided), free)
        assert (guided.calls, guided.energies) == (5, 0)
    on = everything(mixture())
    assert float((ours(sampler, on) - free).abs().max()) > 1e-3


def test_guidance_acts_in_its_interval_and_cached_gradients_save_calls_of_the_energy() -> None:
    sampler = Sampler(steps=9, method="ddim")
    starts = sampler.plan(mixture()).start
    inside = int(((starts >= 0.2) & (starts <= 0.7)).sum())
    some = TrainingFree(mixture(), residual, 0.3, interval=(0.2, 0.7), noise_limit=None)
    ours(sampler, some)
    assert 0 < inside < 9
    assert (some.calls, some.energies) == (9, inside)
    third = TrainingFree(mixture(), residual, 0.3, every=3, noise_limit=None)
    first = ours(sampler, third)
    assert (third.calls, third.energies) == (9, 3)
    # A new trajectory begins anew: nothing is left over of the last.
    assert torch.equal(ours(sampler, third), first)
    assert not torch.equal(first, ours(sampler, TrainingFree(mixture(), residual, 0.3)))


def test_given_elements_stay_and_their_companions_are_guided() -> None:
    path = GaussianPath(Euclidean(2), VPLinear())
    given = torch.tensor([[True, False, False]]).expand(2, 3)
    context = Context(torch.ones(2, 3, dtype=torch.bool), given={"x": given})
    x = Draws(0, torch.arange(2)).normal((3, 2), "x", 0, torch.float64)
    model = DiagonalGaussian(path, torch.zeros(2), torch.ones(2))
    state = State({"x": x}, context)
    shift = (everything(model)(state, 0.5)["x"] - model(state, 0.5)["x"]).detach()
    assert bool((shift[:, 0] == 0).all())
    assert float(shift[:, 1:].abs().min()) > 1e-3


def test_a_guided_model_is_differentiable() -> None:
    """For likelihoods and guidance on top of it: the derivative of D + shift, by differences."""
    context = all_real(2, 1)
    x = Draws(0, torch.arange(2)).normal((1, 2), "x", 0, torch.float64).requires_grad_()
    guided = everything(mixture())
    assert torch.autograd.gradcheck(lambda v: guided(State({"x": v}, context), 0.5)["x"], x)
    with torch.no_grad():
        assert not guided(State({"x": x}, context), 0.5)["x"].requires_grad


def token_table() -> TokenTable:
    table = Draws(0, [0]).uniform((3, 3), "table", dtype=torch.float64)[0] ** 2 + 0.02
    return TokenTable(CategoricalPath(Tokens(3), Rectified(), "uniform"), table)


SCORES = torch.tensor([[0.5, -1.0, 0.8], [0.0, 1.2, -0.6]], dtype=torch.float64)


def additive(clean: State) -> Tensor:
    """Σ_i h_i[a_i], of probabilities and of draws."""
    return (clean["token"] * SCORES).sum((1, 2))


def test_tokens_are_tilted_by_the_gradient_by_their_probabilities() -> None:
    """log p + μ ∂log f/∂p is p f^μ exactly, where log f adds over tokens."""
    model = token_table()
    state = State({"token": torch.tensor([[0, 2], [1, 1]])}, all_real(2, 2))
    for mu in (1.0, 2.5):
        found = TrainingFree(model, additive, mu=mu)(state, 0.6)["token"].log_softmax(-1)
        exact = (model(state, 0.6)["token"] + mu * SCORES).log_softmax(-1)
        torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10)


def test_reweighted_draws_converge_to_the_marginals_of_p_times_f() -> None:
    """TFG-Flow with a coupling of both tokens, at two temperatures; 200 rows of 200 draws."""
    model, rows = token_table(), 200
    state = State({"token": torch.tensor([[1, 1]]).expand(rows, 2)}, all_real(rows, 2))
    bonus = torch.tensor([[2.0, 0, 0], [0, 1.0, 0], [-1.0, 0, 0.5]], dtype=torch.float64)

    def log_f(clean: State) -> Tensor:
        p = clean["token"]
        return torch.einsum("bi,ij,bj->b", p[:, 0], bonus, p[:, 1])

    p = model(state, 0.6)["token"][0].softmax(-1)
    for mu in (0.5, 1.0):
        joint = p[0, :, None] * p[1] * (mu * bonus).exp()
        joint = joint / joint.sum()
        exact = torch.stack((joint.sum(1), joint.sum(0)))
        guided = TrainingFree(model, log_f, mu=mu, copies=200, tokens="reweight",
                              draws=Draws(0, range(rows)))  # fmt: skip
        found = guided(state, 0.6)["token"].softmax(-1).mean(0)
        assert float((found - exact).abs().max()) < 0.015
        assert float((p - exact).abs().max()) > 0.05


@pytest.mark.parametrize("tokens", ["gradient", "reweight"])
def test_known_tokens_stay_known(tokens: Any) -> None:
    """An unmasked symbol is certain, and a given one too, however strong the guidance."""
    path = CategoricalPath(Tokens(3), Rectified(), "absorbing")
    model = TokenTable(path, token_table().table)
    state = State({"token": torch.tensor([[0, 3], [3, 3]])}, all_real(2, 2))
    found = TrainingFree(model, lambda c: 100 * additive(c), mu=1.0, tokens=tokens,
                         copies=4)(state, 0.6)["token"]  # fmt: skip
    free = model(state, 0.6)["token"]
    assert torch.equal(found[0, 0], free[0, 0])
    assert float((found[0, 1].softmax(-1) - free[0, 1].softmax(-1)).abs().max()) > 0.1


def test_a_pair_is_one_token_wherever_the_energy_reads_it() -> None:
    path = CategoricalPath(Tokens(2, pairs=True), Rectified(), "uniform")

    class Flat(Denoiser):
        paths: ClassVar = {"bond": path}

        def forward(
            self, state: State, t: Times | float, previous: Prediction | None = None
        ) -> Prediction:
            return Prediction({"bond": torch.zeros(*state["bond"].shape, 2, dtype=torch.float64)})

    state = State({"bond": torch.zeros(1, 3, 3, dtype=torch.int64)}, all_real(1, 3))
    upper, lower = (
        TrainingFree(Flat(), lambda c, i=i, j=j: 1.5 * c["bond"][:, i, j, 1], mu=1.0)(state, 0.5)
        for i, j in ((0, 2), (2, 0))
    )
    torch.testing.assert_close(upper["bond"], lower["bond"])
    odds = upper["bond"][0, 0, 2].diff()
    torch.testing.assert_close(odds, torch.tensor([1.5], dtype=torch.float64))


def test_angles_are_moved_in_the_tangent_space_and_have_no_rho() -> None:
    path = GeodesicPath(Torus(), Rectified())

    class Still(Denoiser):
        paths: ClassVar = {"angle": path}

        def forward(
            self, state: State, t: Times | float, previous: Prediction | None = None
        ) -> Prediction:
            return Prediction({"angle": state["angle"]})

    x = torch.tensor([[3.1, -1.0]], dtype=torch.float64)
    state = State({"angle": x}, all_real(1, 2))
    guided = TrainingFree(Still(), lambda c: 2 * c["angle"].sum(1), mu=1.0)
    moved = path.space.log(x, guided(state, 0.5)["angle"])
    torch.testing.assert_close(moved, torch.full_like(x, 2 * 0.2))
    assert float(guided(state, 0.5)["angle"].abs().max()) <= math.pi
    with pytest.raises(InputError, match="rho is not of field 'angle'"):
        TrainingFree(Still(), lambda c: c["angle"].sum(1), rho={"angle": 1.0})


@pytest.mark.parametrize("method", ["ab3", "ddpm", "heun", "unipc2", "sde", "pc"])
@pytest.mark.parametrize("tokens", ["gradient", "reweight"])
def test_a_mixed_state_is_guided_under_every_kind_of_sampler(method: str, tokens: Any) -> None:
    """Points and tokens towards component 0 by an energy of both, at the calls that are counted."""
    path = GaussianPath(Euclidean(2), Rectified())
    names = CategoricalPath(Tokens(3), Rectified(), "absorbing")
    means = torch.tensor([[1.5, 0.0], [-1.5, 0.5], [0.0, -1.5]])
    model = NamedMixture(path, names, means, 0.1, [0.2, 0.4, 0.4])

    def log_f(clean: State) -> Tensor:
        near = -((clean["x"] - means[0].double()) ** 2).sum(-1)
        return (near + 2 * clean["token"][..., 0]).sum(1)

    sampler = Sampler(steps=9, method=method)
    context, draws = all_real(48, 1), Draws(0, torch.arange(48))
    guided = TrainingFree(model, log_f, 0.5, {"x": 0.5, "token": 2.0}, tokens=tokens, copies=4,
                          noise_limit=None, draws=draws)  # fmt: skip
    report = sampler(guided, context, draws, dtype=torch.float64)
    free = sampler(model, context, draws, dtype=torch.float64)
    assert guided.calls == report.calls == free.calls == 9

    def share(state: State) -> float:
        named = (state["token"][:, 0] == 0).double().mean()
        return float((named + (model.component(state["x"][:, 0]) == 0).double().mean()) / 2)

    assert share(report.state) > share(free.state) + 0.3


@pytest.mark.parametrize("method", ["ab3", "ddim", "heun", "unipc2", "pc"])
def test_recurrence_makes_each_step_several_times(method: str) -> None:
    """N_recur times the calls, with the forward process in between; 1 is the plan as it was."""
    model, once = mixture(), Sampler(steps=7, method=method)
    assert torch.equal(Sampler(steps=7, method=method, recurrence=1).plan(model).start,
                       once.plan(model).start)  # fmt: skip
    thrice = Sampler(steps=7, method=method, recurrence=3)
    model.calls = 0
    ours(thrice, model)
    assert model.calls == len(thrice.plan(model)) == 3 * len(once.plan(model)) == 21
    intervals = list(once.plan(model))
    step = 2 if method in ("heun", "pc") else 1
    assert list(thrice.plan(model))[: 3 * step] == intervals[:step] * 3


def test_recurrence_keeps_the_budget_of_restarts() -> None:
    settings = {"steps": 10, "restarts": 2, "restart_time": 0.5, "restart_low": 0.2}
    once, twice = Sampler(**settings), Sampler(**settings, recurrence=2)  # type: ignore[arg-type]
    assert len(twice.plan(mixture())) == 2 * len(once.plan(mixture())) == 20
    with pytest.raises(InputError, match="recurrence must be 1"):
        Sampler(recurrence=0)


def test_recurrence_leaves_the_law_of_unguided_samples() -> None:
    """They follow the forward process, and forward and back again they still do."""
    model = round_gaussian(VPLinear(), 0.6)
    context, draws = all_real(1500, 1), Draws(0, torch.arange(1500))
    for method in ("ddim", "heun"):
        sampler = Sampler(steps=49, method=method, recurrence=2)
        x = sampler(model, context, draws, dtype=torch.float64).state["x"][:, 0]
        torch.testing.assert_close(x.mean(0), model.mean, rtol=0, atol=0.06)
        torch.testing.assert_close(x.var(0), model.variance, rtol=0.15, atol=0)


def test_what_is_wrong_is_said() -> None:
    model, plan = mixture(), Sampler(steps=3, method="ddim").plan(mixture())
    wrong: list[tuple[Callable[[], Any], str]] = [
        (lambda: TrainingFree(model, residual, -1.0), "rho must be 0"),
        (lambda: TrainingFree(model, residual, {"y": 1.0}), "rho is not of field 'y'"),
        (lambda: TrainingFree(model, residual, copies=0), "copies must be at least 1"),
        (lambda: TrainingFree(model, residual, clip=0.0), "clip must be above 0"),
        (lambda: TrainingFree(model, residual, interval=(0.5, 0.2)), "0 <= first <= last"),
        (lambda: TrainingFree(model, residual, mu=1.0, noisy=True), "has rho only"),
        (lambda: as_published("dsp", model, residual), "unknown method 'dsp'; known: dps"),
        (lambda: as_published("mpgd", model, residual, plan, rho=1.0), "mpgd has no rho"),
        (lambda: as_published("dps", model, residual, rho=1.0), "give the plan"),
        (lambda: as_published("dps", model, residual, plan, rho=1.0, iterations=2), "one grad"),
        (lambda: increments(Sampler(steps=5, method="heun").plan(model), model.path, rho=1.0),
         "two calls a step"),
        (lambda: increments(plan, model.path, rho=1.0, shapes=("up", "up")),  # type: ignore[arg-type]
         "unknown shape 'up'"),
    ]  # fmt: skip
    for make, message in wrong:
        with pytest.raises(InputError, match=message):
            make()
    state = State({"x": torch.zeros(2, 1, 2, dtype=torch.float64)}, all_real(2, 1))
    asked: list[tuple[Callable[..., Tensor], str]] = [
        (lambda c: residual(c).sum(), "one number a sample"),
        (lambda c: residual(c).detach(), "log_f has no gradient"),
    ]
    for log_f, message in asked:
        with pytest.raises(InputError, match=message):
            TrainingFree(model, log_f, mu=1.0)(state, 0.5)
    with pytest.raises(InputError, match="minus a squared"):
        as_published("dps", model, lambda c: -residual(c), plan, rho=1.0)(state, 0.5)
    assert set(PUBLISHED) == {"dps", "lgd", "mpgd", "freedom", "ugd", "classifier", "tfg"}
