"""Molecules from files and to files, by suffix: SDF, XYZ, CSV and SMILES lists.

A record that cannot be used is dropped with its file, line and reason, and counted; only a file
without a single usable record is an error. Writers are in :mod:`domains.molecules.sdf` and
:mod:`domains.molecules.xyz`, and appear here too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from domains.molecules.molecule import Molecule
from domains.molecules.sdf import read_sdf, write_sdf
from domains.molecules.smiles import canonical_smiles
from domains.molecules.tabular import Row, csv_rows, read_csv, read_smi, smi_rows
from domains.molecules.xyz import read_xyz, write_xyz
from sciflow.errors import InputError
from sciflow.files import file_kind, read_text, write_atomically

__all__ = [
    "SUFFIXES",
    "ReadResult",
    "is_smiles_list",
    "read_molecules",
    "read_rows",
    "write_sdf",
    "write_smiles",
    "write_xyz",
]

Record = Molecule | InputError
"""What a reader yields: a molecule, or why there is none."""


@dataclass(frozen=True)
class ReadResult:
    """What a file held.

    Attributes:
        molecules: the usable records, in order.
        dropped: one error for each of the others.
        path: the file.
    """

    molecules: list[Molecule]
    dropped: list[InputError] = field(default_factory=list)
    path: Path = Path()

    def __len__(self) -> int:
        return len(self.molecules)

    def __iter__(self) -> Iterator[Molecule]:
        return iter(self.molecules)

    def summary(self) -> str:
        """One line: how many were read, how many dropped and why the first was."""
        text = f"{self.path}: {len(self.molecules)} molecules"
        if self.dropped:
            text += f", {len(self.dropped)} dropped (first: {self.dropped[0]})"
        return text


_READERS: dict[str, Callable[[str, Path, bool], Iterable[Record]]] = {
    ".sdf": read_sdf,
    ".sd": read_sdf,
    ".mol": read_sdf,
    ".xyz": read_xyz,
    ".extxyz": read_xyz,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".smi": read_smi,
    ".smiles": read_smi,
    ".txt": read_smi,
}

SUFFIXES = tuple(_READERS)
"""Suffixes that can be read, each also with ``.gz``."""


def read_molecules(path: str | Path, *, strict: bool = True) -> ReadResult:
    """Every usable molecule of a file.

    * ``.sdf``: V2000 and V3000. Bonds and charges as RDKit perceives them (aromatic = 4), implied
      hydrogens added, coordinates kept where they are 3-D; data fields that are numbers become
      properties.
    * ``.xyz``: any number of frames; no bonds. Numbers of an extended comment become properties.
    * ``.csv``, ``.tsv``: a column ``smiles`` or ``canonical_smiles`` in any case; the other columns
      give properties where they hold numbers.
    * ``.smi``, ``.txt``: a SMILES and an optional name on each line.

    Args:
        path: its suffix decides; ``.gz`` may follow.
        strict: with ``False`` what sanitisation refuses is kept as it stands (SDF) and radicals,
            isotope labels and several fragments pass (SMILES): for judging generated molecules.

    Raises:
        InputError: no such file, an unknown suffix, not text, or no usable record (the first
            reason is given).
    """
    path = Path(path)
    reader = _READERS[file_kind(path, SUFFIXES)]
    text = read_text(path, "molecules")
    molecules: list[Molecule] = []
    dropped: list[InputError] = []
    for record in reader(text, path, strict):
        if isinstance(record, InputError):
            dropped.append(record)
        else:
            molecules.append(record)
    if not molecules:
        if not dropped:
            raise InputError("the file holds no molecules", path)
        first = dropped[0]
        raise InputError(
            f"no usable molecule ({len(dropped)} refused); the first: {first.reason}",
            path,
            first.line,
        )
    return ReadResult(molecules, dropped, path)


def read_rows(path: str | Path) -> list[Row | InputError]:
    """The records of a CSV or SMILES list as written, stereochemistry and all; nothing is parsed.

    Raises:
        InputError: no such file, not a list of SMILES, or no records.
    """
    path = Path(path)
    if not is_smiles_list(path):
        raise InputError("not a list of SMILES; give .csv, .tsv, .smi or .txt", path)
    text = read_text(path, "molecules")
    table = _READERS[file_kind(path, SUFFIXES)] is read_csv
    rows: list[Row | InputError] = list(csv_rows(text, path) if table else smi_rows(text))
    if not rows:
        raise InputError("the file holds no molecules", path)
    return rows


def is_smiles_list(path: str | Path) -> bool:
    """Whether the suffix is that of a CSV or SMILES list.

    Raises:
        InputError: an unknown suffix.
    """
    return _READERS[file_kind(path, SUFFIXES)] in (read_csv, read_smi)


def write_smiles(path: str | Path, molecules: Iterable[Molecule]) -> Path:
    """Canonical SMILES and name, one molecule a line.

    Raises:
        InputError: a molecule that has no SMILES (no bonds, or RDKit refuses it); nothing is
            written then.
    """
    lines = []
    for i, molecule in enumerate(molecules):
        smiles = canonical_smiles(molecule)
        if smiles is None:
            raise InputError(
                f"molecule {i + 1} has no SMILES: no bonds are known or RDKit refuses its valences"
            )
        name = " ".join(molecule.name.split())
        lines.append(f"{smiles} {name}".rstrip() + "\n")
    return write_atomically(path, "".join(lines))
