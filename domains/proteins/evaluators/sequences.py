"""Sequences without structure: n-gram perplexity, composition, low complexity.

An n-gram model predicts a residue from the n - 1 before it,

    p_n(a | h) = (count(h a) + κ p_{n-1}(a | h')) / (count(h) + κ),   p_0 uniform over 20,

each order smoothed by the one below (MacKay and Peto, Nat. Lang. Eng. 1, 289, 1995). Perplexity is
exp of the mean negative log-likelihood a residue: 20 for uniform letters, 18.1 for the letters'
frequencies on UniRef sequences, 17.5 and 17.3 with one and two letters of memory that knows the
start (18.0 and 17.8 if it does not): what a sequence model has to beat.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from domains.proteins.chain import ALPHABET
from domains.proteins.letters import places

__all__ = [
    "NGram",
    "composition",
    "composition_distance",
    "repeats",
    "sequence_metrics",
]

_K = len(ALPHABET)


class NGram:
    """Interpolated n-gram model of the twenty amino acids.

    Args:
        order: 1 unigram, 2 bigram, 3 trigram.
        kappa: strength of the lower order, in counts.
        start: whether the memory knows where a sequence begins. Natural ones begin with
            methionine, which alone is worth 3 % of the perplexity of 110 residues.

    Attributes:
        tables: conditional probabilities, ``[21] * k + [20]`` for k = 0 ... order - 1 letters of
            memory, of which letter 20 is the start.
    """

    def __init__(self, order: int = 2, kappa: float = 100.0, start: bool = True):
        self.order, self.kappa, self.start = order, kappa, start
        self.tables: list[NDArray[np.float64]] = []

    def fit(self, sequences: Iterable[str]) -> NGram:
        """Count; what follows another letter than the twenty counts for shorter memories only."""
        flat = self._flat(sequences)
        below = np.full(_K, 1 / _K)
        self.tables = []
        for k in range(self.order):
            index, _ = _windows(flat, k)
            count = np.bincount(index, minlength=(_K + 1) ** k * _K).reshape((_K + 1,) * k + (_K,))
            # The lower order's memory is the last k - 1 letters of this one's.
            below = (count + self.kappa * below) / (count.sum(-1, keepdims=True) + self.kappa)
            self.tables.append(below)
        return self

    def _flat(self, sequences: Iterable[str]) -> NDArray[np.int64]:
        """All sequences in a row, each behind a wall (-1) and its start letters."""
        lead = np.array([-1] + [_K] * ((self.order - 1) * self.start))
        return np.concatenate([lead[:0], *(x for s in sequences for x in (lead, places(s)))])

    def log_likelihoods(self, sequences: Iterable[str]) -> NDArray[np.float64]:
        """Log-probability of every residue that is one of the twenty, all sequences in a row.

        A residue after an unknown letter (or near the start, without ``start``) is predicted with
        the memory that there is.
        """
        flat = self._flat(sequences)
        logs = np.full(len(flat), np.nan)
        for k, table in enumerate(self.tables):
            index, place = _windows(flat, k)
            logs[place] = np.log(table.reshape(-1)[index])
        return logs[np.isfinite(logs)]

    def perplexity(self, sequences: Iterable[str]) -> float:
        """exp of the mean negative log-likelihood a residue; NaN without residues."""
        logs = self.log_likelihoods(sequences)
        return float(np.exp(-logs.mean())) if len(logs) else float("nan")


def _windows(flat: NDArray[np.int64], k: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(flat index into the table of ``k`` letters of memory, place of the letter predicted)."""
    if len(flat) <= k:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(flat, k + 1)
    known = np.flatnonzero((windows >= 0).all(1) & (windows[:, -1] < _K))
    powers = np.array([_K * (_K + 1) ** (k - 1 - m) for m in range(k)] + [1])
    return windows[known] @ powers, known + k


def composition(sequences: Iterable[str]) -> NDArray[np.float64]:
    """Share of each letter of :data:`ALPHABET`, ``[20]``; other letters are not counted."""
    counts = np.zeros(_K)
    for sequence in sequences:
        found = places(sequence)
        counts += np.bincount(found[found >= 0], minlength=_K)
    return counts / max(counts.sum(), 1)


def composition_distance(a: Iterable[str], b: Iterable[str]) -> float:
    """Jensen-Shannon divergence of two sets' compositions in bits: 0 the same, 1 disjoint."""
    p, q = composition(a), composition(b)
    m = (p + q) / 2

    def kl(x: NDArray[np.float64]) -> float:
        some = x > 0
        return float((x[some] * np.log2(x[some] / m[some])).sum())

    return (kl(p) + kl(q)) / 2


def repeats(sequence: str, least: int = 4) -> float:
    """Share of residues in runs of one letter of ``least`` or more."""
    if not sequence:
        return 0.0
    found = places(sequence)
    starts = np.flatnonzero(np.append(True, found[1:] != found[:-1]))
    runs = np.diff(np.append(starts, len(found)))
    return float(runs[runs >= least].sum() / len(found))


def sequence_metrics(
    sequences: Sequence[str],
    model: NGram | None = None,
    reference: Sequence[str] | None = None,
) -> dict[str, float]:
    """Metrics of a set of sequences.

    ``sequence_entropy`` (bits a residue of the composition; natural 4.18), ``sequence_repeats``
    (see :func:`repeats`), ``sequence_unique`` (share of distinct ones), and where asked for
    ``ngram_perplexity`` under ``model`` and ``composition_js`` beside ``reference``.
    """
    sequences = [s for s in sequences if s and set(s) - {"X"}]
    if not sequences:
        return {}
    p = composition(sequences)
    values = {
        "sequence_entropy": float(-(p[p > 0] * np.log2(p[p > 0])).sum()),
        "sequence_repeats": float(np.mean([repeats(s) for s in sequences])),
        "sequence_unique": len(Counter(sequences)) / len(sequences),
    }
    if model is not None:
        values["ngram_perplexity"] = model.perplexity(sequences)
    if reference:
        values["composition_js"] = composition_distance(sequences, reference)
    return values
