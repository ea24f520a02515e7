"""The oracle: physics against known answers, the data set's numbers, failures that stay small."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest

from domains.molecules.guarded import guarded_map
from domains.molecules.molecule import Molecule
from domains.molecules.oracle import XtbOracle
from domains.molecules.relaxation import kabsch_rmsd, lbfgs, model_hessian
from domains.molecules.smiles import molecule_from_smiles
from domains.molecules.xtb import (
    BOHR,
    DEBYE,
    HARTREE,
    PROPERTIES,
    XtbError,
    relax,
    single_point,
)
from sciflow.data import shared_data
from sciflow.errors import InputError

DATA = shared_data()
needs_data = pytest.mark.skipif(DATA is None, reason="no shared data on this machine")

WATER = molecule_from_smiles("O").replace(
    positions=np.array([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
)


@pytest.fixture(scope="module")
def stored() -> list[Molecule]:
    """Ten molecules of qm9-gfn2 with the numbers stored for them."""
    if DATA is None:
        pytest.skip("no shared data on this machine")
    with np.load(DATA / "molecules" / "qm9_gfn2.npz", allow_pickle=False) as file:
        data = {key: file[key] for key in file.files}
    molecules = []
    for row in range(0, 1000, 100):
        n = int(data["n_atoms"][row])
        keys = {"energy": "energy_Eh", "homo": "homo_eV", "lumo": "lumo_eV"}
        keys |= {"dipole": "dipole_D", "alpha": "alpha_bohr3"}
        values = {name: float(data[key][row]) for name, key in keys.items()}
        values["gap"] = values["lumo"] - values["homo"]
        positions = data["positions_q"][row, :n] * float(data["quantum_A"])
        molecules.append(Molecule(data["numbers"][row, :n], positions, properties=values))
    return molecules


def test_units_are_codata():
    from scipy.constants import physical_constants

    known = {
        "bohr": physical_constants["Bohr radius"][0] * 1e10,
        "hartree": physical_constants["Hartree energy in eV"][0],
        "debye": physical_constants["atomic unit of electric dipole mom."][0] * 299792458 * 1e21,
    }
    ours = {"bohr": BOHR, "hartree": HARTREE, "debye": DEBYE}
    assert ours == pytest.approx(known, rel=2e-9)


@needs_data
def test_oracle_reproduces_the_data_set(stored):
    results = XtbOracle().evaluate(stored, PROPERTIES, n_jobs=2)
    # Stored coordinates are rounded to 2.5e-4 Å, hence the tolerances.
    tolerance = {"energy": 3e-6, "homo": 3e-3, "lumo": 3e-3, "gap": 5e-3}
    tolerance |= {"dipole": 5e-3, "alpha": 0.03}
    for molecule, result in zip(stored, results, strict=True):
        assert result.ok, result.error
        assert result.seconds > 0
        for key, limit in tolerance.items():
            assert result.values[key] == pytest.approx(molecule.properties[key], abs=limit), key


@needs_data
def test_forces_are_the_slope_of_the_energy(stored):
    molecule = stored[0]
    rng = np.random.default_rng(0)
    molecule = molecule.replace(
        positions=molecule.positions + 0.05 * rng.normal(size=(len(molecule), 3))
    )
    direction = rng.normal(size=(len(molecule), 3))
    forces = single_point(molecule, forces=True, accuracy=1e-3)["forces"]
    step = 1e-3 * BOHR
    ends = [
        single_point(
            molecule.replace(positions=molecule.positions + s * step * direction), accuracy=1e-3
        )["energy"]
        for s in (1, -1)
    ]
    slope = (ends[0] - ends[1]) / (2 * step / BOHR)
    assert slope == pytest.approx(-np.vdot(forces, direction), rel=1e-4)


def test_properties_do_not_depend_on_the_frame():
    rng = np.random.default_rng(1)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    moved = WATER.replace(positions=WATER.positions @ rotation.T + rng.normal(size=3) * 5)
    first, second = (single_point(m, alpha=True) for m in (WATER, moved))
    for key in PROPERTIES:
        assert second[key] == pytest.approx(first[key], abs=2e-3 if key == "alpha" else 1e-5)


def test_dipole_of_an_ion_does_not_depend_on_the_origin():
    hydroxide = Molecule(
        np.array([8, 1]), np.array([[0, 0, 0], [0.97, 0, 0]]), charges=np.array([-1, 0])
    )
    far = hydroxide.replace(positions=hydroxide.positions + 20.0)
    assert single_point(far)["dipole"] == pytest.approx(single_point(hydroxide)["dipole"], abs=1e-4)


def test_known_molecules():
    water = single_point(relax(WATER).molecule, alpha=True)
    assert water["dipole"] == pytest.approx(2.2, abs=0.15)  # GFN2; experiment 1.85 D
    assert water["energy"] == pytest.approx(-5.0704, abs=1e-3)
    hydrogen = Molecule(np.array([1, 1]), np.array([[0, 0, 0], [0, 0, 0.78]]))
    assert relax(hydrogen).energy == pytest.approx(-0.98269, abs=1e-3)
    assert single_point(hydrogen)["dipole"] < 1e-6


FAILURES = {
    "no atoms": (Molecule(np.zeros(0, int), np.zeros((0, 3))), "no atoms"),
    "no positions": (molecule_from_smiles("O"), "positions"),
    "NaN": (WATER.replace(positions=WATER.positions * np.nan), "finite"),
    "radical": (Molecule(np.array([8, 1]), np.eye(2, 3)), "odd number"),
    "proton": (Molecule(np.array([1]), np.zeros((1, 3)), charges=np.array([1])), "0 electrons"),
    "uranium": (Molecule(np.array([92]), np.zeros((1, 3))), "elements"),
    "one place": (Molecule(np.array([6, 8]), np.zeros((2, 3))), "Too close"),
    "collision": (Molecule(np.array([6, 8]), np.eye(2, 3) * 5e-4), "xTB failed"),
}


@pytest.mark.parametrize(("molecule", "reason"), FAILURES.values(), ids=list(FAILURES))
def test_what_cannot_be_computed_is_refused_with_the_reason(molecule, reason, capfd):
    with pytest.raises((InputError, XtbError), match=reason):
        single_point(molecule)
    assert capfd.readouterr() == ("", "")


def test_oracle_reports_failures_beside_results():
    bad = [molecule for molecule, _ in FAILURES.values()]
    results = XtbOracle().evaluate([WATER, *bad, WATER], ("dipole",), n_jobs=1)
    assert [r.ok for r in results] == [True, *[False] * len(bad), True]
    for result, (_, reason) in zip(results[1:-1], FAILURES.values(), strict=True):
        assert reason in result.error
        assert result.values == {}
    assert results[0].values == results[-1].values


def test_radicals_on_request_and_unknown_properties_never():
    hydroxyl = Molecule(np.array([8, 1]), np.array([[0, 0, 0], [0.97, 0, 0]]))
    (result,) = XtbOracle().evaluate([hydroxyl], ("gap",), n_jobs=1, allow_radicals=True)
    assert result.ok
    with pytest.raises(InputError, match="unknown property 'colour'; allowed: gap"):
        XtbOracle().evaluate([WATER], ("colour",))
    assert XtbOracle().evaluate([]) == []


@needs_data
def test_relaxation_goes_home(stored):
    rng = np.random.default_rng(0)
    for molecule in stored[:3]:
        shaken = molecule.replace(
            positions=molecule.positions + 0.05 * rng.normal(size=(len(molecule), 3))
        )
        end = relax(shaken)
        assert end.converged
        assert end.max_gradient < 5e-4
        assert end.energy == pytest.approx(molecule.properties["energy"], abs=2e-4)
        assert end.energy_drop > 0.01
        assert kabsch_rmsd(end.molecule.positions, molecule.positions) < 0.05
        assert end.rmsd == pytest.approx(
            kabsch_rmsd(shaken.positions, end.molecule.positions), abs=1e-9
        )
        assert end.steps < 40
        forces = single_point(end.molecule, forces=True)["forces"]
        assert np.abs(forces).max() < 5.5e-4


def test_relaxation_in_parallel_and_out_of_steps():
    stretched = WATER.replace(positions=WATER.positions * 1.2)
    done, stuck = XtbOracle().relax([stretched], n_jobs=1)[0], relax(stretched, max_steps=1)
    assert done.ok
    assert done.values["energy_drop"] > 0.01
    assert done.molecule is not None
    assert not stuck.converged
    assert stuck.energy_drop > 0
    (failed,) = XtbOracle().relax([stretched], max_steps=1, n_jobs=1)
    assert "not relaxed" in failed.error


def test_lbfgs_finds_the_minimum_of_a_quadratic_bowl():
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(12, 12))
    hessian, home = factor @ factor.T / 12 + 0.2 * np.eye(12), rng.normal(size=12)

    def bowl(x):
        apart = x.ravel() - home
        return 0.5 * apart @ hessian @ apart, (hessian @ apart).reshape(x.shape)

    end = lbfgs(bowl, np.full(4, 6), rng.normal(size=(4, 3)) * 2, max_gradient=1e-8)
    assert end.converged
    assert np.abs(end.positions.ravel() - home).max() < 1e-6


def test_model_hessian_costs_nothing_to_move_or_turn():
    x = WATER.positions / BOHR
    hessian = model_hessian(WATER.numbers, x)
    assert hessian == pytest.approx(hessian.T)
    assert np.linalg.eigvalsh(hessian).min() > -1e-12
    shift = np.tile([1.0, 2.0, 3.0], 3)
    turn = np.cross(x, [0.3, -1.0, 0.5]).ravel()
    assert np.abs(hessian @ shift).max() < 1e-12
    assert np.abs(hessian @ turn).max() < 1e-12


def test_kabsch_ignores_rigid_motion_but_not_reflection():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(7, 3))
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    rotation *= np.linalg.det(rotation)
    assert kabsch_rmsd(x, x @ rotation.T + 3.0) < 1e-7
    assert kabsch_rmsd(x, x * [1, 1, -1]) > 0.1
    assert kabsch_rmsd(x, x @ rotation.T * [1, 1, -1]) == pytest.approx(
        kabsch_rmsd(x, x * [1, 1, -1]), abs=1e-9
    )


def _square_or_misbehave(x: float) -> float:
    if x == 1:
        time.sleep(600)
    if x == 2:
        os.abort()
    if x == 3:
        os._exit(5)
    if x == 4:
        raise ValueError("four is refused")
    return x * x


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_hung_and_crashed_items_take_no_other_with_them(n_jobs):
    start = time.monotonic()
    outcomes = list(guarded_map(_square_or_misbehave, range(7), n_jobs=n_jobs, timeout=1.0))
    outcomes.sort(key=lambda outcome: outcome.index)
    assert [o.value for o in outcomes] == [0, None, None, None, None, 25, 36]
    assert outcomes[1].error == "no answer within 1 s; stopped"
    assert outcomes[1].seconds == pytest.approx(1.0, abs=0.5)
    assert outcomes[2].error == "the worker process died (signal 6)"
    assert outcomes[3].error == "the worker process died (exit code 5)"
    assert outcomes[4].error == "ValueError: four is refused"
    assert time.monotonic() - start < 30


def test_guarded_map_refuses_nonsense_and_takes_nothing():
    assert list(guarded_map(_square_or_misbehave, [], n_jobs=1)) == []
    with pytest.raises(ValueError, match="n_jobs"):
        list(guarded_map(_square_or_misbehave, [5], n_jobs=0))
    with pytest.raises(ValueError, match="timeout"):
        list(guarded_map(_square_or_misbehave, [5], timeout=0))
