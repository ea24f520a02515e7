"""gluonts' JSON lines: one object a series, with ``start``, ``target`` and what else is known.

``target`` is a list of numbers, or of one such list a channel; ``null`` and ``"NaN"`` are missing
values. ``feat_dynamic_real`` is one list a covariate, longer than the target where the future is
known; ``past_feat_dynamic_real`` ends with the target. Static features are not used.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from domains.timeseries.frequency import resolve_frequency
from domains.timeseries.series import Series
from sciflow.errors import InputError

__all__ = ["read_json_lines"]

_KNOWN = {"start", "target", "item_id", "freq", "feat_dynamic_real", "past_feat_dynamic_real"}


def read_json_lines(lines: Sequence[bytes], path: Path, freq: str | None = None,
                    multivariate: bool = True) -> tuple[list[Series], list[str]]:  # fmt: skip
    """The series of a file, and what was not used.

    Args:
        lines: of the file; blank ones are passed over.
        path: for errors.
        freq: the step, needed where the objects have no ``freq``.
        multivariate: kept for symmetry with tables; a target of several lists is channels.

    Raises:
        InputError: a line that is no such object.
    """
    result: list[Series] = []
    unused: dict[str, None] = {}
    names: set[str] = set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line.lstrip(b"\xef\xbb\xbf"))
        except ValueError as error:
            raise InputError(f"not a JSON object ({error})", path, number) from error
        if not isinstance(entry, dict) or "target" not in entry:
            raise InputError("an object needs start and target", path, number)
        series = _series(entry, path, number, freq)
        if series.name in names:
            raise InputError(f"item_id {series.name!r} is there twice", path, number)
        names.add(series.name)
        unused |= dict.fromkeys(k for k in entry if k not in _KNOWN)
        if series.observed.any():
            result.append(series)
    if not result:
        raise InputError("no value was observed in any series", path)
    notes = [f"not used: {', '.join(unused)}"] if unused else []
    if len(names) > len(result):
        notes.append(f"{len(names) - len(result)} series of which nothing was observed left out")
    return result, notes


def _series(entry: dict[str, Any], path: Path, number: int, freq: str | None) -> Series:
    step = freq or entry.get("freq")
    if not step:
        raise InputError(
            "the step is not in the file; give the frequency, e.g. --freq h", path, number
        )
    try:
        start = pd.Timestamp(entry["start"])
    except (KeyError, ValueError, TypeError) as error:
        given = repr(entry["start"]) if "start" in entry else "missing"
        raise InputError(f"start is {given}; give a date, e.g. 2024-01-31", path, number) from error
    try:
        step = resolve_frequency(str(step), [pd.DatetimeIndex([start])])
    except InputError as error:
        raise InputError(error.reason, path, number) from None
    values = _matrix(entry["target"], "target", path, number)
    blocks, covariates = [], []
    for key in ("feat_dynamic_real", "past_feat_dynamic_real"):
        if entry.get(key):
            block = _matrix(entry[key], key, path, number)
            if len(block) < len(values) or (key.startswith("past") and len(block) > len(values)):
                raise InputError(f"{key} has {len(block)} steps where target has {len(values)}",
                                 path, number)  # fmt: skip
            blocks.append(block)
            covariates += [f"{key}_{i}" for i in range(block.shape[1])]
    length = max(map(len, blocks), default=0)
    padded = [np.pad(b, ((0, length - len(b)), (0, 0)), constant_values=np.nan) for b in blocks]
    channels = ("y",) if values.shape[1] == 1 else tuple(f"y{i}" for i in range(values.shape[1]))
    return Series(str(entry.get("item_id", f"line {number}")), start, step, values, channels,
                  np.concatenate(padded, 1) if padded else None, tuple(covariates))  # fmt: skip


def _matrix(value: Any, key: str, path: Path, number: int) -> NDArray[np.float64]:
    """Steps by columns, from one list or a list of lists."""
    try:
        rows = value if value and isinstance(value[0], list) else [value]
        array = np.array([[np.nan if v is None else float(v) for v in row] for row in rows])
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(f"{key} is not lists of numbers of one length ({error})", path, number
                         ) from error  # fmt: skip
    if not array.size:
        raise InputError(f"{key} is empty", path, number)
    if np.isinf(array).any():
        raise InputError(f"{key} has an infinite number; write null where nothing was observed",
                         path, number)  # fmt: skip
    return array.T
