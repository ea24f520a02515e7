"""The contract of a path: the corruption of one field, and what the network owes for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self

import torch
from torch import Tensor

from sciflow.random import Draws
from sciflow.schedules import Schedule
from sciflow.spaces import Space
from sciflow.state import Context

__all__ = ["LEVEL_LIMIT", "Path"]

LEVEL_LIMIT = 8.0
"""|log(s/a)| is clamped to this before it enters a network: both ends of time stay finite."""


class Path(ABC):
    """The forward process of one field; knows nothing of the other fields.

    Args:
        space: the field's geometry.
        schedule: its own schedule on the shared clock.
    """

    def __init__(self, space: Space, schedule: Schedule):
        self.space, self.schedule = space, schedule

    @abstractmethod
    def with_schedule(self, schedule: Schedule) -> Self:
        """The same path under another schedule."""

    @abstractmethod
    def prior(self, context: Context, draws: Draws, stream: str, dtype: torch.dtype) -> Tensor:
        """A draw of x at t = 1."""

    @abstractmethod
    def corrupt(self, x0: Tensor, t: Tensor, context: Context, draws: Draws, stream: str,
                step: int = 0) -> Tensor:  # fmt: skip
        """A draw of x_t given x_0."""

    @abstractmethod
    def renoise(self, x: Tensor, s: float, t: float, context: Context, draws: Draws, stream: str,
                step: int = 0) -> Tensor:  # fmt: skip
        """A draw of x_t given x_s, s < t, by the forward process; x_0 is corrupted as in training.

        Args:
            x: the field at time ``s``.
            s: from.
            t: to.
            context: mask and given elements.
            draws: random numbers of the batch.
            stream: name of the random numbers.
            step: number of the draw.
        """

    @abstractmethod
    def network_input(self, x_t: Tensor, t: Tensor) -> Tensor:
        """What the network sees of x_t."""

    @abstractmethod
    def clean(self, output: Tensor, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        """The clean estimate (a mean, or logits) from the network's output."""

    @abstractmethod
    def loss(self, clean: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        """The field's loss, one number a sample ``[B]``."""

    def extrapolate(self, x_t: Tensor, clean: Tensor, weak: Tensor, weight: float) -> Tensor:
        """The estimate ``clean`` moved away from a weaker one: D + w (D − D_weak).

        Guidance by a weak estimate is linear in this sense only: for means as written, for logits
        up to normalisation, for points of a manifold in the tangent space at x_t.
        """
        return torch.add(clean, clean - weak, alpha=weight)

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Plain data that describes the path in a checkpoint."""

    def level(self, t: Tensor) -> Tensor:
        """log(s/a), the time as a network sees it, clamped to ±8."""
        return (-self.schedule.logsnr(t)).clamp(-LEVEL_LIMIT, LEVEL_LIMIT)
