r"""Plans of sheets: which residues of a chain are strands, where it turns, which pairs are bonded.

A plan has meanders: m strands of ℓ residues, each joined to the next by a tight turn of two
residues (type I') or of four (4:4), the commonest hairpins of known chains (Sibanda, Blundell &
Thornton 1989). Across a turn of T residues behind residue q the strands pair as

    (q − k, q + T + 1 + k),   k = 0, 1, …, ℓ − 1,

narrow for even k, with N–H···O from either residue to the other, wide for odd k. N–H and C=O of a
residue point to one side of its strand and those of the next to the other; an inner strand bonds
on both, so ℓ is even. The sheet is said by distances: those of the pairs, and 9.5 Å between CA
atoms of strands two apart, which keeps it from folding upon itself.

Mean torsions of strands and turns build a sheet that is nearly right; the least turns that give it
its distances (:func:`domains.proteins.closure.close`) make the torsions that a plan asks for.

Of known chains a fifth have no strand, and the others lie about 0.3 (:func:`draw_shares`). Numbers
are medians of the training part of ``backbones``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from domains.proteins.closure import Links, close
from domains.proteins.rebuild import BEND_MEAN, UNDEFINED
from sciflow.random import Draws

__all__ = ["Meander", "SheetPlan", "draw_shares", "meanders", "plan_sheets"]

_STRAND = (-116.0, 136.0)
_TURNS = {
    2: ((52.0, 41.0), (77.0, 4.0)),
    4: ((-67.0, -27.0), (-71.0, -37.0), (-99.0, -8.0), (59.0, 39.0)),
}
"""φ, ψ in degrees."""
_N, _CA, _C, _O = range(4)
_NARROW = {(_N, _O): 2.90, (_CA, _CA): 5.25, (_N, _N): 4.41, (_O, _O): 3.57, (_C, _C): 4.95,
           (_CA, _O): 3.91, (_N, _C): 4.04}  # fmt: skip
_WIDE = {(_CA, _CA): 4.50, (_N, _N): 5.73, (_O, _O): 8.46, (_C, _C): 6.27}
_NEXT_BUT_ONE = 9.5
"""Ångström between atoms of paired residues, and of strands two apart."""
_LENGTHS, _MOST_STRANDS, _MOST_MEANDERS = (4, 6), 5, 2
_END, _LINKER = 3, 6
"""Residues at least before, behind and between meanders."""
_NUMBERS = 64
_WITHOUT, _LEAST, _WIDTH = 0.2, 0.1, 0.4
"""Share of chains without strand; of the others the least strand, and how much more there is."""
_CLOSING, _CLOSING_VARIANCE = ((40, 1.0, 0.0), (60, 3.3, 4.0)), 0.05
"""Steps, 1/σ and factor on clashes of two passes, and V."""


@dataclass(frozen=True)
class Meander:
    """Strands one after the other.

    Attributes:
        first: residue.
        strand: residues of each strand, ℓ.
        turns: residues of each turn, of 2 and 4.
    """

    first: int
    strand: int
    turns: tuple[int, ...]

    @property
    def starts(self) -> list[int]:
        """First residue of each strand."""
        return list(accumulate((t + self.strand for t in self.turns), initial=self.first))

    @property
    def size(self) -> int:
        """Residues."""
        return (len(self.turns) + 1) * self.strand + sum(self.turns)

    def links(self) -> list[tuple[int, int, float]]:
        """Pairs of atoms (4 · residue + place) and their distance in ångström."""
        found = []
        starts = self.starts
        for k, (a, b) in enumerate(pairwise(starts)):
            for j in range(self.strand):
                i, partner = a + self.strand - 1 - j, b + j
                for (p, q), d in (_WIDE if j % 2 else _NARROW).items():
                    found.append((4 * i + p, 4 * partner + q, d))
                    if p != q:
                        found.append((4 * i + q, 4 * partner + p, d))
                if k:
                    found.append((4 * (starts[k - 1] + j) + _CA, 4 * partner + _CA, _NEXT_BUT_ONE))
        return found

    def torsions(self) -> Tensor:
        """φ, ψ in radians of its residues, ``[size, 2]``."""
        return _closed(self.strand, self.turns)


@dataclass(frozen=True)
class SheetPlan:
    """Of the chains of a batch.

    Attributes:
        torsions: φ, ψ wanted in radians, ``[B, N, 2]``.
        strand: bool ``[B, N]``, residues of strands.
        turn: bool ``[B, N]``, residues of turns between them.
        links: of their pairs, σ = 1 Å.
    """

    torsions: Tensor
    strand: Tensor
    turn: Tensor
    links: Links

    def to(self, device: torch.device) -> SheetPlan:
        """On a device."""
        torsions, strand, turn = (x.to(device) for x in (self.torsions, self.strand, self.turn))
        return SheetPlan(torsions, strand, turn, self.links.to(device))

    @property
    def planned(self) -> Tensor:
        """Residues of sheets, bool ``[B, N]``."""
        return self.strand | self.turn


def meanders(n: int, share: float, numbers: Sequence[float]) -> list[Meander]:
    """The meanders of a chain; none where it is too short or wants less than two strands.

    Args:
        n: residues.
        share: of them that are to be strand.
        numbers: uniform ones, as many as are needed of them.
    """
    rest = iter(numbers)
    wanted, room = share * n, n - 2 * _END
    shapes: list[tuple[int, tuple[int, ...]]] = []
    while len(shapes) < _MOST_MEANDERS:
        size = _LENGTHS[next(rest) > 0.3]
        count = min(_MOST_STRANDS, round(wanted / size))
        turns: list[int] = []
        for _ in range(_MOST_STRANDS - 1):
            # Two turns of four in a row do not lie flat.
            four = next(rest) > 0.5 and turns[-1:] != [4]
            turns.append(4 if four else 2)
        gap = _LINKER if shapes else 0
        while count > 1 and count * size + sum(turns[: count - 1]) + gap > room:
            count -= 1
        if count < 2:
            break
        turns = turns[: count - 1]
        shapes.append((size, tuple(turns)))
        room -= count * size + sum(turns) + gap
        wanted -= count * size
    # Thirds: what is free lies together more often than not, as helices need it.
    cuts = sorted(round(3 * next(rest)) / 3 for _ in shapes)
    answer, at = list[Meander](), _END
    for cut, (size, kinds) in zip(cuts, shapes, strict=True):
        first = at + round(cut * room)
        answer.append(Meander(first, size, kinds))
        at += answer[-1].size + _LINKER
    return answer


def draw_shares(draws: Draws) -> Tensor:
    """Shares of strand like those of known chains, ``[B]``."""
    u = draws.uniform((3,), "proteins/strand", dtype=torch.float64)
    return torch.where(u[:, 0] < _WITHOUT, 0.0, _LEAST + _WIDTH * u[:, 1:].mean(1))


def plan_sheets(lengths: Tensor, size: int, shares: Tensor, draws: Draws) -> SheetPlan:
    """A plan for each chain; it depends on its own row of every argument alone.

    Args:
        lengths: residues, ``[B]``.
        size: N.
        shares: of them that are to be strand, ``[B]``.
        draws: of the samples.
    """
    b = len(lengths)
    torsions = torch.zeros(b, size, 2, dtype=torch.float64)
    strand, turn = torch.zeros(2, b, size, dtype=torch.bool)
    links = list[list[tuple[int, int, float]]]()
    numbers = draws.uniform((_NUMBERS,), "proteins/sheets", dtype=torch.float64).tolist()
    for i, (n, share, u) in enumerate(zip(lengths.tolist(), shares.tolist(), numbers, strict=True)):
        links.append([])
        for m in meanders(n, share, u):
            torsions[i, m.first : m.first + m.size] = m.torsions()
            turn[i, m.first : m.first + m.size] = True
            for start in m.starts:
                strand[i, start : start + m.strand] = True
            links[i] += m.links()
    return SheetPlan(torsions, strand, turn & ~strand, _padded(links))


def _padded(rows: Sequence[Sequence[tuple[int, int, float]]]) -> Links:
    most = max(1, *map(len, rows))
    table = torch.zeros(len(rows), most, 3, dtype=torch.float64)
    weight = torch.zeros(len(rows), most, dtype=torch.float64)
    for i, row in enumerate(rows):
        if row:
            table[i, : len(row)] = torch.tensor(row, dtype=torch.float64)
            weight[i, : len(row)] = 1
    return Links(table[..., :2].long(), table[..., 2], weight)


@lru_cache(maxsize=128)
def _closed(strand: int, turns: tuple[int, ...]) -> Tensor:
    alone = Meander(0, strand, turns)
    mean = torch.tensor(_STRAND, dtype=torch.float64).expand(alone.size, 2).clone()
    for start, t in zip(alone.starts[1:], turns, strict=True):
        mean[start - t : start] = torch.tensor(_TURNS[t], dtype=torch.float64)
    omega = torch.full_like(mean[:, :1], UNDEFINED[2])
    torsions = torch.cat((mean.deg2rad(), omega), -1)[None]
    links = _padded([alone.links()])
    n = alone.size
    bends = torsions.new_tensor(BEND_MEAN).expand(1, n, 3)
    free = torch.ones(1, n, 2, dtype=torch.bool)
    # Softly first: strands that run into each other at once would stay on the wrong side.
    for steps, firmness, clash in _CLOSING:
        torsions = close(torsions, bends, None, None, free,
                         bends.new_tensor([_CLOSING_VARIANCE]), 1.0, steps, clash,
                         links.scaled(firmness))  # fmt: skip
    return torsions[0, :, :2]
