"""Files that are either whole or absent; what every reader of text checks first."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sciflow.errors import InputError

if TYPE_CHECKING:
    from numpy.lib.npyio import NpzFile

__all__ = [
    "file_kind",
    "read_text",
    "reading_arrays",
    "write_atomically",
    "write_csv",
    "write_json",
    "writing",
]


def read_text(path: str | Path, what: str = "data of this field") -> str:
    """The text of a file, decompressed if its name ends in ``.gz``.

    UTF-8, else Latin-1 (an old spreadsheet's export), so that one odd byte costs one record.

    Args:
        path: the file.
        what: it should hold, for the message about a web page.

    Raises:
        InputError: missing, a folder, unreadable, empty, broken gzip, binary, or an HTML page.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError("this is a folder; give a file", path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError("no such file", path) from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path) from error
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"not a whole gzip file ({error})", path) from error
    if not data.strip():
        raise InputError("the file is empty", path)
    if data[:2] == b"\x1f\x8b":
        raise InputError("gzip data; its name must end in .gz", path)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError("UTF-16 text; save it as UTF-8", path)
    # A stray NUL spoils one record; many are not text at all.
    if data.count(b"\0") > 8 + len(data) // 100:
        raise InputError("binary data, not text", path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
        controls = sum(ord(c) < 32 and c not in "\t\n\r\f\v" for c in text[:4096])
        if controls > len(text[:4096]) // 20:
            raise InputError("binary data, not text", path) from None
    start = text[:512].lstrip().lower()
    if start.startswith(("<!doctype html", "<html", "<?xml")):
        raise InputError(
            f"a web page or XML, not {what} (first line {start.splitlines()[0][:60]!r}); "
            "a failed download?",
            path,
        )
    return text


def file_kind(path: str | Path, known: Collection[str]) -> str:
    """The suffix that tells what a file is, in lower case; ``.gz`` behind it does not count.

    Args:
        path: of the file, which need not exist.
        known: suffixes that there is a reader of, ``".sdf"``.

    Raises:
        InputError: another suffix, or none.
    """
    path = Path(path)
    suffix = Path(path.stem).suffix if path.suffix.lower() == ".gz" else path.suffix
    if suffix.lower() not in known:
        raise InputError(
            f"unknown kind of file {suffix or '(no suffix)'!r}; allowed: {', '.join(known)}, "
            "each also with .gz",
            path,
        )
    return suffix.lower()


@contextmanager
def reading_arrays(path: str | Path, what: str) -> Iterator[NpzFile]:
    """The arrays of an ``.npz`` by name, nothing of it unpickled.

    Args:
        path: the file.
        what: it should be, for messages: "a table of chains".

    Raises:
        InputError: no such file, a damaged one, or one in which the block finds no such arrays, or
            arrays that do not fit together.
    """
    import numpy as np

    path = Path(path)
    if not path.is_file():
        raise InputError("no such file", path)
    try:
        with np.load(path, allow_pickle=False) as file:
            yield file
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"not {what} ({error})", path) from error


@contextmanager
def writing(path: str | Path) -> Iterator[IO[bytes]]:
    """A file beside ``path`` to write to; when all went well, on disk and renamed to ``path``."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_atomically(path: str | Path, content: bytes | str) -> Path:
    """Write ``content`` to a file beside ``path``, flush it to disk, then rename it to ``path``.

    Text for a name that ends in ``.gz`` is compressed, as :func:`read_text` expects it.
    """
    path = Path(path)
    if isinstance(content, str):
        content = content.encode()
        # No time stamp: equal texts are equal bytes.
        content = gzip.compress(content, mtime=0) if path.suffix == ".gz" else content
    with writing(path) as f:
        f.write(content)
    return path


def write_csv(
    path: str | Path, rows: Iterable[Mapping[str, Any]], columns: Collection[str] | None = None
) -> Path:
    """Write a table as CSV, atomically.

    Args:
        path: the file.
        rows: by name of the column; what a row lacks stays empty.
        columns: in their order; default all that rows have, as they come.
    """
    rows = list(rows)
    if columns is None:
        columns = dict.fromkeys(key for row in rows for key in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return write_atomically(path, text.getvalue())


def write_json(path: str | Path, value: Any) -> Path:
    """Write plain data as indented JSON, atomically."""
    return write_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
