"""DPM-Solver-v3: exact on Gaussians, DPM-Solver and DPM-Solver++ as cases, order, few calls."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sciflow.errors import InputError
from sciflow.paths import CategoricalPath, GaussianPath
from sciflow.random import Draws
from sciflow.samplers import Plan, Sampler
from sciflow.samplers.dpm_solver_v3 import DPMSolverV3
from sciflow.samplers.multistep import ExponentialMultistep
from sciflow.samplers.solver_statistics import SolverStatistics, estimate_statistics
from sciflow.samplers.steppers import Stepper
from sciflow.schedules import Cosine, Rectified, Schedule, VarianceExploding, VPLinear
from sciflow.spaces import Euclidean, Tokens, ZeroCoM
from sciflow.state import Context, State
from sciflow.testing.targets import (
    DiagonalGaussian,
    NamedMixture,
    TokenTable,
    all_real,
)
from tests.core.ring import Make, integrate, mixture

SCHEDULES = [Rectified(), Cosine(), VPLinear(), VarianceExploding()]
MEAN = torch.tensor([1.0, -2.0], dtype=torch.float64)
VARIANCE = torch.tensor([0.3, 2.0], dtype=torch.float64)


def normal(n: int, *shape: int, name: str = "x") -> Tensor:
    return Draws(3, torch.arange(n)).normal(shape, name, dtype=torch.float64)


def gaussian(schedule: Schedule | None = None, prediction: str = "edm") -> DiagonalGaussian:
    path = GaussianPath(Euclidean(2), schedule or Rectified(), prediction)  # type: ignore[arg-type]
    return DiagonalGaussian(path, MEAN, VARIANCE)


def closed_form(logsnr: Tensor) -> SolverStatistics:
    """l = s²/(a² v + s²), s = 0, b = −m l' of ``gaussian``."""
    y = 1 / (1 + VARIANCE * (2 * logsnr)[:, None].exp())
    return SolverStatistics(logsnr, y, 0 * y, 2 * MEAN * y * (1 - y))


def constant(l: float, s: float = 0.0) -> SolverStatistics:  # noqa: E741
    y = torch.ones(30, 1, dtype=torch.float64)
    return SolverStatistics(torch.linspace(-8, 7, 30, dtype=torch.float64), l * y, s * y, 0 * y)


@pytest.fixture(scope="module")
def estimated() -> SolverStatistics:
    """Of the mixture, from few samples and one probe each."""
    data = State({"x": mixture().sample(400)[:, None]}, all_real(400))
    return estimate_statistics(mixture(), data, Draws(2, range(400)), knots=79)


@pytest.fixture(scope="module")
def fine() -> Tensor:
    """The mixture's flow over ``levels``, by DPM-Solver++."""
    target = mixture()

    def third(path: GaussianPath, plan: Plan) -> Stepper:
        return ExponentialMultistep(path, plan, "x0", 3)

    return integrate(
        target, third, times_at(target.path.schedule, levels(1000)), normal(64, 1, 2), stop=1
    )


def times_at(schedule: Schedule, logsnr: Tensor) -> Tensor:
    """Times of these λ, and 0."""
    times = schedule.invert(lambda a, s: s.log() - a.log(), -logsnr.double())
    return torch.cat((times, torch.zeros(1, dtype=torch.float64)))


def levels(n: int, low: float = -4.0, high: float = 3.0) -> Tensor:
    return torch.linspace(low, high, n + 1, dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize(("n", "order"), [(1, 1), (2, 1), (5, 2), (5, 3)])
def test_any_step_is_exact_on_a_gaussian(schedule: Schedule, n: int, order: int) -> None:
    target, x = gaussian(schedule), normal(6, 4, 2)
    statistics = closed_form(torch.linspace(-6, 4, 301, dtype=torch.float64))
    times = times_at(schedule, levels(n))
    exact = target.flow(x, times[0], times[-2])
    for corrector in (False, True):
        found = integrate(target, DPMSolverV3(statistics, order, corrector), times, x, stop=1)
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-8)


def test_a_run_from_pure_noise_is_exact_up_to_the_signal_below_the_statistics() -> None:
    """What leads to λ = −6 has an error of the order e^{2λ}, whatever the steps after it."""
    target, x = gaussian(), normal(6, 4, 2)
    statistics = closed_form(torch.linspace(-6, 4, 301, dtype=torch.float64))
    for n in (2, 5):
        # Two calls below the statistics, or none.
        for first in ([1.0], [1.0, 0.999]):
            times = torch.tensor([*first, *torch.linspace(0.9, 0.05, n), 0.0], dtype=torch.float64)
            found = integrate(target, DPMSolverV3(statistics), times, x, stop=1)
            exact = target.flow(x, times[0], times[-2])
            assert 0 < float((found - exact).abs().max()) < 2 * math.exp(-12)


@pytest.mark.parametrize(("l", "s", "kind"), [(1.0, 0.0, "x0"), (0.0, -1.0, "eps")])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_dpm_solver_and_its_plus_plus_are_constant_statistics(
    l: float,  # noqa: E741
    s: float,
    kind: str,
    order: int,
) -> None:
    target, x = mixture(), normal(16, 1, 2)
    for grid in (levels(12), torch.tensor([-3.0, -2.6, -1.0, -0.7, 0.4, 2.5])):
        times = times_at(target.path.schedule, grid)
        old = integrate(target, lambda path, plan: ExponentialMultistep(path, plan, kind, order),  # type: ignore[arg-type]
                        times, x)  # fmt: skip
        new = integrate(target, DPMSolverV3(constant(l, s), order, False), times, x)
        torch.testing.assert_close(new, old, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("probes", "prediction"), [(1, "edm"), (None, "velocity"), (2, "eps")])
def test_estimates_are_the_closed_form_of_a_gaussian(probes: int | None, prediction: str) -> None:
    """No sample noise is left: f does not vary. For every type of network, by differences."""
    target = gaussian(Cosine(), prediction)
    data = State({"x": MEAN + VARIANCE.sqrt() * normal(30, 2, 2)}, all_real(30, 2))
    found = estimate_statistics(
        target, data, Draws(0, range(30)), logsnr=(-4, 4), knots=121, probes=probes
    )
    exact = closed_form(found.logsnr)
    torch.testing.assert_close(found.l, exact.l, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.b, exact.b, rtol=0, atol=1e-6)
    assert not bool(found.s.any())
    times = times_at(Cosine(), levels(3, -3.9, 3.9))
    x = normal(6, 2, 2)
    end = integrate(target, DPMSolverV3(found), times, x, stop=1)
    torch.testing.assert_close(end, target.flow(x, times[0], times[-2]), rtol=0, atol=1e-6)


def test_estimates_in_float32() -> None:
    target = gaussian()
    data = State({"x": (MEAN + VARIANCE.sqrt() * normal(200, 2, 2)).float()}, all_real(200, 2))
    found = estimate_statistics(target, data, Draws(0, range(200)), logsnr=(-4, 4), knots=41)
    exact = closed_form(found.logsnr)
    torch.testing.assert_close(found.l, exact.l, rtol=0, atol=1e-3)
    times, x = times_at(Rectified(), levels(4, -3.9, 3.9)), normal(6, 2, 2)
    end = integrate(target, DPMSolverV3(found), times, x, stop=1)
    torch.testing.assert_close(end, target.flow(x, times[0], times[-2]), rtol=0, atol=5e-3)


def test_regression_where_one_l_must_serve_two_variances() -> None:
    """N(0, v_i) pooled: f_i = (l_i − l) y_i, dy_i/dλ = −l_i y_i, E y_i² = v_i + e^{−2λ}."""
    target, n = DiagonalGaussian(gaussian().path, 0 * MEAN, VARIANCE), 8000
    data = State({"x": VARIANCE.sqrt() * normal(n, 1, 2)}, all_real(n))
    found = estimate_statistics(
        target, data, Draws(0, range(n)), logsnr=(-3, 3), knots=31, axes=0, probes=None
    )
    own = closed_form(found.logsnr).l
    slope = -2 * own * (1 - own)
    rest, y2 = own - own.mean(1, keepdim=True), VARIANCE + (-2 * found.logsnr)[:, None].exp()
    change = slope - slope.mean(1, keepdim=True) - rest * own
    s = (rest * change * y2).sum(1) / (rest**2 * y2).sum(1)
    torch.testing.assert_close(found.l, own.mean(1), rtol=0, atol=1e-9)
    torch.testing.assert_close(found.s, s, rtol=0, atol=0.05)
    assert float(found.b.abs().max()) < 0.05


def test_padding_and_given_elements_do_not_count() -> None:
    target, draws = gaussian(), Draws(0, range(8))
    x = MEAN + VARIANCE.sqrt() * normal(8, 2, 2)
    bare = estimate_statistics(target, State({"x": x}, all_real(8, 2)), draws, knots=9)
    longer = torch.cat((x, torch.full((8, 2, 2), 7.0, dtype=torch.float64)), 1)
    real = torch.tensor([True, True, False, True]).expand(8, 4)
    given = torch.tensor([False, False, False, True]).expand(8, 4)
    state = State({"x": longer}, Context(real, given={"x": given}))
    padded = estimate_statistics(target, state, draws, knots=9)
    for name, value in vars(bare).items():
        torch.testing.assert_close(getattr(padded, name), value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("order", "corrector", "slope"),
    [(1, False, 1), (2, False, 2), (3, False, 3), (1, True, 2), (2, True, 3)],
)
def test_order(estimated: SolverStatistics, fine: Tensor, order: int, corrector: bool,
               slope: float) -> None:  # fmt: skip
    """The slope of the error against a fine solution by another method; a corrector adds one."""
    target, x = mixture(), normal(64, 1, 2)
    error = [
        float((integrate(target, DPMSolverV3(estimated, order, corrector),
                         times_at(target.path.schedule, levels(n)), x, stop=1) - fine).norm())
        for n in (96, 288)
    ]  # fmt: skip
    assert math.log(error[0] / error[1]) / math.log(3) == pytest.approx(slope, abs=0.25)


def few_calls(
    statistics: SolverStatistics, fine: Tensor, order: int, calls: int
) -> dict[str, float]:
    """Root mean square errors of v3, with its corrector too, and of DPM-Solver++."""
    target, x = mixture(), normal(64, 1, 2)
    times = times_at(target.path.schedule, levels(calls))
    makers: dict[str, Make] = {
        "v3": DPMSolverV3(statistics, order, False),
        "v3 corrected": DPMSolverV3(statistics, order),
        "++": lambda path, plan: ExponentialMultistep(path, plan, "x0", order),
    }
    return {
        name: float((integrate(target, make, times, x, stop=1) - fine).square().mean().sqrt())
        for name, make in makers.items()
    }


@pytest.mark.parametrize("calls", [5, 7, 10])
def test_errs_less_than_dpm_solver_plus_plus_in_few_calls(
    estimated: SolverStatistics, fine: Tensor, calls: int
) -> None:
    error = {order: few_calls(estimated, fine, order, calls) for order in (1, 2, 3)}
    for order in (1, 2):
        assert error[order]["v3"] < 0.75 * error[order]["++"]
        assert error[order]["v3 corrected"] < 0.5 * error[order]["++"]
    assert error[2]["v3 corrected"] < 0.75 * min(e["++"] for e in error.values())


def named() -> NamedMixture:
    means = torch.tensor([[2.0, 0.0], [-1.0, 1.0], [0.0, -2.0]])
    path, tokens = GaussianPath(Euclidean(2), Rectified()), Tokens(3)
    return NamedMixture(path, CategoricalPath(tokens, Cosine(), "absorbing"), means, 0.1,
                        [0.2, 0.3, 0.5])  # fmt: skip


def test_the_stepper_of_one_field_of_a_mixed_state() -> None:
    """With l = 1 a run is that of DPM-Solver++, tokens included; a restart begins anew."""
    target, n = named(), 40
    for settings in ({}, {"restarts": 1, "restart_time": 0.5, "restart_share": 0.3}):
        sampler = Sampler(steps=12, method="dpmpp3m", grid="uniform-logsnr", **settings)  # type: ignore[arg-type]
        context, draws = all_real(n), Draws(0, range(n))
        steppers = {"x": DPMSolverV3(constant(1.0), 3, False)}
        old = sampler(target, context, draws, dtype=torch.float64)
        new = sampler(target, context, draws, dtype=torch.float64, steppers=steppers)
        torch.testing.assert_close(new.state["x"], old.state["x"], rtol=0, atol=1e-9)
        assert torch.equal(new.state["token"], old.state["token"]) and new.calls == old.calls
        # A run's history is its own; others are unchanged.
        again = sampler(target, context, draws, dtype=torch.float64, steppers=steppers)
        assert torch.equal(again.state["x"], new.state["x"])
        other = sampler(target, context, draws, dtype=torch.float64)
        assert torch.equal(other.state["x"], old.state["x"])
        some = torch.tensor([7, 3])
        part = sampler(target, all_real(2), draws.rows(some), dtype=torch.float64,
                       steppers=steppers)  # fmt: skip
        torch.testing.assert_close(part.state["x"], new.state["x"][some], rtol=0, atol=1e-12)


def test_a_mixed_model_with_its_own_statistics_comes_closer_to_its_flow() -> None:
    """Tokens that are all given, so that there is one flow to come close to."""
    target, n = named(), 200
    token = Draws(5, torch.arange(n)).integers(3, "token")[:, None]
    known = torch.ones(n, 1, dtype=torch.bool)
    context = Context(known, given={"token": known})
    x = target.mixture.means[token] + 0.1**0.5 * normal(n, 1, 2)
    data = State({"x": x, "token": token}, context)
    statistics = estimate_statistics(target, data, Draws(1, range(n)), knots=40)

    def run(steps: int, method: str, **given: object) -> Tensor:
        sampler = Sampler(steps=steps, method=method, grid="uniform-logsnr")
        return sampler(target, context, Draws(0, range(n)), {"token": token}, torch.float64,
                       **given).state["x"]  # type: ignore[arg-type]  # fmt: skip

    fine = run(100, "dpmpp3m")
    plain = [float((run(8, method) - fine).norm()) for method in ("dpmpp2m", "dpmpp3m", "unipc3")]
    steppers = {"x": DPMSolverV3(statistics, order=3)}
    assert float((run(8, "dpmpp3m", steppers=steppers) - fine).norm()) < 0.7 * min(plain)


def test_padding_stays_empty_and_centred_fields_stay_centred() -> None:
    """b is a shift of every element; the space takes out what it does not allow."""
    path = GaussianPath(ZeroCoM(3), Rectified())
    y = torch.full((30,), 0.5, dtype=torch.float64)
    statistics = SolverStatistics(torch.linspace(-8, 7, 30).double(), y, 0 * y, y)
    context = Context(torch.tensor([[True, True, True, False]]))
    draws = Draws(0, [0])
    x = path.space.noise(context, draws, "x", 0, torch.float64)
    stepper = DPMSolverV3(statistics)(path, Plan.along(times_at(Rectified(), levels(3))))
    for i in range(3):
        x = stepper.step(i, x, 0.5 * x, context, draws)
        assert float(x.sum(1).abs().max()) < 1e-12 and not bool(x[0, 3].any())


def test_statistics_are_plain_tensors(estimated: SolverStatistics) -> None:
    file = io.BytesIO()
    torch.save(vars(estimated), file)
    file.seek(0)
    loaded = SolverStatistics(**torch.load(file, weights_only=True))
    times, x = times_at(Rectified(), levels(5)), normal(4, 1, 2)
    one, other = (
        integrate(mixture(), DPMSolverV3(y), times, x, stop=1) for y in (estimated, loaded)
    )
    assert torch.equal(one, other)


def test_errors_say_what_to_do(estimated: SolverStatistics) -> None:
    target, context, draws = mixture(), all_real(2), Draws(0, range(2))
    good = {"x": DPMSolverV3(estimated)}
    with pytest.raises(InputError, match="lower logsnr_last"):
        Sampler(steps=6, grid="uniform-logsnr", logsnr_last=8.0)(
            target, context, draws, steppers=good
        )
    with pytest.raises(InputError, match="fields: x"):
        Sampler(steps=6)(target, context, draws, steppers={"y": good["x"]})
    with pytest.raises(InputError, match="another number of axes"):
        three = {k: v if k == "logsnr" else v.expand(3, -1, 2).movedim(0, 1)
                 for k, v in vars(estimated).items()}  # fmt: skip
        Sampler(steps=6)(target, context, draws,
                         steppers={"x": DPMSolverV3(SolverStatistics(**three))})  # fmt: skip
    table = TokenTable(CategoricalPath(Tokens(3), Rectified()), torch.ones(3))
    with pytest.raises(InputError, match="continuous fields only"):
        Sampler(steps=6)(table, context, draws, steppers={"token": good["x"]})
    data = State({"token": torch.zeros(2, 1, dtype=torch.int64)}, context)
    with pytest.raises(InputError, match="none here"):
        estimate_statistics(table, data, draws, "token")
    with pytest.raises(InputError, match="order"):
        DPMSolverV3(estimated, 4)
    with pytest.raises(InputError, match="of one shape"):
        replace(estimated, b=estimated.b[:, :1])
    with pytest.raises(InputError, match="not finite"):
        replace(estimated, s=estimated.s * math.nan)
    with pytest.raises(InputError, match="that rise"):
        replace(estimated, logsnr=-estimated.logsnr)
