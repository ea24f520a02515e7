"""Bonds from geometry, for formats that hold none (XYZ), and whether a geometry keeps its graph.

Two atoms are joined where their distance is below 1.2 times the sum of their covalent radii
(Meng & Lewis, J. Comput. Chem. 12, 891, 1991, with a tighter factor: at their 1.3 one in twenty
of QM9's strained cages gains a bond across a ring, at 1.2 none does); orders and formal charges
then follow from the valences (Kim & Kim, Bull. Korean Chem. Soc. 36, 1769, 2015).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from rdkit.Chem import rdDetermineBonds

from domains.molecules.molecule import Molecule
from domains.molecules.smiles import from_rdkit, sanitise
from sciflow.errors import InputError

__all__ = ["connectivity", "keeps_graph", "perceive_bonds"]

FACTOR = 1.2
"""Longest bond in units of the sum of the covalent radii."""

MAX_PERCEIVED = 200
"""Atoms above which bond orders are not searched: the search can grow exponentially."""


def perceive_bonds(molecule: Molecule, charge: int = 0) -> Molecule:
    """The same atoms in the same places with bonds and formal charges found from the distances.

    Args:
        molecule: needs positions; hydrogens must be there.
        charge: total charge, in elementary charges.

    Raises:
        InputError: no positions, too many atoms, or no Lewis structure of this charge fits.
    """
    if molecule.positions is None:
        raise InputError("bonds can only be perceived from positions; this molecule has none")
    if not 0 < len(molecule) <= MAX_PERCEIVED:
        raise InputError(f"{len(molecule)} atoms; bonds are perceived for 1 to {MAX_PERCEIVED}")
    mol = Chem.RWMol()
    for number in molecule.numbers.tolist():
        atom = Chem.Atom(number)
        atom.SetNoImplicit(True)
        mol.AddAtom(atom)
    joined = connectivity(molecule.numbers, molecule.positions)
    for i, j in zip(*np.nonzero(np.triu(joined)), strict=True):
        mol.AddBond(int(i), int(j), Chem.BondType.SINGLE)
    conformer = Chem.Conformer(len(molecule))
    conformer.SetPositions(np.ascontiguousarray(molecule.positions))
    mol.AddConformer(conformer)
    try:
        with rdBase.BlockLogs():
            rdDetermineBonds.DetermineBondOrders(
                mol, charge=charge, allowChargedFragments=True, embedChiral=False
            )
            sanitise(mol)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"no bonds fit this geometry at charge {charge:+d}: {reason}") from None
    if any(atom.GetNumRadicalElectrons() for atom in mol.GetAtoms()):
        raise InputError(f"no closed-shell bonds fit this geometry at charge {charge:+d}")
    found = from_rdkit(mol)
    return molecule.replace(bonds=found.bonds, charges=found.charges)


def connectivity(
    numbers: NDArray[np.integer], positions: NDArray[np.floating], factor: float = FACTOR
) -> NDArray[np.bool_]:
    """Which pairs of atoms are joined, bool ``[n, n]``: closer than ``factor`` (R_i + R_j)."""
    table = Chem.GetPeriodicTable()
    radii = np.array([table.GetRcovalent(int(number)) for number in numbers])
    distance = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    joined = distance < factor * (radii[:, None] + radii[None])
    np.fill_diagonal(joined, False)
    return joined


def keeps_graph(molecule: Molecule) -> bool:
    """Whether the geometry joins exactly the pairs of atoms that the bonds join."""
    if molecule.positions is None or molecule.bonds is None:
        raise InputError("the check needs positions and bonds")
    joined = connectivity(molecule.numbers, molecule.positions)
    return bool((joined == (molecule.bonds > 0)).all())
