"""The tiny training in two processes: ``two_processes.py OUT curve|nan``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from tiny_training import data, run

from sciflow.errors import NonFiniteError
from sciflow.objectives import DenoisingObjective
from sciflow.training.fit import FitResult


class Poison(DenoisingObjective):
    """NaN where sample 11 is, which is one process's part of a batch."""

    def __call__(self, denoiser, batch, draws, step):
        bad = (draws.samples == 11)[:, None, None]
        return super().__call__(
            denoiser, batch.replace(coords=batch["coords"].masked_fill(bad, torch.nan)), draws, step
        )


def curve(out: Path, devices: int) -> FitResult:
    """Steps with and without self-conditioning, and a condition that the data lack.

    So some parameters get no gradient. Resumed once, in the middle of an epoch.
    """
    given = {"data": data(conditions=False), "log_every": 1, "devices": devices,
             "validation": data(9, seed=3), "validate_every": 5}  # fmt: skip
    run(out, steps=6, **given)
    return run(out, steps=10, **given)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, case = Path(sys.argv[1]), sys.argv[2]
    try:
        if case == "curve":
            result = curve(folder, devices=2)
            told = f"{'main' if result.main else 'other'}:{result.step}"
        else:
            run(folder, steps=40, objective=Poison(), devices=2)
            told = "not stopped"
    except NonFiniteError as error:
        told = str(error)
    # One write a process, or the lines of the two would mix.
    os.write(1, f"{told}\n".encode())
