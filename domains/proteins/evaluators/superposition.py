"""Rigid superposition and the root mean square deviation that is left.

The best rotation of one point set onto another is U diag(1, 1, d) Vᵀ with the singular vectors of
their covariance and d = ±1 such that it is no mirror image (Kabsch, Acta Cryst. A 32, 922, 1976;
A 34, 827, 1978).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from domains.proteins.chain import Chain

__all__ = ["motif_rmsd", "rmsd", "superimpose"]


def superimpose(
    moving: ArrayLike, fixed: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(rotation R ``[3, 3]``, shift t ``[3]``) for which ``moving @ R.T + t`` is nearest ``fixed``.

    Args:
        moving, fixed: points ``[K, 3]``.
    """
    x, y = np.asarray(moving, np.float64), np.asarray(fixed, np.float64)
    centre_x, centre_y = x.mean(0), y.mean(0)
    u, _, vt = np.linalg.svd((y - centre_y).T @ (x - centre_x))
    rotation = u @ np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))]) @ vt
    return rotation, centre_y - rotation @ centre_x


def rmsd(moving: ArrayLike, fixed: ArrayLike) -> float:
    """Root mean square deviation after the best superposition, in the points' unit."""
    rotation, shift = superimpose(moving, fixed)
    away = np.asarray(moving, np.float64) @ rotation.T + shift - np.asarray(fixed, np.float64)
    return float(np.sqrt((away**2).sum(-1).mean()))


def motif_rmsd(chain: Chain, places: ArrayLike, motif: ArrayLike, ca_only: bool = False) -> float:
    """Deviation in ångström between a motif and the residues of a chain that carry it.

    Args:
        chain: the scaffold.
        places: which of its residues are the motif's, ``[K]``, in the motif's order.
        motif: N, CA, C, O of the motif, ``[K, 4, 3]``.
        ca_only: only CA instead of N, CA and C.
    """
    atoms = slice(1, 2) if ca_only else slice(0, 3)
    ours = chain.backbone[np.asarray(places, np.int64), atoms].reshape(-1, 3)
    theirs = np.asarray(motif, np.float64)[:, atoms].reshape(-1, 3)
    both = np.isfinite(ours).all(1) & np.isfinite(theirs).all(1)
    return rmsd(ours[both], theirs[both])
