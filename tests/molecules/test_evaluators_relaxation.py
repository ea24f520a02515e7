"""The xTB relaxation as a judge: zero at a minimum, larger the further off, failures counted."""

from __future__ import annotations

import numpy as np
import pytest

from domains.molecules.evaluators import evaluate
from domains.molecules.evaluators.relaxation import relaxation_summary
from domains.molecules.molecule import Molecule
from domains.molecules.xtb import relax

WATER = Molecule([8, 1, 1], [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
METHANOL = Molecule(
    [6, 8, 1, 1, 1, 1],
    [[0, 0, 0], [1.42, 0, 0], [-0.36, 1.03, 0], [-0.36, -0.5, 0.89], [-0.36, -0.5, -0.89],
     [1.74, -0.45, 0.78]],
)  # fmt: skip


@pytest.fixture(scope="module")
def minima() -> list[Molecule]:
    return [relax(m, max_gradient=2e-4).molecule for m in (WATER, METHANOL)]


def shaken(molecules: list[Molecule], size: float) -> list[Molecule]:
    rng = np.random.default_rng(0)
    return [
        m.replace(positions=m.positions + size * rng.normal(size=(len(m), 3))) for m in molecules
    ]


def test_a_minimum_stays_and_noise_relaxes(minima: list[Molecule]) -> None:
    still = relaxation_summary(minima, n_jobs=1)
    near, far = (relaxation_summary(shaken(minima, size), n_jobs=1) for size in (0.03, 0.1))
    assert still["relax_converged"] == near["relax_converged"] == far["relax_converged"] == 1
    assert still["relax_rmsd_median"] < 1e-3 and still["relax_drop_mean"] < 1e-2
    assert 0.005 < near["relax_rmsd_median"] < far["relax_rmsd_median"] < 0.3
    assert 0.2 < near["relax_drop_median"] < far["relax_drop_median"]


def test_the_drop_is_in_kcal_per_mol(minima: list[Molecule]) -> None:
    (moved,) = shaken(minima[:1], 0.05)
    found = relaxation_summary([moved], n_jobs=1)
    assert found["relax_drop_mean"] == pytest.approx(relax(moved).energy_drop * 627.5095, rel=1e-3)


def test_what_cannot_be_relaxed_is_counted_and_left_out(minima: list[Molecule]) -> None:
    bad = [
        Molecule([], np.zeros((0, 3))),
        WATER.replace(positions=None),
        WATER.replace(positions=np.full((3, 3), np.nan)),
        WATER.replace(positions=np.zeros((3, 3))),
        Molecule([6, 1, 1, 1], METHANOL.positions[[0, 2, 3, 4]]),
        WATER.replace(numbers=np.array([200, 1, 1])),
    ]
    found = evaluate([*bad, *minima], evaluators=["relaxation"], n_jobs=1)
    assert found["relax_n"] == len(bad) + 2
    assert found["relax_converged"] == pytest.approx(2 / (len(bad) + 2))
    assert found["relax_rmsd_mean"] < 1e-3
    assert relaxation_summary([*minima, *bad], most=2, n_jobs=1)["relax_converged"] == 1


def test_nothing_to_relax_is_undefined() -> None:
    found = relaxation_summary([])
    assert found["relax_n"] == 0 and np.isnan(found["relax_converged"])
