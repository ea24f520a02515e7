r"""Bonds, angles and torsions of backbones, in numpy and ångström.

A torsion over atoms a, b, c, d is the angle between the planes (a, b, c) and (b, c, d), positive
where d lies clockwise of a when seen along b → c (IUPAC-IUB 1970): with the bonds u, v, w in order,

    τ = atan2(|v| u·(v×w), (u×v)·(v×w)).

φ_i runs over C_{i-1} N CA C, ψ_i over N CA C N_{i+1}, ω_i over CA C N_{i+1} CA_{i+1}.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from domains.proteins.chain import Chain

__all__ = ["Torsions", "angle", "atoms", "dihedral", "torsions"]

Array = NDArray[np.float64]


class Torsions(NamedTuple):
    """Degrees in [-180, 180), NaN where a residue has none (ends, breaks, missing atoms).

    ``phi`` and ``psi`` belong to residue i, ``omega`` to the bond between i and i + 1.
    """

    phi: Array
    psi: Array
    omega: Array


def atoms(chain: Chain) -> list[Array]:
    """N, CA, C and O, ``[N, 3]`` each; what is not finite is NaN."""
    x = chain.backbone.astype(np.float64)
    x[~np.isfinite(x)] = np.nan
    return [x[:, k] for k in range(4)]


def angle(a: Array, b: Array, c: Array) -> Array:
    """Angle at ``b`` in degrees; arrays ``[..., 3]``."""
    u, w = a - b, c - b
    cross = np.linalg.norm(np.cross(u, w), axis=-1)
    return np.degrees(np.arctan2(cross, (u * w).sum(-1)))


def dihedral(a: Array, b: Array, c: Array, d: Array) -> Array:
    """Torsion over four atoms in degrees; arrays ``[..., 3]``."""
    u, v, w = b - a, c - b, d - c
    n, m = np.cross(u, v), np.cross(v, w)
    sine = np.linalg.norm(v, axis=-1) * (u * m).sum(-1)
    return np.degrees(np.arctan2(sine, (n * m).sum(-1)))


def torsions(chain: Chain) -> Torsions:
    """φ and ψ ``[N]`` and ω ``[N - 1]`` of a chain; nothing is measured across a break."""
    n, ca, c, _ = atoms(chain)
    phi, psi = np.full(len(chain), np.nan), np.full(len(chain), np.nan)
    phi[1:] = dihedral(c[:-1], n[1:], ca[1:], c[1:])
    psi[:-1] = dihedral(n[:-1], ca[:-1], c[:-1], n[1:])
    omega = dihedral(ca[:-1], c[:-1], n[1:], ca[1:])
    for values in (phi[1:], psi[:-1], omega):
        values[chain.joints] = np.nan
    return Torsions(phi, psi, omega)
