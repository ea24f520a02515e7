"""Inverse folding: what a model of frames and residues knows of a sequence from its backbone.

    python -m benchmarks.inverse_folding [--quick] [--model NAME] [--n 200] [--designs 2] [--out F]

Chains are those of the test clusters at 30 % identity (``backbones``), whole, 40 to 128 residues.

* ``perplexity``: the bound on −log p(sequence | backbone) a residue
  (:func:`domains.proteins.perplexity.folded_perplexity`), beside the bundled model of sequences,
  which does not see the backbone, and n-grams counted on the training clusters. As a control every
  sequence is moved on by one residue along its backbone: a model that reads composition alone would
  not notice.
* ``recovery``: share of a native sequence that designs repeat, mean over chains, at two
  temperatures; beside it what the training composition gives, and its most frequent residue.

ProteinMPNN (Dauparas et al. 2022) reports 52 % recovery on its own test set of whole complexes,
trained on some hundred times as much and not run here. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sciflow
from domains.proteins.adapter import Proteins
from domains.proteins.chain import Chain
from domains.proteins.datasets import backbones
from domains.proteins.encoding import Encoding
from domains.proteins.evaluators.sequences import composition
from domains.proteins.inverse_folding import InverseFolding
from domains.proteins.perplexity import baselines, folded_perplexity, perplexity
from domains.proteins.table import split
from sciflow.bundled import bundled_models
from sciflow.data import shared_data
from sciflow.files import write_json
from sciflow.model import Model
from sciflow.random import Draws

TEMPERATURES = (1.0, 0.1)
STEPS = 40
SEQUENCES = "proteins/sequences"


def of_perplexity(model: Model, chains: Sequence[Chain], train: Sequence[str]) -> dict[str, Any]:
    """Bounds with the backbone and without, and n-grams, on the same chains."""
    encoding = Encoding.from_config(model.config["encoding"])
    sequences = [c.sequence for c in chains]
    moved = [c.replace(sequence=c.sequence[-1] + c.sequence[:-1]) for c in chains]
    found = folded_perplexity(model.denoiser, encoding, chains)
    rows = {
        "backbone given": found.value,
        "one residue on": folded_perplexity(model.denoiser, encoding, moved).value,
    }
    if SEQUENCES in bundled_models():
        blind = perplexity(sciflow.load(SEQUENCES).denoiser, sequences)
        rows["sequences alone"] = blind.value
    rows |= baselines(train, sequences)
    print(f"  standard error of the first from the masks drawn: {found.error:.2f}")
    for name, value in rows.items():
        print(f"  {name:<18} {value:.2f}")
    return {**rows, "error": found.error, "residues": found.residues}


def of_recovery(
    model: Model, chains: Sequence[Chain], designs: int, train: Sequence[str]
) -> dict[str, Any]:
    """Recovery of designs, by temperature, and what can be had without a model."""
    encoding = Encoding.from_config(model.config["encoding"])
    p = composition(list(train))
    rows: dict[str, Any] = {
        "composition": float(np.mean([composition([c.sequence]) @ p for c in chains])),
        "one letter": float(np.mean([composition([c.sequence])[p.argmax()] for c in chains])),
    }
    for temperature in TEMPERATURES:
        sampler = replace(model.sampler, steps=STEPS, temperature=temperature)
        begin, found = time.process_time(), []
        for number, chain in enumerate(chains):
            task = InverseFolding(encoding, chain, np.zeros(0, int), lambda _: {})
            draws = Draws(number, range(designs))
            start = task.begin(draws)
            report = sampler(model.denoiser, start.context, draws, start.given)
            records = task.finish(encoding.decode(report.state), draws)
            found.append(float(np.mean([told["recovery"] for _, told in records])))
        seconds = (time.process_time() - begin) / (len(chains) * designs)
        rows[f"temperature {temperature:g}"] = float(np.mean(found))
        rows[f"error {temperature:g}"] = float(np.std(found) / len(found) ** 0.5)
        rows["cpu_s"] = seconds
    for name, value in rows.items():
        print(f"  {name:<18} {value:.3f}")
    return rows


def main() -> None:
    """Run both sections; see the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few chains: does it run?")
    parser.add_argument("--model", default="proteins/inverse-folding")
    parser.add_argument("--n", type=int, default=200, help="chains, evenly spread")
    parser.add_argument("--designs", type=int, default=2, help="a chain and temperature")
    parser.add_argument("--out", type=Path, help="also write the JSON there")
    arguments = parser.parse_args()
    if shared_data() is None:
        raise SystemExit("this benchmark asks for real chains; set SCIFLOW_DATA to the data")
    torch.set_num_threads(1)
    model = sciflow.load(arguments.model)
    chains = Proteins().held_out(8 if arguments.quick else arguments.n)
    table = backbones()
    train = table.subset(split(table)["train"]).sequences
    result: dict[str, Any] = {"model": arguments.model, "digest": model.digest, "n": len(chains)}
    print(f"perplexity a residue, {len(chains)} chains")
    result["perplexity"] = of_perplexity(model, chains, train)
    print("recovery")
    result["recovery"] = of_recovery(model, chains, arguments.designs, train)
    if arguments.out is not None:
        write_json(arguments.out, result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
