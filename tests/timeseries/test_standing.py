"""Where a window stands in its series: of what was known before alone, in units of the window."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from domains.timeseries.encoding import FIELD, batch_of
from domains.timeseries.frame import flat_frame_of
from domains.timeseries.standing import moments_before, running_moments, standing
from domains.timeseries.view import View
from domains.timeseries.windows import Patterns, Windows
from tests.timeseries.small_forecaster import make_series, small_forecaster


def test_moments_are_those_of_what_was_known() -> None:
    rng = np.random.default_rng(0)
    y = 1e6 + rng.standard_normal((50, 2))
    y[rng.random(y.shape) < 0.3] = np.nan
    y[:5, 1] = np.nan
    told = running_moments(y).numpy()
    assert told.shape == (51, 3, 2)
    for t in (0, 3, 20, 50):
        for c in (0, 1):
            known = y[:t, c][np.isfinite(y[:t, c])]
            assert told[t, 0, c] == len(known)
            if len(known):
                assert told[t, 1, c] == pytest.approx(known.mean())
                assert told[t, 2, c] == pytest.approx(known.var(), abs=1e-6)
        assert np.allclose(moments_before(y, t), told[t])
    assert not running_moments(np.zeros((0, 2))).any()


def window(n: int = 40) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    rng = np.random.default_rng(1)
    y = 5 + 2 * rng.standard_normal((100, 1))
    y[70:] = 1 + 0.1 * rng.standard_normal((30, 1))
    part = torch.from_numpy(y[60:])[None]
    given = (torch.arange(n) < 30)[None, :, None]
    return part, given, y


def test_the_numbers_are_those_of_the_whole_series() -> None:
    part, given, y = window()
    frame = flat_frame_of(part, given)
    found = standing(moments_before(y, 60)[None], given, frame)[0, 0, 0]
    known, inside = y[:90, 0], y[60:90, 0]
    m, s = inside.mean(), inside.std()
    assert float(found[0]) == pytest.approx(np.arcsinh((known.mean() - m) / s))
    assert float(found[1]) == pytest.approx(np.log(known.std() / s))


def test_they_move_and_scale_with_the_series() -> None:
    part, given, y = window()
    a = standing(moments_before(y, 60)[None], given, flat_frame_of(part, given))
    moved, other = 1e3 - 40 * part, 1e3 - 40 * y
    b = standing(moments_before(other, 60)[None], given, flat_frame_of(moved, given))
    assert torch.allclose(a * torch.tensor([-1.0, 1.0]), b, atol=1e-6)


def test_nothing_is_said_where_nothing_is_known() -> None:
    part, given, y = window()
    frame = flat_frame_of(part, given)
    assert not standing(moments_before(y, 0)[None], given, frame).any()
    none = torch.zeros_like(given)
    assert not standing(moments_before(y, 60)[None], none, flat_frame_of(part, none)).any()


def test_a_training_window_is_told_what_a_forecast_is() -> None:
    """The same numbers whether a window is cut for training or met at its end."""
    series = make_series("a", 300)
    data = Windows([series], 72, 24, 24, None, standing=True)
    row = len(data) - 1
    trained = data.collate(torch.tensor([row])).context.extras["features"]
    y = torch.from_numpy(series.values[-96:])[None]
    given = (torch.arange(96) < 72)[None, :, None]
    before = moments_before(series.values, 300 - 96)[None]
    asked = batch_of(View(y, given, torch.ones_like(given), None, before), 24)
    assert torch.allclose(trained, asked.context.extras["features"], atol=1e-6)


def test_features_do_not_see_what_is_hidden() -> None:
    """Other values behind a pattern of training change nothing that the network is told."""
    series = make_series("a", 200)
    data = Windows([series], 72, 24, 24, Patterns(), standing=True)
    rows = torch.arange(100)
    given = data.collate(rows).context.given[FIELD]
    batch = data.window(rows)
    before = data.moments[data.starts[rows]]
    real = torch.ones_like(given)
    a = batch_of(View(batch, given, real, None, before), 24)
    some = given.flatten(1).any(1)
    other = torch.where(given, batch, batch + 9)
    b = batch_of(View(other, given, real, None, before), 24)
    told, again = (x.context.extras["features"][some] for x in (a, b))
    assert torch.equal(told, again)


def test_what_lay_before_the_window_is_read_only_by_models_that_ask() -> None:
    series = make_series("a", 400)
    other = series.replace(values=np.concatenate((series.values[:200] * 5, series.values[200:])))
    for asked in (False, True):
        forecaster = small_forecaster(standing=asked)
        a, b = (forecaster.forecast(s, 24, 5)[0].samples for s in (series, other))
        assert np.allclose(a, b) != asked
        gaps = [s.hidden(slice(390, 395)) for s in (series, other)]
        filled = [forecaster.impute(s, 3)[0].samples[:, 390:395] for s in gaps]
        assert np.allclose(*filled) != asked
