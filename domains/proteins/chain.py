"""One protein chain as plain arrays: what every reader makes, every writer takes, every score sees.

A chain is its backbone: N, CA, C and O of each residue in ångström, with the names its author gave
the residues. Two consecutive residues are joined where C(i) and N(i+1) are within 2.0 Å (a peptide
bond is 1.33 Å); where an atom of that pair is missing the CA-CA distance decides (3.8 Å when
bonded, 2.9 Å for a cis peptide), and where that is missing too, the numbering.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["ALPHABET", "ATOMS", "Chain", "find_breaks", "parse_residue_id"]

ATOMS = ("N", "CA", "C", "O")
"""The atoms of :attr:`Chain.backbone`, in their order."""

ALPHABET = "ACDEFGHIKLMNPQRSTVWY"
"""The twenty amino acids by one letter; anything else is "X"."""

_BONDED_CN, _BONDED_CA = 2.0, 4.4


@dataclass(frozen=True, eq=False)
class Chain:
    """``N`` residues in a row.

    Attributes:
        backbone: N, CA, C, O of each residue in ångström, float32 ``[N, 4, 3]``; NaN where an atom
            is missing.
        sequence: one letter a residue, "X" where unknown or not designed; default all "X".
        name: a title (a file's stem, a PDB code).
        residue_ids: author's number with insertion code ("52", "52A", "-3"); default 1, 2, ...
        chain_id: author's name of the chain.
        confidence: per-residue certainty of whoever made the chain, float32 ``[N]``.
        breaks: whether residues i and i+1 are not joined, bool ``[N - 1]``; default by
            :func:`find_breaks`.
        given: residues that were asked for and not generated (a motif), bool ``[N]``.
        properties: named numbers of the chain, kept in files as remarks.
    """

    backbone: NDArray[np.float32]
    sequence: str = ""
    name: str = ""
    residue_ids: tuple[str, ...] = ()
    chain_id: str = "A"
    confidence: NDArray[np.float32] | None = None
    breaks: NDArray[np.bool_] | None = None
    given: NDArray[np.bool_] | None = None
    properties: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        x = np.ascontiguousarray(self.backbone, np.float32)
        if x.ndim != 3 or x.shape[1:] != (4, 3):
            raise ValueError(f"backbone must be [N, 4, 3] (N, CA, C, O), got shape {x.shape}")
        n = len(x)
        set_(self, "backbone", x)
        set_(self, "sequence", self.sequence or "X" * n)
        ids = tuple(self.residue_ids) or tuple(str(i + 1) for i in range(n))
        set_(self, "residue_ids", ids)
        for key, size, kind in (
            ("confidence", n, np.float32),
            ("given", n, np.bool_),
            ("breaks", max(n - 1, 0), np.bool_),
        ):
            value = getattr(self, key)
            if value is not None:
                set_(self, key, np.ascontiguousarray(value, kind))
                if getattr(self, key).shape != (size,):
                    raise ValueError(f"{key} must be {(size,)}, got {getattr(self, key).shape}")
        for key in ("sequence", "residue_ids"):
            if len(getattr(self, key)) != n:
                raise ValueError(f"{len(getattr(self, key))} in {key} for {n} residues")
        if self.breaks is None:
            set_(self, "breaks", find_breaks(x, ids))

    def __len__(self) -> int:
        return len(self.backbone)

    @property
    def ca(self) -> NDArray[np.float32]:
        """CA positions, ``[N, 3]``."""
        return self.backbone[:, 1]

    @property
    def complete(self) -> bool:
        """Whether no backbone atom is missing."""
        return bool(np.isfinite(self.backbone).all())

    @property
    def unbroken(self) -> bool:
        """Whether every residue is joined to the next."""
        return not self.joints.any()

    @property
    def joints(self) -> NDArray[np.bool_]:
        """:attr:`breaks`, never ``None``."""
        assert self.breaks is not None
        return self.breaks

    def segments(self) -> list[tuple[int, int]]:
        """Half-open ranges (first, behind) of joined residues."""
        cuts = (np.flatnonzero(self.joints) + 1).tolist()
        edges = [0, *cuts, len(self)]
        return [(a, b) for a, b in itertools.pairwise(edges) if b > a]

    def parts(self) -> list[Chain]:
        """The chains of a design that has several (property ``chains``), as A, B, ...; else itself.

        They are apart and numbered apart.
        """
        if self.properties.get("chains", 1) < 2:
            return [self]
        numbers = [parse_residue_id(i)[0] for i in self.residue_ids]
        cuts = np.flatnonzero(self.joints & (np.diff(numbers) > 1)) + 1
        edges = itertools.pairwise([0, *cuts.tolist(), len(self)])
        return [replace(self.take(slice(a, b)), chain_id=chr(ord("A") + k))
                for k, (a, b) in enumerate(edges)]  # fmt: skip

    def take(self, rows: slice | Sequence[int] | ArrayLike) -> Chain:
        """The residues ``rows`` (a slice, indices or a mask), in that order.

        Neighbours in the new chain that were not neighbours before are apart, whatever their
        distance.
        """
        if not isinstance(rows, slice):
            rows = np.asarray(rows)
            rows = rows if rows.dtype == bool else rows.astype(np.int64)
        index = np.atleast_1d(np.arange(len(self))[rows])
        jump = np.diff(index) != 1
        inner = np.append(self.joints, True)[index[:-1]] if len(index) else np.zeros(0, bool)
        return replace(
            self,
            backbone=self.backbone[index],
            sequence="".join(self.sequence[i] for i in index),
            residue_ids=tuple(self.residue_ids[i] for i in index),
            confidence=None if self.confidence is None else self.confidence[index],
            given=None if self.given is None else self.given[index],
            breaks=jump | inner,
        )

    def replace(self, **changes: Any) -> Chain:
        """A copy with some attributes changed; new coordinates find their breaks anew."""
        if "backbone" in changes and "breaks" not in changes:
            changes["breaks"] = None
        return replace(self, **changes)

    def with_properties(self, **values: float) -> Chain:
        """A copy with properties added or overwritten."""
        return replace(self, properties={**self.properties, **values})


def parse_residue_id(text: str) -> tuple[int, str]:
    """(number, insertion code) of "52A".

    Raises:
        ValueError: it is neither a number nor a number and a letter.
    """
    match = re.fullmatch(r"(-?\d+)([A-Za-z]?)", text.strip())
    if match is None:
        raise ValueError(f"residue {text!r} is not a number with an optional letter")
    return int(match[1]), match[2]


def find_breaks(backbone: NDArray[np.float32], residue_ids: Sequence[str]) -> NDArray[np.bool_]:
    """Where consecutive residues are not joined, bool ``[N - 1]``; see the module's rule.

    Args:
        backbone: ``[N, 4, 3]`` in ångström, NaN where missing.
        residue_ids: as in :class:`Chain`.
    """
    x = np.array(backbone, np.float64)
    if len(x) < 2:
        return np.zeros(0, bool)
    x[~np.isfinite(x)] = np.nan
    peptide = np.linalg.norm(x[:-1, 2] - x[1:, 0], axis=-1)
    trace = np.linalg.norm(x[1:, 1] - x[:-1, 1], axis=-1)
    numbers, letters = zip(*map(parse_residue_id, residue_ids), strict=True)
    step = np.diff(numbers)
    # 52 → 52A → 53 is consecutive numbering.
    follows = (step == 1) | ((step == 0) & (np.array(letters[1:]) != np.array(letters[:-1])))
    by_trace = np.where(np.isnan(trace), ~follows, trace > _BONDED_CA)
    return np.where(np.isnan(peptide), by_trace, peptide > _BONDED_CN).astype(bool)
