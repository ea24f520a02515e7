"""Many backbones in one PDB file, a MODEL each: what a run writes and viewers step through.

A model is written as :func:`domains.proteins.pdb.pdb_text` writes a chain; its REMARK 999 lines
stand inside the model, so that they cannot be laid to another one. Files from elsewhere are read by
:func:`domains.proteins.io.read_chains`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from domains.proteins.atoms import Findings, assemble
from domains.proteins.chain import Chain
from domains.proteins.io import ReadResult, read_chains, structure_kind
from domains.proteins.pdb import pdb_text, read_atoms, read_remarks
from sciflow.errors import InputError
from sciflow.files import read_text, write_atomically

__all__ = ["read_ensemble", "write_ensemble"]

_MARK = "REMARK 999 ONE BACKBONE A MODEL"


def write_ensemble(path: str | Path, chains: Sequence[Chain]) -> Path:
    """Write chains as models 1, 2, ...; the file appears whole or not at all."""
    lines = [_MARK]
    for i, chain in enumerate(chains, start=1):
        body = pdb_text(chain).removesuffix("END\n")
        lines += [f"MODEL     {i % 10000:4d}"]
        if chain.name:
            lines += [f"REMARK 999 NAME {' '.join(chain.name.split())}"]
        lines += [body.rstrip("\n"), "ENDMDL"]
    return write_atomically(path, "\n".join([*lines, "END", ""]))


def read_ensemble(path: str | Path) -> ReadResult:
    """Chains of a file that :func:`write_ensemble` wrote, or of any other structure file.

    Raises:
        InputError: as :func:`domains.proteins.io.read_chains`.
    """
    path = Path(path)
    if structure_kind(path) != "pdb":
        return read_chains(path)
    text = read_text(path, "a protein structure")
    if _MARK not in text[:200]:
        return read_chains(path)
    found, chains = Findings(path), list[Chain]()
    lines = text.split("\n")
    starts = [i for i, line in enumerate(lines) if line.startswith("MODEL")]
    for first, behind in zip(starts, [*starts[1:], len(lines)], strict=True):
        # Blank lines keep the numbers of those that follow right.
        part = "\n".join([""] * (first + 1) + lines[first + 1 : behind])
        atoms, broken = read_atoms(part, path)
        if broken:
            found.drop(broken[0].reason, broken[0].line)
            continue
        named = [s.removeprefix("REMARK 999 NAME ") for s in lines[first:behind]
                 if s.startswith("REMARK 999 NAME ")]  # fmt: skip
        read = read_remarks(part, assemble(atoms, found, path.stem))
        chains += [c.replace(name=named[0] if named else c.name, breaks=c.breaks) for c in read]
    if not chains:
        reason = str(found.dropped[0].reason) if found.dropped else "the file holds no models"
        raise InputError(reason, path)
    return ReadResult(chains, found.dropped, found.notes, path)
