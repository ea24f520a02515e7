"""How well a model scaffolds the motifs of the published benchmarks.

Both ask for a motif within 1 Å of the native one, N, CA and C, and for a chain that folds into the
design, which no predictor here can judge (:mod:`domains.proteins.designability` calls one that is
installed). In its place stands clean geometry, which a chain needs to fold at all:

* every residue joined to the next, peptide bonds C-N of 1.33 ± 0.05 Å on average;
* at most one pair of CA atoms nearer than 3.6 Å for every hundred residues begun.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from domains.proteins.chain import Chain
from domains.proteins.evaluators import rows
from domains.proteins.motifs import MotifProblem, motifbench, rfdiffusion_benchmark
from sciflow.domain import Progress
from sciflow.errors import InputError
from sciflow.model import Model

__all__ = ["is_clean", "scaffold_benchmark", "summary"]

_SOLVED = 1.0
"""Ångström."""


def is_clean(chain: Chain) -> bool:
    """Whether a design has clean geometry; see the module."""
    if not (chain.complete and all(part.unbroken for part in chain.parts())):
        return False
    row = rows([chain])[0]
    bond = row.get("bond_CN", math.nan)
    return abs(bond - 1.33) <= 0.05 and row["clashes"] <= math.ceil(len(chain) / 100)


def scaffold_benchmark(
    model: Model,
    n: int,
    seed: int = 0,
    problems: Sequence[MotifProblem] | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Scaffold every problem, and say how well; one row a problem.

    ``problem``, ``pieces`` (of the motif), ``motif_residues``, ``designs`` (asked for), ``length``
    (mean), ``motif_rmsd`` (median, Å), ``within`` (share within 1 Å), ``clean`` (share of clean
    geometry), ``solved`` (share of both), ``rama_favoured`` and ``rama_outlier`` (general grid,
    mean), ``cpu_seconds`` (a design) and ``skipped``, why a model cannot take the problem, else
    empty. Shares are of all designs asked for. Design i of a problem depends on (seed, i) alone.

    Args:
        model: of backbones.
        n: designs a problem.
        seed: of lengths and noise.
        problems: default those of RFdiffusion and MotifBench in the shared data.
        progress: told of problems done.
        settings: further ones of :meth:`sciflow.model.Model.sample`.

    Raises:
        InputError: the shared data are not on this machine.
    """
    if problems is None:
        problems = [*rfdiffusion_benchmark(), *motifbench()]
    table = []
    for done, problem in enumerate(problems, start=1):
        motif = problem.contig.motif
        row: dict[str, Any] = {
            "problem": problem.name,
            "pieces": int(motif.joints.sum()) + 1,
            "motif_residues": len(motif),
            "designs": n,
            "skipped": "",
        }
        try:
            samples = model.sample(n, seed=seed, task={"contig": problem.contig}, **settings)
        except InputError as error:
            table.append({**row, "skipped": error.reason})
        else:
            deviations = np.array(samples.columns.get("motif_rmsd", [math.nan] * n))
            near = deviations <= _SOLVED
            clean = np.array([r is not None and is_clean(r) for r in samples.records])
            each = rows(samples.kept)
            table.append(row | {
                "length": _mean(r["length"] for r in each),
                "motif_rmsd": float(np.nanmedian(deviations)) if len(each) else math.nan,
                "within": float(near.mean()),
                "clean": float(clean.mean()),
                "solved": float((near & clean).mean()),
                "rama_favoured": _mean(r.get("rama_general_favoured", math.nan) for r in each),
                "rama_outlier": _mean(r.get("rama_general_outlier", math.nan) for r in each),
                "cpu_seconds": samples.cpu_seconds / n,
            })  # fmt: skip
        if progress is not None:
            progress(done, len(problems))
    return table


def summary(table: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Of the rows of :func:`scaffold_benchmark`: means of their shares, problems counting alike.

    ``problems``, ``skipped``, ``within``, ``clean``, ``solved``, and ``any_solved``, the share of
    problems with at least one solved design. Problems that were skipped count as not solved.
    """
    if not table:
        return {}
    values = {k: [float(row.get(k, 0.0)) for row in table] for k in ("within", "clean", "solved")}
    return {
        "problems": float(len(table)),
        "skipped": float(sum(bool(row["skipped"]) for row in table)),
        **{k: float(np.mean(v)) for k, v in values.items()},
        "any_solved": float(np.mean([v > 0 for v in values["solved"]])),
    }


def _mean(values: Any) -> float:
    found = [float(v) for v in values]
    return float(np.mean(found)) if found else math.nan
