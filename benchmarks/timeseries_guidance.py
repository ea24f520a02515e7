"""Self-guidance in at most 20 network calls against TSDiff's own schedule of 100 steps.

    python -m benchmarks.timeseries_guidance [--model FOLDER] [--series 100] [--samples 100]
                                             [--validation] [--rows NAMES] [--scale X]

Claim: at most 2 % more CRPS than the published schedule (DDPM, 100 steps, two calls and a gradient
each; Kollovieh et al. 2023), in at most 1 CPU second a series for 100 paths. One trained model, M4
hourly, series evenly spread over the set; the same windows and weights for every row. What a row
sets was chosen on validation windows (``--validation`` scores those), never on the test's.

Columns: CRPS, MASE, 80 % coverage, evaluations of the network and vector-Jacobian products a path,
CPU seconds a series for 100 paths (one thread). The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from domains.timeseries.baselines import Ensemble
from domains.timeseries.datasets import TASKS
from domains.timeseries.encoding import FIELD, batch_of, unframed
from domains.timeseries.frame import Frame
from domains.timeseries.methods import SAMPLERS, Method, guided
from domains.timeseries.metrics import evaluate
from domains.timeseries.task import Window
from domains.timeseries.view import View
from sciflow.denoisers import Denoiser, Prediction
from sciflow.model import Model, load
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.state import State

ROWS_A_CALL = 500
CLAIM = {"crps_ratio": 1.02, "calls": 20, "cpu_s": 1.0}
PUBLISHED, OURS = "quantile-tsdiff-100", "self-guidance"


class Counted(Denoiser):
    """Counts evaluations of the network and products with its Jacobian."""

    def __init__(self, denoiser: Denoiser):
        super().__init__()
        self.denoiser, self.paths = denoiser, denoiser.paths
        self.calls = self.products = 0

    def forward(self, state, t, previous=None) -> Prediction:  # type: ignore[no-untyped-def]
        self.calls += 1
        prediction = self.denoiser(state, t, previous)
        if prediction[FIELD].requires_grad:
            prediction[FIELD].register_hook(self._product)
        return prediction

    def _product(self, gradient: Tensor) -> None:
        self.products += 1


@dataclass(frozen=True)
class Group:
    """Windows of some series, each repeated for its paths."""

    y: Tensor
    given: Tensor
    kappa: Tensor
    draws: Draws


def conditional(model: Model, denoiser: Denoiser, group: Group) -> tuple[Tensor, State]:
    real = torch.ones_like(group.given)
    config = model.config
    batch = batch_of(View(group.y, group.given, real), config["season"], config["lags"])
    sampler = Sampler(**config["forecasting"])
    report = sampler(denoiser, batch.context, group.draws, {FIELD: batch[FIELD]})
    return report.state[FIELD], batch


def ours(
    model: Model, denoiser: Denoiser, group: Group, method: Method, steps: int | None = None
) -> tuple[Tensor, State]:
    batch = unguided(model, group)
    wrapped = guided(method, denoiser, batch[FIELD], group.given, group.kappa)
    own = SAMPLERS[method] | ({} if steps is None else {"steps": steps})
    report = Sampler(**own)(wrapped, batch.context, group.draws)
    return report.state[FIELD], batch


def published(
    model: Model, denoiser: Denoiser, group: Group, scale: float, steps: int = 100
) -> tuple[Tensor, State]:
    """TSDiff's: a DDPM step from its linear β, then a push by the gradient at the new point.

    The push is scale · (posterior variance) · ∇E, the network asked again at the same t.
    """
    batch = unguided(model, group)
    path, context, y = denoiser.paths[FIELD], batch.context, batch[FIELD]
    beta = torch.linspace(1e-4, 0.1, steps, dtype=torch.float64)
    kept = (1 - beta).cumprod(0)
    before = torch.cat((torch.ones(1, dtype=torch.float64), kept[:-1]))
    k = group.kappa.to(y)[:, None, None]

    def clean(x: Tensor, i: int) -> Tensor:
        t = path.schedule.at_logsnr((kept[i] / (1 - kept[i])).log() / 2)
        a = path.schedule(t)[0]
        # The same x_t in units of the path: a/√ᾱ, with the ratio of signal to noise kept.
        here = State({FIELD: x * float(a / kept[i].sqrt())}, context)
        return denoiser(here, float(t))[FIELD]

    x = path.space.noise(context, group.draws, "prior", 0, y.dtype)
    for i in reversed(range(steps)):
        b, c, p = float(beta[i]), float(kept[i]), float(before[i])
        variance = b * (1 - p) / (1 - c)
        with torch.no_grad():
            mean = math.sqrt(p) * b / (1 - c) * clean(x, i)
            x = mean + math.sqrt(1 - b) * (1 - p) / (1 - c) * x
            if i:
                z = path.space.noise(context, group.draws, "step", i, y.dtype)
                x = x + math.sqrt(variance) * z
        with torch.enable_grad():
            x.requires_grad_()
            r = (y - clean(x, i)).masked_fill(~group.given, 0.0)
            energy = torch.maximum(k * r, (k - 1) * r).sum()
            (gradient,) = torch.autograd.grad(energy, x)
        x = x.detach() - scale * variance * gradient
    return x, batch


def unguided(model: Model, group: Group) -> State:
    real = torch.ones_like(group.given)
    return unframed(View(group.y, group.given, real), model.config["lags"])


Row = Callable[[Model, Denoiser, Group], tuple[Tensor, State]]


def rows(scale: float) -> dict[str, Row]:
    return {
        "conditional": conditional,
        "replacement": partial(ours, method="replacement"),
        "replacement-50": partial(ours, method="replacement", steps=50),
        OURS: partial(ours, method="self-guidance"),
        "self-guidance-100": partial(ours, method="self-guidance", steps=100),
        "quantile": partial(ours, method="quantile"),
        PUBLISHED: partial(published, scale=scale),
    }


def score(
    row: Row, model: Model, windows: Sequence[Window], season: int, samples: int
) -> dict[str, float]:
    config, denoiser = model.config, Counted(model.denoiser)
    length, horizon = config["context"] + config["horizon"], windows[0][1].values.shape[0]
    many, forecasts = max(ROWS_A_CALL // samples, 1), []
    begin, groups = time.process_time(), 0
    for i in range(0, len(windows), many):
        part = [history.values[-config["context"] :] for history, _ in windows[i : i + many]]
        y = torch.full((len(part), length, 1), torch.nan, dtype=torch.float64)
        for window, past in zip(y, part, strict=True):
            window[config["context"] - len(past) : config["context"]] = torch.from_numpy(past)
        y = y.repeat_interleave(samples, 0)
        number = torch.arange(samples).repeat(len(part))
        draws = Draws(0, i * samples + torch.arange(len(y)))
        group = Group(y, torch.isfinite(y), (number + 1) / (samples + 1), draws)
        x, batch = row(model, denoiser, group)
        anchor, scale = batch.context.extras["anchor"], batch.context.extras["scale"]
        drawn = Frame(anchor, scale, anchor, scale).decode(x)[:, config["context"] :][:, :horizon]
        forecasts += [Ensemble(s.numpy()) for s in drawn.view(len(part), samples, horizon, 1)]
        groups += 1
    spent = time.process_time() - begin
    histories, truths = ([w[k] for w in windows] for k in (0, 1))
    found = evaluate(forecasts, truths, histories, season)
    return {key: found[key] for key in ("crps", "mase", "coverage_80")} | {
        "calls": denoiser.calls / groups,
        "products": denoiser.products / groups,
        "cpu_s": spent / len(windows) * 100 / samples,
    }


def line(name: str, s: dict[str, float]) -> str:
    return (
        f"| {name:22}| {s['crps']:.4f} | {s['mase']:.3f} | {s['coverage_80']:.3f} | "
        f"{s['calls']:5.0f} | {s['products']:3.0f} | {s['cpu_s']:5.2f} |"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="timeseries/hourly", help="a model's folder or name")
    parser.add_argument("--series", type=int, default=100)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--validation", action="store_true", help="score the validation windows")
    parser.add_argument("--rows", help="comma-separated; default all")
    parser.add_argument("--scale", type=float, default=4.0, help="of the published rule")
    options = parser.parse_args(argv)
    known = rows(options.scale)
    names = options.rows.split(",") if options.rows else list(known)
    if unknown := sorted(set(names) - set(known)):
        parser.error(f"unknown row {unknown[0]!r}; there are {', '.join(known)}")
    torch.set_num_threads(1)
    model = load(options.model)
    # Gradients are of the noisy series; those of the weights would double their cost.
    model.denoiser.requires_grad_(False)
    task = TASKS["m4_hourly"]().subset(options.series)
    windows = task.validation_windows() if options.validation else task.windows
    table = {}
    print(f"| {'':22}| CRPS   | MASE  | cov80 | calls | vjp | CPU-s |")
    for name in names:
        s = table[name] = score(known[name], model, windows, task.season, options.samples)
        print(line(name, s), flush=True)
    verdict = {}
    if OURS in table and PUBLISHED in table:
        mine = table[OURS]
        ratio = mine["crps"] / table[PUBLISHED]["crps"]
        found = {"crps_ratio": ratio, "calls": mine["calls"], "cpu_s": mine["cpu_s"]}
        verdict = {key: {"found": v, "held": v <= CLAIM[key]} for key, v in found.items()}
        print(f"{OURS}: CRPS {ratio:.3f} of the published schedule's, {mine['calls']:.0f} calls, "
              f"{mine['cpu_s']:.2f} CPU s a series")  # fmt: skip
    rounded = {n: {k: float(f"{v:.5g}") for k, v in s.items()} for n, s in table.items()}
    settings = {"series": len(windows), "samples": options.samples, "scale": options.scale}
    print(json.dumps(settings | {"rows": rounded, "claim": verdict}))


if __name__ == "__main__":
    main()
