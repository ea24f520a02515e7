"""The contract of a stepper: it moves one field from one time of the grid to the next."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from sciflow.random import Draws
from sciflow.state import Context

__all__ = ["Stepper"]


class Stepper(ABC):
    """Moves one field along a fixed grid; made anew for every run, so it may keep a history."""

    @abstractmethod
    def step(self, i: int, x: Tensor, clean: Tensor, context: Context, draws: Draws) -> Tensor:
        """The field at grid time i + 1.

        Args:
            i: number of the interval, from 0.
            x: the field at grid time i.
            clean: the clean estimate there (a mean, or logits).
            context: mask and given elements.
            draws: random numbers of the batch.
        """
