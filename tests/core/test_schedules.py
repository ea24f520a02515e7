"""Schedules: positive, falling log-SNR, true derivatives, invertible, saved as plain data."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sciflow.schedules import (
    SCHEDULES,
    Cosine,
    FreeSchedule,
    Rectified,
    Schedule,
    SubVP,
    VarianceExploding,
    VPLinear,
    schedule_from_config,
)

ALL = [
    Rectified(),
    Rectified(power=2.5),
    Rectified(power=0.5),
    Cosine(),
    VPLinear(),
    VPLinear(0.5, 12.0),
    SubVP(),
    VarianceExploding(),
    VarianceExploding(0.05, 5.0),
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
        st.just(Cosine()),
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


@every
def test_any_shape(schedule: Schedule) -> None:
    for shape in ((), (3,), (3, 4), (0,)):
        a, s = schedule(torch.full(shape, 0.4))
        assert a.shape == s.shape == shape


def test_variance_is_preserved_where_promised() -> None:
    for schedule in (Cosine(), VPLinear(), VPLinear(0.0, 5.0)):
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
    for name in SCHEDULES:
        assert schedule_from_config({"kind": name}).config()["kind"] == name


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown schedule 'linear'.*rectified"):
        schedule_from_config({"kind": "linear"})
    with pytest.raises(ValueError, match="fall"):
        FreeSchedule(lambda t: t, lambda t: 1 - t)
    with pytest.raises(ValueError, match="saved"):
        ALL[-1].config()
    for bad in ({"kind": "rectified", "power": 0.0}, {"kind": "ve", "sigma_min": 5, "sigma_max": 1},
                {"kind": "vp-linear", "beta_min": -1.0}, {"kind": "sub-vp", "beta_max": 0.0,
                                                          "beta_min": 0.0}):  # fmt: skip
        with pytest.raises(ValueError, match="must"):
            schedule_from_config(bad)
