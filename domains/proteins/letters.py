"""Residues as tokens: the field ``residues``, the place of each letter in the alphabet.

On the way a residue can also be masked (symbol 20, written "X").
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from domains.proteins.chain import ALPHABET
from sciflow.errors import InputError

__all__ = ["FIELD", "MASKED", "codes", "letters_of", "places"]

FIELD = "residues"
MASKED = len(ALPHABET)
_PLACE = np.full(128, -1, np.int64)
_PLACE[[ord(c) for c in ALPHABET]] = np.arange(len(ALPHABET))
_LETTERS = np.array([*ALPHABET, "X"])


def places(sequence: str) -> NDArray[np.int64]:
    """Place of each letter in the alphabet, ``[N]``; -1 for others than the twenty."""
    return _PLACE[np.frombuffer(sequence.encode("ascii", "replace"), np.uint8) & 127]


def codes(sequence: str, unknown: bool = False) -> NDArray[np.uint8]:
    """The tokens of a sequence, ``[N]``.

    Args:
        sequence: one letter a residue.
        unknown: take any other letter for a masked residue.

    Raises:
        InputError: a letter that is none of the twenty.
    """
    found = places(sequence)
    other = found < 0
    if other.any() and not unknown:
        raise InputError(
            f"residue {sequence[int(other.argmax())]!r} is none of the twenty amino acids "
            f"({ALPHABET}); a model of sequences has no other"
        )
    return np.where(other, MASKED, found).astype(np.uint8)


def letters_of(tokens: NDArray[np.integer]) -> str:
    """The sequence of tokens ``[N]``; a masked residue is an "X"."""
    return "".join(_LETTERS[tokens])
