"""Some rows of many, evenly spread, so that every part of an ordered set counts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["evenly_spread"]


def evenly_spread(n: int, most: int) -> NDArray[np.int64]:
    """At most ``most`` of the rows 0 … n − 1, rising; both ends among them where most > 1."""
    return np.linspace(0, n - 1, min(n, most)).round().astype(np.int64)
