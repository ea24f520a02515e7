"""Atoms of a backbone that stand in each other's way.

Two counts, each per 100 residues:

* **CA**: pairs more than two residues apart (|i - j| > 2) whose CA are nearer than 3.6 Å; the
  shortest distance of bonded neighbours in the common trans form is 3.8 Å.
* **Backbone**: pairs of N, CA, C, O more than two residues apart whose van der Waals spheres
  (Bondi, J. Phys. Chem. 68, 441, 1964: C 1.70, N 1.55, O 1.52 Å) overlap by 0.4 Å or more, the
  limit of MolProbity's bad overlap; N and O, which may share a hydrogen, by 0.7 Å or more.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.spatial import cKDTree

from domains.proteins.chain import Chain

__all__ = ["CA_LIMIT", "backbone_clashes", "ca_clashes", "clashes"]

CA_LIMIT = 3.6
_APART = 3
_RADII = np.array([1.55, 1.70, 1.70, 1.52])
_OVERLAP = 0.4
_HYDROGEN_BOND = 0.7


def ca_clashes(chain: Chain) -> int:
    """Pairs of CA nearer than :data:`CA_LIMIT`, more than two residues apart."""
    here = np.flatnonzero(np.isfinite(chain.ca).all(1))
    pairs = cKDTree(chain.ca[here]).query_pairs(CA_LIMIT, output_type="ndarray")
    i, j = here[pairs[:, 0]], here[pairs[:, 1]]
    return int((np.abs(i - j) >= _APART).sum())


def backbone_clashes(chain: Chain) -> int:
    """Pairs of heavy backbone atoms that overlap, more than two residues apart."""
    atoms = chain.backbone.reshape(-1, 3).astype(np.float64)
    here = np.flatnonzero(np.isfinite(atoms).all(1))
    reach = 2 * _RADII.max() - _OVERLAP
    pairs = here[cKDTree(atoms[here]).query_pairs(reach, output_type="ndarray")]
    kind, residue = pairs % 4, pairs // 4
    apart = np.abs(residue[:, 0] - residue[:, 1]) >= _APART
    distance = np.linalg.norm(atoms[pairs[:, 0]] - atoms[pairs[:, 1]], axis=-1)
    shares_hydrogen = np.sort(kind, 1) @ [10, 1] == 3  # N (0) with O (3)
    overlap = np.where(shares_hydrogen, _HYDROGEN_BOND, _OVERLAP)
    return int((apart & (distance < _RADII[kind].sum(1) - overlap)).sum())


def clashes(chains: Sequence[Chain]) -> dict[str, float]:
    """``clashes_per_100`` (CA) and ``backbone_clashes_per_100`` residues of all chains together.

    Chains are judged one by one: what two chains of a complex do to each other is not counted.
    """
    residues = sum(map(len, chains))
    if not residues:
        return {}
    return {
        "clashes_per_100": 100 * sum(map(ca_clashes, chains)) / residues,
        "backbone_clashes_per_100": 100 * sum(map(backbone_clashes, chains)) / residues,
    }
