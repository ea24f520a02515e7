"""Further losses of the clean estimate, beside those of the fields' own paths.

A path scores its own field. What several fields add up to (the shape of a chain that angles build,
a length between generated atoms, a conserved quantity) is scored here, on all fields at once. Such
a term is minimised by no posterior mean in general, so it belongs where x_t tells x_0 nearly: at
low noise; the times are handed on for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from sciflow.state import State

__all__ = ["Auxiliary"]


class Auxiliary(Protocol):
    """A loss of the clean estimate against the data; it is reported by its name."""

    def __call__(self, clean: State, target: State, t: Mapping[str, Tensor]) -> Tensor:
        """One number a sample, ``[B]``.

        Args:
            clean: the estimates (means, or logits).
            target: the data, with the same context.
            t: the time of each field, ``[B]`` or one an element; 0 where an element is given.
        """

    def config(self) -> dict[str, Any]:
        """Plain data by which a resumed run is recognised."""
