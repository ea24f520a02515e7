"""From atoms as a file lists them to chains of residues; nothing is left out without a word.

The readers of PDB and mmCIF both make :class:`Atom` records; what happens next is common:

* **Alternates**: each residue takes the conformer with the highest occupancy of its backbone, the
  alphabetically first on a tie; atoms that it lacks come from the others.
* **Modified residues** (MSE, SEP, HYP, ...) count as their parent amino acid, by Biopython's table.
* **Hetero groups**: water, ligands and ions are no residues. A hetero group with N, CA and C is one
  where it is bonded to the chain, and counts as its parent or "X".
* **Nucleic acids and other polymers** have no backbone of ours.
* **Refused with the whole chain**: a residue number given twice, a trace of CA alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from Bio.Data.PDBData import protein_letters_3to1, protein_letters_3to1_extended

from domains.proteins.chain import ATOMS, Chain
from sciflow.errors import InputError

__all__ = ["Atom", "BrokenLine", "Findings", "assemble", "letter", "number_or"]

_WATER = {"HOH", "DOD", "WAT", "H2O", "TIP", "TIP3", "SOL"}
_BOND, _POLY_GLYCINE = 2.0, 10
_STANDARD = frozenset(map(str.upper, protein_letters_3to1)) | {"UNK"}


class Atom(NamedTuple):
    """One atom as the file has it. ``line`` counts from 1; in mmCIF it is the atom's row."""

    line: int
    model: int
    chain: str
    residue: str
    name3: str
    atom: str
    alternate: str
    occupancy: float
    x: float
    y: float
    z: float
    b: float
    hetero: bool
    polymer: bool


class BrokenLine(InputError):
    """A line of atoms that cannot be read, and the chain (model, name) that it spoils."""

    def __init__(self, reason: str, path: Path, line: int | None, chain: tuple[int, str] | None):
        super().__init__(reason, path, line)
        self.chain = chain


@dataclass
class Findings:
    """What a reader has to say beside the chains.

    Attributes:
        path: the file.
        dropped: what could not be used, each with its reason.
        notes: choices that were made: alternates, parents of modified residues, missing atoms.
    """

    path: Path
    dropped: list[InputError] = field(default_factory=list)
    notes: list[InputError] = field(default_factory=list)

    def drop(self, reason: str, line: int | None = None) -> None:
        """Something is left out."""
        self.dropped.append(InputError(reason, self.path, line))

    def note(self, reason: str, line: int | None = None) -> None:
        """Something is read in one of several ways."""
        self.notes.append(InputError(reason, self.path, line))


def number_or(text: str, otherwise: float) -> float:
    """The number that a text is; ``otherwise`` where it is none, or not finite."""
    try:
        value = float(text)
    except ValueError:
        return otherwise
    return value if math.isfinite(value) else otherwise


def letter(name3: str) -> str | None:
    """One letter of an amino acid, its parent's if modified; ``None`` for anything else."""
    if name3 in ("UNK", "XAA"):
        return "X"
    return protein_letters_3to1_extended.get(name3.ljust(3))


def assemble(atoms: Sequence[Atom], found: Findings, stem: str) -> list[Chain]:
    """The protein chains among ``atoms``, in the file's order; the rest goes into ``found``.

    Args:
        atoms: of one file.
        found: collects what is dropped or chosen.
        stem: of the names: "stem" for a single chain, "stem_B", in later models "stem_B_m2".
    """
    groups: dict[tuple[int, str], list[Atom]] = {}
    for atom in atoms:
        groups.setdefault((atom.model, atom.chain), []).append(atom)
    chains = []
    for (model, name), members in groups.items():
        label = f"chain {name}" + (f" of model {model}" if model > 1 else "")
        chain = _chain(members, label, found)
        if chain is not None:
            chains.append((model, name, chain))
    many = len({name for _, name, _ in chains}) > 1
    return [
        chain.replace(
            name=stem + (f"_{name}" if many else "") + (f"_m{model}" if model > 1 else ""),
            chain_id=name,
            breaks=chain.breaks,
        )
        for model, name, chain in chains
    ]


class _Residue(NamedTuple):
    id: str
    letter: str
    x: np.ndarray
    b: float
    line: int
    free: bool
    """A hetero group that could as well be a ligand: only a bond makes it part of the chain."""


def _chain(atoms: Sequence[Atom], label: str, found: Findings) -> Chain | None:
    residues: dict[str, list[Atom]] = {}
    for atom in atoms:
        residues.setdefault(atom.residue, []).append(atom)
    rows: list[_Residue] = []
    others: Counter[str] = Counter()
    for number, members in residues.items():
        polymer = [a for a in members if a.polymer]
        others.update(_aside(a for a in members if not a.polymer))
        if not polymer:
            continue
        twice = _twice(polymer)
        if twice is not None:
            first, second = twice
            found.drop(
                f"{label}: residue {number} stands twice (atom {second.atom} of {second.name3}, "
                f"first on line {first.line} as {first.name3}); the chain is refused. Give "
                "residues numbers or insertion codes of their own",
                second.line,
            )
            return None
        row = _residue(number, polymer, label, found)
        if row is None:
            others.update(_aside(polymer))
        else:
            rows.append(row)
    rows = _bonded(rows, label, found)
    if others:
        listed = ", ".join(f"{n} × {name}" for name, n in sorted(others.items()))
        found.drop(f"{label}: no amino acids: {listed}", atoms[0].line)
    if not rows:
        return None
    x = np.stack([row.x for row in rows])
    here = np.isfinite(x[..., 0])
    if not (here[:, 0] & here[:, 2]).any():
        found.drop(
            f"{label}: a trace of CA alone ({len(rows)} residues); N, C and O are needed. Rebuild "
            "the backbone first (PULCHRA, for instance)",
            rows[0].line,
        )
        return None
    _note_missing(rows, here, label, found)
    if len(rows) >= _POLY_GLYCINE and {row.letter for row in rows} == {"G"}:
        found.note(
            f"{label}: every residue is GLY, as generators write what has no designed sequence",
            rows[0].line,
        )
    return Chain(
        x,
        "".join(row.letter for row in rows),
        residue_ids=tuple(row.id for row in rows),
        confidence=np.array([row.b for row in rows]),
    )


def _aside(atoms: Iterable[Atom]) -> Counter[str]:
    """Groups that are no residues, by name; all water is one."""
    names = {(a.name3, a.residue) for a in atoms}
    return Counter("water" if name in _WATER else name or "(no name)" for name, _ in names)


def _twice(atoms: Sequence[Atom]) -> tuple[Atom, Atom] | None:
    """A backbone atom given twice under one alternate: the first and the second time."""
    seen: dict[tuple[str, str], Atom] = {}
    for atom in atoms:
        if atom.atom in ATOMS:
            first = seen.setdefault((atom.atom, atom.alternate), atom)
            if first is not atom:
                return first, atom
    return None


def _residue(number: str, atoms: list[Atom], label: str, found: Findings) -> _Residue | None:
    codes = sorted({a.alternate for a in atoms} - {""})
    if codes:
        spine = [a for a in atoms if a.atom in ATOMS and a.alternate] or [
            a for a in atoms if a.alternate
        ]
        weight = {
            c: np.mean([a.occupancy for a in spine if a.alternate == c] or [0.0]) for c in codes
        }
        best = max(codes, key=lambda c: weight[c])
        if any(a.atom in ATOMS for a in spine):
            found.note(
                f"{label}: residue {number} has alternates {', '.join(codes)}; {best} is taken",
                atoms[0].line,
            )
        # Later entries win: the chosen conformer, then what has no alternates, then the others.
        atoms = sorted(atoms, key=lambda a: (a.alternate == best, not a.alternate))
    name3 = atoms[-1].name3
    one = letter(name3)
    place = {a.atom: a for a in atoms}
    spine3 = all(k in place for k in ("N", "CA", "C"))
    hetero = atoms[-1].hetero
    if one is None and not spine3:
        return None
    if one is not None and hetero and "CA" not in place:
        return None
    if hetero and name3 in _WATER:
        return None
    x = np.full((4, 3), np.nan, np.float32)
    for k, atom in enumerate(ATOMS):
        # The last residue may call its oxygens OT1/OT2 or O1/O2.
        names = (atom,) if atom != "O" else ("O", "OT1", "O1", "OXT")
        a = next((place[n] for n in names if n in place), None)
        if a is not None:
            x[k] = a.x, a.y, a.z
    if not np.isfinite(x).any():
        found.drop(f"{label}: residue {number} {name3} has no backbone atom", atoms[0].line)
        return _Residue(number, "", x, 0.0, atoms[0].line, False)
    if name3 not in _STANDARD:
        found.note(f"{label}: residue {number} {name3} is read as {one or 'X'}", atoms[0].line)
    b = place["CA"].b if "CA" in place else atoms[-1].b
    free = hetero and (one is None or name3 in _STANDARD)
    return _Residue(number, one or "X", x, b, atoms[0].line, free)


def _bonded(rows: list[_Residue], label: str, found: Findings) -> list[_Residue]:
    """Without residues of no atoms, and without hetero groups that no peptide bond holds."""
    rows = [row for row in rows if row.letter]
    kept = []
    for i, row in enumerate(rows):
        if row.free:
            bond = False
            if i > 0:
                bond = bool(np.linalg.norm(rows[i - 1].x[2] - row.x[0]) < _BOND)
            if i + 1 < len(rows):
                bond |= bool(np.linalg.norm(row.x[2] - rows[i + 1].x[0]) < _BOND)
            if not bond:
                found.drop(f"{label}: hetero group {row.id} is not bonded to the chain", row.line)
                continue
        kept.append(row)
    return kept


def _note_missing(rows: Sequence[_Residue], here: np.ndarray, label: str, found: Findings) -> None:
    for row, has in zip(rows, here, strict=True):
        if not has.all():
            lost = ", ".join(a for a, ok in zip(ATOMS, has, strict=True) if not ok)
            found.note(f"{label}: residue {row.id} lacks {lost}", row.line)
