"""Molecules that are wrong in one known way, and who must see it; good ones must pass everyone."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from rdkit import Chem
from rdkit.Chem import AllChem

from domains.molecules.evaluators import (
    NAMES,
    edm_stability,
    evaluate,
    is_valid,
    table,
    valence_stability,
)
from domains.molecules.evaluators.posebusters import posebusters_rates
from domains.molecules.molecule import Molecule
from domains.molecules.smiles import from_rdkit, parse_smiles
from sciflow.errors import InputError

HAS_POSEBUSTERS = importlib.util.find_spec("posebusters") is not None

JUDGES: dict[str, Callable[[Molecule], bool]] = {
    "edm": lambda m: edm_stability(m)[2],
    "valence": lambda m: valence_stability(m)[2],
    "chemistry": lambda m: is_valid(m).valid,
    "posebusters": lambda m: next(iter(posebusters_rates([m]).values())) == 1,
}
FAST = tuple(name for name in NAMES if name != "relaxation")


def embedded(smiles: str) -> Molecule:
    """A real geometry (ETKDG and MMFF94) with all hydrogens."""
    mol = parse_smiles(smiles)
    assert AllChem.EmbedMolecule(mol, randomSeed=7) == 0
    AllChem.MMFFOptimizeMolecule(mol)
    return from_rdkit(mol)


def without(molecule: Molecule, atom: int) -> Molecule:
    keep = np.arange(len(molecule)) != atom
    return Molecule(
        molecule.numbers[keep],
        molecule.positions[keep] if molecule.positions is not None else None,
        molecule.bonds[np.ix_(keep, keep)] if molecule.bonds is not None else None,
        molecule.charges[keep],
    )


def star(centre: int, arms: list[int], order: int = 1, length: float = 1.05) -> Molecule:
    """One atom with ``arms`` around it."""
    n = len(arms)
    directions = np.random.default_rng(0).normal(size=(n, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    bonds = np.zeros((n + 1, n + 1), np.int8)
    bonds[0, 1:] = bonds[1:, 0] = order
    return Molecule([centre, *arms], np.concatenate([np.zeros((1, 3)), length * directions]), bonds)


def aromatic_cast_to_single() -> Molecule:
    ring = embedded("c1ccccc1")
    assert (ring.bonds == 4).sum() == 12
    return ring.replace(bonds=(ring.bonds > 0).astype(np.int8))


def two_fragments() -> Molecule:
    m = embedded("C")
    bonds = np.kron(np.eye(2, dtype=np.int8), m.bonds)
    return Molecule(
        np.tile(m.numbers, 2),
        np.concatenate([m.positions, m.positions + np.array([6, 0, 0])]),
        bonds,
    )


def not_a_number() -> Molecule:
    m = embedded("CCO")
    x = m.positions.copy()
    x[2, 1] = np.nan
    return m.replace(positions=x)


def overlapping() -> Molecule:
    m = embedded("CC")
    x = m.positions.copy()
    x[1] = x[0]
    return m.replace(positions=x)


def hypervalent_nitro() -> Molecule:
    m = embedded("C[N+](=O)[O-]")
    n = int(np.flatnonzero(m.numbers == 7)[0])
    bonds = np.where((m.bonds > 0) & np.outer(m.numbers == 7, m.numbers == 8), 2, m.bonds)
    bonds[:, n] = bonds[n]
    return m.replace(bonds=bonds.astype(np.int8), charges=np.zeros(len(m), np.int8))


def aromatic_chain() -> Molecule:
    m = embedded("C=C")
    return m.replace(bonds=np.where(m.bonds == 2, 4, m.bonds).astype(np.int8))


def pyrrole_without_hydrogen() -> Molecule:
    m = embedded("c1cc[nH]c1")
    nitrogen = int(np.flatnonzero(m.numbers == 7)[0])
    hydrogen = next(j for j in np.flatnonzero(m.bonds[nitrogen]) if m.numbers[j] == 1)
    return without(m, int(hydrogen))


def asymmetric() -> Molecule:
    m = embedded("CC")
    bonds = m.bonds.copy()
    bonds[0, 1] = 0
    return m.replace(bonds=bonds)


def with_element(z: int) -> Molecule:
    m = embedded("C")
    return m.replace(numbers=np.r_[z, m.numbers[1:]])


def moved_hydrogen() -> Molecule:
    m = embedded("CCO")
    x = m.positions.copy()
    x[-1] += 8.0
    return m.replace(positions=x)


EVERYONE = set(JUDGES)
GRAPH = {"valence", "chemistry", "posebusters"}

BAD: dict[str, tuple[Callable[[], Molecule], set[str]]] = {
    "three-valent neutral carbon": (lambda: without(embedded("CC"), 7), EVERYONE),
    "aromatic ring cast to single": (aromatic_cast_to_single, GRAPH),
    "methyl radical": (lambda: without(embedded("C"), 4), EVERYONE),
    "carbene": (lambda: without(without(embedded("C"), 4), 3), EVERYONE),
    "two-valent neutral nitrogen": (lambda: without(embedded("CN"), 6), EVERYONE),
    "two fragments": (two_fragments, {"chemistry", "posebusters"}),
    "no atoms": (lambda: Molecule([], np.zeros((0, 3)), np.zeros((0, 0), np.int8)), EVERYONE),
    "NaN coordinate": (not_a_number, {"edm", "chemistry", "posebusters"}),
    "five-valent carbon": (lambda: star(6, [1] * 5), EVERYONE),
    "overlapping atoms": (overlapping, {"edm", "posebusters"}),
    "hydrogen flown away": (moved_hydrogen, {"edm"}),
    "lone carbon": (lambda: Molecule([6], np.zeros((1, 3)), np.zeros((1, 1), np.int8)), EVERYONE),
    "bare proton": (
        lambda: Molecule([1], np.zeros((1, 3)), np.zeros((1, 1), np.int8), [1]),
        {"edm", "valence", "chemistry"},
    ),
    "neutral NH4": (lambda: star(7, [1] * 4), EVERYONE),
    "neutral five-valent nitro": (hypervalent_nitro, {"valence", "chemistry"}),
    "charge on the wrong atom": (
        lambda: embedded("CC").replace(charges=np.array([1, 0, 0, 0, 0, 0, 0, 0])),
        GRAPH,
    ),
    "aromatic bond outside a ring": (aromatic_chain, GRAPH),
    "pyrrole without its hydrogen": (pyrrole_without_hydrogen, GRAPH),
    "asymmetric bonds": (asymmetric, GRAPH),
    "unknown bond code": (lambda: embedded("C").replace(bonds=embedded("C").bonds * 9), GRAPH),
    "dummy atom": (lambda: with_element(0), EVERYONE),
    "element 150": (lambda: with_element(150), EVERYONE),
    "no bonds given": (lambda: embedded("C").replace(bonds=None), GRAPH),
}
GOOD = ["O", "C", "N", "c1ccccc1", "NCC(=O)O", "CC#N", "CCO", "c1cc[nH]c1", "C#C", "C=O"]
CHARGED = ["C[N+](C)(C)C", "CC(=O)[O-]", "C[N+](=O)[O-]", "[C-]#[O+]", "[NH3+]CC(=O)[O-]"]


@pytest.mark.parametrize(
    ("case", "judge"), [(case, judge) for case, (_, seen) in BAD.items() for judge in sorted(seen)]
)
def test_known_bad_molecules_fail_whoever_should_see_them(case: str, judge: str) -> None:
    if judge == "posebusters" and not HAS_POSEBUSTERS:
        pytest.skip("posebusters is not installed")
    assert not JUDGES[judge](BAD[case][0]())


@pytest.mark.parametrize(
    ("smiles", "judge"),
    # The distance rule misreads real benzene, as its own test says.
    [(s, j) for s in GOOD for j in JUDGES if (s, j) != ("c1ccccc1", "edm")],
)
def test_good_molecules_pass(smiles: str, judge: str) -> None:
    if judge == "posebusters" and not HAS_POSEBUSTERS:
        pytest.skip("posebusters is not installed")
    assert JUDGES[judge](embedded(smiles))


@pytest.mark.parametrize("smiles", CHARGED)
def test_closed_shell_charges_are_right(smiles: str) -> None:
    molecule = from_rdkit(parse_smiles(smiles))
    assert valence_stability(molecule)[2]
    assert is_valid(molecule).valid


def test_every_reason_is_said() -> None:
    for make, seen_by in BAD.values():
        if "chemistry" in seen_by:
            verdict = is_valid(make())
            assert verdict.reason and verdict.smiles is None


def test_a_bad_molecule_lowers_every_rate_by_its_share() -> None:
    good = [embedded(s) for s in ("C", "CCO", "CC#N")]
    rates = evaluate([*good, without(good[0], 4)], evaluators=("edm", "valence", "chemistry"))
    for key in ("edm_molecule_stability", "valence_molecule_stability", "validity"):
        assert rates[key] == pytest.approx(3 / 4)
    assert rates["edm_atom_stability"] == pytest.approx((5 + 9 + 6 + 3) / (5 + 9 + 6 + 4))


def test_an_unknown_evaluator_is_refused_with_the_names() -> None:
    with pytest.raises(InputError, match="chemistry"):
        evaluate([], evaluators=("validty",))


def test_no_molecules_give_undefined_rates_not_zeros() -> None:
    rates = evaluate([], reference=[embedded("C")], evaluators=FAST)
    assert rates.pop("n_molecules") == 0
    assert rates.pop("geometry_bonds_inferred") == 0
    assert rates and all(np.isnan(v) for v in rates.values())


def test_the_table_lays_the_data_beside_the_model() -> None:
    text = table({"data": {"a": 0.5, "b": float("nan")}, "model": {"a": 1.0, "n": 2000.0}})
    head, _, first, second, third = text.splitlines()
    assert head.split() == ["evaluator", "data", "model"]
    assert first.split() == ["a", "0.5000", "1"]
    assert second.split() == ["b", "–", "–"]
    assert third.split() == ["n", "–", "2000"]
    assert len({len(line) for line in (head, first, second, third)}) == 1


@st.composite
def garbage(draw: st.DrawFn) -> Molecule:
    n = draw(st.integers(0, 9))
    wild = st.floats(allow_nan=True, allow_infinity=True)
    near = st.floats(-2, 2)
    numbers = draw(
        arrays.arrays(np.int64, n, elements=st.sampled_from([1, 6, 7, 8, 9, 0, 26, 119, -4, 10**9]))
    )
    positions = draw(
        st.none() | arrays.arrays(np.float64, (n, 3), elements=draw(st.sampled_from([wild, near])))
    )
    codes = draw(st.sampled_from([st.integers(0, 4), st.integers(-128, 127)]))
    bonds = draw(st.none() | arrays.arrays(np.int8, (n, n), elements=codes, fill=st.just(0)))
    if bonds is not None and draw(st.booleans()):
        bonds = np.triu(bonds, 1) + np.triu(bonds, 1).T
    charges = draw(arrays.arrays(np.int8, n, elements=st.integers(-128, 127), fill=st.just(0)))
    return Molecule(numbers, positions, bonds, charges)


@settings(max_examples=150, deadline=None)
@given(st.lists(garbage(), max_size=4))
def test_no_evaluator_crashes_on_garbage(molecules: list[Molecule]) -> None:
    results = evaluate(molecules, reference=molecules, training_smiles=["C", "?"], evaluators=FAST)
    for key, value in results.items():
        if not key.endswith("_w1") and key != "n_molecules":
            assert np.isnan(value) or 0 <= value <= 1, key


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_plausible_garbage_is_valid_only_if_its_smiles_has_these_atoms(data: st.DataObject) -> None:
    """Whatever passes is a whole molecule: its SMILES plus hydrogens holds the same atoms."""
    n = data.draw(st.integers(2, 7))
    numbers = data.draw(arrays.arrays(np.int64, n, elements=st.sampled_from([1, 6, 7, 8])))
    upper = np.triu(data.draw(arrays.arrays(np.int8, (n, n), elements=st.integers(0, 3))), 1)
    verdict = is_valid(Molecule(numbers, None, upper + upper.T))
    if verdict.smiles is not None:
        atoms = Chem.AddHs(Chem.MolFromSmiles(verdict.smiles)).GetAtoms()
        assert sorted(a.GetAtomicNum() for a in atoms) == sorted(numbers.tolist())
