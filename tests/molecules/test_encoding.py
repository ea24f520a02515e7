"""Molecules to tensors and back: nothing lost, nothing unknown let in, one visible scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from domains.molecules.adapter import Molecules
from domains.molecules.encoding import Encoding, empty_context
from domains.molecules.molecule import Molecule
from domains.molecules.table import MoleculeTable
from sciflow.errors import InputError


@pytest.fixture(scope="module")
def molecules() -> list[Molecule]:
    return [m.with_properties(gap=float(i)) for i, m in enumerate(Molecules().examples(10))]


@pytest.fixture(scope="module")
def encoding(molecules: list[Molecule]) -> Encoding:
    return Encoding.of(MoleculeTable.from_molecules(molecules))


def test_vocabulary_and_scale_are_those_of_the_data(
    molecules: list[Molecule], encoding: Encoding
) -> None:
    assert encoding.elements == tuple(sorted({int(z) for m in molecules for z in m.numbers}))
    assert encoding.charges[0] == 0 and {-1, 0, 1} <= set(encoding.charges)
    deviations = np.concatenate([m.positions - m.positions.mean(0) for m in molecules])
    assert encoding.scale == pytest.approx(float(np.sqrt((deviations**2).mean())), abs=1e-4)
    coords = encoding.encode(molecules)["coords"]
    real = encoding.encode(molecules).context.mask
    assert float(coords[real].std()) == pytest.approx(1.0, abs=0.02)


def test_round_trip(molecules: list[Molecule], encoding: Encoding) -> None:
    for before, after in zip(molecules, encoding.decode(encoding.encode(molecules)), strict=True):
        assert np.array_equal(after.numbers, before.numbers)
        assert np.array_equal(after.bonds, before.bonds)
        assert np.array_equal(after.charges, before.charges)
        centred = before.positions - before.positions.mean(0)
        np.testing.assert_allclose(after.positions, centred, atol=1e-5)


def test_charged_and_aromatic(encoding: Encoding) -> None:
    """A zwitterion and a ring keep their charges and their bonds."""
    n = 3
    bonds = np.array([[0, 4, 0], [4, 0, 3], [0, 3, 0]])
    ion = Molecule(np.array([7, 6, 8]), np.random.default_rng(0).normal(size=(n, 3)), bonds,
                   np.array([1, 0, -1]))  # fmt: skip
    (after,) = encoding.decode(encoding.encode([ion]))
    assert after.charges.tolist() == [1, 0, -1] and np.array_equal(after.bonds, bonds)
    assert np.array_equal(after.bonds, after.bonds.T)


def test_place_in_space_does_not_matter(molecules: list[Molecule], encoding: Encoding) -> None:
    far = [m.replace(positions=m.positions + np.array([100.0, -3.0, 7.0])) for m in molecules]
    a, b = encoding.encode(molecules), encoding.encode(far)
    torch.testing.assert_close(a["coords"], b["coords"], rtol=0, atol=1e-4)
    assert float(a["coords"].sum(1).abs().max()) < 1e-4


def test_padding_holds_nothing(molecules: list[Molecule], encoding: Encoding) -> None:
    state = encoding.encode(molecules)
    mask = state.context.mask
    assert state.context.lengths.tolist() == [len(m) for m in molecules]
    assert mask.shape[1] == max(len(m) for m in molecules) and not bool(mask.all())
    assert not bool(state["coords"][~mask].any())
    assert not bool(state["types"][~mask].any()) and not bool(state["charges"][~mask].any())
    outside = ~(mask[:, :, None] & mask[:, None])
    assert not bool(state["bonds"][outside].any())
    assert state["types"].dtype == state["bonds"].dtype == torch.int64


def test_properties_travel_as_conditions(molecules: list[Molecule], encoding: Encoding) -> None:
    bare = molecules[0].replace(properties={})
    conditions = encoding.encode([*molecules[:3], bare], ["gap"]).context.conditions
    assert conditions["gap"][:3].tolist() == [0.0, 1.0, 2.0] and bool(conditions["gap"][3].isnan())


def test_unknown_elements_are_refused(molecules: list[Molecule]) -> None:
    oxygenless = Encoding((1, 6, 7), (0, -1, 1), 1.4)
    with pytest.raises(InputError, match=r"atomic numbers \[8.*alphabet \[1, 6, 7\]"):
        oxygenless.encode(molecules)


def test_unknown_charges_are_refused(encoding: Encoding) -> None:
    dianion = Molecule(
        np.array([8, 8]), np.eye(2, 3), np.array([[0, 1], [1, 0]]), np.array([-2, 0])
    )
    with pytest.raises(InputError, match="charge"):
        encoding.encode([dianion])


def test_what_lacks_coordinates_or_bonds_is_refused(encoding: Encoding) -> None:
    graph = Molecule(np.array([6]), None, np.zeros((1, 1)), name="methane")
    points = Molecule(np.array([6]), np.zeros((1, 3)), None)
    for wrong in (graph, points):
        with pytest.raises(InputError, match="lacks coordinates or bonds"):
            encoding.encode([wrong])


def test_missing_properties_are_named(molecules: list[Molecule], encoding: Encoding) -> None:
    with pytest.raises(InputError, match=r"no property dipole; it has: gap"):
        encoding.prepare(MoleculeTable.from_molecules(molecules), ["gap", "dipole"])


def test_structures_that_are_points_are_refused() -> None:
    dot = Molecule(np.array([8, 1]), np.zeros((2, 3)), np.array([[0, 1], [1, 0]]))
    with pytest.raises(InputError, match="coincide"):
        Encoding.of(MoleculeTable.from_molecules([dot]))


def test_one_atom(encoding: Encoding) -> None:
    atom = Molecule(np.array([8]), np.array([[3.0, 2.0, 1.0]]), np.zeros((1, 1)))
    state = encoding.encode([atom])
    assert not bool(state["coords"].any()) and not bool(state["bonds"].any())
    (after,) = encoding.decode(state)
    assert after.numbers.tolist() == [8] and after.positions.tolist() == [[0.0, 0.0, 0.0]]


def test_config_round_trip(encoding: Encoding) -> None:
    import json

    assert Encoding.from_config(json.loads(json.dumps(encoding.config()))) == encoding


def test_context_of_sizes() -> None:
    context = empty_context(torch.tensor([2, 5, 1]), {"gap": torch.tensor([1.0, 2.0, 3.0])})
    assert context.lengths.tolist() == [2, 5, 1] and context.mask.shape == (3, 5)
    assert bool(context.mask[0, :2].all()) and not bool(context.mask[0, 2:].any())
    assert len(empty_context(torch.zeros(0, dtype=torch.int64), {})) == 0
