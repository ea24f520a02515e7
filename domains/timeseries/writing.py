"""Forecasts as tables: one row a (series, step), the mean, the median and the ends of intervals.

Columns are Nixtla's: ``unique_id, ds, mean, median, lo-80, hi-80``. The interval of level p % has
the quantiles (1 ± p/100)/2 of the samples as its ends; quantiles that are asked for by themselves
are columns ``q0.1``. Series of several channels have a column ``channel`` too. Numbers are written
with ten digits, which a value of 10⁹ that varies by ones needs.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from domains.timeseries.parquet import parquet_module
from domains.timeseries.series import Series
from domains.timeseries.stamps import write_stamps
from sciflow.errors import InputError
from sciflow.files import write_atomically, writing

__all__ = ["ForecastLike", "csv_text", "forecast_table", "interval_quantiles", "series_table",
           "write_table"]  # fmt: skip


class ForecastLike(Protocol):
    """What is asked of a forecast here."""

    @property
    def series_name(self) -> str:
        """Of the series."""
        ...

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of its C columns."""
        ...

    @property
    def index(self) -> pd.DatetimeIndex:
        """Time stamps of the H steps."""
        ...

    @property
    def samples(self) -> NDArray[np.float64]:
        """``[S, H, C]``."""
        ...

    def mean(self) -> NDArray[np.float64]:
        """Mean of the samples, ``[H, C]``."""
        ...

    def quantile(self, q: float) -> NDArray[np.float64]:
        """Quantile of the samples, ``[H, C]``."""
        ...


def interval_quantiles(
    levels: Sequence[float], quantiles: Sequence[float] = ()
) -> dict[str, float]:
    """Columns and the quantiles that they hold.

    Args:
        levels: of central intervals, in percent.
        quantiles: asked for by themselves.

    Raises:
        InputError: a level outside 0 … 100 or a quantile outside 0 … 1.
    """
    for level in levels:
        if not 0 < level < 100:
            raise InputError(f"level {level:g}: an interval holds between 0 and 100 %, e.g. 80")
    for q in quantiles:
        if not 0 < q < 1:
            raise InputError(f"quantile {q:g}: give numbers between 0 and 1, e.g. 0.1")
    wide = sorted(set(levels), reverse=True)
    columns = {f"lo-{p:g}": (1 - p / 100) / 2 for p in wide}
    columns |= {f"hi-{p:g}": (1 + p / 100) / 2 for p in reversed(wide)}
    return columns | {f"q{q:g}": q for q in sorted(set(quantiles))}


def forecast_table(
    forecasts: Iterable[ForecastLike], levels: Sequence[float] = (80,),
    quantiles: Sequence[float] = (),
) -> pd.DataFrame:  # fmt: skip
    """One row a (series, step, channel), in the order of the forecasts.

    Args:
        forecasts: of any number of series.
        levels: of central intervals, in percent.
        quantiles: further ones.
    """
    ends = interval_quantiles(levels, quantiles)
    blocks = []
    for f in forecasts:
        h, c = len(f.index), len(f.channels)
        columns: dict[str, Any] = {"unique_id": f.series_name, "ds": f.index.repeat(c)}
        if c > 1:
            columns["channel"] = list(f.channels) * h
        columns |= {"mean": f.mean().ravel(), "median": f.quantile(0.5).ravel()}
        columns |= {name: f.quantile(q).ravel() for name, q in ends.items()}
        blocks.append(pd.DataFrame(columns, index=range(h * c)))
    if not blocks:
        return pd.DataFrame(columns=["unique_id", "ds", "mean", "median", *ends])
    return pd.concat(blocks, ignore_index=True)


def series_table(series: Iterable[Series]) -> pd.DataFrame:
    """Series as a long table: ``unique_id``, ``ds``, a column a channel; NaN where not observed."""
    blocks = [
        pd.DataFrame({"unique_id": s.name, "ds": s.index,
                      **{c: s.values[:, i] for i, c in enumerate(s.channels)}})
        for s in series
    ]  # fmt: skip
    return pd.concat(blocks, ignore_index=True) if blocks else pd.DataFrame()


def csv_text(table: pd.DataFrame, header: bool = True) -> str:
    """A table as CSV; times as ISO 8601, numbers with ten digits, NaN as nothing."""
    columns: Mapping[str, Any] = {str(n): _written(table[n]) for n in table.columns}
    text = io.StringIO()
    pd.DataFrame(columns).to_csv(text, index=False, header=header, lineterminator="\n")
    return text.getvalue()


def write_table(table: pd.DataFrame, path: str | Path) -> Path:
    """Write a table as parquet or CSV, by the ending of ``path``; whole or not at all.

    Raises:
        InputError: parquet without pyarrow.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        parquet_module(path, ".csv")
        with writing(path) as f:
            table.to_parquet(f, index=False)
        return path
    return write_atomically(path, csv_text(table))


def _written(column: pd.Series) -> Any:
    if isinstance(column.dtype, pd.DatetimeTZDtype) or column.dtype.kind == "M":
        return write_stamps(pd.DatetimeIndex(column))
    if column.dtype.kind == "f":
        return ["" if v != v else f"{v:.10g}" for v in column.to_numpy()]
    return column
