"""Bond lengths, bond angles and planarity of the peptide group, beside what crystals have.

Ideal values and spreads are Engh and Huber's (Acta Cryst. A 47, 392, 1991; International Tables F,
2001) for the backbone; natural chains of our own data lie within 0.02 Å and 1° of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from domains.proteins.chain import Chain
from domains.proteins.evaluators.geometry import Array, angle, atoms, torsions

__all__ = ["ANGLES", "BONDS", "bond_angles", "bond_lengths", "bonds"]

BONDS = {
    "N-CA": (1.459, 0.020),
    "CA-C": (1.525, 0.026),
    "C-N": (1.336, 0.023),
    "C-O": (1.229, 0.019),
}
"""Ideal length and its spread in ångström; C-N joins a residue to the next."""

ANGLES = {"N-CA-C": (111.0, 2.7), "CA-C-N": (117.2, 2.2), "C-N-CA": (121.7, 2.5)}
"""Ideal angle and its spread in degrees."""

_TWISTED = 30.0
_PEPTIDE = 0.05


def bond_lengths(chain: Chain) -> dict[str, Array]:
    """Lengths in ångström of each bond of :data:`BONDS`; C-N across a break is left out."""
    n, ca, c, o = atoms(chain)
    length = {
        "N-CA": np.linalg.norm(ca - n, axis=-1),
        "CA-C": np.linalg.norm(c - ca, axis=-1),
        "C-N": np.linalg.norm(n[1:] - c[:-1], axis=-1)[~chain.joints],
        "C-O": np.linalg.norm(o - c, axis=-1),
    }
    return {key: value[np.isfinite(value)] for key, value in length.items()}


def bond_angles(chain: Chain) -> dict[str, Array]:
    """Angles in degrees of each of :data:`ANGLES`; none across a break."""
    n, ca, c, _ = atoms(chain)
    joined = ~chain.joints
    value = {
        "N-CA-C": angle(n, ca, c),
        "CA-C-N": angle(ca[:-1], c[:-1], n[1:])[joined],
        "C-N-CA": angle(c[:-1], n[1:], ca[1:])[joined],
    }
    return {key: a[np.isfinite(a)] for key, a in value.items()}


def bonds(chains: Sequence[Chain]) -> dict[str, float]:
    """Geometry of all chains together.

    ``bond_X`` and ``bond_X_sd`` (Å) and ``angle_X`` and ``angle_X_sd`` (degrees) for each X of
    :data:`BONDS` and :data:`ANGLES`; ``peptide_bond_ok``, the share of C-N within 1.33 ± 0.05 Å;
    ``breaks_per_100`` residues; ``omega_trans`` and ``omega_cis``, the shares within 30° of 180°
    and of 0°; ``omega_spread``, the root mean square distance of ω from the nearer of the two.
    """
    if not chains:
        return {}
    values: dict[str, float] = {}
    lengths, angles = [bond_lengths(c) for c in chains], [bond_angles(c) for c in chains]
    for prefix, rows, keys in (("bond", lengths, BONDS), ("angle", angles, ANGLES)):
        for key in keys:
            all_ = np.concatenate([row[key] for row in rows])
            if len(all_):
                # Coordinates of single precision say no more.
                values[f"{prefix}_{key}"] = round(float(all_.mean()), 5)
                values[f"{prefix}_{key}_sd"] = round(float(all_.std()), 5)
    peptide = np.concatenate([row["C-N"] for row in lengths])
    if len(peptide):
        values["peptide_bond_ok"] = float((np.abs(peptide - 1.33) <= _PEPTIDE).mean())
    residues = sum(map(len, chains))
    values["breaks_per_100"] = 100 * sum(int(c.joints.sum()) for c in chains) / max(residues, 1)
    omega = np.concatenate([torsions(c).omega for c in chains])
    omega = omega[np.isfinite(omega)]
    if len(omega):
        from_trans = np.abs((omega + 360.0) % 360.0 - 180.0)
        off = np.minimum(from_trans, 180.0 - from_trans)
        values["omega_trans"] = float((from_trans <= _TWISTED).mean())
        values["omega_cis"] = float((180.0 - from_trans <= _TWISTED).mean())
        values["omega_spread"] = float(np.sqrt((off**2).mean()))
    return values
