"""PDB files: atoms by columns in, backbones out.

The format is fixed columns (wwPDB, version 3.3): serial 7-11, atom 13-16, alternate 17, residue
18-20, chain 22, number 23-26, insertion code 27, x y z 31-54, occupancy 55-60, B 61-66. They are
cut here, and not by Biopython's parser, because that one keeps no line numbers, takes "NaN" for a
coordinate and leaves out atoms given twice in silence; its test here is that both agree on
everything sound.

What is written says what it means in REMARK 999: whether the sequence was designed (generated
backbones without one are GLY throughout, the field's convention), what the B factors are, which
residues were given, and the chain's numbers. Our reader takes them back.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from Bio.Data.PDBData import protein_letters_1to3

from domains.proteins.atoms import Atom, BrokenLine, number_or
from domains.proteins.chain import ATOMS, Chain, parse_residue_id
from sciflow.errors import InputError
from sciflow.files import write_atomically

__all__ = ["pdb_text", "read_atoms", "read_remarks", "write_pdb"]

_NOT_DESIGNED = "SEQUENCE NOT DESIGNED: EVERY RESIDUE IS WRITTEN AS GLY"
_CONFIDENCE = "B FACTORS: PER-RESIDUE CONFIDENCE"
_NO_B = "B FACTORS: NOT USED"
_IDS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def read_atoms(text: str, path: Path) -> tuple[list[Atom], list[BrokenLine]]:
    """Every atom of a PDB file, and the lines that could not be read.

    Models are counted in their order, whatever their numbers; one that is not closed ends where
    the next begins. What follows TER in a chain as HETATM is not part of the polymer.
    """
    atoms: list[Atom] = []
    broken: list[BrokenLine] = []
    model, models, ended = 1, 0, set[str]()
    last: tuple[int, str] | None = None
    for number, line in enumerate(text.split("\n"), start=1):
        kind = line[:6].rstrip().upper()
        if kind == "MODEL":
            models += 1
            model, ended = models, set()
        elif kind == "TER":
            # TER may stand alone; it then ends the chain of the atom before.
            ended.add(line[21:22].strip() or (last[1] if last else ""))
        elif kind in ("ATOM", "HETATM"):
            line = line.rstrip("\r")
            try:
                atom = _atom(line, number, model, kind == "HETATM", ended)
            except ValueError as error:
                chain = (model, line[21].strip()) if len(line) > 21 else last
                broken.append(BrokenLine(str(error), path, number, chain))
                continue
            last = (model, atom.chain)
            atoms.append(atom)
    return _named(atoms, broken), broken


def _atom(line: str, number: int, model: int, hetero: bool, ended: set[str]) -> Atom:
    if len(line) < 54:
        raise ValueError(
            f"this line of atoms ends at column {len(line)}, inside its coordinates (they end at "
            f"54): {line[:60]!r}; was the file cut?"
        )
    residue, code = line[22:26].strip(), line[26:27].strip()
    if not re.fullmatch(r"-?\d+", residue):
        raise ValueError(f"residue number {line[22:26]!r} (columns 23-26) is not a number")
    if not re.fullmatch(r"[A-Za-z]?", code):
        raise ValueError(f"insertion code {code!r} (column 27) is not a letter")
    x, y, z = (_coordinate(line[a : a + 8], axis) for a, axis in ((30, "x"), (38, "y"), (46, "z")))
    chain = line[21].strip()
    return Atom(
        number,
        model,
        chain,
        f"{int(residue)}{code}",
        line[17:20].strip().upper(),
        line[12:16].strip().upper(),
        line[16].strip(),
        number_or(line[54:60], 1.0),
        x,
        y,
        z,
        number_or(line[60:66], 0.0),
        hetero,
        not (hetero and chain in ended),
    )


def _coordinate(text: str, axis: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"coordinate {axis} is {text!r}, not a number") from None
    if not math.isfinite(value):
        raise ValueError(f"coordinate {axis} is {text.strip()!r}; it must be finite")
    return value


def _named(atoms: list[Atom], broken: list[BrokenLine]) -> list[Atom]:
    """Blank chain names become "A", or the first letter that no other chain has."""
    taken = {a.chain for a in atoms} | {b.chain[1] for b in broken if b.chain is not None}
    if "" not in taken:
        return atoms
    free = next(c for c in _IDS + "_" if c not in taken)
    for b in broken:
        if b.chain is not None and not b.chain[1]:
            b.chain = (b.chain[0], free)
    return [a if a.chain else a._replace(chain=free) for a in atoms]


def read_remarks(text: str, chains: Sequence[Chain]) -> list[Chain]:
    """Chains with what our own REMARK 999 say of them; others lose their B factors."""
    lines = [line[11:].strip() for line in text.split("\n") if line.startswith("REMARK 999 ")]
    if not lines:
        return [chain.replace(confidence=None, backbone=chain.backbone) for chain in chains]
    read = []
    for chain in chains:
        own = [s.removeprefix(f"CHAIN {chain.chain_id}: ") for s in lines if _of(s, chain)]
        changes: dict[str, object] = {}
        if _CONFIDENCE not in own:
            changes["confidence"] = None
        if _NOT_DESIGNED in own and set(chain.sequence) <= {"G"}:
            changes["sequence"] = "X" * len(chain)
        values = dict(chain.properties)
        given: set[str] = set()
        for text_ in own:
            if text_.startswith("VALUE "):
                key, _, value = text_[6:].rpartition(" ")
                values[key] = number_or(value, math.nan)
            elif text_.startswith("GIVEN "):
                given.update(text_[6:].split())
        if given:
            changes["given"] = np.array([i in given for i in chain.residue_ids])
        read.append(chain.replace(**changes, properties=values, breaks=chain.breaks))
    return read


def _of(text: str, chain: Chain) -> bool:
    return text.startswith(f"CHAIN {chain.chain_id}: ")


def pdb_text(chains: Chain | Sequence[Chain], title: str = "") -> str:
    """Chains as one PDB model; chain names that clash or are longer than a letter are changed.

    Raises:
        InputError: no chains, no atoms, a coordinate that is not finite or does not fit the
            columns, a residue number outside -999 … 9999, or too many chains.
    """
    chains = [chains] if isinstance(chains, Chain) else list(chains)
    if not chains:
        raise InputError("no chains to write")
    if len(chains) > len(_IDS):
        raise InputError(f"{len(chains)} chains; a PDB file has names for {len(_IDS)}")
    names = _chain_names(chains)
    lines = [f"TITLE     {title[:70]}".rstrip()] if title else []
    serial = 1
    body: list[str] = []
    for chain, name in zip(chains, names, strict=True):
        lines += [f"REMARK 999 CHAIN {name}: {text}" for text in _remarks(chain)]
        atoms = list(_lines(chain, name, serial))
        if not atoms:
            raise InputError(f"chain {chain.name!r} has no atoms to write")
        serial += len(atoms) + 1
        last = atoms[-1]
        body += [*atoms, f"TER   {serial - 1:5d}      {last[17:27]}"]
    return "\n".join([*lines, *body, "END", ""])


def _chain_names(chains: Sequence[Chain]) -> list[str]:
    """One letter each, the chain's own where it can be."""
    names: list[str] = []
    own = {c.chain_id for c in chains if len(c.chain_id) == 1}
    for chain in chains:
        name = chain.chain_id
        if len(name) != 1 or name in names or not name.isprintable() or name == " ":
            name = next(c for c in _IDS if c not in names and (c not in own))
        names.append(name)
    return names


def _remarks(chain: Chain) -> list[str]:
    remarks = []
    if set(chain.sequence) <= {"X"}:
        remarks.append(_NOT_DESIGNED)
    remarks.append(_NO_B if chain.confidence is None else _CONFIDENCE)
    if chain.given is not None and chain.given.any():
        ids = [i for i, g in zip(chain.residue_ids, chain.given, strict=True) if g]
        for part in _by_8(ids):
            remarks.append("GIVEN " + " ".join(part))
    for key, value in chain.properties.items():
        remarks.append(f"VALUE {' '.join(key.split())} {value:.6g}")
    return remarks


def _by_8(ids: list[str]) -> Iterable[list[str]]:
    return (ids[i : i + 8] for i in range(0, len(ids), 8))


def _lines(chain: Chain, name: str, serial: int) -> Iterable[str]:
    bare = set(chain.sequence) <= {"X"}
    b = np.zeros(len(chain)) if chain.confidence is None else chain.confidence
    for i, (one, number) in enumerate(zip(chain.sequence, chain.residue_ids, strict=True)):
        value, code = parse_residue_id(number)
        if not -999 <= value <= 9999:
            raise InputError(f"residue number {value} does not fit a PDB file (-999 … 9999)")
        name3 = "GLY" if bare else protein_letters_1to3.get(one, "unk").upper()
        for atom, xyz in zip(ATOMS, chain.backbone[i].astype(float).tolist(), strict=True):
            if all(math.isnan(v) for v in xyz):
                continue
            if not all(math.isfinite(v) for v in xyz):
                raise InputError(f"residue {number}: {atom} has a coordinate that is not finite")
            if not all(-999.9995 < v < 9999.9995 for v in xyz):
                raise InputError(f"residue {number}: {atom} at {xyz} does not fit a PDB file")
            yield (
                f"ATOM  {serial % 100000:5d}  {atom:<3s} {name3:>3s} {name}{value:4d}{code or ' '}"
                f"   {xyz[0]:8.3f}{xyz[1]:8.3f}{xyz[2]:8.3f}{1.0:6.2f}{min(b[i], 999.99):6.2f}"
                f"          {atom[0]:>2s}"
            )
            serial += 1


def write_pdb(path: str | Path, chains: Chain | Sequence[Chain], title: str = "") -> Path:
    """Write :func:`pdb_text`; the file appears whole or not at all."""
    return write_atomically(path, pdb_text(chains, title))
