r"""What a set of sequences without structures is like, beside the sequences a model learnt from.

Each way to look good and be bad has its figure: sequences of one letter (``low_complexity``,
``sequence_repeats``), of the right letters in random order (``trigram_perplexity``), copies
(``kmer_novelty``), and twenty of the same (``sequence_unique``).

    composition_kl = Σ_a p(a) ln(p(a)/q(a))                 letters of the set, of the reference

Low complexity is the first stage of SEG (Wootton & Federhen, Comput. Chem. 17, 149, 1993): a
residue lies in some window of 12 whose letters have an entropy of 2.2 bits or less. ``helix`` and
``strand`` are the GOR method's guess (:mod:`domains.proteins.evaluators.gor`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from domains.proteins.chain import Chain
from domains.proteins.evaluators.gor import GOR
from domains.proteins.evaluators.sequences import (
    NGram,
    composition,
    composition_distance,
    repeats,
    sequence_metrics,
)
from domains.proteins.letters import places
from sciflow.data import shared_data
from sciflow.domain import OracleAnswer

__all__ = [
    "Reference",
    "composition_kl",
    "design_metrics",
    "design_rows",
    "gor_of_data",
    "guesses",
    "kmers",
    "low_complexity",
    "reference_of_data",
]

_WINDOW, _BITS, _WORD = 12, 2.2, 6


@dataclass(frozen=True)
class Reference:
    """Known sequences, counted once.

    Attributes:
        letters: composition ``[20]``.
        trigram: counted on them.
        words: which words of six letters they hold, by code, bool ``[20⁶]``.
    """

    letters: NDArray[np.float64]
    trigram: NGram
    words: NDArray[np.bool_]

    @classmethod
    def of(cls, sequences: Sequence[str]) -> Reference:
        """Count ``sequences``."""
        words = np.zeros(20**_WORD, bool)
        words[kmers("X".join(sequences))] = True
        return cls(composition(sequences), NGram(3).fit(sequences), words)

    def novelty(self, sequence: str) -> float:
        """Share of the sequence's words of six letters that no known sequence has; NaN if none."""
        own = kmers(sequence)
        return float((~self.words[own]).mean()) if len(own) else float("nan")


def reference_of_data() -> Reference | None:
    """That of the training part of UniRef, where the data are on this machine."""
    return _reference_in(shared_data())


def gor_of_data() -> GOR | None:
    """Counted on all chains of known structure, where the data are on this machine."""
    return _gor_in(shared_data())


# Remembered by folder: where the data are may change in the life of a process.
@lru_cache(maxsize=2)
def _reference_in(folder: Path | None) -> Reference | None:
    from domains.proteins.residue_data import uniref
    from sciflow.errors import InputError

    if folder is None:
        return None
    try:
        return Reference.of(uniref().part("train").sequences)
    except InputError:
        return None


@lru_cache(maxsize=2)
def _gor_in(folder: Path | None) -> GOR | None:
    from domains.proteins.datasets import backbones
    from sciflow.errors import InputError

    if folder is None:
        return None
    try:
        return GOR.of_table(backbones())
    except InputError:
        return None


def design_rows(chains: Sequence[Chain]) -> list[dict[str, Any]]:
    """What each sequence is like, one row of a table each.

    ``length``, ``sequence``, ``low_complexity``, ``repeats`` and, where the data are on this
    machine, ``kmer_novelty``, ``trigram_perplexity``, the guessed ``helix``, ``strand`` and
    ``gor``, a state a residue.
    """
    known, gor = reference_of_data(), gor_of_data()
    table = []
    for chain in chains:
        text = chain.sequence
        row: dict[str, Any] = {
            "length": len(chain),
            "sequence": text,
            "low_complexity": low_complexity(text),
            "repeats": repeats(text),
        }
        if known is not None:
            row["kmer_novelty"] = known.novelty(text)
            row["trigram_perplexity"] = known.trigram.perplexity([text])
        if gor is not None:
            states = gor.predict(text)
            row["helix"] = states.count("H") / max(len(text), 1)
            row["strand"] = states.count("E") / max(len(text), 1)
            row["gor"] = states
        table.append(row)
    return table


def design_metrics(
    chains: Sequence[Chain], natural: Sequence[Chain] | None = None
) -> dict[str, float]:
    """Metrics of a set of sequences: means of :func:`design_rows`, and figures of the whole set.

    Args:
        chains: the set.
        natural: real sequences, whose composition ``composition_js`` (bits) compares.
    """
    chains = [chain for chain in chains if len(chain)]
    if not chains:
        return {}
    texts, rows = [chain.sequence for chain in chains], design_rows(chains)
    values = {"sequences": float(len(chains))}
    for key in ("length", "helix", "strand", "low_complexity", "kmer_novelty"):
        if key in rows[0]:
            values[key] = float(np.mean([row[key] for row in rows]))
    known = reference_of_data()
    values |= sequence_metrics(texts)
    if known is not None:
        values["trigram_perplexity"] = known.trigram.perplexity(texts)
        values["composition_kl"] = composition_kl(composition(texts), known.letters)
    if natural:
        values["composition_js"] = composition_distance(texts, [c.sequence for c in natural])
    return values


def guesses(chains: Sequence[Chain], properties: Sequence[str]) -> list[OracleAnswer]:
    """Length, and helix and strand by the GOR method; other properties need a structure."""
    gor, answers = gor_of_data(), []
    for chain in chains:
        begin = time.monotonic()
        values = {"length": float(len(chain))}
        if gor is not None:
            values |= gor.contents(chain.sequence)
        missing = [p for p in properties if p not in values]
        failure = f"{missing[0]} is not told by a sequence alone" if missing else ""
        if gor is None and set(missing) & {"helix", "strand"}:
            failure = "the GOR method is counted on backbones.npz, which is not on this machine"
        asked = {} if failure else {p: values[p] for p in properties}
        answers.append(OracleAnswer(asked, failure, time.monotonic() - begin))
    return answers


def composition_kl(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """Kullback-Leibler divergence of two compositions ``[20]`` in nats; infinite if q lacks one."""
    some = p > 0
    with np.errstate(divide="ignore"):
        return float((p[some] * np.log(p[some] / q[some])).sum())


def low_complexity(sequence: str) -> float:
    """Share of residues in windows of 12 with an entropy of 2.2 bits or less; see the module."""
    found = places(sequence)
    if len(found) < _WINDOW:
        return 0.0
    windows = np.lib.stride_tricks.sliding_window_view(found, _WINDOW)
    counts = (windows[..., None] == np.arange(20)).sum(1)
    p = counts / _WINDOW
    bits = -(p * np.log2(np.where(p > 0, p, 1.0))).sum(1)
    low = np.zeros(len(found), bool)
    for start in np.flatnonzero(bits <= _BITS):
        low[start : start + _WINDOW] = True
    return float(low.mean())


def kmers(sequence: str, k: int = _WORD) -> NDArray[np.int64]:
    """Codes of the words of ``k`` known letters in a sequence, in their order."""
    found = places(sequence)
    n = len(found) - k + 1
    if n < 1:
        return np.zeros(0, np.int64)
    known, words = np.ones(n, bool), np.zeros(n, np.int64)
    for i in range(k):
        known &= found[i : i + n] >= 0
        words = 20 * words + found[i : i + n]
    return words[known]
