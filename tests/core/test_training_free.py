"""Training-free guidance: the papers' own updates, exactness on Gaussians, row by row, tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.guidance.published import PUBLISHED, training_free
from sciflow.guidance.strengths import increments
from sciflow.guidance.training_free import TrainingFree
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

    guided = training_free("dps", mixture(), residual, sampler.plan(mixture()), eta=1.0, rho=0.1)
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

    guided = training_free(
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

    guided = training_free("mpgd", mixture(), residual, sampler.plan(mixture()), eta=0.5, mu=0.2)
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

    def update(x: Tensor, x0: Tensor, eps: Tensor, t: float, s: float, z: Tensor, i: int) -> Tensor:
        rate = 0.05 * float(learning_rate(torch.tensor(t, dtype=torch.float64))) / mean
        return paper.ddim(x0, eps, t, s, z) + rate * paper.gradient(lambda v: f_of(paper.x0(v, t)), x)

    guided = training_free("freedom", mixture(), residual, plan, eta=1.0, rho=0.05,
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

    guided = training_free("ugd", mixture(), residual, rho=0.4, mu=0.1, iterations=3)
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

    guided = training_free("classifier", mixture(), classifier, rho=0.7)
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

    guided = training_free(
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
    guided = training_free("tfg", model, residual, plan, rho=0.05, mu=0.1,
                           shapes=("constant", "constant"))  # fmt: skip

    def sampled(denoiser: Denoiser) -> Tensor:
        return sampler(denoiser, context, draws, dtype=torch.float64, start={"x": start},
                       begin=begin).state["x"]  # fmt: skip

    compare(sampled(guided), x, sampled(model))
