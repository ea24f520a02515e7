"""Numbers as people write them in files."""

from __future__ import annotations

import math
import re

__all__ = ["finite_number"]

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eEdD][+-]?\d+)?")
_MATHEMATICA = re.compile(r"\*\^")


def finite_number(text: str) -> float | None:
    """The finite number that a word is, or ``None``.

    Fortran's ``1.0D-3`` and Mathematica's ``1.0*^-3`` (which QM9 holds) are numbers; ``nan``,
    ``inf``, ``1_000``, digits of other scripts and what overflows are not.
    """
    word = _MATHEMATICA.sub("e", text.strip())
    if not word.isascii() or not _NUMBER.fullmatch(word):
        return None
    value = float(word.replace("d", "e").replace("D", "e"))
    return value if math.isfinite(value) else None
