"""Bonds from geometry, for formats that hold none (XYZ), and whether a geometry keeps its graph.

Two atoms are joined where their distance is below 1.2 times the sum of their covalent radii
(Meng & Lewis, J. Comput. Chem. 12, 891, 1991, with a tighter factor: at their 1.3 one in twenty
of QM9's strained cages gains a bond across a ring, at 1.2 none does). Bond orders and formal
charges are then the Lewis structure with the fewest charges, found exactly as an integer program:

    Σ_bonds order = valence ± charge + 2·(expanded shell),   Σ charges = given,
    least Σ |charge| (cheapest − on the most, + on the least electronegative) + ½ Σ expansions.

A positive atom short of an octet (a carbocation) is a last resort, and only in a cation.
RDKit's own search (``rdDetermineBonds``, 2026.9) is not used: of 45 nitroheteroarenes in qm9-gfn2
it refuses 16 and gives 11 of the others two anionic oxygens beside a cation.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from domains.molecules.molecule import Molecule
from domains.molecules.smiles import from_rdkit, to_rdkit
from sciflow.errors import InputError

__all__ = ["connectivity", "keeps_graph", "perceive_bonds"]

FACTOR = 1.2
"""Longest bond in units of the sum of the covalent radii."""

MAX_PERCEIVED = 500
"""Atoms above which bond orders are not searched."""

# Element: bonds when neutral, change with a + and with a - charge, expansions of the shell by two
# bonds, electronegativity (Pauling).
_VALENCE = {
    1: (1, -1, -1, 0, 2.20),
    5: (3, -1, 1, 0, 2.04),
    6: (4, -1, -1, 0, 2.55),
    7: (3, 1, -1, 0, 3.04),
    8: (2, 1, -1, 0, 3.44),
    9: (1, 1, -1, 0, 3.98),
    14: (4, -1, 1, 1, 1.90),
    15: (3, 1, -1, 1, 2.19),
    16: (2, 1, -1, 2, 2.58),
    17: (1, 1, -1, 3, 3.16),
    34: (2, 1, -1, 2, 2.55),
    35: (1, 1, -1, 3, 2.96),
    53: (1, 1, -1, 3, 2.66),
}


def perceive_bonds(molecule: Molecule, charge: int = 0) -> Molecule:
    """The same atoms in the same places with bonds and formal charges found from the distances.

    Args:
        molecule: needs positions; hydrogens must be there.
        charge: total charge, in elementary charges.

    Raises:
        InputError: no positions, too many atoms, an element without a rule, or no closed-shell
            Lewis structure of this charge fits.
    """
    if molecule.positions is None:
        raise InputError("bonds can only be perceived from positions; this molecule has none")
    if not 0 < len(molecule) <= MAX_PERCEIVED:
        raise InputError(f"{len(molecule)} atoms; bonds are perceived for 1 to {MAX_PERCEIVED}")
    unknown = sorted({z for z in molecule.numbers.tolist() if z not in _VALENCE})
    if unknown:
        raise InputError(f"no valence rule for element {unknown[0]}; bonds cannot be perceived")
    joined = connectivity(molecule.numbers, molecule.positions)
    bonds, charges = _lewis(molecule.numbers, joined, charge)
    found = from_rdkit(to_rdkit(Molecule(molecule.numbers, bonds=bonds, charges=charges)))
    return molecule.replace(bonds=found.bonds, charges=found.charges)


def _lewis(
    numbers: NDArray[np.int64], joined: NDArray[np.bool_], charge: int
) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """Bond orders and charges of the cheapest Lewis structure on these connections."""
    n = len(numbers)
    pairs = np.argwhere(np.triu(joined))
    m = len(pairs)
    neutral, plus, minus, expansions, attraction = np.array(
        [_VALENCE[int(z)] for z in numbers], float
    ).T
    # Unknowns: the order of each bond, then of each atom: is +, is -, expansions.
    bond, atom = np.arange(m), np.arange(n)
    row = np.concatenate([pairs[:, 0], pairs[:, 1], atom, atom, atom])
    column = np.concatenate([bond, bond, m + atom, m + n + atom, m + 2 * n + atom])
    value = np.concatenate([np.ones(2 * m), -plus, -minus, np.full(n, -2.0)])
    size = m + 3 * n
    valences = coo_array((value, (row, column)), shape=(n, size))
    total = np.zeros((1, size))
    total[0, m : m + n], total[0, m + n : m + 2 * n] = 1.0, -1.0
    one_sign = coo_array(
        (np.ones(2 * n), (np.r_[atom, atom], np.r_[m + atom, m + n + atom])), shape=(n, size)
    )
    sextet = (plus < 0) & (charge <= 0)
    highest = np.where((numbers[pairs] == 1).any(1), 1.0, 3.0) if m else np.zeros(0)
    cost = np.concatenate(
        [
            np.zeros(m),
            1 + 0.1 * attraction + 2.0 * (plus < 0),
            1.5 - 0.1 * attraction,
            np.full(n, 0.5),
        ]
    )
    found = milp(
        cost,
        integrality=np.ones(size),
        bounds=Bounds(
            np.r_[np.ones(m), np.zeros(3 * n)],
            np.r_[highest, np.where(sextet, 0.0, 1.0), np.ones(n), expansions],
        ),
        constraints=[
            LinearConstraint(valences, neutral, neutral),
            LinearConstraint(total, charge, charge),
            LinearConstraint(one_sign, 0, 1),
        ],
        options={"time_limit": 10.0},
    )
    if found.x is None:
        raise InputError(f"no closed-shell bonds fit this geometry at charge {charge:+d}")
    x = np.rint(found.x).astype(np.int8)
    bonds = np.zeros((n, n), np.int8)
    bonds[pairs[:, 0], pairs[:, 1]] = bonds[pairs[:, 1], pairs[:, 0]] = x[:m]
    return bonds, x[m : m + n] - x[m + n : m + 2 * n]


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
