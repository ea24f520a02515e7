"""EDM's rule: bonds from distances alone, then exact valences with every hydrogen present.

Two atoms at distance d (pm) are joined by a bond of order

    1 if d < r1 + 10,   2 if also d < r2 + 5,   3 if also that and d < r3 + 3,

with r1, r2, r3 the tabulated lengths of a single, double and triple bond between their elements.
An atom is stable when its orders sum to the valence of its element (H 1, C 4, N 3, O 2, F 1, ...),
a molecule when all its atoms are. The rule ignores charges, bonds and aromaticity that a generator
may state: it is the common yardstick of Hoogeboom et al., "Equivariant Diffusion for Molecule
Generation in 3D", ICML 2022 (arXiv 2203.17003, appendix), comparable only with itself.

Lengths: the public tables at http://www.wiredchemist.com/chemistry/data/bond_energies_lengths.html
and http://chemistry-reference.com, as that paper selects them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from scipy.spatial import cKDTree

from domains.molecules.evaluators.graph import MAX_ATOMS
from domains.molecules.molecule import Molecule

__all__ = ["MARGINS", "edm_rates", "edm_smiles", "edm_stability", "infer_bonds"]

MARGINS = (10.0, 5.0, 3.0)
"""Tolerance in pm added to the tabulated length of a single, double and triple bond."""

# element: "partner pm ..." with each pair written once.
_SINGLE = {
    "H": "H 74 C 109 N 101 O 96 F 92 B 119 Si 148 P 144 As 152 S 134 Cl 127 Br 141 I 161",
    "C": "C 154 N 147 O 143 F 135 Si 185 P 184 S 182 Cl 177 Br 194 I 214",
    "N": "N 145 O 140 F 136 P 177 S 168 Cl 175 Br 214 I 222",
    "O": "O 148 F 142 Si 163 P 163 S 151 Cl 164 Br 172 I 194",
    "F": "F 142 Si 160 P 156 S 158 Cl 166 Br 178 I 187",
    "B": "Cl 175",
    "Si": "Si 233 S 200 Cl 202 Br 215 I 243",
    "P": "P 221 S 210 Cl 203 Br 222",
    "S": "S 204 Cl 207 Br 225 I 234",
    "Cl": "Cl 199 Br 214",
    "Br": "Br 228",
    "I": "I 266",
}
_DOUBLE = {"C": "C 134 N 129 O 120 S 160", "N": "N 125 O 121", "O": "O 121 P 150", "P": "S 186"}
_TRIPLE = {"C": "C 120 N 116 O 113", "N": "N 110"}
_VALENCES = {
    "H": (1,), "B": (3,), "C": (4,), "N": (3,), "O": (2,), "F": (1,), "Al": (3,), "Si": (4,),
    "P": (3, 5), "S": (4,), "Cl": (1,), "As": (3,), "Br": (1,), "I": (1,),
    "Hg": (1, 2), "Bi": (3, 5),
}  # fmt: skip

_ELEMENTS = 119
_MAX_VALENCE = 8


def _limits(table: dict[str, str], margin: float) -> NDArray[np.float64]:
    """Largest distance (pm) of a bond for each pair of atomic numbers, 0 where there is none."""
    number = Chem.GetPeriodicTable().GetAtomicNumber
    limits = np.zeros((_ELEMENTS, _ELEMENTS))
    for element, row in table.items():
        words = row.split()
        for partner, length in zip(words[::2], words[1::2], strict=True):
            a, b = number(element), number(partner)
            limits[a, b] = limits[b, a] = float(length) + margin
    return limits


def _allowed() -> NDArray[np.bool_]:
    allowed = np.zeros((_ELEMENTS, _MAX_VALENCE + 1), bool)
    for element, valences in _VALENCES.items():
        allowed[Chem.GetPeriodicTable().GetAtomicNumber(element), list(valences)] = True
    return allowed


_LIMITS = [
    _limits(table, margin)
    for table, margin in zip((_SINGLE, _DOUBLE, _TRIPLE), MARGINS, strict=True)
]
_ALLOWED = _allowed()
_REACH = float(_LIMITS[0].max()) / 100


def _pairs(molecule: Molecule) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Bonded pairs ``[k, 2]`` (i < j) and their orders ``[k]``, in O(n log n)."""
    empty = np.zeros((0, 2), np.int64), np.zeros(0, np.int64)
    if molecule.positions is None:
        return empty
    here = np.flatnonzero(np.isfinite(molecule.positions).all(1))
    if len(here) < 2:
        return empty
    x = molecule.positions[here]
    # Squares of coordinates beyond 1e150 overflow; such an atom is bonded to nothing anyway.
    near = np.abs(x).max(1) < 1e9
    here, x = here[near], x[near]
    if len(here) < 2:
        return empty
    pairs = here[cKDTree(x).query_pairs(_REACH, output_type="ndarray")]
    a, b = pairs.T
    d = 100 * np.linalg.norm(molecule.positions[a] - molecule.positions[b], axis=1)
    z = np.where((molecule.numbers < 0) | (molecule.numbers >= _ELEMENTS), 0, molecule.numbers)
    single, double, triple = (d < limit[z[a], z[b]] for limit in _LIMITS)
    orders = single.astype(np.int64) + (single & double) + (single & double & triple)
    bonded = orders > 0
    return pairs[bonded], orders[bonded]


def infer_bonds(molecule: Molecule) -> NDArray[np.int8]:
    """Bond orders 0–3 that EDM's rule reads from the distances, symmetric ``[n, n]``.

    Positions in Å. Atoms without a finite position, and pairs of elements outside the tables, have
    no bonds. Never raises.
    """
    pairs, orders = _pairs(molecule)
    bonds = np.zeros((len(molecule), len(molecule)), np.int8)
    bonds[pairs[:, 0], pairs[:, 1]] = bonds[pairs[:, 1], pairs[:, 0]] = orders
    return bonds


def edm_stability(molecule: Molecule) -> tuple[int, int, bool]:
    """How many atoms have exactly their element's valence by EDM's rule.

    Returns:
        stable atoms, number of atoms, and whether all are stable. A molecule of no atoms is not
        stable; an atom of an element outside the table is never stable.
    """
    n = len(molecule)
    pairs, orders = _pairs(molecule)
    valence = np.bincount(pairs.ravel(), np.repeat(orders, 2), minlength=n).astype(np.int64)
    known = (molecule.numbers > 0) & (molecule.numbers < _ELEMENTS) & (valence <= _MAX_VALENCE)
    stable = int(_ALLOWED[molecule.numbers[known], valence[known]].sum())
    return stable, n, bool(n and stable == n)


def edm_smiles(molecule: Molecule) -> str | None:
    """SMILES of the largest fragment of the distance-inferred graph, ``None`` where not valid.

    The peers' "validity": the inferred graph passes RDKit's sanitisation, *with* implicit hydrogens
    filling open valences and *without* asking for one fragment. It therefore calls radicals and
    debris valid; :func:`domains.molecules.evaluators.chemistry.is_valid` does not.
    """
    if not 0 < len(molecule) <= MAX_ATOMS:
        return None
    if molecule.numbers.min() < 1 or molecule.numbers.max() >= _ELEMENTS:
        return None
    if molecule.positions is None or not np.isfinite(molecule.positions).all():
        return None
    graph = Chem.RWMol()
    for z in molecule.numbers.tolist():
        graph.AddAtom(Chem.Atom(z))
    kinds = (Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE)
    pairs, orders = _pairs(molecule)
    # A quick refusal: no element has more than eight bonds, and dense graphs stall ring search.
    if len(pairs) and np.bincount(pairs.ravel()).max() > _MAX_VALENCE:
        return None
    for (a, b), order in zip(pairs.tolist(), orders.tolist(), strict=True):
        graph.AddBond(a, b, kinds[order - 1])
    try:
        with rdBase.BlockLogs():
            Chem.SanitizeMol(graph)
        fragments = Chem.GetMolFrags(graph, asMols=True)
        return str(Chem.MolToSmiles(max(fragments, key=lambda m: m.GetNumAtoms())))
    except (ValueError, RuntimeError):
        return None


def edm_rates(molecules: Sequence[Molecule]) -> dict[str, float]:
    """The rule over a set of molecules.

    Returns:
        ``edm_atom_stability``: stable atoms / all atoms. ``edm_molecule_stability``: stable
        molecules / all molecules. ``edm_valid_largest_fragment``: molecules with an
        :func:`edm_smiles` / all molecules. ``edm_valid_unique``: distinct such SMILES / all
        molecules. NaN where the denominator is zero.
    """
    counts = [edm_stability(m) for m in molecules]
    atoms = sum(n for _, n, _ in counts)
    smiles = [s for s in map(edm_smiles, molecules) if s is not None]
    total = len(molecules)
    nan = float("nan")
    return {
        "edm_atom_stability": sum(s for s, _, _ in counts) / atoms if atoms else nan,
        "edm_molecule_stability": sum(ok for _, _, ok in counts) / total if total else nan,
        "edm_valid_largest_fragment": len(smiles) / total if total else nan,
        "edm_valid_unique": len(set(smiles)) / total if total else nan,
    }
