"""The cells of a table as they were written, with the line of each row, from a file or a DataFrame.

Everything that goes wrong in files of others is met here, before anything is understood: what is no
table (HTML, binary, empty), the separator, the decimal comma, a byte-order mark, rows too short,
columns of one name. Cells stay text, so that an observed number can be written back as it was; they
become float64 by Python's own correctly rounded conversion.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from domains.timeseries.parquet import parquet_module
from sciflow.errors import InputError

__all__ = ["Cells", "cells_of", "is_missing", "open_table", "read_cells"]

_MISSING = {"", "na", "n/a", "nan", "null", "none", "-", "?", ".", "#n/a", "<na>", "nat"}
_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_LOOKED_AT = 20
_KEPT = 100_000
_COMMA = re.compile(r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?")


@dataclass
class Cells:
    """Columns of equal length.

    Attributes:
        columns: by name; lists of text from a file, else what pandas holds.
        lines: of each row, counted from 1.
        path: of the file, if there is one.
        unit: ``"line"`` of a file or ``"row"`` of anything else.
        separator: of the file, else empty.
        decimal: ``"."`` or ``","``.
        blank: lines that held nothing.
        notes: what was guessed.
    """

    columns: dict[str, Any]
    lines: Sequence[int]
    path: Path | None = None
    unit: str = "row"
    separator: str = ""
    decimal: str = "."
    blank: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.lines)

    def error(self, reason: str, row: int | None = None) -> InputError:
        """The error of one row, counted from 0, or of the table."""
        if row is None:
            return InputError(reason, self.path)
        if self.unit == "line":
            return InputError(reason, self.path, self.lines[row])
        return InputError(f"row {self.lines[row]}: {reason}", self.path)

    def text(self, name: str, row: int) -> str:
        """A cell as written."""
        value = self.columns[name][row]
        if isinstance(value, str):
            return value
        if is_missing(value):
            return ""
        return repr(float(value)) if isinstance(value, float | np.floating) else str(value)

    def numbers(self, name: str) -> NDArray[np.float64]:
        """A column as float64, NaN where nothing was written.

        Raises:
            InputError: text, or a number that is not finite.
        """
        column = self.columns[name]
        if isinstance(column, list):
            values = self._parsed(name, column)
        elif pd.api.types.is_numeric_dtype(column.dtype):
            values = np.asarray(column.to_numpy(np.float64, na_value=np.nan))
        else:
            values = self._parsed(name, ["" if is_missing(v) else str(v) for v in column])
        if np.isinf(values).any():
            row = int(np.argmax(np.isinf(values)))
            raise self.error(
                f"{name} is {self.text(name, row)!r}, which is not finite; leave the cell empty "
                "where nothing was observed", row)  # fmt: skip
        return values

    def _parsed(self, name: str, column: list[str]) -> NDArray[np.float64]:
        values = np.full(len(column), np.nan)
        for i, cell in enumerate(column):
            text = cell.replace(",", ".") if self.decimal == "," and "." not in cell else cell
            try:
                values[i] = float(text)
                good = "_" not in text
            except ValueError:
                good = text.strip().lower() in _MISSING
            if not good:
                hint = "leave the cell empty where nothing was observed"
                if "," in cell:
                    hint = "no separators of thousands, and a point before decimals"
                raise self.error(f"{name} is {cell!r}, which is not a number; {hint}", i)
        return values


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing."""
    if isinstance(value, str):
        return value.strip().lower() in _MISSING
    return value is None or value is pd.NaT or value is pd.NA or value != value


def cells_of(frame: pd.DataFrame, path: Path | None = None) -> Cells:
    """The cells of a DataFrame; an index with names or of times becomes columns.

    Raises:
        InputError: no rows, or columns of one name.
    """
    index = frame.index
    if isinstance(index, pd.DatetimeIndex | pd.PeriodIndex) or any(
        n is not None for n in index.names
    ):
        names = [n if n is not None else "ds" for n in index.names]
        clash = [n for n in names if n in frame.columns]
        frame = frame.reset_index(drop=bool(clash), names=None if clash else names)
    names = [" ".join(map(str, c)) if isinstance(c, tuple) else str(c) for c in frame.columns]
    _distinct(names, path)
    if not len(frame):
        raise InputError("the table has no rows", path)
    columns = {n: frame.iloc[:, i].reset_index(drop=True) for i, n in enumerate(names)}
    return Cells(columns, range(1, len(frame) + 1), path)


def open_table(source: str | Path | pd.DataFrame) -> Cells | list[bytes]:
    """The cells of a table, or the lines of a JSON-lines file; told apart by their content.

    Raises:
        InputError: the file cannot be read, or is no table.
    """
    if isinstance(source, pd.DataFrame):
        return cells_of(source)
    path = Path(source)
    data = _bytes(path)
    if data[:4] == b"PAR1":
        return _parquet(data, path)
    start = data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    if start == b"[":
        raise InputError("a JSON array; write one JSON object a line, or CSV", path)
    return data.splitlines() if start == b"{" else read_cells(data, path)


def _parquet(data: bytes, path: Path) -> Cells:
    parquet = parquet_module(path, "CSV")
    try:
        frame = parquet.read_table(io.BytesIO(data)).to_pandas()
    except (OSError, ValueError) as error:
        raise InputError(
            f"not a whole parquet file ({str(error).splitlines()[0]})", path
        ) from error
    return cells_of(frame, path)


def _bytes(path: Path) -> bytes:
    if path.is_dir():
        raise InputError("this is a folder; give a file", path)
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"not a whole gzip file ({error})", path) from error
    except FileNotFoundError as error:
        raise InputError("no such file", path) from error
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path) from error
    if not data.strip():
        raise InputError("the file is empty", path)
    return data


def read_cells(data: bytes, path: Path) -> Cells:
    """The cells of a CSV file.

    Raises:
        InputError: not a table, with the line and what is wrong with it.
    """
    notes: list[str] = []
    text = _decoded(data, path, notes)
    source = io.StringIO(text, newline="")
    del text
    skipped, place = -1, 0
    line = "#"
    while line and (not line.strip() or line.startswith("#")):
        skipped, place = skipped + 1, source.tell()
        line = source.readline()
    if not line:
        raise InputError("nothing but comments", path)
    if skipped:
        notes.append(f"{skipped} lines before the header skipped")
    first = [line, *itertools.islice(source, _LOOKED_AT)]
    separator = _separator(first, path, skipped + 1)
    source.seek(place)
    reader = csv.reader(source, delimiter=separator)
    header: list[str] = []
    columns: list[list[str]] = []
    at: list[int] = []
    blank: list[int] = []
    begin = skipped + 1
    # Names and times recur; one copy of each is kept.
    same: dict[str, str] = {}
    try:
        for cells in reader:
            if not header:
                header = [cell.strip() for cell in cells]
                columns = [[] for _ in header]
            elif not any(cells):
                blank.append(begin)
            elif len(cells) != len(header):
                raise InputError(f"{len(cells)} cells under {len(header)} headings", path, begin)
            else:
                for column, cell in zip(columns, cells, strict=True):
                    column.append(same.setdefault(cell, cell) if len(same) < _KEPT else cell)
                at.append(begin)
            begin = skipped + reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"not a row of CSV ({error})", path, begin) from error
    if _looks_like_data(header):
        raise InputError("the first line looks like data; give the columns names in a first line, "
                         "e.g. unique_id,ds,y", path, skipped + 1)  # fmt: skip
    _distinct([name for name in header if name], path, skipped + 1)
    if not at:
        raise InputError("a header and no rows", path)
    table = _named(header, columns, notes)
    decimal = _decimal(table, separator)
    if separator != ",":
        notes.append(f"columns separated by {_SEPARATORS[separator]}")
    if decimal == ",":
        notes.append("decimal comma")
    return Cells(table, at, path, "line", separator, decimal, blank, notes)


def _decoded(data: bytes, path: Path, notes: list[str]) -> str:
    if data[:2] == b"PK":
        raise InputError("an Excel or zip file; save the sheet as CSV", path)
    try:
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            text = data.decode("utf-16")
            notes.append("text read as UTF-16")
        else:
            text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
        notes.append("text read as Latin-1, for it is not UTF-8")
    control = re.search(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]", text)
    if control:
        line = text.count("\n", 0, control.start()) + 1
        raise InputError("a binary file, not a table; give CSV, parquet or JSON lines", path, line)
    if re.match(r"\s*<(?:!doctype|html|head|body|\?xml|!--)", text, re.IGNORECASE):
        raise InputError("an HTML or XML page, not a table; download the file itself", path)
    return text


def _separator(lines: list[str], path: Path, line: int) -> str:
    """The separator that cuts the first lines into the same number of cells, the most of them."""

    def widths(separator: str) -> list[int]:
        try:
            return [len(row) for row in csv.reader(lines, delimiter=separator) if row]
        except csv.Error:
            return []

    found = {s: widths(s) for s in _SEPARATORS}
    wide = {s: w for s, w in found.items() if w and w[0] > 1}
    if not wide:
        raise InputError(f"one column only, {lines[0].strip()[:60]!r}; separate columns by comma, "
                         "semicolon, tab or bar", path, line)  # fmt: skip
    return max(wide, key=lambda s: (Counter(wide[s])[wide[s][0]] / len(wide[s]), wide[s][0]))


def _looks_like_data(header: list[str]) -> bool:
    def is_number(cell: str) -> bool:
        try:
            float(cell)
        except ValueError:
            return bool(re.match(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}", cell))
        return cell.lower() not in _MISSING

    named = [cell for cell in header if cell]
    return sum(map(is_number, named)) >= max(2, len(named) / 2) and is_number(named[0])


def _distinct(names: Sequence[str], path: Path | None, line: int | None = None) -> None:
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        raise InputError(f"columns of one name: {', '.join(twice)}; give each its own", path, line)


def _named(header: list[str], columns: list[list[str]], notes: list[str]) -> dict[str, Any]:
    """Columns by name, without an index that pandas wrote and columns that hold nothing."""
    table: dict[str, Any] = {}
    for i, (name, column) in enumerate(zip(header, columns, strict=True)):
        if i == 0 and name in ("", "Unnamed: 0") and all(
            cell == str(k) for k, cell in enumerate(column)
        ):  # fmt: skip
            notes.append("first column, which counts the rows, left out")
            continue
        if not name and not any(cell.strip() for cell in column):
            continue
        table[name or f"column {i + 1}"] = column
    return table


def _decimal(table: dict[str, Any], separator: str) -> str:
    """A comma where some column's cells are numbers with one and none has a point."""
    if separator == ",":
        return "."
    for column in table.values():
        shown = [cell.strip() for cell in column if not is_missing(cell)]
        commas = sum(bool(_COMMA.fullmatch(cell)) for cell in shown)
        if commas and not any("." in cell for cell in shown):
            return ","
    return "."
