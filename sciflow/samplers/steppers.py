"""The contract of a stepper: it moves one field over one interval of the plan after the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

from torch import Tensor

from sciflow.random import Draws
from sciflow.state import Context

__all__ = ["Stepper"]


class Stepper(ABC):
    """Moves one field along a fixed plan.

    Coefficients are computed once, when it is made, as Python floats. Every run works on a shallow
    copy, so a stepper may keep a history, in attributes that it sets and never changes in place.

    Attributes:
        remembers: names of the attributes in which tensors ``[B, ...]`` of a run are kept.
        keeps_broken: a NaN or infinity in the field or its estimate is one in what comes of them.
    """

    remembers: ClassVar[tuple[str, ...]] = ()
    keeps_broken: ClassVar[bool] = False

    def __copy__(self) -> Self:
        # What copy() does, without its detour by way of pickle: a run waits for it.
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def take(self, rows: Tensor) -> None:
        """The history moves with the samples: row i of it becomes row ``rows[i]``."""
        for name in self.remembers:
            setattr(self, name, _index(getattr(self, name), rows))

    @abstractmethod
    def step(self, i: int, x: Tensor, clean: Tensor, context: Context, draws: Draws) -> Tensor:
        """The field at the end of interval i.

        Args:
            i: number of the interval, from 0.
            x: the field at its start.
            clean: the clean estimate there (a mean, a point, or logits).
            context: mask and given elements.
            draws: random numbers of the batch.
        """


def _index(history: Any, rows: Tensor) -> Any:
    """The rows of a tensor, or of all tensors of a sequence; ``None`` stays."""
    if history is None:
        return None
    if isinstance(history, Tensor):
        return history[rows]
    return type(history)(x[rows] for x in history)
