"""Sets of sequences: UniRef50, a FASTA file of one's own, or the chains of a set of structures.

``uniref`` is the reviewed (Swiss-Prot) entries of UniRef50 of 60 to 160 residues. Every one of them
stands for its own cluster at 50 % identity, so that a split by sequence is a split by clusters of
that identity; below it there are relatives on both sides, as in the published figures of sequence
models. A tenth is held out for tests and another fortieth for validation, by a hash of the sequence
alone: it stays on its side whatever else is in the set.

Chains of structures keep the side of their cluster at 30 % identity, and bring their content of
helix and strand along.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from domains.proteins.chain import Chain
from domains.proteins.fasta import read_fasta
from domains.proteins.table import ChainTable, split
from sciflow.data import shared_data
from sciflow.errors import InputError

__all__ = [
    "SequenceTable",
    "are_sequences",
    "from_chains",
    "from_fasta",
    "held_out_sequences",
    "is_fasta",
    "read_sequences",
    "sequence_chain",
    "side_of",
    "uniref",
]

_SUFFIXES = (".fasta", ".fa", ".faa", ".fas")
_UNIREF = "uniref50_reviewed_len60-160.fasta.gz"
_LENGTHS = (60, 160)
_TEST, _VALID = 0.1, 0.125
"""Below the first a hash is of the test part, below the second of the validation part."""


@dataclass(frozen=True, eq=False)
class SequenceTable:
    """``M`` sequences of the twenty amino acids.

    Attributes:
        sequences: in one-letter code.
        names: a title each.
        sides: "train", "valid" or "test" each.
        properties: ``{property: float64 [M]}``, where known.
        name: of the data set.
    """

    sequences: tuple[str, ...]
    names: tuple[str, ...]
    sides: tuple[str, ...]
    properties: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    name: str = ""

    def __len__(self) -> int:
        return len(self.sequences)

    def part(self, side: str) -> SequenceTable:
        """The sequences of one side of the split."""
        return self.subset([i for i, s in enumerate(self.sides) if s == side])

    def subset(self, rows: Sequence[int]) -> SequenceTable:
        """Some of the sequences, in that order."""
        index = np.asarray(rows, np.int64)
        return SequenceTable(
            tuple(self.sequences[i] for i in rows),
            tuple(self.names[i] for i in rows),
            tuple(self.sides[i] for i in rows),
            {k: v[index] for k, v in self.properties.items()},
            self.name,
        )


def is_fasta(path: str | Path) -> bool:
    """Whether a file is one of sequences, by its suffix; ``.gz`` may follow."""
    return Path(path).name.lower().removesuffix(".gz").endswith(_SUFFIXES)


def side_of(sequence: str) -> str:
    """ "train", "valid" or "test", from the letters alone."""
    digest = hashlib.sha256(sequence.encode()).digest()
    u = int.from_bytes(digest[:8], "little") / 2.0**64
    return "test" if u < _TEST else "valid" if u < _VALID else "train"


def uniref(folder: str | Path | None = None) -> SequenceTable:
    """Reviewed UniRef50 sequences of 60 to 160 residues, without those that hold other letters.

    Args:
        folder: holds the FASTA file; default the shared data.

    Raises:
        InputError: the file is not there.
    """
    root = Path(folder) if folder is not None else shared_data()
    if root is None:
        raise InputError(
            f"the data set {_UNIREF} is not on this machine: set SCIFLOW_DATA to the folder of the "
            "shared data, or train on a FASTA file of your own"
        )
    path = root / _UNIREF if folder is not None else root / "proteins" / "sequences" / _UNIREF
    records = [(name.split()[0] if name else "", s) for name, s in read_fasta(path)
               if "X" not in s and _LENGTHS[0] <= len(s) <= _LENGTHS[1]]  # fmt: skip
    return _table(records, "uniref")


def from_fasta(path: str | Path) -> SequenceTable:
    """A user's sequences, distinct ones; what is left out is logged.

    Raises:
        InputError: no such file, not FASTA, or no sequence of the twenty amino acids alone.
    """
    path = Path(path)
    dropped: list[InputError] = []
    records, seen = [], set[str]()
    for name, sequence in read_fasta(path, dropped):
        if "X" in sequence:
            dropped.append(InputError(f"{name!r} has residues that are none of the twenty", path))
        elif sequence in seen:
            dropped.append(InputError(f"{name!r} is the same sequence as one before", path))
        else:
            seen.add(sequence)
            records.append((name, sequence))
    if not records:
        raise InputError(f"no usable sequence; the first: {dropped[0].reason}", path)
    if dropped:
        logging.getLogger(__name__).warning(
            "%s: %d sequences left out; the first: %s", path, len(dropped), dropped[0]
        )
    return _table(records, path.name)


def from_chains(table: ChainTable) -> SequenceTable:
    """Sequences of chains whose residues are all known, with their content of helix and strand."""
    chosen = split(table)
    sides = np.empty(len(table), dtype="<U5")
    for side, members in chosen.items():
        sides[members] = side
    texts = table.sequences
    rows = [i for i, text in enumerate(texts) if text and "X" not in text]
    return SequenceTable(
        tuple(texts[i] for i in rows),
        tuple(str(table.names[i]) for i in rows),
        tuple(str(sides[i]) for i in rows),
        {"helix": table.helix[rows], "strand": table.strand[rows]},
        table.name,
    )


def sequence_chain(sequence: str, name: str = "", given: NDArray[np.bool_] | None = None) -> Chain:
    """A chain of which the sequence alone is known: all its coordinates are NaN."""
    n = len(sequence)
    return Chain(np.full((n, 4, 3), np.nan, np.float32), sequence, name, given=given)


def are_sequences(chains: Sequence[Chain]) -> bool:
    """Whether these are chains with residues named and no atom anywhere; false for none."""
    return bool(chains) and all(
        set(chain.sequence) - {"X"} and not np.isfinite(chain.backbone).any() for chain in chains
    )


def read_sequences(path: str | Path, dropped: list[InputError] | None = None) -> list[Chain]:
    """The sequences of a FASTA file as chains without coordinates.

    Raises:
        InputError: see :func:`domains.proteins.fasta.read_fasta`.
    """
    return [sequence_chain(sequence, name) for name, sequence in read_fasta(path, dropped)]


def held_out_sequences(n: int) -> list[Chain]:
    """At most ``n`` of the test part of ``uniref``, spread evenly; empty without the data."""
    if shared_data() is None:
        return []
    table = uniref().part("test")
    rows = range(0, len(table), max(1, len(table) // max(n, 1)))
    return [sequence_chain(table.sequences[i], table.names[i]) for i in rows][:n]


def _table(records: Sequence[tuple[str, str]], name: str) -> SequenceTable:
    return SequenceTable(
        tuple(s for _, s in records),
        tuple(n for n, _ in records),
        tuple(side_of(s) for _, s in records),
        name=name,
    )
