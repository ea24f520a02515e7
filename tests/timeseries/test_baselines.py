"""Baselines against processes whose law is known, and files that say what is wrong with them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from domains.timeseries.baselines import (
    BASELINES,
    Ensemble,
    Linear,
    QuantileTable,
    SeasonalNaive,
    Statistical,
    TableForecaster,
)
from domains.timeseries.baselines.base import filled
from domains.timeseries.baselines.naive import last_season
from domains.timeseries.metrics import evaluate
from domains.timeseries.series import Series
from sciflow.errors import InputError

START = pd.Timestamp("2020-01-01")


def series(values, name="a", freq="h", channels=None):
    values = np.asarray(values, np.float64)
    values = values[:, None] if values.ndim == 1 else values
    channels = channels or tuple(f"c{i}" for i in range(values.shape[1]))
    return Series(name, START, freq, values, channels)


def test_seasonal_naive_repeats_the_last_season():
    week = np.arange(7.0)
    told = SeasonalNaive(7).predict([series(np.tile(week, 4))], 10, samples=3)[0]
    assert told.samples.shape == (3, 10, 1)
    np.testing.assert_array_equal(told.quantile(0.1)[:, 0], np.r_[week, week[:3]])
    last = SeasonalNaive(1).predict([series([1.0, 2, 5])], 3)[0]
    np.testing.assert_array_equal(last.mean(), np.full((3, 1), 5.0))


def test_a_gap_takes_the_season_before_it():
    y = np.array([1.0, 2, 3, 4, np.nan, 6])[:, None]
    np.testing.assert_array_equal(last_season(y, 3)[:, 0], [4, 2, 6])
    # The first value of an incomplete first season counts too.
    np.testing.assert_array_equal(last_season(y[2:], 3)[:, 0], [4, 6, 6])
    np.testing.assert_array_equal(last_season(np.full((4, 1), np.nan), 3), np.zeros((3, 1)))
    np.testing.assert_array_equal(last_season(y[:2], 1)[:, 0], [2])


def test_the_bootstrap_walks_as_its_errors_do():
    """On a random walk the k-step law has variance k var(e); errors are standard normal here."""
    rng = np.random.default_rng(0)
    walk = series(rng.normal(size=5000).cumsum())
    told = SeasonalNaive(1, bootstrap=True).predict([walk], 16, samples=4000)[0]
    spread = told.samples[..., 0].var(0) / np.arange(1, 17)
    np.testing.assert_allclose(spread, 1.0, atol=0.1)
    np.testing.assert_allclose(told.mean()[:, 0], walk.values[-1, 0], atol=0.25)


def test_the_bootstrap_keeps_errors_of_a_season_together():
    """Errors that are one number a season give paths whose errors are one number a season."""
    rng = np.random.default_rng(0)
    y = series(np.repeat(rng.normal(size=200).cumsum(), 6) + np.tile(np.arange(6.0), 200))
    told = SeasonalNaive(6, bootstrap=True).predict([y], 6, samples=600)[0].samples[..., 0]
    error = told - SeasonalNaive(6).predict([y], 6)[0].samples[0, :, 0]
    assert np.corrcoef(error[:, 0], error[:, 1])[0, 1] > 0.7


@pytest.mark.parametrize("name", ["seasonal-naive-bootstrap", "linear"])
def test_sample_i_depends_on_nothing_but_its_number(name):
    rng = np.random.default_rng(0)
    y = [series(rng.normal(size=120).cumsum(), f"s{i}") for i in range(3)]
    model = BASELINES[name](24, 6).fit(y, 8)
    many = model.predict(y, 8, samples=20, seed=3)
    few = model.predict(y[1:2], 8, samples=5, seed=3)[0]
    np.testing.assert_array_equal(many[1].samples[:5], few.samples)
    other = model.predict(y[1:2], 8, samples=5, seed=4)[0]
    assert not np.array_equal(other.samples, few.samples)


def test_linear_finds_a_linear_recurrence():
    """A sum of two cosines obeys a linear recurrence, so the map is exact."""
    t = np.arange(400.0)
    y = series(3 * np.cos(0.3 * t) + 2 * np.cos(0.9 * t + 1) + 0.5)
    told = Linear(32).fit([y.head(350)], 12).predict([y.head(388)], 12)[0]
    np.testing.assert_allclose(told.mean(), y.values[388:], atol=1e-2)


def test_linear_errors_are_those_of_a_random_walk():
    """The best forecast is the last value, within reach of the map; after h steps var = h."""
    rng = np.random.default_rng(0)
    full = [series(1000 + rng.normal(size=600).cumsum(), f"s{i}") for i in range(30)]
    histories = [s.head(580) for s in full]
    told = Linear(24).fit(histories, 20).predict(histories, 20, samples=200)
    spread = np.mean([f.samples[..., 0].std(0) for f in told], 0)
    # In units of contexts that vary by chance, mistakes look up to a fifth larger than they are.
    np.testing.assert_allclose(spread / np.sqrt(np.arange(1, 21)), 1.1, atol=0.1)
    found = evaluate(told, [s.values[580:] for s in full], histories, 1)
    assert found["coverage_80"] == pytest.approx(0.8, abs=0.06)


def test_linear_takes_gaps_short_histories_and_any_scale():
    rng = np.random.default_rng(0)
    y = rng.normal(size=200).cumsum() + 50
    holes = y.copy()
    holes[[5, 60, 190]] = np.nan
    pair = series(np.stack((holes, 1e9 * y), 1))
    model = Linear(24).fit([pair, series(y[:20], "short")], 6)
    told = model.predict([pair, series(y[:10], "shorter"), series(np.full(30, np.nan))], 6)
    assert all(np.isfinite(f.samples).all() for f in told)
    exact = Linear(24).fit([series(y)], 6).predict([series(y), series(1e9 * y)], 6)
    np.testing.assert_allclose(exact[1].samples, 1e9 * exact[0].samples, rtol=1e-9)
    with pytest.raises(InputError, match="horizon of 7"):
        model.predict([pair], 7)
    with pytest.raises(InputError, match="long enough"):
        Linear(24).fit([series(y[:3])], 6)


def test_gaps_are_filled_between_neighbours():
    y = np.array([np.nan, 1, np.nan, 3, np.nan])[:, None]
    np.testing.assert_array_equal(filled(y)[:, 0], [1, 1, 2, 3, 3])
    np.testing.assert_array_equal(filled(np.full((2, 1), np.nan)), 0)


def test_a_table_of_gaussian_quantiles_is_the_gaussian():
    mu, sigma = np.arange(6.0).reshape(3, 2), 2.0
    levels = (0.1, 0.3, 0.5, 0.9)
    told = QuantileTable(levels, np.stack([mu + sigma * norm.ppf(q) for q in levels]), paths=400)
    for q in (0.01, 0.1, 0.42, 0.975):
        np.testing.assert_allclose(told.quantile(q), mu + sigma * norm.ppf(q), atol=1e-12)
    np.testing.assert_allclose(told.mean(), mu, atol=1e-12)
    np.testing.assert_allclose(told.samples.std(0), sigma, rtol=0.01)
    assert (np.diff(told.samples, axis=0) > 0).all()


def test_statistical_models_know_a_random_walk():
    pytest.importorskip("statsforecast", reason="statsforecast is not installed")
    rng = np.random.default_rng(0)
    walk = series(rng.normal(size=800).cumsum() + 100, freq="D")
    for model in ("AutoETS", "AutoTheta", "AutoARIMA"):
        told = Statistical(model, 1).predict([walk], 9, samples=50)[0]
        np.testing.assert_allclose(told.quantile(0.5)[:, 0], walk.values[-1, 0], atol=1.5)
        width = (told.quantile(0.9) - told.quantile(0.1))[:, 0] / (2 * norm.ppf(0.9))
        np.testing.assert_allclose(width, np.sqrt(np.arange(1, 10)), rtol=0.25)
        assert told.samples.shape == (50, 9, 1)


def test_what_a_model_cannot_fit_falls_back_and_gaps_are_taken():
    pytest.importorskip("statsforecast", reason="statsforecast is not installed")
    flat, rng = series(np.full(60, 7.0), freq="D"), np.random.default_rng(0)
    holes = rng.normal(size=80).cumsum()
    holes[[10, 11, 70]] = np.nan
    told = Statistical("AutoTheta", 1).predict([flat, series([1.0, 2.0]), series(holes)], 5)
    np.testing.assert_allclose(told[0].quantile(0.5), 7.0, atol=1e-6)
    assert all(np.isfinite(f.samples).all() and f.samples.shape == (100, 5, 1) for f in told)
    with pytest.raises(InputError, match="AutoETS, AutoTheta, AutoARIMA"):
        Statistical("Prophet", 1)


def table(columns, names=("a", "b"), start="2020-01-01 05:00"):
    """Cell = 100 · series + 10 · step + column."""
    times = pd.date_range(start, periods=3, freq="h")
    lines = ["unique_id,ds," + ",".join(columns)]
    for i, name in enumerate(names):
        for h, t in enumerate(times):
            cells = [str(100 * i + 10 * h + k) for k in range(len(columns))]
            lines.append(f"{name},{t},{','.join(cells)}")
    return "\n".join(lines) + "\n"


def test_a_users_quantiles_are_found_for_each_history(tmp_path):
    file = tmp_path / "base.csv"
    file.write_text(table(["0.1", "0.5", "0.9"]))
    histories = [series(np.zeros(5), "b"), series(np.zeros(5), "a")]
    told = TableForecaster(file).predict(histories, 3)
    np.testing.assert_allclose(told[0].quantile(0.5)[:, 0], [101, 111, 121], atol=1e-9)
    np.testing.assert_allclose(told[1].quantile(0.5)[:, 0], [1, 11, 21], atol=1e-9)
    # A later origin and a shorter horizon find their rows as well.
    later = TableForecaster(file).predict([series(np.zeros(6), "a")], 2)[0]
    np.testing.assert_allclose(later.quantile(0.5)[:, 0], [11, 21], atol=1e-9)
    file.write_text(table(["0.5"], names=("s/u", "s/v")))
    wide = series(np.zeros((5, 2)), "s", channels=("u", "v"))
    np.testing.assert_array_equal(
        TableForecaster(file).predict([wide], 3)[0].samples[0], [[0, 100], [10, 110], [20, 120]]
    )


def test_a_users_paths_keep_their_dependence(tmp_path):
    file = tmp_path / "base.csv"
    rows = [f"a,2020-01-01 0{5 + h}:00,{s},{10 * h + s}" for h in range(3) for s in range(2)]
    file.write_text("unique_id,ds,sample,y\n" + "\n".join(rows) + "\n")
    told = TableForecaster(file).predict([series(np.zeros(5))], 3)[0]
    np.testing.assert_array_equal(told.samples[..., 0], [[0, 10, 20], [1, 11, 21]])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (table(["0.1", "0.9"]).replace(",110,", ",abc,"), r":6: 0.1 is 'abc'"),
        (table(["0.5"], start="2020-01-01 06:00"), "series 'a' has no row for 2020-01-01 05"),
        (table(["0.5"], names=("z",)), "no forecast of series 'a'; there are z"),
    ],
)
def test_what_a_table_lacks_is_one_clear_error(tmp_path, text, reason):
    file = tmp_path / "base.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=reason) as error:
        TableForecaster(file).predict([series(np.zeros(5))], 3)
    assert "base.csv" in str(error.value)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.csv"):
        TableForecaster(tmp_path / "none.csv")


def test_every_baseline_has_a_name_and_fits():
    """By name, on seasonal data, each has paths of the right shape and beats a wild guess."""
    pytest.importorskip("statsforecast", reason="statsforecast is not installed")
    rng = np.random.default_rng(0)
    t = np.arange(96)
    y = series(10 + 3 * np.sin(2 * np.pi * t / 6) + 0.1 * rng.normal(size=96))
    for name, build in BASELINES.items():
        told = build(18, 6).fit([y.head(84)], 12).predict([y.head(84)], 12, samples=10)
        assert told[0].samples.shape == (10, 12, 1), name
        error = np.abs(told[0].quantile(0.5) - y.values[84:]).mean()
        assert error < (4.0 if name == "naive" else 0.6), name
        assert isinstance(told[0], Ensemble | QuantileTable)
