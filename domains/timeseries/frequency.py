"""Steps of time: their names, the season that goes with them, and how one is inferred.

Names are pandas' (``h``, ``D``, ``B``, ``W-SUN``, ``MS``, ``15min``); those of older pandas
(``H``, ``T``, ``M``) are translated. The season is the field's convention (gluonts, M4): 24 hours,
5 business days, 12 months, 4 quarters; days and weeks have none (1). It scales MASE and is the
period of the seasonal naive forecast.

The step of stamps with gaps is the one that most successive stamps are apart, provided that all
stamps lie on its grid. Days without a weekend are business days; the first or last (business) days
of months are months, quarters or years; seven days are weeks. Nothing is rounded onto a grid: a
stamp beside it is an error that names the row and the nearest place on the grid.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sciflow.errors import InputError

__all__ = ["IrregularError", "frequency_name", "grid_positions", "infer_frequency",
           "resolve_frequency", "season_of"]  # fmt: skip

_SEASONS = {"s": 3600, "min": 1440, "h": 24, "D": 1, "B": 5, "W": 1, "MS": 12, "ME": 12, "BMS": 12,
            "BME": 12, "QS": 4, "QE": 4, "BQS": 4, "BQE": 4, "YS": 1, "YE": 1}  # fmt: skip
"""gluonts.time_feature.get_seasonality, for one step of each unit."""

_OLD = {"H": "h", "T": "min", "S": "s", "L": "ms", "U": "us", "d": "D", "b": "B", "w": "W",
        "BM": "BME", "BQ": "BQE", "BA": "BYE", "BY": "BYE", "SM": "SME", "AS": "YS",
        "BAS": "BYS"}  # fmt: skip
"""Names that pandas gave up in version 2.2, and what they are called since."""

_OPEN = {"W": 1, "M": 1, "Q": 3, "A": 12, "Y": 12, "QS": 3, "YS": 12, "QE": 3, "YE": 12}
"""Units that leave open on which day or in which month their steps begin, and how long they are."""

_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_DAYS = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")
_DAY = 86_400_000_000
_UNITS = ((3_600_000_000, "h"), (60_000_000, "min"), (1_000_000, "s"), (1000, "ms"), (1, "us"))


class IrregularError(InputError):
    """Stamps that do not lie on a grid.

    Attributes:
        group: which of the given groups of stamps.
        row: the first stamp of it beside the grid.
    """

    def __init__(self, reason: str, group: int = 0, row: int = 0):
        self.group, self.row = group, row
        super().__init__(reason)


def season_of(freq: str) -> int:
    """Steps of a season: that of the unit divided by the steps' length, 1 if it does not divide.

    Raises:
        InputError: pandas does not know this step.
    """
    offset = _offset(frequency_name(freq))
    unit = re.sub(r"^\d+", "", offset.freqstr).split("-")[0]
    season, rest = divmod(_SEASONS.get(unit, 1), offset.n)
    return season if season > 0 and rest == 0 else 1


def frequency_name(freq: str) -> str:
    """pandas' present name of a step: ``H`` is ``h``, ``60T`` is ``h``, ``24h`` is ``D``.

    Raises:
        InputError: there is no such step.
    """
    found = re.fullmatch(r"(\d*)([A-Za-z]+)(-[A-Za-z0-9]+)?", freq.strip())
    n, unit, anchor = found.groups(default="") if found else ("", freq, "")
    if unit in ("M", "Q", "A", "Y"):
        unit = {"M": "ME", "Q": "QE"}.get(unit, "YE")
    offset = _offset(f"{n}{_OLD.get(unit, unit)}{anchor.upper()}")
    length = _length(offset)
    return offset.freqstr if length is None else _length_name(length)


def infer_frequency(groups: Sequence[pd.DatetimeIndex]) -> str:
    """The step that the stamps of all groups share.

    Args:
        groups: stamps of each series, ascending, none twice, with gaps or not.

    Raises:
        IrregularError: they do not lie on a grid.
        InputError: no group has two stamps.
    """
    times = [_microseconds(g) for g in groups]
    gaps = np.concatenate([np.diff(t) for t in times]) if times else np.zeros(0, np.int64)
    if not len(gaps):
        raise InputError("one row does not tell the step of time; give the frequency, e.g. h or D")
    if not (gaps % _DAY).any():
        calendar = _calendar(groups, gaps // _DAY)
        if calendar is not None:
            return calendar
    step = _commonest(gaps)
    for i, t in enumerate(times):
        phases = t % step
        if len(t) and (phases != phases[0]).any():
            raise _beside(groups[i], i, step, gaps)
    return _length_name(step)


def resolve_frequency(given: str, groups: Sequence[pd.DatetimeIndex]) -> str:
    """The step that a user named, once it is known to be that of the stamps.

    ``W``, ``M``, ``Q`` and ``Y`` take their day (first or last of the month, day of the week) from
    the stamps.

    Raises:
        IrregularError: a stamp is beside the grid of this step.
        InputError: there is no such step, or no two successive stamps are one step apart.
    """
    freq = _closed(given, groups)
    longest = 0
    for i, stamps in enumerate(groups):
        places = grid_positions(stamps, freq)
        if (places < 0).any():
            row = int(np.argmax(places < 0))
            raise IrregularError(_wrong(given, freq, stamps, row, groups), i, row)
        longest = max(longest, len(stamps))
        if (np.diff(places) == 1).any():
            return freq
    if longest > 2:
        raise InputError(
            f"the frequency {given!r} is too fine: no two successive stamps are one such step "
            f"apart{_said(groups)}"
        )
    return freq


def grid_positions(stamps: pd.DatetimeIndex, freq: str) -> NDArray[np.int64]:
    """Steps of ``freq`` from the first stamp to each, -1 for a stamp beside the grid, ``[T]``."""
    if not len(stamps):
        return np.zeros(0, np.int64)
    offset = _offset(freq)
    length = _length(offset)
    if length is not None:
        t = _microseconds(stamps)
        places, rest = np.divmod(t - t[0], length)
        return np.where(rest == 0, places, -1)
    # From the grid at or before the first stamp, so that one beside it is seen.
    grid = pd.date_range(offset.rollback(stamps[0]), stamps[-1], freq=offset)
    return np.asarray(grid.get_indexer(stamps), np.int64)


def _offset(name: str) -> pd.DateOffset:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            offset: Any = pd.tseries.frequencies.to_offset(name)
    except ValueError as error:
        raise InputError(
            f"unknown frequency {name!r}; use pandas' names, e.g. h, D, B, W-SUN, MS, 15min"
        ) from error
    if offset is None or offset.n < 1:
        raise InputError(f"frequency {name!r} does not go forward; give e.g. h, D, B, W-SUN, MS")
    return offset


def _length(offset: pd.DateOffset) -> int | None:
    """Microseconds of a step of fixed length, ``None`` for one of the calendar."""
    if isinstance(offset, pd.offsets.Day):
        return offset.n * _DAY
    if isinstance(offset, pd.offsets.Tick):
        return int(pd.Timedelta(offset).value // 1000) or None
    return None


def _length_name(length: int) -> str:
    size, unit = (_DAY, "D") if length % _DAY == 0 else next(u for u in _UNITS if not length % u[0])
    return unit if length == size else f"{length // size}{unit}"


def _microseconds(stamps: pd.DatetimeIndex) -> NDArray[np.int64]:
    return np.asarray(stamps.as_unit("us").asi8, np.int64)


def _commonest(values: NDArray[np.int64]) -> int:
    found, counts = np.unique(values, return_counts=True)
    return int(found[counts.argmax()])


def _calendar(groups: Sequence[pd.DatetimeIndex], gaps: NDArray[np.int64]) -> str | None:
    """The step of stamps that are whole days apart; ``None`` where only a fixed length may fit."""
    stamps = pd.DatetimeIndex(np.concatenate([g.tz_localize(None).to_numpy() for g in groups]))
    step = _commonest(gaps)
    if step == 1:
        weekends = bool((stamps.day_of_week >= 5).any())
        return "B" if not weekends and (gaps == 3).any() else "D"
    if gaps.min() >= 28 and (unit := _part_of_month(stamps)):
        months = [12 * np.asarray(g.year) + np.asarray(g.month) for g in groups]
        n = _commonest(np.concatenate([np.diff(m) for m in months]))
        if not any(((m - m[0]) % n).any() for m in months if len(m)):
            return _months_name(n, unit, np.concatenate(months))
    if step % 7 == 0 and len(days := np.unique(stamps.day_of_week)) == 1:
        weeks = step // 7
        if not any((np.diff(_microseconds(g)) % (step * _DAY)).any() for g in groups):
            return f"{weeks if weeks > 1 else ''}W-{_DAYS[days[0]]}"
    return None


def _part_of_month(stamps: pd.DatetimeIndex) -> str:
    if (stamps.day == 1).all():
        return "MS"
    if stamps.is_month_end.all():
        return "ME"
    days = stamps.normalize().to_numpy().astype("datetime64[D]")
    first = days.astype("datetime64[M]").astype("datetime64[D]")
    after = (days.astype("datetime64[M]") + 1).astype("datetime64[D]")
    if (np.busday_offset(first, 0, "forward") == days).all():
        return "BMS"
    return "BME" if (np.busday_offset(after, -1, "forward") == days).all() else ""


def _months_name(n: int, unit: str, months: NDArray[np.int64]) -> str:
    """Name of a step of ``n`` months; ``months`` are 12 · year + month (1 to 12)."""
    size = 12 if n % 12 == 0 else 3 if n == 3 else 0
    phases = np.unique((months - 1) % size) if size else months
    if size and len(phases) == 1:
        # Quarters and years are named after the month in which they begin (QS-JAN), or in which
        # they end; a quarter's last name is that of its last month, so QE-DEC for March.
        month = phases[0] if unit.endswith("S") or size == 12 else phases[0] + 9
        times = n // size if n > size else ""
        name = unit.replace("M", "Q" if size == 3 else "Y")
        return _offset(f"{times}{name}-{_MONTHS[month % 12]}").freqstr
    return f"{n if n > 1 else ''}{unit}"


def _closed(given: str, groups: Sequence[pd.DatetimeIndex]) -> str:
    """The name of a step, with the day or month that it leaves open taken from the stamps."""
    found = re.fullmatch(r"(\d*)([A-Za-z]+)", given.strip())
    stamps = [g for g in groups if len(g)]
    if not found or found[2] not in _OPEN or not stamps:
        return frequency_name(given)
    n, unit = int(found[1] or 1), found[2]
    first = pd.DatetimeIndex([g[0] for g in stamps])
    if unit == "W":
        days = np.unique(first.day_of_week)
        return f"{7 * n}D" if len(days) > 1 else f"{found[1]}W-{_DAYS[days[0]]}"
    begins = all((g.day == 1).all() for g in stamps)
    edge = {"S": "MS", "E": "ME"}.get(unit[1:], "MS" if begins else "ME")
    months = np.asarray(12 * first.year + first.month)
    return _months_name(n * _OPEN[unit], edge, months)


def _beside(stamps: pd.DatetimeIndex, group: int, step: int, gaps: NDArray[np.int64]) -> InputError:
    """What to say of stamps of which some are beside the grid of ``step``."""
    t = _microseconds(stamps)
    phases = t % step
    common = _commonest(phases)
    off = phases != common
    row = int(np.argmax(off))
    share = float(np.mean(gaps == step))
    if gaps.min() >= 28 * _DAY:
        return IrregularError(
            f"{stamps[row]}: months are of unequal length; write their first days, or their last",
            group, row)  # fmt: skip
    if share <= 0.5:
        return IrregularError(
            f"the time stamps are irregular: successive ones are {_spoken(gaps.min())} to "
            f"{_spoken(gaps.max())} apart, and only {share:.0%} of them {_spoken(step)}; make "
            "their steps equal first (--resample h takes means of hours), or give the frequency "
            "on whose grid they lie", group, row)  # fmt: skip
    shift = (phases[row] - common + step // 2) % step - step // 2
    nearest = stamps[row] - pd.Timedelta(int(shift), "us")
    hint = ""
    if step % _DAY == 0 and abs(shift) == _UNITS[0][0]:
        hint = " Are these local days written in UTC? Then write the dates without the hours."
    name = _length_name(step)
    return IrregularError(
        f"{stamps[row]} is not on the grid of {name} on which the other stamps lie; nearest to it "
        f"is {nearest}. {int(off.sum())} of {len(t)} stamps are beside it; correct them, or give "
        f"--resample {name} to take means.{hint}", group, row)  # fmt: skip


def _wrong(given: str, freq: str, stamps: pd.DatetimeIndex, row: int,
           groups: Sequence[pd.DatetimeIndex]) -> str:  # fmt: skip
    length = _length(_offset(freq))
    if length is None:
        offset: Any = _offset(freq)
        before, after = offset.rollback(stamps[row]), offset.rollforward(stamps[row])
        nearest = before if stamps[row] - before < after - stamps[row] else after
    else:
        t = _microseconds(stamps)
        shift = (t[row] - t[0] + length // 2) % length - length // 2
        nearest = stamps[row] - pd.Timedelta(int(shift), "us")
    asked = given if given == freq else f"{given} ({freq})"
    return (f"{stamps[row]} is not on the grid of the frequency {asked}; nearest to it is "
            f"{nearest}{_said(groups)}")  # fmt: skip


def _said(groups: Sequence[pd.DatetimeIndex]) -> str:
    try:
        return f"; the stamps say {infer_frequency(groups)}"
    except InputError:
        return ""


def _spoken(length: int) -> str:
    return str(pd.Timedelta(int(length), "us")).replace(" 00:00:00", "").replace("0 days ", "")
