"""Guidance of molecules, judged by GFN2-xTB: the same targets by every way to reach them.

    python -m benchmarks.molecule_guidance [--quick] [--n N] [--out FILE]

Targets as in benchmarks.molecules, drawn from p(size) p(property | size), with the same sizes and
seed for all rows: mean absolute error as sampled and at the minimum (``--relax``), over that of the
best constant per size, and validity. Rows:

* no guidance: the bundled model, asked for nothing;
* the same + training-free: a predictor of clean molecules at the clean estimate (TFG's mu);
* the same + classifier: the predictor of noisy molecules, atoms and bonds guided too;
* conditional: the bundled model as it samples by default, with classifier-free guidance;
* conditional + classifier;
* conditional, best of 4 by the predictor;
* the same with xTB forces at the clean estimate, so that samples come out near a minimum.

The predictor has seen no oracle but the data's, and the judge is the oracle itself, so nothing is
judged by what guided it. It was trained on the generator's own training molecules (not on another
half of the data): the judge does not depend on data at all.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import sciflow
from benchmarks.molecules import medians_by_size, plain, targeted
from domains.molecules.datasets import qm9_gfn2
from domains.molecules.evaluators import table
from domains.molecules.table import split
from sciflow.data import shared_data
from sciflow.guidance.weak.estimates import Unasked

Way = tuple[Callable[[sciflow.Model], sciflow.Model], dict[str, Any]]

BARE = "no guidance"
SHOWN = {
    "mae": "MAE", "ratio": "/ size only", "relaxed_mae": "relaxed MAE",
    "relaxed_ratio": "relaxed / size only", "validity": "valid", "relaxed": "relaxed",
    "calls": "calls",
}  # fmt: skip


def bare(model: sciflow.Model) -> sciflow.Model:
    return model.guided(Unasked)


def classifier(model: sciflow.Model) -> sciflow.Model:
    return model.guided("classifier")


def forces(model: sciflow.Model) -> sciflow.Model:
    return model.guided("forces", jobs=1)


WAYS: dict[str, Way] = {
    BARE: (bare, {"guidance": 0.0}),
    "no guidance + training-free": (
        lambda m: bare(m).guided("training-free"), {"guidance": 0.0}
    ),
    "no guidance + classifier": (lambda m: classifier(bare(m)), {"guidance": 0.0}),
    "conditional": (lambda m: m, {}),
    "conditional + classifier": (classifier, {"guidance": 0.0}),
    "conditional, best of 4": (lambda m: m, {"best_of": 4}),
    "conditional + forces, best of 4": (forces, {"best_of": 4}),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few samples: does it run?")
    parser.add_argument("--n", type=int, help="samples a row and property")
    parser.add_argument("--properties", default="gap,dipole,alpha")
    parser.add_argument("--rows", help="only rows whose name contains this; several by ;")
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=-1)
    parser.add_argument("--out", type=Path, help="also write the JSON there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    n = arguments.n or (16 if arguments.quick else 500)
    if shared_data() is None:
        raise SystemExit("targets and baseline come from the data set; set SCIFLOW_DATA to it")
    data = qm9_gfn2()
    train = data.subset(split(data)["train"])
    model = sciflow.load("molecules/qm9-gfn2")
    result: dict[str, Any] = {"n": n, "seed": arguments.seed, "digest": model.digest}
    for name in arguments.properties.split(","):
        rows = {}
        for label, (make, settings) in WAYS.items():
            if arguments.rows and label not in arguments.rows.split(";"):
                continue
            row = targeted(make(model), n, name, medians_by_size(train, name), arguments.jobs,
                           arguments.seed, **settings)  # fmt: skip
            rows[label] = row
            print(f"{name}, {label}: " + ", ".join(
                f"{title} {row[key]:.3g}" for key, title in SHOWN.items()), flush=True)  # fmt: skip
        print(f"\n{name}\n\n{table(rows)}\n", flush=True)
        result[name] = rows
    text = json.dumps(plain(result))
    if arguments.out:
        arguments.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
