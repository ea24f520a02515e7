"""Samplers on data with an exact denoiser: order, closed forms, calls, ends, failures."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.paths import CategoricalPath, GaussianPath
from sciflow.random import Draws
from sciflow.samplers import GRIDS, METHODS, Plan, Sampler, time_grid
from sciflow.samplers.ancestral import Ancestral
from sciflow.samplers.heun import Heun
from sciflow.samplers.multistep import ExponentialMultistep, lagrange_integrals
from sciflow.schedules import Cosine, Rectified, Schedule, SubVP, VarianceExploding, VPLinear
from sciflow.spaces import Euclidean, Tokens, ZeroCoM
from sciflow.state import Context, State, Times
from sciflow.testing.targets import DiagonalGaussian, GaussianMixture, NamedMixture, all_real
from tests.core.ring import Make, integrate, mixture

PREDICTIONS = ["x0", "eps", "v", "score", "velocity", "edm"]
SCHEDULES = [Rectified(), Rectified(2.0), Cosine(), VPLinear(), SubVP(), VarianceExploding()]
every_method = pytest.mark.parametrize("method", METHODS)
STEPPERS: dict[str, Make] = {
    "ab1": lambda path, plan: ExponentialMultistep(path, plan, "velocity", 1),
    "ab2": lambda path, plan: ExponentialMultistep(path, plan, "velocity", 2),
    "ab3": lambda path, plan: ExponentialMultistep(path, plan, "velocity", 3),
    "ddim": lambda path, plan: Ancestral(path, plan, 0.0),
    "heun": Heun,
}


def start(n: int, d: int = 2) -> Tensor:
    return Draws(3, torch.arange(n)).normal((1, d), "start", dtype=torch.float64)


def test_the_exact_mean_is_the_score() -> None:
    """Tweedie: D = (x + s² ∇ log p)/a, with the gradient by autograd."""
    target, x = mixture(), 2 * start(50)[:, 0]
    for u in (0.05, 0.5, 0.95):
        a, s = target.path.schedule(torch.full((50,), u, dtype=torch.float64))
        y = x.clone().requires_grad_(True)
        (score,) = torch.autograd.grad(target.log_density(y, a, s).sum(), y)
        tweedie = (x + s[:, None] ** 2 * score) / a[:, None]
        torch.testing.assert_close(target.mean(x, a, s), tweedie, rtol=1e-9, atol=1e-9)


def test_integrals_of_lagrange_polynomials() -> None:
    """Exact for polynomials below the number of nodes, on irregular nodes."""
    import numpy as np

    nodes = np.array([0.5, 0.62, 0.9])
    w = lagrange_integrals(nodes, 0.5, 0.37)
    for k in range(3):
        exact = (0.37 ** (k + 1) - 0.5 ** (k + 1)) / (k + 1)
        assert float(w @ nodes**k) == pytest.approx(exact, rel=1e-12)


def to_level(n: int, twice: bool = False) -> Tensor:
    """n equal steps of the rectified schedule down to u = 0.02, and the last interval."""
    times = torch.linspace(1, 0.02, n + 1, dtype=torch.float64)
    if twice:
        times = torch.cat((times[:1], times[1:].repeat_interleave(2)))
    return torch.cat((times, torch.zeros(1, dtype=torch.float64)))


@pytest.fixture(scope="module")
def fine() -> Tensor:
    return integrate(mixture(), STEPPERS["ab3"], to_level(600), start(32), stop=1)


@pytest.mark.parametrize(("method", "order"), [("ab1", 1), ("ab2", 2), ("ab3", 3), ("heun", 2)])
def test_order(method: str, order: int, fine: Tensor) -> None:
    """The slope of the error against a fine solution, at a fixed noise level near the data."""
    steps, x = (48, 144), start(32)
    errors = [
        (integrate(mixture(), STEPPERS[method], to_level(n, method == "heun"), x, stop=1) - fine)
        for n in steps
    ]
    slope = math.log(errors[0].norm() / errors[1].norm()) / math.log(steps[1] / steps[0])
    assert slope == pytest.approx(order, abs=0.25)


def test_higher_orders_win_at_twenty_calls(fine: Tensor) -> None:
    error = {
        m: float((integrate(mixture(), STEPPERS[m], to_level(20), start(32), stop=1) - fine).norm())
        for m in ("ab1", "ab2", "ab3")
    }
    assert error["ab3"] < 0.7 * error["ab2"] < 0.7 * 0.25 * error["ab1"]


@pytest.mark.parametrize("method", STEPPERS)
def test_one_trajectory_for_every_schedule_and_prediction_type(method: str) -> None:
    """On one grid of noise levels, z = x/(a + s) does not know what the network predicts."""
    lam = torch.linspace(-4.5, 4.5, 12, dtype=torch.float64)
    ends, z = [], start(16)
    for i, schedule in enumerate(SCHEDULES):
        times = schedule.invert(lambda a, s: s.log() - a.log(), -lam)
        if method == "heun":
            times = torch.cat((times[:1], times[1:].repeat_interleave(2)))
        times = torch.cat((times, torch.zeros(1, dtype=torch.float64)))
        a, s = schedule(times[0])
        # Every type with two schedules; "one step" below takes all pairs.
        for prediction in (PREDICTIONS[i], PREDICTIONS[(i + 2) % 6]):
            target = mixture(schedule, prediction)
            ends.append(integrate(target, STEPPERS[method], times, (a + s) * z))
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("grid", GRIDS)
def test_euler_is_ddim(schedule: Schedule, grid: str) -> None:
    target, x = mixture(schedule), start(8)
    times = time_grid(grid, schedule, 7)
    a, s = schedule(times[0])
    ends = [integrate(target, STEPPERS[m], times, float(a + s) * x) for m in ("ab1", "ddim")]
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_ddim_step_has_its_closed_form(schedule: Schedule) -> None:
    target = gaussian(schedule)
    times = torch.tensor([0.8, 0.5, 0.0], dtype=torch.float64)
    (a, s), (b, r) = schedule(times[0]), schedule(times[1])
    x, (m, v) = start(8), (target.mean, target.variance)
    d = m + a * v / (a**2 * v + s**2) * (x - a * m)
    found = integrate(target, STEPPERS["ddim"], times, x, stop=1)
    torch.testing.assert_close(found, b * d + r * (x - a * d) / s, rtol=1e-9, atol=1e-9)


def gaussian(schedule: Schedule, **path: object) -> DiagonalGaussian:
    mean, variance = torch.tensor([1.0, -2.0]), torch.tensor([0.3, 2.0])
    return DiagonalGaussian(GaussianPath(Euclidean(2), schedule, **path), mean, variance)  # type: ignore[arg-type]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_solvers_follow_the_flow_of_a_gaussian(schedule: Schedule) -> None:
    target = gaussian(schedule)
    times = time_grid("uniform-logsnr", schedule, 80)
    x = float(sum(schedule(times[0]))) * start(8)
    exact = target.flow(x, times[0], times[-2])
    scale = float(exact.abs().max())
    for method, error in (("ab1", 1e-1), ("ab2", 1e-2), ("ab3", 2e-3)):
        found = integrate(target, STEPPERS[method], times, x, stop=1)
        assert float((found - exact).abs().max()) < error * scale


@pytest.mark.parametrize("schedule", [Rectified(), VPLinear(), Cosine()], ids=str)
def test_the_flow_carries_the_spread_of_the_prior_over(schedule: Schedule) -> None:
    """On a Gaussian exactly, path by path: γ scales every sample's distance to the mean."""
    target = gaussian(schedule, data_std=1.3)
    draws, context = Draws(0, torch.arange(64)), all_real(64)

    def run(gamma: float) -> Tensor:
        sampler = Sampler(steps=200, method="ab3", prior_scale=gamma)
        return sampler(target, context, draws, dtype=torch.float64).state["x"][:, 0] - target.mean

    plain = run(1.0)
    for gamma in (0.5, 1.7):
        assert torch.allclose(run(gamma), gamma * plain, atol=2e-2 * gamma)

    # A factor a sample, beside that of the sampler.
    sampler = Sampler(steps=200, method="ab3", prior_scale=1.7)
    scales = torch.linspace(0.5, 1.5, 64)
    start = sampler.prior(target, context, draws, torch.float64, scales)
    found = sampler(target, context, draws, start=start).state["x"][:, 0] - target.mean
    assert torch.allclose(found, 1.7 * scales[:, None].double() * plain, atol=5e-2)


@pytest.mark.parametrize("schedule", [Rectified(), VPLinear(), VarianceExploding()], ids=str)
def test_ancestral_noise_has_the_posterior_moments(schedule: Schedule) -> None:
    """One step from exact x_t gives exact x_s for D = E[x_0|x_t] only in the mean; its covariance
    is that of the linear map, checked against the algebra of the D3PM-like posterior."""
    n, v = 200_000, 0.7
    target = DiagonalGaussian(GaussianPath(Euclidean(1), schedule), torch.tensor([0.5]),
                              torch.tensor([v]))  # fmt: skip
    times = torch.tensor([0.7, 0.4, 0.0], dtype=torch.float64)
    (a, s), (b, r) = schedule(times[0]), schedule(times[1])
    draws, context = Draws(0, torch.arange(n)), all_real(n)
    z = draws.normal((1, 1), "x", dtype=torch.float64)
    x = a * 0.5 + (a**2 * v + s**2).sqrt() * z
    clean = target(State({"x": x}, context), float(times[0]))["x"]
    y = Ancestral(target.path, Plan.along(times), 1.0, "x").step(0, x, clean, context, draws)
    # q(x_s | x_t, x_0) of Ho et al. 2020: mean c_0 x_0 + c_t x_t, variance r² τ.
    tau = 1 - (a * r / (b * s)) ** 2
    c_t = a * r**2 / (b * s**2)
    c_0 = b * tau
    gain = c_0 * a * v / (a**2 * v + s**2) + c_t
    variance = gain**2 * (a**2 * v + s**2) + r**2 * tau
    assert float(y.mean()) == pytest.approx(float(b * 0.5), abs=4 * float(variance.sqrt()) / n**0.5)
    assert float(y.var()) == pytest.approx(float(variance), rel=4 * (2 / n) ** 0.5)


def ancestral_variance(path: GaussianPath, times: Tensor, v: float, eta: float) -> float:
    """Of the chain on N(m, v) with its exact denoiser, which is linear: by recursion."""
    a, s = path.schedule(times)
    stepper = Ancestral(path, Plan.along(times), eta)
    variance = float((a[0] * path.data_std) ** 2 + s[0] ** 2)
    for i in range(len(times) - 1):
        gain = float(a[i] * v / (a[i] ** 2 * v + s[i] ** 2))
        scale = stepper.from_x[i] + stepper.from_clean[i] * gain
        variance = scale**2 * variance + stepper.from_noise[i] ** 2
    return variance


@pytest.mark.parametrize("schedule", [Rectified(), Cosine(), VarianceExploding()], ids=str)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_moments_of_ancestral_samples(schedule: Schedule, eta: float) -> None:
    n, target = 10_000, gaussian(schedule)
    sampler = Sampler(steps=20, method="ddim", eta=eta)
    x = sampler(target, all_real(n), Draws(0, torch.arange(n)), dtype=torch.float64).state["x"][
        :, 0
    ]
    plan = sampler.plan(target)
    times = torch.cat((plan.start, plan.end[-1:]))
    for k, (m, v) in enumerate(zip(target.mean.tolist(), target.variance.tolist(), strict=True)):
        expected = ancestral_variance(target.path, times, v, eta)
        assert float(x[:, k].var()) == pytest.approx(expected, rel=4 * (2 / n) ** 0.5)
        assert float(x[:, k].mean()) == pytest.approx(m, abs=4 * (v / n) ** 0.5 + 0.01)
        # The chain's only error is that each step takes D for x_0: first order in the step.
        miss = [ancestral_variance(target.path, time_grid("uniform-u", schedule, c), v, eta) / v - 1
                for c in (100, 400)]  # fmt: skip
        assert abs(miss[0]) < 0.1 and miss[0] / miss[1] == pytest.approx(4, abs=1)


def test_mixture_weights_and_spread() -> None:
    n, target = 4000, mixture()
    report = Sampler(steps=40)(target, all_real(n), Draws(1, torch.arange(n)))
    x = report.state["x"][:, 0].double()
    exact = target.sample(n)
    one = torch.ones((), dtype=torch.float64)
    share = [torch.bincount(target.components(y, one, 0 * one)[0].argmax(-1), minlength=5) / n
             for y in (x, exact)]  # fmt: skip
    assert float((share[0] - share[1]).abs().sum()) / 2 < 0.03
    assert float((torch.cov(x.mT) - torch.cov(exact.mT)).abs().max()) < 0.1


@every_method
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 20])
def test_calls_are_as_promised(method: str, steps: int) -> None:
    target = mixture()
    sampler = Sampler(steps=steps, method=method)  # type: ignore[arg-type]
    seen: list[tuple[int, int]] = []
    report = sampler(
        target, all_real(3), Draws(0, [0, 1, 2]), progress=lambda i, n: seen.append((i, n))
    )
    expected = steps - (METHODS[method].doubled and steps % 2 == 0)
    assert target.calls == report.calls == expected
    assert seen == [(i + 1, expected) for i in range(expected)]
    assert not bool(report.broken.any()) and not report.where


@every_method
def test_one_step_is_the_estimate_from_noise(method: str) -> None:
    """Even where the schedule leaves no signal at t = 1 for an "eps" head to divide by."""
    n, sampler = 3, Sampler(steps=1, method=method)  # type: ignore[arg-type]
    context, draws = all_real(n), Draws(0, torch.arange(n))
    for schedule in SCHEDULES:
        for prediction in PREDICTIONS if method == "ab2" else PREDICTIONS[-1:]:
            target = mixture(schedule, prediction)
            report = sampler(target, context, draws, dtype=torch.float64)
            x = target.path.prior(context, draws, "x/prior", torch.float64)
            expected = target(State({"x": x}, context), 1.0)["x"]
            torch.testing.assert_close(report.state["x"], expected, rtol=1e-6, atol=1e-6)


@every_method
def test_the_last_step_moves_and_ends_in_the_estimate(method: str) -> None:
    class Watched(GaussianMixture):
        def exact(self, state: State, times: object) -> dict[str, Tensor]:  # type: ignore[override]
            self.before = state["x"]
            self.answer = super().exact(state, times)["x"]  # type: ignore[arg-type]
            return {"x": self.answer}

    m = mixture()
    target = Watched(m.path, m.means, m.vectors @ m.values.diag_embed() @ m.vectors.mT)
    sampler = Sampler(steps=7, method=method)  # type: ignore[arg-type]
    end = sampler(target, all_real(5), Draws(0, torch.arange(5)), dtype=torch.float64).state["x"]
    torch.testing.assert_close(end, target.answer, rtol=1e-9, atol=1e-9)
    assert float((end - target.before).abs().min()) > 1e-6


@every_method
def test_float32_does_not_drift(method: str) -> None:
    target = gaussian(Rectified())
    args = (target, all_real(8), Draws(0, torch.arange(8)))
    sampler = Sampler(steps=100, method=method)  # type: ignore[arg-type]
    single = sampler(*args, dtype=torch.float32).state["x"]
    double = sampler(*args, dtype=torch.float64).state["x"]
    assert single.dtype == torch.float32 and double.dtype == torch.float64
    assert float((single - double).abs().max()) < 5e-5


@pytest.mark.parametrize("method", ["ab1", "ab2", "ab3", "heun", "ddim"])
def test_a_deterministic_sampler_draws_its_start_and_nothing_else(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = []
    original = Draws._words

    def counted(self: Draws, shape: object, stream: str, *more: object) -> object:
        streams.append(stream)
        return original(self, shape, stream, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(Draws, "_words", counted)
    Sampler(steps=9, method=method)(mixture(), all_real(2), Draws(0, [0, 1]))  # type: ignore[arg-type]
    assert streams == ["x/prior"]
    Sampler(steps=9, method="ddpm")(mixture(), all_real(2), Draws(0, [0, 1]))
    # The step that ends in the data draws nothing either.
    assert len(streams) == 1 + 1 + 8


@every_method
def test_a_sample_depends_on_its_number_alone(method: str) -> None:
    """Bit for bit: not on its companions, their order, or padding."""
    target, sampler = named(), Sampler(steps=6, method=method, token_eta=0.3, greedy=False)  # type: ignore[arg-type]
    lengths = torch.tensor([3, 1, 2])
    mask = torch.arange(3) < lengths[:, None]
    draws = Draws(4, [10, 11, 12])
    whole = sampler(target, Context(mask), draws).state
    for row in range(3):
        alone = sampler(target, Context(mask[row : row + 1]), draws.rows(slice(row, row + 1))).state
        for name in whole:
            assert torch.equal(alone[name][0], whole[name][row])
    order = torch.tensor([2, 0])
    some = sampler(target, Context(mask[order]), draws.rows(order)).state
    padded = sampler(target, Context(torch.nn.functional.pad(mask, (0, 2))), draws).state
    for name in whole:
        assert torch.equal(some[name], whole[name][order])
        assert torch.equal(padded[name][:, :3], whole[name])
        assert not bool(padded[name][:, 3:].any())
        assert not bool(whole[name][1, 1:].any())


def named(pairs: bool = False) -> NamedMixture:
    means = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [-1.0, -1.5]])
    return NamedMixture(
        GaussianPath(Euclidean(2), Rectified()), CategoricalPath(Tokens(3), Rectified()),
        means, 0.1, [0.5, 0.3, 0.2],
    )  # fmt: skip


@every_method
def test_given_elements_never_move(method: str) -> None:
    target, n = named(), 4
    draws, context = Draws(0, torch.arange(n)), all_real(n, 3)
    given = torch.tensor([[True, False, False]]).repeat(n, 1)
    given[3] = False
    x, token = torch.full((n, 3, 2), 0.7), torch.full((n, 3), 2)
    seen = []

    class Watched(NamedMixture):
        def exact(self, state: State, times: object) -> dict[str, Tensor]:  # type: ignore[override]
            seen.append((state["x"], state["token"], times))
            return target.exact(state, times)  # type: ignore[arg-type]

    watched = Watched(
        target.mixture.path, target.tokens, target.mixture.means, 0.1, [1.0, 1.0, 1.0]
    )
    marked = context.replace(given={"x": given, "token": given})
    sampler = Sampler(steps=5, method=method, greedy=False)  # type: ignore[arg-type]
    end = sampler(watched, marked, draws, given={"x": x, "token": token}).state
    for values, symbols, times in [*seen, (end["x"], end["token"], None)]:
        assert torch.equal(values[given], x[given])
        assert torch.equal(symbols[given], token[given])
        if times is not None:
            for t in times.values():
                assert not bool(t[given].any()) and bool((t[~given] > 0).all())
    free = sampler(target, context, draws).state
    assert torch.equal(end["x"][3], free["x"][3]) and torch.equal(end["token"][3], free["token"][3])
    assert not torch.equal(end["x"][0, 0], free["x"][0, 0])


def test_given_points_keep_their_frame() -> None:
    class Still(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.paths = {"coords": GaussianPath(ZeroCoM(3, "coords"), Rectified())}

        def forward(self, state: State, t: Times | float,
                    previous: Prediction | None = None) -> Prediction:  # fmt: skip
            return Prediction({"coords": 0.5 * state["coords"]})

    given = torch.tensor([[True, True, False, False], [False] * 4])
    x = 10 + torch.randn(2, 4, 3)
    context = all_real(2, 4).replace(given={"coords": given})
    end = Sampler(steps=4)(Still(), context, Draws(0, [0, 1]), given={"coords": x}).state["coords"]
    assert torch.equal(end[0, :2], x[0, :2])
    assert float(end[1].mean(0).abs().max()) < 1e-6


def test_what_is_given_must_be_marked_and_valued() -> None:
    target, draws = named(), Draws(0, [0])
    given = torch.tensor([[True]])
    x = torch.zeros(1, 1, 2)
    sampler, context = Sampler(steps=2), all_real(1)
    with pytest.raises(InputError, match="missing"):
        sampler(target, context.replace(given={"x": given}), draws)
    with pytest.raises(InputError, match="does not mark"):
        sampler(target, context, draws, given={"x": x})
    with pytest.raises(InputError, match="'y' are given; fields: x, token"):
        sampler(target, context.replace(given={"y": given}), draws, given={"y": x})


class Failing(NamedMixture):
    """Answers NaN for one sample's field from call ``at`` on."""

    row, name, at = 1, "x", 2

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        clean = dict(super().forward(state, t, previous).clean)
        if self.calls > self.at:
            broken = clean[self.name].clone()
            broken[self.row] = torch.nan
            clean[self.name] = broken
        return Prediction(clean)


@every_method
@pytest.mark.parametrize("name", ["x", "token"])
def test_a_sample_that_breaks_is_reported_and_breaks_no_other(method: str, name: str) -> None:
    good = named()
    target = Failing(good.mixture.path, good.tokens, good.mixture.means, 0.1, [0.5, 0.3, 0.2])
    target.name = name
    context, draws = all_real(3, 2), Draws(9, [40, 41, 42])
    sampler = Sampler(steps=6, method=method)  # type: ignore[arg-type]
    report = sampler(target, context, draws)
    clean = sampler(good, context, draws)
    assert report.broken.tolist() == [False, True, False]
    for part in ("step 2 ", f"field {name}", "sample 41", "seed 9"):
        assert part in report.where
    assert report.reasons == {1: report.where}
    for field in ("x", "token"):
        assert torch.equal(report.state[field][[0, 2]], clean.state[field][[0, 2]])
    assert not clean.reasons and not clean.where


def test_each_broken_sample_has_its_own_reason() -> None:
    class Two(Failing):
        def forward(self, state: State, t: Times | float,
                    previous: Prediction | None = None) -> Prediction:  # fmt: skip
            self.row, self.at = 0, 3
            clean = super().forward(state, t, previous).clean
            if self.calls > 1:
                clean["x"][2] = torch.inf
            return Prediction(clean)

    m = named()
    target = Two(m.mixture.path, m.tokens, m.mixture.means, 0.1, [0.5, 0.3, 0.2])
    report = Sampler(steps=6)(target, all_real(3), Draws(0, [5, 6, 7]))
    assert report.broken.tolist() == [True, False, True]
    assert "step 1 " in report.reasons[2] and "sample 7" in report.where
    assert "step 3 " in report.reasons[0] and "sample 5" in report.reasons[0]


class Halved(Denoiser):
    """x/2, and NaN or infinity in some rows from some calls on: ``{row: (call, value)}``."""

    def __init__(self, bad: dict[int, tuple[int, float]]):
        super().__init__()
        self.paths = {f: GaussianPath(Euclidean(2), VPLinear()) for f in ("x", "y")}
        self.bad, self.calls = bad, 0

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        y = state["y"] / 2
        for row, (call, value) in self.bad.items():
            if self.calls == call:
                y[row, 0, 1] = value
        self.calls += 1
        return Prediction({"x": state["x"] / 2, "y": y})


@pytest.mark.parametrize("method", ["ddpm", "dpmpp2m", "ab2", "ab3", "unipc3", "heun"])
@pytest.mark.parametrize("restarts", [0, 2])
def test_the_step_that_broke_is_named_though_states_are_looked_at_seldom(
    method: str, restarts: int
) -> None:
    sampler = Sampler(steps=21, method=method, restarts=restarts)
    for at in range(sampler(Halved({}), all_real(1), Draws(0, [0])).calls):
        later = min(at + 3, 18)
        bad = {1: (at, math.nan), 2: (later, -math.inf)}
        report = sampler(Halved(bad), all_real(4), Draws(3, [5, 6, 7, 8]))
        assert report.broken.tolist() == [False, True, True, False]
        assert report.reasons[1].startswith(f"step {at} (")
        assert report.reasons[1].endswith("field y, sample 6, seed 3")
        assert report.reasons[2].startswith(f"step {later} (")
        assert report.where == report.reasons[1 if at <= later else 2]


def test_a_broken_state_is_reported_though_a_hook_mends_it() -> None:
    report = Sampler(steps=12)(
        Halved({0: (3, math.nan)}), all_real(2), Draws(0, [0, 1]),
        after=lambda step: step.state if step.number != 4 else step.state.apply(
            lambda x: x.nan_to_num() if x.is_floating_point() else x),
    )  # fmt: skip
    assert bool(report.state["y"].isfinite().all()) is False  # the history of ab3 is not mended
    assert report.where.startswith("step 3 (")


def test_gradients_are_kept_where_they_are_asked_for() -> None:
    x = start(3)[:, None].requires_grad_()
    model, context, draws = Halved({}), all_real(3), Draws(0, [0, 1, 2])
    begin = {"x": x, "y": x.detach()}
    sampler = Sampler(steps=4, method="ab2")
    kept = sampler(model, context, draws, start=begin, differentiable=True).state
    plain = sampler(model, context, draws, start=begin).state
    assert torch.equal(kept["x"], plain["x"]) and not plain["x"].requires_grad
    # All is linear, so x · dx/dx_T = x_0.
    (slope,) = torch.autograd.grad(kept["x"].sum(), x)
    torch.testing.assert_close(slope * x, kept["x"])
    with torch.no_grad():
        assert (
            not sampler(model, context, draws, start=begin, differentiable=True)
            .state["x"]
            .requires_grad
        )


def test_an_empty_batch_is_an_empty_batch() -> None:
    for method in METHODS:
        report = Sampler(steps=3, method=method)(named(), all_real(0, 2), Draws(0, []))
        assert report.state["x"].shape == (0, 2, 2) and report.calls == 3
        assert report.broken.shape == (0,)


def test_settings_are_plain_data() -> None:
    import json

    sampler = Sampler(steps=7, method="ddim", eta=0.3, grid="karras", token_eta=0.1)
    assert Sampler(**json.loads(json.dumps(sampler.config()))) == sampler


@pytest.mark.parametrize(
    "wrong",
    [{"method": "euler"}, {"grid": "linear"}, {"steps": 0}, {"eta": -0.1}, {"token_eta": 1.5},
     {"temperature": 0.0}, {"prior_scale": 0.0}, {"eta": math.nan}, {"restarts": -1},
     {"restart_time": 1.5}],
    ids=str,
)  # fmt: skip
def test_settings_that_are_refused(wrong: dict[str, object]) -> None:
    (value,) = wrong.values()
    with pytest.raises(InputError, match=str(value).replace(".", r"\.")):
        replace(Sampler(), **wrong)  # type: ignore[arg-type]


FRESH: list[dict[str, object]] = [
    {"method": "ddpm"}, {"method": "ddim", "eta": 0.3}, {"method": "dpmpp2m", "eta": 1.0},
    {"method": "dpmpp3m", "eta": 0.1}, {"method": "sde-dpmpp2m"}, {"method": "sde"},
    {"method": "pc"}, {"method": "pc", "langevin_ratio": 0.0, "eta": 0.5}, {"churn": 5.0},
    {"restarts": 1, "restart_low": 0.05}, {"recurrence": 2},
]  # fmt: skip
STILL: list[dict[str, object]] = [
    *({"method": m} for m in METHODS if m not in ("ddpm", "sde-dpmpp2m", "sde", "pc")),
    {"method": "sde", "diffusion_scale": 0.0}, {"method": "pc", "langevin_ratio": 0.0},
    {"restarts": 1},
]  # fmt: skip


def drawn_anew(settings: dict[str, object], coupling: str) -> set[str]:
    """Streams of random numbers that a run asks for after its start."""
    streams = set()

    class Heard(Draws):
        def normal(self, shape, stream, *others, **named):  # type: ignore[no-untyped-def]
            streams.add(stream)
            return super().normal(shape, stream, *others, **named)

    path = GaussianPath(Euclidean(2), Rectified(), coupling=coupling)
    target = GaussianMixture(path, torch.zeros(1, 2), torch.eye(2)[None])
    sampler = replace(Sampler(steps=8), **settings)  # type: ignore[arg-type]
    sampler(target, all_real(2), Heard(0, range(2)))
    return streams - {"x/prior"}


@pytest.mark.parametrize("settings", FRESH, ids=str)
def test_fresh_noise_is_refused_where_noise_was_coupled_with_the_data(
    settings: dict[str, object],
) -> None:
    """There a denoiser tells the flow alone: a sample would leave the law that the model knows."""
    assert drawn_anew(settings, "independent")
    with pytest.raises(InputError, match=r"noise of 'x' was coupled .*equivariant-ot.* ab2"):
        drawn_anew(settings, "equivariant-ot")


@pytest.mark.parametrize("settings", STILL, ids=str)
def test_coupled_noise_is_served_by_every_sampler_of_the_flow(settings: dict[str, object]) -> None:
    # Restarts from the finished sample draw the noise that the data meet in training.
    assert drawn_anew(settings, "equivariant-ot") <= {"x/renoise"}
    assert bool(settings.get("restarts")) == bool(drawn_anew(settings, "independent"))


def test_restarts_use_the_promised_calls_and_forget_the_history() -> None:
    for steps in (1, 4, 9, 40):
        target = named()
        sampler = Sampler(steps=steps, restarts=2, restart_time=0.3, restart_share=0.2)
        report = sampler(target, all_real(3), Draws(0, [5, 6, 7]))
        assert report.calls == target.calls == steps
    assert sampler.plan(target).age.count(0) == 3
    assert float(sampler.plan(target).end[23]) == 0


@pytest.mark.parametrize("schedule", [Rectified(), Cosine(), VarianceExploding()], ids=str)
def test_renoising_is_the_forward_process(schedule: Schedule) -> None:
    """x_0 → x_s → x_t has the law of x_0 → x_t, for points and for tokens."""
    n, (s, t) = 20_000, (0.3, 0.6)
    context, draws = all_real(n), Draws(0, torch.arange(n))
    path = GaussianPath(Euclidean(1), schedule)
    x0 = torch.full((n, 1, 1), 1.5, dtype=torch.float64)
    xs = path.corrupt(x0, torch.full((n,), s, dtype=torch.float64), context, draws, "x")
    xt = path.renoise(xs, s, t, context, draws, "y", 1)
    a, noise = path.schedule(torch.tensor(t, dtype=torch.float64))
    assert float(xt.mean()) == pytest.approx(float(a) * 1.5, abs=4 * float(noise) / n**0.5)
    assert float(xt.std()) == pytest.approx(float(noise), rel=4 / (2 * n) ** 0.5)
    for kind in ("absorbing", "uniform"):
        tokens = CategoricalPath(Tokens(3), schedule, kind)  # type: ignore[arg-type]
        k0 = torch.ones(n, 1, dtype=torch.int64)
        ks = tokens.corrupt(k0, torch.full((n,), s), context, draws, "k")
        kt = tokens.renoise(ks, s, t, context, draws, "k/again", 1)
        alpha = float(tokens.keep(torch.tensor(t, dtype=torch.float64)))
        stays = alpha + (1 - alpha) * float(tokens.stationary[1])
        assert float((kt == 1).double().mean()) == pytest.approx(stays, abs=2 / n**0.5)


def test_restarts_mend_a_denoiser_that_errs_far_from_the_data() -> None:
    """A network that is wrong at high noise and right at low: the law of the ring comes back."""

    class Early(GaussianMixture):
        def forward(self, state: State, t: Times | float, previous: Prediction | None = None):  # type: ignore[no-untyped-def]
            clean = super().forward(state, t, previous)["x"]
            return Prediction({"x": clean * 1.1 if float(t) > 0.5 else clean})

    def distance(target: GaussianMixture, **settings: object) -> float:
        n = 4000
        report = Sampler(steps=60, **settings)(  # type: ignore[arg-type]
            target, all_real(n), Draws(0, torch.arange(n)), dtype=torch.float64
        )
        one = torch.ones((), dtype=torch.float64)
        own = target.log_density(target.sample(n), one, 0 * one + 1e-9).mean()
        return float(own - target.log_density(report.state["x"][:, 0], one, 0 * one + 1e-9).mean())

    path, good = GaussianPath(Euclidean(2), Rectified(), data_std=1.5), mixture()
    covariances = good.vectors @ torch.diag_embed(good.values) @ good.vectors.mT
    early = Early(path, good.means, covariances, good.log_weights.exp())
    once = distance(early)
    again = distance(early, restarts=3, restart_time=0.45, restart_share=0.2)
    assert again < 0.6 * once


def test_a_run_may_begin_at_a_given_state() -> None:
    """From x_t at time t on, the probability-flow ODE's own solution."""
    target = gaussian(Rectified())
    x = start(50, len(target.mean))
    begin = 0.7
    report = Sampler(steps=200, method="ab3")(
        target, all_real(50), Draws(0, torch.arange(50)), start={"x": x}, begin=begin
    )
    exact = target.flow(x, torch.tensor(begin), torch.tensor(0.0))
    torch.testing.assert_close(report.state["x"], exact, rtol=0, atol=1e-3)
