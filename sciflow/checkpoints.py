"""A model on disk: plain data, whole or absent, and refused by name when a byte has changed.

A model is a folder of

* ``config.json``         what to build: domain, fields, network, sampler;
* ``model.safetensors``   the weights, and reference tensors of the training set;
* ``card.md``             for the reader: trained on what, how long, how good, what it cannot do;
* ``manifest.json``       format version, and size and sha256 of every other file; written last.

Saving writes a new folder beside the old one and renames, so an interrupted save leaves the last
good model. Nothing is unpickled, ever.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from sciflow.errors import CheckpointError
from sciflow.files import write_atomically, write_json

__all__ = ["FORMAT", "Checkpoint", "load_checkpoint", "save_checkpoint"]

FORMAT = 1
_FILES = ("config.json", "model.safetensors", "card.md")


@dataclass(frozen=True)
class Checkpoint:
    """The content of a saved model.

    Attributes:
        config: plain data.
        tensors: weights under ``network/…``, training-set reference under ``reference/…``.
        card: Markdown.
        digest: sha256 of the manifest: the identity of this model; empty before it is saved.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    card: str = ""
    digest: str = field(default="", compare=False)

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose name begins with ``prefix/``, without it."""
        return {
            name.removeprefix(f"{prefix}/"): x
            for name, x in self.tensors.items()
            if name.startswith(f"{prefix}/")
        }


def save_checkpoint(folder: str | Path, checkpoint: Checkpoint) -> Path:
    """Write a model; an existing one is replaced only when the new one is complete."""
    from safetensors.torch import save

    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}.new.", dir=folder.parent))
    try:
        write_json(new / "config.json", checkpoint.config)
        tensors = {name: x.detach().cpu().contiguous() for name, x in checkpoint.tensors.items()}
        write_atomically(new / "model.safetensors", save(tensors))
        write_atomically(new / "card.md", checkpoint.card)
        files = {name: _describe(new / name) for name in _FILES}
        write_json(new / "manifest.json", {"format": FORMAT, "files": files})
        os.chmod(new, 0o755)
        old = folder.with_name(f".{folder.name}.old.{os.getpid()}")
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    return folder


def load_checkpoint(folder: str | Path) -> Checkpoint:
    """Read a model and verify every byte of it.

    Raises:
        CheckpointError: a file is missing, altered, or of a newer format.
    """
    from safetensors.torch import load

    folder = _recover(Path(folder))
    manifest_bytes = _read(folder / "manifest.json")
    try:
        manifest = json.loads(manifest_bytes)
        version, files = manifest["format"], manifest["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / 'manifest.json'}: not a manifest ({error})") from error
    if version > FORMAT:
        raise CheckpointError(
            f"{folder}: format {version} is newer than this sciflow reads ({FORMAT}); update it"
        )
    content = {}
    for name in _FILES:
        if name not in files:
            raise CheckpointError(f"{folder / 'manifest.json'}: does not list {name}")
        content[name] = _read(folder / name)
        digest = hashlib.sha256(content[name]).hexdigest()
        if digest != files[name]["sha256"]:
            raise CheckpointError(
                f"{folder / name}: altered or incomplete (sha256 {digest[:12]}…, the manifest says "
                f"{files[name]['sha256'][:12]}…); restore the file or train the model again"
            )
    return Checkpoint(
        json.loads(content["config.json"]),
        load(content["model.safetensors"]),
        content["card.md"].decode(),
        hashlib.sha256(manifest_bytes).hexdigest(),
    )


def _describe(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _recover(folder: Path) -> Path:
    """The folder, or the last good one where a save was killed between its two renames."""
    if folder.exists():
        return folder
    old = sorted(folder.parent.glob(f".{folder.name}.old.*")) if folder.parent.is_dir() else []
    return old[-1] if old else folder


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}); a model is a folder with "
            f"{', '.join(_FILES)} and manifest.json"
        ) from error
