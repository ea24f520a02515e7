"""Valence and chemistry: denominators, identity, Kekulé structures, and the real data's own row."""

from __future__ import annotations

import gzip
import random
from contextlib import suppress

import numpy as np
import pytest

from domains.molecules.evaluators.chemistry import (
    Identities,
    Verdict,
    chemistry_rates,
    is_valid,
    rates_of,
)
from domains.molecules.evaluators.graph import kekule_bonds
from domains.molecules.evaluators.valence import ALLOWED_VALENCES, valence_rates, valence_stability
from domains.molecules.molecule import Molecule
from domains.molecules.smiles import molecule_from_smiles
from sciflow.data import shared_data
from sciflow.errors import InputError


def test_each_rate_has_its_stated_denominator() -> None:
    ethane, ethanol = molecule_from_smiles("CC"), molecule_from_smiles("OCC")
    lone = Molecule([6], None, np.zeros((1, 1), np.int8))
    rates = chemistry_rates([ethane, ethane, ethanol, lone, lone], training_smiles=["C(C)"])
    assert rates == pytest.approx(
        {
            "validity": 3 / 5,
            "uniqueness": 2 / 3,
            "valid_unique": 2 / 5,
            "novelty": 1 / 2,
            "valid_unique_novel": 1 / 5,
        }
    )


def test_nothing_valid_leaves_uniqueness_undefined() -> None:
    rates = rates_of([Verdict(False, "x")], training_smiles=[])
    assert rates["validity"] == 0
    assert np.isnan(rates["uniqueness"]) and np.isnan(rates["novelty"])


def test_identity_ignores_atom_order_hydrogens_and_kekule_form() -> None:
    molecule = molecule_from_smiles("Cc1ccncc1O")
    rng = np.random.default_rng(0)
    for _ in range(5):
        order = rng.permutation(len(molecule))
        bonds = molecule.bonds[np.ix_(order, order)]
        shuffled = Molecule(molecule.numbers[order], None, bonds, molecule.charges[order])
        kekule = shuffled.replace(bonds=kekule_bonds(shuffled))
        assert is_valid(shuffled).smiles == is_valid(molecule).smiles == is_valid(kekule).smiles
    written = ["[H]Oc1c([H])nc([H])c([H])c1C([H])([H])[H]", "OC1=CN=CC=C1C", "not a molecule"]
    assert Identities.of(written) == {is_valid(molecule).smiles}
    assert Identities.of(found := Identities.of(["C"])) is found


def test_constitution_is_the_identity() -> None:
    """Mirror images count once; isomers of connectivity do not."""
    one, other, isomer = (
        is_valid(molecule_from_smiles(s)).smiles for s in ("C[C@H](O)F", "C[C@@H](O)F", "OCCF")
    )
    assert one == other != isomer


@pytest.mark.parametrize(
    "smiles", ["c1ccccc1", "c1cc[nH]c1", "c1ccc2ccccc2c1", "c1ccoc1", "C[n+]1ccccc1", "c1cnoc1"]
)
def test_kekule_structures_have_whole_orders_and_right_valences(smiles: str) -> None:
    molecule = molecule_from_smiles(smiles)
    assert (molecule.bonds == 4).any()
    orders = kekule_bonds(molecule)
    assert set(np.unique(orders)) <= {0, 1, 2}
    np.testing.assert_array_equal(orders, orders.T)
    np.testing.assert_array_equal(orders > 0, molecule.bonds > 0)
    stable, n, whole = valence_stability(molecule)
    assert whole and stable == n
    assert valence_stability(molecule.replace(bonds=orders)) == (stable, n, True)


def test_the_table_is_the_octet_rule() -> None:
    """Second-row atoms: bonds and lone pairs fill eight electrons (six around BX₃ and C⁺)."""
    outer = {5: 3, 6: 4, 7: 5, 8: 6, 9: 7}
    for (z, charge), valences in ALLOWED_VALENCES.items():
        if z in outer:
            (valence,) = valences
            left = outer[z] - charge - valence
            assert left >= 0 and left % 2 == 0
            assert 2 * valence + left == (6 if (z, charge) in ((5, 0), (6, 1)) else 8)


def test_the_flawed_table_of_peers_is_not_this_one() -> None:
    """Neutral C 3, N 2, O 1 and hypervalent N 4, 5 are what lets broken molecules through."""
    for z, wrong in ((6, 3), (7, 2), (7, 4), (7, 5), (8, 1), (8, 3), (1, 0), (6, 5)):
        assert wrong not in ALLOWED_VALENCES[z, 0]


def test_all_of_a_sample_of_qm9_identities_pass() -> None:
    root = shared_data()
    if root is None or not (root / "molecules/qm9_smiles.txt.gz").is_file():
        pytest.skip("no shared data (SCIFLOW_DATA): molecules/qm9_smiles.txt.gz")
    with gzip.open(root / "molecules/qm9_smiles.txt.gz", "rt") as file:
        rows = [line.split() for line in file if not line.startswith("#")]
    neutral = [smiles for smiles, _, charged in rows if charged == "0"]
    molecules = []
    for smiles in random.Random(0).sample(neutral, 1540):
        with suppress(InputError):  # about 1 % of the published list has broken valences
            molecules.append(molecule_from_smiles(smiles))
    assert len(molecules) > 1500
    molecules = molecules[:1500]
    assert valence_rates(molecules)["valence_molecule_stability"] == 1
    rates = chemistry_rates(molecules[:1000], [is_valid(m).smiles or "" for m in molecules[500:]])
    assert rates["validity"] == 1
    assert rates["uniqueness"] > 0.99
    assert rates["novelty"] == pytest.approx(0.5, abs=0.01)
