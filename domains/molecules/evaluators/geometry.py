"""How far the samples' geometry and make-up lie from those of real molecules.

Continuous quantities are compared by the 1-Wasserstein distance in their own unit,

    W1(P, Q) = ∫ |F_P(x) − F_Q(x)| dx,

bond lengths (Å) for each kind (two elements and an order) and bond angles (degrees) for each
central element, then averaged with the *reference's* frequencies of the kinds; discrete ones (kinds
of bond, valences, number of atoms, elements) by the total variation ½ Σ |p − q|. Both vanish only
for equal distributions, but two finite samples of one distribution differ too: read a value beside
that of the data's own held-out half. Cf. MiDi (arXiv 2302.09048).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from domains.molecules.evaluators.distance_rule import infer_bonds
from domains.molecules.molecule import BOND_ORDERS, Molecule

__all__ = ["geometry_distances", "total_variation", "wasserstein"]

LONGEST = 10.0
"""A bond stretched beyond this many Å counts as this long: one exploded sample decides no mean."""

FEWEST = 10
"""Kinds seen fewer times than this, in either set, are too few for a distribution."""


def wasserstein(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """W1 between two samples ``[n]``, ``[m]`` on the line, in their unit; NaN if one is empty."""
    if not len(p) or not len(q):
        return float("nan")
    p, q = np.sort(p), np.sort(q)
    grid = np.sort(np.concatenate([p, q]))
    below_p = np.searchsorted(p, grid[:-1], side="right") / len(p)
    below_q = np.searchsorted(q, grid[:-1], side="right") / len(q)
    return float(np.sum(np.abs(below_p - below_q) * np.diff(grid)))


def total_variation(p: Mapping[Any, int], q: Mapping[Any, int]) -> float:
    """½ Σ |p − q| of two tables of counts, 0..1; NaN if one is empty."""
    n, m = sum(p.values()), sum(q.values())
    if not n or not m:
        return float("nan")
    return 0.5 * sum(abs(p.get(k, 0) / n - q.get(k, 0) / m) for k in {*p, *q})


class _Statistics:
    """Everything counted over one set of molecules."""

    def __init__(self, molecules: Iterable[Molecule], infer: bool):
        self.total = self.finite = 0
        self.sizes: Counter[int] = Counter()
        self.elements: Counter[int] = Counter()
        self.valences: Counter[tuple[int, float]] = Counter()
        self.lengths: dict[Hashable, list[NDArray[np.float64]]] = defaultdict(list)
        self.angles: dict[Hashable, list[NDArray[np.float64]]] = defaultdict(list)
        for molecule in molecules:
            self._add(molecule, infer)

    def _add(self, molecule: Molecule, infer: bool) -> None:
        self.total += 1
        self.sizes[len(molecule)] += 1
        self.elements.update(molecule.numbers.tolist())
        x = molecule.positions
        if x is None or not len(molecule) or not (np.abs(x) < 1e6).all():
            return
        self.finite += 1
        bonds = infer_bonds(molecule) if infer or molecule.bonds is None else molecule.bonds
        z = molecule.numbers
        # Codes outside the table are no bonds; validity is another evaluator's matter.
        codes = np.where((bonds > 0) & (bonds < len(BOND_ORDERS)), bonds, 0)
        codes = np.triu(np.maximum(codes, codes.T), 1)
        i, j = np.nonzero(codes)
        code = codes[i, j]
        orders = np.asarray(BOND_ORDERS)[code]
        valence = np.bincount(np.r_[i, j], np.r_[orders, orders], minlength=len(z))
        self.valences.update(zip(z.tolist(), valence.tolist(), strict=True))

        length = np.minimum(np.linalg.norm(x[i] - x[j], axis=1), LONGEST)
        kind = np.stack([np.minimum(z[i], z[j]), np.maximum(z[i], z[j]), code], 1)
        _collect(self.lengths, kind, length)

        centre, first, second = _neighbour_pairs(i, j)
        _collect(self.angles, z[centre][:, None], _angle(x[first], x[centre], x[second]))


def _neighbour_pairs(i: NDArray[np.intp], j: NDArray[np.intp]) -> tuple[NDArray[np.intp], ...]:
    """Every centre with every two of its neighbours, from bonds ``i``–``j`` each given once."""
    start, end = np.r_[i, j], np.r_[j, i]
    order = np.argsort(start, kind="stable")
    start, end = start[order], end[order]
    found = [np.zeros((3, 0), np.intp)]
    # Bonds of one centre are now neighbours in the list, so a shift by k pairs those k apart.
    for k in range(1, np.bincount(start).max(initial=0)):
        same = start[:-k] == start[k:]
        found.append(np.stack([start[:-k][same], end[:-k][same], end[k:][same]]))
    return tuple(np.concatenate(found, axis=1))


def _angle(
    a: NDArray[np.float64], centre: NDArray[np.float64], b: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Angle a–centre–b in degrees ``[k]``; 0 where two atoms coincide."""
    u, v = a - centre, b - centre
    norms = np.linalg.norm(u, axis=1) * np.linalg.norm(v, axis=1)
    cosine = np.divide((u * v).sum(1), norms, out=np.ones(len(u)), where=norms > 0)
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


def _collect(
    store: dict[Hashable, list[NDArray[np.float64]]],
    kinds: NDArray[np.int64],
    values: NDArray[np.float64],
) -> None:
    for kind in {*map(tuple, kinds.tolist())}:
        store[kind].append(values[(kinds == kind).all(1)])


def _mean_wasserstein(
    samples: dict[Hashable, list[NDArray[np.float64]]],
    reference: dict[Hashable, list[NDArray[np.float64]]],
) -> float:
    """W1 of each kind weighted by its share of the reference, over kinds that both sets have."""
    total, weight = 0.0, 0
    for kind, parts in reference.items():
        real = np.concatenate(parts)
        made = np.concatenate(samples[kind]) if kind in samples else np.zeros(0)
        if min(len(real), len(made)) >= FEWEST:
            total += len(real) * wasserstein(made, real)
            weight += len(real)
    return total / weight if weight else float("nan")


def _counts(store: dict[Hashable, list[NDArray[np.float64]]]) -> dict[Hashable, int]:
    return {kind: sum(map(len, parts)) for kind, parts in store.items()}


def geometry_distances(
    molecules: Sequence[Molecule], reference: Sequence[Molecule]
) -> dict[str, float]:
    """Distances between the distributions of two sets.

    Stated bonds are used where every molecule of both sets has them; otherwise both sets are given
    bonds by EDM's distance rule, so that like is compared with like. Aromatic bonds are a kind of
    their own: give both sets in the same form, aromatic or Kekulé.

    Returns:
        ``finite_positions``: molecules with all coordinates finite / all molecules (the others
        enter sizes and elements only). ``bond_length_w1`` (Å), ``angle_w1`` (degrees): weighted W1
        over kinds with at least :data:`FEWEST` values in both sets. ``bond_kind_tv``,
        ``valence_tv`` (element and valence jointly), ``size_tv``, ``element_tv``: total variation
        in 0..1. ``geometry_bonds_inferred``: 1 if bonds came from distances. NaN where undefined.
    """
    infer = any(m.bonds is None for m in (*molecules, *reference))
    made, real = _Statistics(molecules, infer), _Statistics(reference, infer)
    return {
        "finite_positions": made.finite / made.total if made.total else float("nan"),
        "bond_length_w1": _mean_wasserstein(made.lengths, real.lengths),
        "angle_w1": _mean_wasserstein(made.angles, real.angles),
        "bond_kind_tv": total_variation(_counts(made.lengths), _counts(real.lengths)),
        "valence_tv": total_variation(made.valences, real.valences),
        "size_tv": total_variation(made.sizes, real.sizes),
        "element_tv": total_variation(made.elements, real.elements),
        "geometry_bonds_inferred": float(infer),
    }
