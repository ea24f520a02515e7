"""What is known of the time after the end: covariates of a table of their own, and their length.

A covariate is *known beforehand* (a holiday, a tariff) if it reaches as far as the forecast does,
else it tells of the past only. Between the two lies the usual mistake, a future too short; it is an
error that says which steps are missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from domains.timeseries.cells import open_table
from domains.timeseries.frequency import grid_positions
from domains.timeseries.layout import Layout, guess_layout
from domains.timeseries.series import Series
from domains.timeseries.stamps import StampError, parse_stamps
from sciflow.errors import InputError

__all__ = ["add_future", "require_future"]


def add_future(series: Sequence[Series], source: str | Path | pd.DataFrame, layout: Layout,
               time_format: str | None = None) -> list[Series]:  # fmt: skip
    """The series with covariates of the future from a table with the same column names.

    Args:
        series: of the main table.
        source: the table of the future; rows that the main table has too are passed over.
        layout: of the main table.
        time_format: of its stamps.

    Raises:
        InputError: columns or series are missing, or stamps beside the grid.
    """
    cells = open_table(source)
    if isinstance(cells, list):
        raise InputError("give the future as CSV or parquet", Path(str(source)))
    if not layout.covariates:
        raise cells.error(
            "the table of the past has no covariates, so none can be known beforehand"
        )
    lacking = [n for n in layout.covariates if n not in cells.columns]
    if lacking:
        raise cells.error(f"covariates of the past are missing here: {', '.join(lacking)}")
    time = layout.time if layout.time in cells.columns else None
    own = guess_layout(cells, layout.id, time, None, layout.covariates, time_format, no_target=True)
    try:
        index = parse_stamps(cells.columns[own.time], time_format).index
    except StampError as error:
        raise cells.error(f"{own.time}: {error.reason}", error.row) from None
    values = np.stack([cells.numbers(n) for n in layout.covariates], 1)
    names = [cells.text(layout.id, r).strip() for r in range(len(cells))] if layout.id else None
    rows_of: dict[str, list[int]] = {}
    for row, name in enumerate(names or []):
        rows_of.setdefault(name, []).append(row)
    result = []
    for s in series:
        name = s.name if s.name in rows_of else s.name.rpartition("/")[0]
        if names is not None and name not in rows_of:
            raise cells.error(f"nothing on the future of series {s.name!r}")
        rows = np.asarray(rows_of[name] if names is not None else range(len(cells)))
        if (index.tz is None) != (s.start.tz is None):
            raise cells.error("its time stamps have a zone and those of the past have none, or the "
                              "other way round; write both alike")  # fmt: skip
        stamps = pd.DatetimeIndex([s.start]).append(index[rows])
        later = np.append(True, index[rows] >= s.start)
        places = np.full(len(stamps), -2)
        order = np.argsort(stamps[later].asi8, kind="stable")
        places[np.flatnonzero(later)[order]] = grid_positions(stamps[later][order], s.freq)
        off = np.flatnonzero(places == -1)
        if len(off):
            row = int(rows[off[0] - 1])
            raise cells.error(
                f"{stamps[off[0]]} is not on the grid of {s.freq} of series {s.name!r}", row
            )
        places = places[1:]
        beyond = places >= len(s)
        if len(np.unique(places[beyond])) < beyond.sum():
            raise cells.error(f"series {s.name!r} has a time stamp of the future twice")
        assert s.covariates is not None
        end = max(len(s.covariates), int(places.max(initial=-1)) + 1)
        filled = np.full((end, values.shape[1]), np.nan)
        filled[: len(s.covariates)] = s.covariates
        filled[places[beyond]] = values[rows[beyond]]
        result.append(s.replace(covariates=filled))
    return result


def require_future(series: Sequence[Series], horizon: int) -> None:
    """Check that covariates that go beyond the end reach the end of the forecast.

    Raises:
        InputError: the series, how far they reach, and which steps are missing.
    """
    for s in series:
        if s.covariates is None or len(s.covariates) <= len(s):
            continue
        ahead = s.covariates[len(s) : len(s) + horizon]
        there = np.zeros((horizon, ahead.shape[1]), bool)
        there[: len(ahead)] = np.isfinite(ahead)
        # A covariate without a single number ahead is one of the past.
        short = there.any(0) & ~there.all(0)
        if short.any():
            k = int(np.argmax(short))
            lacking = s.future(horizon)[~there[:, k]]
            shown = ", ".join(map(str, lacking[:3])) + (", …" if len(lacking) > 3 else "")
            raise InputError(
                f"series {s.name!r}: covariate {s.covariate_names[k]!r} is known for "
                f"{int(there[:, k].sum())} of the {horizon} steps of the forecast; missing: "
                f"{shown}. Give all of them, or none (then it is used as one of the past)"
            )
