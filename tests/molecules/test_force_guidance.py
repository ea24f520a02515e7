"""xTB forces as a guide: units, failures, steps that relax, and the bundled model so guided."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import sciflow
from domains.molecules.adapter import Molecules
from domains.molecules.evaluators import edm_stability
from domains.molecules.forces import ModelHessian, force_guidance, force_rms, forces, xtb_forces
from domains.molecules.molecule import Molecule
from domains.molecules.xtb import HARTREE, single_point
from sciflow.guidance.oracles.zeroth_order import ForceNorm
from sciflow.model import Model
from sciflow.spaces import ZeroCoM
from sciflow.state import State

CONFIG = {"encoding": {"elements": [1, 6, 7, 8, 9], "charges": [0, -1, 1], "scale": 1.3873}}
DOMAIN = Molecules()


@pytest.fixture(scope="module")
def shaken() -> list[Molecule]:
    rng = np.random.default_rng(0)
    return [
        m.replace(positions=m.positions + 0.03 * rng.normal(size=(len(m), 3)))
        for m in DOMAIN.examples(3)
    ]


def rms(f: torch.Tensor, state: State) -> torch.Tensor:
    return ((f**2).sum((1, 2)) / (3 * state.context.lengths)).sqrt()


def test_forces_are_the_slope_of_the_energy_in_electronvolts_per_angstrom(shaken: list[Molecule]):
    m, h = shaken[1], 1e-3
    move = np.zeros((len(m), 3))
    move[0, 1] = h
    up, down = (single_point(m.replace(positions=m.positions + d))["energy"] for d in (move, -move))
    assert forces(m)[0, 1] == pytest.approx(-(up - down) * HARTREE / (2 * h), abs=2e-3)


def test_the_oracle_answers_for_states_and_masks_what_xtb_refuses(shaken: list[Molecule]):
    state = DOMAIN.encode(CONFIG, shaken)
    oracle = xtb_forces(CONFIG, jobs=1)
    assert oracle.unit == 1.3873
    answer = oracle(state)
    for row, m in enumerate(shaken):
        np.testing.assert_allclose(answer[row, : len(m)], forces(m), atol=2e-3)
        assert (answer[row, len(m) :] == 0).all()
    types = state["types"].clone()
    types[1, 0] = 2
    sick = oracle(state.replace(types=types))
    assert sick[1].isnan().all() and torch.equal(sick[0], answer[0])
    assert sum(oracle.reasons.values()) == 1 and "radical" in next(iter(oracle.reasons))
    sizes = force_rms([shaken[0], shaken[0].replace(numbers=shaken[0].numbers + 1)], 1)
    assert sizes[0] == pytest.approx(float(rms(answer, state)[0]), rel=1e-3)
    assert np.isnan(sizes[1])


def test_steps_of_the_model_hessian_relax(shaken: list[Molecule]):
    """Forces fall at every step, in few steps by an order, where a fixed rate would crawl."""
    state, oracle = DOMAIN.encode(CONFIG, shaken), xtb_forces(CONFIG, 1)
    state = state.replace(coords=state["coords"].double())
    hessian, norms = ModelHessian(CONFIG), []
    for _ in range(5):
        f = oracle(state)
        norms.append(rms(f, state))
        step = hessian(state, f)
        # A step of a relaxation neither shifts the molecule nor moves padding.
        assert float(step.sum(1).abs().max()) < 1e-3
        assert (step[~state.context.mask] == 0).all()
        state = state.replace(coords=state["coords"] + step / oracle.unit)
    for before, after in pairwise(norms):
        assert (after < before).all()
    assert (norms[-1] < 0.15 * norms[0]).all()


def test_hessian_times_force_of_xtb_is_downhill_in_the_squared_force(shaken: list[Molecule]):
    state = DOMAIN.encode(CONFIG, shaken)
    state = state.replace(coords=state["coords"].double())
    oracle, space = xtb_forces(CONFIG, 1), ZeroCoM(3)
    found = ForceNorm(1e-2)(oracle, state, "coords", space)
    rate = 1e-5
    lower = oracle(state.replace(coords=state["coords"] + rate * found.direction / oracle.unit))
    before = oracle(state)
    drop = 0.5 * ((before**2).sum((1, 2)) - (lower**2).sum((1, 2)))
    slope = (found.direction**2).sum((1, 2))
    # Along the exact gradient the square falls by rate times its squared norm, to first order.
    assert (drop > 0).all()
    torch.testing.assert_close(drop / (rate * slope), torch.ones(3).double(), rtol=0, atol=0.15)


def test_strength_zero_calls_no_oracle(tiny_model_folder: Path):
    model = Model.from_folder(tiny_model_folder)
    guide = force_guidance(model.config, 0.0, jobs=1)(model.denoiser)
    guided = model.guided(lambda denoiser: guide)
    for a, b in zip(guided.sample(3, seed=4).kept, model.sample(3, seed=4).kept, strict=True):
        assert np.array_equal(a.positions, b.positions) and np.array_equal(a.numbers, b.numbers)
    assert not len(guide.report.calls)


def test_guidance_lowers_the_forces_of_generated_molecules():
    """At most 100 calls a molecule, at least 40 % off the median force, no molecule unstable."""
    model = sciflow.load("molecules/qm9-gfn2")
    guided = model.guided("forces", jobs=1)
    settings = {"steps": 20}
    runs = [m.sample(4, seed=101, sampler=settings) for m in (model, guided)]
    bare, ours = (run.kept for run in runs)
    medians = [np.median([np.sqrt(np.mean(forces(m) ** 2)) for m in ms]) for ms in (bare, ours)]
    assert medians[1] < 0.6 * medians[0]
    stable = [sum(edm_stability(m)[2] for m in ms) for ms in (bare, ours)]
    assert stable[1] >= stable[0]
    ((label, cost),) = runs[1].settings["guide_costs"].items()
    assert label.startswith("forces:") and 0 < cost["oracle_calls"] <= 100 * 4
