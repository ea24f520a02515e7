"""Time series: CRPS, MASE, MSIS, 80 % coverage and CPU seconds, method beside method on every set.

    python -m benchmarks.timeseries [--quick] [--sets NAMES] [--methods NAMES] [--seeds 3]
                                    [--work FOLDER] [--peers PYTHON|none] [--steps N]

Protocols are those of ``domains.timeseries.datasets``; TSDiff's where it has the set. 100 samples a
forecast, one thread. Methods with chance in them run with several seeds (mean ± standard
deviation); the others once. Ours is trained a set and seed from the training part by
``sciflow train timeseries``, into WORK/SET-seedK, with the settings of the domain: nothing is
chosen on test windows. (How far back M4 hourly looks was first seen to matter there, with gaps, and
then confirmed on validation windows.) Results are kept in WORK/results, so an interrupted run goes
on.

CPU seconds hold training and all forecasts. ARIMA runs where its season is at most 12 steps (it
takes minutes a series beyond). DeepAR is gluonts' with its defaults, 10 epochs of 50 batches; it
needs pandas < 3 and so an environment of its own, made on first use in the cache folder
(``--peers`` gives another one's python, or none).

The last line is JSON: set → method → score → mean and deviation.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from domains.timeseries.baselines import BASELINES, BaseForecast, Ensemble
from domains.timeseries.datasets import TASKS, ForecastTask
from domains.timeseries.downloads import DOWNLOADS
from domains.timeseries.metrics import evaluate
from sciflow.data import cache_folder
from sciflow.errors import InputError
from sciflow.files import write_atomically

SAMPLES = 100
SCORES = ("crps", "mase", "msis", "coverage_80", "cpu_s")
QUICK_SETS = ("exchange_rate_nips", "ETTh1", "epf")
QUICK_SERIES, QUICK_STEPS = 20, 200
OURS = "sciflow"
RIVALS = ("seasonal-naive", "seasonal-naive-bootstrap", "ets", "theta", "arima")
"""Whom ours is to beat: seasonal naive and the statistical models."""
ARIMA_SEASON = 12
DEEPAR = Path(__file__).with_name("timeseries_deepar.py")
GLUONTS = ("gluonts[torch]==0.17.0", "pandas<3")


@dataclass(frozen=True)
class Run:
    """What a method is given beside the task."""

    work: Path
    seed: int
    steps: int | None
    peers: str | None


@dataclass(frozen=True)
class Method:
    """Forecasts of all test windows and the CPU seconds they took, training included."""

    forecast: Callable[[ForecastTask, Run], tuple[Sequence[BaseForecast], float]]
    chance: bool = True
    serves: Callable[[ForecastTask], bool] = lambda task: True


def our_forecasts(task: ForecastTask, run: Run, **settings: Any) -> tuple[Sequence[Any], float]:
    """Ours, trained on the training part of the set; goes on with a training under way."""
    folder = run.work / f"{task.name}-seed{run.seed}"
    spent = train_ours(task.name, folder, run.seed, run.steps)
    from domains.timeseries.forecaster import Forecaster

    begin = time.process_time()
    forecaster = Forecaster.load(folder / "model")
    forecasts = forecaster.forecast(
        [history for history, _ in task.windows],
        task.horizon,
        samples=SAMPLES,
        seed=run.seed,
        **settings,
    )
    return forecasts, spent + time.process_time() - begin


def train_ours(name: str, folder: Path, seed: int, steps: int | None) -> float:
    """CPU seconds of all runs of the training, summed in the folder."""
    ledger = folder / "cpu_seconds.json"
    spent = json.loads(ledger.read_text()) if ledger.is_file() else 0.0
    if (folder / "model").is_dir():
        return spent
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", "from sciflow.cli import main; main()", "train", "timeseries",
               "--data", name, "--out", str(folder), "--seed", str(seed)]  # fmt: skip
    command += ["--steps", str(steps)] if steps else []
    begin = children_seconds()
    try:
        done = subprocess.run(command, stdout=sys.stderr, check=False)
    finally:
        spent += children_seconds() - begin
        ledger.write_text(json.dumps(spent))
    if done.returncode:
        raise InputError(f"training ended with code {done.returncode}: {' '.join(command)}")
    return spent


def baseline(name: str, task: ForecastTask, run: Run) -> tuple[Sequence[BaseForecast], float]:
    begin = time.process_time()
    forecaster = BASELINES[name](task.context, task.season).fit(task.series, task.horizon)
    histories = [history for history, _ in task.windows]
    forecasts = forecaster.predict(histories, task.horizon, SAMPLES, run.seed)
    return forecasts, time.process_time() - begin


def deepar(task: ForecastTask, run: Run) -> tuple[Sequence[BaseForecast], float]:
    """DeepAR in its own interpreter, the task handed over as a file."""
    if run.peers is None:
        raise InputError("not asked for (--peers none)")
    with tempfile.TemporaryDirectory() as folder:
        given, answer = Path(folder) / "task.npz", Path(folder) / "forecasts.npz"
        parts = {"train": task.series, "history": [history for history, _ in task.windows]}
        arrays: dict[str, Any] = {"freq": task.series[0].freq, "horizon": task.horizon}
        for part, series in parts.items():
            arrays[part] = np.concatenate([s.values[:, 0] for s in series]).astype(np.float32)
            arrays[f"{part}_offsets"] = np.cumsum([0, *map(len, series)])
            arrays[f"{part}_start"] = np.array([str(s.start) for s in series])
        np.savez(given, **arrays)
        command = [run.peers, str(DEEPAR), str(given), str(answer), "--seed", str(run.seed)]
        done = subprocess.run(command, capture_output=True, text=True, check=False,
                              cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
        if done.returncode:
            raise InputError(f"DeepAR failed: {done.stderr.strip().splitlines()[-1]}")
        with np.load(answer) as file:
            samples, spent = file["samples"].astype(np.float64), float(file["cpu_s"])
    return [Ensemble(s[..., None]) for s in samples], spent


METHODS: dict[str, Method] = {
    "naive": Method(partial(baseline, "naive"), chance=False),
    "seasonal-naive": Method(partial(baseline, "seasonal-naive"), chance=False),
    "seasonal-naive-bootstrap": Method(partial(baseline, "seasonal-naive-bootstrap")),
    "linear": Method(partial(baseline, "linear")),
    "theta": Method(partial(baseline, "theta"), chance=False),
    "ets": Method(partial(baseline, "ets"), chance=False),
    "arima": Method(partial(baseline, "arima"), False, lambda task: task.season <= ARIMA_SEASON),
    "deepar": Method(deepar),
    OURS: Method(our_forecasts),
}


def peer_python(folder: Path) -> str | None:
    """The python of an environment with gluonts, made if there is none; None where it fails."""
    python = folder / "bin" / "python"
    if not (folder / "ready").is_file():
        print(f"making an environment for gluonts in {folder}", file=sys.stderr, flush=True)
        torch = next(d for d in _requirements() if d.startswith("torch=="))
        try:
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            install = [str(python), "-m", "pip", "install", "--quiet", *GLUONTS, torch]
            subprocess.run(install, check=True)
        except subprocess.CalledProcessError as error:
            print(f"no DeepAR: {error}", file=sys.stderr)
            return None
        (folder / "ready").touch()
    return str(python)


def _requirements() -> list[str]:
    from importlib.metadata import version

    return [f"torch=={version('torch').split('+')[0]}"]


def children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def scores_of(name: str, task: ForecastTask, run: Run, kept: Path) -> dict[str, float]:
    """Scores of one method, set and seed: those of an earlier run, or new ones that are kept."""
    file = kept / task.name / f"{name}-seed{run.seed}.json"
    model = run.work / f"{task.name}-seed{run.seed}" / "model"
    stale = name == OURS and model.is_dir() and file.is_file() and newest(model) > newest(file)
    if file.is_file() and not stale:
        return json.loads(file.read_text())
    forecasts, spent = METHODS[name].forecast(task, run)
    histories, truths = ([w[part] for w in task.windows] for part in (0, 1))
    scores = evaluate(forecasts, truths, histories, task.season) | {"cpu_s": spent}
    write_atomically(file, json.dumps(scores))
    return scores


def newest(path: Path) -> float:
    """Time of the last change of a file, or in a folder."""
    return max(p.stat().st_mtime for p in (path, *path.glob("*")))


def compare(
    task: ForecastTask, methods: Sequence[str], seeds: int, run: Run, kept: Path
) -> dict[str, dict[str, tuple[float, float]]]:
    """Mean and standard deviation of each score a method."""
    result = {}
    for name in methods:
        method = METHODS[name]
        if not method.serves(task):
            continue
        runs = [replace(run, seed=k) for k in range(seeds if method.chance else 1)]
        try:
            found = [scores_of(name, task, r, kept) for r in runs]
        except (InputError, ImportError) as error:
            print(f"{task.name} {name}: left out: {error}", file=sys.stderr, flush=True)
            continue
        result[name] = {
            key: (mean(v), stdev(v) if len(v) > 1 else 0.0)
            for key in found[0]
            for v in [[f[key] for f in found]]
        }
        print(line(name, result[name]), flush=True)
    return result


def line(name: str, scores: dict[str, tuple[float, float]]) -> str:
    cells = []
    for key, digits in zip(SCORES, (4, 3, 1, 3, 0), strict=True):
        value, deviation = scores[key]
        spread = f" ± {deviation:.{digits}f}" if deviation else ""
        cells.append(f"{value:.{digits}f}{spread}".ljust(17))
    return f"| {name:25}| {'| '.join(cells)}|"


def plain(scores: dict[str, tuple[float, float]]) -> dict[str, list[float]]:
    """Scores as JSON tells them: five digits, without the single quantile losses."""
    kept = {key: pair for key, pair in scores.items() if not key.startswith("wql")}
    return {key: [float(f"{v:.5g}") for v in pair] for key, pair in kept.items()}


def verdict(table: dict[str, dict[str, dict[str, tuple[float, float]]]]) -> str:
    """On how many sets ours wins what is asked of it."""
    wins: dict[str, list[str]] = {"CRPS": [], "MASE": [], "both": [], "coverage": []}
    ours = {name: rows for name, rows in table.items() if OURS in rows}
    for name, rows in ours.items():
        mine, rivals = rows[OURS], [rows[r] for r in RIVALS if r in rows]
        crps = all(mine["crps"][0] < r["crps"][0] for r in rivals)
        mase = "seasonal-naive" in rows and mine["mase"][0] < rows["seasonal-naive"]["mase"][0]
        for key, won in (("CRPS", crps), ("MASE", mase), ("both", crps and mase),
                         ("coverage", 0.72 <= mine["coverage_80"][0] <= 0.88)):  # fmt: skip
            wins[key] += [name] if won else []
    counts = {key: len(won) for key, won in wins.items()}
    return (
        f"of {len(ours)} sets: CRPS below seasonal naive and the statistical models on "
        f"{counts['CRPS']}, MASE below seasonal naive on {counts['MASE']}, both on "
        f"{counts['both']}; 80 % intervals cover 72-88 % on {counts['coverage']}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    local = [name for name in TASKS if name not in DOWNLOADS]
    parser.add_argument("--quick", action="store_true", help="three sets, few series, one seed")
    parser.add_argument("--sets", help=f"comma-separated; default {','.join(local)}")
    parser.add_argument("--methods", help=f"comma-separated; default {','.join(METHODS)}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("timeseries-benchmark"))
    parser.add_argument("--peers", help="python of an environment with gluonts, or none")
    parser.add_argument("--steps", type=int, help="of our training; default the domain's")
    options = parser.parse_args(argv)
    sets = options.sets.split(",") if options.sets else QUICK_SETS if options.quick else local
    methods = options.methods.split(",") if options.methods else list(METHODS)
    for given, known in ((sets, TASKS), (methods, METHODS)):
        if unknown := [name for name in given if name not in known]:
            parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
    work = options.work / "quick" if options.quick else options.work
    steps = options.steps or (QUICK_STEPS if options.quick else None)
    peers = None if options.quick or options.peers == "none" else options.peers
    if "deepar" in methods and peers is None and options.peers != "none" and not options.quick:
        peers = peer_python(cache_folder() / "gluonts")

    import torch

    torch.set_num_threads(1)
    table = {}
    for name in sets:
        try:
            task = TASKS[name]()
        except InputError as error:
            print(f"{name}: left out: {error}", file=sys.stderr)
            continue
        task = task.subset(QUICK_SERIES) if options.quick else task
        print(f"\n{name}: {len(task.series)} series, {len(task.windows)} windows of {task.horizon}"
              f" after {task.context}, season {task.season}")  # fmt: skip
        titles = ("CRPS", "MASE", "MSIS", "cov. 80 %", "CPU s")
        print(f"| {'method':25}| {'| '.join(t.ljust(17) for t in titles)}|")
        print(f"|{'-' * 26}|{'|'.join(['-' * 18] * len(titles))}|")
        seeds = 1 if options.quick else options.seeds
        run = Run(work, 0, steps, peers)
        table[name] = compare(task, methods, seeds, run, work / "results")
    print(f"\n{verdict(table)}")
    told = {name: {m: plain(scores) for m, scores in rows.items()} for name, rows in table.items()}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
