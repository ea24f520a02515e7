"""Distances between distributions: exact small cases, and real data against itself."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from domains.molecules.evaluators import evaluate
from domains.molecules.evaluators.geometry import (
    geometry_distances,
    total_variation,
    wasserstein,
)
from domains.molecules.molecule import Molecule
from domains.molecules.smiles import molecule_from_smiles
from sciflow.data import shared_data


def test_wasserstein_is_the_known_one() -> None:
    rng = np.random.default_rng(0)
    p, q = rng.normal(size=50), rng.exponential(size=83)
    assert wasserstein(p, q) == pytest.approx(wasserstein_distance(p, q))
    assert wasserstein(p, p + 0.3) == pytest.approx(0.3)
    assert wasserstein(p, np.repeat(p, 3)) == pytest.approx(0, abs=1e-12)
    assert np.isnan(wasserstein(p, p[:0]))


def test_total_variation_of_tables() -> None:
    assert total_variation({"a": 1, "b": 1}, {"a": 5, "b": 5}) == 0
    assert total_variation({"a": 2}, {"b": 9}) == 1
    assert total_variation({"a": 3, "b": 1}, {"a": 1, "b": 3}) == pytest.approx(0.5)


def water(length: float, angle: float) -> Molecule:
    half = np.radians(angle) / 2
    arms = length * np.array([[np.sin(half), np.cos(half), 0], [-np.sin(half), np.cos(half), 0]])
    bonds = np.array([[0, 1, 1], [1, 0, 0], [1, 0, 0]])
    return Molecule([8, 1, 1], np.concatenate([np.zeros((1, 3)), arms]), bonds)


def test_a_stretch_and_a_bend_are_measured_in_their_own_units() -> None:
    real, made = [water(0.96, 104.5)] * 20, [water(1.01, 110.0)] * 20
    found = geometry_distances(made, real)
    assert found["bond_length_w1"] == pytest.approx(0.05)
    assert found["angle_w1"] == pytest.approx(5.5)
    assert found["geometry_bonds_inferred"] == 0
    for key in ("bond_kind_tv", "valence_tv", "size_tv", "element_tv"):
        assert found[key] == 0


def test_kinds_are_kept_apart_by_elements_and_order() -> None:
    """Swapping the lengths of two kinds leaves the pooled histogram alone but not this distance."""
    one, two = water(0.9, 100), water(1.1, 100).replace(numbers=np.array([16, 1, 1]))
    swapped = [water(1.1, 100), water(0.9, 100).replace(numbers=np.array([16, 1, 1]))]
    assert geometry_distances(swapped * 10, [one, two] * 10)["bond_length_w1"] == pytest.approx(0.2)


def test_one_exploded_molecule_is_bounded_and_counted() -> None:
    real = [water(0.96, 104.5)] * 99
    far, lost = water(1e5, 104.5), water(np.nan, 104.5)
    found = geometry_distances([*real, far], real)
    assert found["bond_length_w1"] == pytest.approx((10 - 0.96) / 100)
    assert geometry_distances([*real, lost], real)["finite_positions"] == pytest.approx(0.99)


def test_angles_at_an_atom_are_all_pairs_of_its_neighbours() -> None:
    n = 6
    arms = np.random.default_rng(0).normal(size=(n, 3))
    bonds = np.zeros((n + 1, n + 1), np.int8)
    bonds[0, 1:] = bonds[1:, 0] = 1
    star = Molecule([16] + [9] * n, np.concatenate([np.zeros((1, 3)), arms]), bonds)
    unit = arms / np.linalg.norm(arms, axis=1, keepdims=True)
    angles = np.degrees(np.arccos((unit @ unit.T)[np.triu_indices(n, 1)]))
    straight = Molecule([16, 9, 9], [[0, 0, 0], [1, 0, 0], [-1, 0, 0]], bonds[:3, :3])
    found = geometry_distances([star], [straight] * 10)["angle_w1"]
    assert found == pytest.approx(np.mean(180 - angles))


def test_bonds_are_inferred_for_both_sets_where_one_lacks_them() -> None:
    graph = water(0.96, 104.5)
    assert geometry_distances([graph.replace(bonds=None)], [graph])["valence_tv"] == 0
    assert geometry_distances([graph.replace(bonds=None)], [graph])["geometry_bonds_inferred"] == 1


def test_graphs_without_positions_count_in_sizes_only() -> None:
    found = geometry_distances([molecule_from_smiles("O")], [water(0.96, 104.5)])
    assert found["finite_positions"] == 0
    assert found["size_tv"] == 0 and np.isnan(found["bond_length_w1"])


def test_real_data_is_near_itself_and_noise_is_not() -> None:
    root = shared_data()
    if root is None or not (root / "molecules/qm9_gfn2.npz").is_file():
        pytest.skip("no shared data (SCIFLOW_DATA): molecules/qm9_gfn2.npz")
    file = np.load(root / "molecules/qm9_gfn2.npz")
    sizes = file["n_atoms"][:2000].astype(int)
    positions = file["positions_q"][:2000] * float(file["quantum_A"])
    numbers = file["numbers"][:2000]
    data = [Molecule(z[:n], x[:n]) for z, x, n in zip(numbers, positions, sizes, strict=True)]
    rng = np.random.default_rng(0)
    noisy = [m.replace(positions=m.positions + 0.1 * rng.normal(size=(len(m), 3))) for m in data]
    real = evaluate(data[:1000], reference=data[1000:], evaluators=["geometry"])
    shaken = evaluate(noisy[:1000], reference=data[1000:], evaluators=["geometry"])
    assert real["bond_length_w1"] < 0.002 and shaken["bond_length_w1"] > 0.03
    assert real["angle_w1"] < 0.6 and shaken["angle_w1"] > 4
    assert real["valence_tv"] < 0.02 and shaken["valence_tv"] > 0.2
    assert real["element_tv"] < 0.02 and real["size_tv"] < 0.1
