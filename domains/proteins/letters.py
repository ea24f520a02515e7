"""Residues as tokens: the field ``residues``, the place of each letter in the alphabet.

On the way a residue can also be masked (symbol 20, written "X").
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from domains.proteins.chain import ALPHABET
from sciflow.errors import InputError

__all__ = ["FIELD", "MASKED", "codes", "letters_of"]

FIELD = "residues"
MASKED = len(ALPHABET)
_PLACE = {letter: i for i, letter in enumerate(ALPHABET)}
_LETTERS = np.array([*ALPHABET, "X"])


def codes(sequence: str, unknown: bool = False) -> NDArray[np.uint8]:
    """Places in the alphabet, ``[N]``.

    Args:
        sequence: one letter a residue.
        unknown: take any other letter for a masked residue.

    Raises:
        InputError: a letter that is none of the twenty.
    """
    places = [_PLACE.get(letter, MASKED) for letter in sequence]
    if MASKED in places and not unknown:
        raise InputError(
            f"residue {sequence[places.index(MASKED)]!r} is none of the twenty amino acids "
            f"({ALPHABET}); a model of sequences has no other"
        )
    return np.array(places, np.uint8)


def letters_of(tokens: NDArray[np.integer]) -> str:
    """The sequence of tokens ``[N]``; a masked residue is an "X"."""
    return "".join(_LETTERS[tokens])
