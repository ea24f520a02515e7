"""From a list of SMILES to structures with properties: the recipe behind the data set qm9-gfn2.

RDKit ETKDGv3 (seed 7) gives a conformer, MMFF94 its rough shape, GFN2-xTB the minimum (largest
gradient component < 5e-4 Eh/bohr) and there energy, orbitals, dipole and polarisability. A
structure is kept only if its atoms are still joined as the SMILES says.

The list is cut into parts. A part is one file, written whole when it is done; a run that was killed
goes on with the parts that are missing and ends with the same bytes. What is built depends on
(SMILES, seed) alone, not on the order of work. Parts run in parallel through joblib, whose
backends carry them to a cluster; inside a part each molecule has a time limit of its own.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

from domains.molecules.guarded import guarded_map
from domains.molecules.io import read_rows
from domains.molecules.molecule import Molecule
from domains.molecules.perceive import keeps_graph
from domains.molecules.smiles import flat_smiles, from_rdkit, parse_smiles
from domains.molecules.table import MoleculeTable
from domains.molecules.tabular import Row
from domains.molecules.xtb import PROPERTIES, relax, single_point
from sciflow.errors import InputError, SciflowError
from sciflow.files import write_csv

__all__ = ["BuildError", "BuildResult", "build", "build_molecule", "embed"]

_RECIPE = "etkdg3-mmff94-gfn2-5e-4/1"
MAX_GRADIENT = 5e-4
"""Largest component of the gradient of a structure that is kept, Eh/bohr."""


class BuildError(SciflowError, RuntimeError):
    """No structure could be built for this molecule."""

    def __init__(self, reason: str):
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True)
class BuildResult:
    """What a run gave.

    Attributes:
        table: the structures, in the order of the list.
        rows: the place of each in the list, int64 ``[M]``.
        failures: ``(row, smiles, reason)`` of each of the others.
        path: where the table lies.
    """

    table: MoleculeTable
    rows: NDArray[np.int64]
    failures: list[tuple[int, str, str]]
    path: Path


def embed(smiles: str, seed: int = 7) -> Molecule:
    """A conformer of a SMILES: ETKDGv3, then MMFF94 where it has parameters for every atom.

    Riniker & Landrum, J. Chem. Inf. Model. 55, 2562 (2015); Halgren, J. Comput. Chem. 17, 490
    (1996). Stereochemistry written in the SMILES is kept. May run long: give it a time limit.

    Raises:
        InputError: not one closed-shell molecule.
        BuildError: no conformer was found.
    """
    mol = parse_smiles(smiles)
    parameters: Any = rdDistGeom.ETKDGv3()
    parameters.randomSeed = seed
    with rdBase.BlockLogs():
        if rdDistGeom.EmbedMolecule(mol, parameters) != 0:
            parameters.useRandomCoords = True
            if rdDistGeom.EmbedMolecule(mol, parameters) != 0:
                raise BuildError("no conformer found by ETKDG")
        if rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
            rdForceFieldHelpers.MMFFOptimizeMolecule(mol, maxIters=2000)
        Chem.SanitizeMol(mol)
    return from_rdkit(mol).replace(name=flat_smiles(mol))


def build_molecule(smiles: str, seed: int = 7) -> Molecule:
    """The whole recipe for one molecule; its name is its canonical SMILES.

    Raises:
        InputError: not one closed-shell molecule.
        BuildError: no conformer, no minimum, or a minimum with other bonds.
        XtbError: GFN2-xTB failed.
    """
    end = relax(embed(smiles, seed), MAX_GRADIENT)
    if not end.converged:
        raise BuildError(f"not relaxed after {end.steps} evaluations")
    if not keeps_graph(end.molecule):
        raise BuildError("the relaxed structure has other bonds than the SMILES")
    values = single_point(end.molecule, alpha=True)
    if not all(np.isfinite(values[key]) for key in PROPERTIES):
        raise BuildError("a computed property is not finite")
    return end.molecule.replace(properties={key: values[key] for key in PROPERTIES})


def build(
    smiles: str | Path | Sequence[str],
    out: str | Path,
    *,
    n_jobs: int = -1,
    part_size: int = 500,
    seed: int = 7,
    limit: int | None = None,
    timeout: float = 120.0,
    progress: bool = True,
) -> BuildResult:
    """Build every molecule of a list; resumable.

    Beside ``out`` lie ``<out>.parts/`` (delete it to start afresh) and ``<out>.failures.csv``.

    Args:
        smiles: a ``.csv``, ``.tsv``, ``.smi`` or ``.txt`` file, or the strings.
        out: the ``.npz`` to write.
        n_jobs: parts built at once; -1 is every core.
        part_size: molecules a part.
        seed: of ETKDG.
        limit: only the first so many.
        timeout: seconds for one molecule; then it is a failure.
        progress: show a bar with the rate and the number of failures.

    Raises:
        InputError: the list cannot be read or is empty, or no molecule could be built (the first
            reason is given).
    """
    from joblib import Parallel, delayed
    from tqdm import tqdm

    out = Path(out)
    if out.suffix != ".npz":
        raise InputError(f"the table is an .npz file; got {out.name!r}")
    if part_size < 1:
        raise InputError(f"part_size must be at least 1, got {part_size}")
    rows, failures = _listed(smiles, limit)
    folder = out.with_name(out.name + ".parts")
    folder.mkdir(parents=True, exist_ok=True)
    parts = [
        _Part(folder, k, rows[k : k + part_size], seed) for k in range(0, len(rows), part_size)
    ]
    missing = [part for part in parts if not part.path.is_file()]
    with tqdm(
        total=len(rows), desc="build", unit="mol", disable=not progress, smoothing=0.05
    ) as bar:
        bar.update(len(rows) - sum(len(part.rows) for part in missing))
        failed = 0
        for size, bad in Parallel(n_jobs=n_jobs, return_as="generator_unordered")(
            delayed(_build_part)(part, timeout) for part in missing
        ):
            failed += bad
            bar.set_postfix(failed=failed, refresh=False)
            bar.update(size)
    tables, kept = [], []
    for part in parts:
        lost = part.failures()
        gone = {row for row, _, _ in lost}
        failures += lost
        kept += [row for row, _ in part.rows if row not in gone]
        tables.append(MoleculeTable.load(part.path))
    failures.sort()
    _write_failures(out.with_name(out.name + ".failures.csv"), failures)
    if not kept:
        row, text, reason = failures[0]
        raise InputError(
            f"no molecule could be built; the first ({text!r}): {reason}", line=row + 1
        )
    table = MoleculeTable.concatenate(tables, out.stem)
    table.save(out)
    return BuildResult(table, np.array(kept, np.int64), failures, out)


def _listed(
    smiles: str | Path | Sequence[str], limit: int | None
) -> tuple[list[tuple[int, str]], list[tuple[int, str, str]]]:
    """The records to build as ``(row, smiles)``, and those that were already unreadable."""
    records: Sequence[Any] = read_rows(smiles) if isinstance(smiles, (str, Path)) else smiles
    rows, failures = [], []
    for row, record in enumerate(records[:limit]):
        text = record.smiles if isinstance(record, Row) else record
        if isinstance(text, str):
            rows.append((row, text))
        else:
            reason = getattr(text, "reason", f"SMILES must be text, got {type(text).__name__}")
            failures.append((row, "", reason))
    if not rows:
        raise InputError("no SMILES to build")
    return rows, failures


class _Part:
    """A run of the list; its files are named after what goes into them."""

    def __init__(self, folder: Path, first: int, rows: list[tuple[int, str]], seed: int):
        self.rows, self.seed = rows, seed
        content = "\n".join([_RECIPE, str(seed), *(f"{row} {text}" for row, text in rows)])
        digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        self.path = folder / f"part-{first:07d}-{digest}.npz"

    def failures(self) -> list[tuple[int, str, str]]:
        """What the part could not build."""
        text = self.path.with_suffix(".failures.csv").read_text("utf-8")
        return [(int(row), s, reason) for row, s, reason in list(csv.reader(io.StringIO(text)))[1:]]


def _build_part(part: _Part, timeout: float) -> tuple[int, int]:
    """Build one part and write it; gives its size and how many of it failed."""
    built: dict[int, Molecule] = {}
    failures = []
    tasks = [(text, part.seed) for _, text in part.rows]
    for outcome in guarded_map(_task, tasks, n_jobs=1, timeout=timeout):
        row, text = part.rows[outcome.index]
        if outcome.error is None:
            built[row] = outcome.value
        else:
            failures.append((row, text, outcome.error))
    molecules = [built[row] for row in sorted(built)]
    table = MoleculeTable.empty()
    if molecules:
        names = [molecule.name for molecule in molecules]
        table = MoleculeTable.from_molecules(molecules, "part", names)
    # The table is written last: where it exists the part is whole.
    _write_failures(part.path.with_suffix(".failures.csv"), sorted(failures))
    table.save(part.path)
    return len(part.rows), len(failures)


def _task(item: tuple[str, int]) -> Molecule:
    return build_molecule(*item)


def _write_failures(path: Path, failures: list[tuple[int, str, str]]) -> None:
    rows = (
        {"row": row, "smiles": smiles, "reason": " ".join(reason.split())}
        for row, smiles, reason in failures
    )
    write_csv(path, rows, ("row", "smiles", "reason"))
