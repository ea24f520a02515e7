"""The frame: exact both ways, free of units, blind to what is not given, of order one."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given as hypothesis_given
from hypothesis import settings
from hypothesis import strategies as st

from domains.timeseries.frame import frame_of


def series(rows: int, length: int, season: int, noise: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    t = torch.arange(length, dtype=torch.float64)
    wave = torch.sin(2 * math.pi * t / max(season, 2))
    z = torch.randn(rows, length, generator=generator, dtype=torch.float64)
    return (wave + noise * z)[..., None]


def before(y: torch.Tensor, origin: int) -> torch.Tensor:
    return (torch.arange(y.shape[1]) < origin)[None, :, None].expand_as(y)


@settings(max_examples=30, deadline=None)
@hypothesis_given(
    st.integers(1, 30), st.integers(1, 60), st.integers(0, 10**6), st.floats(-6, 9), st.booleans()
)
def test_decoding_undoes_encoding(season: int, length: int, seed: int, power: float,
                                  some: bool) -> None:  # fmt: skip
    """Any pattern of what is given, any size of the values."""
    y = 10.0**power * series(3, length, season, 0.5, seed)
    known = torch.rand(y.shape, generator=torch.Generator().manual_seed(seed)) < (
        0.6 if some else 0
    )
    frame = frame_of(y, known, season)
    back = frame.decode(frame.encode(y))
    assert torch.isfinite(back).all()
    assert float((back - y).abs().max()) <= 1e-9 * 10.0**power


def test_the_anchor_is_the_seasonal_naive_forecast() -> None:
    y, season, origin = series(2, 80, 7, 0.3), 7, 60
    anchor = frame_of(y, before(y, origin), season).anchor
    for t in range(origin, 80):
        source = t
        while source >= origin:
            source -= season
        assert torch.allclose(anchor[:, t], y[:, source])
    assert torch.allclose(anchor[:, season:origin], y[:, : origin - season])


def test_gaps_are_stepped_over() -> None:
    """The anchor is the latest observation of the phase, however long ago."""
    y = torch.arange(20, dtype=torch.float64)[None, :, None]
    known = before(y, 15).clone()
    known[:, 8:13] = False
    anchor = frame_of(y, known, 4).anchor[0, :, 0]
    assert anchor[16] == 4 and anchor[18] == 14 and anchor[19] == 7 and anchor[12] == 4
    # Nothing of the phase lies before: the next one stands in.
    assert anchor[0] == 4


def test_what_is_not_given_does_not_matter() -> None:
    y = series(2, 60, 12, 0.2)
    known = before(y, 48)
    other = torch.where(known, y, torch.nan)
    a, b = frame_of(y, known, 12), frame_of(other, known, 12)
    assert torch.equal(a.anchor, b.anchor) and torch.equal(a.scale, b.scale)


@pytest.mark.parametrize("season", [1, 12])
def test_units_drop_out(season: int) -> None:
    """y → α + β y leaves x as it is, also for values of 10⁹ that vary by ones."""
    y = series(4, 100, season, 0.3)
    known = before(y, 80)
    x = frame_of(y, known, season).encode(y)
    for alpha, beta in ((0.0, 1e9), (1e9, 1.0), (-5.0, 1e-6)):
        moved = alpha + beta * y
        error = (frame_of(moved, known, season).encode(moved) - x).abs().max()
        assert float(error) < 1e-5, (alpha, beta)


@pytest.mark.parametrize(("season", "lag_growth"), [(1, True), (24, False)])
def test_the_future_is_of_order_one(season: int, lag_growth: bool) -> None:
    """A random walk's spread grows with the lag, and so does σ; a season's noise does not."""
    if lag_growth:
        generator = torch.Generator().manual_seed(0)
        y = torch.randn(400, 220, 1, generator=generator, dtype=torch.float64).cumsum(1)
    else:
        y = series(400, 220, season, 0.05)
    frame = frame_of(y, before(y, 200), season)
    x = ((y - frame.anchor) / frame.scale)[:, 200:]
    assert 0.9 < float(x.std()) < 1.15
    assert 0.8 < float(x[:, -3:].std() / x[:, :3].std()) < 1.25


def test_scale_is_the_root_mean_square_of_seasonal_steps() -> None:
    y = series(3, 120, 6, 0.4)
    frame = frame_of(y, before(y, 96), 6)
    steps = y[:, 6:96] - y[:, :90]
    expected = (steps**2).mean(1).sqrt()
    assert torch.allclose(frame.scale[:, 96], expected, rtol=2e-3)


@pytest.mark.parametrize("value", [0.0, 3.0, -1e9])
def test_constant_series_have_a_scale(value: float) -> None:
    y = torch.full((1, 40, 1), value, dtype=torch.float64)
    frame = frame_of(y, before(y, 30), 4)
    assert torch.equal(frame.encode(y), torch.zeros_like(y))
    assert bool((frame.scale > 0).all())


def test_nothing_given() -> None:
    y = torch.zeros(2, 10, 1, dtype=torch.float64)
    frame = frame_of(y, torch.zeros_like(y, dtype=torch.bool), 5)
    assert torch.equal(frame.anchor, torch.zeros_like(y))
    assert torch.equal(frame.scale, torch.ones_like(y))


def test_rows_and_channels_do_not_meet() -> None:
    y = torch.cat((series(3, 50, 5, 0.2), 100 * series(3, 50, 5, 0.7, seed=1)), -1)
    known = before(y, 40)
    together = frame_of(y, known, 5)
    alone = frame_of(y[1:2, :, 1:], known[1:2, :, 1:], 5)
    assert torch.allclose(together.anchor[1:2, :, 1:], alone.anchor)
    assert torch.allclose(together.scale[1:2, :, 1:], alone.scale)
