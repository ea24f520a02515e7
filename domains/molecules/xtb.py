"""GFN2-xTB, the quantum chemistry that judges samples here, of one molecule, through ``tblite``.

Bannwarth, Ehlert, Grimme, J. Chem. Theory Comput. 15, 1652 (2019). The isotropic polarisability is
the mean slope of the dipole in a field, α = ⅓ Σ_k [μ_k(+F e_k) − μ_k(−F e_k)] / 2F, F = 1e-3
atomic units: six further self-consistent fields, started from the field-free one.
Closed shells only, unless radicals are allowed; the charge is the sum of the formal charges.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from domains.molecules.molecule import Molecule
from domains.molecules.relaxation import kabsch_rmsd, lbfgs
from sciflow.errors import InputError, SciflowError

__all__ = [
    "BOHR",
    "DEBYE",
    "HARTREE",
    "PROPERTIES",
    "Relaxation",
    "XtbError",
    "relax",
    "single_point",
]

BOHR = 0.529177210903
"""Ångström in a bohr (CODATA 2018)."""

HARTREE = 27.211386245988
"""Electronvolts in a hartree (CODATA 2018)."""

DEBYE = 1.602176634e-19 * BOHR * 1e-10 * 299792458 * 1e21
"""Debye in an atomic unit of dipole moment, e·a0; 1 D = 1e-21/c C·m."""

PROPERTIES = ("gap", "homo", "lumo", "dipole", "alpha", "energy")
"""What the oracle can compute: eV, eV, eV, D, bohr³, Eh."""

_FIELD = 1e-3
_FIELD_ACCURACY = 0.1


class XtbError(SciflowError, RuntimeError):
    """The calculation failed: the field did not converge, or a value does not exist."""


@dataclass(frozen=True)
class Relaxation:
    """A molecule at the nearest minimum of its energy.

    Attributes:
        molecule: the same atoms and bonds, moved.
        energy: at the end, Eh.
        energy_drop: from the start to the end, Eh; positive.
        rmsd: of all atoms after superposition, Å.
        max_gradient: largest component of the gradient at the end, Eh/bohr.
        steps: evaluations of energy and gradient.
        converged: whether the gradient fell below the limit.
    """

    molecule: Molecule
    energy: float
    energy_drop: float
    rmsd: float
    max_gradient: float
    steps: int
    converged: bool


def single_point(
    molecule: Molecule,
    *,
    alpha: bool = False,
    forces: bool = False,
    allow_radicals: bool = False,
    accuracy: float = 1.0,
) -> dict[str, Any]:
    """Energy and properties of a structure as it stands.

    Args:
        molecule: needs positions (Å).
        alpha: the isotropic polarisability too.
        forces: minus the gradient too.
        allow_radicals: treat an odd number of electrons as a doublet instead of refusing it.
        accuracy: tblite's threshold factor of the self-consistent field.

    Returns:
        ``energy`` (Eh), ``homo``, ``lumo``, ``gap`` (eV), ``dipole`` (D; about the centre of
        nuclear charge), and on request ``alpha`` (bohr³) and ``forces`` (Eh/bohr, ``[n, 3]``).

    Raises:
        InputError: no positions, not finite, an odd number of electrons, or an unknown element.
        XtbError: no self-consistent field was found, or there is no empty orbital.
    """
    x = _bohr(molecule)
    charge, unpaired = _electrons(molecule, allow_radicals)
    result = _run(molecule.numbers, x, charge, unpaired, accuracy)
    orbitals, filled = result.get("orbital-energies"), result.get("orbital-occupations")
    occupied = round(float(filled.sum()) + unpaired) // 2
    if occupied == 0 or occupied >= len(orbitals):
        raise XtbError("no frontier orbitals: the minimal basis has no occupied or no empty one")
    homo, lumo = (float(e) * HARTREE for e in orbitals[occupied - 1 : occupied + 1])
    dipole = result.get("dipole")
    if charge:
        weights = molecule.numbers / molecule.numbers.sum()
        dipole = dipole - charge * (weights @ x)
    values: dict[str, Any] = {
        "energy": float(result.get("energy")),
        "homo": homo,
        "lumo": lumo,
        "gap": lumo - homo,
        "dipole": float(np.linalg.norm(dipole)) * DEBYE,
    }
    if alpha:
        values["alpha"] = _polarisability(molecule.numbers, x, charge, unpaired, result)
    if forces:
        values["forces"] = -np.array(result.get("gradient"))
    return values


def relax(
    molecule: Molecule,
    max_gradient: float = 5e-4,
    max_steps: int = 200,
    *,
    allow_radicals: bool = False,
) -> Relaxation:
    """Move the atoms to the nearest minimum of the GFN2-xTB energy.

    Args:
        molecule: needs positions.
        max_gradient: largest component allowed at the end, Eh/bohr.
        max_steps: steps before giving up (``converged=False``).
        allow_radicals: as in :func:`single_point`.

    Raises:
        InputError, XtbError: as :func:`single_point`.
    """
    from tblite.exceptions import TBLiteRuntimeError

    start = _bohr(molecule)
    charge, unpaired = _electrons(molecule, allow_radicals)
    calculator = _calculator(molecule.numbers, start, charge, unpaired, 1.0)
    state: list[Any] = [None]

    def energy(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        calculator.update(x)
        # Each field starts from the last; a spoiled start is forgotten rather than fatal.
        try:
            state[0] = calculator.singlepoint(state[0])
        except TBLiteRuntimeError:
            state[0] = _converge(calculator)
        return float(state[0].get("energy")), np.array(state[0].get("gradient"))

    first = energy(start)[0]
    end = lbfgs(energy, molecule.numbers, start, max_gradient=max_gradient, max_steps=max_steps)
    moved = molecule.replace(positions=end.positions * BOHR)
    return Relaxation(
        moved,
        end.energy,
        first - end.energy,
        kabsch_rmsd(start, end.positions) * BOHR,
        end.max_gradient,
        end.evaluations,
        end.converged,
    )


def _bohr(molecule: Molecule) -> NDArray[np.float64]:
    if not len(molecule):
        raise InputError("a molecule of no atoms has no energy")
    if molecule.positions is None:
        raise InputError("xTB needs positions; build them from the graph first")
    if not np.isfinite(molecule.positions).all():
        raise InputError("coordinates must be finite numbers; found NaN or infinity")
    if not 1 <= molecule.numbers.min() <= molecule.numbers.max() <= 86:
        raise InputError("GFN2-xTB knows the elements 1 (H) to 86 (Rn)")
    return np.ascontiguousarray(molecule.positions / BOHR)


def _electrons(molecule: Molecule, allow_radicals: bool) -> tuple[int, int]:
    """Total charge and number of unpaired electrons."""
    charge = int(molecule.charges.sum())
    electrons = int(molecule.numbers.sum()) - charge
    if electrons < 1:
        raise InputError(f"a charge of {charge:+d} leaves {electrons} electrons")
    if electrons % 2 and not allow_radicals:
        raise InputError(f"{electrons} electrons: an odd number (radical); closed shells only")
    return charge, electrons % 2


def _calculator(
    numbers: NDArray[np.int64],
    x: NDArray[np.float64],
    charge: int,
    unpaired: int,
    accuracy: float,
) -> Any:
    # The OpenMP runtime reads this once, when tblite is loaded; small molecules want one thread.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from tblite.exceptions import TBLiteRuntimeError, TBLiteValueError
    from tblite.interface import Calculator

    try:
        calculator = Calculator("GFN2-xTB", numbers, x, charge=float(charge), uhf=unpaired)
    except (TBLiteRuntimeError, TBLiteValueError) as error:
        raise XtbError(f"xTB refuses the structure: {error}") from None
    calculator.set("verbosity", 0)
    calculator.set("accuracy", accuracy)
    return calculator


def _converge(calculator: Any, start: Any = None) -> Any:
    from tblite.exceptions import TBLiteRuntimeError

    try:
        result = calculator.singlepoint(start, copy=True) if start else calculator.singlepoint()
    except TBLiteRuntimeError as error:
        raise XtbError(f"xTB failed: {error}") from None
    if not np.isfinite(float(result.get("energy"))):
        raise XtbError("xTB gave an energy that is not finite")
    return result


def _run(
    numbers: NDArray[np.int64],
    x: NDArray[np.float64],
    charge: int,
    unpaired: int,
    accuracy: float,
    field: NDArray[np.float64] | None = None,
    start: Any = None,
) -> Any:
    calculator = _calculator(numbers, x, charge, unpaired, accuracy)
    if field is not None:
        from tblite.library import ffi

        # tblite's own conversion of arrays fails here (0.8.0), so it is given the pointer.
        calculator.add("electric-field", ffi.cast("double*", field.ctypes.data))
    return _converge(calculator, start)


def _polarisability(
    numbers: NDArray[np.int64], x: NDArray[np.float64], charge: int, unpaired: int, start: Any
) -> float:
    slopes = []
    for k in range(3):
        ends = []
        for sign in (1.0, -1.0):
            field = np.zeros(3)
            field[k] = sign * _FIELD
            result = _run(numbers, x, charge, unpaired, _FIELD_ACCURACY, field, start)
            ends.append(float(result.get("dipole")[k]))
        slopes.append((ends[0] - ends[1]) / (2 * _FIELD))
    return float(np.mean(slopes))
