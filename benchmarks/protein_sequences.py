"""Protein sequences: perplexity beside n-grams, samples beside natural ones, guided contents.

    python -m benchmarks.protein_sequences [--quick] [--model NAME] [--only SECTION] [--held-out N]
                                           [--n 100] [--guide TEXT] [--seed N] [--out FILE]

* ``perplexity``: the bound on the perplexity a residue over held-out UniRef sequences, its standard
  error from the masks drawn, and n-grams counted on the training part of the same split;
* ``samples``: the model's, beside held-out sequences, and letters drawn one by one;
* ``guidance``: helix or strand asked for by a predictor of noisy sequences. The judge is another
  method on other chains: GOR counts on clusters that the predictor never saw. Its own error is
  told: how often it is right on the chains that it did not count.

The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sciflow
from domains.proteins.chain import ALPHABET, Chain
from domains.proteins.datasets import backbones
from domains.proteins.evaluators.designs import design_metrics
from domains.proteins.evaluators.gor import GOR
from domains.proteins.evaluators.secondary_structure import three_states
from domains.proteins.evaluators.sequences import composition
from domains.proteins.perplexity import baselines, perplexity
from domains.proteins.residue_data import held_out_sequences, sequence_chain, uniref
from domains.proteins.table import DSSP_CODES, split
from sciflow.files import write_json
from sciflow.guides import parse_guide
from sciflow.model import Model

_TARGETS = {"helix": 0.8, "strand": 0.7}
_COLUMNS = ("helix", "strand", "low_complexity", "sequence_repeats", "sequence_unique",
            "kmer_novelty", "trigram_perplexity", "composition_kl")  # fmt: skip


def of_perplexity(model: Model, n: int, strata: int) -> dict[str, Any]:
    """The model's bound beside n-grams, all on the same ``n`` held-out sequences."""
    table = uniref()
    test = table.part("test").sequences
    test = test[:: max(1, len(test) // n)][:n]
    found = perplexity(model.denoiser, test, strata=strata)
    known = baselines(table.part("train").sequences, test)
    for name, value in known.items():
        print(f"  {name:<18} {value:.2f}")
    gain = 1 - found.value / min(known.values())
    print(f"  {'this model':<18} {found.value:.2f} ± {found.error:.2f}, {gain:.1%} below the best; "
          f"{len(test)} sequences, {found.residues} residues")  # fmt: skip
    return {"model": found.value, "error": found.error, "gain": gain, "n": len(test), **known}


def of_samples(model: Model, n: int) -> dict[str, Any]:
    """Metrics of samples beside natural sequences and independent letters."""
    natural = held_out_sequences(n)
    rng = np.random.default_rng(0)
    p = composition([c.sequence for c in natural])
    letters = [sequence_chain("".join(rng.choice([*ALPHABET], len(c), p=p))) for c in natural]
    begin = time.process_time()
    made = model.sample(n, seed=11).kept
    seconds = (time.process_time() - begin) / n
    rows = {"held-out sequences": natural, "letters one by one": letters, "this model": made}
    print(f"  {'':<20}" + "".join(f"{c:>20}" for c in _COLUMNS))
    result = {}
    for name, chains in rows.items():
        values = design_metrics(chains)
        result[name] = {c: values[c] for c in _COLUMNS}
        print(f"  {name:<20}" + "".join(f"{values[c]:>20.3f}" for c in _COLUMNS))
    print(f"  CPU seconds a sequence: {seconds:.2f}")
    return {**result, "cpu_seconds": seconds}


def of_guidance(model: Model, n: int, guide: str, seed: int) -> dict[str, Any]:
    """Contents by the judge, unguided and where each is asked for."""
    gor, right = judge()
    print(f"  judge: right for {right:.1%} of residues of chains that it did not count")
    plain = model.guided("none").sample(n, seed=seed).kept
    base = contents(gor, plain)
    result: dict[str, Any] = {"judge": right, "unguided": base}
    print(f"  {'unguided':<22} helix {base['helix']:.3f}  strand {base['strand']:.3f}", flush=True)
    name, given = parse_guide(guide)
    for target, value in _TARGETS.items():
        guided = model.guided("none").guided(name, **given)
        chains = guided.sample(n, {target: value}, seed=seed, guidance=0.0).kept
        found = contents(gor, chains)
        metrics = design_metrics(chains)
        moved = 100 * (found[target] - base[target])
        result[f"{target}={value}"] = {**metrics, **found, "points": moved}
        print(
            f"  {f'{target}={value}':<22} helix {found['helix']:.3f}  strand "
            f"{found['strand']:.3f}  moved by {moved:+.1f} points; low complexity "
            f"{metrics['low_complexity']:.3f}, trigram perplexity "
            f"{metrics['trigram_perplexity']:.1f}",
            flush=True,
        )
    return result


def judge() -> tuple[GOR, float]:
    """GOR counted on chains that no predictor saw; how often it is right on the others."""
    table = backbones()
    sides = split(table)
    gor = GOR.of_table(table.subset(np.concatenate([sides["valid"], sides["test"]])))
    others = table.subset(sides["train"][::10])
    right = total = 0
    for i, chain in enumerate(others):
        codes = others.dssp[others.offsets[i] : others.offsets[i + 1]]
        states = three_states("".join(DSSP_CODES[c] for c in codes))
        right += sum(a == b for a, b in zip(states, gor.predict(chain.sequence), strict=True))
        total += len(states)
    return gor, right / total


def contents(gor: GOR, chains: list[Chain]) -> dict[str, float]:
    """Mean contents, with the standard error of each over the chains."""
    each = [gor.contents(chain.sequence) for chain in chains]
    values: dict[str, float] = {}
    for name in ("helix", "strand"):
        x = np.array([e[name] for e in each])
        values |= {name: float(x.mean()), f"{name}_error": float(x.std() / len(x) ** 0.5)}
    return values


def main() -> None:
    """Run the sections asked for; see the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few sequences: does it run?")
    parser.add_argument("--model", default="proteins/sequences")
    parser.add_argument("--only", choices=["perplexity", "samples", "guidance"])
    parser.add_argument("--held-out", type=int, help="sequences of the perplexity; default all")
    parser.add_argument("--strata", type=int, default=8, help="masks drawn a sequence")
    parser.add_argument("--n", type=int, default=100, help="samples a row")
    parser.add_argument("--guide", default="classifier:tokens=10", help="of the guided rows")
    parser.add_argument("--out", type=Path, help="also write the JSON there")
    parser.add_argument("--seed", type=int, default=12, help="of the guided rows")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    n = 8 if arguments.quick else arguments.n
    held_out = arguments.held_out or (50 if arguments.quick else 10**9)
    model = sciflow.load(arguments.model)
    result: dict[str, Any] = {"model": arguments.model, "digest": model.digest, "n": n}
    sections: Mapping[str, Any] = {
        "perplexity": lambda: of_perplexity(model, held_out, arguments.strata),
        "samples": lambda: of_samples(model, n),
        "guidance": lambda: of_guidance(model, n, arguments.guide, arguments.seed),
    }
    for name, section in sections.items():
        if arguments.only in (None, name):
            print(name, flush=True)
            result[name] = section()
    if arguments.out is not None:
        write_json(arguments.out, result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
