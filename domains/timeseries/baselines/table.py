"""A forecast that somebody else made, as a CSV of sample paths or of quantiles.

Rows are (series, time), ``unique_id, ds``; beside them stand either paths (``sample_0``,
``sample_1``, …) or quantiles, named by their level (``0.1``, ``q0.1``) as gluonts, Chronos and this
project write them. Other columns are ignored. Several channels take the names ``series/channel``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from domains.timeseries.baselines.base import BaseForecast, Ensemble, QuantileTable
from domains.timeseries.series import Series
from sciflow.errors import InputError

__all__ = ["TableForecaster"]

_SAMPLE = re.compile(r"sample[_-]?(\d+)")
_QUANTILE = re.compile(r"q?(0?\.\d+)")


class TableForecaster:
    """Forecasts read from a file.

    Args:
        path: of the CSV.

    Raises:
        InputError: no such file, missing columns, or a cell that is not a number, with its line.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            table = pd.read_csv(self.path, dtype={"unique_id": str}, encoding="utf-8")
        except (OSError, ValueError, pd.errors.ParserError) as error:
            raise InputError(f"cannot be read as CSV ({error})", self.path) from error
        lacking = [c for c in ("unique_id", "ds") if c not in table.columns]
        if lacking:
            raise InputError(
                f"no column {lacking[0]!r}; a base forecast has unique_id, ds and sample_0, "
                "sample_1, … or quantiles 0.1, 0.5, …",
                self.path,
                1,
            )
        self.quantiles: tuple[float, ...] = ()
        columns = [c for c in table.columns if _SAMPLE.fullmatch(c)]
        if not columns:
            found = {c: float(m[1]) for c in table.columns if (m := _QUANTILE.fullmatch(c))}
            columns = sorted(found, key=found.__getitem__)
            self.quantiles = tuple(found[c] for c in columns)
        if len(columns) < 1 + bool(self.quantiles):
            raise InputError(
                "neither sample_0, sample_1, … nor two or more quantiles (0.1, 0.5, 0.9) among "
                f"its columns {', '.join(table.columns)}",
                self.path,
                1,
            )
        numbers = table[columns].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
        broken = ~np.isfinite(numbers).all(1)
        if broken.any():
            raise InputError("a value is not a finite number", self.path,
                             int(broken.argmax()) + 2)  # fmt: skip
        try:
            when = pd.to_datetime(table["ds"])
        except ValueError as error:
            raise InputError(f"ds cannot be read as time stamps ({error})", self.path) from error
        keys = pd.MultiIndex.from_arrays([table["unique_id"], when])
        if keys.has_duplicates:
            row = int(keys.duplicated().argmax())
            raise InputError(
                f"series {keys[row][0]!r} has {keys[row][1]} twice", self.path, row + 2
            )
        self.rows = pd.DataFrame(numbers, index=keys)

    def fit(self, series: Sequence[Series], horizon: int) -> TableForecaster:
        return self

    def predict(
        self, histories: Sequence[Series], horizon: int, samples: int = 100, seed: int = 0
    ) -> list[BaseForecast]:
        """The rows that follow each history.

        Raises:
            InputError: a series or time is not in the file.
        """
        result: list[BaseForecast] = []
        for history in histories:
            many = len(history.channels) > 1
            names = [f"{history.name}/{c}" if many else history.name for c in history.channels]
            values = np.stack([self._rows(n, history.future(horizon)) for n in names], -1)
            if self.quantiles:
                levels = self.quantiles
                result.append(QuantileTable(levels, np.sort(values.swapaxes(0, 1), 0), samples))
            else:
                result.append(Ensemble(values.swapaxes(0, 1)))
        return result

    def _rows(self, name: str, times: pd.DatetimeIndex) -> np.ndarray:
        """``[H, K]``."""
        wanted = pd.MultiIndex.from_product([[name], times])
        place = self.rows.index.get_indexer(wanted)
        if (place < 0).any():
            at = times[int((place < 0).argmax())]
            raise InputError(f"series {name!r} has no row for {at}; the {len(times)} steps from "
                             f"{times[0]} to {times[-1]} are asked for", self.path)  # fmt: skip
        return self.rows.to_numpy()[place]
