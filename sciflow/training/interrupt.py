"""Ctrl-C and SIGTERM as a wish: finish the step, save, leave.

An exception raised in the middle of a step would tear optimizer and average apart. The handler only
notes the signal; training asks between steps. With several processes all must leave at the same
step, so they agree by a collective every few steps. A second Ctrl-C interrupts at once.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import lightning as L
import torch

__all__ = ["StopRequest"]

_AGREE_EVERY = 10
"""Steps between collectives: they cost little, but on a GPU each waits for the device."""


class StopRequest:
    """Which signal asked to stop, if any."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous: dict[int, Any] = {}

    def install(self) -> None:
        """Take over SIGINT and SIGTERM (only a main thread can)."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)

    def restore(self) -> None:
        """Put the former handlers back."""
        while self._previous:
            signal.signal(*self._previous.popitem())

    def agreed(self, trainer: L.Trainer) -> bool:
        """Whether to stop after this step; every process gets the same answer."""
        if trainer.world_size == 1:
            return self.signal is not None
        if trainer.global_step % _AGREE_EVERY:
            return False
        wish = torch.tensor(float(self.signal is not None), device=trainer.strategy.root_device)
        return bool(trainer.strategy.reduce(wish, reduce_op="sum") > 0)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal is not None:
            self.restore()
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
