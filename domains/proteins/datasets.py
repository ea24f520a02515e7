"""The data sets of this domain, each as one :class:`ChainTable`.

``backbones`` is 5,530 experimental chains of the PDB (X-ray and NMR) with distinct sequences, with
DSSP states and clusters at 30 % identity, by which they are split.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from domains.proteins.table import ChainTable, split
from sciflow.data import shared_data
from sciflow.errors import InputError

__all__ = ["ChainTable", "backbones", "compact_backbones", "split"]


def backbones(folder: str | Path | None = None) -> ChainTable:
    """Every chain of ``backbones.npz``, breaks and all.

    Args:
        folder: holds ``backbones.npz``; default the shared data.

    Raises:
        InputError: the file is not there.
    """
    root = Path(folder) if folder is not None else shared_data()
    if root is None:
        raise InputError(
            "the data set backbones.npz is not on this machine: set SCIFLOW_DATA to the folder of "
            "the shared data, or train on a folder of your own PDB files"
        )
    path = root / "backbones.npz" if folder is not None else root / "proteins" / "backbones.npz"
    if not path.is_file():
        raise InputError("no such file", path)
    with np.load(path, allow_pickle=False) as file:
        data = {key: file[key] for key in file.files}
    return ChainTable(
        data["coords"].astype(np.float32) * np.float32(data["unit_angstrom"]),
        data["seq"],
        ~data["break_after"],
        data["ss8"],
        data["offsets"],
        data["cluster30"],
        data["name"],
        data["chain"],
        data["source"],
        name="backbones",
    )


def compact_backbones(folder: str | Path | None = None) -> ChainTable:
    """Unbroken compact chains of 40 to 128 residues, at most half of them coil."""
    return backbones(folder).select(coil=0.5, name="compact-backbones")
