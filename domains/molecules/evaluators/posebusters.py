"""PoseBusters' physical checks (an optional package), configuration ``mol_fast``.

Loading, sanitisation, InChI, connectedness, radicals, bond lengths and angles within distance-
geometry bounds, steric clashes, flatness of aromatic rings and double bonds, non-flatness of
saturated rings: a molecule passes when all of them do (Buttenschoen et al., Chem. Sci. 2024, 15,
3130, arXiv 2308.05777). ``mol_fast`` costs about 25 ms a molecule; ``mol`` adds an ensemble-energy
test at about 2 s. Their pass rates differ, as do versions, so both are part of the result's name.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import numpy as np
from rdkit import Chem, rdBase

from domains.molecules.evaluators.graph import strict_graph
from domains.molecules.molecule import Molecule
from domains.molecules.smiles import to_rdkit

__all__ = ["CONFIG", "available", "posebusters_rates"]

CONFIG = "mol_fast"

_FARTHEST = 1e4
"""Coordinates beyond this many Å are not given to PoseBusters' distance geometry."""


def available() -> str | None:
    """Version of the installed PoseBusters, ``None`` without it."""
    try:
        return version("posebusters")
    except PackageNotFoundError:
        return None


def posebusters_rates(molecules: Sequence[Molecule]) -> dict[str, float]:
    """Share of the molecules that pass every ``mol_fast`` check.

    Returns:
        ``posebusters_<version>_mol_fast``: passing molecules / all molecules; molecules that cannot
        be given to PoseBusters (no bonds or positions, not finite, no graph) or that make it raise
        count as failing. NaN for no molecules. Empty, with a warning, where the package is absent.
    """
    found = available()
    if found is None:
        warnings.warn(
            "PoseBusters is not installed, its checks are left out; "
            "pip install 'sciflow-gen[molecules]'",
            stacklevel=2,
        )
        return {}
    key = f"posebusters_{found}_{CONFIG}"
    if not molecules:
        return {key: float("nan")}
    from posebusters import PoseBusters

    judge = PoseBusters(config=CONFIG)
    with rdBase.BlockLogs(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        passed = [_passes(judge, m) for m in molecules]
    return {key: float(np.mean(passed))}


def _passes(judge: object, molecule: Molecule) -> bool:
    x = molecule.positions
    if x is None or not len(molecule) or not (np.abs(x) < _FARTHEST).all():
        return False
    try:
        strict_graph(molecule)
        graph: Chem.Mol = to_rdkit(molecule)
        checks = judge.bust(graph, None, None)  # type: ignore[attr-defined]
    # PoseBusters lets whatever its modules raise through; any of it means "not passed".
    except Exception:
        return False
    return bool(len(checks) and checks.to_numpy(bool).all())
