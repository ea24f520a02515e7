r"""Train a denoiser: one function over Lightning, with a log, checkpoints and exact resume.

    result = fit(denoiser, objective, data, "run", steps=20_000, batch_size=64)

writes into ``run/``

* ``log.csv``: losses, learning rate, gradient norm (see :mod:`sciflow.training.monitor`);
* ``checkpoints/step-<k>.ckpt``: the newest few (see :mod:`sciflow.training.checkpoints`).

Step k is a function of (seed, k): batch, noise, times and learning rate are. So calling ``fit``
again with the same arguments goes on from the last checkpoint and ends, on the same machine and
processes, with the very bits of a run that was never stopped; with larger ``steps`` too, as long as
the learning rate had not begun to fall. Ctrl-C and SIGTERM end the run after the step under way.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, Strategy

from sciflow.errors import InputError, NonFiniteError
from sciflow.training.checkpoints import (
    AtomicFiles,
    Checkpoints,
    last_checkpoint,
    read_checkpoint,
)
from sciflow.training.data import BatchModule, TrainingData
from sciflow.training.fingerprint import changes, fingerprint, require_same
from sciflow.training.interrupt import StopRequest
from sciflow.training.module import AnyObjective, DenoisingModule, Trainee
from sciflow.training.monitor import Progress, StepLog, Validation

__all__ = ["FitResult", "Precision", "fit"]

Precision = Literal["32-true", "bf16-mixed"]


@dataclass(frozen=True)
class FitResult:
    """What :func:`fit` leaves behind.

    Attributes:
        denoiser: with averaged weights, in evaluation mode, on the CPU: the model to save.
        step: steps done; ``steps`` asked for.
        stopped_by: name of the signal that ended the run early, or ``None``.
        checkpoint: the last one.
        log: the CSV file.
        row: its last row.
        main: false in all processes but one; only the main one should go on to write files.
    """

    denoiser: Trainee
    step: int
    steps: int
    stopped_by: str | None
    checkpoint: Path | None
    log: Path
    row: dict[str, float]
    main: bool

    @property
    def finished(self) -> bool:
        """Whether all steps were done."""
        return self.step >= self.steps


def fit(
    denoiser: Trainee,
    objective: AnyObjective,
    data: TrainingData,
    out: str | Path,
    *,
    steps: int,
    batch_size: int,
    seed: int = 0,
    lr: float = 1e-3,
    warmup: int = 200,
    decay_start: int | None = None,
    ema: float = 0.999,
    weight_decay: float = 0.01,
    gradient_clip: float = 1.0,
    precision: Precision = "32-true",
    accelerator: str = "auto",
    devices: int | str | Sequence[int] = 1,
    num_nodes: int = 1,
    strategy: str | Strategy = "auto",
    checkpoint_every: int = 500,
    keep: int = 3,
    resume: bool = True,
    threads: int | None = None,
    log_every: int = 50,
    validation: TrainingData | None = None,
    validate_every: int = 500,
    progress: bool = True,
    callbacks: Sequence[L.Callback] = (),
) -> FitResult:
    """Train ``denoiser`` (in place) and return it with averaged weights.

    Main arguments:
        denoiser: the model with its initial weights.
        objective: the loss.
        data: the training set.
        out: folder of the log and checkpoints; with several nodes, one that all of them see.
        steps: training steps in all, resumed ones included.
        batch_size: samples a step over all processes; their number must divide it.
        seed: of batches, noise and times.
        lr: peak learning rate, after a linear rise over ``warmup`` steps.
        decay_start: step at which it begins to fall linearly to 0 at ``steps``; 80 % by default.
        validation: held-out samples; the loss of all of them is logged every ``validate_every``
            steps (a sample costs about a third of one in training).

    Other arguments:
        ema: decay of the averaged weights per step.
        gradient_clip: largest norm of the gradient; 0 does not clip.
        precision: ``32-true``, or ``bf16-mixed`` (weights and optimizer stay in float32).
        accelerator: as for Lightning's trainer, like ``devices``, ``num_nodes``, ``strategy``.
        checkpoint_every: steps between checkpoints, of which the newest ``keep`` stay.
        resume: go on from the last checkpoint in ``out``; if false, there must be none.
        threads: of torch on the CPU, a process.
        log_every: steps between rows of the log.
        progress: show a bar.
        callbacks: further Lightning callbacks.

    Raises:
        InputError: an argument is out of range, or does not match the checkpoint.
        CheckpointError: the last checkpoint is damaged.
        NonFiniteError: a loss or gradient was NaN or infinite; nothing after the last checkpoint
            is kept.
    """
    out = Path(out)
    decay_start = int(0.8 * steps) if decay_start is None else decay_start
    _require_positive(
        steps=steps, batch_size=batch_size, lr=lr, checkpoint_every=checkpoint_every, keep=keep,
        log_every=log_every, validate_every=validate_every,
    )  # fmt: skip
    if precision not in ("32-true", "bf16-mixed"):
        raise InputError(f"precision {precision!r} is not supported; use 32-true or bf16-mixed")
    if len(data) == 0:
        raise InputError("the training set is empty")
    if threads is not None:
        torch.set_num_threads(threads)
    batch_size = min(batch_size, len(data))

    entry = {
        "format": 1,
        "run": fingerprint(denoiser, objective, data, batch_size, seed),
        "settings": {
            "lr": lr, "warmup": warmup, "decay_start": decay_start, "steps": steps, "ema": ema,
            "weight_decay": weight_decay, "gradient_clip": gradient_clip, "precision": precision,
        },
    }  # fmt: skip
    folder, log = out / "checkpoints", StepLog(
        out / "log.csv", log_every, batch_size,
        Validation(validation, validate_every, batch_size) if validation is not None else None,
    )  # fmt: skip
    denoiser.train()
    module = DenoisingModule(
        denoiser, objective, seed, lr, warmup, decay_start, steps, weight_decay, ema
    )
    stop = StopRequest()
    with _quiet():
        trainer = L.Trainer(
            max_steps=steps, max_epochs=-1, precision=precision, accelerator=accelerator,
            devices=devices if isinstance(devices, (int, str)) else list(devices),
            num_nodes=num_nodes, strategy=_strategy(strategy, accelerator, devices, num_nodes),
            gradient_clip_val=gradient_clip or None, logger=False, enable_progress_bar=False,
            enable_model_summary=False, use_distributed_sampler=False, default_root_dir=out,
            limit_val_batches=0, num_sanity_val_steps=0, plugins=[AtomicFiles()],
            callbacks=[log, *([Progress()] if progress else []), *callbacks,
                       Checkpoints(folder, checkpoint_every, keep, entry, stop)],
        )  # fmt: skip
    if batch_size % trainer.world_size:
        raise InputError(
            f"a batch of {batch_size} samples cannot be shared equally by {trainer.world_size} "
            f"processes; choose a multiple of {trainer.world_size}"
        )

    last = last_checkpoint(folder)
    if last is not None:
        start = _resume(last, entry, module, steps, resume, trainer.is_global_zero)
        if start == steps:
            return _result(module, start, steps, None, folder, log, trainer.is_global_zero)
    try:
        with _quiet():
            trainer.fit(module, datamodule=BatchModule(data, batch_size, seed), ckpt_path=last)
    except NonFiniteError as error:
        kept = last_checkpoint(folder) or "none yet"
        raise NonFiniteError(f"{error} (last checkpoint: {kept})") from None
    step = trainer.global_step
    stopped_by = stop.signal.name if stop.signal is not None and step < steps else None
    result = _result(module, step, steps, stopped_by, folder, log, trainer.is_global_zero)
    if step < steps and trainer.is_global_zero:
        _say(
            f"stopped after step {step} of {steps}" + (f" ({stopped_by})" if stopped_by else "")
            + f"; saved {result.checkpoint}; the same command again goes on from there"
        )  # fmt: skip
    return result


def _resume(path: Path, entry: dict[str, Any], module: DenoisingModule, steps: int, wanted: bool,
            main: bool) -> int:  # fmt: skip
    """The step at which the checkpoint stands, if this run may go on from it."""
    if not wanted:
        raise InputError(
            "this folder holds a training already; allow resuming, or choose another folder", path
        )
    saved = read_checkpoint(path)
    if "sciflow" not in saved:
        raise InputError("this checkpoint was not written by `fit`; choose another folder", path)
    require_same(saved["sciflow"]["run"], entry["run"], path)
    start = int(saved["global_step"])
    if start > steps:
        raise InputError(f"the checkpoint stands at step {start}, beyond steps={steps}", path)
    was, now = saved["sciflow"]["settings"], entry["settings"]
    # Before the learning rate falls in either run, it makes no difference where it would.
    plateau = start <= min(was["decay_start"], now["decay_start"])
    free = ("steps", "decay_start") if plateau else ()
    changed = changes({k: v for k, v in was.items() if k not in free},
                      {k: v for k, v in now.items() if k not in free})  # fmt: skip
    if changed and main and start < steps:
        _say(f"resuming at step {start} with changes: {'; '.join(changed)}; "
             "this run no longer equals an uninterrupted one")  # fmt: skip
    if start == steps:
        module.load_state_dict(saved["state_dict"])
    return start


def _result(module: DenoisingModule, step: int, steps: int, stopped_by: str | None, folder: Path,
            log: StepLog, main: bool) -> FitResult:  # fmt: skip
    return FitResult(module.averaged_denoiser(), step, steps, stopped_by, last_checkpoint(folder),
                     log.path, log.last_row(), main)  # fmt: skip


def _strategy(
    strategy: str | Strategy, accelerator: str, devices: int | str | Sequence[int], num_nodes: int
) -> str | Strategy:
    """Data-parallel training that allows for parameters without a gradient.

    The inputs for a previous estimate get none in steps whose coin forbids it, nor does the map of
    a property that the data lack; plain DDP would wait for them for ever. No buffer changes in
    training, so none is broadcast.
    """
    if strategy == "ddp" or (strategy == "auto" and _several(accelerator, devices, num_nodes)):
        return DDPStrategy(find_unused_parameters=True, broadcast_buffers=False,
                           gradient_as_bucket_view=True)  # fmt: skip
    return strategy


def _several(accelerator: str, devices: int | str | Sequence[int], num_nodes: int) -> bool:
    if num_nodes > 1:
        return True
    if devices in ("auto", "-1", -1):
        return accelerator in ("auto", "gpu", "cuda") and torch.cuda.device_count() > 1
    if isinstance(devices, str) and "," not in devices:
        devices = int(devices)
    return devices > 1 if isinstance(devices, int) else len(devices) > 1


def _require_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise InputError(f"{name} must be positive, not {value}")


def _say(message: str) -> None:
    print(message, file=sys.stderr)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's advertisements and its advice on loaders, which does not apply here."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*does not have many workers.*")
            warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
