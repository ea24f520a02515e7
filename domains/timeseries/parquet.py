"""Parquet is an optional format of tables: its package, or one clear error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sciflow.errors import InputError

__all__ = ["parquet_module"]


def parquet_module(path: Path, instead: str) -> Any:
    """``pyarrow.parquet``.

    Args:
        path: of the file that needs it.
        instead: the format that does not.

    Raises:
        InputError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(
            f"parquet needs pyarrow: pip install pyarrow, or give {instead}", path
        ) from error
    return pyarrow.parquet
