"""Molecules: quality against network calls, CPU cost, and property targets checked by GFN2-xTB.

    python -m benchmarks.molecules [--quick] [--part targets] [--model NAME] [--out FILE]

Part 1, unconditional: n samples at 10, 20, 50 and 100 network calls beside the data's own row
(held-out molecules). One thread; CPU seconds include decoding, not scoring.

Part 2, targets: for each of gap, dipole and polarisability, 500 samples whose size and target are
drawn from p(size) p(property | size), conditioned on that property alone, one candidate a sample
and the best of 4 by the model's predictor of properties; mean absolute error of the oracle's value.
Beside it the size-only baseline (the best constant per size, i.e. the training median, for the same
targets), the error of the same targets shuffled, and validity. Samples that the oracle cannot
compute have no error; their fraction is reported. "relaxed": the valid samples at the nearest
minimum of GFN2-xTB, as `sciflow sample --relax` gives them; the data are such minima. Its baseline
is taken over the same samples.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

import sciflow
from domains.molecules.adapter import Molecules
from domains.molecules.datasets import qm9_gfn2
from domains.molecules.evaluators import Identities, evaluate, table
from domains.molecules.oracle import XtbOracle
from domains.molecules.table import MoleculeTable, split
from sciflow.data import shared_data
from sciflow.targets import Target

COLUMNS = {
    "edm_atom_stability": "atom stable",
    "edm_molecule_stability": "mol stable",
    "validity": "valid",
    "uniqueness": "unique",
    "novelty": "novel",
    "cpu_s": "CPU s / sample",
    "cpu_s_per_valid": "CPU s / valid",
}
JUDGES = ("edm", "valence", "chemistry")
ANY = Target(-math.inf, math.inf)
CANDIDATES = 4


def unconditional(
    model: sciflow.Model, n: int, calls: list[int], identities: Identities | None
) -> dict[str, dict[str, float]]:
    """One row a number of network calls."""
    rows = {}
    for steps in calls:
        begin = time.process_time()
        samples = model.sample(n, seed=1, sampler={"steps": steps})
        cpu = time.process_time() - begin
        row = evaluate(samples.kept, None, identities, JUDGES)
        valid = row["validity"] * len(samples.kept)
        row |= {"cpu_s": cpu / n, "cpu_s_per_valid": cpu / valid if valid else math.inf}
        row |= {"calls": samples.calls, "dropped": len(samples.dropped)}
        rows[f"{steps} calls"] = row
    return rows


def targeted(
    model: sciflow.Model, n: int, name: str, medians: dict[int, float], jobs: int, seed: int = 2,
    **settings: Any,
) -> dict[str, Any]:  # fmt: skip
    """Errors of samples asked for ``name``, drawn as p(property | size); settings of sampling."""
    asked = model.sample(n, target={name: ANY}, seed=seed, **settings)
    goals = np.array(asked.targets[name])
    answers = XtbOracle().evaluate(asked.kept, (name,), n_jobs=jobs)
    kept = [i for i, r in enumerate(asked.records) if r is not None]
    errors, guesses, sizes = [], [], []
    for i, answer in zip(kept, answers, strict=True):
        record = asked.records[i]
        guesses.append(abs(medians.get(len(record), goals.mean()) - goals[i]))
        sizes.append(len(record))
        if answer.ok:
            errors.append(abs(answer.values[name] - goals[i]))
    verdicts = Molecules().verdicts(asked.kept)
    valid = [not v for v in verdicts]
    valid_errors = [
        abs(a.values[name] - goals[i])
        for i, a, ok in zip(kept, answers, valid, strict=True)
        if a.ok and ok
    ]
    mae, baseline = float(np.mean(errors)), float(np.mean(guesses))
    relaxed = asked.relaxed(jobs=jobs)
    rows = [i for i, v in zip(kept, valid, strict=True) if v and relaxed.records[i] is not None]
    ends = XtbOracle().evaluate([relaxed.records[i] for i in rows], (name,), n_jobs=jobs)
    pairs = [(i, end.values[name]) for i, end in zip(rows, ends, strict=True) if end.ok]
    relaxed_mae = float(np.mean([abs(value - goals[i]) for i, value in pairs]))
    by_size = dict(zip(kept, guesses, strict=True))
    return {
        "mae": mae,
        "mae_valid_only": float(np.mean(valid_errors)) if valid_errors else math.nan,
        "size_only": baseline,
        "ratio": mae / baseline,
        "shuffled": float(np.abs(goals - np.roll(goals, 1)).mean()),
        "validity": float(np.mean(valid)),
        "oracle_failed": 1 - len(errors) / n,
        "calls": asked.calls,
        "relaxed_mae": relaxed_mae,
        "relaxed_ratio": relaxed_mae / float(np.mean([by_size[i] for i, _ in pairs])),
        "relaxed": len(pairs) / n,
        "relax_rmsd_median": float(np.nanmedian(relaxed.columns["relax_rmsd"])),
        "relax_drop_median": float(np.nanmedian(relaxed.columns["relax_drop"])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few samples: does it run?")
    parser.add_argument("--model", default="molecules/qm9-gfn2")
    parser.add_argument("--guidance", type=float, default=None)
    parser.add_argument("--n", type=int, default=None, help="unconditional samples a row")
    parser.add_argument("--part", choices=["unconditional", "targets", "both"], default="both")
    parser.add_argument("--jobs", type=int, default=-1)
    parser.add_argument("--out", type=Path, default=None, help="also write the JSON here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    n = arguments.n or (50 if arguments.quick else 1000)
    n_target = 24 if arguments.quick else 500
    if shared_data() is None:
        raise SystemExit("this benchmark compares with the data set; set SCIFLOW_DATA to it")
    data = qm9_gfn2()
    parts = split(data)
    train, test = data.subset(parts["train"]), data.subset(parts["test"])
    identities = Identities.of(train.smiles or [])
    model = sciflow.load(arguments.model)
    if arguments.guidance is not None:
        model.config["guidance"] = arguments.guidance

    result = {"model": arguments.model, "digest": model.digest, "n": n, "n_target": n_target}
    if arguments.part != "targets":
        calls = [10, 50] if arguments.quick else [10, 20, 50, 100]
        rows = {"data": evaluate(list(test), None, identities, JUDGES)}
        rows |= unconditional(model, n, calls, identities)
        shown = {
            name: {title: row[key] for key, title in COLUMNS.items() if key in row}
            for name, row in rows.items()
        }
        print(f"Unconditional, {n} samples a column, one thread\n\n{table(shown)}\n", flush=True)
        result["unconditional"] = rows
    if arguments.part != "unconditional":
        goals = {
            f"{name}, best of {k}" if k > 1 else name: targeted(
                model, n_target, name, medians_by_size(train, name), arguments.jobs, best_of=k
            )
            for name in ("gap", "dipole", "alpha")
            for k in (1, CANDIDATES)
        }
        print(f"Targets drawn as p(property | size), {n_target} samples each\n\n{table(goals)}\n")
        result["targets"] = goals
    text = json.dumps(plain(result))
    if arguments.out:
        arguments.out.write_text(text + "\n")
    print(text)


def medians_by_size(train: MoleculeTable, name: str) -> dict[int, float]:
    """The best guess of a property from the size alone, as absolute errors go."""
    values: dict[int, list[float]] = defaultdict(list)
    for size, value in zip(train.n_atoms.tolist(), train.properties[name].tolist(), strict=True):
        values[size].append(value)
    return {size: median(v) for size, v in values.items()}


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    main()
