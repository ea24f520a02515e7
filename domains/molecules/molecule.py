"""A molecule as plain arrays: what every reader makes, every writer takes and every oracle sees."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["AROMATIC", "BOND_ORDERS", "SYMBOLS", "Molecule"]

# fmt: off
SYMBOLS = (
    "X", "H", "He", "Li", "Be", "B", "C", "N", "O", "F", "Ne", "Na", "Mg", "Al", "Si", "P", "S",
    "Cl", "Ar", "K", "Ca", "Sc", "Ti", "V", "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Zn", "Ga", "Ge",
    "As", "Se", "Br", "Kr", "Rb", "Sr", "Y", "Zr", "Nb", "Mo", "Tc", "Ru", "Rh", "Pd", "Ag", "Cd",
    "In", "Sn", "Sb", "Te", "I", "Xe", "Cs", "Ba", "La", "Ce", "Pr", "Nd", "Pm", "Sm", "Eu", "Gd",
    "Tb", "Dy", "Ho", "Er", "Tm", "Yb", "Lu", "Hf", "Ta", "W", "Re", "Os", "Ir", "Pt", "Au", "Hg",
    "Tl", "Pb", "Bi", "Po", "At", "Rn", "Fr", "Ra", "Ac", "Th", "Pa", "U", "Np", "Pu", "Am", "Cm",
    "Bk", "Cf", "Es", "Fm", "Md", "No", "Lr", "Rf", "Db", "Sg", "Bh", "Hs", "Mt", "Ds", "Rg",
    "Cn", "Nh", "Fl", "Mc", "Lv", "Ts", "Og",
)
# fmt: on
"""Symbol of each atomic number; "X" for 0."""

AROMATIC = 4
"""Code of an aromatic bond in :attr:`Molecule.bonds`; 0 is no bond, 1, 2, 3 are the orders."""

BOND_ORDERS = (0.0, 1.0, 2.0, 3.0, 1.5)
"""Bond order of each bond code."""


@dataclass(frozen=True)
class Molecule:
    """Atoms in space and the graph that joins them; hydrogens are atoms like the others.

    Attributes:
        numbers: atomic numbers, int64 ``[n]``.
        positions: coordinates in ångström, float64 ``[n, 3]``; ``None`` for a bare graph.
        bonds: symmetric bond codes, int8 ``[n, n]``: 0 none, 1, 2, 3 order, 4 aromatic; ``None``
            where no bonds are known (an XYZ file).
        charges: formal charges, int8 ``[n]``.
        properties: named numbers in the units of their key (``gap`` eV, ``dipole`` D, ...).
        name: a title, kept in SDF and XYZ files.
    """

    numbers: NDArray[np.int64]
    positions: NDArray[np.float64] | None = None
    bonds: NDArray[np.int8] | None = None
    charges: NDArray[np.int8] = field(default_factory=lambda: np.zeros(0, np.int8))
    properties: dict[str, float] = field(default_factory=dict)
    name: str = ""

    def __post_init__(self) -> None:
        n = len(self.numbers)
        set_ = object.__setattr__
        set_(self, "numbers", np.asarray(self.numbers, np.int64))
        charges = np.asarray(self.charges, np.int8)
        set_(self, "charges", charges if len(charges) or not n else np.zeros(n, np.int8))
        if self.positions is not None:
            set_(self, "positions", np.asarray(self.positions, np.float64).reshape(n, 3))
        if self.bonds is not None:
            set_(self, "bonds", np.asarray(self.bonds, np.int8).reshape(n, n))
        if len(self.charges) != n:
            raise ValueError(f"{len(self.charges)} charges for {n} atoms")

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def formula(self) -> str:
        """Hill's formula: carbon, hydrogen, then the others by symbol."""
        counts = Counter(SYMBOLS[z] for z in self.numbers.tolist())
        first = [s for s in ("C", "H") if s in counts] if "C" in counts else []
        order = [*first, *sorted(s for s in counts if s not in first)]
        return "".join(f"{s}{counts[s] if counts[s] > 1 else ''}" for s in order)

    def replace(self, **changes: Any) -> Molecule:
        """A copy with some attributes changed."""
        return replace(self, **changes)

    def with_properties(self, **values: float) -> Molecule:
        """A copy with properties added or overwritten."""
        return replace(self, properties={**self.properties, **values})
