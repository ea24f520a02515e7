"""GFN2-xTB as an oracle of many molecules: in parallel, within a time, failures reported.

A molecule is computed as :mod:`domains.molecules.xtb` says, in a worker that can be killed without
harm to the others (:mod:`domains.molecules.guarded`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from domains.molecules.guarded import guarded_map
from domains.molecules.molecule import Molecule
from domains.molecules.xtb import PROPERTIES, XtbError, relax, single_point
from sciflow.errors import InputError

__all__ = ["OracleResult", "XtbOracle"]


@dataclass(frozen=True)
class OracleResult:
    """The oracle's answer for one molecule.

    Attributes:
        values: what was asked for; empty if it failed.
        error: why it failed, or ``None``.
        seconds: wall-clock time.
        molecule: the relaxed structure, where relaxation was asked for.
    """

    values: dict[str, float]
    error: str | None
    seconds: float
    molecule: Molecule | None = None

    @property
    def ok(self) -> bool:
        """Whether there are values."""
        return self.error is None


class XtbOracle:
    """GFN2-xTB as an oracle: properties of many molecules, in parallel, failures reported.

    A molecule that cannot be computed (radical, no converged field, overrun, crash) has its reason
    in its own result and takes no other with it.
    """

    name = "gfn2-xtb"
    properties = PROPERTIES

    def evaluate(
        self,
        molecules: Sequence[Molecule],
        properties: Sequence[str] = ("gap", "dipole", "alpha"),
        n_jobs: int = -1,
        timeout: float = 30.0,
        progress: bool = False,
        *,
        allow_radicals: bool = False,
    ) -> list[OracleResult]:
        """Properties of each structure as it stands, in order.

        Args:
            molecules: with positions.
            properties: among :data:`PROPERTIES`.
            n_jobs: worker processes; -1 is every core.
            timeout: seconds for one molecule, enforced by killing its worker.
            progress: show a bar with the rate.
            allow_radicals: compute odd electron counts as doublets.

        Raises:
            InputError: a property that does not exist.
        """
        unknown = [name for name in properties if name not in PROPERTIES]
        if unknown:
            raise InputError(f"unknown property {unknown[0]!r}; allowed: {', '.join(PROPERTIES)}")
        tasks = [(molecule, tuple(properties), allow_radicals) for molecule in molecules]
        return _collect(_evaluate, tasks, n_jobs, timeout, progress)

    def relax(
        self,
        molecules: Sequence[Molecule],
        max_gradient: float = 5e-4,
        max_steps: int = 200,
        n_jobs: int = -1,
        timeout: float = 60.0,
        progress: bool = False,
        *,
        allow_radicals: bool = False,
    ) -> list[OracleResult]:
        """Relax each structure; values are ``energy``, ``energy_drop``, ``rmsd``, ``steps``.

        A descent that does not reach ``max_gradient`` in ``max_steps`` is a failure.
        """
        tasks = [(m, max_gradient, max_steps, allow_radicals) for m in molecules]
        return _collect(_relax, tasks, n_jobs, timeout, progress)


def _collect(
    function: Any, tasks: list[Any], n_jobs: int, timeout: float, progress: bool
) -> list[OracleResult]:
    from tqdm import tqdm

    results: list[OracleResult | None] = [None] * len(tasks)
    outcomes = guarded_map(function, tasks, n_jobs=n_jobs, timeout=timeout)
    for outcome in tqdm(
        outcomes, total=len(tasks), desc="GFN2-xTB", unit="mol", disable=not progress
    ):
        values, molecule = outcome.value if outcome.error is None else ({}, None)
        results[outcome.index] = OracleResult(values, outcome.error, outcome.seconds, molecule)
    return [result for result in results if result is not None]


def _evaluate(task: tuple[Molecule, tuple[str, ...], bool]) -> tuple[dict[str, float], None]:
    molecule, properties, allow_radicals = task
    values = single_point(molecule, alpha="alpha" in properties, allow_radicals=allow_radicals)
    if not all(np.isfinite(values[name]) for name in properties):
        raise XtbError("a computed property is not finite")
    return {name: values[name] for name in properties}, None


def _relax(task: tuple[Molecule, float, int, bool]) -> tuple[dict[str, float], Molecule]:
    molecule, max_gradient, max_steps, allow_radicals = task
    end = relax(molecule, max_gradient, max_steps, allow_radicals=allow_radicals)
    if not end.converged:
        raise XtbError(
            f"not relaxed after {end.steps} evaluations: gradient {end.max_gradient:.1e} Eh/bohr"
        )
    values = {
        "energy": end.energy,
        "energy_drop": end.energy_drop,
        "rmsd": end.rmsd,
        "steps": float(end.steps),
    }
    return values, end.molecule
