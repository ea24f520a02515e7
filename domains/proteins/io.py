"""Protein chains from PDB and mmCIF files, plain or gzipped; PDB and FASTA out.

A chain that cannot be used is dropped with its file, line and reason, and counted; only a file
without a single usable chain is an error. Writers are in :mod:`domains.proteins.pdb` and
:mod:`domains.proteins.fasta`, and appear here too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from domains.proteins import mmcif, pdb
from domains.proteins.atoms import BrokenLine, Findings, assemble
from domains.proteins.chain import Chain
from domains.proteins.fasta import read_fasta, write_fasta
from domains.proteins.pdb import write_pdb
from sciflow.errors import InputError
from sciflow.files import file_kind, read_text

__all__ = [
    "SUFFIXES",
    "ReadResult",
    "complete_residues",
    "read_chains",
    "read_fasta",
    "structure_kind",
    "write_fasta",
    "write_pdb",
]

_KINDS = {".pdb": "pdb", ".ent": "pdb", ".pdb1": "pdb", ".cif": "mmcif", ".mmcif": "mmcif"}

SUFFIXES = tuple(_KINDS)
"""Suffixes that can be read, each also with ``.gz``."""


@dataclass(frozen=True)
class ReadResult:
    """What a file held.

    Attributes:
        chains: the usable ones, in the file's order, model by model.
        dropped: one error for everything that is not among them: chains refused, ligands, water.
        notes: choices made in what is: alternates, parents of modified residues, missing atoms.
        path: the file.
    """

    chains: list[Chain]
    dropped: list[InputError] = field(default_factory=list)
    notes: list[InputError] = field(default_factory=list)
    path: Path = Path()

    def __len__(self) -> int:
        return len(self.chains)

    def __iter__(self) -> Iterator[Chain]:
        return iter(self.chains)

    def summary(self) -> str:
        """One line: how many chains were read, how much was left out and why the first was."""
        residues = sum(map(len, self.chains))
        text = f"{self.path}: {len(self.chains)} chains, {residues} residues"
        if self.dropped:
            text += f", {len(self.dropped)} left out (first: {self.dropped[0]})"
        return text


def structure_kind(path: str | Path) -> str:
    """ "pdb" or "mmcif", by the suffix.

    Raises:
        InputError: an unknown suffix.
    """
    return _KINDS[file_kind(path, SUFFIXES)]


def read_chains(path: str | Path) -> ReadResult:
    """Every protein chain of a file, of every model.

    Residues keep their author's numbers and insertion codes; atoms that are missing are NaN and
    noted. See :mod:`domains.proteins.atoms` for alternates, modified residues and hetero groups.

    Args:
        path: ``.pdb``, ``.ent``, ``.cif`` or ``.mmcif``; ``.gz`` may follow.

    Raises:
        InputError: no such file, an unknown suffix, empty, a web page, a damaged line that cannot
            be laid to one chain, or no usable chain (the first reason is given).
    """
    path = Path(path)
    kind = structure_kind(path)
    text = read_text(path, "a protein structure")
    reader = mmcif.read_atoms if kind == "mmcif" else pdb.read_atoms
    atoms, broken = reader(text, path)
    for error in broken:
        if error.chain is None:
            raise InputError(error.reason, path, error.line)
    if not atoms and not broken:
        first = next((s for s in text.splitlines() if s.strip()), "")
        raise InputError(f"the file holds no atoms (its first line is {first[:60]!r})", path)
    found = Findings(path)
    spoiled: dict[tuple[int, str], list[BrokenLine]] = {}
    for error in broken:
        assert error.chain is not None
        spoiled.setdefault(error.chain, []).append(error)
    for (model, name), errors in spoiled.items():
        more = f" ({len(errors)} such lines)" if len(errors) > 1 else ""
        found.drop(
            f"chain {name}{f' of model {model}' if model > 1 else ''} is refused: "
            f"{errors[0].reason}{more}",
            errors[0].line,
        )
    sound = [a for a in atoms if (a.model, a.chain) not in spoiled]
    stem = path.name.removesuffix(".gz").rsplit(".", 1)[0]
    chains = assemble(sound, found, stem)
    if kind == "pdb":
        chains = pdb.read_remarks(text, chains)
    else:
        chains = [c.replace(confidence=None, breaks=c.breaks) for c in chains]
    if not chains:
        if not found.dropped:
            raise InputError("the file holds no protein chain", path)
        worst = next((e for e in found.dropped if "no amino acids" not in e.reason), None)
        error_ = worst or found.dropped[0]
        what = "no usable chain" if worst else "only hetero atoms or other polymers"
        raise InputError(
            f"{what} ({len(found.dropped)} refused): {error_.reason}", path, error_.line
        )
    return ReadResult(chains, found.dropped, found.notes, path)


def complete_residues(chain: Chain) -> tuple[Chain, list[str]]:
    """The chain without residues that lack a backbone atom, and the ids of those left out.

    Where one is left out the chain is broken.
    """
    whole = np.isfinite(chain.backbone.sum((1, 2)))
    lost = [i for i, ok in zip(chain.residue_ids, whole, strict=True) if not ok]
    return (chain.take(whole), lost) if lost else (chain, lost)
