"""mmCIF files: the table ``_atom_site``, tokenised by Biopython.

Author's names of chains and residues are used, as in PDB files; ``label_seq_id`` tells what belongs
to a polymer, where the writer of the file used it so. Rows are numbered from 1 where PDB files have
lines.
"""

from __future__ import annotations

import io
import math
import re
from pathlib import Path

from Bio.PDB.MMCIF2Dict import MMCIF2Dict

from domains.proteins.atoms import Atom, BrokenLine, number_or
from sciflow.errors import InputError

__all__ = ["read_atoms"]

_NEEDED = (
    "group_PDB",
    "label_atom_id",
    "label_comp_id",
    "label_asym_id",
    "label_seq_id",
    "Cartn_x",
    "Cartn_y",
    "Cartn_z",
)
_UNKNOWN = (".", "?", "")


def read_atoms(text: str, path: Path) -> tuple[list[Atom], list[BrokenLine]]:
    """Every atom of an mmCIF file, and the rows that could not be read.

    Raises:
        InputError: not CIF, no table of atoms, or one whose columns are missing or cut off.
    """
    try:
        data = MMCIF2Dict(io.StringIO(text))
    # The tokeniser raises whatever it stumbles over: ValueError, IndexError, StopIteration, ...
    except Exception as error:
        raise InputError(
            f"not a whole mmCIF file ({type(error).__name__}: {error})", path
        ) from None
    table = {
        key.removeprefix("_atom_site."): value if isinstance(value, list) else [value]
        for key, value in data.items()
        if key.startswith("_atom_site.")
    }
    if not table:
        raise InputError("no table of atoms (_atom_site): not an mmCIF file of a structure", path)
    missing = [key for key in _NEEDED if key not in table]
    if missing:
        raise InputError(f"the table of atoms has no column {', '.join(missing)}", path)
    sizes = {key: len(value) for key, value in table.items()}
    if len(set(sizes.values())) > 1:
        raise InputError(
            f"the table of atoms is cut off: columns of {min(sizes.values())} to "
            f"{max(sizes.values())} rows",
            path,
        )
    atoms: list[Atom] = []
    broken: list[BrokenLine] = []
    models: dict[str, int] = {}
    # Biopython, for one, numbers no hetero group, not even a modified residue inside a chain.
    numbered = any(
        kind == "HETATM" and number not in _UNKNOWN
        for kind, number in zip(table["group_PDB"], table["label_seq_id"], strict=True)
    )
    for row in range(len(table["Cartn_x"])):
        get = {key: value[row] for key, value in table.items()}
        model = models.setdefault(get.get("pdbx_PDB_model_num", "1"), len(models) + 1)
        chain = _first(get, "auth_asym_id", "label_asym_id")
        try:
            atoms.append(_atom(get, row + 1, model, chain, numbered))
        except ValueError as error:
            broken.append(BrokenLine(f"atom row {row + 1}: {error}", path, None, (model, chain)))
    return atoms, broken


def _first(get: dict[str, str], *keys: str) -> str:
    """The first of the columns that is there and known, else empty."""
    return next((get[k] for k in keys if get.get(k, "") not in _UNKNOWN), "")


def _atom(get: dict[str, str], row: int, model: int, chain: str, numbered: bool) -> Atom:
    number = _first(get, "auth_seq_id", "label_seq_id")
    code = _first(get, "pdbx_PDB_ins_code")
    try:
        residue = f"{int(number)}{code}"
    except ValueError:
        raise ValueError(f"residue number {number!r} is not a number") from None
    if not re.fullmatch(r"[A-Za-z]?", code):
        raise ValueError(f"insertion code {code!r} is not a letter")
    x, y, z = (_coordinate(get[f"Cartn_{axis}"], axis) for axis in "xyz")
    return Atom(
        row,
        model,
        chain,
        residue,
        _first(get, "auth_comp_id", "label_comp_id").upper(),
        _first(get, "auth_atom_id", "label_atom_id").upper(),
        _first(get, "label_alt_id"),
        number_or(get.get("occupancy", ""), 1.0),
        x,
        y,
        z,
        number_or(get.get("B_iso_or_equiv", ""), 0.0),
        get["group_PDB"] == "HETATM",
        not numbered or get["label_seq_id"] not in _UNKNOWN,
    )


def _coordinate(text: str, axis: str) -> float:
    value = number_or(text, math.nan)
    if not math.isfinite(value):
        raise ValueError(f"coordinate {axis} is {text!r}, not a finite number")
    return value
