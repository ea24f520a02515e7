"""Schedules: positive, falling log-SNR, true derivatives, invertible, saved as plain data."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sciflow.monotone import monotone_slopes
from sciflow.schedules import (
    SCHEDULES,
    Cosine,
    FreeSchedule,
    Rectified,
    Schedule,
    SubVP,
    Tabulated,
    VarianceExploding,
    VPLinear,
    schedule_from_config,
)


def rows(schedule: Schedule, n: int) -> Tabulated:
    """``schedule`` as a table of n uneven rows."""
    t = torch.linspace(0, 1, n + 1, dtype=torch.float64)[1:] ** 1.3
    a, s = schedule(t)
    return Tabulated(t.tolist(), a.tolist(), s.tolist())


ALL = [
    Rectified(),
    Rectified(power=2.5),
    Rectified(power=0.5),
    Cosine(),
    Cosine(power=2.5),
    Cosine(power=0.5),
    VPLinear(),
    VPLinear(0.5, 12.0),
    SubVP(),
    VarianceExploding(),
    VarianceExploding(0.05, 5.0),
    rows(Cosine(), 12),
    rows(VPLinear(), 1000),
    rows(VarianceExploding(), 40),
    Tabulated([1.0], [0.1], [2.0]),
    FreeSchedule(lambda t: 1 - t**2, lambda t: t),
]
every = pytest.mark.parametrize("schedule", ALL, ids=str)
T = torch.linspace(0, 1, 1001, dtype=torch.float64)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_signal_and_noise_have_their_signs(schedule: Schedule, dtype: torch.dtype) -> None:
    a, s = schedule(T.to(dtype))
    assert a.dtype == s.dtype == dtype
    assert bool((a[:-1] > 0).all()) and bool((s[1:] > 0).all())
    assert float(a[-1]) >= 0 and float(s[0]) == 0
    assert float(a[0]) == pytest.approx(1.0)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logsnr_falls(schedule: Schedule, dtype: torch.dtype) -> None:
    lam = schedule.logsnr(T.to(dtype))
    assert not bool(lam.isnan().any())
    assert bool((lam.diff() < 0).all())
    assert float(lam[0]) == math.inf


@settings(max_examples=40, deadline=None)
@given(
    t=st.floats(1e-3, 1 - 1e-3),
    schedule=st.one_of(
        st.floats(0.2, 5).map(Rectified),
        st.floats(0.2, 5).map(Cosine),
        st.integers(1, 30).map(lambda n: rows(Cosine(), n)),
        st.tuples(st.floats(0, 1), st.floats(1, 40)).map(lambda b: VPLinear(*b)),
        st.tuples(st.floats(0, 1), st.floats(1, 40)).map(lambda b: SubVP(*b)),
        st.tuples(st.floats(1e-3, 0.1), st.floats(1, 500)).map(lambda b: VarianceExploding(*b)),
    ),
)
def test_derivatives_are_finite_differences(t: float, schedule: Schedule) -> None:
    h = 1e-6
    x = torch.tensor([t], dtype=torch.float64)
    (da, ds), (up, down) = schedule.derivatives(x), (schedule(x + h), schedule(x - h))
    for exact, hi, lo in ((da, up[0], down[0]), (ds, up[1], down[1])):
        assert float(exact) == pytest.approx(float((hi - lo) / (2 * h)), rel=1e-4, abs=1e-5)


@every
def test_derivatives_at_pure_noise(schedule: Schedule) -> None:
    """Flow matching needs a s' − a' s > 0 at t = 1, where its velocity starts."""
    for dtype in (torch.float32, torch.float64):
        one = torch.ones((), dtype=dtype)
        (a, s), (da, ds) = schedule(one), schedule.derivatives(one)
        assert float(a * ds - da * s) > 0


@every
def test_invert(schedule: Schedule) -> None:
    t = torch.linspace(0.01, 0.99, 33, dtype=torch.float64)
    for f in (lambda a, s: s / (a + s), lambda a, s: s / a, lambda a, s: s.log() - a.log()):
        found = schedule.invert(f, f(*schedule(t)))
        torch.testing.assert_close(found, t, rtol=0, atol=1e-9)
    torch.testing.assert_close(schedule.at_logsnr(schedule.logsnr(t)), t, rtol=0, atol=1e-9)


@every
def test_any_shape(schedule: Schedule) -> None:
    for shape in ((), (3,), (3, 4), (0,)):
        a, s = schedule(torch.full(shape, 0.4))
        assert a.shape == s.shape == shape


def test_variance_is_preserved_where_promised() -> None:
    for schedule in (Cosine(), Cosine(3.0), VPLinear(), VPLinear(0.0, 5.0)):
        a, s = schedule(T)
        torch.testing.assert_close(a**2 + s**2, torch.ones_like(a), rtol=0, atol=1e-12)
    a, s = VPLinear()(T)
    torch.testing.assert_close(SubVP()(T)[1], s**2)
    assert float(VarianceExploding(0.01, 80.0)(T)[1][-1]) == pytest.approx(80.0)


@pytest.mark.parametrize("schedule", ALL[:-1], ids=str)
def test_config_round_trip(schedule: Schedule) -> None:
    import json

    again = schedule_from_config(json.loads(json.dumps(schedule.config())))
    assert again == schedule and type(again) is type(schedule)


def test_every_named_schedule_has_defaults() -> None:
    for name in set(SCHEDULES) - {"table"}:
        assert schedule_from_config({"kind": name}).config()["kind"] == name


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown schedule 'linear'.*rectified"):
        schedule_from_config({"kind": "linear"})
    with pytest.raises(ValueError, match="fall"):
        FreeSchedule(lambda t: t, lambda t: 1 - t)
    with pytest.raises(ValueError, match="saved"):
        ALL[-1].config()
    for bad in (
        {"kind": "rectified", "power": 0.0},
        {"kind": "cosine", "power": -1.0},
        {"kind": "ve", "sigma_min": 5, "sigma_max": 1},
        {"kind": "vp-linear", "beta_min": -1.0},
        {"kind": "sub-vp", "beta_max": 0.0, "beta_min": 0.0},
    ):
        with pytest.raises(ValueError, match="must"):
            schedule_from_config(bad)


def test_gvp_is_the_cosine() -> None:
    """SiT's name for it; what is written back is the one name of this project."""
    assert schedule_from_config({"kind": "gvp"}) == Cosine()
    assert schedule_from_config({"kind": "gvp", "power": 2.0}).config()["kind"] == "cosine"


def test_a_power_is_a_clock() -> None:
    """MiDi's ν: the same marginals, met earlier or later."""
    t = T[1:]
    for power in (0.5, 1.5, 2.5):
        for found, exact in zip(Cosine(power)(t), Cosine()(t**power), strict=True):
            torch.testing.assert_close(found, exact, rtol=0, atol=1e-14)
    assert (
        float(Cosine(2.5)(T[500])[0]) > float(Cosine()(T[500])[0]) > float(Cosine(0.5)(T[500])[0])
    )


def test_a_table_is_met_at_its_rows_and_converges_between_them() -> None:
    for schedule in (Cosine(), Rectified(2.0), VarianceExploding(0.05, 5.0)):
        misses = []
        for n in (20, 80):
            table = rows(schedule, n)
            t = torch.tensor(table.t, dtype=torch.float64)
            for found, exact in zip(table(t), (table.a, table.s), strict=True):
                torch.testing.assert_close(found, torch.tensor(exact, dtype=torch.float64),
                                           rtol=1e-12, atol=1e-15)  # fmt: skip
            pairs = zip(table(T[50:]), schedule(T[50:]), strict=True)
            misses.append(max(float((x - y).abs().max()) for x, y in pairs))
        # Of order 2 at least: four times the rows, a sixteenth of the error.
        assert misses[1] < misses[0] / 14


def test_a_straight_line_in_few_rows_is_the_straight_line() -> None:
    for n in (1, 2, 7):
        for found, exact in zip(rows(Rectified(), n)(T), Rectified()(T), strict=True):
            torch.testing.assert_close(found, exact, rtol=0, atol=1e-12)


def test_a_table_is_monotone_where_its_rows_jump() -> None:
    table = Tabulated([0.1, 0.11, 0.8, 1.0], [0.999, 0.5, 0.499, 0.01], [0.01, 0.5, 0.501, 3.0])
    fine = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    a, s = table(fine)
    assert bool((table.logsnr(fine).diff() < 0).all())
    assert bool((a[:-1] > 0).all()) and bool((s.diff() > 0).all())


def test_gammas_are_the_schedule_of_a_discrete_model() -> None:
    """The 1000 steps of Ho et al. 2020, step i at time i/1000."""
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    bar = (1 - beta).cumprod(0)
    table = Tabulated.from_gammas(((1 - bar) / bar).log().tolist())
    a, s = table(torch.tensor([1, 400, 1000]).double() / 1000)
    torch.testing.assert_close(a, bar[[0, 399, 999]].sqrt(), rtol=1e-9, atol=0)
    torch.testing.assert_close(s, (1 - bar[[0, 399, 999]]).sqrt(), rtol=1e-9, atol=0)
    # The continuous limit of the same betas.
    exact = VPLinear(0.1, 20.0)(T[100:])
    for found, expected in zip(table(T[100:]), exact, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)


def test_tables_are_told_apart_by_name() -> None:
    a, b = rows(Cosine(), 10), rows(VPLinear(), 10)
    assert repr(a) == repr(rows(Cosine(), 10)) != repr(b) and a == rows(Cosine(), 10) != b
    with_data = Tabulated([0.0, *a.t], [1.0, *a.a], [0.0, *a.s])
    assert with_data == a and hash(with_data) == hash(a)


@pytest.mark.parametrize(
    ("table", "message"),
    [(([0.5, 1.0], [0.5], [0.5, 1.0]), "2 times, 1 signals"),
     (([], [], []), "at least one"),
     (([0.5, 0.9], [0.5, 0.1], [0.5, 0.9]), "rise from above 0 to 1"),
     (([0.0, 1.0], [1.0, 0.1], [0.01, 0.9]), "rise from above 0 to 1"),
     (([0.7, 0.5, 1.0], [0.9, 0.5, 0.1], [0.1, 0.5, 0.9]), "rise"),
     (([0.5, 1.0], [0.5, 0.6], [0.5, 0.6]), "a/s fall"),
     (([0.5, 1.0], [-0.5, -0.6], [0.5, 0.6]), "above 0"),
     (([0.5, 1.0], [0.5, math.nan], [0.5, 0.6]), "above 0")],
    ids=["lengths", "empty", "end", "data", "order", "flat", "sign", "nan"],
)  # fmt: skip
def test_tables_that_are_refused(table: tuple[list[float], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tabulated(*table)


def test_slopes_are_those_of_pchip() -> None:
    """Against scipy at inner knots; ends are bounded from below here."""
    from scipy.interpolate import PchipInterpolator

    g = torch.Generator().manual_seed(0)
    t = torch.rand(12, generator=g, dtype=torch.float64).cumsum(0)
    y = torch.randn(3, 12, generator=g, dtype=torch.float64)
    exact = PchipInterpolator(t.numpy(), y.numpy(), axis=1).derivative()(t.numpy())
    torch.testing.assert_close(monotone_slopes(t, y)[:, 1:-1], torch.from_numpy(exact)[:, 1:-1])
