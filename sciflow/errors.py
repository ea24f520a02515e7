"""The errors a user can meet. Each says what was given, what is allowed and what to do."""

from __future__ import annotations

from pathlib import Path

__all__ = ["CheckpointError", "InputError", "NonFiniteError", "SciflowError"]


class SciflowError(Exception):
    """Base of every error that this project raises on purpose."""


class InputError(SciflowError, ValueError):
    """Something given by the user cannot be used.

    Args:
        reason: what is wrong, what is allowed and what to do.
        path: the file it came from, if any.
        line: the line (or record) of that file, counted from 1.
    """

    def __init__(self, reason: str, path: str | Path | None = None, line: int | None = None):
        self.reason, self.path, self.line = reason, path, line
        where = "" if path is None else f"{path}" + ("" if line is None else f":{line}") + ": "
        super().__init__(f"{where}{reason}")


class CheckpointError(SciflowError):
    """A saved model is incomplete, altered or made by an incompatible version."""


class NonFiniteError(SciflowError, ArithmeticError):
    """A loss or a state became NaN or infinite; the message names step, field, sample and seed."""
