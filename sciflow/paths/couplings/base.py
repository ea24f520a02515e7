"""The contract of a coupling."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from typing import Any, ClassVar

from torch import Tensor

from sciflow.spaces import Space
from sciflow.state import Context

__all__ = ["Coupling", "NoiseDraw"]

NoiseDraw = Callable[[int], Tensor]
"""``draw(k)`` is the k-th draw of a space's noise for the whole batch, ``draw(0)`` the usual one;
row i of each depends on sample i alone."""


class Coupling(ABC):
    """Chooses the noise that a batch of clean data meets. Subclasses are frozen dataclasses.

    Class attributes:
        kind: its name in a configuration.
        independent: the noise knows nothing of the data, so that a denoiser tells the score.
        batched: whether a sample's noise depends on its companions in the batch. Such a coupling
            serves training alone, where the batch is a function of (seed, step): step k is still
            repeated exactly. Each process couples its own share of the batch, so a run on R
            processes is as reproducible as one on a single process, but is another run.
    """

    kind: ClassVar[str]
    independent: ClassVar[bool] = False
    batched: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, x0: Tensor, draw: NoiseDraw, space: Space, context: Context) -> Tensor:
        """Noise for clean data ``x0 [B, ...]``, row by row."""

    def settings(self) -> dict[str, Any]:
        """Every setting, as plain data."""
        return asdict(self) if is_dataclass(self) else {}

    def config(self) -> str | dict[str, Any]:
        """The name, or ``{"kind": name, ...}`` with the settings that are not the defaults."""
        default = type(self)().settings()
        changed = {k: v for k, v in self.settings().items() if v != default[k]}
        return {"kind": self.kind, **changed} if changed else self.kind
