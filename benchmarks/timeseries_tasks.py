"""What one model of series does beside forecasting: gaps, refinement, training on synthetic series.

    python -m benchmarks.timeseries_tasks [--quick] [--model-of SET=FOLDER]... [--parts NAMES]
                                          [--series 100] [--samples 100] [--validation]

``missing``: CRPS of the forecast where half of the values of the context are hidden (random steps,
a block at its start, the block right before the forecast: TSDiff's RM, BM-B, BM-E; Kollovieh et al.
2023), as a ratio to that of the whole context. TSDiff's sets have no covariates. Where a set has
covariates of the past, they stay, as when one instrument of a station fails; ``silent``, which is
harder than what is claimed, hides them with the block before the forecast, as when all of it does.
MASE keeps the scale of the whole history.

``refine``: CRPS of forecasts of others, before and after, and of the model's own (``alone``), which
a refinement that forgets its base would have. ``--validation`` scores a grid of settings on
validation windows instead; the defaults of ``Refinement``, and the rule that weighs a base by its
spread and its distance from the model, were chosen so on 40 series (25 samples).

``synthetic``: TSDiff's linear predictive score. Ridge regression (λ = 1, an intercept) of the
horizon on the context, both in units of the context's mean |y|, fitted on synthetic windows and on
as many real ones of the training part, both judged on the real test windows. CRPS of a point
forecast is its ND; ``scaled`` is the mean |error| in units of the context.

Models are those of ``benchmarks.timeseries`` (WORK/SET-seed0), trained where they are not there.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from benchmarks.timeseries import train_ours
from domains.timeseries.baselines import BASELINES, Ensemble
from domains.timeseries.baselines.base import filled, uniforms
from domains.timeseries.datasets import TASKS, ForecastTask
from domains.timeseries.forecast import Forecast
from domains.timeseries.forecaster import Forecaster
from domains.timeseries.metrics import evaluate
from domains.timeseries.refining import RefineMethod
from domains.timeseries.series import Series
from domains.timeseries.task import Window
from sciflow.errors import InputError

Array = NDArray[np.float64]

PARTS = ("missing", "refine", "synthetic")
SETS = ("m4_hourly", "beijing_pm25")
REFINED_SET = "m4_hourly"
SCENARIOS = ("none", "random", "start", "end", "silent")
BASES = ("seasonal-naive", "linear", "theta")
CLAIMS = {"missing": 1.25, "refine": 1.0, "synthetic": 1.15}
"""Largest ratio wanted of each part."""
WINDOWS = 2000
GRID = {
    "level": (0.5, 1.0),
    "trust": (None, 0.1, 0.3),
    "iterations": (0, 3),
}
QUICK = {"series": 12, "samples": 20, "windows": 300}


def hidden(history: Series, context: int, scenario: str) -> Series:
    """The history without half of its last ``context`` values.

    Args:
        history: as it was observed.
        context: steps that the model looks back.
        scenario: one of ``SCENARIOS``.
    """
    first = max(len(history) - context, 0)
    n = len(history) - first
    if scenario == "random":
        u = uniforms(0, f"hidden/{history.name}/{len(history)}", n, 1)[:, 0]
        rows = u.argsort()[: n // 2]
    else:
        last = np.arange(n - n // 2, n)
        rows = {"none": last[:0], "start": np.arange(n // 2), "end": last, "silent": last}[scenario]
    return history.hidden(first + rows, covariates=scenario == "silent")


def missing(
    task: ForecastTask, forecaster: Forecaster, samples: int
) -> dict[str, dict[str, float]]:
    """Scores and the ratio of CRPS of each scenario."""
    histories, truths = ([w[k] for w in task.windows] for k in (0, 1))
    table: dict[str, dict[str, float]] = {}
    print(f"\n{task.name}: {len(histories)} windows, half of the history hidden")
    past = forecaster.covariates is not None and not forecaster.covariates.known_future
    for scenario in SCENARIOS if past else SCENARIOS[:-1]:
        seen = [hidden(h, forecaster.context, scenario) for h in histories]
        # A block may hide all that was observed of a window with gaps of its own.
        kept = [i for i, s in enumerate(seen) if s.observed[-forecaster.context :].any()]
        made = forecaster.forecast([seen[i] for i in kept], task.horizon, samples=samples)
        truth, history = ([part[i] for i in kept] for part in (truths, histories))
        found = evaluate(made, truth, history, task.season)
        row = {key: found[key] for key in ("crps", "mase", "coverage_80")}
        row |= {"windows": len(kept)}
        table[scenario] = row | {"ratio": row["crps"] / table.get("none", row)["crps"]}
        print(line(scenario, table[scenario]), flush=True)
    return table


def bases_of(
    name: str, task: ForecastTask, windows: Sequence[Window], before: bool, samples: int
) -> list[Forecast]:
    """Forecasts of a baseline that has learnt from the part before the windows."""
    learner = BASELINES[name](task.context, task.season)
    learner = learner.fit(task.training_series(before_validation=before), task.horizon)
    made = learner.predict([h for h, _ in windows], task.horizon, samples)
    return [
        Forecast(h.name, h.channels, truth.index, np.ascontiguousarray(f.samples))
        for f, (h, truth) in zip(made, windows, strict=True)
    ]


def refine(
    task: ForecastTask, forecaster: Forecaster, names: Sequence[str], samples: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Scores of each baseline before and after each way to refine."""
    windows, table = task.windows, {}
    print(f"\n{task.name}: {len(windows)} windows, refined")
    histories, truths = ([w[k] for w in windows] for k in (0, 1))
    alone = forecaster.forecast(histories, task.horizon, samples=samples)
    for name in names:
        try:
            base = bases_of(name, task, windows, False, samples)
        except InputError as error:
            print(f"{name}: left out: {error}", file=sys.stderr, flush=True)
            continue
        rows: dict[str, dict[str, float]] = {}
        ways: dict[str, Any] = {"before": lambda base=base: base}
        for way in get_args(RefineMethod):
            ways[way] = partial(forecaster.refine, base, histories, way, samples)
        ways["alone"] = lambda: alone
        for method, make in ways.items():
            made = make()
            found = evaluate(made, truths, histories, task.season)
            row = {key: found[key] for key in ("crps", "mase", "coverage_80")}
            rows[method] = row | {"ratio": row["crps"] / rows.get("before", row)["crps"]}
            print(line(f"{name} {method}", rows[method]), flush=True)
        table[name] = rows
    return table


def choose(
    task: ForecastTask, forecaster: Forecaster, names: Sequence[str], samples: int
) -> dict[str, list[dict[str, Any]]]:
    """The grid's settings by geometric mean ratio of CRPS over the baselines, best first."""
    chosen = {h.name for h, _ in task.windows}
    windows = [w for w in task.validation_windows() if w[0].name in chosen]
    histories, truths = ([w[k] for w in windows] for k in (0, 1))
    bases = {name: bases_of(name, task, windows, True, samples) for name in names}
    before = {name: evaluate(b, truths, histories, task.season) for name, b in bases.items()}
    alone = forecaster.forecast(histories, task.horizon, samples=samples)
    crps = evaluate(alone, truths, histories, task.season)["crps"]
    told = "  ".join(f"{name} {crps / before[name]['crps']:.3f}" for name in bases)
    print(f"{'model alone':12} {told}", flush=True)
    result: dict[str, list[dict[str, Any]]] = {}
    for method in get_args(RefineMethod):
        rows = []
        for values in itertools.product(*GRID.values()):
            settings: dict[str, Any] = dict(zip(GRID, values, strict=True))
            ratios = {}
            for name, base in bases.items():
                made = forecaster.refine(base, histories, method, samples, **settings)
                crps = evaluate(made, truths, histories, task.season)["crps"]
                ratios[name] = crps / before[name]["crps"]
            overall = math.exp(float(np.log(list(ratios.values())).mean()))
            rows.append({"settings": settings, "ratios": ratios, "ratio": overall})
            told = "  ".join(f"{k} {v:.3f}" for k, v in ratios.items())
            print(f"{method:12} {settings}  {overall:.3f}: {told}", flush=True)
        result[method] = sorted(rows, key=lambda row: row["ratio"])
    return result


class Ridge:
    """min Σ |y − b − xW|² + λ|W|² in units of the context's mean |x|; b is not penalised."""

    def __init__(self, context: int, ridge: float = 1.0):
        self.context, self.ridge = context, ridge

    def fit(self, windows: Array) -> Ridge:
        """Learn from windows of context and horizon, ``[N, L + H]``."""
        z = windows / size(windows[:, : self.context])
        x, y = z[:, : self.context], z[:, self.context :]
        self.x, self.y = x.mean(0), y.mean(0)
        x, y = x - self.x, y - self.y
        self.weights = np.linalg.solve(x.T @ x + self.ridge * np.eye(self.context), x.T @ y)
        return self

    def predict(self, contexts: Array) -> Array:
        """``[N, H]`` of contexts ``[N, L]``."""
        scale = size(contexts)
        return scale * (self.y + (contexts / scale - self.x) @ self.weights)


def size(contexts: Array) -> Array:
    """Mean |x| of each row, ``[N, 1]``; 1 where all of it is 0."""
    mean = np.abs(contexts).mean(1, keepdims=True)
    return np.where(mean > 0, mean, 1.0)


def real_windows(series: Sequence[Series], length: int, n: int) -> Array:
    """``n`` windows of what was observed, drawn evenly over all, ``[n, length]``.

    Gaps of the context would be gaps of a regression, so windows with any are not taken.
    """
    found = []
    for s in series:
        known = np.isfinite(s.values[:, 0]).astype(int)
        if len(s) >= length:
            whole = np.convolve(known, np.ones(length, int), "valid") == length
            found += [(s, i) for i in np.flatnonzero(whole)]
    if not found:
        raise InputError(f"no window of {length} steps without a gap")
    pick = (uniforms(0, "real windows", n, 1)[:, 0] * len(found)).astype(int)
    return np.stack([s.values[i : i + length, 0] for s, i in (found[k] for k in pick)])


def synthetic(task: ForecastTask, forecaster: Forecaster, n: int) -> dict[str, dict[str, float]]:
    """Scores of the regression fitted on real windows and on synthetic ones."""
    context, horizon = forecaster.context, task.horizon
    made = forecaster.synthesise(n, context + horizon)
    sources = {
        "real": real_windows(task.series, context + horizon, len(made)),
        "synthetic": np.stack([s.values[:, 0] for s in made]),
    }
    histories, truths = ([w[k] for w in task.windows] for k in (0, 1))
    contexts = np.stack([last(h, context) for h in histories])
    y = np.stack([t.values[:, 0] for t in truths])
    print(f"\n{task.name}: ridge fitted on {len(made)} windows, {len(y)} real test windows")
    table: dict[str, dict[str, float]] = {}
    for name, windows in sources.items():
        point = Ridge(context).fit(windows).predict(contexts)
        found = evaluate([Ensemble(p[None, :, None]) for p in point], truths, histories,
                         task.season)  # fmt: skip
        row = {"crps": found["crps"], "mase": found["mase"],
               "scaled": float(np.nanmean(np.abs(y - point) / size(contexts)))}  # fmt: skip
        base = table.get("real", row)
        table[name] = row | {"ratio": row["crps"] / base["crps"],
                             "ratio_scaled": row["scaled"] / base["scaled"]}  # fmt: skip
        print(line(name, table[name]), flush=True)
    return table


def last(history: Series, n: int) -> Array:
    """The last ``n`` values with gaps filled linearly, the first repeated where there are fewer."""
    values = filled(history.values[-n:])[:, 0]
    return np.pad(values, (n - len(values), 0), mode="edge")


def line(name: str, row: dict[str, float]) -> str:
    return f"| {name:28}|" + "|".join(f" {key} {value:.4g} " for key, value in row.items()) + "|"


def verdicts(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The largest ratio of each part and whether it is what is wanted."""
    found: dict[str, list[float]] = {
        "missing": [r["ratio"] for t in result.get("missing", {}).values()
                    for s, r in t.items() if s not in ("none", "silent")],
        "refine": [r["ratio"] for t in result.get("refine", {}).values()
                   for m, r in t.items() if m in get_args(RefineMethod)],
        "synthetic": [t["synthetic"]["ratio"] for t in result.get("synthetic", {}).values()],
    }  # fmt: skip
    # Refinement has to lower the score, the others may raise it so much.
    return {
        part: {
            "largest": max(ratios),
            "wanted": CLAIMS[part],
            "held": max(ratios) < CLAIMS[part]
            or (part != "refine" and max(ratios) == CLAIMS[part]),
        }
        for part, ratios in found.items()
        if ratios
    }


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few series, samples and windows")
    parser.add_argument("--model-of", action="append", default=[], metavar="SET=FOLDER")
    parser.add_argument("--sets", default=",".join(SETS), help="of missing and synthetic")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--bases", default=",".join(BASES), help="baselines to refine")
    parser.add_argument("--series", type=int, default=100)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--windows", type=int, default=WINDOWS, help="synthetic ones")
    parser.add_argument("--validation", action="store_true", help="choose settings of refine")
    parser.add_argument("--work", type=Path, default=Path("timeseries-benchmark"))
    options = parser.parse_args(argv)
    if options.quick:
        vars(options).update(QUICK)
    sets, parts, names = (v.split(",") for v in (options.sets, options.parts, options.bases))
    for given, known in ((sets, TASKS), (parts, PARTS), (names, BASELINES)):
        if unknown := [name for name in given if name not in known]:
            parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
    folders = {}
    for pair in options.model_of:
        name, sign, folder = pair.partition("=")
        if not sign or name not in TASKS:
            parser.error(f"--model-of {pair}: give SET=FOLDER with one of {', '.join(TASKS)}")
        folders[name] = Path(folder)

    import torch

    torch.set_num_threads(1)

    def forecaster(name: str) -> Forecaster:
        if name not in folders:
            folder = options.work / f"{name}-seed0"
            train_ours(name, folder, 0, None)
            folders[name] = folder / "model"
        return Forecaster.load(folders[name])

    result: dict[str, Any] = {}
    if options.validation:
        # Baselines learn from all series, as the model did.
        task = TASKS[REFINED_SET]()
        task = replace(task, windows=task.subset(options.series).windows)
        result["chosen"] = choose(task, forecaster(REFINED_SET), names, options.samples)
        parts = []
    for part in parts:
        result[part] = {}
        for name in [REFINED_SET] if part == "refine" else sets:
            try:
                task, model = TASKS[name](), forecaster(name)
            except InputError as error:
                print(f"{name}: left out: {error}", file=sys.stderr, flush=True)
                continue
            small = task.subset(options.series)
            if part == "missing":
                result[part][name] = missing(small, model, options.samples)
            elif part == "refine":
                # Baselines learn from all series, as the model did.
                small = replace(task, windows=small.windows)
                result[part] = refine(small, model, names, options.samples)
            else:
                # All test windows: a regression costs nothing.
                result[part][name] = synthetic(task, model, options.windows)
    settings = {k: getattr(options, k) for k in ("series", "samples", "windows")}
    print(json.dumps(rounded(settings | result | {"claims": verdicts(result)})))


if __name__ == "__main__":
    main()
