"""Tasks that are not one benchmark: a user's own table, and several hourly sets together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from domains.timeseries.series import Series
from domains.timeseries.task import ForecastTask
from sciflow.errors import InputError
from sciflow.subsets import evenly_spread

__all__ = ["HOURLY", "anchoring_season", "history_length", "hourly", "own_task"]

HOURLY = ("m4_hourly", "beijing_pm25", "gefcom_solar", "epf")
"""ETTh1 is left out: it is what the model that learns from these is tried on."""


def own_task(path: Path) -> ForecastTask:
    """A user's table: two seasons ahead (at least 12 steps), from as much history as windows take.

    Raises:
        InputError: the table cannot be read, or its series are not of one frequency.
    """
    from domains.timeseries.tables import read_table

    series = read_table(path).series
    freqs = sorted({s.freq for s in series})
    if len(freqs) > 1:
        raise InputError(f"series of different steps: {', '.join(freqs)}; train on one", path)
    season = series[0].season
    longest = max(map(len, series))
    horizon = min(max(2 * season if season <= 48 else season // 4, 12), max(longest // 4, 1))
    known = any(s.covariates is not None and len(s.covariates) > len(s) for s in series)
    context = min(max(6 * horizon, 2 * season), max(longest - horizon, 1))
    return ForecastTask(path.stem, series, [], horizon, context, season, known_future=known)


def hourly() -> ForecastTask:
    """The training parts of several hourly sets, two days ahead after a fortnight."""
    from domains.timeseries.datasets import TASKS

    series: list[Series] = []
    for name in HOURLY:
        for s in TASKS[name]().series:
            plain = s.replace(name=f"{name}/{s.name}", covariates=None, covariate_names=())
            series.append(plain.channel(plain.channels[0]))
    return ForecastTask("hourly", series, [], 48, 312, 24)


def anchoring_season(series: Sequence[Series], season: int, horizon: int) -> int:
    """1 or the season: whose naive forecast errs less over ``horizon`` steps ahead, on average.

    Errors are relative to the other's in each series, so that large series do not decide.
    """
    if season == 1:
        return 1
    ahead = 1 + evenly_spread(horizon, 24)
    ratios = []
    for s in series:
        last = np.mean([_naive_error(s.values, k) for k in ahead])
        same = np.mean([_naive_error(s.values, -(-k // season) * season) for k in ahead])
        if np.isfinite(last) and np.isfinite(same) and last + same > 0:
            ratios.append((same - last) / (same + last))
    return season if ratios and np.mean(ratios) < 0 else 1


def _naive_error(values: np.ndarray, lag: int) -> float:
    """Mean |y_t − y_{t−lag}| over the observed pairs; NaN where there is none."""
    if len(values) <= lag:
        return float("nan")
    steps = np.abs(values[lag:] - values[:-lag])
    return float(np.nanmean(steps)) if np.isfinite(steps).any() else float("nan")


def history_length(task: ForecastTask, season: int, patch: int) -> int:
    """The task's context, at least two seasons, in whole patches, and no longer than a series."""
    longest = max(map(len, task.series))
    steps = max(min(max(task.context, 2 * season), longest - task.horizon), patch)
    return steps // patch * patch
