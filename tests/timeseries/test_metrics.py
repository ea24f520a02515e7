"""Scores against closed forms, short references and gluonts' figures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from domains.timeseries.baselines import Ensemble, SeasonalNaive
from domains.timeseries.datasets import TASKS
from domains.timeseries.metrics import (
    QUANTILES,
    coverage,
    crps,
    crps_of_samples,
    crps_sum,
    evaluate,
    mase,
    msis,
    normalised_deviation,
    nrmse,
    quantile_loss,
    rows,
    seasonal_error,
    smape,
    weighted_quantile_loss,
)
from domains.timeseries.series import Series
from sciflow.data import shared_data

needs_data = pytest.mark.skipif(shared_data() is None, reason="no shared data on this machine")


@dataclass
class Normal:
    """The forecast N(mu, sigma²) of every value."""

    mu: np.ndarray
    sigma: float

    def quantile(self, q):
        return self.mu + self.sigma * norm.ppf(q)

    def mean(self):
        return self.mu


def series(values, name="a"):
    return Series(name, pd.Timestamp("2020-01-01"), "h", values)


def some(seed=0, windows=5, h=12):
    rng = np.random.default_rng(seed)
    histories = [series(rng.normal(size=60).cumsum() + 20, f"s{i}") for i in range(windows)]
    truths = [series(x.values[-1] + rng.normal(size=h).cumsum()) for x in histories]
    return [Normal(t.values + rng.normal(size=(h, 1)), 2.0) for t in truths], truths, histories


def gaussian_crps(y, mu, sigma):
    z = (y - mu) / sigma
    return sigma * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - np.pi**-0.5)


def test_quantile_losses_integrate_to_the_crps_of_a_gaussian():
    y = np.linspace(-3, 4, 15)
    alpha = (np.arange(20000) + 0.5) / 20000
    told = norm.ppf(alpha, 1.0, 0.7)
    loss = np.stack([2 * quantile_loss(y, f, a) for f, a in zip(told, alpha, strict=True)]).mean(0)
    np.testing.assert_allclose(loss, gaussian_crps(y, 1.0, 0.7), rtol=1e-4)


def test_energy_form_of_stratified_samples_is_the_crps_of_their_gaussian():
    y = np.linspace(-3, 4, 15)
    x = norm.ppf((np.arange(4000) + 0.5) / 4000, 1.0, 0.7)[:, None]
    np.testing.assert_allclose(crps_of_samples(x, y), gaussian_crps(y, 1.0, 0.7), rtol=2e-3)


def test_energy_form_equals_its_double_sum():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 4, 2)), rng.normal(size=(4, 2))
    double = np.abs(x - y).mean(0) - np.abs(x[:, None] - x[None]).mean((0, 1)) / 2
    np.testing.assert_allclose(crps_of_samples(x, y), double, atol=1e-14)


def test_the_true_quantile_has_the_least_expected_loss():
    y = np.random.default_rng(0).normal(size=20000)
    for q in QUANTILES:
        best = quantile_loss(y, norm.ppf(q), q).mean()
        assert all(quantile_loss(y, norm.ppf(q) + d, q).mean() > best for d in (-0.2, 0.2))


def test_crps_as_the_field_computes_it():
    forecasts, truths, histories = some()
    found = evaluate(forecasts, truths, histories, 24)
    y = np.stack([t.values for t in truths])
    losses = []
    for q in QUANTILES:
        f = np.stack([x.quantile(q) for x in forecasts])
        losses.append(2 * np.abs((f - y) * ((y <= f) - q)).sum() / np.abs(y).sum())
    assert found["crps"] == pytest.approx(np.mean(losses), rel=1e-12)
    assert found["wql_0.3"] == pytest.approx(losses[2], rel=1e-12)


def test_scaled_scores_by_hand():
    past, y = np.array([1.0, 2.0, 4.0, 3.0, 6.0])[:, None], np.array([5.0, 8.0])
    assert seasonal_error(past, 2)[0] == pytest.approx((3 + 1 + 2) / 3)
    assert seasonal_error(past, 1)[0] == pytest.approx((1 + 2 + 1 + 3) / 4)
    assert seasonal_error(past, 5)[0] == seasonal_error(past, 1)[0]
    assert mase(y, [4.0, 6.0], 2.0) == pytest.approx(0.75)
    # Interval [4, 6] around 5 and 8: width 2, one miss by 2, penalty 2/0.05 · 2 = 80.
    assert msis(y, [4.0, 4.0], [6.0, 6.0], 2.0) == pytest.approx((2 + 2 + 80) / 2 / 2)
    assert smape(y, [3.0, 8.0]) == pytest.approx((2 * 2 / 8) / 2)
    assert normalised_deviation(y, [4.0, 6.0]) == pytest.approx(3 / 13)
    assert nrmse(y, [4.0, 6.0]) == pytest.approx(np.sqrt(2.5) / 6.5)
    assert coverage(y, [4.0, 4.0], [5.0, 6.0]) == 0.5
    assert weighted_quantile_loss(y, y - 1, 0.9) == pytest.approx(2 * 0.9 * 2 / 13)
    assert smape([0.0], [0.0]) == 0.0


def test_a_calibrated_forecast_covers_what_it_says():
    rng = np.random.default_rng(1)
    y = [series(rng.normal(3, 2, 500)) for _ in range(20)]
    told = [Normal(np.full((500, 1), 3.0), 2.0)] * 20
    found = evaluate(told, y, y, 1, levels=(50, 80, 95, 99))
    for level in (50, 80, 95, 99):
        assert found[f"coverage_{level}"] == pytest.approx(level / 100, abs=0.02)


def test_what_was_not_observed_counts_nowhere():
    forecasts, truths, histories = some()
    longer = [Normal(np.concatenate((f.mu, np.full((4, 1), 1e6))), f.sigma) for f in forecasts]
    gaps = [series(np.concatenate((t.values, np.full((4, 1), np.nan)))) for t in truths]
    before, after = (
        evaluate(f, t, histories, 24) for f, t in ((forecasts, truths), (longer, gaps))
    )
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert after[key] == pytest.approx(value, rel=1e-12), key
    holes = histories[0].values.copy()
    holes[10] = np.nan
    steps = np.abs(np.diff(np.delete(histories[0].values, 10, 0), axis=0)[:, 0])
    assert seasonal_error(holes, 1)[0] == pytest.approx(np.delete(steps, 9).mean())


def test_a_window_with_no_truth_and_a_constant_history_leave_the_means():
    forecasts, truths, histories = some()
    alone = evaluate(forecasts, truths, histories, 24)
    empty = series(np.full(12, np.nan))
    with_empty = evaluate(
        [*forecasts, forecasts[0]], [*truths, empty], [*histories, histories[0]], 24
    )
    assert with_empty == pytest.approx(alone)
    flat = evaluate(
        [*forecasts, forecasts[0]], [*truths, truths[0]], [*histories, series(np.ones(60))], 24
    )
    assert flat["mase"] == pytest.approx(alone["mase"])


def test_rows_average_to_the_whole():
    forecasts, truths, histories = some()
    table, whole = (
        rows(forecasts, truths, histories, 24),
        evaluate(forecasts, truths, histories, 24),
    )
    assert [r["series"] for r in table] == [h.name for h in histories]
    assert np.mean([r["mase"] for r in table]) == pytest.approx(whole["mase"])
    sizes = [np.abs(t.values).sum() for t in truths]
    assert np.average([r["crps"] for r in table], weights=sizes) == pytest.approx(whole["crps"])


def test_channels_are_scored_as_series():
    forecasts, truths, histories = some()
    wide = [evaluate(
        [Normal(np.concatenate([f.mu for f in forecasts], 1), 2.0)],
        [np.concatenate([t.values for t in truths], 1)],
        [np.concatenate([h.values for h in histories], 1)], 24)][0]  # fmt: skip
    assert wide == pytest.approx(evaluate(forecasts, truths, histories, 24))


def test_scale_of_the_data_does_not_matter():
    forecasts, truths, histories = some()

    def times(s):
        return s.replace(values=1e9 * s.values)

    scaled = evaluate([Normal(1e9 * f.mu, 2e9) for f in forecasts], [times(t) for t in truths],
                      [times(h) for h in histories], 24)  # fmt: skip
    assert scaled == pytest.approx(evaluate(forecasts, truths, histories, 24), rel=1e-9)


def test_crps_of_the_sum_sees_dependence():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(4000, 50, 1))
    truth = [10 + np.concatenate((z[0], -z[0]), 1)]
    opposed = 10 + np.concatenate((z[1:], -z[1:]), 2)
    free = 10 + rng.normal(size=(4000, 50, 2))
    assert crps_sum([opposed], truth) < 1e-12 < crps_sum([free], truth)
    single = crps(truth[0], np.quantile(opposed, QUANTILES, 0))
    assert single == pytest.approx(crps(truth[0], np.quantile(free, QUANTILES, 0)), rel=0.05)


@needs_data
@pytest.mark.parametrize(
    ("name", "expected", "mase_expected", "msis_expected"),
    [("exchange_rate_nips", 0.01075, 1.620, 64.8), ("m4_hourly", 0.04831, 1.193, 47.7),
     ("ETTh1", 0.38527, 0.795, 31.8)],
)  # fmt: skip
def test_seasonal_naive_has_the_figures_of_gluonts(name, expected, mase_expected, msis_expected):
    """gluonts' Evaluator; m4_hourly also 0.0483091941 and 1.19321 in Chronos' tables."""
    t = TASKS[name]()
    histories, truths = [h for h, _ in t.windows], [y for _, y in t.windows]
    told = SeasonalNaive(t.season).predict(histories, t.horizon, samples=2)
    found = evaluate(told, truths, histories, t.season)
    assert found["crps"] == pytest.approx(expected, abs=5e-6)
    assert found["mase"] == pytest.approx(mase_expected, abs=5e-4)
    assert found["msis"] == pytest.approx(msis_expected, abs=5e-2)
    assert found["nd"] == pytest.approx(found["crps"], rel=1e-9)


def test_quantiles_of_an_ensemble_are_those_of_its_paths():
    x = np.random.default_rng(0).normal(size=(101, 3, 2))
    np.testing.assert_array_equal(Ensemble(x).quantile(0.1), np.sort(x, 0)[10])
