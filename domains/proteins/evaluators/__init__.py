"""What a set of backbones is like, in the field's own terms.

Every metric that a generator could game alone stands beside those that would show it: residues
drawn one by one from real torsions have a natural Ramachandran plot, no fold, no sheets, clashes.
Self-consistency (scTM, scRMSD) is not among them: see :mod:`domains.proteins.designability`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from domains.proteins.chain import Chain
from domains.proteins.evaluators.bonds import bond_lengths, bonds
from domains.proteins.evaluators.clashes import backbone_clashes, ca_clashes, clashes
from domains.proteins.evaluators.ramachandran import RamachandranGrids
from domains.proteins.evaluators.secondary_structure import dssp, secondary_structure, three_states
from domains.proteins.evaluators.sequences import sequence_metrics
from domains.proteins.evaluators.shape import contact_order, radius_of_gyration, rg_ratio, shape
from domains.proteins.evaluators.similarity import diversity, novelty
from sciflow.errors import InputError

__all__ = ["evaluate", "rows"]

_NEAREST = 100
"""References that a chain is aligned with for novelty."""


def evaluate(
    chains: Sequence[Chain],
    reference: Sequence[Chain] | None = None,
    *,
    thorough: bool = False,
    grids: RamachandranGrids | None = None,
    jobs: int = 1,
) -> dict[str, float]:
    """Metrics of a set of chains; each is explained where it is computed.

    ``rama_*`` judge each residue by its own class, ``rama_general_*`` all by the general grid,
    which is what backbones without a designed sequence are compared by. Where the grids are not on
    this machine both are left out. ``novelty_max_tm`` is a lower bound; see :func:`novelty`.

    Args:
        chains: the set.
        reference: known structures: for composition, and with ``thorough`` for novelty.
        thorough: TM-scores too (seconds to minutes): diversity, clusters, novelty.
        grids: Top8000 grids; default those of the shared data.
        jobs: worker processes of the TM-scores, -1 for every core.
    """
    chains = [chain for chain in chains if len(chain)]
    if not chains:
        return {}
    values: dict[str, float] = {
        "chains": float(len(chains)),
        "length": float(np.mean([len(chain) for chain in chains])),
    }
    grids = grids or _grids()
    if grids is not None:
        for prefix, general in (("rama", False), ("rama_general", True)):
            shares = grids.shares(chains, general)
            values |= {f"{prefix}_{k}": v for k, v in shares.items() if k != "allowed"}
    values |= secondary_structure(chains)
    values |= shape(chains)
    values |= clashes(chains)
    values |= bonds(chains)
    known = None if reference is None else [chain.sequence for chain in reference]
    values |= sequence_metrics([chain.sequence for chain in chains], reference=known)
    if thorough:
        values |= diversity(chains, jobs=jobs)
        if reference:
            best = novelty(chains, reference, most=_NEAREST, jobs=jobs)
            if np.isfinite(best).any():
                values["novelty_max_tm"] = float(np.nanmean(best))
                values["novel"] = float((best[np.isfinite(best)] < 0.5).mean())
    return values


def rows(chains: Sequence[Chain], grids: RamachandranGrids | None = None) -> list[dict[str, Any]]:
    """What each chain is like, one row of a table each.

    ``length``, ``sequence`` (empty where not designed), ``helix``, ``strand``, ``rg`` (Å),
    ``rg_ratio``, ``contact_order``, ``clashes`` and ``backbone_clashes`` (pairs), ``breaks``,
    ``rama_general_favoured``, ``rama_general_outlier``, ``bond_CN`` and its ``_sd`` (Å), ``dssp``.
    """
    grids = grids or _grids()
    table = []
    for chain, text in zip(chains, dssp(chains), strict=True):
        states = three_states(text)
        peptide = bond_lengths(chain)["C-N"]
        row: dict[str, Any] = {
            "length": len(chain),
            "sequence": chain.sequence if set(chain.sequence) - {"X"} else "",
            "helix": states.count("H") / max(len(chain), 1),
            "strand": states.count("E") / max(len(chain), 1),
            "rg": radius_of_gyration(chain),
            "rg_ratio": rg_ratio(chain),
            "contact_order": contact_order(chain),
            "clashes": ca_clashes(chain),
            "backbone_clashes": backbone_clashes(chain),
            "breaks": int(chain.joints.sum()),
        }
        if grids is not None:
            shares = grids.shares([chain], general=True)
            row |= {f"rama_general_{k}": v for k, v in shares.items() if k != "allowed"}
        if len(peptide):
            row |= {"bond_CN": float(peptide.mean()), "bond_CN_sd": float(peptide.std())}
        row["dssp"] = text.replace(" ", "-")
        table.append(row)
    return table


def _grids() -> RamachandranGrids | None:
    try:
        return RamachandranGrids.load()
    except InputError:
        return None
