"""A set of chains laid end to end: what training reads and what a prepared data set is on disk.

Chain ``i`` owns the residues ``offsets[i] … offsets[i + 1]`` of every residue array. The file is a
plain ``.npz`` of numbers and text, read without unpickling.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from domains.proteins.chain import Chain
from domains.proteins.letters import codes, letters_of
from sciflow.errors import InputError
from sciflow.files import reading_arrays, writing

__all__ = ["DSSP_CODES", "ChainTable", "split"]

DSSP_CODES = " BEGHIST"
"""Eight states of DSSP; a code in :attr:`ChainTable.dssp` is the place in this string."""

_RESIDUE = {"backbone": np.float32, "sequence": np.uint8, "joined": np.bool_, "dssp": np.uint8}


@dataclass(frozen=True, eq=False)
class ChainTable:
    """``M`` chains of ``R`` residues altogether.

    Attributes:
        backbone: N, CA, C, O in ångström, float32 ``[R, 4, 3]``.
        sequence: place of each residue's letter in the alphabet, 20 for "X"; uint8 ``[R]``.
        joined: whether a residue is bonded to the next of its chain, bool ``[R]``.
        dssp: place in :data:`DSSP_CODES`, uint8 ``[R]``.
        offsets: first residue of each chain and the end, int64 ``[M + 1]``.
        cluster30: chains of one number are alike (30 % identity in the shared data), int64 ``[M]``.
        names: title of each chain.
        chain_ids: author's chain name.
        source: where each chain came from.
        residue_ids: author's numbering, text ``[R]``; empty where not kept.
        name: of the data set.
    """

    backbone: NDArray[np.float32]
    sequence: NDArray[np.uint8]
    joined: NDArray[np.bool_]
    dssp: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    cluster30: NDArray[np.int64]
    names: NDArray[np.str_]
    chain_ids: NDArray[np.str_]
    source: NDArray[np.str_]
    residue_ids: NDArray[np.str_] | None = None
    name: str = ""

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        for key, kind in (*_RESIDUE.items(), ("offsets", np.int64), ("cluster30", np.int64)):
            set_(self, key, np.ascontiguousarray(getattr(self, key), kind))
        m, r = len(self.offsets) - 1, int(self.offsets[-1])
        for key in _RESIDUE:
            if len(getattr(self, key)) != r:
                raise ValueError(f"{len(getattr(self, key))} of {key} for {r} residues")
        for key in ("cluster30", "names", "chain_ids", "source"):
            if len(getattr(self, key)) != m:
                raise ValueError(f"{len(getattr(self, key))} of {key} for {m} chains")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[Chain]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> Chain:
        i = range(len(self))[index]
        a, b = int(self.offsets[i]), int(self.offsets[i + 1])
        return Chain(
            self.backbone[a:b],
            letters_of(self.sequence[a:b]),
            str(self.names[i]),
            () if self.residue_ids is None else tuple(self.residue_ids[a:b].tolist()),
            str(self.chain_ids[i]).strip() or "A",
            breaks=~self.joined[a : b - 1] if b > a else np.zeros(0, bool),
        )

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Residues of each chain, ``[M]``."""
        return np.diff(self.offsets)

    @property
    def unbroken(self) -> NDArray[np.bool_]:
        """Which chains have no break, ``[M]``."""
        return self._per_chain(~self.joined) == 1

    @property
    def helix(self) -> NDArray[np.float64]:
        """Share of helix (DSSP H, G, I) in each chain, ``[M]``."""
        return self.share("HGI")

    @property
    def strand(self) -> NDArray[np.float64]:
        """Share of strand (DSSP E, B) in each chain, ``[M]``."""
        return self.share("EB")

    def share(self, codes: str) -> NDArray[np.float64]:
        """Share of residues with one of the DSSP ``codes`` in each chain, ``[M]``."""
        wanted = [DSSP_CODES.index(c) for c in codes]
        return self._per_chain(np.isin(self.dssp, wanted)) / np.maximum(self.lengths, 1)

    @property
    def rg_ratio(self) -> NDArray[np.float64]:
        """Radius of gyration of the CA atoms over 2.2 N^0.38 Å, ``[M]``."""
        ca = self.backbone[:, 1].astype(np.float64)
        n = np.maximum(self.lengths, 1)
        mean = np.stack([self._per_chain(ca[:, k]) for k in range(3)], -1) / n[:, None]
        away = ca - np.repeat(mean, self.lengths, 0)
        return np.sqrt(self._per_chain((away**2).sum(-1)) / n) / (2.2 * n**0.38)

    def _per_chain(self, values: NDArray[Any]) -> NDArray[np.float64]:
        total = np.concatenate(([0.0], np.cumsum(values, dtype=np.float64)))
        return total[self.offsets[1:]] - total[self.offsets[:-1]]

    def subset(self, rows: ArrayLike, name: str | None = None) -> ChainTable:
        """The chains ``rows`` (integers or a mask), in that order."""
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        size = self.lengths[rows]
        offsets = np.concatenate(([0], np.cumsum(size))).astype(np.int64)
        index = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], size)
        return replace(
            self,
            **{key: getattr(self, key)[index] for key in _RESIDUE},
            offsets=offsets,
            cluster30=self.cluster30[rows],
            names=self.names[rows],
            chain_ids=self.chain_ids[rows],
            source=self.source[rows],
            residue_ids=None if self.residue_ids is None else self.residue_ids[index],
            name=self.name if name is None else name,
        )

    def select(
        self,
        lengths: tuple[int, int] = (40, 128),
        *,
        unbroken: bool = True,
        rg_ratio: float | None = 1.35,
        coil: float | None = None,
        name: str | None = None,
    ) -> ChainTable:
        """The chains that pass every filter.

        Args:
            lengths: smallest and largest number of residues, both allowed.
            unbroken: only chains without a break.
            rg_ratio: largest :attr:`rg_ratio` (1.35 leaves out single extended helices).
            coil: largest share of residues that are neither helix nor strand.
            name: of the new table.
        """
        keep = (self.lengths >= lengths[0]) & (self.lengths <= lengths[1])
        if unbroken:
            keep &= self.unbroken
        if rg_ratio is not None:
            keep &= self.rg_ratio <= rg_ratio
        if coil is not None:
            keep &= 1 - self.helix - self.strand <= coil
        return self.subset(keep, name)

    @classmethod
    def from_chains(
        cls,
        chains: Sequence[Chain],
        dssp: Sequence[NDArray[np.uint8]] | None = None,
        cluster30: ArrayLike | None = None,
        source: Sequence[str] | None = None,
        name: str = "",
    ) -> ChainTable:
        """Lay chains end to end.

        Args:
            chains: complete ones; residues without all four atoms are for the caller to leave out.
            dssp: codes of each chain; by default all " ".
            cluster30: by default every chain is its own cluster.
            source: of each chain.
            name: of the table.

        Raises:
            InputError: no chains, or one with missing atoms.
        """
        if not chains:
            raise InputError("no chains to make a table of")
        for i, chain in enumerate(chains):
            if not chain.complete or not len(chain):
                raise InputError(f"chain {i + 1} ({chain.name}) has no atoms or missing ones")
        sizes = [len(chain) for chain in chains]
        none = [np.zeros(n, np.uint8) for n in sizes]
        return cls(
            np.concatenate([chain.backbone for chain in chains]),
            np.concatenate([codes(chain.sequence, unknown=True) for chain in chains]),
            np.concatenate([np.append(~chain.joints, False) for chain in chains]),
            np.concatenate(none if dssp is None else list(dssp)),
            np.concatenate(([0], np.cumsum(sizes))),
            np.arange(len(chains)) if cluster30 is None else np.asarray(cluster30),
            np.array([chain.name for chain in chains]),
            np.array([chain.chain_id for chain in chains]),
            np.array([""] * len(chains) if source is None else list(source)),
            np.array([text for chain in chains for text in chain.residue_ids]),
            name,
        )

    @classmethod
    def concatenate(
        cls, tables: Sequence[ChainTable], cluster30: ArrayLike | None = None, name: str = ""
    ) -> ChainTable:
        """One table after the other.

        Args:
            tables: at least one.
            cluster30: of all chains; the tables' own numbers mean nothing beside each other.
            name: of the new table.
        """
        if not tables:
            raise InputError("no tables to join")
        offsets = np.cumsum([0, *(n for table in tables for n in table.lengths.tolist())])
        ids = [table.residue_ids for table in tables]
        whole = {
            key: np.concatenate([getattr(table, key) for table in tables])
            for key in (*_RESIDUE, "names", "chain_ids", "source")
        }
        return cls(
            **whole,
            offsets=offsets,
            cluster30=np.arange(len(offsets) - 1) if cluster30 is None else np.asarray(cluster30),
            residue_ids=None if any(i is None for i in ids) else np.concatenate(ids),  # type: ignore[arg-type]
            name=name,
        )

    @property
    def sequences(self) -> list[str]:
        """One-letter sequence of each chain."""
        text = letters_of(self.sequence)
        edges = self.offsets.tolist()
        return [text[a:b] for a, b in itertools.pairwise(edges)]

    def save(self, path: str | Path) -> Path:
        """Write one ``.npz``; the file appears whole or not at all. Returns its path."""
        path = Path(path)
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        arrays = {key: np.asarray(v) for key, v in arrays.items() if v is not None}
        with writing(path) as file:
            np.savez_compressed(file, **arrays)
        return path

    @classmethod
    def load(cls, path: str | Path) -> ChainTable:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: no such file, or not a whole table.
        """
        with reading_arrays(path, "a table of chains") as file:
            values: dict[str, Any] = {key: file[key] for key in file.files}
            return cls(**{**values, "name": str(values["name"])})


def split(
    table: ChainTable, seed: int = 0, valid: float = 0.05, test: float = 0.05
) -> dict[str, NDArray[np.int64]]:
    """Row indices of ``train``, ``valid`` and ``test``; a cluster is never on two sides.

    A cluster's side is a hash of (its number, ``seed``) alone, so a chain stays where it is when
    the table is filtered: what was held out of one model is held out of all.
    """
    known = np.unique(table.cluster30)
    words = [hashlib.sha256(f"{seed}/{c}".encode()).digest()[:8] for c in known.tolist()]
    u = np.array([int.from_bytes(word, "little") for word in words], np.float64) / 2.0**64
    side = (u[np.searchsorted(known, table.cluster30)][:, None] >= [valid, valid + test]).sum(1)
    return {
        key: np.flatnonzero(side == code) for code, key in enumerate(("valid", "test", "train"))
    }
