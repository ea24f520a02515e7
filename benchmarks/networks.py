"""Networks: cost, accuracy for equal CPU time, and how cost grows with the number of points.

    python -m benchmarks.networks [--quick] [--seconds S] [--only PRESET ...] [--out FILE]

Part 1, molecules (``qm9_gfn2``, one thread): for every preset of the domain, parameters, CPU
seconds of one evaluation and of one training step on 64 molecules of 18 atoms, and the validation
loss of each field after training for the same CPU seconds from scratch: same data order, objective,
noise, optimizer and learning-rate curve (a function of the CPU time used). Validation noise is the
same for all; half of its batches are self-conditioned, as in training. Rotation: how far the clean
coordinates of turned molecules are from the turned clean coordinates, relative to their error; 0
for an equivariant network.

Part 2, points at constant density without pair fields: CPU seconds of one evaluation, sparse and
all pairs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from domains.molecules.adapter import Molecules
from domains.molecules.datasets import qm9_gfn2
from domains.molecules.encoding import Encoding
from domains.molecules.networks import PRESETS, build_denoiser
from domains.molecules.table import split
from sciflow.data import shared_data
from sciflow.denoisers import Network, NetworkDenoiser
from sciflow.networks.equivariant import EquivariantTransformer
from sciflow.networks.rotations import rotation_from_points
from sciflow.networks.sparse import SparseMessagePassing
from sciflow.objectives import DenoisingObjective
from sciflow.random import Draws
from sciflow.state import Context, State
from sciflow.training.data import Batches, PreparedData, statistics
from sciflow.training.module import learning_rate

CONDITIONS = ("gap", "dipole", "alpha", "homo", "lumo")
BATCH, ATOMS, LR = 64, 18, 1.5e-3
VALIDATION_STEP = 10**9


def fastest(work: Callable[[], object], repeats: int) -> float:
    """CPU seconds of the fastest of several runs (the machine may be shared)."""
    seconds = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        seconds.append(time.process_time() - begin)
    return min(seconds)


def optimizer_of(denoiser: NetworkDenoiser) -> torch.optim.AdamW:
    parameters = list(denoiser.parameters())
    return torch.optim.AdamW([
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.01},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ], lr=LR, betas=(0.9, 0.98))  # fmt: skip


def train_step(denoiser: NetworkDenoiser, objective: DenoisingObjective, batch: State,
               draws: Draws, step: int, optimizer: torch.optim.Optimizer) -> float:  # fmt: skip
    loss = objective(denoiser, batch, draws, step).total.mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def cost(denoiser: NetworkDenoiser, objective: DenoisingObjective, data: PreparedData,
         repeats: int) -> dict[str, float]:  # fmt: skip
    """CPU seconds on 64 molecules of 18 atoms."""
    rows = (data.lengths == ATOMS).nonzero()[:BATCH, 0]
    if len(rows) < BATCH:
        raise SystemExit(f"the data holds {len(rows)} molecules of {ATOMS} atoms; {BATCH} needed")
    batch, draws = data.collate(rows), Draws(0, rows)
    t = torch.full((BATCH,), 0.5)
    denoiser.eval()
    with torch.no_grad():
        previous = denoiser(batch, t)
        evaluation = fastest(lambda: denoiser(batch, t, previous), repeats)
    denoiser.train()
    optimizer = optimizer_of(denoiser)
    # A step of training self-conditions with probability 1/2: half of a further evaluation.
    alone = DenoisingObjective(**{**vars(objective), "feedback": 0.0})
    step = fastest(lambda: train_step(denoiser, alone, batch, draws, 0, optimizer), repeats)
    return {"evaluation_s": evaluation, "step_s": step + objective.feedback * evaluation}


def train(denoiser: NetworkDenoiser, objective: DenoisingObjective, data: PreparedData,
          seconds: float) -> int:  # fmt: skip
    """Train for ``seconds`` of CPU; returns the number of steps."""
    denoiser.train()
    optimizer = optimizer_of(denoiser)
    begin, last = time.process_time(), round(1000 * seconds)
    for step, batch in enumerate(Batches(data, BATCH, seed=0)):
        used = round(1000 * (time.process_time() - begin))
        if used >= last:
            return step
        lr = learning_rate(used, LR, last // 20, last // 2, last)
        for group in optimizer.param_groups:
            group["lr"] = lr
        draws = Draws(0, batch.samples)
        train_step(denoiser, objective, batch.state, draws, step, optimizer)
    raise AssertionError("the sequence of batches is endless")


def validate(denoiser: NetworkDenoiser, objective: DenoisingObjective, data: PreparedData,
             batches: int) -> dict[str, float]:  # fmt: skip
    """Mean losses over fixed molecules, times and noise."""
    denoiser.eval()
    sums: dict[str, float] = {}
    with torch.no_grad():
        for k in range(batches):
            rows = torch.arange(k * BATCH, (k + 1) * BATCH) % len(data)
            fixed = DenoisingObjective(**{**vars(objective), "feedback": float(k % 2)})
            losses = fixed(denoiser, data.collate(rows), Draws(1, rows), VALIDATION_STEP + k)
            values = {"loss": losses.total, **losses.fields}
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + float(value.mean()) / batches
    return sums


def rotation_error(denoiser: NetworkDenoiser, data: PreparedData, t: float = 0.3) -> float:
    """RMS of D(Rx) − R D(x) over the RMS of D(x) − x_0, both of coordinates, at one noise level."""
    denoiser.eval()
    rows = torch.arange(min(BATCH, len(data)))
    batch, times = data.collate(rows), torch.full((len(rows),), t)
    draws = Draws(2, rows)
    noisy = State({
        name: path.corrupt(batch[name], times, batch.context, draws, name)
        for name, path in denoiser.paths.items()
    }, batch.context)  # fmt: skip
    turn = rotation_from_points(noisy["coords"], batch.context.mask)
    with torch.no_grad():
        here = denoiser(noisy, times)["coords"]
        there = denoiser(noisy.replace(coords=noisy["coords"] @ turn.mT), times)["coords"]
    error = (here - batch["coords"]).square().mean().sqrt()
    return float((there - here @ turn.mT).square().mean().sqrt() / error)


def molecules(presets: list[str], seconds: float, repeats: int,
              batches: int) -> dict[str, dict[str, float]]:  # fmt: skip
    table = qm9_gfn2()
    parts = split(table)
    training = table.subset(parts["train"])
    encoding = Encoding.of(training)
    data = encoding.prepare(training, CONDITIONS)
    valid = encoding.prepare(table.subset(parts["valid"]), CONDITIONS)
    common = {"encoding": encoding.config(), "conditions": statistics(data.conditions)}
    rows = {}
    for preset in presets:
        config: dict[str, Any] = {**PRESETS[preset], **common}
        objective = Molecules().objective(config)
        row: dict[str, float] = {}
        torch.manual_seed(0)
        denoiser = build_denoiser(config)
        row["parameters"] = sum(p.numel() for p in denoiser.parameters())
        row |= cost(denoiser, objective, data, repeats)
        torch.manual_seed(0)
        denoiser = build_denoiser(config)
        row["steps"] = train(denoiser, objective, data, seconds)
        row |= validate(denoiser, objective, valid, batches)
        row["rotation"] = rotation_error(denoiser, valid)
        rows[preset] = row
        print(f"{preset}: {int(row['steps'])} steps, loss {row['loss']:.3f}", flush=True)
    return rows


def cloud(n: int) -> tuple[dict[str, Tensor], dict[str, Tensor], Context]:
    """n points at density 1, with one kind of token."""
    g = torch.Generator().manual_seed(0)
    inputs = {
        "coords": torch.rand(1, n, 3, generator=g) * n ** (1 / 3),
        "types": torch.randint(5, (1, n), generator=g),
    }
    levels = {name: torch.zeros(1) for name in inputs}
    return inputs, levels, Context(torch.ones(1, n, dtype=torch.bool))


def scaling(sizes: list[int], repeats: int) -> dict[int, dict[str, float]]:
    """CPU seconds of one evaluation, dim 128, 4 rounds; the cutoff holds about 33 points."""
    arguments: dict[str, Any] = {
        "points": "coords", "tokens": {"types": (6, 5)}, "pairs": {}, "conditions": {}, "dim": 128,
        "depth": 4, "self_conditioning": False,
    }  # fmt: skip
    sparse = SparseMessagePassing(**arguments, cutoff=2.0).eval()
    dense = EquivariantTransformer(**arguments).eval()

    def seconds(network: Network, n: int) -> float:
        inputs, levels, context = cloud(n)
        with torch.no_grad():
            return fastest(lambda: network(inputs, levels, context, None), repeats)

    rows = {}
    for n in sizes:
        inputs, _, context = cloud(n)
        edges = sparse.graph(inputs, context.mask)[0].shape[1]
        rows[n] = {"edges": float(edges), "sparse_s": seconds(sparse, n)}
        # All pairs: 4 blocks of several [N, N, 32] tensors; 1600 points already need gigabytes.
        rows[n]["all_pairs_s"] = seconds(dense, n) if n <= 800 else float("nan")
    return rows


def shown(rows: Mapping[Any, Mapping[str, float]], first: str) -> str:
    """Rows as an aligned table."""
    columns = list(next(iter(rows.values())))
    lines = [[first, *columns]]
    for key, row in rows.items():
        cells = ["-" if x != x else f"{x:.4g}" if x < 1e5 else f"{x:,.0f}" for x in row.values()]
        lines.append([str(key), *cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(x.rjust(w) for x, w in zip(line, widths, strict=True)) for line in lines
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="10 CPU seconds each: does it run?")
    parser.add_argument("--seconds", type=float, default=None, help="CPU seconds of training each")
    parser.add_argument("--only", nargs="*", choices=list(PRESETS), default=list(PRESETS))
    parser.add_argument("--out", type=Path, default=None, help="also write the JSON here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if shared_data() is None:
        raise SystemExit("this benchmark trains on qm9_gfn2; set SCIFLOW_DATA to its folder")
    quick = arguments.quick
    seconds = arguments.seconds or (10.0 if quick else 120.0)
    repeats, batches = (3, 4) if quick else (7, 16)
    rows = molecules(arguments.only, seconds, repeats, batches)
    print(f"\nOne thread, {BATCH} molecules x {ATOMS} atoms; {seconds:g} CPU s of training each\n")
    print(shown(rows, "preset"))
    sizes = scaling([100, 400] if quick else [100, 200, 400, 800, 1600, 3200], 2)
    print("\nOne evaluation of n points at density 1, no pair fields\n")
    print(shown(sizes, "points"))
    result = {
        "seconds": seconds,
        "molecules": rows,
        "scaling": {n: {k: v for k, v in row.items() if v == v} for n, row in sizes.items()},
    }
    text = json.dumps(result)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    print(f"\n{text}")


if __name__ == "__main__":
    main()
