"""Backbones made by hand: helices joined by a loop, at ideal geometry."""

from __future__ import annotations

import math

import numpy as np
import torch

from domains.proteins.chain import Chain
from domains.proteins.frames import atoms_from_frames, frames_from_atoms
from domains.proteins.rebuild import BEND_MEAN, UNDEFINED, rebuild

__all__ = ["chain_from_torsions", "helix_bundle"]

_HELIX = (-63.0, -42.0, 180.0)
_LOOP = ((-75.0, 150.0, 180.0), (60.0, 40.0, 180.0), (-90.0, 0.0, 180.0), (-80.0, 140.0, 180.0))


def chain_from_torsions(torsions: np.ndarray, name: str = "") -> Chain:  # type: ignore[type-arg]
    """The chain of φ, ψ, ω in degrees, ``[N, 3]``, with mean bond angles."""
    x = torch.as_tensor(np.deg2rad(np.asarray(torsions, np.float64)))
    return Chain(rebuild(x, x.new_tensor(BEND_MEAN).expand_as(x)).numpy(), name=name)


def helix_bundle(seed: int = 0) -> Chain:
    """Two helices of 10 to 13 residues with a loop of four between; a number makes each its own.

    Torsions that no atoms tell (φ of the first residue, ω of the last) are those of the encoding,
    and bond angles are the means, so that every representation holds the chain exactly.
    """
    first, second = 10 + seed % 4, 10 + (seed // 4) % 4
    lean = 2.0 * math.sin(1.0 + seed)
    helix = [(_HELIX[0] + lean, _HELIX[1] - lean, _HELIX[2])]
    torsions = np.deg2rad(np.array([*(helix * first), *_LOOP, *(helix * second)]))
    torsions[0, 0], torsions[-1, 2] = UNDEFINED[0], UNDEFINED[2]
    x = torch.as_tensor(torsions)
    backbone = rebuild(x, x.new_tensor(BEND_MEAN).expand_as(x))
    n, ca, c, o = backbone.unbind(-2)
    # The oxygens that frames give back.
    again = atoms_from_frames(*frames_from_atoms(n, ca, c), psi=None)
    backbone = torch.stack((n, ca, c, o if o.shape[0] < 2 else again[:, 3]), -2)
    return Chain(backbone.numpy(), name=f"helices {first} {second}")
