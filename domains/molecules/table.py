"""A set of molecules as padded arrays: what training reads and what a prepared data set is on disk.

Row ``i`` is one molecule of ``n_atoms[i]`` atoms; every entry behind them is zero. The file is a
plain ``.npz`` of numbers and text, read without unpickling, so a node that has neither RDKit nor
the source data can train from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from domains.molecules.molecule import Molecule
from sciflow.errors import InputError
from sciflow.files import reading_arrays, writing

__all__ = ["MoleculeTable", "split"]

_PROPERTY = "property/"
_ARRAYS = {
    "numbers": np.uint8,
    "positions": np.float32,
    "bonds": np.uint8,
    "charges": np.int8,
    "n_atoms": np.int64,
}


@dataclass(frozen=True, eq=False)
class MoleculeTable:
    """``M`` molecules of at most ``N`` atoms.

    Attributes:
        numbers: atomic numbers, uint8 ``[M, N]``; 0 is padding.
        positions: coordinates in ångström, float32 ``[M, N, 3]``.
        bonds: bond codes as in :class:`Molecule`, uint8 ``[M, N, N]``, symmetric.
        charges: formal charges, int8 ``[M, N]``.
        n_atoms: atoms of each molecule, int64 ``[M]``.
        properties: named values, float32 ``[M]`` each; NaN where one is not known.
        smiles: the identity of each molecule, or ``None`` where not recorded.
        name: of the data set.
    """

    numbers: NDArray[np.uint8]
    positions: NDArray[np.float32]
    bonds: NDArray[np.uint8]
    charges: NDArray[np.int8]
    n_atoms: NDArray[np.int64]
    properties: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    smiles: list[str] | None = None
    name: str = ""

    def __post_init__(self) -> None:
        for key, kind in _ARRAYS.items():
            object.__setattr__(self, key, np.ascontiguousarray(getattr(self, key), kind))
        values = {k: np.ascontiguousarray(v, np.float32) for k, v in self.properties.items()}
        object.__setattr__(self, "properties", values)
        if self.numbers.ndim != 2:
            raise ValueError(f"numbers must be [M, N], got shape {self.numbers.shape}")
        m, n = self.numbers.shape
        shapes = {
            "positions": (m, n, 3),
            "bonds": (m, n, n),
            "charges": (m, n),
            "n_atoms": (m,),
        }
        for key, shape in shapes.items():
            if getattr(self, key).shape != shape:
                raise ValueError(f"{key} must be {shape}, got {getattr(self, key).shape}")
        for key, value in values.items():
            if value.shape != (m,):
                raise ValueError(f"property {key!r} must be {(m,)}, got {value.shape}")
        if self.smiles is not None and len(self.smiles) != m:
            raise ValueError(f"{len(self.smiles)} SMILES for {m} molecules")

    def __len__(self) -> int:
        return len(self.n_atoms)

    def __iter__(self) -> Iterator[Molecule]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> Molecule:
        """Molecule ``index`` without padding; properties that are NaN are left out."""
        n = int(self.n_atoms[index])
        values = {k: float(v[index]) for k, v in self.properties.items() if v[index] == v[index]}
        return Molecule(
            self.numbers[index, :n].astype(np.int64),
            self.positions[index, :n].astype(np.float64),
            self.bonds[index, :n, :n].astype(np.int8),
            self.charges[index, :n],
            values,
            self.smiles[index] if self.smiles is not None else "",
        )

    def with_missing(self, names: Iterable[str]) -> MoleculeTable:
        """The same molecules; properties of ``names`` that are not there become all missing."""
        absent = {k: np.full(len(self), np.nan) for k in names if k not in self.properties}
        return replace(self, properties={**self.properties, **absent})

    def subset(self, indices: ArrayLike) -> MoleculeTable:
        """The rows ``indices`` (integers or a mask), in that order, padded as before."""
        rows = np.asarray(indices)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        return MoleculeTable(
            self.numbers[rows],
            self.positions[rows],
            self.bonds[rows],
            self.charges[rows],
            self.n_atoms[rows],
            {key: value[rows] for key, value in self.properties.items()},
            None if self.smiles is None else [self.smiles[i] for i in rows.tolist()],
            self.name,
        )

    @classmethod
    def from_molecules(
        cls, molecules: Sequence[Molecule], name: str = "", smiles: Sequence[str] | None = None
    ) -> MoleculeTable:
        """Stack molecules that have positions and bonds; properties are joined by name.

        Raises:
            InputError: no molecules, or one without atoms, positions or bonds.
        """
        if not molecules:
            raise InputError("no molecules to make a table of")
        for i, molecule in enumerate(molecules):
            missing = [
                what
                for what, absent in (
                    ("atoms", not len(molecule)),
                    ("positions (build them from the graph)", molecule.positions is None),
                    ("bonds (perceive them, or read an SDF file)", molecule.bonds is None),
                )
                if absent
            ]
            if missing:
                raise InputError(f"molecule {i + 1} has no {' and no '.join(missing)}")
        m, n = len(molecules), max(len(molecule) for molecule in molecules)
        numbers, charges = np.zeros((m, n), np.uint8), np.zeros((m, n), np.int8)
        positions, bonds = np.zeros((m, n, 3), np.float32), np.zeros((m, n, n), np.uint8)
        keys = dict.fromkeys(key for molecule in molecules for key in molecule.properties)
        properties = {key: np.full(m, np.nan, np.float32) for key in keys}
        for i, molecule in enumerate(molecules):
            k = len(molecule)
            numbers[i, :k], charges[i, :k] = molecule.numbers, molecule.charges
            positions[i, :k], bonds[i, :k, :k] = molecule.positions, np.asarray(molecule.bonds)
            for key, value in molecule.properties.items():
                properties[key][i] = value
        n_atoms = np.array([len(molecule) for molecule in molecules], np.int64)
        names = None if smiles is None else list(smiles)
        return cls(numbers, positions, bonds, charges, n_atoms, properties, names, name)

    @classmethod
    def concatenate(cls, tables: Sequence[MoleculeTable], name: str = "") -> MoleculeTable:
        """One table after the other, padded to the largest; missing properties are NaN."""
        if not tables:
            raise InputError("no tables to join")
        width = max(table.numbers.shape[1] for table in tables)

        def joined(key: str, axes: int) -> NDArray[Any]:
            blocks = []
            for table in tables:
                value = getattr(table, key)
                short = width - table.numbers.shape[1]
                blocks.append(
                    np.pad(value, [(0, short if 1 <= k <= axes else 0) for k in range(value.ndim)])
                )
            return np.concatenate(blocks)

        keys = dict.fromkeys(key for table in tables for key in table.properties)
        properties = {
            key: np.concatenate(
                [t.properties.get(key, np.full(len(t), np.nan, np.float32)) for t in tables]
            )
            for key in keys
        }
        smiles: list[str] | None = []
        for table in tables:
            smiles = None if smiles is None or table.smiles is None else smiles + table.smiles
        return cls(
            joined("numbers", 1),
            joined("positions", 1),
            joined("bonds", 2),
            joined("charges", 1),
            np.concatenate([table.n_atoms for table in tables]),
            properties,
            smiles,
            name,
        )

    @classmethod
    def empty(cls, name: str = "") -> MoleculeTable:
        """A table of no molecules."""
        return cls(
            np.zeros((0, 0), np.uint8),
            np.zeros((0, 0, 3), np.float32),
            np.zeros((0, 0, 0), np.uint8),
            np.zeros((0, 0), np.int8),
            np.zeros(0, np.int64),
            smiles=[],
            name=name,
        )

    def save(self, path: str | Path) -> Path:
        """Write one ``.npz``; the file appears whole or not at all. Returns its path."""
        path = Path(path)
        arrays: dict[str, Any] = {key: getattr(self, key) for key in _ARRAYS}
        arrays |= {_PROPERTY + key: value for key, value in self.properties.items()}
        arrays["name"] = np.array(self.name)
        if self.smiles is not None:
            arrays["smiles"] = np.array(self.smiles, np.str_)
        with writing(path) as file:
            np.savez_compressed(file, **arrays)
        return path

    @classmethod
    def load(cls, path: str | Path) -> MoleculeTable:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: no such file, or not a whole table.
        """
        with reading_arrays(path, "a table of molecules") as file:
            return cls(
                **{key: file[key] for key in _ARRAYS},
                properties={
                    key.removeprefix(_PROPERTY): file[key]
                    for key in file.files
                    if key.startswith(_PROPERTY)
                },
                smiles=file["smiles"].tolist() if "smiles" in file.files else None,
                name=str(file["name"]),
            )


def split(table: MoleculeTable, seed: int = 0) -> dict[str, NDArray[np.int64]]:
    """Row indices of ``train``, ``valid`` and ``test``: 90 %, 5 %, 5 % of a seeded permutation.

    A function of ``(len(table), seed)`` alone, through NumPy's frozen legacy stream, so it is the
    same on every machine and in every version.
    """
    rows = np.random.RandomState(seed).permutation(len(table)).astype(np.int64)
    held = len(table) // 20
    return {
        "train": np.sort(rows[2 * held :]),
        "valid": np.sort(rows[:held]),
        "test": np.sort(rows[held : 2 * held]),
    }
