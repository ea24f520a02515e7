"""Forecasts: their law does not depend on company, units or count; given values are kept."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from domains.timeseries.forecaster import Forecaster
from domains.timeseries.methods import METHODS
from domains.timeseries.paths import PathDrawer
from sciflow.errors import InputError
from tests.timeseries.small_forecaster import make_series, small_forecaster

A, B = make_series("a", 300, seed=1), make_series("b", 150, scale=30.0, seed=2)


@pytest.fixture(scope="module")
def forecaster() -> Forecaster:
    return small_forecaster()


def test_shape_and_stamps(forecaster: Forecaster) -> None:
    one = forecaster.forecast([A], 24, samples=5)[0]
    assert one.samples.shape == (5, 24, 1) and np.isfinite(one.samples).all()
    assert one.index[0] == A.index[-1] + pd.Timedelta("1h") and len(one.index) == 24
    assert np.allclose(one.quantile(0.5), np.median(one.samples, 0))


def test_a_path_depends_on_seed_series_and_number_alone(forecaster: Forecaster) -> None:
    """Not on other series, their order, how many paths there are, or the batch."""
    alone = forecaster.forecast([A], 24, samples=4, seed=3)[0].samples
    more = forecaster.forecast([B, A], 24, samples=6, seed=3)[1].samples
    cut = forecaster.forecast([B, A], 24, samples=4, seed=3, batch_size=3)[1].samples
    assert np.allclose(alone, more[:4], atol=1e-5) and np.allclose(alone, cut, atol=1e-5)
    other = forecaster.forecast([A], 24, samples=4, seed=4)[0].samples
    assert not np.allclose(alone, other, atol=1e-2)
    # Paths differ from one another, and so do those of series.
    assert np.std(alone, 0).min() > 0


@pytest.mark.parametrize(("shift", "factor"), [(0.0, 1e9), (1e6, 1.0), (0.0, 1e-9)])
def test_units_pass_through(forecaster: Forecaster, shift: float, factor: float) -> None:
    plain = forecaster.forecast([A], 24, samples=3)[0].samples
    moved = A.replace(values=shift + factor * A.values)
    found = forecaster.forecast([moved], 24, samples=3)[0].samples
    assert np.allclose((found - shift) / factor, plain, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("horizon", [1, 7, 24, 25, 100])
def test_any_horizon(forecaster: Forecaster, horizon: int) -> None:
    """A longer forecast begins with the shorter one; beyond the model's horizon it rolls on."""
    long = forecaster.forecast([A], 100, samples=3)[0]
    short = forecaster.forecast([A], horizon, samples=3)[0]
    assert short.samples.shape == (3, horizon, 1)
    assert np.allclose(short.samples, long.samples[:, :horizon], atol=1e-4)
    assert short.calls == -(-horizon // 24) * 8


def test_a_roll_out_is_a_forecast_of_its_own_past(forecaster: Forecaster) -> None:
    """Block two of a path is what its first block, taken for history, leads to."""
    path = forecaster.forecast([A], 48, samples=2)[0].samples
    history = A.replace(values=np.concatenate((A.values, path[0, :24])))
    # Same law; the random numbers are keyed by the time stamp, so compare moments of many.
    again = forecaster.forecast([history], 24, samples=200)[0]
    rolled = forecaster.forecast([history], 24, samples=200, seed=1)[0]
    assert np.abs(again.mean() - rolled.mean()).max() < 0.35 * again.samples.std(0).max()


def test_missing_history(forecaster: Forecaster) -> None:
    """Gaps are seen as gaps, in any amount but all."""
    values = A.values.copy()
    values[-60:-10] = np.nan
    values[::3] = np.nan
    gaps = forecaster.forecast([A.replace(values=values)], 24, samples=3)[0].samples
    assert np.isfinite(gaps).all()
    values[-96:] = np.nan
    with pytest.raises(InputError, match="none of its last 96 values is observed"):
        forecaster.forecast([A.replace(values=values)], 24)


def test_short_histories(forecaster: Forecaster) -> None:
    for n in (1, 2, 30):
        one = forecaster.forecast([A.head(n)], 24, samples=2)[0]
        assert np.isfinite(one.samples).all()


def test_refusals(forecaster: Forecaster) -> None:
    with pytest.raises(InputError, match="steps of 'D'"):
        forecaster.forecast([A.replace(freq="D")], 24)
    with pytest.raises(InputError, match="horizon must be 1 or more"):
        forecaster.forecast([A], 0)
    with pytest.raises(InputError, match="samples must be 1 or more"):
        forecaster.forecast([A], 24, samples=0)
    with pytest.raises(InputError, match="unknown method 'magic'"):
        forecaster.forecast([A], 24, method="magic")
    with pytest.raises(InputError, match="at least 1 path"):
        forecaster.forecast([A], 24, batch_size=0)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_forecasts(forecaster: Forecaster, method: str) -> None:
    f = forecaster.forecast([A, B], 24, samples=2, method=method, steps=4)
    assert all(np.isfinite(x.samples).all() for x in f)


def test_a_table_is_data(forecaster: Forecaster) -> None:
    table = pd.DataFrame({"unique_id": "a", "ds": A.index, "y": A.values[:, 0]})
    from_table = forecaster.forecast(table, 24, samples=2)[0]
    assert np.array_equal(from_table.samples, forecaster.forecast([A], 24, samples=2)[0].samples)


def test_channels_together_and_apart() -> None:
    """A model of two channels draws them jointly; one of a single channel, each by itself."""
    both = make_series("two", 300, channels=2)
    joint = small_forecaster(channels=2).forecast([both], 24, samples=3)[0]
    assert joint.samples.shape == (3, 24, 2) and joint.channels == ("y0", "y1")
    apart = small_forecaster().forecast([both], 24, samples=3)[0]
    assert apart.samples.shape == (3, 24, 2)
    first = small_forecaster().forecast([both.channel("y0")], 24, samples=3)[0]
    assert np.allclose(apart.samples[..., :1], first.samples, atol=1e-5)
    with pytest.raises(InputError, match="3 channels, the model takes 2"):
        small_forecaster(channels=2).forecast([make_series("three", 300, channels=3)], 24)


def test_covariates_reach_the_future() -> None:
    """Known ones change the forecast; a model that has them asks for them by name."""
    rng = np.random.default_rng(0)
    told = A.replace(covariates=rng.standard_normal((324, 1)), covariate_names=("wind",))
    model = small_forecaster(series=[told])
    base = model.forecast([told], 24, samples=2)[0].samples
    changed = told.covariates.copy()
    changed[300:] += 3.0
    moved = model.forecast([told.replace(covariates=changed)], 24, samples=2)[0].samples
    assert not np.allclose(base, moved, atol=1e-3)
    with pytest.raises(InputError, match="lacks the covariate 'wind'"):
        model.forecast([A], 24)


def test_a_gap_that_covariates_tell_of_is_filled_before_the_future() -> None:
    """Each path goes on from its own gap, as from a history; a silent station is drawn at once."""
    rng = np.random.default_rng(0)
    told = A.replace(covariates=rng.standard_normal((300, 1)), covariate_names=("ozone",))
    model = small_forecaster(series=[told], known_future=False)
    values = told.values.copy()
    values[-30:] = np.nan
    failed, silent = told.replace(values=values), told.hidden(slice(-30, None)).replace(name="b")
    seen = []

    class Recorded(PathDrawer):
        def __call__(self, view, *arguments):  # type: ignore[no-untyped-def]
            y = super().__call__(view, *arguments)
            seen.append((view, y.clone()))
            return y

    drawer = Recorded.of(model.model, None, None, 0)
    paths = model._continued([silent, failed], 24, 3, drawer, None)
    (first, drawn), (second, beyond) = seen
    assert len(first) == 6 and len(second) == 3
    # The gap of each path as that path has filled it, and all of it given.
    assert torch.equal(second.y[:, :96], drawn[3:, :96])
    assert bool(second.given[:, :96].all()) and not bool(second.given[:, 96:].any())
    np.testing.assert_array_equal(paths[0], drawn[:3, 96:].numpy())
    np.testing.assert_array_equal(paths[1], beyond[:, 96:].numpy())
    made = model.forecast([silent, failed], 24, samples=3)
    assert [f.calls for f in made] == [8, 16]
    alone = model.forecast([failed], 24, samples=3)[0].samples
    np.testing.assert_allclose(made[1].samples, alone, atol=1e-5)


def test_imputation_keeps_what_was_observed(forecaster: Forecaster) -> None:
    values = A.values.copy()
    hidden = np.zeros(len(values), dtype=bool)
    hidden[[0, 5, 6, 7, 120, 121, 298]] = True
    hidden[150:220] = True
    values[hidden] = np.nan
    gappy = A.replace(values=values)
    done = forecaster.impute([gappy], samples=4)[0]
    assert done.samples.shape == (4, 300, 1) and np.isfinite(done.samples).all()
    assert np.array_equal(done.samples[:, ~hidden], np.repeat(values[None, ~hidden], 4, 0))
    assert done.samples[:, hidden].std(0).min() > 0
    assert np.isfinite(done.filled().values).all()


def test_refinement_moves_and_returns_to_the_base(forecaster: Forecaster) -> None:
    """Trusted beyond measure, the base stays; otherwise paths move, most-likely ones as one."""
    base = forecaster.forecast([A], 24, samples=10)
    shifted = [type(f)(f.series_name, f.channels, f.index, f.samples + 5.0) for f in base]
    free = forecaster.refine(shifted, [A], samples=10)[0]
    assert free.samples.shape == (10, 24, 1) and np.isfinite(free.samples).all()
    assert not np.allclose(free.samples, shifted[0].samples, atol=0.1)
    more = forecaster.refine(shifted, [A], samples=60)[0]
    assert np.allclose(more.samples[:10], free.samples, atol=1e-4)
    likely = forecaster.refine(shifted, [A], "most-likely", samples=10)[0]
    assert np.isfinite(likely.samples).all()
    with pytest.raises(InputError, match="unknown way to refine"):
        forecaster.refine(base, [A], "best")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="1 forecasts of 2 series"):
        forecaster.refine(base, [A, B])
    long = forecaster.forecast([A], 30, samples=2)
    with pytest.raises(InputError, match="more than the 24"):
        forecaster.refine(long, [A])


def test_synthesis(forecaster: Forecaster) -> None:
    """Series i depends on (seed, i) alone, whatever the number; any length."""
    few, many = forecaster.synthesise(2, 100), forecaster.synthesise(4, 100)
    assert [len(s) for s in few] == [100, 100]
    assert np.allclose(few[1].values, many[1].values, atol=1e-4)
    long = forecaster.synthesise(2, 200)
    assert len(long[0]) == 200 and np.allclose(long[0].values[:100], few[0].values, atol=1e-4)
