"""Text files in and out: what every reader checks first; writes appear whole or not at all."""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path

from sciflow.errors import InputError

__all__ = ["read_text", "write_text"]


def read_text(path: str | Path) -> str:
    """The text of a file, decompressed if its name ends in ``.gz``.

    UTF-8, else Latin-1 (an old spreadsheet's export), so that one odd byte costs one record.

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
            f"a web page or XML, not molecules (first line {start.splitlines()[0][:60]!r}); "
            "a failed download?",
            path,
        )
    return text


def write_text(path: str | Path, text: str) -> Path:
    """Write UTF-8 text to a temporary file beside ``path``, then move it into place."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode("utf-8")
    if path.suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
