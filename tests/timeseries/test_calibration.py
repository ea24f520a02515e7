"""The spread of forecasts is fitted so that intervals hold what they say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest

from domains.timeseries.calibration import calibrated_spread, fitted_spread, interval_ratios
from domains.timeseries.forecast import Forecast
from domains.timeseries.series import Series
from domains.timeseries.task import ForecastTask, rolling_task
from tests.timeseries.small_forecaster import make_series, small_forecaster


@dataclass
class TooNarrow:
    """Knows the law N(0, 1) of white noise but for its spread; γ scales it, as a flow does."""

    sd: float
    bend: float = 1.0
    context: int = 24

    def forecast(self, series: list[Series], horizon: int, samples: int, prior_scale: float
                 ) -> list[Forecast]:  # fmt: skip
        rng = np.random.default_rng(1)
        return [
            Forecast(s.name, s.channels, s.future(horizon),
                     self.sd * prior_scale**self.bend * rng.standard_normal((samples, horizon, 1)),
                     1, s)
            for s in series
        ]  # fmt: skip


def noise_task(n: int = 30) -> ForecastTask:
    rng = np.random.default_rng(0)
    series = [Series(f"s{i}", pd.Timestamp("2024-01-01"), "h", rng.standard_normal((120, 1)))
              for i in range(n)]  # fmt: skip
    return rolling_task("noise", series, horizon=24, context=24, windows=1)


@pytest.mark.parametrize(("sd", "bend"), [(0.6, 1.0), (1.5, 1.0), (0.7, 0.8), (0.5, 2.5)])
def test_the_fitted_spread_is_the_true_one(sd: float, bend: float) -> None:
    """Also where the answer is not proportional to γ: the step is repeated."""
    gamma = calibrated_spread(TooNarrow(sd, bend), noise_task())  # type: ignore[arg-type]
    # 720 values and 50 paths: four standard errors of the width.
    assert sd * gamma**bend == pytest.approx(1.0, abs=0.15)


def test_ratios_count_what_an_interval_covers() -> None:
    task = noise_task(8)
    histories, truths = ([w[k] for w in task.windows] for k in (0, 1))
    made = TooNarrow(0.8).forecast(histories, 24, 50, 1.0)
    for level in (0.5, 0.8):
        ratios = interval_ratios(made, truths, level)
        inside = [
            (f.quantile((1 - level) / 2) <= t.values) & (t.values <= f.quantile((1 + level) / 2))
            for f, t in zip(made, truths, strict=True)
        ]
        assert np.mean(ratios <= 1) == pytest.approx(np.mean(inside))


def test_a_task_without_held_out_windows_leaves_the_spread_alone() -> None:
    task = rolling_task("noise", noise_task(2).series, horizon=24, context=24, validation=0)
    assert calibrated_spread(TooNarrow(0.5), task) == 1.0  # type: ignore[arg-type]


def test_a_model_is_saved_with_its_spread() -> None:
    """Of the adapter: what forecasts use, not what synthesis does."""
    forecaster = small_forecaster()
    series = [w[0] for w in noise_task(4).windows]
    long = [s.replace(values=np.tile(s.values, (5, 1))) for s in series]
    task = rolling_task("noise", long, horizon=24, context=96)
    fitted = forecaster.model.domain.calibrate(forecaster.model, task)
    assert set(fitted) == {"forecasting", "spread"}
    assert fitted["spread"]["ages"] == [0, 12, 48]
    assert 0.4 <= fitted["forecasting"]["prior_scale"] <= 2.5
    assert fitted["forecasting"]["steps"] == forecaster.model.config["forecasting"]["steps"]


def test_old_values_are_calibrated_by_their_age() -> None:
    """A random walk after a pause: a forecaster that spreads as if there were none is mended."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((200, 120, 1)).cumsum(1)
    walks = [Series(f"s{i}", pd.Timestamp("2024-01-01"), "h", y) for i, y in enumerate(values)]
    task = rolling_task("walks", walks, horizon=1, context=32, windows=1)

    class Walker(TooNarrow):
        def forecast(self, series: list[Series], horizon: int, samples: int, prior_scale: float
                     ) -> list[Forecast]:  # fmt: skip
            last = [s.values[s.observed[:, 0], 0][-1] for s in series]
            made = super().forecast(series, horizon, samples, prior_scale)
            return [
                Forecast(s.name, s.channels, f.index, m + f.samples, 1, s)
                for s, m, f in zip(series, last, made, strict=True)
            ]

    fitted = fitted_spread(Walker(1.0, context=32), task)  # type: ignore[arg-type]
    assert fitted["ages"] == [0, 4, 16]
    # 1 + age steps; 120 windows: 3 standard errors of a spread. The largest γ is 2.5; a third of
    # the way to it.
    gamma, factors = fitted["prior_scale"], fitted["factors"]
    assert gamma == pytest.approx(1.0, abs=0.25) and factors[0] == 1
    assert gamma * factors[1] ** 3 == pytest.approx(5**0.5, abs=0.45)
    assert gamma * factors[2] ** 3 == pytest.approx(2.5, abs=0.02)


def test_the_spread_of_a_row_is_that_of_its_own_age() -> None:
    """Whatever else is in the table; and ``prior_scale`` takes its place."""
    plain = small_forecaster()
    wide = small_forecaster(spread={"ages": [0, 12, 48], "factors": [1.0, 1.4, 2.0]})
    fresh, old = make_series("fresh", 200), make_series("old", 200)
    old = old.hidden(slice(200 - 6, None))
    together = wide.forecast([fresh, old], 24, 20)
    alone = [wide.forecast(s, 24, 20)[0] for s in (fresh, old)]
    for a, b in zip(together, alone, strict=True):
        assert np.allclose(a.samples, b.samples, atol=1e-4)
    assert np.allclose(alone[0].samples, plain.forecast(fresh, 24, 20)[0].samples, atol=1e-5)
    by_hand = plain.forecast(old, 24, 20, prior_scale=1.2)[0].samples
    assert np.allclose(alone[1].samples, by_hand, atol=1e-4)
    assert not np.allclose(by_hand, plain.forecast(old, 24, 20)[0].samples, atol=1e-2)
    told = wide.forecast(old, 24, 20, prior_scale=1.2)[0].samples
    assert np.allclose(told, by_hand, atol=1e-6)
