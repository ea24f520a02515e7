"""Backbones made by hand: compact three-helix bundles at ideal geometry."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import ArrayLike

from domains.proteins.chain import Chain
from domains.proteins.frames import atoms_from_frames, frames_from_atoms
from domains.proteins.rebuild import BEND_MEAN, UNDEFINED, rebuild

__all__ = ["chain_from_torsions", "helix_bundle"]

_HELIX = (-63.0, -42.0, 179.0)
_STRAND, _ALPHA = (-75.0, 150.0, 179.0), (-65.0, -40.0, 179.0)
_LEFT, _BRIDGE, _POLY = (85.0, 5.0, 179.0), (-90.0, 0.0, 179.0), (-70.0, 135.0, 179.0)
_LOOPS = ((_LEFT, _ALPHA, _STRAND, _STRAND), (_LEFT, _BRIDGE, _POLY, _STRAND))
"""Found by trying all loops of four such residues: helices lie side by side, 8 Å apart."""


_HELICAL, _TURN = "AELKQRMIV", "GNSD"
"""Letters of helices, and of turns: glycine, whose φ may be positive, and ends of helices."""


def chain_from_torsions(torsions: ArrayLike, name: str = "") -> Chain:
    """The chain of φ, ψ, ω in degrees, ``[N, 3]``, with mean bond angles.

    Torsions that no atoms tell (φ of the first residue, ω of the last) are those of the encoding,
    and oxygens those that frames give back, so that every representation holds the chain exactly.
    """
    x = torch.as_tensor(np.deg2rad(np.asarray(torsions, np.float64)))
    x[0, 0], x[-1, 2] = UNDEFINED[0], UNDEFINED[2]
    n, ca, c, _ = rebuild(x, x.new_tensor(BEND_MEAN).expand_as(x)).unbind(-2)
    o = atoms_from_frames(*frames_from_atoms(n, ca, c))[:, 3]
    return Chain(torch.stack((n, ca, c, o), -2).numpy(), name=name)


def helix_bundle(number: int = 0) -> Chain:
    """Three helices of 12 to 15 residues joined by loops of four; each number makes another.

    Its sequence is one of many that would do: letters of helices at random.
    """
    first, last = 12 + number % 4, 12 + (number // 4) % 4
    lean = 0.5 * math.sin(1.0 + number)
    helix = [(_HELIX[0] + lean, _HELIX[1] - lean, _HELIX[2])]
    torsions = [*(helix * first), *_LOOPS[0], *(helix * 14), *_LOOPS[1], *(helix * last)]
    letters = np.random.default_rng(number).choice([*_HELICAL], first + 14 + last)
    a, b = first, first + 14
    parts = ["".join(letters[:a]), "".join(letters[a:b]), "".join(letters[b:])]
    chain = chain_from_torsions(torsions, f"three helices of {first}, 14 and {last}")
    return chain.replace(sequence=_TURN.join(parts))
