"""The data sets of this domain, each as one :class:`ChainTable`.

``backbones`` is 5,530 experimental chains of the PDB (X-ray and NMR) with distinct sequences, with
DSSP states and clusters at 30 % identity, by which they are split. ``backbones-alpha`` and
``backbones-beta`` are its chains of one kind of secondary structure, named as the classes of CATH
are but told by shares of DSSP states alone:

=================  ============  ============  ====================
data set           helix         strand        chains (clusters)
=================  ============  ============  ====================
backbones-alpha    40 % or more  10 % or less  1,638 (1,232)
backbones-beta     10 % or less  30 % or more  836 (374)
=================  ============  ============  ====================

They are for models to be composed. A chain is on the same side of the split in all of them, so that
what is held out of one model is held out of the other and of their superposition.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from domains.proteins.table import ChainTable, split
from sciflow.data import shared_data
from sciflow.errors import InputError

__all__ = [
    "LOADERS",
    "ChainTable",
    "backbones",
    "compact_backbones",
    "mainly_alpha",
    "mainly_beta",
    "split",
]

_MAIN = {"helix": 0.4, "strand": 0.3}
_OTHER = 0.1


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


def mainly_alpha(folder: str | Path | None = None) -> ChainTable:
    """Chains of at least 40 % helix and at most 10 % strand."""
    table = backbones(folder)
    keep = (table.helix >= _MAIN["helix"]) & (table.strand <= _OTHER)
    return table.subset(keep, "backbones-alpha")


def mainly_beta(folder: str | Path | None = None) -> ChainTable:
    """Chains of at least 30 % strand and at most 10 % helix."""
    table = backbones(folder)
    keep = (table.strand >= _MAIN["strand"]) & (table.helix <= _OTHER)
    return table.subset(keep, "backbones-beta")


LOADERS: dict[str, Callable[[], ChainTable]] = {
    "backbones": backbones,
    "backbones-alpha": mainly_alpha,
    "backbones-beta": mainly_beta,
}
"""Data set → its table."""
