"""Tables of series in: CSV, parquet, DataFrames and JSON lines become :class:`Series` on a grid.

What is done to a table is written in its :class:`TableReport`: rows are sorted by time; steps of
the grid without a row become NaN, which is how this domain writes "not observed"; a series of which
nothing was observed is left out; rows at the end that have covariates and no target are the known
future. Everything else that is wrong stops with the line and the reason: time stamps twice or off
the grid, text among the numbers, infinite numbers. No number is changed: values are float64 as
written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from domains.timeseries.cells import Cells, open_table
from domains.timeseries.frequency import grid_positions
from domains.timeseries.future import add_future
from domains.timeseries.grouped import GroupedRows
from domains.timeseries.jsonlines import read_json_lines
from domains.timeseries.layout import Layout, guess_layout
from domains.timeseries.series import Series

__all__ = ["Table", "TableReport", "read_table"]

_LARGEST = 1_000_000
"""Steps of a grid of which few have a row: more is a step misjudged, not gaps."""


@dataclass
class TableReport:
    """What a table was taken for, and what was done to it.

    Attributes:
        layout: ``"long"``, ``"single"``, ``"wide"``, ``"json lines"`` or ``"series"``.
        freq: pandas' name of the step.
        inferred: whether the step was inferred.
        series: how many.
        rows: of the table.
        columns: the role of each.
        gaps: steps without a row by series, now NaN; only series that have some.
        missing: values NaN in total, gaps included.
        dropped: what was left out, and why.
        notes: what else was guessed or done.
    """

    layout: str
    freq: str = ""
    inferred: bool = True
    series: int = 0
    rows: int = 0
    columns: dict[str, Any] = field(default_factory=dict)
    gaps: dict[str, int] = field(default_factory=dict)
    missing: int = 0
    dropped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        how = "inferred" if self.inferred else "given"
        roles = "; ".join(
            f"{role} {v if isinstance(v, str) else ', '.join(v[:6]) + ('…' if len(v) > 6 else '')}"
            for role, v in self.columns.items() if v)  # fmt: skip
        lines = [f"{self.layout} table, {self.rows} rows, {self.series} series, step {self.freq} "
                 f"({how}){': ' + roles if roles else ''}"]  # fmt: skip
        if self.gaps:
            name, most = max(self.gaps.items(), key=lambda x: x[1])
            lines.append(f"{sum(self.gaps.values())} steps without a row in {len(self.gaps)} "
                         f"series, now missing (most: {most} in {name})")  # fmt: skip
        return "\n".join([*lines, *(f"left out: {d}" for d in self.dropped[:10]), *self.notes])


@dataclass(frozen=True)
class Table:
    """Series and where they came from.

    Attributes:
        series: in the order of the table.
        report: what was done.
        cells: the table as written; ``None`` where there was none.
        layout: roles of its columns.
        rows: of each series, the row of the table (from 0) of each step, -1 where it has none.
        exact: whether values are those of the rows, rather than means of several.
        style: how time stamps were written.
    """

    series: list[Series]
    report: TableReport
    cells: Cells | None = None
    layout: Layout | None = None
    rows: list[NDArray[np.int64]] = field(default_factory=list)
    style: str = "iso"
    exact: bool = True


def read_table(
    source: str | Path | pd.DataFrame | Sequence[Series],
    *,
    id_column: str | None = None,
    time_column: str | None = None,
    target_columns: Sequence[str] | None = None,
    covariates: Sequence[str] | None = None,
    freq: str | None = None,
    multivariate: bool = False,
    duplicates: Literal["error", "mean", "last"] = "error",
    resample: str | None = None,
    time_format: str | None = None,
    future: str | Path | pd.DataFrame | None = None,
    trailing: Literal["future", "missing"] = "future",
) -> Table:
    """Read a table of series.

    Args:
        source: CSV (also .gz), parquet or JSON lines (``start``, ``target``, ...) by its content, a
            DataFrame, or series, which are passed on.
        id_column: names of series; guessed, as are the next three.
        time_column: time stamps.
        target_columns: what to forecast; several are series each, or channels.
        covariates: what to forecast from; default all other columns of numbers, ``()`` none.
        freq: the step; inferred from the stamps by default, and checked against them.
        multivariate: several targets are the channels of one series.
        duplicates: what becomes of stamps that a series has twice.
        resample: a step, to the means of which irregular stamps are first reduced.
        time_format: ``strftime`` format of the stamps.
        future: a table of covariates behind the end of the series.
        trailing: rows at the end of a series with covariates and no target are the known
            ``future``, or values that are ``missing``.

    Raises:
        InputError: with file, line and reason.
    """
    if isinstance(source, Sequence) and not isinstance(source, str):
        series = [s for s in source if isinstance(s, Series)]
        return Table(series, TableReport("series", series=len(series)))
    cells = open_table(source)
    if isinstance(cells, list):
        series, notes = read_json_lines(cells, Path(str(source)), freq, multivariate)
        missing = sum(int((~s.observed).sum()) for s in series)
        report = TableReport("json lines", series[0].freq, False, len(series), len(series),
                             missing=missing, notes=notes)  # fmt: skip
        return Table(series, report)
    layout = guess_layout(cells, id_column, time_column, target_columns, covariates, time_format)
    if multivariate and layout.kind == "wide":
        layout = replace(layout, kind="single")
    report = TableReport(layout.kind, rows=len(cells), notes=list(cells.notes))
    report.columns = {"names in": layout.id or "", "time in": layout.time,
                      "targets": layout.targets, "covariates": layout.covariates,
                      "not used": layout.ignored}  # fmt: skip
    if cells.blank:
        report.dropped.append(f"{len(cells.blank)} blank lines (first: {cells.blank[0]})")
    grouped = GroupedRows(cells, layout, report.notes, time_format, resample)
    rows, merged = grouped.without_repetitions(duplicates)
    step = grouped.frequency(rows, freq or resample)
    report.freq, report.inferred = step, (freq or resample) is None
    result = Table([], report, cells, layout, style=grouped.style, exact=not (merged or resample))
    _fill(result, grouped, rows, merged, multivariate, trailing)
    if future is not None:
        result.series[:] = add_future(result.series, future, layout, time_format)
    return result


def _fill(
    table: Table,
    groups: GroupedRows,
    all_rows: list[NDArray[np.int64]],
    merged: Mapping[int, NDArray[np.int64]],
    multivariate: bool,
    trailing: str,
) -> None:
    """Put the rows on the grid of their series."""
    cells, layout, report = table.cells, table.layout, table.report
    assert cells is not None and layout is not None
    targets = np.stack([_means(cells.numbers(n), merged) for n in layout.targets], 1)
    known = [_means(cells.numbers(n), merged) for n in layout.covariates]
    covariates = np.stack(known, 1) if known else np.zeros((len(cells), 0))
    default = cells.path.name.split(".")[0] if cells.path else "series"
    apart = len(layout.targets) > 1 and not multivariate
    for name, rows in zip(groups.names, all_rows, strict=True):
        stamps = groups.index[rows]
        places = grid_positions(stamps, report.freq)
        length = int(places[-1]) + 1
        if length > _LARGEST and length > 50 * len(rows):
            raise cells.error(
                f"from {stamps[0]} to {stamps[-1]} are {length} steps of {report.freq}, and only "
                f"{len(rows)} rows; give the frequency (--freq)")  # fmt: skip
        at = np.full(length, -1, np.int64)
        at[places] = rows
        values, extra = _on_grid(targets, at), _on_grid(covariates, at)
        shown = np.isfinite(values).any(1)
        end = length
        if layout.covariates and trailing == "future" and shown.any():
            end = int(np.flatnonzero(shown)[-1]) + 1
        label = name or default
        if gaps := int((at[:end] < 0).sum()):
            report.gaps[label] = gaps
        parts = [(label, layout.targets, slice(None))]
        if apart:
            parts = [(f"{name}/{t}" if name else t, (t,), slice(i, i + 1))
                     for i, t in enumerate(layout.targets)]  # fmt: skip
        kept = at[:end]
        for title, channels, columns in parts:
            series = Series(title, stamps[0], report.freq, values[:end, columns], channels,
                            extra if layout.covariates else None, layout.covariates)  # fmt: skip
            if not series.observed.any():
                report.dropped.append(f"series {title!r}: nothing was observed")
                continue
            report.missing += int((~series.observed).sum())
            table.series.append(series)
            table.rows.append(kept)
    if not table.series:
        are = "is" if len(layout.targets) == 1 else "are"
        raise cells.error(
            f"no value was observed: {', '.join(layout.targets[:5])} {are} empty in every row"
        )
    report.series = len(table.series)
    if trailing == "future" and not layout.covariates:
        blank = sum(not s.observed[-1].any() for s in table.series)
        if blank:
            report.notes.append(f"{blank} series end with missing values, which count as history; "
                                "leave out rows that are the future")  # fmt: skip


def _means(values: NDArray[np.float64], merged: Mapping[int, NDArray[np.int64]]) -> NDArray[Any]:
    if merged:
        values = values.copy()
        for row, rows in merged.items():
            seen = values[rows][np.isfinite(values[rows])]
            values[row] = seen.mean() if len(seen) else np.nan
    return values


def _on_grid(values: NDArray[np.float64], at: NDArray[np.int64]) -> NDArray[np.float64]:
    result = values[at]
    result[at < 0] = np.nan
    return result
