"""MDL SDF: the exchange format of chemistry, with bonds, charges and properties.

Format: CTfile Formats, BIOVIA 2020. Read through RDKit record by record, so that one bad record
costs only itself; written here, because a broken molecule must come out as it is. Its valence
field then keeps a reader from completing it with hydrogens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem, rdBase

from domains.molecules.molecule import AROMATIC, BOND_ORDERS, Molecule
from domains.molecules.numbers import finite_number
from domains.molecules.smiles import first_line, from_rdkit, sanitise, to_rdkit
from domains.molecules.xyz import MAX_ATOMS, element_number
from sciflow.errors import InputError
from sciflow.files import write_atomically

__all__ = ["read_sdf", "write_sdf"]

_FIELD = re.compile(r">.*<([^<>]+)>")
_MOST = 999
_FAR = 9999.0


def read_sdf(text: str, path: Path, strict: bool = True) -> Iterator[Molecule | InputError]:
    """Molecules of the records of an SDF (or one MOL block), or the error of each bad record.

    Errors name the first line of their record. With ``strict`` a record must pass RDKit's
    sanitisation and hold no isotope labels; without, what fails is kept as written.
    """
    lines = text.splitlines()
    start = 0
    while start < len(lines):
        end = next((i for i in range(start, len(lines)) if lines[i].startswith("$$$$")), len(lines))
        record = lines[start:end]
        if any(line.strip() for line in record):
            try:
                yield _molecule(record, strict)
            except InputError as error:
                yield InputError(error.reason, path, start + 1)
        start = end + 1


def _molecule(record: list[str], strict: bool) -> Molecule:
    last = next((i for i, line in enumerate(record) if line.startswith("M  END")), None)
    if last is None or len(record) < 4:
        raise InputError("not an SDF record: no 'M  END' line")
    # RDKit quotes columns byte by byte in what it says, and half a character cannot be read back.
    block = "\n".join(["", *record[1 : last + 1], ""]).encode("ascii", "replace").decode()
    with rdBase.BlockLogs(), rdBase.CaptureErrorLog() as log:
        mol = Chem.MolFromMolBlock(block, sanitize=False, removeHs=False)
    if mol is None:
        said = _bad_atom(record) or f"not an SDF record: {first_line(log.messages)}"
        raise InputError(said)
    if not 1 <= mol.GetNumAtoms() <= MAX_ATOMS:
        raise InputError(f"{mol.GetNumAtoms()} atoms; allowed: 1 to {MAX_ATOMS}")
    conformer = mol.GetConformer()
    positions = conformer.GetPositions()
    if not np.isfinite(positions).all():
        raise InputError("coordinates must be finite numbers; found NaN or infinity")
    if strict:
        sanitise(mol)
        labelled = [atom.GetSymbol() for atom in mol.GetAtoms() if atom.GetIsotope()]
        if labelled:
            raise InputError(f"isotope label on {labelled[0]}; labels are not kept, remove them")
    else:
        mol = _sanitised_if_possible(mol)
    mol.UpdatePropertyCache(strict=False)
    if not _is_3d(record[1], positions, any(atom.GetTotalNumHs() for atom in mol.GetAtoms())):
        mol.RemoveAllConformers()
    mol.SetProp("_Name", record[0])
    return from_rdkit(mol).replace(properties=_properties(record[last + 1 :]))


def _bad_atom(record: list[str]) -> str | None:
    """Which atom line RDKit could not read; it says so only in a warning."""
    count = finite_number(record[3][:3])
    if "V3000" in record[3] or count is None:
        return None
    for i, line in enumerate(record[4 : 4 + int(count)]):
        for word in (line[0:10], line[10:20], line[20:30]):
            if finite_number(word) is None:
                return f"atom {i + 1}: coordinate {word.strip()!r} is not a finite number"
        if not element_number(line[31:34].strip()):
            return f"atom {i + 1}: no element {line[31:34].strip()!r}"
    return None


def _sanitised_if_possible(mol: Chem.Mol) -> Chem.Mol:
    tried = Chem.Mol(mol)
    try:
        sanitise(tried)
    except InputError:
        return mol
    return tried


def _is_3d(header: str, positions: NDArray[np.float64], implied_hydrogens: bool) -> bool:
    """Whether coordinates are a structure and not a drawing or a row of zeros.

    A flat molecule without a dimension code is taken for a drawing if hydrogens are implied.
    """
    if len(positions) > 1 and not positions.any():
        return False
    if positions[:, 2].any() or header[20:22] == "3D":
        return True
    return header[20:22] != "2D" and not implied_hydrogens


def _properties(lines: list[str]) -> dict[str, float]:
    """The data fields whose value is one finite number."""
    found = {}
    for i, line in enumerate(lines[:-1]):
        field = _FIELD.match(line)
        alone = i + 2 >= len(lines) or not lines[i + 2].strip()
        value = finite_number(lines[i + 1]) if field and alone else None
        if field and value is not None:
            found[field[1]] = value
    return found


def write_sdf(path: str | Path, molecules: Iterable[Molecule]) -> Path:
    """Every molecule as a V2000 record; properties become data fields. Returns the path.

    Aromatic bonds are written as a Kekulé structure; where there is none (a broken molecule) they
    stay type 4. Coordinates have four decimals (Å); without positions they are zero.

    Raises:
        InputError: more than 999 atoms or bonds, or coordinates that do not fit the format.
    """
    records = []
    for i, molecule in enumerate(molecules):
        try:
            records.append(_record(molecule))
        except InputError as error:
            raise InputError(f"molecule {i + 1}: {error.reason}", path) from None
    return write_atomically(path, "".join(records))


def _record(molecule: Molecule) -> str:
    n = len(molecule)
    positions = np.zeros((n, 3)) if molecule.positions is None else molecule.positions
    if not np.isfinite(positions).all() or (np.abs(positions) > _FAR).any():
        raise InputError(f"coordinates must be finite and within ±{_FAR:g} Å")
    bonds, marked = _kekule(molecule)
    pairs = np.argwhere(np.triu(bonds))
    if n > _MOST or len(pairs) > _MOST:
        raise InputError(f"{n} atoms and {len(pairs)} bonds; V2000 holds at most {_MOST} of each")
    symbol = Chem.GetPeriodicTable().GetElementSymbol
    title = " ".join(molecule.name.split())[:80].replace("$$$$", "")
    out = [
        title,
        f"  sciflow {'':10}{'2D' if molecule.positions is None else '3D'}",
        "",
        f"{n:3d}{len(pairs):3d}  0  0  0  0  0  0  0  0999 V2000",
    ]
    for number, (x, y, z), valence in zip(molecule.numbers, positions, marked, strict=True):
        if not 1 <= number <= 118:
            raise InputError(f"no element {number}")
        out.append(
            f"{x:10.4f}{y:10.4f}{z:10.4f} {symbol(int(number)):<3} 0  0  0  0  0{valence:3d}"
            "  0  0  0  0  0  0"
        )
    out += [f"{i + 1:3d}{j + 1:3d}{bonds[i, j]:3d}  0" for i, j in pairs]
    charged = np.flatnonzero(molecule.charges)
    for some in (charged[k : k + 8] for k in range(0, len(charged), 8)):
        entries = "".join(f"{i + 1:4d}{molecule.charges[i]:4d}" for i in some)
        out.append(f"M  CHG{len(some):3d}{entries}")
    out.append("M  END")
    for key, value in molecule.properties.items():
        if np.isfinite(value):
            out += [f">  <{re.sub('[<>]', '_', ' '.join(key.split()))}>", repr(float(value)), ""]
    return "\n".join([*out, "$$$$", ""])


def _kekule(molecule: Molecule) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
    """Bond types to write, and the valence field of each atom (0: the element's usual valence)."""
    n = len(molecule)
    bonds = np.zeros((n, n), np.int8) if molecule.bonds is None else molecule.bonds
    orders = np.array(BOND_ORDERS)[bonds].sum(1)
    stated = np.where(orders > 0, np.clip(orders, 1, 14).astype(np.int64), 15)
    if molecule.bonds is None:
        return bonds, stated
    try:
        mol = to_rdkit(molecule)
        if (bonds == AROMATIC).any():
            with rdBase.BlockLogs():
                Chem.Kekulize(mol, clearAromaticFlags=True)
            bonds = np.zeros((n, n), np.int8)
            for bond in mol.GetBonds():
                i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
                bonds[i, j] = bonds[j, i] = int(bond.GetBondTypeAsDouble())
    except (InputError, Chem.MolSanitizeException):
        return bonds, stated
    radical = np.array([atom.GetNumRadicalElectrons() > 0 for atom in mol.GetAtoms()], bool)
    return bonds, np.where(radical, stated, 0)
