"""What backbone models are trained on: compact unbroken chains, and compact pieces of longer ones.

Whole chains teach how a protein ends; pieces teach what it is made of, and multiply the data: a
crop of a contiguous segment is kept where it is as compact as a small protein (radius of gyration
at most 1.25 times 2.2 N^0.38 Å) and has at most 60 % coil. A bond angle that lies eight standard
deviations off is an error of the entry, and no piece contains it. Crops are drawn once, by a seed,
so that a data set is the same in every run.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from domains.proteins.letters import MASKED
from domains.proteins.table import DSSP_CODES, ChainTable

__all__ = ["CONDITIONS", "Pieces", "cut"]

CONDITIONS = ("helix", "strand", "rg_ratio")
"""Properties that a piece has a value of."""

_HELIX = [DSSP_CODES.index(c) for c in "HGI"]
_STRAND = [DSSP_CODES.index(c) for c in "EB"]


@dataclass(frozen=True)
class Pieces:
    """Backbones ``[n, 4, 3]`` in ångström, their residues ``[n]`` (20 for "X"), and properties."""

    backbones: list[NDArray[np.float32]]
    residues: list[NDArray[np.uint8]]
    properties: dict[str, NDArray[np.float64]]

    def __len__(self) -> int:
        return len(self.backbones)

    def known(self) -> Pieces:
        """Those of which every residue is one of the twenty."""
        rows = [i for i, r in enumerate(self.residues) if not (r == MASKED).any()]
        return Pieces(
            [self.backbones[i] for i in rows],
            [self.residues[i] for i in rows],
            {k: v[rows] for k, v in self.properties.items()},
        )


def cut(
    table: ChainTable,
    lengths: tuple[int, int] = (40, 128),
    *,
    crops: float = 1.0,
    rg_ratio: float = 1.25,
    coil: float = 0.6,
    seed: int = 0,
) -> Pieces:
    """Whole chains and crops of a table.

    Args:
        table: any chains.
        lengths: fewest and most residues.
        crops: tries a segment, for each ``lengths[1]`` residues of it; 0 is whole chains alone.
        rg_ratio: largest radius of gyration over 2.2 N^0.38 Å.
        coil: largest share of residues that are neither helix nor strand (where DSSP is known).
        seed: of the crops.
    """
    low, high = lengths
    rng = np.random.default_rng(seed)
    spans: list[tuple[int, int]] = []
    for i in range(len(table)):
        start, end = int(table.offsets[i]), int(table.offsets[i + 1])
        edges = [start, *(np.flatnonzero(~table.joined[start : end - 1]) + start + 1), end]
        for a, b in itertools.pairwise(edges):
            n = int(b - a)
            if low <= n <= high and (a, b) == (start, end):
                spans.append((int(a), int(b)))
            for _ in range(round(crops * n / high) if n > low + 8 else 0):
                size = int(rng.integers(low, min(high, n) + 1))
                first = int(a) + int(rng.integers(0, n - size + 1))
                spans.append((first, first + size))
    known = bool(table.dssp.any())
    wrong = np.concatenate(([0], np.cumsum(_wrong_angles(table))))
    kept: list[tuple[int, int]] = []
    values: list[tuple[float, float, float]] = []
    for a, b in dict.fromkeys(spans):
        if wrong[b] > wrong[a]:
            continue
        codes = table.dssp[a:b]
        helix, strand = np.isin(codes, _HELIX).mean(), np.isin(codes, _STRAND).mean()
        ratio = _rg_ratio(table.backbone[a:b, 1])
        if ratio > rg_ratio or (known and 1 - helix - strand > coil):
            continue
        kept.append((a, b))
        values.append((helix, strand, ratio) if known else (np.nan, np.nan, ratio))
    columns = np.array(values, np.float64).reshape(-1, 3).T
    return Pieces(
        [table.backbone[a:b] for a, b in kept],
        [table.sequence[a:b] for a, b in kept],
        dict(zip(CONDITIONS, columns, strict=True)),
    )


def _rg_ratio(ca: NDArray[Any]) -> float:
    x = ca.astype(np.float64) - ca.mean(0, dtype=np.float64)
    return float(np.sqrt((x**2).sum(-1).mean()) / (2.2 * len(x) ** 0.38))


def _wrong_angles(table: ChainTable) -> NDArray[np.bool_]:
    """Residues with a bond angle that cannot be, bool ``[R]``."""
    import torch

    from domains.proteins.rebuild import BEND_MEAN, BEND_STD, internal_coordinates

    x = torch.from_numpy(table.backbone).double()
    bends = internal_coordinates(x)[1].numpy()
    far: NDArray[np.bool_] = np.abs(bends - BEND_MEAN) > 8 * np.array(BEND_STD)
    far[:, 1:] &= table.joined[:, None]
    return np.asarray(far.any(1))
