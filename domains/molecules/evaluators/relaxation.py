"""How far a sample lies from the nearest minimum of GFN2-xTB, in Å and in kcal/mol.

Each molecule is relaxed from where the model put it, in worker processes with a time limit.
Reported are the all-atom RMSD after the best rotation and translation (mirror images are not
folded, atoms keep their numbering) and the energy released on the way. A good generator has both
near zero; data that were relaxed at this very level have them at the optimiser's tolerance.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from domains.molecules.molecule import Molecule

__all__ = ["MOST", "relaxation_summary"]

MOST = 200
"""Molecules relaxed unless told otherwise; each costs about 0.1 CPU-s, a poor one up to 1 s."""

KCAL_PER_HARTREE = 627.5094740631
"""1 Eh in kcal/mol (CODATA 2018)."""


def relaxation_summary(
    molecules: Sequence[Molecule],
    most: int | None = MOST,
    n_jobs: int = -1,
    timeout: float = 60.0,
    progress: bool = False,
) -> dict[str, float]:
    """Relax the first ``most`` molecules (all for ``None``) and summarise the change.

    Args:
        molecules: with positions (Å); the sum of the formal charges is the charge.
        most: how many to relax.
        n_jobs: worker processes; -1 is every core.
        timeout: seconds for one molecule.
        progress: show a bar with the rate.

    Returns:
        ``relax_n``: molecules tried. ``relax_converged``: those that reached a minimum / tried; the
        rest are radicals, failed or endless calculations, or no structures at all.
        ``relax_rmsd_median``, ``relax_rmsd_mean`` (Å), ``relax_drop_median``, ``relax_drop_mean``
        (kcal/mol): over the converged ones. NaN where there are none. The mean is drawn by the few
        worst; quote the median with the converged share.
    """
    from domains.molecules.oracle import XtbOracle

    tried = list(molecules if most is None else molecules[:most])
    results = XtbOracle().relax(tried, n_jobs=n_jobs, timeout=timeout, progress=progress)
    ended = [result.values for result in results if result.ok]
    rmsd = np.array([values["rmsd"] for values in ended])
    drop = np.array([values["energy_drop"] for values in ended]) * KCAL_PER_HARTREE
    nan = float("nan")
    return {
        "relax_n": float(len(tried)),
        "relax_converged": len(ended) / len(tried) if tried else nan,
        "relax_rmsd_median": float(np.median(rmsd)) if ended else nan,
        "relax_rmsd_mean": float(np.mean(rmsd)) if ended else nan,
        "relax_drop_median": float(np.median(drop)) if ended else nan,
        "relax_drop_mean": float(np.mean(drop)) if ended else nan,
    }
