"""How compact a chain is and how it is wired.

* **Radius of gyration** of the CA atoms beside the law of globular proteins, Rg ≈ 2.2 N^0.38 Å
  (Skolnick, Kolinski and Ortiz, J. Mol. Biol. 265, 217, 1997): a ratio near 1 is compact, 1.5 is
  an open coil or a long helix.
* **Relative contact order** (Plaxco, Simons and Baker, J. Mol. Biol. 277, 985, 1998): the mean
  separation along the chain of residues in contact, over its length. Here a contact is two CA
  within 8 Å, more than two residues apart, since side chains are not known.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from domains.proteins.chain import Chain

__all__ = ["CONTACT", "contact_order", "contacts", "radius_of_gyration", "rg_ratio", "shape"]

CONTACT = 8.0
_APART = 3


def radius_of_gyration(chain: Chain) -> float:
    """√⟨|x - ⟨x⟩|²⟩ of the CA atoms in ångström; NaN without any."""
    x = chain.ca[np.isfinite(chain.ca).all(1)].astype(np.float64)
    return float(np.sqrt(((x - x.mean(0)) ** 2).sum(-1).mean())) if len(x) else float("nan")


def rg_ratio(chain: Chain) -> float:
    """Radius of gyration over 2.2 N^0.38 Å."""
    return radius_of_gyration(chain) / (2.2 * max(len(chain), 1) ** 0.38)


def contacts(chain: Chain) -> NDArray[np.int64]:
    """Pairs (i, j), i < j, of residues in contact, ``[K, 2]``."""
    here = np.flatnonzero(np.isfinite(chain.ca).all(1))
    pairs = cKDTree(chain.ca[here]).query_pairs(CONTACT, output_type="ndarray")
    pairs = here[pairs]
    return np.asarray(pairs[pairs[:, 1] - pairs[:, 0] >= _APART])


def contact_order(chain: Chain) -> float:
    """Mean |i - j| over contacts, over the length; 0 without contacts."""
    pairs = contacts(chain)
    return float((pairs[:, 1] - pairs[:, 0]).mean() / len(chain)) if len(pairs) else 0.0


def shape(chains: Sequence[Chain]) -> dict[str, float]:
    """``rg_ratio`` (median), its tenth and ninetieth percentile, ``compact`` (share at most 1.2),
    ``contact_order`` (mean) and ``contacts_per_residue`` (mean).
    """
    if not chains:
        return {}
    ratio = np.array([rg_ratio(chain) for chain in chains])
    return {
        "rg_ratio": float(np.median(ratio)),
        "rg_ratio_p10": float(np.quantile(ratio, 0.1)),
        "rg_ratio_p90": float(np.quantile(ratio, 0.9)),
        "compact": float((ratio <= 1.2).mean()),
        "contact_order": float(np.mean([contact_order(c) for c in chains])),
        "contacts_per_residue": float(np.mean([len(contacts(c)) / len(c) for c in chains])),
    }
