r"""Secondary structure from sequence alone by counting: the GOR method, third version.

A residue's state S (helix, strand, coil) is told by its neighbours up to 8 places away, each asked
together with the residue itself (Gibrat, Garnier & Robson, J. Mol. Biol. 198, 425, 1987):

    S_i = argmax_S  log p(S | a_i) + Σ_{0 < |m| ≤ 8} log p(a_{i+m} | S, a_i),

as if neighbours were independent given S and a_i. Every p is a count on chains of known structure,
p(a_{i+m} | S, a_i) smoothed by p(a_{i+m} | S) with κ counts. About 62 of 100 residues come out
right, 20 fewer than with alignments and networks; but nothing is fitted by gradients, so that it
judges sequences which a network was guided by without sharing its blind spots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from domains.proteins.chain import ALPHABET
from domains.proteins.evaluators.secondary_structure import three_states
from domains.proteins.letters import codes
from domains.proteins.table import DSSP_CODES, ChainTable

__all__ = ["GOR", "STATES"]

STATES = "HEC"
"""Helix, strand, coil."""

_K, _REACH = len(ALPHABET), 8


class GOR:
    """Counts of residues around helix, strand and coil.

    Args:
        kappa: strength of the smoothing, in counts.

    Attributes:
        own: log p(S | a), ``[20, 3]``.
        around: log p(a_{i+m} | S, a_i), ``[17, 20, 3, 21]`` for m = −8 … 8, a_i, S and a_{i+m}, of
            which letter 20 (outside the chain, or unknown) says nothing.
    """

    def __init__(self, kappa: float = 200.0):
        self.kappa = kappa
        self.own = np.zeros((_K, 3))
        self.around = np.zeros((2 * _REACH + 1, _K, 3, _K + 1))

    def fit(self, sequences: Sequence[str], states: Sequence[str]) -> GOR:
        """Count.

        Args:
            sequences: letters; others than the twenty are passed over.
            states: of :data:`STATES`, as long as the sequences.
        """
        return self._fit([_letters(s) for s in sequences], [_states(t) for t in states])

    def _fit(self, letters: Sequence[NDArray[Any]], states: Sequence[NDArray[Any]]) -> GOR:
        none = np.zeros(0, np.int64)
        known, s = np.concatenate([none, *letters]), np.concatenate([none, *states])
        if len(known) != len(s):
            raise ValueError(f"{len(known)} residues have {len(s)} states")
        rows = known < _K
        windows = np.concatenate([_windows(none), *map(_windows, letters)])[rows]
        a, s = known[rows], s[rows]
        own = np.bincount(a * 3 + s, minlength=_K * 3).reshape(_K, 3) + 1.0
        self.own = np.log(own / own.sum(1, keepdims=True))
        for m in range(2 * _REACH + 1):
            if m == _REACH:
                continue
            index = (a * 3 + s) * (_K + 1) + windows[:, m]
            count = np.bincount(index, minlength=_K * 3 * (_K + 1)).reshape(_K, 3, _K + 1)
            count = count[..., :_K].astype(np.float64)
            single = count.sum(0) + 1.0
            single /= single.sum(-1, keepdims=True)
            pair = count + self.kappa * single
            self.around[m, ..., :_K] = np.log(pair / pair.sum(-1, keepdims=True))
        return self

    @classmethod
    def of_table(cls, table: ChainTable, kappa: float = 200.0) -> GOR:
        """Counted on chains with DSSP states."""
        three = _states(three_states(DSSP_CODES))[table.dssp]
        ends = table.offsets[1:-1]
        letters = np.minimum(table.sequence, _K).astype(np.int64)
        return cls(kappa)._fit(np.split(letters, ends), np.split(three, ends))

    def scores(self, sequence: str) -> NDArray[np.float64]:
        """The sum above for every residue and state, ``[N, 3]``; unknown residues score 0."""
        a = _letters(sequence)
        windows, known = _windows(a), a < _K
        total = np.zeros((len(a), 3))
        total[known] = self.own[a[known]]
        for m in range(2 * _REACH + 1):
            total[known] += self.around[m, a[known], :, windows[known, m]]
        return total

    def predict(self, sequence: str) -> str:
        """The state of every residue in letters of :data:`STATES`; "C" where it is unknown."""
        best = self.scores(sequence).argmax(1)
        best[_letters(sequence) >= _K] = STATES.index("C")
        return "".join(STATES[i] for i in best)

    def contents(self, sequence: str) -> dict[str, float]:
        """Predicted shares of ``helix`` and ``strand``."""
        states, n = self.predict(sequence), max(len(sequence), 1)
        return {"helix": states.count("H") / n, "strand": states.count("E") / n}


def _letters(sequence: str) -> NDArray[np.int64]:
    return codes(sequence, unknown=True).astype(np.int64)


def _states(text: str) -> NDArray[np.int64]:
    return np.array([STATES.index(c) for c in text], np.int64)


def _windows(letters: NDArray[np.int64]) -> NDArray[np.int64]:
    """Letters at −8 … 8 of every residue, ``[N, 17]``; 20 outside."""
    if not len(letters):
        return np.zeros((0, 2 * _REACH + 1), np.int64)
    padded = np.pad(letters, _REACH, constant_values=_K)
    return np.lib.stride_tricks.sliding_window_view(padded, 2 * _REACH + 1)
