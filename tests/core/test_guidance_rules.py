"""Rules of guidance: each is its published formula, a sample on its own, and off at weight 0."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.guidance import ClassifierFree, EpsilonScaling
from sciflow.guidance.weak.away import MoveAway
from sciflow.guidance.weak.plus_plus import PlusPlus
from sciflow.guidance.weak.rules import (
    FrequencySplit,
    Orthogonal,
    Rescale,
    Rule,
    Seen,
    Tangential,
    ZeroStar,
)
from sciflow.paths import CategoricalPath, GaussianPath, GeodesicPath, Path
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.schedules import Cosine, Rectified, Schedule
from sciflow.spaces import Euclidean, Tokens, Torus, ZeroCoM
from sciflow.state import Context, State, Times, field_times

N, EVENT, W = 6, 2, 1.7
RULES: list[Rule] = [
    Tangential(),
    ZeroStar(),
    ZeroStar(still_from=0.9),
    Rescale(0.6),
    Orthogonal(0.3, cap=0.2, momentum=-0.5),
    FrequencySplit(0.5, 2.0, 0.2),
]
IDS = ["tangential", "zero-star", "zero-init", "rescale", "projected", "frequencies"]


class Series(Denoiser):
    """Exact for a series of N(m + c·slope, v) in each number; ``c`` NaN is c = 0 with v = 1."""

    def __init__(self, schedule: Schedule | None = None) -> None:
        super().__init__()
        self.paths: dict[str, Path] = {
            "x": GaussianPath(Euclidean(EVENT), schedule or Rectified(), "x0")
        }

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        x, c = state["x"], state.context.conditions["c"]
        a, s = self.paths["x"].schedule(field_times(t, state)["x"])
        a, s = (self.paths["x"].space.expand(y, x) for y in (a, s))
        place = torch.arange(1.0, x.shape[1] + 1, dtype=x.dtype)[:, None]
        asked = ~c.isnan()[:, None, None]
        mean = torch.where(asked, c.nan_to_num()[:, None, None] * (0.3 * place).sin(), 0.1 * place)
        v = torch.where(asked, 0.2 + 0.02 * place, torch.ones_like(mean))
        clean = mean + a * v / (a**2 * v + s**2) * (x - a * mean)
        return Prediction({"x": self.paths["x"].space.project(clean.to(x.dtype), state.context)})


def batch(sizes: list[int], width: int = N) -> tuple[State, Draws]:
    mask = torch.arange(width) < torch.tensor(sizes)[:, None]
    draws = Draws(3, torch.arange(len(sizes)))
    c = torch.linspace(1.0, 2.0, len(sizes), dtype=torch.float64)
    context = Context(mask, {"c": c})
    x = Euclidean(EVENT).noise(context, draws, "x", dtype=torch.float64)
    return State({"x": x}, context), draws


def estimates(state: State, t: float, model: Denoiser) -> tuple[Tensor, Tensor, Tensor]:
    """x, D given the condition, and D given none; a sample a row, of full length."""
    bare = State(state.fields, state.context.unconditional())
    rows = (state["x"], model(state, t)["x"], model(bare, t)["x"])
    x, c, u = (y.flatten(1) for y in rows)
    return x, c, u


def guided(state: State, t: float, rule: Rule, weight: float = W, model: Denoiser | None = None,
           previous: Prediction | None = None) -> Tensor:  # fmt: skip
    return ClassifierFree(model or Series(), weight, rule=rule)(state, t, previous)["x"]


@pytest.mark.parametrize("schedule", [Rectified(), Cosine()])
def test_tangential_is_the_svd_of_both_predictions_of_noise(schedule: Schedule) -> None:
    state, _ = batch([N] * 4)
    model = Series(schedule)
    for t in (0.1, 0.5, 0.9):
        a, s = (float(y) for y in schedule(torch.tensor(t, dtype=torch.float64)))
        x, c, u = estimates(state, t, model)
        c, u = (x - a * c) / s, (x - a * u) / s
        _, _, v = torch.linalg.svd(torch.stack((c, u), 1), full_matrices=False)
        v1 = v[:, 0]
        u = (u * v1).sum(-1, keepdim=True) * v1
        eps = u + (1 + W) * (c - u)
        answer = guided(state, t, Tangential(), model=model).flatten(1)
        torch.testing.assert_close(answer, (x - s * eps) / a, rtol=0, atol=1e-10)


def test_tangential_for_any_two_predictions() -> None:
    """Aligned, across and opposite to each other; and small in all, as in single precision."""
    path = GaussianPath(Euclidean(EVENT), Rectified(), "x0")
    draws, t = Draws(5, torch.arange(64)), torch.full((64,), 0.4, dtype=torch.float64)
    context = Context(torch.ones(64, N, dtype=torch.bool))
    x, d, e = (path.space.noise(context, draws, k, dtype=torch.float64) for k in "xde")
    opposite = (2 * x / 0.6 - d).where((torch.arange(64) % 2 == 0)[:, None, None], e)
    answer = Tangential()(Seen(path, x, d, opposite, t, context), W).flatten(1)
    c, u = ((x - 0.6 * y).flatten(1) for y in (d, opposite))
    v = torch.linalg.svd(torch.stack((c, u), 1), full_matrices=False)[2][:, 0]
    u = (u * v).sum(-1, keepdim=True) * v
    expected = (x.flatten(1) - (u + (1 + W) * (c - u))) / 0.6
    torch.testing.assert_close(answer[1::2], expected[1::2], rtol=0, atol=1e-10)
    # Exactly opposite rows have one direction: u is its own projection.
    plain = torch.add(d, d - opposite, alpha=W).flatten(1)
    torch.testing.assert_close(answer[::2], plain[::2], rtol=0, atol=1e-10)


def test_zero_star_scales_the_velocity() -> None:
    state, _ = batch([N] * 4)
    t = 0.7
    x, c, u = estimates(state, t, Series())
    # The velocity of a rectified flow, noise − data.
    c, u = ((x - (1 - t) * d) / t - d for d in (c, u))
    fit = (c * u).sum(-1, keepdim=True) / (u * u).sum(-1, keepdim=True)
    v = (1 - (1 + W)) * u * fit + (1 + W) * c
    answer = guided(state, t, ZeroStar()).flatten(1)
    torch.testing.assert_close(answer, x - t * v, rtol=0, atol=1e-12)


def test_zero_init_stands_still_in_the_first_steps() -> None:
    """A rectified flow does not move before ``still_from``; afterwards it does."""
    state, draws = batch([N] * 4)
    seen = []

    class Watch(ClassifierFree):
        def forward(self, state: State, t: Times | float, previous: Prediction | None = None
                    ) -> Prediction:  # fmt: skip
            seen.append(state["x"])
            return super().forward(state, t, previous)

    sampler = Sampler(method="ab1", grid=[1.0, 0.9, 0.8, 0.6, 0.3], steps=5)
    start = {"x": state["x"]}
    sampler(Watch(Series(), W, rule=ZeroStar(0.85)), state.context, draws, start=start)
    torch.testing.assert_close(seen[1], seen[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(seen[2], seen[0], rtol=0, atol=1e-12)
    assert float((seen[3] - seen[2]).abs().max()) > 0.01


def test_rescaling_restores_the_spread() -> None:
    state, _ = batch([N] * 4)
    _, c, u = estimates(state, 0.6, Series())
    g = u + (1 + W) * (c - u)
    full = g * (c.std(1, keepdim=True) / g.std(1, keepdim=True))
    for phi in (0.0, 0.7, 1.0):
        answer = guided(state, 0.6, Rescale(phi)).flatten(1)
        torch.testing.assert_close(answer, phi * full + (1 - phi) * g, rtol=0, atol=1e-12)


def test_projected_guidance_over_several_calls() -> None:
    """Momentum, then the cap, then the projection, as in Sadat et al. (2024), algorithm 1."""
    state, _ = batch([N] * 4)
    eta, cap, beta = 0.25, 0.15, -0.6
    radius = cap * math.sqrt(N * EVENT)
    model = ClassifierFree(Series(), W, rule=Orthogonal(eta, cap, beta))
    average: Tensor | float = 0.0
    previous = None
    for t in (0.9, 0.6, 0.5):
        _, c, u = estimates(state, t, Series())
        average = (c - u) + beta * average
        size = average.norm(dim=1, keepdim=True)
        assert bool((size > radius).any())
        difference = average * torch.minimum(torch.ones_like(size), radius / size)
        unit = c / c.norm(dim=1, keepdim=True)
        parallel = (difference * unit).sum(1, keepdim=True) * unit
        expected = c + W * (difference - parallel + eta * parallel)
        previous = model(state, t, previous)
        torch.testing.assert_close(previous["x"].flatten(1), expected, rtol=0, atol=1e-12)


def test_frequencies_are_those_of_the_fourier_transform() -> None:
    state, _ = batch([N] * 4)
    _, c, u = estimates(state, 0.6, Series())
    difference = (c - u).view(4, N, EVENT)
    spectrum = torch.fft.fft(difference, dim=1)
    low = torch.fft.fftfreq(N).abs()[None, :, None] <= 0.2
    scaled = torch.fft.ifft(torch.where(low, 0.5, 2.0) * spectrum, dim=1).real
    answer = guided(state, 0.6, FrequencySplit(0.5, 2.0, 0.2))
    torch.testing.assert_close(answer, c.view(4, N, EVENT) + W * scaled, rtol=0, atol=1e-12)
    plain = ClassifierFree(Series(), W)(state, 0.6)["x"]
    torch.testing.assert_close(guided(state, 0.6, FrequencySplit()), plain, rtol=0, atol=1e-12)


def test_frequencies_of_a_grid_are_radial() -> None:
    path = GaussianPath(Euclidean(), Rectified(), "x0")
    context = Context(torch.ones(1, 8, 6, dtype=torch.bool))
    i, j = torch.meshgrid(torch.arange(8.0), torch.arange(6.0), indexing="ij")
    coarse = (2 * math.pi * i / 8).cos()
    fine = (2 * math.pi * (i / 8 + 2 * j / 6)).cos()

    class Fixed(Denoiser):
        def __init__(self, answer: Tensor) -> None:
            super().__init__()
            self.paths, self.answer = {"x": path}, answer[None].double()

        def forward(self, state: State, t: Times | float, previous: Prediction | None = None
                    ) -> Prediction:  # fmt: skip
            return Prediction({"x": self.answer})

    state = State({"x": torch.zeros(1, 8, 6, dtype=torch.float64)}, context)
    rule = FrequencySplit(low=3.0, high=0.5, cutoff=0.2)
    answer = MoveAway(Fixed(coarse + fine), Fixed(0 * fine), 1.0, rule=rule)(state, 0.5)["x"]
    torch.testing.assert_close(answer, (4 * coarse + 1.5 * fine)[None].double(),
                               rtol=0, atol=1e-5)  # fmt: skip


@pytest.mark.parametrize(("method", "eta"), [("ddim", 0.0), ("ddim", 0.5), ("ddpm", 1.0)])
@pytest.mark.parametrize("schedule", [Rectified(), Cosine()])
def test_plus_plus_is_the_published_loop(method: str, eta: float, schedule: Schedule) -> None:
    """x_s = a_s D_guided + s_s √(1 − φ) ε_uncond + fresh noise, step by step."""
    state, draws = batch([N] * 3)
    model, strength = Series(schedule), 0.6
    sampler = Sampler(steps=7, method=method, eta=eta)
    plan = sampler.plan(model)
    rule = PlusPlus(plan, eta)
    start = {"x": state["x"]}
    run = sampler(ClassifierFree(model, strength, rule=rule), state.context, draws, start=start)
    bare = State(state.fields, state.context.unconditional())
    x = state["x"]
    for i, (t, end) in enumerate(plan):
        times = torch.tensor([t, end], dtype=torch.float64)
        (a, b), (s, r) = (y.tolist() for y in schedule(times))
        c, u = (model(y.replace(x=x), t)["x"] for y in (state, bare))
        share = 0.0 if eta == 0 else min(max(eta * (1 - (a * r / (b * s)) ** 2), 0.0), 1.0)
        z = Euclidean(EVENT).noise(state.context, draws, "x/ancestral", i + 1, x.dtype)
        eps = (x - a * u) / s
        x = b * (u + strength * (c - u)) + r * math.sqrt(1 - share) * eps + r * math.sqrt(share) * z
    torch.testing.assert_close(run.state["x"], x, rtol=0, atol=1e-9)


def test_plus_plus_belongs_to_its_plan() -> None:
    state, draws = batch([N] * 2)
    model, sampler = Series(), Sampler(steps=6, method="ddim")
    rule = PlusPlus(sampler.plan(model))
    with pytest.raises(InputError, match="plan of the sampler that runs"):
        guided(state, 0.123, rule, model=model)
    heun = Sampler(steps=7, method="heun")
    heun(ClassifierFree(model, 0.5, rule=PlusPlus(heun.plan(model))), state.context, draws)


@pytest.mark.parametrize("rule", [*RULES, None], ids=[*IDS, "none"])
@pytest.mark.parametrize("method", ["ab3", "ddpm", "heun"])
def test_weight_zero_is_unguided_bit_for_bit_at_one_call_a_step(
    rule: Rule | None, method: str
) -> None:
    state, draws = batch([N, 3])
    sampler = Sampler(steps=5, method=method)
    plain = sampler(Series(), state.context, draws, dtype=torch.float64).state["x"]
    off = ClassifierFree(Series(), 0.0, rule=rule)
    report = sampler(off, state.context, draws, dtype=torch.float64)
    assert torch.equal(report.state["x"], plain) and off.calls == report.calls == 5
    on = sampler(ClassifierFree(Series(), 1.0, rule=rule), state.context, draws)
    assert float((on.state["x"] - plain).abs().max()) > 1e-3


@pytest.mark.parametrize("rule", RULES, ids=IDS)
def test_strength_depends_on_neither_companions_nor_padding(rule: Rule) -> None:
    """Norms over the whole batch (weaker by √B) and over padded rows are bugs that shipped."""
    state, draws = batch([N, 3, 5, 1], width=9)
    sampler = Sampler(steps=4)
    together = sampler(ClassifierFree(Series(), W, rule=rule), state.context, draws,
                       dtype=torch.float64).state["x"]  # fmt: skip
    for i, n in enumerate((N, 3, 5, 1)):
        context = state.context.apply(lambda y, i=i: y[i : i + 1])
        context = context.replace(mask=context.mask[:, :n])
        alone = sampler(
            ClassifierFree(Series(), W, rule=rule), context, draws.rows(slice(i, i + 1)),
            dtype=torch.float64,
        ).state["x"]  # fmt: skip
        torch.testing.assert_close(together[i, :n], alone[0], rtol=0, atol=1e-12)
        assert not bool(together[i, n:].any())


@pytest.mark.parametrize("rule", RULES, ids=IDS)
def test_given_elements_stay_and_do_not_count(rule: Rule) -> None:
    state, _ = batch([N, N])
    given = torch.zeros(2, N, dtype=torch.bool)
    given[:, 4:] = True
    context = state.context.replace(given={"x": given})
    answers = []
    for shift in (0.0, 50.0):
        x = torch.where(given[..., None], state["x"] + shift, state["x"])

        class Known(Series):
            def forward(self, state: State, t: Times | float, previous: Prediction | None = None
                        ) -> Prediction:  # fmt: skip
                clean = super().forward(state, t, previous)["x"]
                return Prediction({"x": torch.where(given[..., None], state["x"], clean)})

        answer = ClassifierFree(Known(), W, rule=rule)(State({"x": x}, context), 0.6)["x"]
        assert torch.equal(answer[:, 4:], x[:, 4:]) and bool(answer.isfinite().all())
        answers.append(answer[:, :4])
    torch.testing.assert_close(answers[0], answers[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", RULES, ids=IDS)
def test_pure_noise_is_an_ordinary_time(rule: Rule) -> None:
    """a = 0 at t = 1, where ε cannot be turned into D."""
    state, _ = batch([N, 3])
    first, limit = guided(state, 1.0, rule), guided(state, 1 - 1e-6, rule)
    torch.testing.assert_close(first, limit, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("rule", RULES, ids=IDS)
def test_single_precision_suffices_in_the_noise(rule: Rule) -> None:
    """No difference of large numbers is divided by a small signal."""
    state, _ = batch([N, 3])
    for t in (1.0, 0.9999, 0.99, 0.5):
        exact, single = guided(state, t, rule), guided(state.to(torch.float32), t, rule)
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), exact, rtol=0, atol=1e-5)


def test_momentum_starts_anew_with_each_run_and_travels_with_the_samples() -> None:
    state, draws = batch([N] * 4)
    model = ClassifierFree(Series(), W, rule=Orthogonal(momentum=-0.5))
    sampler = Sampler(steps=5)
    runs = [sampler(model, state.context, draws, dtype=torch.float64).state["x"] for _ in "ab"]
    assert torch.equal(runs[0], runs[1])
    forgetful = ClassifierFree(Series(), W, rule=Orthogonal())
    other = sampler(forgetful, state.context, draws, dtype=torch.float64).state["x"]
    assert float((other - runs[0]).abs().max()) > 1e-3
    rows = torch.tensor([2, 0])
    first = model(state, 0.8)
    picked = model(state.index(rows), 0.5, first.index(rows))
    torch.testing.assert_close(picked["x"], model(state, 0.5, first)["x"][rows], rtol=0, atol=1e-14)
    inside = ClassifierFree(Series(), W, (0.0, 0.6), rule=Orthogonal(momentum=-0.5))
    assert bool(sampler(inside, state.context, draws).state["x"].isfinite().all())


def test_momentum_lost_to_an_outer_guidance_is_refused() -> None:
    state, draws = batch([N] * 2)
    model = EpsilonScaling(ClassifierFree(Series(), W, rule=Orthogonal(momentum=-0.5)), 1.01)
    with pytest.raises(InputError, match="make this one the outermost"):
        Sampler(steps=3)(model, state.context, draws)


class Nothing(Denoiser):
    def __init__(self, **paths: Path) -> None:
        super().__init__()
        self.paths = paths

    def forward(self, state: State, t: Times | float, previous: Prediction | None = None
                ) -> Prediction:  # fmt: skip
        raise AssertionError("not called")


def test_models_without_a_field_for_the_rule_are_refused() -> None:
    tokens = Nothing(
        a=CategoricalPath(Tokens(3), Rectified()), b=GeodesicPath(Torus(), Rectified())
    )
    with pytest.raises(InputError, match="Gaussian paths, of which this model has none among a, b"):
        ClassifierFree(tokens, 1.0, rule=Rescale())
    points = Nothing(coords=GaussianPath(ZeroCoM(3), Rectified()))
    with pytest.raises(InputError, match="'coords' is a set of points in no order"):
        ClassifierFree(points, 1.0, rule=FrequencySplit())
    ClassifierFree(points, 1.0, rule=Tangential())
