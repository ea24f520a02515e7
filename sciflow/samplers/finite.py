"""Which samples of a run hold a NaN or an infinity, and since which step.

A sum is finite only where all its terms are (or it overflows, as bad): one pass over the state, and
on a GPU a wait. A step that is linear in what it knows leaves nothing broken unbroken, for 0 · NaN
and ∞ − ∞ are NaN. After such steps alone one look tells of several states, and only where it finds
something are those before it searched for the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

from torch import Tensor

from sciflow.paths import CategoricalPath, Path
from sciflow.random import Draws
from sciflow.state import State

__all__ = ["Watch"]

_SPAN = 8
"""States between two looks, which are kept until then; fewer where they are large."""
_MOST = 2**24
"""Numbers in the states kept, at most."""


class Watch:
    """Finds broken samples.

    Args:
        paths: of the fields that are shown.
        start: the fields before the first step, with their context.
        draws: of the batch.
        lasting: what is broken stays so from each state shown to the next.

    Attributes:
        reasons: by row of the batch, "step …, field …, sample …, seed …" of its first bad value.
    """

    def __init__(self, paths: Mapping[str, Path], start: State, draws: Draws, lasting: bool):
        self.paths, self.context, self.draws = paths, start.context, draws
        size = sum(x.numel() for x in start.fields.values())
        self.span = max(1, min(_SPAN, _MOST // max(size, 1))) if lasting else 1
        self.unseen: list[tuple[int, float, Mapping[str, Tensor]]] = []
        self.reasons: dict[int, str] = {}

    def show(self, number: int, t: float, fields: Mapping[str, Tensor]) -> None:
        """What step ``number``, from time ``t``, led to: values, or logits of tokens."""
        self.unseen.append((number, t, fields))
        if len(self.unseen) == self.span:
            self.look()

    def look(self) -> None:
        """Search what has been shown since the last time."""
        if self.unseen and not all(map(_finite, self.unseen[-1][2].values())):
            for number, t, fields in self.unseen:
                for name, x in fields.items():
                    if not _finite(x):
                        self._search(f"step {number} (t = {t:.4g})", name, x)
        self.unseen.clear()

    def _search(self, when: str, name: str, x: Tensor) -> None:
        bad = x.isnan() | x.isposinf()
        path = self.paths[name]
        # The logit of what cannot be is minus infinity.
        if not isinstance(path, CategoricalPath):
            bad = bad | x.isneginf()
        bad = bad & path.space.expand(path.space.mask(self.context), bad)
        for row in bad.flatten(1).any(1).nonzero().flatten().tolist():
            if row not in self.reasons:
                sample = int(self.draws.samples[row])
                self.reasons[row] = f"{when}, field {name}, sample {sample}, seed {self.draws.seed}"


def _finite(x: Tensor) -> bool:
    return isfinite(x.sum().item())
