"""A model on disk: plain data, whole or absent, and refused by name when a byte has changed.

A model is a folder of

* ``config.json``         what to build: domain, fields, network, sampler;
* ``model.safetensors``   the weights, and reference tensors of the training set;
* ``card.md``             for the reader: trained on what, how long, how good, what it cannot do;
* ``manifest.json``       format version, size and sha256 of every other file, and its own sha256;
  written last.

Saving writes a new folder beside the old one, moves the old one aside and the new one in. A save
killed between these two leaves the last good model under its hidden name, where loading finds it
and from where the next save clears it away. Nothing is unpickled, ever.
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

__all__ = ["FORMAT", "Checkpoint", "load_checkpoint", "locate", "save_checkpoint"]

FORMAT = 1
_FILES = ("config.json", "model.safetensors", "card.md")
_NEW, _OLD = ".new.", ".old."
_ADVICE = "restore the file or train the model again"


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

    folder = Path(os.path.abspath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}{_NEW}", dir=folder.parent))
    try:
        write_json(new / "config.json", checkpoint.config)
        tensors = {name: x.detach().cpu().contiguous() for name, x in checkpoint.tensors.items()}
        write_atomically(new / "model.safetensors", save(tensors))
        write_atomically(new / "card.md", checkpoint.card)
        files = {name: _describe(new / name) for name in _FILES}
        write_atomically(new / "manifest.json", _manifest(files))
        os.chmod(new, 0o755)
        if folder.exists():
            os.replace(folder, new.with_name(f".{folder.name}{_OLD}{new.suffix[1:]}"))
        os.replace(new, folder)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    # This save's old model, and what killed saves left.
    for leftover in (*_hidden(folder, _OLD), *_hidden(folder, _NEW)):
        shutil.rmtree(leftover, ignore_errors=True)
    return folder


def load_checkpoint(folder: str | Path) -> Checkpoint:
    """Read a model and verify every byte of it.

    Raises:
        CheckpointError: a file is missing, altered, or of a newer format.
    """
    from safetensors.torch import load

    folder = locate(folder)
    manifest_bytes = _read(folder / "manifest.json")
    files = _listed(manifest_bytes, folder / "manifest.json")
    content = {}
    for name in _FILES:
        content[name] = _read(folder / name)
        digest = hashlib.sha256(content[name]).hexdigest()
        if digest != files[name]["sha256"]:
            raise CheckpointError(
                f"{folder / name}: altered or incomplete (sha256 {digest[:12]}…, the manifest says "
                f"{files[name]['sha256'][:12]}…); {_ADVICE}"
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


def _manifest(files: dict[str, Any]) -> str:
    """The text of ``manifest.json``, a function of its content to the last byte."""
    content = {"format": FORMAT, "files": files}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({**content, "sha256": digest}, indent=2) + "\n"


def _listed(text: bytes, path: Path) -> dict[str, Any]:
    """The entry ``files`` of a manifest that is what was once written."""
    try:
        manifest = json.loads(text)
        version, files = manifest["format"], manifest["files"]
        newer = version > FORMAT
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not a manifest ({error}); {_ADVICE}") from error
    if newer:
        raise CheckpointError(
            f"{path}: format {version} is newer than this sciflow reads ({FORMAT}); update it"
        )
    if text.decode() != _manifest(files):
        raise CheckpointError(f"{path}: altered; {_ADVICE}")
    missing = [name for name in _FILES if name not in files]
    if missing:
        raise CheckpointError(f"{path}: does not list {missing[0]}")
    return dict(files)


def locate(folder: str | Path) -> Path:
    """Where a model lies: the folder, or the hidden one that a killed save left of it."""
    folder = Path(folder)
    hidden = _hidden(Path(os.path.abspath(folder)), _OLD)
    return folder if folder.exists() or not hidden else hidden[-1]


def _hidden(folder: Path, kind: str) -> list[Path]:
    """Folders that saves of ``folder`` made beside it, oldest first."""
    start = f".{folder.name}{kind}"
    found = folder.parent.iterdir() if folder.parent.is_dir() else iter(())
    return sorted((p for p in found if p.name.startswith(start)), key=lambda p: p.stat().st_mtime)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}); a model is a folder with "
            f"{', '.join(_FILES)} and manifest.json"
        ) from error
