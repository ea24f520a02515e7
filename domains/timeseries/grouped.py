"""Rows of a table sorted into series and by time, and the step that their stamps share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from domains.timeseries.cells import Cells
from domains.timeseries.frequency import (
    IrregularError,
    frequency_name,
    infer_frequency,
    resolve_frequency,
)
from domains.timeseries.layout import Layout
from domains.timeseries.stamps import StampError, parse_stamps
from sciflow.errors import InputError

__all__ = ["GroupedRows"]


class GroupedRows:
    """Rows of a table by series, in order of time.

    Args:
        cells: the table.
        layout: roles of its columns.
        notes: what is done is added to it.
        time_format: of the time stamps.
        resample: a step, to the beginnings of which the stamps are moved.

    Attributes:
        index: time stamp of each row.
        style: how they were written.
        names: of the series, in the order of the table.
        rows: of each series.

    Raises:
        InputError: a row without a time stamp or a name.
    """

    def __init__(self, cells: Cells, layout: Layout, notes: list[str],
                 time_format: str | None, resample: str | None):  # fmt: skip
        self.cells, self.notes = cells, notes
        try:
            stamps = parse_stamps(cells.columns[layout.time], time_format)
        except StampError as error:
            raise cells.error(f"{layout.time}: {error.reason}", error.row) from None
        notes += [stamps.note] if stamps.note else []
        self.style = stamps.style
        index = stamps.index
        if resample:
            index = _floored(index, resample)
            notes.append(f"values are means of steps of {resample}")
        self.index, self.resampled = index, bool(resample)
        if layout.id:
            codes, names = pd.factorize(np.array(
                [cells.text(layout.id, r).strip() for r in range(len(cells))], object))  # fmt: skip
            if "" in names:
                row = int(np.argmax(codes == list(names).index("")))
                raise cells.error(f"no name of the series ({layout.id} is empty)", row)
        else:
            codes, names = np.zeros(len(cells), np.int64), np.array([""], object)
        self.names = [str(n) for n in names]
        order = np.lexsort((index.asi8, codes))
        unsorted = int((np.diff(index.asi8)[np.diff(codes) == 0] < 0).sum())
        if unsorted:
            notes.append("rows sorted by time")
        starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
        self.rows = np.split(order, starts[1:])

    def without_repetitions(self, how: str) -> tuple[list[NDArray[np.int64]], dict[int, Any]]:
        """Rows of each series, one a stamp, and all rows of a stamp that has several."""
        result, merged, repeated = [], {}, 0
        for name, rows in zip(self.names, self.rows, strict=True):
            t = self.index.asi8[rows]
            again = np.flatnonzero(np.diff(t) == 0) + 1
            if len(again) and how == "error" and not self.resampled:
                self._refuse(name, rows, again)
            repeated += len(again)
            last = np.append(np.diff(t) != 0, True)
            result.append(rows[last])
            if len(again) and (how == "mean" or self.resampled):
                bounds = np.flatnonzero(np.diff(t, prepend=t[0] - 1))
                for part in np.split(rows, bounds[1:]):
                    if len(part) > 1:
                        merged[int(part[-1])] = part
        if repeated and not self.resampled:
            kept = "their means" if how == "mean" else "the last of each"
            self.notes.append(f"{repeated} rows repeat a time stamp; {kept} kept")
        return result, merged

    def _refuse(self, name: str, rows: NDArray[np.int64], again: NDArray[np.int64]) -> None:
        first, second = rows[again[0] - 1], rows[again[0]]
        unit, lines = self.cells.unit, self.cells.lines
        of = f" of series {name!r}" if name else ""
        hint = ""
        if (
            self.index.tz is None
            and len(again) <= 3
            and (self.index.hour != self.index[0].hour).any()
        ):
            hint = ("; if an hour stands twice where daylight saving ends, write times with their "
                    "offset from UTC")  # fmt: skip
        raise self.cells.error(
            f"time stamp {self.index[second]}{of} is also on {unit} {lines[first]}"
            + (f" ({len(again)} such {unit}s)" if len(again) > 1 else "")
            + f"; say --duplicates mean or last{hint}", int(second))  # fmt: skip

    def frequency(self, rows: list[NDArray[np.int64]], given: str | None) -> str:
        """The step of the stamps, inferred or checked; errors name the line."""
        groups = [self.index[r] for r in rows]
        try:
            return infer_frequency(groups) if given is None else resolve_frequency(given, groups)
        except IrregularError as error:
            name = self.names[error.group]
            raise self.cells.error((f"series {name!r}: " if name else "") + error.reason,
                                   int(rows[error.group][error.row])) from None  # fmt: skip
        except InputError as error:
            raise self.cells.error(error.reason) from None


def _floored(index: pd.DatetimeIndex, step: str) -> pd.DatetimeIndex:
    """The beginning of the step in which each stamp lies."""
    name = frequency_name(step)
    try:
        return index.floor(name)
    except ValueError:
        zone = index.tz
        period = {"MS": "M", "ME": "M", "QS-JAN": "Q", "QE-DEC": "Q", "YS-JAN": "Y", "YE-DEC": "Y"}
        if name not in period and not name.startswith("W-"):
            raise InputError(f"cannot resample to {step!r}; give e.g. 15min, h, D, W, M") from None
        periods = index.tz_localize(None).to_period(period.get(name, name))
        return periods.to_timestamp().tz_localize(zone)
