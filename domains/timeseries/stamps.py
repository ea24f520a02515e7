"""Time stamps as tables write them: ISO 8601, day or month first, quarters, weeks, Unix seconds.

One table has one way to write them, and a stamp written otherwise is an error, for a date misread
is worse than one not read. Where both day first and month first would do, neither is assumed.

Stamps with a zone or an offset from UTC are instants: they are converted to UTC, where the hours of
a change to daylight saving are as long as any other. Except where all of them are at one time of
the local day: those are dates, which follow the local calendar, and the zone is dropped. Stamps
without a zone are taken as they are; then a night of 25 hours has an hour twice, which is an error,
and one of 23 a gap.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

__all__ = ["StampError", "Stamps", "parse_stamps", "write_stamps"]

_DATES = ("%d/%m/%Y", "%m/%d/%Y", "%Y/%m/%d", "%d.%m.%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y.%m.%d",
          "%d/%m/%y", "%m/%d/%y", "%d.%m.%y", "%d %b %Y", "%d-%b-%Y", "%d-%b-%y", "%d %B %Y",
          "%b %d, %Y", "%B %d, %Y", "%b %Y", "%B %Y", "%b-%Y", "%b-%y", "%m/%Y",
          "%m.%Y")  # fmt: skip
_TIMES = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p", " %H",
          "T%H:%M:%S")  # fmt: skip
_DIGITS = {4: "%Y", 6: "%Y%m", 8: "%Y%m%d", 10: "%Y%m%d%H", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
_OFFSET = re.compile(r"(?<=\d)\s*(?:[zZ]|UTC|[+-]\d\d(?::?\d\d)?)$")
_ISO = re.compile(r"\d{4}-\d")


class StampError(ValueError):
    """A cell that is no time stamp; ``row`` counts from 0."""

    def __init__(self, row: int, reason: str):
        self.row, self.reason = row, reason
        super().__init__(reason)


@dataclass(frozen=True)
class Stamps:
    """Instants or local times, and how they were written.

    Attributes:
        index: without a zone, or in UTC.
        style: a ``strftime`` format, ``"iso"``, ``"quarter"``, ``"week"``, ``"s"`` or ``"ms"``.
        note: what was done that a user should know, or empty.
    """

    index: pd.DatetimeIndex
    style: str = "iso"
    note: str = ""


def parse_stamps(cells: Any, time_format: str | None = None) -> Stamps:
    """Read a column of time stamps.

    Args:
        cells: text, numbers, dates, or anything that pandas holds as times.
        time_format: ``strftime`` format, where it cannot be told from the cells.

    Raises:
        StampError: the first cell that cannot be read, and why.
    """
    if isinstance(cells, list) and all(isinstance(c, str) for c in cells):
        return _of_text([c.strip() for c in cells], time_format)
    column = pd.Series(cells, copy=False).reset_index(drop=True)
    if isinstance(column.dtype, pd.PeriodDtype):
        column = column.dt.to_timestamp()
    if not pd.api.types.is_datetime64_any_dtype(column.dtype) and len(column):
        if pd.api.types.is_float_dtype(column.dtype) and (column.dropna() % 1 == 0).all():
            column = column.astype("Int64")
        absent = column.isna()
        if not absent.all() and not isinstance(column[int((~absent).argmax())], str):
            first = column[int((~absent).argmax())]
            if isinstance(first, datetime | pd.Period) or hasattr(first, "isoformat"):
                column = pd.Series(pd.to_datetime([str(v) for v in column], format="ISO8601"))
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        _all_there(column.isna())
        return _placed(pd.DatetimeIndex(column), pd.DatetimeIndex(column).tz_localize(None))
    absent = column.isna()
    text = ["" if gone else str(v).strip() for v, gone in zip(column, absent, strict=True)]
    return _of_text(text, time_format)


def _of_text(text: list[str], time_format: str | None) -> Stamps:
    if "" in text:
        raise StampError(text.index(""), "no time stamp")
    codes, found = pd.factorize(np.asarray(text, dtype=object))
    unique = [str(v) for v in found]
    rows = np.unique(codes, return_index=True)[1]
    try:
        stamps = _read(unique, time_format)
    except StampError as error:
        raise StampError(int(rows[error.row]), error.reason) from None
    return Stamps(stamps.index[codes], stamps.style, stamps.note)


def write_stamps(index: pd.DatetimeIndex, style: str = "iso") -> list[str]:
    """Stamps as text, the way they were read.

    ISO dates have no time where all are midnight, and those in UTC end in ``+00:00``.
    """
    if style == "quarter":
        return [f"{t.year}Q{t.quarter}" for t in index]
    if style == "week":
        return [t.strftime("%G-W%V") for t in index]
    if style in ("s", "ms"):
        return [str(t) for t in index.as_unit(style).asi8]
    if style != "iso":
        return [t.strftime(style) for t in index]
    if index.tz is None and (index == index.normalize()).all():
        return [t.strftime("%Y-%m-%d") for t in index]
    return [t.isoformat(sep=" ") for t in index]


def _all_there(absent: pd.Series) -> None:
    if absent.any():
        raise StampError(int(absent.argmax()), "no time stamp")


def _read(cells: Sequence[str], time_format: str | None) -> Stamps:
    if time_format is not None:
        return Stamps(_strictly(cells, time_format, f"the format {time_format!r}"), time_format)
    if all(c.isdigit() for c in cells):
        return _numbers(cells)
    if all(re.fullmatch(r"\d{4}[- ]?[qQ][1-4]", c) for c in cells):
        periods = pd.PeriodIndex([re.sub("[- ]", "", c).upper() for c in cells], freq="Q")
        return Stamps(periods.to_timestamp(), "quarter")
    if all(re.fullmatch(r"\d{4}-?W\d\d", c) for c in cells):
        days = [f"{c.replace('-', '')}-1" for c in cells]
        return Stamps(_strictly(days, "%GW%V-%u", "ISO weeks such as 2024-W05"), "week")
    if _ISO.match(cells[0]):
        return _iso(cells)
    return _formatted(cells)


def _numbers(cells: Sequence[str]) -> Stamps:
    sizes = {len(c) for c in cells}
    if len(sizes) == 1 and (form := _DIGITS.get(size := sizes.pop())):
        index = _attempt(cells, form)
        if not index.isna().any():
            return Stamps(index, form)
        if size == 10:
            return _unix(cells, "s")
    elif sizes == set() and len(cells[0]) == 13:
        return _unix(cells, "ms")
    raise StampError(0, f"{cells[0]!r} is a number, not a date; write dates, e.g. 2024-01-31 13:00")


def _unix(cells: Sequence[str], unit: str) -> Stamps:
    index = pd.to_datetime([int(c) for c in cells], unit=unit, utc=True)
    what = "seconds" if unit == "s" else "milliseconds"
    return Stamps(index, unit, f"time stamps read as Unix {what}, in UTC")


def _iso(cells: Sequence[str]) -> Stamps:
    zoned = np.array([bool(_OFFSET.search(c)) and ":" in c for c in cells])
    if not zoned.any():
        return Stamps(_strictly(cells, "ISO8601", "ISO 8601, as the first is"))
    if not zoned.all():
        row = int(np.argmax(zoned != zoned[0]))
        has = "has an offset from UTC" if zoned[row] else "has no offset from UTC"
        raise StampError(row, f"{cells[row]!r} {has}, unlike {cells[0]!r}; write all alike")
    what = "ISO 8601 with offset from UTC"
    instants = _strictly([re.sub(r"\s*UTC$", "Z", c) for c in cells], "ISO8601", what, utc=True)
    return _placed(instants, _strictly([_OFFSET.sub("", c) for c in cells], "ISO8601", what))


def _placed(instants: pd.DatetimeIndex, wall: pd.DatetimeIndex) -> Stamps:
    """Instants in UTC, unless their clocks all show one time of the day: then dates."""
    if instants.tz is None:
        return Stamps(instants)
    if (wall - wall.normalize() == wall[0] - wall[0].normalize()).all() and len(wall.unique()) > 1:
        return Stamps(wall, note="time stamps are at one time of the local day; zones dropped")
    note = "" if (instants.tz_convert("UTC").tz_localize(None) == wall).all() else (
        "time stamps converted to UTC")  # fmt: skip
    return Stamps(instants.tz_convert("UTC"), note=note)


def _formatted(cells: Sequence[str]) -> Stamps:
    """The one format that reads every cell."""
    looked_at = cells[:3]
    forms = [d + t for d, t in product(_DATES, _TIMES) if any(_fits(c, d + t) for c in looked_at)]
    read = [(form, _attempt(cells, form)) for form in forms]
    good = [(form, index) for form, index in read if not index.isna().any()]
    if len(good) == 1 or (good and all((index == good[0][1]).all() for _, index in good)):
        form, index = good[0]
        return Stamps(index, form, f"time stamps read as {form}")
    if good:
        raise StampError(0, f"{cells[0]!r} may have the day or the month first "
                         f"({good[0][0]} or {good[1][0]}), and so may every stamp; write ISO dates "
                         "(2024-01-31), or say --time-format")  # fmt: skip
    if not read:
        raise StampError(0, f"{cells[0]!r} is no time stamp; write ISO dates, e.g. 2024-01-31 "
                         "13:00, or say --time-format")  # fmt: skip
    form, index = min(read, key=lambda x: int(x[1].isna().sum()))
    row = int(np.argmax(index.isna()))
    other = next(c for c, absent in zip(cells, index.isna(), strict=True) if not absent)
    raise StampError(row, f"{cells[row]!r} is not written as {other!r} is ({form}); write all time "
                     "stamps alike")  # fmt: skip


def _fits(cell: str, form: str) -> bool:
    try:
        datetime.strptime(cell, form)
    except ValueError:
        return False
    return True


def _attempt(cells: Sequence[str], form: str, **options: Any) -> pd.DatetimeIndex:
    read: Callable[..., Any] = pd.to_datetime
    return pd.DatetimeIndex(read(list(cells), format=form, errors="coerce", **options))


def _strictly(cells: Sequence[str], form: str, what: str, **options: Any) -> pd.DatetimeIndex:
    index = _attempt(cells, form, **options)
    if index.isna().any():
        row = int(np.argmax(index.isna()))
        raise StampError(row, f"{cells[row]!r} is no time stamp in {what}; write all alike, e.g. "
                         "2024-01-31 13:00")  # fmt: skip
    return index
