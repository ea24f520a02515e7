"""Filled tables, written as they came: the same columns, and every observed number as it was.

Behind the columns of the table come, for each target, a flag ``imputed`` and the ends of intervals
where a value was filled in (``A-imputed, A-lo-80, A-hi-80`` if there are several targets). Rows are
in the order of series and time, with a row for each step that had none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from domains.timeseries.cells import Cells
from domains.timeseries.series import Series
from domains.timeseries.stamps import write_stamps
from domains.timeseries.tables import Table
from domains.timeseries.writing import interval_quantiles, write_table

__all__ = ["ImputationLike", "imputed_table", "write_imputed"]


class ImputationLike(Protocol):
    """What is asked of an imputation here."""

    @property
    def series(self) -> Series:
        """With its gaps."""
        ...

    @property
    def samples(self) -> NDArray[np.float64]:
        """``[S, T, C]``, observed values as they were."""
        ...

    def filled(self) -> Series:
        """The series with one value in each gap."""
        ...


def write_imputed(
    table: Table,
    imputations: Sequence[ImputationLike],
    path: str | Path,
    levels: Sequence[float] = (80,),
) -> Path:
    """Write a filled table as CSV, in the separator and decimals it came in, or as parquet.

    Args:
        table: as it was read.
        imputations: of its series, in their order.
        path: ``.csv`` or ``.parquet``.
        levels: of intervals, in percent.
    """
    path = Path(path)
    cells = table.cells
    frame = imputed_table(table, imputations, levels, text=path.suffix != ".parquet")
    if path.suffix == ".parquet" or cells is None:
        return write_table(frame, path)
    from sciflow.files import write_atomically

    content = frame.to_csv(sep=cells.separator or ",", index=False, lineterminator="\n")
    return write_atomically(path, content)


def imputed_table(
    table: Table,
    imputations: Sequence[ImputationLike],
    levels: Sequence[float] = (80,),
    text: bool = False,
) -> pd.DataFrame:
    """The rows of a filled table.

    Args:
        table: as it was read.
        imputations: of its series, in their order.
        levels: of intervals, in percent.
        text: cells as they were written, rather than numbers.
    """
    if table.cells is None or table.layout is None:
        return pd.concat([_plain(i, levels) for i in imputations], ignore_index=True)
    cells, layout = table.cells, table.layout
    blocks: list[pd.DataFrame] = []
    done: set[int] = set()
    for rows, members in _by_rows(table.rows, imputations):
        done.update(rows[rows >= 0].tolist())
        blocks.append(_block(table, rows, members, levels, text))
    # Rows of series of which nothing was observed stay as they are.
    names = {cells.text(layout.id, r) for r in done} if layout.id else set()
    left = [r for r in range(len(cells)) if layout.id and cells.text(layout.id, r) not in names]
    if left:
        blocks.append(pd.DataFrame({n: _column(cells, n, left, text) for n in cells.columns}))
    result = pd.concat(blocks, ignore_index=True)
    flags = [c for c in result.columns if c == "imputed" or c.endswith("-imputed")]
    result[flags] = result[flags].fillna(0).astype(int)
    return result


def _by_rows(rows: Sequence[NDArray[np.int64]], imputations: Sequence[ImputationLike]) -> Any:
    """Imputations that fill the same rows, as the columns of a wide table do."""
    groups: list[tuple[NDArray[np.int64], list[ImputationLike]]] = []
    for at, imputation in zip(rows, imputations, strict=True):
        if groups and groups[-1][0] is at:
            groups[-1][1].append(imputation)
        else:
            groups.append((at, [imputation]))
    return groups


def _block(table: Table, rows: NDArray[np.int64], members: Sequence[ImputationLike],
           levels: Sequence[float], text: bool) -> pd.DataFrame:  # fmt: skip
    cells, layout = table.cells, table.layout
    assert cells is not None and layout is not None
    series = members[0].series
    there = rows >= 0
    known = [int(r) for r in rows]
    block: dict[str, Any] = {n: _column(cells, n, known, text) for n in cells.columns}
    stamps = series.index
    block[layout.time] = write_stamps(stamps, table.style) if text else stamps
    if text and table.exact:
        block[layout.time] = [
            cells.text(layout.time, r) if r >= 0 else t
            for r, t in zip(known, block[layout.time], strict=True)
        ]
    if layout.id:
        name = cells.text(layout.id, int(rows[there][0]))
        block[layout.id] = [name] * len(rows)
    ends = interval_quantiles(levels)
    several = len(layout.targets) > 1
    extra: dict[str, Any] = {}
    for member in members:
        missing = ~member.series.observed
        filled = member.filled().values
        for c, channel in enumerate(member.series.channels):
            gone = missing[:, c]
            values = np.where(gone, filled[:, c], member.series.values[:, c])
            if text:
                block[channel] = [
                    _number(v, cells) if g or not table.exact else cells.text(channel, r)
                    for v, g, r in zip(values, gone, known, strict=True)
                ]
            else:
                block[channel] = values
            mark = f"{channel}-" if several else ""
            extra[f"{mark}imputed"] = gone.astype(int)
            for end, q in ends.items():
                bound = np.full(len(rows), np.nan)
                if gone.any():
                    bound[gone] = np.quantile(member.samples[:, gone, c], q, axis=0)
                extra[mark + end] = [_number(v, cells) for v in bound] if text else bound
    return pd.DataFrame({**block, **extra})


def _column(cells: Cells, name: str, rows: Sequence[int], text: bool) -> list[Any]:
    if text:
        return [cells.text(name, r) if r >= 0 else "" for r in rows]
    column = cells.columns[name]
    return [column[r] if r >= 0 else None for r in rows]


def _number(value: float, cells: Cells) -> str:
    written = "" if value != value else f"{value:.10g}"
    return written.replace(".", ",") if cells.decimal == "," else written


def _plain(imputation: ImputationLike, levels: Sequence[float]) -> pd.DataFrame:
    """A long table of a series that came from no table."""
    s = imputation.series
    gone, c = ~s.observed, len(s.channels)
    values = imputation.filled().values
    columns: dict[str, Any] = {"unique_id": s.name, "ds": s.index.repeat(c)}
    if c > 1:
        columns["channel"] = list(s.channels) * len(s)
    columns |= {"y": values.ravel(), "imputed": gone.ravel().astype(int)}
    for end, q in interval_quantiles(levels).items():
        bound = np.quantile(imputation.samples, q, axis=0)
        columns[end] = np.where(gone, bound, np.nan).ravel()
    return pd.DataFrame(columns, index=range(len(s) * c))
