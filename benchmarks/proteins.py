"""Protein backbones: ours beside held-out real chains and other generators' samples.

    python -m benchmarks.proteins [--quick] [--only NAME,NAME] [--model-of NAME=FOLDER]
                                  [--compose RULE=NAME+NAME]
                                  [--n 200] [--lengths 50-120] [--target NAME=VALUE] [--motifs 1]
                                  [--work FOLDER] [--jobs 1] [--out FILE]

Rows, all read or built as chains and judged by the same evaluators:

* real chains of the held-out clusters (valid and test), and the same residues in random order:
  torsions and bond angles drawn one by one from real chains. That has a natural Ramachandran plot
  and no fold, and shows which columns can be had for nothing;
* samples of others (``proteins/peer_samples`` of the shared data): few, of other lengths;
* ours: the bundled models, those of ``--model-of``, and superpositions of two of these
  (``--compose or=alpha+beta``; rules or, and, average; without it all three of alpha and beta).
  ``--only angles,frames`` leaves the others out.

Lengths of ours are those of training chains within ``--lengths``. Samples are kept as PDB in
``--work``, so an interrupted run goes on; unsound ones count. CPU seconds hold all of sampling, one
thread; those of others are quoted from our notes, measured on such a machine with their code,
random weights and published numbers of steps. Novelty is the highest TM-score to a training chain,
a lower bound (:func:`domains.proteins.evaluators.similarity.novelty`). Below the table are designs,
``--motifs`` for each motif of RFdiffusion's benchmark and MotifBench
(:func:`domains.proteins.motif_benchmark.scaffold_benchmark`).

The last line is JSON: set → score.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sciflow
from domains.proteins.chain import Chain
from domains.proteins.datasets import backbones
from domains.proteins.ensembles import read_ensemble, write_ensemble
from domains.proteins.evaluators import evaluate
from domains.proteins.evaluators.similarity import diversity, novelty
from domains.proteins.io import read_chains
from domains.proteins.rebuild import internal_coordinates, rebuild
from domains.proteins.table import ChainTable, split
from sciflow.bundled import bundled_models
from sciflow.data import shared_data
from sciflow.errors import InputError
from sciflow.files import write_json
from sciflow.subsets import evenly_spread
from sciflow.targets import Target, parse_targets

REAL = "real, held-out clusters"
OURS = {
    "angles": "proteins/backbones",
    "frames": "proteins/frames",
    "alpha": "proteins/alpha",
    "beta": "proteins/beta",
}
COMPOSED = ("or=alpha+beta", "and=alpha+beta", "average=alpha+beta")
WHOLE = ("angles", "frames")
"""Bundled models, compositions of them, and those that stand for all chains: they are judged, and
asked for motifs too."""

COLUMNS = {
    "chains": ("n", "{:.0f}"),
    "length": ("length", "{:.0f}"),
    "rama_general_favoured": ("Rama fav. %", "{:.1%}"),
    "rama_general_outlier": ("outl. %", "{:.1%}"),
    "bond_C-N": ("C-N Å", "{:.3f}"),
    "bond_C-N_sd": ("± Å", "{:.3f}"),
    "clashes_per_100": ("CA clash/100", "{:.2f}"),
    "backbone_clashes_per_100": ("atom clash/100", "{:.1f}"),
    "helix": ("helix", "{:.2f}"),
    "strand": ("strand", "{:.2f}"),
    "rg_ratio": ("Rg ratio", "{:.2f}"),
    "contact_order": ("cont. order", "{:.2f}"),
    "tm_pairwise": ("TM pair", "{:.2f}"),
    "novelty_max_tm": ("TM train", "{:.2f}"),
    "cpu_s_64": ("CPU s, 64", "{:.1f}"),
    "cpu_s_128": ("CPU s, 128", "{:.1f}"),
}
"""Score → title and format."""

PEER_SECONDS = {
    "FoldingDiff, 1000 steps": (27, 57),
    "FrameDiff, 500 steps": (85, 349),
    "FrameFlow, 100 steps": (25, 102),
    "Genie, 1000 steps": (309, 1464),
    "Protpardelle backbone, 500 steps": (12, 18),
}
"""CPU seconds a backbone of 64 and of 128 residues; see the module."""

PART = 20
PAIRS, MOST, NEAREST = 500, 50, 60
"""TM-scores of a set: pairs of it; chains of it that are looked up, each among so many known."""
TRAINED = {"rg_ratio": 1.25, "coil": 0.6}
"""What training takes of whole chains; the real rows are filtered alike."""


def real_chains(
    table: ChainTable, parts: Sequence[str], lengths: tuple[int, int], n: int
) -> list[Chain]:
    """At most ``n`` compact unbroken chains of sides of the split, evenly spread."""
    sides = split(table)
    rows = np.sort(np.concatenate([sides[part] for part in parts]))
    found = table.subset(rows).select(lengths, **TRAINED)
    return [found[i] for i in evenly_spread(len(found), n)]


def shuffled(chains: Sequence[Chain], seed: int = 0) -> list[Chain]:
    """Chains of the same lengths, each residue's angles from a random residue of ``chains``."""
    angles = [internal_coordinates(torch.from_numpy(c.backbone[None]).double()) for c in chains]
    # The torsions at the ends are not defined.
    torsions, bends = (torch.cat([a[k][0, 1:-1] for a in angles]) for k in range(2))
    rng = np.random.default_rng(seed)
    made = []
    for chain in chains:
        rows = torch.from_numpy(rng.integers(len(torsions), size=len(chain)))
        made.append(Chain(rebuild(torsions[rows][None], bends[rows][None])[0].numpy()))
    return made


def peers() -> dict[str, list[Chain]]:
    """Samples of others, a set a folder; of complexes the first chain, which is the design."""
    root = shared_data()
    if root is None:
        return {}
    sets = {}
    for folder in sorted((root / "proteins" / "peer_samples").glob("*/")):
        sets[folder.name] = [read_chains(p).chains[0] for p in sorted(folder.glob("*.pdb"))]
    return sets


def likeness(chains: Sequence[Chain], known: Sequence[Chain], jobs: int) -> dict[str, float]:
    """TM-scores between chains and to known ones, of evenly spread pairs and chains."""
    values = diversity(chains, PAIRS, clusters=False, jobs=jobs)
    some = [chains[i] for i in evenly_spread(len(chains), MOST)]
    best = novelty(some, known, most=NEAREST, jobs=jobs)
    # None of the known chains is as long as some peers' are.
    if np.isfinite(best).any():
        values["novelty_max_tm"] = float(np.nanmean(best))
    return values


def sampled(
    model: sciflow.Model, n: int, targets: Mapping[str, Target | float | tuple[float, float]],
    seed: int, folder: Path, method: str | None = None,
) -> list[Chain]:  # fmt: skip
    """Samples 0 … n − 1, a part a file; parts that are there are read."""
    asked = [model.digest, sorted((k, str(v)) for k, v in targets.items()), seed, model.guides,
             model.sampler.config(), method]  # fmt: skip
    folder = folder / hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    chains = []
    for first in range(0, n, PART):
        file = folder / f"{first:05d}-{min(first + PART, n):05d}.pdb"
        if not file.is_file():
            made = model.sample(min(PART, n - first), targets, seed, first=first,
                                sampler={"method": method} if method else None)  # fmt: skip
            for number, reason in made.dropped.items():
                print(f"{folder}: sample {number} dropped: {reason}", file=sys.stderr)
            write_ensemble(file, made.kept)
        if "ATOM" in file.read_text():
            chains += read_ensemble(file).chains
    return chains


def seconds(model: sciflow.Model, length: int, n: int, method: str | None) -> float:
    """CPU seconds a backbone, one thread, everything from noise to coordinates."""
    settings = {"method": method} if method else None
    model.sample(1, {"length": length}, sampler=settings)
    begin = time.process_time()
    model.sample(n, {"length": length}, seed=1, sampler=settings)
    return (time.process_time() - begin) / n


def scaffolded(model: sciflow.Model, n: int, seed: int, quick: bool) -> dict[str, float]:
    """Shares of designs around the benchmark motifs: within 1 Å, clean geometry, both."""
    from domains.proteins.motif_benchmark import scaffold_benchmark, summary
    from domains.proteins.motifs import rfdiffusion_benchmark

    problems = rfdiffusion_benchmark()[:2] if quick else None
    found = summary(scaffold_benchmark(model, n, seed, problems))
    return {f"motif_{key}": value for key, value in found.items()}


def composed(text: str, models: Mapping[str, str]) -> tuple[str, sciflow.Model]:
    """``or=alpha+beta`` as a model, named so."""
    rule, _, pair = text.partition("=")
    one, _, other = pair.partition("+")
    for name in (one, other):
        if name not in models:
            raise InputError(f"--compose {text}: no model {name!r}; give it by --model-of")
    model = sciflow.load(models[one])
    both = model.guided("superposition", model=models[other], rule=rule)
    both.digest = f"{model.digest}/{sciflow.load(models[other]).digest}"
    return f"{one} {rule} {other}", both


def chosen(
    own: Mapping[str, str], only: str | None, compose: Sequence[str]
) -> tuple[dict[str, str], list[str]]:
    """Models by name, those that are bundled and a user's ``own``, and what is made of two."""
    models = {name: known for name, known in OURS.items() if known in bundled_models()} | dict(own)
    wanted = list(models) if only is None else only.split(",")
    unknown = [name for name in wanted if name not in models]
    if unknown or not models:
        raise SystemExit(
            f"no model {', '.join(unknown) or 'is bundled'}; give --model-of NAME=FOLDER"
            + (f", or of {', '.join(models)}" if models else "")
        )
    models = {name: models[name] for name in wanted}
    if not compose:
        compose = [text for text in COMPOSED if {"alpha", "beta"} <= set(models)]
    return models, list(compose)


def judged(scores: Mapping[str, float], real: Mapping[str, float]) -> dict[str, bool]:
    """What was asked of a backbone model, one by one; see issue 6."""
    content = scores["helix"] + scores["strand"]
    return {
        "Ramachandran favoured ≥ 88 %": scores.get("rama_general_favoured", math.nan) >= 0.88,
        "outliers ≤ 4 %": scores.get("rama_general_outlier", math.nan) <= 0.04,
        "C-N 1.33 ± 0.05 Å": abs(scores["bond_C-N"] - 1.33) + scores["bond_C-N_sd"] <= 0.05,
        "below 1 clash / 100": scores["clashes_per_100"] < 1,
        "helix within the real spread": abs(scores["helix"] - real["helix"]) <= real["helix_sd"],
        "strand within the real spread": abs(scores["strand"] - real["strand"])
        <= real["strand_sd"],
        "helix and strand ≥ 45 %": content >= 0.45,
        "Rg ratio ≤ 1.2": scores["rg_ratio"] <= 1.2,
        "pairwise TM < 0.6": scores.get("tm_pairwise", math.nan) < 0.6,
    }


def line(name: str, scores: Mapping[str, float]) -> str:
    cells = []
    for key, (title, form) in COLUMNS.items():
        value = form.format(scores[key]) if key in scores else "–"
        cells.append(value.rjust(len(title)))
    return f"| {name:40} | {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few short samples: does it run?")
    parser.add_argument("--n", type=int, help="samples of each of ours, and most real chains")
    parser.add_argument("--lengths", default="50-120", help="residues, LOW-HIGH")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", metavar="NAMES", help="rows of ours, e.g. angles,frames")
    parser.add_argument("--model-of", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--compose", action="append", default=[], metavar="RULE=NAME+NAME")
    parser.add_argument("--target", action="append", default=[], metavar="NAME=VALUE",
                        help="asked of ours; strand=.. is the data's own spread")  # fmt: skip
    parser.add_argument("--motifs", type=int, default=1, help="designs a motif; 0 leaves them out")
    parser.add_argument("--work", type=Path, default=Path("proteins-benchmark"))
    parser.add_argument("--jobs", type=int, default=1, help="processes of TM-scores")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args(argv)
    if shared_data() is None:
        raise SystemExit("this benchmark compares with real chains; set SCIFLOW_DATA to the data")
    torch.set_num_threads(1)
    n = options.n or (6 if options.quick else 200)
    low, high = (50, 64) if options.quick else map(int, options.lengths.split("-"))
    own = dict(text.split("=", 1) for text in options.model_of)
    models, compositions = chosen(own, options.only, options.compose)

    table = backbones()
    known = real_chains(table, ["train"], (40, 128), 200 if options.quick else len(table))
    real = real_chains(table, ["valid", "test"], (low, high), n)
    targets = {"length": Target(low, high), **parse_targets(options.target)}
    result: dict[str, dict[str, Any]] = {}

    def row(name: str, chains: Sequence[Chain], **more: float) -> None:
        result[name] = more | evaluate(chains) | likeness(chains, known, options.jobs)
        print(line(name, result[name]), flush=True)

    print("|".join(["", " set".ljust(42), *(f" {t} " for t, _ in COLUMNS.values()), ""]))
    print("|".join(["", "-" * 42, *("-" * (len(t) + 1) + ":" for t, _ in COLUMNS.values()), ""]))
    row(REAL, real)
    row("real residues in random order", shuffled(real))
    for name, chains in peers().items():
        row(name, chains)
    ours: dict[str, tuple[sciflow.Model, str | None]] = {
        name: (sciflow.load(folder), None) for name, folder in models.items()
    }
    # Densities are followed along the reverse process.
    ours |= {name: (model, None if "average" in name else "ddpm")
             for name, model in (composed(text, models) for text in compositions)}  # fmt: skip
    for name, (model, method) in ours.items():
        chains = sampled(model, n, targets, options.seed, options.work / name, method)
        times = {f"cpu_s_{size}": seconds(model, size, 1 if options.quick else 8, method)
                 for size in (64, 128)}  # fmt: skip
        row(name, chains, **times)
    for name, (short, long) in PEER_SECONDS.items():
        print(line(f"{name} (notes)", {"cpu_s_64": short, "cpu_s_128": long}))
    whole = [name for name in (*WHOLE, *own) if name in models]
    for name in whole:
        verdict = judged(result[name], result[REAL])
        missed = [what for what, reached in verdict.items() if not reached]
        print(f"\n{name}: {sum(verdict.values())} of {len(verdict)} reached"
              + (f"; missed: {', '.join(missed)}" if missed else ""))  # fmt: skip
    for name in whole if options.motifs else ():
        found = scaffolded(ours[name][0], options.motifs, options.seed, options.quick)
        result[name] |= found
        print(f"\n{name}, {found['motif_problems']:.0f} motifs, {options.motifs} designs each: "
              f"motif within 1 Å in {found['motif_within']:.0%}, clean geometry in "
              f"{found['motif_clean']:.0%}, both in {found['motif_solved']:.0%}; "
              f"{found['motif_skipped']:.0f} motifs cannot be given to this model")  # fmt: skip
    told = {name: {k: float(f"{v:.5g}") if math.isfinite(v) else None for k, v in scores.items()}
            for name, scores in result.items()}  # fmt: skip
    if options.out:
        write_json(options.out, told)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
