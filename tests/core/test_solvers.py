"""Solvers of Gaussian fields: orders, published updates written out, stochastic laws, both ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.paths import CategoricalPath, GaussianPath
from sciflow.random import Draws
from sciflow.samplers import METHODS, Plan, Sampler, time_grid
from sciflow.samplers.ancestral import Ancestral
from sciflow.samplers.interpolant_sde import InterpolantSDE, refreshed_share
from sciflow.samplers.linear import LinearStepper
from sciflow.samplers.multistep import (
    ExponentialMultistep,
    lagrange_integrals,
    moments,
)
from sciflow.samplers.predictor_corrector import PredictorCorrector
from sciflow.samplers.steppers import Stepper
from sciflow.samplers.unipc import UniPC
from sciflow.schedules import Cosine, Rectified, Schedule, SubVP, VarianceExploding, VPLinear
from sciflow.spaces import Euclidean, Tokens
from sciflow.state import Context, State, Times
from sciflow.testing.targets import DiagonalGaussian, GaussianMixture, NamedMixture, all_real
from tests.core.ring import Make, integrate, mixture

PREDICTIONS = ["x0", "eps", "v", "score", "velocity", "edm"]
SCHEDULES = [Rectified(), Rectified(2.0), Cosine(), VPLinear(), SubVP(), VarianceExploding()]


def multistep(kind: str, order: int, rule: str = "exact") -> Make:
    return lambda path, plan: ExponentialMultistep(path, plan, kind, order, rule)  # type: ignore[arg-type]


def unipc(order: int, variant: str) -> Make:
    return lambda path, plan: UniPC(path, plan, order, variant)  # type: ignore[arg-type]


KINDS = ("velocity", "angle", "x0", "eps")
STEPPERS: dict[str, Make] = {
    **{f"{kind}-{order}": multistep(kind, order) for kind in KINDS for order in (1, 2, 3)},
    **{f"{kind}-midpoint": multistep(kind, 2, "midpoint") for kind in ("x0", "eps")},
    **{f"unipc{order}-{b}": unipc(order, b) for order in (1, 2, 3) for b in ("bh1", "bh2")},
}
every_stepper = pytest.mark.parametrize("name", STEPPERS)


def gaussian(schedule: Schedule, mean: float = 1.0, variance: float = 0.3, **path: object
             ) -> DiagonalGaussian:  # fmt: skip
    return DiagonalGaussian(GaussianPath(Euclidean(1), schedule, **path), torch.tensor([mean]),  # type: ignore[arg-type]
                            torch.tensor([variance]))  # fmt: skip


def start(n: int, d: int = 2) -> Tensor:
    return Draws(3, torch.arange(n)).normal((1, d), "start", dtype=torch.float64)


def levels(n: int, first: float = -4.0, schedule: Schedule | None = None) -> Plan:
    """n steps equal in λ = log(a/s) to u = s/(a + s) = 0.02, and the last interval."""
    schedule = schedule or Rectified()
    lam = torch.linspace(first, math.log(0.98 / 0.02), n + 1, dtype=torch.float64)
    times = schedule.invert(lambda a, s: s.log() - a.log(), -lam)
    return Plan.along(torch.cat((times, torch.zeros(1, dtype=torch.float64))))


def logs(schedule: Schedule, times: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a, s = (y.numpy() for y in schedule(times))
    return a, s, np.log(a / s)


def clean_of(target: GaussianMixture, x: Tensor, t: Tensor) -> Tensor:
    return target(State({"x": x}, all_real(len(x))), float(t))["x"]


@pytest.mark.parametrize("q", [0.0, 1e-9, 0.3, -0.3, 0.999, 1.0, 4.0, -4.0, 30.0])
def test_moments_of_the_exponential(q: float) -> None:
    y, w = np.polynomial.legendre.leggauss(60)
    y, w = (1 + y) / 2, w / 2
    exact = [np.sum(w * np.exp(-q * (1 - y)) * y**j) for j in range(4)]
    np.testing.assert_allclose(moments(q, 4), exact, rtol=1e-12)


def test_integrals_against_an_exponential() -> None:
    """Exact for polynomials times e^{−k (high − w)}."""
    nodes = np.array([0.5, 0.1, -0.6])
    y, w = np.polynomial.legendre.leggauss(40)
    at, w = 0.5 + 0.6 * (1 + y), 0.6 * w
    c = lagrange_integrals(nodes, 0.5, 1.7, 2.0)
    for k in range(3):
        exact = np.sum(w * np.exp(-2 * (1.7 - at)) * at**k)
        assert float(c @ nodes**k) == pytest.approx(exact, rel=1e-11)


@pytest.fixture(scope="module")
def fine() -> Tensor:
    return integrate(mixture(), STEPPERS["unipc3-bh2"], levels(600), start(24), stop=1)


def slope(make: Make, fine: Tensor, steps: tuple[int, int] = (48, 144)) -> float:
    error = [integrate(mixture(), make, levels(n), start(24), stop=1) - fine for n in steps]
    return math.log(error[0].norm() / error[1].norm()) / math.log(steps[1] / steps[0])


@every_stepper
def test_order(name: str, fine: Tensor) -> None:
    """The slope of the error against a fine solution, at a fixed noise level near the data."""
    found = slope(STEPPERS[name], fine)
    if name.startswith("unipc"):
        # The corrector gives one order more than the predictor has, up to what the start allows.
        order = int(name[5]) + 1
        assert order - 0.25 < found < order + 0.25 if order < 4 else found > 2.75
    else:
        order = 2 if name.endswith("midpoint") else int(name[-1])
        assert found == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize(("factor", "order"), [(1.0, 2), (2.0, 3)])
def test_the_third_order_formula_in_circulation_lacks_a_factor(
    factor: float, order: int, fine: Tensor
) -> None:
    """DPM-Solver++(3M) by hand: its second difference is D''/2, so its weight must be doubled."""

    class ByHand(Stepper):
        def __init__(self, path: GaussianPath, plan: Plan):
            times = torch.cat((plan.start, plan.end[-1:]))
            self.a, self.s, self.lam = logs(path.schedule, times[:-1])
            self.start = ExponentialMultistep(path, plan, "x0", 3)
            self.history: list[Tensor] = []

        def step(self, i: int, x: Tensor, clean: Tensor, context: Context, draws: Draws) -> Tensor:
            self.history = [clean, *self.history[:2]]
            first = self.start.step(i, x, clean, context, draws)
            if i < 2:
                return first
            h, h0, h1 = np.diff(self.lam)[[i, i - 1, i - 2]]
            r0, r1 = h0 / h, h1 / h
            d0, d1 = (
                (self.history[0] - self.history[1]) / r0,
                (self.history[1] - self.history[2]) / r1,
            )
            one, two = d0 + r0 / (r0 + r1) * (d0 - d1), (d0 - d1) / (r0 + r1)
            e, b = math.expm1(-h), self.a[i + 1]
            return (
                self.s[i + 1] / self.s[i] * x - b * e * clean + b * (e / h + 1) * one
                - factor * b * ((e + h) / h**2 - 0.5) * two
            )  # fmt: skip

    assert slope(ByHand, fine) == pytest.approx(order, abs=0.25)
    if factor == 2:
        plan = levels(20)
        ours = integrate(mixture(), STEPPERS["x0-3"], plan, start(4), stop=1)
        torch.testing.assert_close(
            ours, integrate(mixture(), ByHand, plan, start(4), stop=1), rtol=1e-9, atol=1e-9
        )


@every_stepper
def test_one_trajectory_for_every_schedule_and_prediction_type(name: str) -> None:
    """On one grid of noise levels, z = x/(a + s) does not know what the network predicts."""
    ends, z = [], start(8)
    for i, schedule in enumerate(SCHEDULES):
        plan = levels(9, -4.5, schedule)
        a, s = schedule(plan.start[0])
        for prediction in (PREDICTIONS[i], PREDICTIONS[(i + 2) % 6]):
            target = mixture(schedule, prediction)
            ends.append(integrate(target, STEPPERS[name], plan, (a + s) * z))
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_dpmpp_2m_is_the_published_update(schedule: Schedule, eta: float) -> None:
    """Lu et al. 2022b, algorithm 2; with η its SDE form. On unequal steps, noise and all."""
    target = mixture(schedule)
    times = schedule.invert(
        lambda a, s: s.log() - a.log(), -torch.tensor([-3.0, -1.5, -1.0, 0.8, 2.0]).double()
    )
    plan = Plan.along(torch.cat((times, torch.zeros(1))))
    a, s, lam = logs(schedule, times)
    context, draws = all_real(6), Draws(0, torch.arange(6))
    ours = ExponentialMultistep(target.path, plan, "x0", 2, "midpoint", eta, "x")
    x = float(a[0] + s[0]) * start(6)
    before: Tensor | None = None
    for i in range(4):
        clean = clean_of(target, x, times[i])
        h = lam[i + 1] - lam[i]
        d = clean
        if before is not None:
            r = (lam[i] - lam[i - 1]) / h
            d = (1 + 1 / (2 * r)) * clean - before / (2 * r)
        by_hand = s[i + 1] / s[i] * math.exp(-eta * h) * x
        by_hand = by_hand - a[i + 1] * math.expm1(-(1 + eta) * h) * d
        if eta:
            z = target.path.space.noise(context, draws, "x/ancestral", i + 1, x.dtype)
            by_hand = by_hand + s[i + 1] * math.sqrt(-math.expm1(-2 * eta * h)) * z
        x = ours.step(i, x, clean, context, draws)
        torch.testing.assert_close(x, by_hand, rtol=1e-9, atol=1e-9)
        before = clean
    clean = clean_of(target, x, times[4])
    torch.testing.assert_close(ours.step(4, x, clean, context, draws), clean)


def published_unipc(target: GaussianMixture, times: Tensor, x: Tensor, order: int, variant: str
                    ) -> Tensor:  # fmt: skip
    """Zhao et al. 2023, with the corrected point kept as in the paper; to the last time."""
    a, s, lam = logs(target.path.schedule, times)
    n = len(times)
    values = [clean_of(target, x, times[0])]
    for i in range(n - 1):
        # One more interval follows, to s = 0.
        p = min(order, i + 1, n - i)
        h = lam[i + 1] - lam[i]
        hh = -h
        rks = [(lam[i - j] - lam[i]) / h for j in range(1, p)] + [1.0]
        diffs = [(values[-1 - j] - values[-1]) / rks[j - 1] for j in range(1, p)]
        big = hh if variant == "bh1" else math.expm1(hh)
        phi = math.expm1(hh) / hh - 1
        rows, b, factorial = [], [], 1.0
        for k in range(1, p + 1):
            rows.append([r ** (k - 1) for r in rks])
            b.append(phi * factorial / big)
            factorial *= k + 1
            phi = phi / hh - 1 / factorial
        matrix = np.array(rows)
        rho_p = [0.5] if p == 2 else np.linalg.solve(matrix[:-1, :-1], b[:-1])
        rho_c = [0.5] if p == 1 else np.linalg.solve(matrix, b)
        base = s[i + 1] / s[i] * x - a[i + 1] * math.expm1(hh) * values[-1]
        step = a[i + 1] * big
        predicted = base - step * sum((r * d for r, d in zip(rho_p, diffs, strict=True)), 0 * x)
        new = clean_of(target, predicted, times[i + 1])
        x = base - step * (
            sum((r * d for r, d in zip(rho_c[:-1], diffs, strict=True)), 0 * x)
            + rho_c[-1] * (new - values[-1])
        )
        values.append(new)
    return values[-1]


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
def test_unipc_is_the_published_update(order: int, variant: str) -> None:
    """The last value of D, which depends on every prediction and every correction before it."""
    schedule = VPLinear()
    target = mixture(schedule)
    lam = torch.tensor([-4.0, -2.8, -1.0, -0.7, 0.4, 1.1, 2.5]).double()
    times = schedule.invert(lambda a, s: s.log() - a.log(), -lam)
    plan = Plan.along(torch.cat((times, torch.zeros(1))))
    ours = integrate(target, unipc(order, variant), plan, start(6))
    theirs = published_unipc(target, times, start(6), order, variant)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_the_predictor_of_unipc_2_is_dpmpp_2m() -> None:
    target = mixture()
    plan = Plan(torch.tensor([0.7, 0.5, 0.3]).double(), torch.tensor([0.5, 0.3, 0.0]).double())
    ours, published = (m(target.path, plan) for m in (unipc(2, "bh2"), STEPPERS["x0-midpoint"]))
    assert isinstance(ours, LinearStepper) and isinstance(published, LinearStepper)
    # Where no correction has been made yet they agree in all weights.
    assert ours.from_x == pytest.approx(published.from_x)
    assert ours.from_clean[0] == pytest.approx(published.from_clean[0])
    x, values = start(3), [start(3, 2) + k for k in (0, 1)]
    args = all_real(3), Draws(0, [0, 1, 2])
    same = values[0]
    for stepper in (ours, published):
        stepper.step(0, x, same, *args)
    # m_t = m_0: the corrector adds nothing, and the difference of values vanishes.
    torch.testing.assert_close(ours.step(1, x, same, *args), published.step(1, x, same, *args))


def test_adams_bashforth_2_by_hand() -> None:
    """z += h [(1 + h/2h') v_n − (h/2h') v_{n−1}] in u = s/(a + s)."""
    target, times = mixture(), torch.tensor([0.9, 0.7, 0.6, 0.35, 0.0]).double()
    a, s = target.path.schedule(times)
    u, context, draws = s / (a + s), all_real(5), Draws(0, torch.arange(5))
    ours = ExponentialMultistep(target.path, Plan.along(times), "velocity", 2)
    x, v = start(5), [torch.zeros(())]
    for i in range(3):
        clean = clean_of(target, x, times[i])
        v.append((x - a[i] * clean) / s[i] - clean)
        end = ours.step(i, x, clean, context, draws)
        if i > 1:
            h, ratio = u[i + 1] - u[i], (u[i + 1] - u[i]) / (2 * (u[i] - u[i - 1]))
            z = x / (a + s)[i] + h * ((1 + ratio) * v[-1] - ratio * v[-2])
            torch.testing.assert_close(end, z * (a + s)[i + 1], rtol=1e-9, atol=1e-9)
        x = end


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_centred_gaussian_is_exact_in_angles(schedule: Schedule, order: int) -> None:
    """REAB's own case, in steps of any length. A released version normalises with √(a_s² + σ_t²)
    for √(a_s² + σ_s²), which no step of this test would pass."""
    target = gaussian(schedule, 0.0, 1.5**2, data_std=1.5)
    times = torch.tensor([1.0, 0.6, 0.5, 0.1, 0.0]).double()
    a, s = schedule(times[0])
    x = float(a + s) * start(5, 1)
    plan = Plan.along(times)
    for stop in (1, 2, 3):
        found = integrate(target, multistep("angle", order), plan, x, stop)
        exact = target.flow(x, times[0], times[-1 - stop])
        torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-9)


@every_stepper
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_few_calls_from_pure_noise(name: str, schedule: Schedule) -> None:
    """λ = −∞ at the start of some schedules; a clamped grid repeats its times; 1, 2, 3, 5 calls."""
    target = gaussian(schedule)
    a, s = schedule(torch.ones((), dtype=torch.float64))
    x = float((a**2 + s**2).sqrt()) * start(20, 1)
    exact = target.flow(x, torch.ones(()), torch.zeros(()))
    for grid in ("uniform-u", "time"):
        for n in (1, 2, 3, 5):
            times = time_grid(grid, schedule, n)
            found = integrate(target, STEPPERS[name], Plan.along(times), x)
            # One call gives the mean, as far from the data as the data are from it.
            limit = 1.05 * float((exact - target.mean).abs().max())
            if grid == "uniform-u":
                assert float((found - exact).abs().max()) < limit
            repeated = torch.cat(
                (times[:1], times[:1], times[1:-1].repeat_interleave(3), times[-1:])
            )
            clamped = integrate(target, STEPPERS[name], Plan.along(repeated), x)
            assert bool(found.isfinite().all() and clamped.isfinite().all())


@every_stepper
def test_a_restart_forgets_the_history(name: str) -> None:
    """After noise in between, steps are those of a new run."""
    target, first = mixture(), Plan.along(torch.tensor([1.0, 0.7, 0.4, 0.2]).double())
    again = Plan.along(torch.tensor([0.6, 0.3, 0.25, 0.1, 0.0]).double())
    both, alone = (STEPPERS[name](target.path, p) for p in (first.then(again), again))
    context, draws, x = all_real(4), Draws(0, torch.arange(4)), start(4)
    for i in range(3):
        both.step(i, x + i, x - i, context, draws)
    for i in range(4):
        one, other = (m.step(i + 3 * (m is both), x * (i + 1), x - i, context, draws)
                      for m in (both, alone))  # fmt: skip
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "wrong",
    [{"kind": "speed"}, {"order": 4}, {"rule": "midpoint", "order": 3}, {"eta": 1.0}],
    ids=str,
)
def test_settings_of_a_multistep_that_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must be|of order 2|kind 'x0' alone"):
        ExponentialMultistep(mixture().path, levels(3), **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"diffusion": "square"}, "unknown diffusion 'square'; known: constant"),
     ({"diffusion_scale": -1.0}, "0 .no fresh noise. or more, not -1"),
     ({"langevin_ratio": 0.8}, "between 0 .*sqrt.1/2.*not 0.8")],
    ids=str,
)  # fmt: skip
def test_settings_of_a_sampler_that_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(Sampler(), **wrong)  # type: ignore[arg-type]


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of all random numbers drawn."""
    seen: list[str] = []
    original = Draws._words

    def watched(self: Draws, shape: object, stream: str, *more: object) -> object:
        seen.append(stream)
        return original(self, shape, stream, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(Draws, "_words", watched)
    return seen


DETERMINISTIC = [m for m in METHODS if m not in ("ddpm", "sde", "sde-dpmpp2m", "pc")]


@pytest.mark.parametrize(
    ("quiet", "deterministic"),
    [({"method": "sde", "diffusion_scale": 0.0}, {"method": "ddim"}),
     ({"method": "pc", "langevin_ratio": 0.0, "steps": 17}, {"method": "ddim"}),
     *[({"method": m, "eta": 0.0, "churn": 0.0}, {"method": m}) for m in DETERMINISTIC]],
    ids=str,
)  # fmt: skip
def test_without_noise_it_is_the_deterministic_run(
    quiet: dict[str, object], deterministic: dict[str, object], streams: list[str]
) -> None:
    """Bit for bit, and nothing but the start is drawn."""
    args = mixture(), all_real(5), Draws(0, torch.arange(5))
    one, other = (Sampler(**{"steps": 9, **s})(*args, dtype=torch.float64).state["x"]  # type: ignore[arg-type]
                  for s in (quiet, deterministic))  # fmt: skip
    assert torch.equal(one, other)
    assert streams == ["x/prior", "x/prior"]


@pytest.mark.parametrize("method", ["ddpm", "sde", "sde-dpmpp2m", "pc"])
def test_noise_is_drawn_where_it_is_used(method: str, streams: list[str]) -> None:
    Sampler(steps=9, method=method)(mixture(), all_real(2), Draws(0, [0, 1]))
    # The predictor of "pc" is deterministic, and has as many Langevin steps as inner levels.
    assert len(streams) == 1 + (4 if method == "pc" else 8)


def linear_variance(stepper: LinearStepper, path: GaussianPath, plan: Plan, v: float) -> float:
    """Of the chain on N(0, v) with its exact denoiser: x in terms of all normals drawn."""
    a, s = (y.tolist() for y in path.schedule(plan.start))
    x = np.zeros(len(plan) + 1)
    x[0] = math.sqrt((a[0] * path.data_std) ** 2 + s[0] ** 2)
    history: list[np.ndarray] = []
    for i in range(len(plan)):
        clean = a[i] * v / (a[i] ** 2 * v + s[i] ** 2) * x
        new = clean + stepper.remembered[i] * x
        x = stepper.from_x[i] * x + stepper.from_clean[i] * clean
        x = x + sum(w * old for w, old in zip(stepper.older[i], history, strict=False))
        x[i + 1] += stepper.from_noise[i]
        if stepper.needed[i]:
            history = [new, *history]
    return float(x @ x)


STOCHASTIC: dict[str, Callable[[GaussianPath, Plan], LinearStepper]] = {
    **{form: (lambda path, plan, form=form: InterpolantSDE(path, plan, form, 1.0, "x"))  # type: ignore[misc]
       for form in ("constant", "sigma", "linear", "bump", "reverse")},
    "sde-dpmpp2m": lambda path, plan: ExponentialMultistep(path, plan, "x0", 2, "midpoint", 1.0,
                                                           "x"),
    "sde-dpmpp3m": lambda path, plan: ExponentialMultistep(path, plan, "x0", 3, "exact", 0.5, "x"),
}  # fmt: skip


@pytest.mark.parametrize("schedule", [Rectified(), Cosine(), VarianceExploding()], ids=str)
@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_solvers_converge_to_the_law(name: str, schedule: Schedule) -> None:
    """Variance of a Gaussian, by recursion: an error of the first order in the step, or better.

    Of a lower order where w falls more slowly than s towards the data.
    """
    v, make = 0.3, STOCHASTIC[name]
    target = gaussian(schedule, 0.0, v)
    miss = []
    for n in (100, 400):
        plan = Plan.along(time_grid("uniform-u", schedule, n))
        miss.append(abs(linear_variance(make(target.path, plan), target.path, plan, v) / v - 1))
    found = math.log(miss[0] / miss[1]) / math.log(4)
    exploding = isinstance(schedule, VarianceExploding)
    if name == "constant" or (exploding and name in ("linear", "bump")):
        assert found > (0.2 if exploding else 0.45)
    else:
        assert miss[0] < 0.08 and found > 0.85


@pytest.mark.parametrize("name", STOCHASTIC)
def test_moments_of_stochastic_samples(name: str) -> None:
    """Samples have the variance of the recursion, and the mean of the data."""
    n, v, schedule = 20_000, 0.3, Cosine()
    target = gaussian(schedule, 1.0, v)
    plan = Plan.along(time_grid("uniform-u", schedule, 12))
    stepper = STOCHASTIC[name](target.path, plan)
    context, draws = all_real(n), Draws(0, torch.arange(n))
    x = target.path.prior(context, draws, "x/prior", torch.float64)
    for i, (t, _) in enumerate(plan):
        x = stepper.step(i, x, target(State({"x": x}, context), t)["x"], context, draws)
    expected = linear_variance(STOCHASTIC[name](target.path, plan), target.path, plan, v)
    assert float(x.var()) == pytest.approx(expected, rel=4 * (2 / n) ** 0.5)
    assert float(x.mean()) == pytest.approx(1.0, abs=0.02 + 4 * (v / n) ** 0.5)


def test_free_diffusion_in_closed_form() -> None:
    """∫ w/s² dt on the straight line, s = t; and the reverse SDE is ancestral sampling."""
    plan = Plan.along(torch.tensor([1.0, 0.8, 0.3, 0.01, 0.0]).double())
    t, u = plan.start[:-1], plan.end[:-1]
    for form, integral in (
        ("constant", 1 / u - 1 / t), ("sigma", (t / u).log()), ("linear", (t / u).log()),
    ):  # fmt: skip
        share = refreshed_share(Rectified(), plan, form, 0.7)  # type: ignore[arg-type]
        exact = torch.cat((-torch.expm1(-0.7 * integral), torch.zeros(1)))
        torch.testing.assert_close(share, exact, rtol=1e-9, atol=1e-12)
    for schedule in SCHEDULES:
        path = GaussianPath(Euclidean(1), schedule)
        ours, ancestral = InterpolantSDE(path, plan, "reverse"), Ancestral(path, plan, 1.0)
        assert ours.from_x == pytest.approx(ancestral.from_x)
        assert ours.from_noise == pytest.approx(ancestral.from_noise)


@pytest.mark.parametrize("schedule", [Cosine(), VPLinear()], ids=str)
def test_a_short_step_is_euler_maruyama(schedule: Schedule) -> None:
    """x − h [v + w ε/(2s)] + √(w h) z to the first order in h."""
    t, h, path = 0.6, 1e-5, GaussianPath(Euclidean(1), schedule)
    plan = Plan.along(torch.tensor([t, t - h, 0.0], dtype=torch.float64))
    at = torch.tensor(t, dtype=torch.float64)
    (a, s), (da, ds) = (tuple(map(float, y)) for y in (schedule(at), schedule.derivatives(at)))
    for form, w in (("constant", 1.0), ("sigma", s), ("linear", t),
                    ("bump", math.sin(math.pi * t) ** 2),
                    ("reverse", 2 * s**2 * (ds / s - da / a))):  # fmt: skip
        step = InterpolantSDE(path, plan, form)  # type: ignore[arg-type]
        x, clean = 0.7, -0.4
        eps = (x - a * clean) / s
        drift = -h * (da * clean + ds * eps + w * eps / (2 * s))
        assert step.from_x[0] * x + step.from_clean[0] * clean - x == pytest.approx(drift, rel=1e-3)
        assert step.from_noise[0] == pytest.approx(math.sqrt(w * h), rel=1e-3)


def test_langevin_steps_hold_the_law_to_second_order_in_their_ratio() -> None:
    """Many at one level: V (2 − 2r²)/(2 − 2r² s²/V), V = a² v + s²; and of a point exactly s²."""
    t, n = 0.5, 4000
    plan = Plan(*(torch.full((n,), t, dtype=torch.float64) for _ in range(2)))
    path = GaussianPath(Euclidean(1), Rectified())
    a = s = 0.5
    for ratio in (0.16, 0.4, math.sqrt(0.5)):
        stepper = PredictorCorrector(path, plan, ratio)
        for v in (0.0, 0.3, 4.0):
            whole = a**2 * v + s**2
            expected = whole * (2 - 2 * ratio**2) / (2 - 2 * ratio**2 * s**2 / whole)
            assert linear_variance(stepper, path, plan, v) == pytest.approx(expected, rel=1e-6)
            assert abs(expected / whole - 1) <= ratio**2


def test_langevin_steps_have_the_published_ratio() -> None:
    """‖δ ∇log p‖ / ‖√(2δ) z‖ = r where x is noise, to the first order in r²."""
    path, r = GaussianPath(Euclidean(1), Cosine()), 0.05
    plan = Plan(*(torch.full((1,), 0.4, dtype=torch.float64) for _ in range(2)))
    (a,), (s,) = (y.tolist() for y in path.schedule(plan.start))
    stepper = PredictorCorrector(path, plan, r)
    x, clean = 0.9, 0.2
    moved = stepper.from_x[0] * x + stepper.from_clean[0] * clean - x
    delta = 2 * r**2 * s**2
    assert moved == pytest.approx(delta * (a * clean - x) / s**2, rel=1e-9)
    assert stepper.from_noise[0] == pytest.approx(math.sqrt(2 * delta), rel=r**2)
    with pytest.raises(ValueError, match="ratio"):
        PredictorCorrector(path, plan, 0.9)


def test_a_corrector_knows_no_companions() -> None:
    """score_sde takes its step from norms averaged over the batch: a companion with a score a
    thousand times larger would change the step of all."""

    class Loud(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.paths = {"x": GaussianPath(Euclidean(2), Rectified())}

        def forward(self, state: State, t: Times | float,
                    previous: Prediction | None = None) -> Prediction:  # fmt: skip
            x = state["x"]
            loud = torch.arange(len(x)).view(-1, 1, 1) > 0
            return Prediction({"x": torch.where(loud, 1000 * x, 0.5 * x)})

    sampler, draws = Sampler(steps=9, method="pc", langevin_ratio=0.3), Draws(5, [7, 8, 9])
    whole = sampler(Loud(), all_real(3), draws).state["x"]
    alone = sampler(Loud(), all_real(1), draws.rows(slice(0, 1))).state["x"]
    assert torch.equal(whole[:1], alone)


@pytest.mark.parametrize("method", METHODS)
def test_points_and_tokens_move_together(method: str) -> None:
    """The token names its point's component as often as in the data, under every method."""
    n = 800
    means = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [-1.0, -1.5]])
    target = NamedMixture(
        GaussianPath(Euclidean(2), Rectified()), CategoricalPath(Tokens(3), Rectified()),
        means, 0.1, [0.5, 0.3, 0.2],
    )  # fmt: skip
    sampler = Sampler(steps=31, method=method, greedy=False)
    report = sampler(target, all_real(n), Draws(0, torch.arange(n)))
    state = report.state
    assert report.calls == target.calls == 31 and not bool(report.broken.any())
    pair = target.component(state["x"][:, 0]) * 3 + state["token"][:, 0]
    found = torch.bincount(pair, minlength=9).view(3, 3) / n
    assert float((found - target.joint()).abs().sum() / 2) < 0.08
