"""Sample paths on disk: written series by series in bounded memory, and read back as forecasts.

``samples.npz`` holds ``samples`` float64 ``[N, S, H, C]`` beside ``unique_id``, ``start`` and
``freq`` of each of the N series and the names of its C ``channels`` ``[N, C]``; ``samples.parquet``
has rows ``unique_id, ds, sample, y``. Forecasts of other tools are read from such a table, or from
one with columns of quantiles in anybody's names (``lo-80``, ``q0.1``, ``0.1``): sample s is then
the (s + ½)/S quantile of every step, interpolated on the scale of a normal variable.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from domains.timeseries.baselines.base import QuantileTable
from domains.timeseries.cells import Cells, open_table
from domains.timeseries.forecast import Forecast
from domains.timeseries.frequency import infer_frequency
from domains.timeseries.parquet import parquet_module
from domains.timeseries.stamps import StampError, parse_stamps
from domains.timeseries.writing import ForecastLike, write_table
from sciflow.errors import InputError
from sciflow.files import reading_arrays, writing

__all__ = ["join_samples", "read_forecasts", "save_samples"]

_KEYS = ("samples", "unique_id", "start", "freq", "channels")
_QUANTILE = re.compile(r"(?:.*[-_ ])?(?:q[-_]?)?(0?\.\d+)$")
_END = re.compile(r"(?:.*[-_ ])?(lo|hi)[-_ ](\d+(?:\.\d+)?)$")


def save_samples(forecasts: Sequence[ForecastLike], path: str | Path) -> Path:
    """Write the sample paths of forecasts of one horizon, as npz or parquet by the ending.

    Raises:
        InputError: the forecasts differ in samples, horizon or number of channels.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        return write_table(pd.concat([_long(f) for f in forecasts], ignore_index=True), path)
    shapes = {f.samples.shape for f in forecasts}
    if len(shapes) != 1:
        raise InputError(f"samples of shapes {sorted(shapes)} do not fit in one file", path)
    arrays: dict[str, Any] = {
        "samples": np.stack([f.samples for f in forecasts]),
        "unique_id": np.array([f.series_name for f in forecasts]),
        "start": np.array([f.index[0].isoformat() for f in forecasts]),
        "freq": np.array([f.index.freqstr or infer_frequency([f.index]) for f in forecasts]),
        "channels": np.array([f.channels for f in forecasts]),
    }
    with writing(path) as f:
        np.savez(f, **arrays)
    return path


def join_samples(parts: Sequence[Path], path: str | Path) -> Path:
    """One file from parts that :func:`save_samples` wrote as npz, one part in memory at a time."""
    path = Path(path)
    if path.suffix == ".parquet":
        return _join_parquet(parts, path)
    pieces = [_arrays(part, _KEYS[1:]) for part in parts]
    small = {key: np.concatenate([p[key] for p in pieces]) for key in _KEYS[1:]}
    _, *rest = _arrays(parts[0], ("samples",))["samples"].shape
    # Times of members are those of a fixed day, so that equal samples are equal bytes.
    with writing(path) as f, zipfile.ZipFile(f, "w", zipfile.ZIP_STORED) as archive:
        with archive.open(zipfile.ZipInfo("samples.npy"), "w", force_zip64=True) as member:
            shape = (len(small["unique_id"]), *rest)
            header = {"descr": "<f8", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_2_0(member, header)
            for part in parts:
                samples = _arrays(part, ("samples",))["samples"]
                member.write(np.ascontiguousarray(samples, "<f8").tobytes())
        for key, values in small.items():
            with archive.open(zipfile.ZipInfo(f"{key}.npy"), "w") as member:
                np.lib.format.write_array(member, values, allow_pickle=False)
    return path


def read_forecasts(path: str | Path, samples: int = 100) -> list[Forecast]:
    """Read forecasts: our own sample files, or a table of samples or quantiles of any tool.

    Args:
        path: ``.npz``, CSV or parquet.
        samples: how many are made of quantiles, or of a point forecast (all alike).

    Raises:
        InputError: not such a file; which line, and why.
    """
    path = Path(path)
    if path.suffix == ".npz":
        a = _arrays(path, _KEYS)
        return [
            Forecast(
                str(name), tuple(map(str, channels)),
                pd.date_range(str(start), periods=x.shape[1], freq=str(freq)), x,
            )
            for x, name, start, freq, channels in zip(*(a[k] for k in _KEYS), strict=True)
        ]  # fmt: skip
    cells = open_table(path)
    if isinstance(cells, list):
        raise InputError("give forecasts as CSV, parquet or npz", path)
    return _from_table(cells, samples)


def _from_table(cells: Cells, count: int) -> list[Forecast]:
    names = list(cells.columns)
    lower = {n.lower(): n for n in names}
    identity = next((lower[n] for n in ("unique_id", "item_id", "id") if n in lower), None)
    time = next((lower[n] for n in ("ds", "timestamp", "date", "datetime") if n in lower), None)
    if time is None:
        raise cells.error(f"no column of time stamps (ds) among: {', '.join(names[:20])}")
    if "channel" in lower:
        raise cells.error("forecasts of several channels are read from samples.npz only")
    try:
        index = parse_stamps(cells.columns[time]).index
    except StampError as error:
        raise cells.error(f"{time}: {error.reason}", error.row) from None
    keys = [cells.text(identity, r) if identity else "" for r in range(len(cells))]
    known = _quantiles_of(names)
    result = []
    for key in dict.fromkeys(keys):
        rows = np.flatnonzero(np.array(keys) == key)
        if "sample" in lower:
            paths, stamps = _paths(cells, rows, index, lower)
        else:
            order = rows[np.argsort(index[rows].asi8, kind="stable")]
            stamps = index[order]
            paths = _interpolated(cells, order, known, lower, count)
        if stamps.has_duplicates:
            raise cells.error(f"series {key!r} has a time stamp twice; give one row a step")
        if np.isnan(paths).any():
            raise cells.error(f"the forecast of series {key!r} has missing values")
        freq = infer_frequency([stamps]) if len(stamps) > 1 else None
        stamps = pd.DatetimeIndex(stamps, freq=freq) if freq else stamps
        result.append(Forecast(key, ("y",), stamps, paths[..., None]))
    return result


def _paths(cells: Cells, rows: NDArray[np.int64], index: pd.DatetimeIndex,
           lower: dict[str, str]) -> tuple[NDArray[np.float64], pd.DatetimeIndex]:  # fmt: skip
    """Samples ``[S, H]`` of a table with one row a (step, sample)."""
    value = next((lower[n] for n in ("y", "value", "prediction") if n in lower), None)
    if value is None:
        raise cells.error("samples need a column y beside sample")
    y, number = cells.numbers(value)[rows], cells.numbers(lower["sample"])[rows]
    stamps = index[rows].unique().sort_values()
    order = np.lexsort((index[rows].asi8, number))
    count = len(np.unique(number))
    if len(rows) != count * len(stamps):
        raise cells.error(f"{len(rows)} rows are not {count} samples of {len(stamps)} steps",
                          int(rows[0]))  # fmt: skip
    return y[order].reshape(count, len(stamps)), stamps


def _quantiles_of(names: Sequence[str]) -> dict[float, str]:
    found: dict[float, str] = {}
    for name in names:
        if end := _END.match(name.lower()):
            share = float(end[2]) / 100
            found[round((1 + (share if end[1] == "hi" else -share)) / 2, 6)] = name
        elif (q := _QUANTILE.match(name.lower())) and 0 < float(q[1]) < 1:
            found[float(q[1])] = name
        elif name.lower() == "median":
            found.setdefault(0.5, name)
    return dict(sorted(found.items()))


def _interpolated(cells: Cells, rows: NDArray[np.int64], known: dict[float, str],
                  lower: dict[str, str], count: int) -> NDArray[np.float64]:  # fmt: skip
    """Samples ``[S, H]`` at the levels (s + ½)/S of the quantile function of each step."""
    if not known:
        point = next(
            (lower[n] for n in ("mean", "y", "forecast", "prediction") if n in lower), None
        )
        if point is None:
            raise cells.error("no forecast: give columns sample and y, quantiles (lo-80, hi-80 or "
                              "q0.1, q0.9), or mean")  # fmt: skip
        return np.repeat(cells.numbers(point)[rows][None], count, 0)
    levels = np.array(list(known))
    values = np.sort(np.stack([cells.numbers(n)[rows] for n in known.values()]), 0)
    if len(levels) == 1:
        return np.repeat(values, count, 0)
    return QuantileTable(tuple(levels), values[..., None], count).samples[..., 0]


def _arrays(path: Path, keys: Sequence[str]) -> dict[str, NDArray[Any]]:
    with reading_arrays(path, "a file of sample paths") as file:
        return {key: file[key] for key in keys}


def _long(f: ForecastLike) -> pd.DataFrame:
    s, h, c = f.samples.shape
    steps = f.index.repeat(c)
    columns: dict[str, Any] = {"unique_id": f.series_name, "ds": steps.append([steps] * (s - 1))}
    if c > 1:
        columns["channel"] = list(f.channels) * (s * h)
    columns |= {"sample": np.repeat(np.arange(s), h * c), "y": f.samples.ravel()}
    return pd.DataFrame(columns, index=range(s * h * c))


def _join_parquet(parts: Sequence[Path], path: Path) -> Path:
    parquet = parquet_module(path, ".npz")
    from pyarrow import Table

    with writing(path) as f:
        writer = None
        for part in parts:
            for forecast in read_forecasts(part):
                rows = Table.from_pandas(_long(forecast), preserve_index=False)
                writer = writer or parquet.ParquetWriter(f, rows.schema)
                writer.write_table(rows)
        if writer:
            writer.close()
    return path
