"""SMILES and RDKit graphs to and from :class:`Molecule`, with the guards that RDKit lacks.

RDKit reads ``""`` as a molecule of no atoms, stops silently at the first byte or blank that it does
not know (``"CCÖ"`` becomes ``CC``) and overflows its stack on chains of 20,000 atoms. So a string
is judged here first: printable ASCII, no blanks, at most 1000 characters and 500 atoms. What the
records of this project cannot hold (``*``, isotopes) or what the closed-shell oracles cannot
compute (radicals, salts of several fragments) is refused by name rather than changed silently.

Hydrogens are always explicit atoms. A :class:`Molecule` holds no chirality tags: stereochemistry
lives in its coordinates, and :func:`canonical_smiles` is that of the constitution.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rdkit import Chem, rdBase

from domains.molecules.molecule import AROMATIC, Molecule
from sciflow.errors import InputError

__all__ = [
    "MAX_ATOMS",
    "MAX_LENGTH",
    "canonical_smiles",
    "first_line",
    "flat_smiles",
    "from_rdkit",
    "molecule_from_smiles",
    "parse_smiles",
    "sanitise",
    "to_rdkit",
]

MAX_LENGTH = 1000
"""Characters that a SMILES may have."""

MAX_ATOMS = 500
"""Atoms, hydrogens included, that a molecule given as SMILES may have."""

MAX_CHARGE = 3
"""Largest formal charge of one atom, in either sign."""

_TYPES = {
    1: Chem.BondType.SINGLE,
    2: Chem.BondType.DOUBLE,
    3: Chem.BondType.TRIPLE,
    AROMATIC: Chem.BondType.AROMATIC,
}
_CODES = {kind: code for code, kind in _TYPES.items()}


def parse_smiles(
    smiles: Any,
    *,
    path: str | Path | None = None,
    line: int | None = None,
    add_hydrogens: bool = True,
    strict: bool = True,
) -> Chem.Mol:
    """A sanitised RDKit molecule, atoms in the written order, stereochemistry kept.

    Hydrogens written in the string stay where they are; with ``add_hydrogens`` the implied ones
    follow as atoms. ``strict=False`` lets radicals, isotope labels and several fragments pass.

    Raises:
        InputError: with the reason (RDKit's own where RDKit refused), ``path`` and ``line``.
    """
    _guard(smiles, path, line)
    parameters: Any = Chem.SmilesParserParams()
    parameters.removeHs = False
    parameters.sanitize = False
    parameters.allowCXSMILES = False
    with rdBase.BlockLogs(), rdBase.CaptureErrorLog() as log:
        mol = Chem.MolFromSmiles(smiles, parameters)
    shown = smiles if len(smiles) <= 80 else smiles[:77] + "..."
    if mol is None:
        said = first_line(log.messages)
        raise InputError(f"{shown!r} is not SMILES: {said}", path, line)
    _check_size(mol, shown, path, line)
    try:
        sanitise(mol)
    except InputError as error:
        raise InputError(f"{shown!r}: {error.reason}", path, line) from None
    _check_atoms(mol, shown, path, line)
    if strict:
        _check_closed_shell(mol, shown, path, line)
    if add_hydrogens:
        mol = Chem.AddHs(mol)
        _check_size(mol, shown, path, line)
    return mol


def molecule_from_smiles(
    smiles: Any,
    *,
    path: str | Path | None = None,
    line: int | None = None,
    add_hydrogens: bool = True,
    strict: bool = True,
) -> Molecule:
    """The molecular graph of a SMILES: explicit hydrogens, bond codes, charges, no coordinates.

    Args:
        smiles: one molecule; no blanks, so no name behind it.
        path: the file it came from, named in an error.
        line: the line of that file, counted from 1.
        add_hydrogens: make the implied hydrogens atoms. Without it the graph is the atoms as
            written (a heavy-atom model's view).
        strict: refuse radicals, isotope labels and more than one fragment.

    Raises:
        InputError: for every string that is not one such molecule.
    """
    mol = parse_smiles(smiles, path=path, line=line, add_hydrogens=add_hydrogens, strict=strict)
    return _record(mol, None)


def to_rdkit(molecule: Molecule, sanitize: bool = True) -> Chem.Mol:
    """An RDKit molecule with these atoms and no others (no implied hydrogen is ever added).

    Atoms short of bonds therefore become radicals, as they should in a validity check. Positions,
    where known, become the one conformer; the stereochemistry that they imply is not assigned.

    Args:
        molecule: needs :attr:`Molecule.bonds`.
        sanitize: check valences, kekulise, perceive aromaticity. Without it the molecule is as
            given, whatever its chemistry.

    Raises:
        InputError: no bonds are known, an element or bond code that does not exist, or RDKit
            cannot sanitise it (its reason is in the message).
    """
    if molecule.bonds is None:
        raise InputError("the molecule has no bonds; perceive them first or read an SDF file")
    if (molecule.bonds != molecule.bonds.T).any() or np.diagonal(molecule.bonds).any():
        raise InputError("the bond matrix must be symmetric with an empty diagonal")
    if len(molecule) and not (1 <= molecule.numbers.min() <= molecule.numbers.max() <= 118):
        raise InputError("atomic numbers must lie in 1..118")
    mol = Chem.RWMol()
    for number, charge in zip(molecule.numbers.tolist(), molecule.charges.tolist(), strict=True):
        atom = Chem.Atom(number)
        atom.SetFormalCharge(charge)
        atom.SetNoImplicit(True)
        mol.AddAtom(atom)
    for i, j in zip(*np.nonzero(np.triu(molecule.bonds)), strict=True):
        code = int(molecule.bonds[i, j])
        if code not in _TYPES:
            raise InputError(f"bond code {code} between atoms {i} and {j}; allowed: 0, 1, 2, 3, 4")
        mol.AddBond(int(i), int(j), _TYPES[code])
        if code == AROMATIC:
            mol.GetBondWithIdx(mol.GetNumBonds() - 1).SetIsAromatic(True)
            mol.GetAtomWithIdx(int(i)).SetIsAromatic(True)
            mol.GetAtomWithIdx(int(j)).SetIsAromatic(True)
    if molecule.positions is not None and len(molecule):
        conformer = Chem.Conformer(len(molecule))
        conformer.Set3D(True)
        conformer.SetPositions(np.ascontiguousarray(molecule.positions))
        mol.AddConformer(conformer, assignId=True)
    if molecule.name:
        mol.SetProp("_Name", molecule.name)
    out = mol.GetMol()
    if sanitize:
        sanitise(out)
    return out


def from_rdkit(mol: Chem.Mol) -> Molecule:
    """The record of an RDKit molecule; its first conformer, if any, gives the positions.

    Implied hydrogens become atoms (placed by RDKit's ideal geometry where there is a conformer).

    Raises:
        InputError: a dummy atom, a bond type outside single, double, triple and aromatic, or
            coordinates that are not finite.
    """
    mol.UpdatePropertyCache(strict=False)
    if any(atom.GetTotalNumHs() for atom in mol.GetAtoms()):
        mol = Chem.AddHs(mol, addCoords=mol.GetNumConformers() > 0)
    positions = mol.GetConformer().GetPositions() if mol.GetNumConformers() else None
    return _record(mol, positions)


def canonical_smiles(molecule: Molecule) -> str | None:
    """RDKit's canonical SMILES without hydrogens or stereochemistry; ``None`` where it has none.

    ``None`` means: no atoms, no bonds known, too large, or refused by RDKit's sanitisation.
    """
    if not len(molecule) or molecule.bonds is None or len(molecule) > 2 * MAX_ATOMS:
        return None
    try:
        mol = to_rdkit(molecule)
    except InputError:
        return None
    return flat_smiles(mol)


def flat_smiles(mol: Chem.Mol) -> str:
    """The canonical SMILES of a sanitised RDKit molecule, without hydrogens or stereochemistry."""
    with rdBase.BlockLogs():
        return Chem.MolToSmiles(Chem.RemoveHs(mol, sanitize=False), isomericSmiles=False)


def sanitise(mol: Chem.Mol) -> None:
    """RDKit's sanitisation in place; a refusal becomes an InputError with RDKit's reason."""
    try:
        with rdBase.BlockLogs():
            Chem.SanitizeMol(mol)
    except (Chem.MolSanitizeException, RuntimeError, ValueError) as error:
        raise InputError(first_line(str(error))) from None


def _record(mol: Chem.Mol, positions: Any) -> Molecule:
    n = mol.GetNumAtoms()
    atoms = [(atom.GetAtomicNum(), atom.GetFormalCharge()) for atom in mol.GetAtoms()]
    numbers, charges = np.array(atoms, np.int64).reshape(n, 2).T
    if (numbers == 0).any():
        raise InputError("a dummy atom (*) has no element; give whole molecules")
    if positions is not None and not np.isfinite(positions).all():
        raise InputError("coordinates must be finite numbers; found NaN or infinity")
    bonds = np.zeros((n, n), np.int8)
    for bond in mol.GetBonds():
        i, j, kind = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), bond.GetBondType()
        if kind not in _CODES:
            raise InputError(
                f"bond type {kind} between atoms {i} and {j}; allowed: single, double, triple, "
                "aromatic"
            )
        bonds[i, j] = bonds[j, i] = _CODES[kind]
    name = mol.GetProp("_Name") if mol.HasProp("_Name") else ""
    return Molecule(numbers, positions, bonds, charges.astype(np.int8), name=name)


def _guard(smiles: Any, path: str | Path | None, line: int | None) -> None:
    """What RDKit must never see."""
    if not isinstance(smiles, str):
        raise InputError(f"SMILES must be text, got {type(smiles).__name__}", path, line)
    if not smiles.strip():
        raise InputError("empty SMILES; give at least one atom", path, line)
    if len(smiles) > MAX_LENGTH:
        raise InputError(
            f"SMILES of {len(smiles)} characters; at most {MAX_LENGTH} are read", path, line
        )
    if smiles.isascii() and smiles.isprintable() and " " not in smiles:
        return
    for position, character in enumerate(smiles):
        if not "!" <= character <= "~":
            kind = "a blank" if character.isspace() else "not printable ASCII"
            raise InputError(
                f"character {character!r} at position {position + 1} of the SMILES is {kind}; "
                "remove it (a name goes in its own column)",
                path,
                line,
            )


def _check_size(mol: Chem.Mol, shown: str, path: str | Path | None, line: int | None) -> None:
    n = mol.GetNumAtoms()
    if n == 0:
        raise InputError(f"{shown!r} has no atoms", path, line)
    if n > MAX_ATOMS:
        raise InputError(f"{shown!r} has {n} atoms or more; at most {MAX_ATOMS}", path, line)


def _check_atoms(mol: Chem.Mol, shown: str, path: str | Path | None, line: int | None) -> None:
    for atom in mol.GetAtoms():
        if atom.GetAtomicNum() == 0:
            raise InputError(
                f"{shown!r}: the dummy atom * has no element; give whole molecules", path, line
            )
        if abs(atom.GetFormalCharge()) > MAX_CHARGE:
            raise InputError(
                f"{shown!r}: formal charge {atom.GetFormalCharge():+d} on {atom.GetSymbol()}; "
                f"at most {MAX_CHARGE} in either sign",
                path,
                line,
            )


def _check_closed_shell(
    mol: Chem.Mol, shown: str, path: str | Path | None, line: int | None
) -> None:
    table = Chem.GetPeriodicTable()
    for atom in mol.GetAtoms():
        symbol = atom.GetSymbol()
        if atom.GetNumRadicalElectrons():
            raise InputError(
                f"{shown!r} is a radical (unpaired electron on {symbol}); closed shells only",
                path,
                line,
            )
        if table.GetDefaultValence(atom.GetAtomicNum()) < 0:
            raise InputError(
                f"{shown!r}: {symbol} has no defined valence, so its shell cannot be judged; "
                "main-group molecules only",
                path,
                line,
            )
        if atom.GetIsotope():
            raise InputError(
                f"{shown!r}: isotope labels are not kept; write {symbol} without its mass number",
                path,
                line,
            )
    pieces = len(Chem.GetMolFrags(mol))
    if pieces > 1:
        raise InputError(
            f"{shown!r} has {pieces} fragments; give one molecule (strip salts and solvents)",
            path,
            line,
        )


def first_line(text: str) -> str:
    """RDKit's first message without its time stamp."""
    for row in text.splitlines():
        said = row.split("] ", 1)[-1].strip() if row.startswith("[") else row.strip()
        if said:
            return said.removeprefix("SMILES Parse Error: ")
    return "RDKit gave no reason"
