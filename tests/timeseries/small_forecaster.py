"""A small model with random weights, and series for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from domains.timeseries.adapter import TimeSeries
from domains.timeseries.forecaster import Forecaster
from domains.timeseries.series import Series
from domains.timeseries.task import ForecastTask
from sciflow.model import Model


def make_series(name: str, n: int, scale: float = 1.0, seed: int = 0, channels: int = 1) -> Series:
    rng = np.random.default_rng(seed)
    t = np.arange(n)[:, None]
    y = np.sin(2 * np.pi * (t + seed) / 24) + 0.2 * rng.standard_normal((n, channels))
    names = ("y",) if channels == 1 else tuple(f"y{i}" for i in range(channels))
    return Series(name, pd.Timestamp("2024-01-01"), "h", 10 + scale * y, names)


def small_forecaster(channels: int = 1, context: int = 96, horizon: int = 24,
                     series: list[Series] | None = None, known_future: bool = True,
                     **config: Any) -> Forecaster:  # fmt: skip
    """Random weights everywhere, so that nothing is promised by an untrained zero."""
    domain = TimeSeries()
    series = series or [make_series("a", 400, channels=channels)]
    task = ForecastTask("test", series, [], horizon, context, 24, known_future=known_future)
    configuration, data, _ = domain.prepare(task, "patches", [])
    configuration["network"] |= {"dim": 16, "depth": 1, "heads": 2}
    configuration |= config
    torch.manual_seed(0)
    denoiser = domain.denoiser(configuration)
    with torch.no_grad():
        for p in denoiser.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return Forecaster(Model(domain, denoiser, configuration, domain.reference(data), name="small"))
