"""Whether a backbone is one: complete, chained, not knotted into itself.

A generated sample is dropped only for what makes it no chain at all; how good a chain is, is told
by metrics. A backbone that was given to find sequences for may have gaps (its property ``gaps``).
"""

from __future__ import annotations

import numpy as np

from domains.proteins.chain import Chain
from domains.proteins.evaluators.clashes import ca_clashes
from domains.proteins.residue_data import are_sequences

__all__ = ["verdict"]

_CLASHES = 0.05
"""Pairs of CA atoms nearer than 3.6 Å, a residue; experimental chains have 0.001."""


def verdict(chain: Chain) -> str:
    """Empty if the chain is sound, else why not."""
    if not len(chain):
        return "no residues"
    if are_sequences([chain]):
        unknown = chain.sequence.count("X")
        return f"{unknown} residues are not designed" if unknown else ""
    if not chain.complete:
        return "atoms are missing or not finite"
    x = chain.backbone.astype(np.float64)
    if float(np.abs(x).max()) > 9000:
        return "coordinates do not fit a PDB file"
    gaps = sum(int(part.joints.sum()) for part in chain.parts())
    if gaps > chain.properties.get("gaps", 0):
        return f"broken at {gaps} place{'s' if gaps > 1 else ''}"
    found = ca_clashes(chain)
    if found > max(1.0, _CLASHES * len(chain)):
        return f"clashes: {found} pairs of CA atoms nearer than 3.6 Å"
    return ""
