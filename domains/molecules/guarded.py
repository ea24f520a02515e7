"""A parallel map that no item can hang or crash: each runs in a worker process with a time limit.

RDKit's embedding may loop for minutes and a native library may fault; a pool from the standard
library then waits for ever or loses every pending item. Here a worker holds one item at a time, is
killed when it overruns, and is replaced; the item is reported with its reason and the others go on.
Workers start through loky, so a script needs no ``if __name__ == "__main__"`` guard.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from joblib import cpu_count
from joblib.externals.loky.backend import get_context

__all__ = ["Outcome", "guarded_map"]

_ONE_THREAD = {key: "1" for key in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
_START = 120.0
"""Seconds that a worker may need to import what it runs."""


@dataclass(frozen=True)
class Outcome:
    """What became of one item.

    Attributes:
        index: its place in the input.
        value: what the function returned; ``None`` if it failed.
        error: why it failed, or ``None``.
        seconds: wall-clock time it took.
    """

    index: int
    value: Any
    error: str | None
    seconds: float


def guarded_map(
    function: Callable[[Any], Any],
    items: Iterable[Any],
    *,
    n_jobs: int = -1,
    timeout: float = 30.0,
) -> Iterator[Outcome]:
    """Apply a function to every item in worker processes; yields outcomes as they come.

    An exception, an overrun or the death of the worker becomes :attr:`Outcome.error`; the order of
    the outcomes is that of completion. Workers run numerical libraries on one thread.

    Args:
        function: importable by name (defined at the top of a module), as are the items' types.
        items: consumed lazily.
        n_jobs: workers; ``-1`` is every core this process may use, ``-2`` all but one.
        timeout: seconds of wall-clock time for one item, counted once its worker is ready.

    Raises:
        ValueError: ``n_jobs`` is 0 or ``timeout`` is not positive.
        RuntimeError: a worker cannot start.
    """
    if n_jobs == 0 or not timeout > 0:
        raise ValueError(f"n_jobs must not be 0 and timeout must be > 0; got {n_jobs}, {timeout}")
    count = n_jobs if n_jobs > 0 else max(1, cpu_count() + 1 + n_jobs)
    queue = enumerate(items)
    workers: list[_Worker] = []
    try:
        for _ in range(count):
            task = next(queue, None)
            if task is None:
                break
            workers.append(_Worker(function, task))
        while workers:
            due = min(worker.deadline for worker in workers) - time.monotonic()
            ready = set(wait([worker.link for worker in workers], max(0.0, due)))
            for worker in list(workers):
                outcome = worker.poll(worker.link in ready, timeout)
                if outcome is None:
                    continue
                yield outcome
                task = next(queue, None)
                if task is None:
                    worker.stop()
                    workers.remove(worker)
                elif worker.alive:
                    worker.give(task, timeout)
                else:
                    workers[workers.index(worker)] = _Worker(function, task)
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """One process and the item that it has in hand."""

    def __init__(self, function: Callable[[Any], Any], task: tuple[int, Any]):
        context = get_context("loky")
        self.link, remote = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(remote, function), daemon=False, env=_ONE_THREAD
        )
        self.process.start()
        remote.close()
        self.task, self.alive, self.begun = task, True, False
        self.started = time.monotonic()
        self.deadline = self.started + _START

    def give(self, task: tuple[int, Any], timeout: float) -> None:
        self.task, self.begun = task, True
        self.started = time.monotonic()
        self.deadline = self.started + timeout
        # A worker that died just now is noticed as the end of its link at the next poll.
        try:
            self.link.send(task[1])
        except (BrokenPipeError, ConnectionResetError):
            self.deadline = self.started

    def poll(self, readable: bool, timeout: float) -> Outcome | None:
        """The item's outcome if there is one by now."""
        if readable:
            try:
                value, error = self.link.recv()
            except (EOFError, ConnectionResetError):
                return self._end(f"the worker process died ({self._death()})")
            if not self.begun:
                self.give(self.task, timeout)
                return None
            return Outcome(self.task[0], value, error, time.monotonic() - self.started)
        if time.monotonic() >= self.deadline:
            return self._end(f"no answer within {timeout:g} s; stopped")
        return None

    def _end(self, reason: str) -> Outcome:
        self.stop()
        if not self.begun:
            raise RuntimeError(f"a worker process cannot start: {reason}")
        return Outcome(self.task[0], None, reason, time.monotonic() - self.started)

    def _death(self) -> str:
        self.process.join(5.0)
        code = self.process.exitcode
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"

    def stop(self) -> None:
        self.alive = False
        self.link.close()
        pid = self.process.pid
        if pid is not None and self.process.is_alive():
            # A native loop answers to nothing gentler; Windows knows only this one way to end it.
            os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))
        self.process.join()


def _serve(link: Connection, function: Callable[[Any], Any]) -> None:
    """The loop of a worker: one answer for each item until the link closes."""
    os.environ.update(_ONE_THREAD)
    link.send((None, None))
    while True:
        try:
            item = link.recv()
        except (EOFError, KeyboardInterrupt):
            return
        answer: tuple[Any, str | None]
        try:
            answer = (function(item), None)
        except KeyboardInterrupt:
            return
        except Exception as error:
            said = str(error).strip() or "no message"
            answer = (None, getattr(error, "reason", None) or f"{type(error).__name__}: {said}")
        link.send(answer)
