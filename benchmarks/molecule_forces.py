"""Forces on generated molecules: guided, or relaxed afterwards, at equal calls of GFN2-xTB.

    python -m benchmarks.molecule_forces [--n N] [--chemguide N] [--seed S] [--out FILE]

Median over molecules of the root mean square of all components of the GFN2-xTB force (eV/A), the
share of molecules that are stable by the EDM rule, and xTB calls a molecule. Rows, on the same
noise:

* no guidance: the bundled model;
* guided: ``--guide forces``;
* relaxed: the unguided molecules after as many xTB calls of L-BFGS from the model Hessian as
  guidance made on average (what one would do without guidance);
* ChemGuide: the published protocol on our model (Shen et al. 2025), 1,000 calls, in the last 400
  of which one random direction a call, forces at three points, 1,200 xTB calls a molecule, moves of
  the clean estimate by scale times the per-atom least-squares gradient. The calls are of DDIM:
  noise was coupled with the data here, so that there are no ancestral steps. Its step is 1e-2 A:
  the published 1e-6 with coordinates of five decimals resolves nothing. Few molecules, for the time
  it takes; the row "no guidance, 1,000 calls" is of the same ones.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import sciflow
from domains.molecules.evaluators import edm_stability, table
from domains.molecules.forces import force_rms, xtb_forces
from domains.molecules.molecule import Molecule
from domains.molecules.relaxation import lbfgs
from domains.molecules.xtb import BOHR, single_point
from sciflow.denoisers import Denoiser
from sciflow.errors import SciflowError
from sciflow.guidance import LeastSquares, OracleGuidance

CHEMGUIDE = {"steps": 1000, "method": "ddim", "grid": "time", "restarts": 0}
GUIDED_SHARE = 0.4
SCALE = 1e-4


class Spent(Exception):
    """All calls were made."""


def relaxed(molecule: Molecule, calls: int) -> Molecule:
    """Where L-BFGS has got to after so many xTB calls: the lowest energy seen."""
    seen: list[tuple[float, NDArray[np.float64]]] = []

    def energy(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        if len(seen) == calls:
            raise Spent
        found = single_point(molecule.replace(positions=x * BOHR), forces=True)
        seen.append((found["energy"], x.copy()))
        return found["energy"], -found["forces"]

    with contextlib.suppress(Spent, SciflowError):
        lbfgs(energy, molecule.numbers, molecule.positions / BOHR, max_gradient=1e-6)
    if not seen:
        return molecule
    return molecule.replace(positions=min(seen, key=lambda pair: pair[0])[1] * BOHR)


def judged(molecules: Sequence[Molecule], calls: float) -> dict[str, float]:
    """A row of the table."""
    sizes = np.array(force_rms(molecules, 1))
    known = sizes[np.isfinite(sizes)]
    return {
        "molecules": len(molecules),
        "median_force": float(np.median(known)) if len(known) else float("nan"),
        "upper_quartile": float(np.quantile(known, 0.75)) if len(known) else float("nan"),
        "stable": float(np.mean([edm_stability(m)[2] for m in molecules])),
        "oracle_failed": float(np.mean(~np.isfinite(sizes))),
        "oracle_calls": calls,
    }


def chemguide(model: sciflow.Model) -> sciflow.Model:
    def wrap(denoiser: Denoiser) -> Denoiser:
        return OracleGuidance(
            denoiser, xtb_forces(model.config, 1), LeastSquares(directions=1, step=1e-2), "coords",
            SCALE, interval=(0.0, GUIDED_SHARE), budget=1200,
        )  # fmt: skip

    return model.guided(wrap)


def oracle_calls(samples: sciflow.Samples) -> float:
    """Of one molecule, on average."""
    (cost,) = samples.settings["guide_costs"].values()
    return float(cost["oracle_calls"]) / len(samples)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--n", type=int, default=64, help="molecules a row")
    parser.add_argument("--chemguide", type=int, default=8, help="molecules of its rows; 0 is none")
    parser.add_argument("--seed", type=int, default=102)
    parser.add_argument("--out", type=Path, help="also write the JSON there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = sciflow.load("molecules/qm9-gfn2")
    rows: dict[str, Any] = {}

    def add(label: str, molecules: Sequence[Molecule], calls: float) -> None:
        rows[label] = judged(molecules, calls)
        print(label, rows[label], flush=True)

    bare = model.sample(arguments.n, seed=arguments.seed)
    add("no guidance", bare.kept, 0)
    guided = model.guided("forces", jobs=1).sample(arguments.n, seed=arguments.seed)
    calls = oracle_calls(guided)
    add("guided", guided.kept, calls)
    add("relaxed afterwards", [relaxed(m, round(calls)) for m in bare.kept], round(calls))
    if arguments.chemguide:
        few: dict[str, Any] = {"seed": arguments.seed, "sampler": CHEMGUIDE}
        add("no guidance, 1,000 calls", model.sample(arguments.chemguide, **few).kept, 0)
        theirs = chemguide(model).sample(arguments.chemguide, **few)
        add("ChemGuide, 1,000 calls", theirs.kept, oracle_calls(theirs))
    print("\n" + table(rows))
    text = json.dumps({"digest": model.digest, "seed": arguments.seed, "rows": rows})
    if arguments.out:
        arguments.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
