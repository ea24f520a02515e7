"""A forecast that somebody else made, read from a file: of this project, Nixtla, gluonts, Chronos.

Which files are understood says :func:`domains.timeseries.samples.read_forecasts`. The rows that
follow a history are its forecast, so one file may hold several origins. Of a series of several
channels a table names ``series/channel``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from domains.timeseries.baselines.base import Array, Ensemble
from domains.timeseries.series import Series
from sciflow.errors import InputError

__all__ = ["TableForecaster"]


class TableForecaster:
    """Forecasts read from a file.

    Args:
        path: CSV, parquet or npz of sample paths or quantiles.

    Raises:
        InputError: not such a file, with the line.
    """

    def __init__(self, path: str | Path):
        from domains.timeseries.samples import read_forecasts

        self.path = Path(path)
        self.paths: dict[str, tuple[pd.DatetimeIndex, Array]] = {}
        for f in read_forecasts(self.path):
            several = len(f.channels) > 1
            for c, channel in enumerate(f.channels):
                name = f"{f.series_name}/{channel}" if several else f.series_name
                self.paths[name] = (f.index, f.samples[..., c])

    def fit(self, series: Sequence[Series], horizon: int) -> TableForecaster:
        return self

    def predict(
        self, histories: Sequence[Series], horizon: int, samples: int = 100, seed: int = 0
    ) -> list[Ensemble]:
        """The paths of the file that follow each history, all of them whatever ``samples`` says.

        Raises:
            InputError: a series or time is not in the file.
        """
        result = []
        for history in histories:
            several = len(history.channels) > 1
            names = [f"{history.name}/{c}" if several else history.name for c in history.channels]
            times = history.future(horizon)
            result.append(Ensemble(np.stack([self._one(n, times) for n in names], -1)))
        return result

    def _one(self, name: str, times: pd.DatetimeIndex) -> Array:
        """``[S, H]``."""
        if name not in self.paths:
            known = ", ".join(list(self.paths)[:5])
            raise InputError(f"no forecast of series {name!r}; there are {known}", self.path)
        index, paths = self.paths[name]
        place = index.get_indexer(times)
        if (place < 0).any():
            at = times[int((place < 0).argmax())]
            raise InputError(
                f"series {name!r} has no row for {at}; the {len(times)} steps from {times[0]} to "
                f"{times[-1]} are asked for",
                self.path,
            )
        return paths[:, place]
