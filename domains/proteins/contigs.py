"""Contigs: which residues are kept, in what order, and how much is built between them.

The syntax is RFdiffusion's (Watson et al., Nature 620, 1089, 2023)::

    10-40/A25-46/10-40      10 to 40 new residues, residues 25 to 46 of chain A, 10 to 40 new ones
    A7-8/5/B70/0-12         single residues and exact lengths; any order, several source chains
    A1-60/0 30-50           "/0 " ends a chain of the design: what follows is another one

Elements may also be separated by commas. Residues are named as in the file, with insertion code
(A52A-60). Of all combinations of lengths that meet the ranges and the total length one is drawn,
each as likely as any other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from domains.proteins.chain import Chain, parse_residue_id
from sciflow.errors import InputError

if TYPE_CHECKING:
    from sciflow.random import Draws

__all__ = ["Contig", "Layout", "Segment", "parse_contig", "parse_length"]

_ELEMENT = re.compile(
    r"(?P<low>\d+)(?:-(?P<high>\d+))?"
    r"|(?P<chain>[A-Za-z]+)(?P<first>-?\d+[A-Za-z]?)(?:-(?P<again>[A-Za-z]+)?(?P<last>-?\d+[A-Za-z]?))?"
)
_FORM = (
    'a contig is made of lengths ("20", "10-40") and residues of the motif file ("A25-46", "A30"), '
    'separated by "/", for instance "10-40/A25-46/10-40"; "/0 " begins another chain'
)
_LONGEST = 10_000


@dataclass(frozen=True)
class Segment:
    """One element of a contig.

    Attributes:
        text: as it was given.
        chain: number of the design's chain that it belongs to, from 0.
        low, high: its fewest and most residues; equal for residues of the motif.
        motif: the kept residues, or ``None`` where new ones are built.
    """

    text: str
    chain: int
    low: int
    high: int
    motif: Chain | None = None


@dataclass(frozen=True)
class Layout:
    """A contig with its lengths drawn.

    Attributes:
        contig: whose layout this is.
        lengths: residues of each segment.
    """

    contig: Contig
    lengths: tuple[int, ...]

    def __len__(self) -> int:
        return sum(self.lengths)

    def __str__(self) -> str:
        chains: dict[int, list[str]] = {}
        for segment, n in zip(self.contig.segments, self.lengths, strict=True):
            element = segment.text if segment.motif is not None else str(n)
            chains.setdefault(segment.chain, []).append(element)
        return "/0 ".join("/".join(elements) for elements in chains.values())

    @property
    def places(self) -> NDArray[np.int64]:
        """Which residues of the design are the motif's, ``[K]``, in the contig's order."""
        starts = np.concatenate(([0], np.cumsum(self.lengths)))[:-1]
        kept = [
            start + np.arange(n)
            for segment, start, n in zip(self.contig.segments, starts, self.lengths, strict=True)
            if segment.motif is not None
        ]
        return np.concatenate(kept).astype(np.int64) if kept else np.zeros(0, np.int64)

    @property
    def chains(self) -> NDArray[np.int64]:
        """Number of the design's chain of each residue, ``[N]``."""
        return np.repeat([s.chain for s in self.contig.segments], self.lengths).astype(np.int64)

    def scaffold(self) -> Chain:
        """The design with its motif in place and NaN where residues are to be built.

        Coordinates are those of the motif's file; ``given`` marks the motif, unknown letters are
        "X". Breaks are where one chain of the design ends.
        """
        motif = self.contig.motif
        backbone = np.full((len(self), 4, 3), np.nan, np.float32)
        backbone[self.places] = motif.backbone
        letters = np.full(len(self), "X")
        letters[self.places] = list(motif.sequence)
        given = np.zeros(len(self), bool)
        given[self.places] = True
        breaks = np.diff(self.chains) != 0
        return Chain(backbone, "".join(letters), name=str(self), given=given, breaks=breaks)


@dataclass(frozen=True)
class Contig:
    """A contig whose residues were found in a file.

    Attributes:
        segments: in order.
        total: fewest and most residues of a design, as asked for and as the segments allow.
    """

    segments: tuple[Segment, ...]
    total: tuple[int, int]

    @property
    def motif(self) -> Chain:
        """All kept residues in the contig's order; ids begin with their chain's name."""
        parts = [s.motif for s in self.segments if s.motif is not None]
        if not parts:
            return Chain(np.zeros((0, 4, 3), np.float32), breaks=np.zeros(0, bool))
        joined = [np.append(part.joints, True) for part in parts]
        return Chain(
            np.concatenate([part.backbone for part in parts]),
            "".join(part.sequence for part in parts),
            "motif",
            tuple(i for part in parts for i in part.residue_ids),
            breaks=np.concatenate(joined)[:-1],
        )

    def sample(self, draws: Draws) -> list[Layout]:
        """One layout a sample, uniform over all combinations of lengths that are allowed."""
        import torch

        free = [s for s in self.segments if s.motif is None]
        fixed = sum(s.low for s in self.segments if s.motif is not None)
        ways = _ways([(s.low, s.high) for s in free], self.total, fixed)
        u = draws.uniform((max(len(free), 1),), "contig", dtype=torch.float64).tolist()
        layouts = []
        for row in u:
            lengths, used = [], 0
            for k, segment in enumerate(free):
                options = np.arange(segment.low, segment.high + 1)
                weight = ways[k + 1][used + options]
                share = np.cumsum(weight) / weight.sum()
                # Rounding may leave the last share just below 1.
                pick = min(int(np.searchsorted(share, row[k], side="right")), len(options) - 1)
                lengths.append(int(options[pick]))
                used += lengths[-1]
            rest = iter(lengths)
            layouts.append(
                Layout(
                    self,
                    tuple(s.low if s.motif is not None else next(rest) for s in self.segments),
                )
            )
        return layouts


def _ways(
    ranges: Sequence[tuple[int, int]], total: tuple[int, int], fixed: int
) -> list[NDArray[np.float64]]:
    """``ways[k][n]``: in how many ways segments k, k+1, ... can end well after n residues."""
    top = sum(high for _, high in ranges)
    n = np.arange(top + 1) + fixed
    ways = [((n >= total[0]) & (n <= total[1])).astype(float)]
    for low, high in reversed(ranges):
        before = np.concatenate(([0.0], np.cumsum(ways[0])))
        index = np.arange(top + 1)
        upper, lower = np.minimum(index + high, top) + 1, np.minimum(index + low, top + 1)
        ways.insert(0, before[upper] - before[lower])
    return ways


def parse_length(text: str | int | tuple[int, int] | None) -> tuple[int, int] | None:
    """(fewest, most) of "80", "50-75", 80 or (50, 75).

    Raises:
        InputError: anything else.
    """
    if text is None or (isinstance(text, str) and not text.strip()):
        return None
    if isinstance(text, tuple):
        low, high = text
    else:
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", str(text))
        if match is None:
            raise InputError(f'length {text!r} is neither a number nor a range like "50-75"')
        low, high = int(match[1]), int(match[2] or match[1])
    if not 1 <= low <= high:
        raise InputError(
            f"length {low}-{high}: the first must be at least 1 and the second not less"
        )
    return low, high


def parse_contig(
    text: str,
    chains: Sequence[Chain] = (),
    length: str | int | tuple[int, int] | None = None,
    path: str | Path | None = None,
) -> Contig:
    """Read a contig and find its residues.

    Args:
        text: for instance "10-40/A25-46/10-40".
        chains: of the motif's file; of several models the first counts.
        length: total residues of a design, "75" or "50-75"; default what the segments allow.
        path: of the motif's file, named where that lacks something.

    Raises:
        InputError: not the syntax, a chain or residue that is not in the file or lacks atoms, one
            used twice, or a total length that the segments cannot give.
    """
    if not text.strip():
        raise InputError(f"the contig is empty; {_FORM}")
    segments: list[Segment] = []
    for number, part in enumerate(text.split()):
        elements = re.split(r"[/,]", part)
        if number + 1 < len(text.split()):
            if elements[-1] != "0" or len(elements) < 2:
                raise InputError(
                    f'contig {text!r}: a blank is allowed only behind "/0", where a chain of the '
                    f"design ends; {_FORM}"
                )
            elements = elements[:-1]
        segments += [_segment(element, number, text, chains, path) for element in elements]
    _no_residue_twice(segments, text)
    low, high = sum(s.low for s in segments), sum(s.high for s in segments)
    if high < 1 or high > _LONGEST:
        raise InputError(f"contig {text!r} asks for {low} to {high} residues; 1 to {_LONGEST} work")
    wanted = parse_length(length) or (max(low, 1), high)
    total = max(wanted[0], low, 1), min(wanted[1], high)
    if total[0] > total[1]:
        raise InputError(
            f"contig {text!r} gives {low} to {high} residues, but the length asked for is "
            f"{wanted[0]}-{wanted[1]}; widen the free segments or the length"
        )
    return Contig(tuple(segments), total)


def _segment(element: str, number: int, text: str, chains: Sequence[Chain],
             path: str | Path | None) -> Segment:  # fmt: skip
    match = _ELEMENT.fullmatch(element.strip())
    if match is None:
        raise InputError(f"contig {text!r}: {element!r} is not understood; {_FORM}")
    if match["low"] is not None:
        low, high = int(match["low"]), int(match["high"] or match["low"])
        if low > high:
            raise InputError(f"contig {text!r}: {element!r} runs backwards; write {high}-{low}")
        return Segment(element, number, low, high)
    if match["again"] is not None and match["again"] != match["chain"]:
        raise InputError(f"contig {text!r}: {element!r} begins and ends in different chains")
    motif = _residues(match["chain"], match["first"], match["last"] or match["first"],
                      f"contig {text!r}, {element!r}", chains, path)  # fmt: skip
    return Segment(element, number, len(motif), len(motif), motif)


def _residues(name: str, first: str, last: str, where: str, chains: Sequence[Chain],
              path: str | Path | None) -> Chain:  # fmt: skip
    chain = next((c for c in chains if c.chain_id == name), None)
    if chain is None:
        if not chains:
            raise InputError(f"{where} names residues, but no motif file is given (--motif)")
        models = dict.fromkeys(c.chain_id for c in chains)
        firsts = [next(c for c in chains if c.chain_id == i) for i in models]
        known = ", ".join(
            f"{c.chain_id} ({c.residue_ids[0]} to {c.residue_ids[-1]})" for c in firsts
        )
        raise InputError(f"{where}: the motif file has no chain {name}; it has {known}", path)
    ids = {text.upper(): row for row, text in enumerate(chain.residue_ids)}
    for residue in (first, last):
        if residue.upper() not in ids:
            raise InputError(
                f"{where}: chain {name} of the motif file has no residue {residue}; it has "
                f"{_ranges(chain.residue_ids)}",
                path,
            )
    a, b = ids[first.upper()], ids[last.upper()]
    if a > b:
        raise InputError(f"{where} runs backwards; write {name}{last}-{first}")
    part = chain.take(slice(a, b + 1))
    numbers = [parse_residue_id(i)[0] for i in part.residue_ids]
    lost = sorted(set(range(numbers[0], numbers[-1] + 1)) - set(numbers))
    if lost:
        raise InputError(
            f"{where}: residues {_ranges([str(n) for n in lost])} are missing in the motif file; "
            "give the parts on either side with a free length between",
            path,
        )
    bare = [i for i, x in zip(part.residue_ids, part.backbone, strict=True) if np.isnan(x).any()]
    if bare:
        raise InputError(f"{where}: residues {_ranges(bare)} lack backbone atoms", path)
    return part.replace(
        backbone=part.backbone,
        breaks=part.breaks,
        given=np.ones(len(part), bool),
    )


def _no_residue_twice(segments: Sequence[Segment], text: str) -> None:
    seen: dict[tuple[str, str], str] = {}
    for segment in segments:
        if segment.motif is None:
            continue
        for residue in segment.motif.residue_ids:
            key = (segment.motif.chain_id, residue)
            if key in seen:
                raise InputError(
                    f"contig {text!r}: residue {''.join(key)} stands in both {seen[key]!r} and "
                    f"{segment.text!r}"
                )
            seen[key] = segment.text


def _ranges(ids: Sequence[str]) -> str:
    """Residue ids as "3-40, 44, 52A": runs of plain numbers are joined."""
    runs: list[list[str]] = []
    for text in ids:
        follows = runs and text.lstrip("-").isdigit() and runs[-1][-1].lstrip("-").isdigit()
        if follows and int(text) == int(runs[-1][-1]) + 1:
            runs[-1].append(text)
        else:
            runs.append([text])
    shown = [run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return ", ".join(shown[:12]) + (f" and {len(shown) - 12} more" if len(shown) > 12 else "")
