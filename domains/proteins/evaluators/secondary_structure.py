"""Secondary structure by DSSP (Kabsch and Sander, Biopolymers 22, 2577, 1983).

MDTraj's implementation works on N, CA, C and O alone: it places the amide hydrogens and reads
helices, strands and turns off the hydrogen bonds. Proline, which has no amide hydrogen, is the only
residue whose name matters. Chains of one length and one set of prolines go in one call, and the
topology that MDTraj wants is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from domains.proteins.chain import ATOMS, Chain
from domains.proteins.table import DSSP_CODES

__all__ = ["THREE_STATES", "dssp", "dssp_codes", "secondary_structure", "three_states"]

THREE_STATES = {"H": "HGI", "E": "EB", "C": "TS "}
"""Helix, strand and coil, and the DSSP codes of each."""

_TO_THREE = str.maketrans({code: state for state, codes in THREE_STATES.items() for code in codes})
_CALL = 256
"""Chains of one call; bounds what MDTraj allocates."""


def dssp(chains: Sequence[Chain]) -> list[str]:
    """The eight-state string of each chain; residues with missing atoms are " " (coil)."""
    import mdtraj

    groups: dict[str, list[int]] = {}
    for i, chain in enumerate(chains):
        prolines = "".join("P" if letter == "P" else "." for letter in chain.sequence)
        groups.setdefault(prolines, []).append(i)
    answer = [""] * len(chains)
    for prolines, rows in groups.items():
        if not prolines:
            continue
        for first in range(0, len(rows), _CALL):
            part = rows[first : first + _CALL]
            x = np.stack([chains[i].backbone for i in part])
            missing: NDArray[np.bool_] = ~np.isfinite(x.sum((2, 3)))
            # Far from everything, an incomplete residue bonds with nothing.
            away = 1e4 + 1e2 * np.arange(len(prolines), dtype=np.float32)
            x = np.where(missing[..., None, None], away[None, :, None, None], x)
            x = x.reshape(len(part), -1, 3) / 10.0
            frames = mdtraj.Trajectory(x, _topology(prolines))
            codes = mdtraj.compute_dssp(frames, simplified=False)
            for i, row, lost in zip(part, codes, missing, strict=True):
                answer[i] = "".join(np.where(lost, " ", row))
    return answer


def dssp_codes(chains: Sequence[Chain]) -> list[NDArray[np.uint8]]:
    """:func:`dssp` as places in :data:`DSSP_CODES`, as tables keep it."""
    place = {code: k for k, code in enumerate(DSSP_CODES)}
    return [np.array([place[c] for c in text], np.uint8) for text in dssp(chains)]


def three_states(text: str) -> str:
    """H, E or C for each DSSP code."""
    return text.translate(_TO_THREE)


def secondary_structure(chains: Sequence[Chain]) -> dict[str, float]:
    """``helix``, ``strand`` and ``coil``: shares of the residues, each chain weighing the same.

    Beside them ``helix_sd`` and ``strand_sd`` between chains, and ``with_strand``, the share of
    chains with a strand of three residues or more.
    """
    texts = [three_states(text) for text in dssp(chains) if text]
    if not texts:
        return {}
    share = {s: np.array([text.count(s) / len(text) for text in texts]) for s in "HEC"}
    return {
        "helix": float(share["H"].mean()),
        "strand": float(share["E"].mean()),
        "coil": float(share["C"].mean()),
        "helix_sd": float(share["H"].std()),
        "strand_sd": float(share["E"].std()),
        "with_strand": float(np.mean(["EEE" in text for text in texts])),
    }


@lru_cache(maxsize=64)
def _topology(prolines: str) -> Any:
    import mdtraj

    topology = mdtraj.Topology()
    chain = topology.add_chain()
    elements = {name: mdtraj.element.Element.getBySymbol(name[0]) for name in ATOMS}
    for letter in prolines:
        residue = topology.add_residue("PRO" if letter == "P" else "ALA", chain)
        for name in ATOMS:
            topology.add_atom(name, elements[name], residue)
    return topology
