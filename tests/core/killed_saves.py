"""Saves that are killed (SIGKILL): around each call that touches the disk, and at random times.

Run by ``test_checkpoints.py`` in a process of its own, because it forks; prints what was found.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from sciflow.checkpoints import Checkpoint, load_checkpoint, save_checkpoint


def version(k: int) -> Checkpoint:
    """Content of which each part tells its version."""
    return Checkpoint({"k": k}, {"network/w": torch.full((300, 100), float(k))}, f"# version {k}\n")


def version_of(checkpoint: Checkpoint) -> int:
    """The version, if all parts agree."""
    k = int(checkpoint.config["k"])
    assert checkpoint.tensors["network/w"].eq(k).all() and checkpoint.card == f"# version {k}\n"
    return k


def die_at(stop: float) -> None:
    """From now on: die just before call ``stop`` (whole), or just after it (half)."""
    seen = 0

    def hooked(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == stop:
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*args, **options)
            if seen + 0.5 == stop:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    for module, name in ((os, "replace"), (os, "fsync"), (shutil, "rmtree")):
        setattr(module, name, hooked(getattr(module, name)))


def in_child(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
    return pid


def check(folder: Path, allowed: Iterable[int]) -> int:
    """The version that is left; it must be whole, and the next save must clear everything up."""
    found = version_of(load_checkpoint(folder))
    assert found in allowed, found
    save_checkpoint(folder, version(99))
    assert version_of(load_checkpoint(folder)) == 99
    left = [p.name for p in folder.parent.iterdir()]
    assert left == ["model"], left
    return found


def at_every_call(root: Path) -> list[int]:
    found = []
    for k in range(2, 1000):
        folder = save_checkpoint(root / f"at{k}" / "model", version(1))

        def work(folder: Path = folder, stop: float = k / 2) -> None:
            die_at(stop)
            save_checkpoint(folder, version(2))

        _, status = os.waitpid(in_child(work), 0)
        if not os.WIFSIGNALED(status):
            assert status == 0, status
            return found
        found.append(check(folder, (1, 2)))
    raise AssertionError("a save makes more calls than can be believed")


def at_random_times(root: Path, trials: int) -> list[int]:
    found, rng = [], random.Random(0)
    for trial in range(trials):
        folder = save_checkpoint(root / f"random{trial}" / "model", version(0))

        def work(folder: Path = folder) -> None:
            for k in range(1, 100_000):
                save_checkpoint(folder, version(k))

        pid = in_child(work)
        time.sleep(rng.uniform(0.02, 0.2))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        found.append(check(folder, range(100_000)))
    return found


if __name__ == "__main__":
    here = Path(sys.argv[1])
    print(json.dumps({"points": at_every_call(here), "random": at_random_times(here, 12)}))
