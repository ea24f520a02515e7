"""What a run tells while it runs: a CSV file, a progress bar, a validation loss.

Columns of the CSV: ``step`` (steps done), ``samples`` seen, ``seconds`` of training, ``lr``,
``gradient`` (norm before clipping), ``loss`` and ``loss/<field>``, each the mean over the steps
since the row before; ``validation`` and ``validation/<field>`` where measured. A resumed run drops
the rows after its checkpoint and goes on with the sums that were under way, so the file is the one
of an uninterrupted run (but for ``seconds``).
"""

from __future__ import annotations

import csv
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import lightning as L
import torch
from torch import Tensor
from tqdm import tqdm

from sciflow.files import write_csv
from sciflow.random import Draws
from sciflow.training.data import TrainingData
from sciflow.training.module import DenoisingModule

__all__ = ["Progress", "StepLog", "Validation"]

_VALIDATION_SEED = 104_729
"""The same for every run, so that runs with different seeds are compared on the same noise."""


@dataclass(frozen=True)
class Validation:
    """Mean loss of the averaged weights over a data set, at noise and times that never change.

    Attributes:
        data: held-out samples.
        every: steps between measurements.
        batch_size: samples a network call.
    """

    data: TrainingData
    every: int
    batch_size: int

    def __call__(self, trainer: L.Trainer, module: DenoisingModule) -> dict[str, float]:
        """``{"validation": ..., "validation/<field>": ...}``; processes share the batches."""
        denoiser, objective = module.averaged_denoiser(), module.objective.settled()
        names = list(objective.names(denoiser))
        sums = torch.zeros(1 + len(names), device=module.device)
        batches = self.data.lengths.argsort(stable=True).split(self.batch_size)
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            for k, rows in enumerate(batches):
                if k % trainer.world_size != trainer.global_rank:
                    continue
                state = self.data.collate(rows).to(module.device)
                draws = Draws(_VALIDATION_SEED, rows.to(module.device))
                losses = objective(denoiser, state, draws, k)
                parts = torch.stack([losses.total, *(losses.fields[n] for n in names)])
                sums += parts.float().sum(1)
        means = trainer.strategy.reduce(sums, reduce_op="sum") / len(self.data)
        return dict(zip(["validation", *(f"validation/{n}" for n in names)], means.tolist(),
                        strict=True))  # fmt: skip


class StepLog(L.Callback):
    """Writes the CSV; see the module's text.

    Args:
        path: of the file.
        every: steps between rows.
        batch_size: samples a step.
        validation: what to measure in addition, if anything.
    """

    def __init__(self, path: Path, every: int, batch_size: int,
                 validation: Validation | None = None):  # fmt: skip
        self.path, self.every, self.batch_size = path, every, batch_size
        self.validation = validation
        self.row: dict[str, float] = {}
        self._sums: Tensor | None = None
        self._steps = 0
        self._seconds = 0.0
        self._file: TextIO | None = None

    def on_load_checkpoint(self, trainer: L.Trainer, module: L.LightningModule,
                           checkpoint: dict[str, Any]) -> None:  # fmt: skip
        """Take up the sums that were under way."""
        log = checkpoint["sciflow"]["log"]
        self._sums, self._steps, self._seconds = log["sums"], log["steps"], log["seconds"]

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule,
                           checkpoint: dict[str, Any]) -> None:  # fmt: skip
        """Save the sums that are under way, averaged over processes."""
        sums = None if self._sums is None else self._mean(trainer, self._sums).cpu()
        checkpoint.setdefault("sciflow", {})["log"] = {
            "sums": sums,
            "steps": self._steps,
            "seconds": time.monotonic() - self._began,
        }

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Open the file, without the rows after the step from which training goes on."""
        assert isinstance(module, DenoisingModule)
        self._began = time.monotonic() - self._seconds
        if not trainer.is_global_zero:
            return
        columns = ["step", "samples", "seconds", "lr", *module.measures]
        if self.validation is not None:
            names = module.objective.names(module.denoiser)
            columns += ["validation", *(f"validation/{n}" for n in names)]
        rows = _rows(self.path, trainer.global_step)
        columns += [c for c in (rows[0] if rows else ()) if c not in columns]
        write_csv(self.path, rows, columns)
        self._file = self.path.open("a", newline="")
        self._writer = csv.DictWriter(self._file, columns, restval="", lineterminator="\n")

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any,
                           batch: Any, batch_idx: int) -> None:  # fmt: skip
        """Add the step to the sums; write a row where due."""
        assert isinstance(module, DenoisingModule)
        step = trainer.global_step
        new = module.measured
        self._sums = new.clone() if self._sums is None else self._sums.to(new.device) + new
        self._steps += 1
        validate = self.validation is not None and step % self.validation.every == 0
        if step % self.every == 0 or validate or step >= trainer.max_steps:
            self._write(trainer, module, step, validate)

    def last_row(self) -> dict[str, float]:
        """The newest row, of this or an earlier session; empty if there is none."""
        if not self.row and (rows := _rows(self.path, sys.maxsize)):
            return {k: float(v) for k, v in rows[-1].items() if v}
        return self.row

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Close the file."""
        self._close()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule,
                     exception: BaseException) -> None:  # fmt: skip
        """Close the file."""
        self._close()

    def _write(self, trainer: L.Trainer, module: DenoisingModule, step: int,
               validate: bool) -> None:  # fmt: skip
        assert self._sums is not None
        means = (self._mean(trainer, self._sums) / self._steps).tolist()
        self._sums, self._steps = None, 0
        self.row = {
            "step": step,
            "samples": step * self.batch_size,
            "seconds": round(time.monotonic() - self._began, 2),
            "lr": module.current_lr,
            **dict(zip(module.measures, means, strict=True)),
        }
        if validate and self.validation is not None:
            self.row |= self.validation(trainer, module)
        if self._file is not None:
            self._writer.writerow(
                {k: f"{v:.8g}" if isinstance(v, float) else v for k, v in self.row.items()}
            )
            self._file.flush()

    def _mean(self, trainer: L.Trainer, x: Tensor) -> Tensor:
        return trainer.strategy.reduce(x.clone(), reduce_op="mean")

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _rows(path: Path, last: int) -> list[dict[str, str]]:
    """Complete rows up to step ``last``; a line that a crash cut short is not one."""
    if last == 0 or not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    rows = csv.DictReader(line for line in lines if line.endswith("\n"))
    return [r for r in rows if None not in r.values() and None not in r and int(r["step"]) <= last]


class Progress(L.Callback):
    """A bar over steps with rate, time left and loss; knows where the run was resumed."""

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Draw the bar."""
        # A log file gets a line now and then, a terminal a moving bar.
        self._interval = 0.5 if sys.stderr.isatty() else 30.0
        self._next = 0.0
        self._bar = tqdm(
            total=trainer.max_steps, initial=trainer.global_step, unit="step", desc="training",
            mininterval=self._interval, disable=not trainer.is_global_zero, dynamic_ncols=True,
        )  # fmt: skip

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any,
                           batch: Any, batch_idx: int) -> None:  # fmt: skip
        """Advance; read the loss only when the bar is redrawn, for reading waits for the device."""
        assert isinstance(module, DenoisingModule)
        now = time.monotonic()
        if now >= self._next and not self._bar.disable:
            self._next = now + self._interval
            self._bar.set_postfix_str(f"loss {float(module.measured[0]):.4g}", refresh=False)
        self._bar.update()

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Close the bar."""
        self._bar.close()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule,
                     exception: BaseException) -> None:  # fmt: skip
        """Close the bar."""
        if hasattr(self, "_bar"):
            self._bar.close()
