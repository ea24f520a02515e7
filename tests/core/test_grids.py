"""Time grids: n calls, falling, with the ends that their documentation names."""

from __future__ import annotations

import json
import math

import pytest
import torch

from sciflow.errors import InputError
from sciflow.paths import CategoricalPath, GaussianPath, GeodesicPath, Path
from sciflow.random import Draws
from sciflow.samplers import GRIDS, Sampler, time_grid
from sciflow.samplers.passes import pace_setter, plan_of
from sciflow.samplers.plan import Plan
from sciflow.schedules import Cosine, Rectified, Schedule, SubVP, VarianceExploding, VPLinear
from sciflow.spaces import SO3, Euclidean, Tokens
from sciflow.testing.targets import DiagonalGaussian, all_real

SCHEDULES = [
    Rectified(),
    Rectified(3.0),
    Rectified(0.5),
    Cosine(),
    VPLinear(),
    SubVP(),
    VarianceExploding(),
    VarianceExploding(0.05, 5.0),
]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
every_grid = pytest.mark.parametrize("kind", GRIDS)


@every_schedule
@every_grid
@pytest.mark.parametrize("n", [1, 2, 3, 50, 400])
def test_falls_strictly_to_the_data(kind: str, schedule: Schedule, n: int) -> None:
    times = time_grid(kind, schedule, n)
    assert times.shape == (n + 1,) and times.dtype == torch.float64
    assert bool((times.diff() < 0).all())
    assert float(times[-1]) == 0.0 and float(times[0]) <= 1.0


@every_schedule
@every_grid
def test_ends(kind: str, schedule: Schedule) -> None:
    times = time_grid(kind, schedule, 20, logsnr_first=-6.0, logsnr_last=4.0)
    first, last = (float(y) for y in schedule.logsnr(times[[0, -2]]))
    noisiest = float(schedule.logsnr(torch.ones((), dtype=torch.float64)))
    if kind in ("uniform-logsnr", "karras"):
        assert first == pytest.approx(max(-6.0, noisiest), abs=1e-6)
        assert last == pytest.approx(4.0, abs=1e-6)
    else:
        assert float(times[0]) == pytest.approx(1.0, abs=1e-12)
        assert last <= 4.0 + 1e-9


@every_schedule
def test_what_is_equally_spaced(schedule: Schedule) -> None:
    def gaps(y: torch.Tensor) -> torch.Tensor:
        d = y.diff()
        return (d / d.mean() - 1).abs().max()

    for n in (20, 500):
        a, s = schedule(time_grid("uniform-u", schedule, n))
        u = s / (a + s)
        # Many calls end at logsnr_last; few leave the last interval as long as the others.
        assert float(gaps(u[:-1])) < 1e-6
        assert float(u[-2]) == pytest.approx(max(float(u[0]) / n, 1 / (1 + math.exp(5))), rel=1e-6)
        assert float(gaps(time_grid("time", schedule, n)[:-1])) < 1e-9
        lam = schedule.logsnr(time_grid("uniform-logsnr", schedule, n)[:-1])
        assert float(gaps(lam)) < 1e-5
        a, s = schedule(time_grid("power-u", schedule, n, logsnr_last=9.0, data_std=2.0))
        assert float(gaps((s / (6 * a + s)) ** (2 / 3))) < 1e-6
        a, s = schedule(time_grid("karras", schedule, n)[:-1])
        assert float(gaps((s / a) ** (1 / 7))) < 1e-5


@every_grid
def test_a_grid_is_a_grid_of_levels(kind: str) -> None:
    """Except "time", a grid visits the same noise levels under any schedule that reaches them."""
    if kind == "time":
        return
    levels = [
        s.logsnr(time_grid(kind, s, 12)[1:-1]) for s in (Rectified(), Cosine(), Rectified(2.0))
    ]
    torch.testing.assert_close(levels[1], levels[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(levels[2], levels[0], rtol=1e-6, atol=1e-6)


def test_the_default_grid_is_that_of_the_data_in_any_unit() -> None:
    """Levels s/(σ a), and with them errors relative to σ, are those of data of variance 1."""
    levels = []
    for std in (0.1, 1.0, 30.0):
        a, s = Rectified()(time_grid("power-u", Rectified(), 12, logsnr_last=9.0, data_std=std))
        levels.append((s / (std * a))[1:])
    torch.testing.assert_close(levels[0], levels[1], rtol=1e-9, atol=0)
    torch.testing.assert_close(levels[2], levels[1], rtol=1e-9, atol=0)


@every_schedule
def test_the_last_call_falls_in_balance_with_order_three(schedule: Schedule) -> None:
    level = []
    for n in (10, 40):
        a, s = schedule(time_grid("power-u", schedule, n, logsnr_last=12.0)[-2])
        level.append(float(s / (3 * a + s)))
    assert level[0] / level[1] == pytest.approx(4**1.5, rel=1e-6)


def target() -> DiagonalGaussian:
    path = GaussianPath(Euclidean(2), Cosine())
    return DiagonalGaussian(path, torch.tensor([1.0, -2.0]), torch.tensor([0.3, 2.0]))


def test_a_grid_may_be_a_list_of_times() -> None:
    """The same run as by name, and plain data."""
    kind = Sampler(steps=6, grid="karras")
    times = kind.plan(target()).start.tolist()
    listed = Sampler(steps=6, grid=times)
    args = (all_real(3), Draws(0, [0, 1, 2]))
    a, b = (s(target(), *args).state["x"] for s in (kind, listed))
    assert torch.equal(a, b)
    again = Sampler(**json.loads(json.dumps(listed.config())))
    assert again == listed and hash(again) == hash(listed)
    assert again != kind
    heun = Sampler(steps=5, method="heun", grid=[0.9, 0.5, 0.2])
    assert heun.plan(target()).start.tolist() == [0.9, 0.5, 0.5, 0.2, 0.2]


@pytest.mark.parametrize(
    ("grid", "message"),
    [([0.5, 0.7], "fall"), ([0.5, 0.5], "fall"), ([], "above 0"), ([1.2, 0.3], "at most at 1"),
     ([0.5, 0.0], "above 0"), ([math.nan, 0.1], "at most at 1"), (0.5, "a name or a list")],
)  # fmt: skip
def test_lists_that_are_refused(grid: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sampler(steps=2, grid=grid)  # type: ignore[arg-type]


def test_a_list_is_for_its_number_of_calls() -> None:
    sampler = Sampler(steps=5, grid=[0.9, 0.4, 0.1])
    with pytest.raises(InputError, match="3 times, but the run has 5 steps"):
        sampler.plan(target())
    with pytest.raises(InputError, match=r"starts at 0\.9, but the run begins at 0\.5"):
        Sampler(steps=3, grid=[0.9, 0.4, 0.1]).plan(target(), begin=0.5)
    with pytest.raises(InputError, match="named grid"):
        Sampler(steps=3, grid=[0.9, 0.4, 0.1], restarts=1)


def test_coefficients_are_shared_but_histories_are_not() -> None:
    """A second run, and one between the steps of another, change nothing."""
    sampler, args = Sampler(steps=6), (all_real(3), Draws(0, [0, 1, 2]))
    model = target()
    first = sampler(model, *args).state["x"]
    inner = []

    def between(call: int, calls: int) -> None:
        if call == 3 and not inner:
            inner.append(sampler(model, all_real(2), Draws(7, [5, 6])).state["x"])

    assert torch.equal(sampler(model, *args, progress=between).state["x"], first)
    assert torch.equal(inner[0], sampler(model, all_real(2), Draws(7, [5, 6])).state["x"])
    other = DiagonalGaussian(GaussianPath(Euclidean(2), Rectified()), model.mean, model.variance)
    assert not torch.equal(sampler(other, *args).state["x"], first)


@pytest.mark.parametrize(("method", "order"), [("ab2", 2), ("ab3", 3), ("reab3", 3)])
def test_extrapolated_ends_are_of_the_order_of_the_method(method: str, order: int) -> None:
    """To the data and without the final denoising, on equal steps of u."""
    model, x = target(), Draws(3, torch.arange(8)).normal((1, 2), "x", dtype=torch.float64)

    def error(n: int) -> float:
        sampler = Sampler(
            steps=n, method=method, grid="uniform-u", logsnr_last=12, extrapolate=True
        )
        found = sampler(model, all_real(8), Draws(0, range(8)), start={"x": x}, dtype=x.dtype)
        one = torch.ones((), dtype=torch.float64)
        return float((found.state["x"] - model.flow(x, one, 0 * one)).norm())

    assert math.log(error(40) / error(120)) / math.log(3) == pytest.approx(order, abs=0.35)
    with pytest.raises(InputError, match="not 'unipc2'"):
        Sampler(method="unipc2", extrapolate=True)


def test_doubled_plans_visit_inner_times_twice() -> None:
    plan = Plan.along(torch.tensor([1.0, 0.6, 0.3, 0.0])).doubled()
    assert plan.start.tolist() == pytest.approx([1.0, 0.6, 0.6, 0.3, 0.3])
    assert plan.end.tolist() == pytest.approx([0.6, 0.6, 0.3, 0.3, 0.0])
    assert len(Plan.along(torch.tensor([1.0, 0.0])).doubled()) == 1


def test_a_plan_knows_where_it_starts_anew() -> None:
    plan = Plan.along(torch.tensor([1.0, 0.5, 0.0]))
    plan = plan.then(Plan.along(torch.tensor([0.2, 0.1, 0.05, 0.0])))
    assert plan.age == [0, 1, 0, 1, 2]
    assert len(plan) == 5


@pytest.mark.parametrize("kind", GRIDS)
def test_a_grid_may_begin_anywhere(kind: str) -> None:
    times = time_grid(kind, Rectified(), 6, begin=0.2)
    assert float(times[0]) == pytest.approx(0.2)
    assert len(times) == 7 and bool((times.diff() < 0).all())


def test_who_sets_the_pace() -> None:
    """A flat field before one on a manifold, and tokens only where there is nothing else."""
    token, turn = CategoricalPath(Tokens(3), Cosine()), GeodesicPath(SO3(), VPLinear())
    flat = GaussianPath(Euclidean(2), Rectified())
    fields: dict[str, Path] = {"token": token, "turn": turn, "x": flat}
    assert pace_setter(fields) is flat
    assert pace_setter({"token": token, "turn": turn}) is turn
    assert pace_setter({"token": token}) is token
    # Tokens have no noise that a kind of grid could space: their times are equally spaced.
    alone = plan_of(Sampler(steps=5, grid="karras"), {"token": token}).start
    assert float(alone.diff().std()) < 1e-12


@every_grid
@pytest.mark.parametrize("schedule", [Cosine(), VPLinear(), VarianceExploding()], ids=str)
def test_fields_on_a_manifold_take_every_kind_of_grid(kind: str, schedule: Schedule) -> None:
    fields: dict[str, Path] = {"token": CategoricalPath(Tokens(3), Rectified()),
                               "turn": GeodesicPath(SO3(), schedule)}  # fmt: skip
    plan = plan_of(Sampler(steps=12, grid=kind), fields)
    assert torch.equal(plan.start, time_grid(kind, schedule, 12)[:-1])


def test_what_is_refused() -> None:
    with pytest.raises(InputError, match=r"unknown time grid 'linear'.*uniform-u"):
        time_grid("linear", Rectified(), 10)
    with pytest.raises(InputError, match="above 0 and at most 1"):
        time_grid("time", Rectified(), 3, begin=0.0)
    with pytest.raises(InputError, match="at least 1"):
        time_grid("time", Rectified(), 0)
