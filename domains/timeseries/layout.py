"""Which column of a table is what: names, times, targets, covariates.

Long tables have a row for each (series, time): Nixtla's ``unique_id, ds, y`` and every other column
a covariate, with the names that other packages use recognised too. A table without names of series
is one series, or *wide*: times and one column a series. What was guessed is said, and every guess
can be overridden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from domains.timeseries.cells import Cells, is_missing
from domains.timeseries.stamps import StampError, parse_stamps

__all__ = ["Layout", "guess_layout"]

_TIMES = ("ds", "date", "datetime", "timestamp", "time", "utc_timestamp", "date_time", "period",
          "month", "year", "day", "week", "quarter", "hour", "index")  # fmt: skip
_IDS = ("unique_id", "item_id", "series_id", "id", "series", "item", "ts_id", "key", "name")
_TARGETS = ("y", "target", "value", "values", "observation")


@dataclass(frozen=True)
class Layout:
    """Roles of columns.

    Attributes:
        kind: ``"long"``, ``"single"`` or ``"wide"``.
        time: column of the time stamps.
        id: column of the names of series, in long tables.
        targets: columns to forecast.
        covariates: columns to forecast from.
        ignored: the others.
    """

    kind: str
    time: str
    id: str | None
    targets: tuple[str, ...]
    covariates: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


def guess_layout(
    cells: Cells,
    id_column: str | None = None,
    time_column: str | None = None,
    target_columns: Sequence[str] | None = None,
    covariates: Sequence[str] | None = None,
    time_format: str | None = None,
    no_target: bool = False,
) -> Layout:
    """The roles of the columns of a table; what is given is not guessed.

    Args:
        cells: the table.
        id_column: of the names of series.
        time_column: of the time stamps.
        target_columns: to forecast.
        covariates: columns to forecast from; default every other column of numbers, ``()`` none.
        time_format: of the time stamps.
        no_target: the table holds covariates of the future only.

    Raises:
        InputError: a column that is not there, or no time or target can be told.
    """
    names = list(cells.columns)
    for column in (id_column, time_column, *(target_columns or ()), *(covariates or ())):
        if column is not None and column not in names:
            raise cells.error(f"no column {column!r}; the columns are: {', '.join(names[:20])}")
    time = time_column or _time(cells, names, (id_column, *(target_columns or ())), time_format)
    rest = [n for n in names if n != time]
    identity = id_column or _first(_IDS, rest)
    # Judged once: an integer name is a number too, but a column of text can be nothing but a name.
    text = [
        n for n in rest if n not in (identity, *(target_columns or ())) and not _numeric(cells, n)
    ]
    may_name = _TARGETS[0] in rest or len(rest) == 2 or target_columns is not None
    if identity is None and len(text) == 1 and may_name and _repeats(cells, time):
        identity = text.pop()
    rest = [n for n in rest if n != identity]
    numeric = [n for n in rest if n not in text]
    targets = _targets(cells, numeric, text, identity, target_columns, no_target)
    kind = "long" if identity else "single" if len(targets) < 2 else "wide"
    others = [n for n in rest if n not in targets]
    known = tuple(n for n in (numeric if covariates is None else covariates) if n not in targets)
    ignored = tuple(n for n in others if n not in known)
    return Layout(kind, time, identity, targets, known, ignored)


def _first(wanted: Sequence[str], names: Sequence[str]) -> str | None:
    lower = {n.lower(): n for n in reversed(names)}
    return next((lower[w] for w in wanted if w in lower), None)


def _numeric(cells: Cells, name: str) -> bool:
    """Whether the first cells are numbers; a bad one further down is an error, not a name."""
    seen = 0
    for row in range(len(cells)):
        value = cells.columns[name][row]
        if is_missing(value):
            continue
        try:
            float(str(value).replace(",", ".") if cells.decimal == "," else str(value))
            return True
        except ValueError:
            seen += 1
        if seen == 3:
            return False
    return not seen


def _repeats(cells: Cells, time: str) -> bool:
    column = cells.columns[time]
    return len(set(map(str, column))) < len(column)


def _time(cells: Cells, names: Sequence[str], taken: Sequence[str | None],
          time_format: str | None) -> str:  # fmt: skip
    free = [n for n in names if n not in taken]
    named = [n for w in _TIMES for n in free if n.lower() == w]
    for name in [*named, *(n for n in free if n not in named and not _numeric(cells, n))]:
        rows = [r for r in range(min(len(cells), 50)) if not is_missing(cells.columns[name][r])][:3]
        column = cells.columns[name]
        first = column[rows[0]] if rows else None
        try:
            parse_stamps([first] if isinstance(first, str) else column.iloc[rows[:1]], time_format)
        except StampError as error:
            # A stamp whose first cell may be read in two ways is still a stamp.
            if "day or the month" not in error.reason:
                continue
        except (TypeError, ValueError, AttributeError):
            continue
        return name
    if named:
        # The best guess by name: reading it will say what is wrong with its cells.
        return named[0]
    raise cells.error(
        f"no column of time stamps among: {', '.join(names[:20])}; name it ds, or say which it is "
        "(--time)")  # fmt: skip


def _targets(cells: Cells, numeric: Sequence[str], text: Sequence[str], identity: str | None,
             given: Sequence[str] | None, no_target: bool) -> tuple[str, ...]:  # fmt: skip
    if given is not None:
        return tuple(given)
    named = _first(_TARGETS, [*numeric, *text])
    if no_target:
        return () if named is None else (named,)
    if named is not None:
        return (named,)
    if not numeric:
        # A single column of text is the target: reading it names its first bad cell.
        if len(text) == 1:
            return (text[0],)
        raise cells.error("no column of numbers to forecast; name it y, or say which it is "
                          "(--target)")  # fmt: skip
    if identity is not None and len(numeric) > 1:
        raise cells.error(f"which column is the target? Numbers are in {', '.join(numeric[:20])}; "
                          "name it y, or say which it is (--target)")  # fmt: skip
    return tuple(numeric)
