"""The graph a generator states, in RDKit, with nothing added and nothing repaired.

RDKit fills open valences with implicit hydrogens unless told not to, so that CH₃ becomes methane
and a broken molecule passes; :func:`domains.molecules.smiles.to_rdkit` forbids it. Here stand the
limits under which RDKit may be given *any* arrays: it stalls on dense graphs and overflows its
stack on very long ones.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem, rdBase

from domains.molecules.molecule import AROMATIC, Molecule
from domains.molecules.smiles import to_rdkit

__all__ = ["MAX_ATOMS", "MAX_DEGREE", "kekule_bonds", "strict_graph"]

MAX_ATOMS = 10_000
"""RDKit's SMILES writer recurses along chains and overflows the stack somewhere above this."""

MAX_DEGREE = 8
"""No covalent molecule has an atom of more neighbours, and ring search stalls on dense graphs."""

_MAX_AROMATIC_DEGREE = 4


def strict_graph(molecule: Molecule) -> Chem.Mol:
    """The stated atoms, bonds and charges as an unsanitised RDKit molecule without conformer.

    Raises:
        ValueError: with the reason, where the arrays cannot be a molecular graph (no bonds given,
            an unknown element or bond code, an asymmetric matrix, a bond of an atom with itself,
            more than :data:`MAX_DEGREE` neighbours or :data:`MAX_ATOMS` atoms).
    """
    if len(molecule) > MAX_ATOMS:
        raise ValueError(f"{len(molecule)} atoms, more than {MAX_ATOMS}")
    bonds = molecule.bonds
    if bonds is not None and (bonds != 0).sum(1).max(initial=0) > MAX_DEGREE:
        raise ValueError(f"an atom with more than {MAX_DEGREE} neighbours")
    return to_rdkit(molecule.replace(positions=None), sanitize=False)


def kekule_bonds(molecule: Molecule) -> NDArray[np.int8]:
    """Integer bond orders ``[n, n]`` with aromatic bonds resolved into single and double ones.

    Casting an aromatic 1.5 to 1 makes a carbon with two aromatic bonds and a hydrogen look
    three-valent, and tables that then allow three-valent carbon pass broken molecules
    (FlowMol#12, semla-flow#4, MiDi#12). A Kekulé structure has no such choice to make.

    Raises:
        ValueError: as :func:`strict_graph`, or if the aromatic bonds admit no Kekulé structure.
    """
    graph = strict_graph(molecule)
    assert molecule.bonds is not None  # strict_graph refused it
    aromatic = (molecule.bonds == AROMATIC).any(1)
    if not aromatic.any():
        return molecule.bonds
    if (molecule.bonds[aromatic] != 0).sum(1).max() > _MAX_AROMATIC_DEGREE:
        raise ValueError(f"an aromatic atom with more than {_MAX_AROMATIC_DEGREE} neighbours")
    try:
        with rdBase.BlockLogs():
            graph.UpdatePropertyCache(strict=False)
            Chem.FastFindRings(graph)
            Chem.Kekulize(graph, clearAromaticFlags=True)
    except (ValueError, RuntimeError) as error:
        raise ValueError("the aromatic bonds admit no Kekulé structure") from error
    orders = np.zeros((len(molecule), len(molecule)), np.int8)
    for bond in graph.GetBonds():
        a, b = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        orders[a, b] = orders[b, a] = int(bond.GetBondTypeAsDouble())
    return orders
