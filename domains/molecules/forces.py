"""GFN2-xTB forces as a guide: molecules that come out nearer to a minimum of the energy.

The oracle answers with forces in eV/Å at the clean estimate. Steps along them are preconditioned by
the model Hessian of :mod:`domains.molecules.relaxation`, as in a relaxation: bonds are stiff and
torsions soft, and one length of step cannot suit both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from torch import Tensor

from domains.molecules.encoding import Encoding
from domains.molecules.molecule import Molecule
from domains.molecules.relaxation import model_hessian
from domains.molecules.xtb import BOHR, HARTREE, single_point
from sciflow.denoisers import Denoiser
from sciflow.guidance.oracles.black_box import RecordOracle
from sciflow.guidance.oracles.oracle_guidance import OracleGuidance
from sciflow.guidance.oracles.zeroth_order import Ascent, EnergyDescent
from sciflow.guides import Guide
from sciflow.model import Model
from sciflow.state import State

__all__ = ["GUIDES", "ModelHessian", "force_guidance", "force_rms", "forces", "xtb_forces"]

EV_PER_ANGSTROM = HARTREE / BOHR
"""Electronvolts per ångström in one hartree per bohr."""


def forces(molecule: Molecule) -> NDArray[np.float64]:
    """GFN2-xTB forces on the atoms as they stand, eV/Å ``[n, 3]``.

    Raises:
        InputError, XtbError: as :func:`domains.molecules.xtb.single_point`.
    """
    found: NDArray[np.float64] = single_point(molecule, forces=True)["forces"] * EV_PER_ANGSTROM
    return found


def force_rms(molecules: Sequence[Molecule], jobs: int = -1) -> list[float]:
    """Root mean square of all components of the force on a molecule, eV/Å; NaN where xTB fails."""
    answers = RecordOracle(forces, list, jobs=jobs).answers(molecules)
    return [math.nan if f is None else float(np.sqrt(np.mean(f**2))) for f, _ in answers]


def xtb_forces(config: Mapping[str, Any], jobs: int = -1, timeout: float = 20.0) -> RecordOracle:
    """The force oracle of a model.

    Args:
        config: of the model; its encoding says what the fields mean.
        jobs: processes, -1 for every core.
        timeout: seconds for one molecule, where ``jobs`` is not 1.
    """
    encoding = Encoding.from_config(dict(config["encoding"]))
    return RecordOracle(forces, encoding.decode, "coords", jobs, timeout, unit=encoding.scale)


class ModelHessian:
    """Turns forces (eV/Å) into steps of a relaxation (Å): (H_model + shift)⁻¹ F for each molecule.

    Args:
        config: of the model.
        shift: stiffness of what no spring of the model Hessian holds, Eh/bohr².
    """

    def __init__(self, config: Mapping[str, Any], shift: float = 0.2):
        self.encoding, self.shift = Encoding.from_config(dict(config["encoding"])), shift

    def __call__(self, clean: State, direction: Tensor) -> Tensor:
        """Steps shaped as ``direction [B, N, 3]``."""
        steps = torch.zeros_like(direction)
        for row, molecule in enumerate(self.encoding.decode(clean)):
            n = len(molecule)
            force = direction[row, :n].cpu().numpy() / EV_PER_ANGSTROM
            assert molecule.positions is not None
            if not force.any() or not np.isfinite(molecule.positions).all():
                continue
            hessian = model_hessian(molecule.numbers, molecule.positions / BOHR)
            factor = cho_factor(hessian + self.shift * np.eye(3 * n))
            step = cho_solve(factor, force.ravel()).reshape(n, 3) * BOHR
            steps[row, :n] = torch.from_numpy(step).to(steps)
        return steps


def force_guidance(
    config: Mapping[str, Any],
    strength: float = 1.0,
    *,
    ascent: Ascent | None = None,
    interval: tuple[float, float] = (0.0, 0.1),
    every: int = 1,
    iterations: int = 2,
    cap: float = 0.1,
    budget: int = 100,
    jobs: int = -1,
) -> Callable[[Denoiser], OracleGuidance]:
    """Wraps a denoiser of molecules; ``model.guided(force_guidance(model.config))``.

    Args:
        config: of the model.
        strength: 1 is a full step of the relaxation.
        ascent: default :class:`~sciflow.guidance.oracles.zeroth_order.EnergyDescent`.
        interval: times between which it acts; before, the estimate is no molecule yet.
        every: see :class:`~sciflow.guidance.oracles.oracle_guidance.OracleGuidance`.
        iterations: see ``every``.
        cap: furthest move of an atom in one step, Å.
        budget: xTB calls a molecule.
        jobs: processes of the oracle.
    """
    oracle, precondition = xtb_forces(config, jobs), ModelHessian(config)

    def wrap(denoiser: Denoiser) -> OracleGuidance:
        return OracleGuidance(
            denoiser, oracle, ascent or EnergyDescent(), "coords", strength, interval=interval,
            every=every, iterations=iterations, cap=cap, budget=budget, precondition=precondition,
        )  # fmt: skip

    return wrap


def _guide(model: Model, settings: dict[str, Any], denoiser: Denoiser) -> Denoiser:
    return force_guidance(
        model.config, settings["strength"], interval=(settings["first"], settings["last"]),
        every=settings["every"], iterations=settings["iterations"], cap=settings["cap"],
        budget=settings["budget"], jobs=settings["jobs"],
    )(denoiser)  # fmt: skip


GUIDES = {
    "forces": Guide(
        "to small GFN2-xTB forces: steps of a relaxation at the clean estimate, near the data",
        {"strength": 1.0, "first": 0.0, "last": 0.1, "every": 1, "iterations": 2, "cap": 0.1,
         "budget": 100, "jobs": -1},
        _guide,
    ),
}  # fmt: skip
"""Guides of molecules by an oracle of their own."""
