r"""Files from which an interrupted training goes on exactly where it stood.

A checkpoint ``step-00000500.ckpt`` is what Lightning saves (weights, average, optimizer, counters)
plus our entry ``sciflow`` (see :mod:`sciflow.training.fingerprint`). Three promises:

* whole or absent: bytes go to a hidden file, are flushed to disk, and only then get the name;
* nothing is unpickled but tensors and plain values (``weights_only=True``);
* a flipped bit is refused by name: PyTorch's files are zip archives, whose entries carry a CRC-32
  that ``torch.load`` itself does not look at.

The last checkpoint is the one with the highest step in its name; no pointer can disagree.
"""

from __future__ import annotations

import io
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from sciflow.denoisers import NetworkDenoiser
from sciflow.errors import CheckpointError
from sciflow.files import write_atomically
from sciflow.training.interrupt import StopRequest

__all__ = ["AtomicFiles", "Checkpoints", "last_checkpoint", "load_averaged", "read_checkpoint"]

_NAME = re.compile(r"step-(\d+)\.ckpt")


def saved_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in ``folder``, oldest step first."""
    found = [(int(m[1]), p) for p in folder.glob("step-*.ckpt") if (m := _NAME.fullmatch(p.name))]
    return [path for _, path in sorted(found)]


def last_checkpoint(folder: str | Path) -> Path | None:
    """The checkpoint with the highest step, or ``None``."""
    return next(reversed(saved_checkpoints(Path(folder))), None)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU, after its checksums were verified.

    Raises:
        CheckpointError: the file is damaged, or holds anything but tensors and plain values.
    """
    advice = "delete it to resume from the one before it"
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise CheckpointError(f"{path}: entry {damaged} fails its checksum; {advice}")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, EOFError, RuntimeError, OSError, NotImplementedError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); {advice}") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds objects other than tensors and plain values, which could run code when "
            "loaded; not a checkpoint of this project"
        ) from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise CheckpointError(f"{path}: not a training checkpoint")
    return content


def load_averaged(path: str | Path, denoiser: NetworkDenoiser) -> NetworkDenoiser:
    """Put the averaged weights of a training checkpoint into ``denoiser``, in evaluation mode.

    Raises:
        CheckpointError: see :func:`read_checkpoint`; or the weights belong to another network.
    """
    prefix = "averaged."
    weights = {
        name.removeprefix(prefix): value
        for name, value in read_checkpoint(path)["state_dict"].items()
        if name.startswith(prefix)
    }
    try:
        denoiser.network.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: weights of another network ({error})") from error
    return denoiser.eval()


class AtomicFiles(TorchCheckpointIO):
    """How the trainer writes and reads checkpoints: see the promises of this module."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write whole or not at all."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_atomically(path, content.getvalue())

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Plain data only, whatever the caller asks for."""
        return read_checkpoint(path)


class Checkpoints(Checkpoint):
    """Saves every ``every`` steps, at the end, and at the step where training is asked to stop.

    Args:
        folder: where to; made if absent.
        every: steps between checkpoints.
        keep: how many of the newest are kept.
        entry: plain data stored under the key ``sciflow``.
        stop: the wish to stop.
    """

    def __init__(self, folder: Path, every: int, keep: int, entry: dict[str, Any],
                 stop: StopRequest):  # fmt: skip
        self.folder, self.every, self.keep, self.entry, self.stop = folder, every, keep, entry, stop

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """From here on signals mean "stop at the next step boundary"."""
        self.stop.install()

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule,
                           checkpoint: dict[str, Any]) -> None:  # fmt: skip
        """Add what a resume is compared with."""
        checkpoint.setdefault("sciflow", {}).update(self.entry)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any,
                           batch: Any, batch_idx: int) -> None:  # fmt: skip
        """Save where due; runs after every other callback and after the average's update."""
        if self.stop.agreed(trainer):
            trainer.should_stop = True
        step = trainer.global_step
        if step % self.every == 0 or step >= trainer.max_steps or trainer.should_stop:
            trainer.save_checkpoint(self.folder / f"step-{step:08d}.ckpt")
            if trainer.is_global_zero:
                for old in saved_checkpoints(self.folder)[: -self.keep]:
                    os.unlink(old)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Give signals back."""
        self.stop.restore()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule,
                     exception: BaseException) -> None:  # fmt: skip
        """Give signals back."""
        self.stop.restore()
