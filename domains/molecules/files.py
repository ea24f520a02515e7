"""Text files in and out: what every reader checks first; writes appear whole or not at all."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

from sciflow import files

__all__ = ["read_text", "write_text"]


def read_text(path: str | Path) -> str:
    """The text of a file; see :func:`sciflow.files.read_text`."""
    return files.read_text(path, "molecules")


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
