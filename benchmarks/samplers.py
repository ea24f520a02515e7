"""Samplers against diffusers, azula and k-diffusion in one process, on an exact denoiser.

    python -m benchmarks.samplers [--quick] [--out FILE]          (pip install -e ".[bench]")

Targets: a 2-D ring of 8 anisotropic Gaussians (sd 0.05 and 0.25, unequal weights) and a 64-D
mixture of 5 Gaussians with full covariances (eigenvalues 0.8 exp(-i/8) + 0.003). Noise: VP with
1000 betas from 1e-4 to 0.02, i.e. sigma/alpha from 157 to 0.01. Everybody starts from the same x_T
and has 5, 10, 20 or 50 calls, the final denoising included and counted.

Part 1, error: root mean square distance to the exact probability-flow ODE (Runge-Kutta 4, 400 steps
of log sigma from 157 to 0.01, then the denoiser). "Default" is the best of a package's defaults,
"best" its best documented option at that count, chosen with the error at hand. Our default is one:
``Sampler(steps=n)``. Learned grids come from other noise than that of the test. "told" also moves
the times that the network is told. "v3" is DPM-Solver-v3 with statistics from samples of ours.

Part 2, overhead: microseconds a call on 1024 x 64 float32 with the denoiser 0.5 x, one thread, the
fastest of many runs of 20 calls, set-up included; and on the same numbers in three fields. Where
memory comes to lie is chance, and stays for a process: the figure is the median of five. The goal,
40 us, was set on a machine on which the loops of diffusers and azula took the times of ``NOTED``;
here it is 40 times the median ratio of their times now to those. (The loop by hand took 29.8 there;
if that is the measure, machines differ less.) "By hand" is the least that two
steps' history can cost: DPM-Solver++(2M) as four tensor operations with numbers for coefficients;
ab2 and unipc2 need one tensor operation more, ab3 two.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.sampler_peers import LOOPS, PEERS, SIGMA_MAX, SIGMA_MIN, Loop, Run
from sciflow.denoisers import Denoiser, Prediction
from sciflow.paths import GaussianPath
from sciflow.random import Draws
from sciflow.samplers import METHODS, Sampler
from sciflow.samplers.dpm_solver_v3 import DPMSolverV3
from sciflow.samplers.learned_grid import DecoupledTimes, learn_grid
from sciflow.samplers.solver_statistics import estimate_statistics
from sciflow.schedules import VPLinear
from sciflow.spaces import Euclidean
from sciflow.state import State, Times
from sciflow.testing.targets import GaussianMixture, all_real

CALLS = (5, 10, 20, 50)
OURS = ("ab2", "ab3", "reab2", "reab3", "dpmpp2m", "dpmpp3m", "unipc2", "unipc3", "unipc2-bh1")
GRIDS = ("power-u", "fine-u", "uniform-u", "uniform-logsnr", "karras")
LEARNERS = (
    {"method": "ab2"}, {"method": "ab2", "extrapolate": True}, {"method": "ab3"},
    {"method": "unipc3"},
)  # fmt: skip
TARGET = 40.0
NOTED = {
    "diffusers DDIM": 85.4, "diffusers DPM++-2": 154.0, "diffusers UniPC-2": 372.0,
    "azula DDIM": 264.0, "azula xEAB-2": 112.0,
}  # fmt: skip
"""Microseconds a call of the same loops where the target was set."""
MULTISTEP = ("ab2", "ab3", "dpmpp2m", "unipc2")
FIELDS = {"one tensor": {"x": 64}, "three fields": {"a": 3, "b": 20, "c": 41}}
# The largest beta with which sigma/alpha at t = 1 is that of 1000 steps.
SCHEDULE = VPLinear(0.1, 2 * math.log(1 + SIGMA_MAX**2) - 0.1)


def target(means: Tensor, covariances: Tensor, weights: Tensor) -> GaussianMixture:
    """The mixture, and the standard deviation of its data in the path, as in a trained model."""
    w = weights / weights.sum()
    center = w @ means
    second = w @ (covariances.diagonal(dim1=1, dim2=2) + (means - center) ** 2)
    path = GaussianPath(Euclidean(means.shape[1]), SCHEDULE, "x0", float(second.mean().sqrt()))
    return GaussianMixture(path, means, covariances, w)


def ring() -> GaussianMixture:
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    out = torch.stack((angle.cos(), angle.sin()), -1)
    along = torch.stack((-angle.sin(), angle.cos()), -1)
    covariances = (
        0.25**2 * along[:, :, None] * along[:, None] + 0.05**2 * out[:, :, None] * out[:, None]
    )
    return target(out, covariances, torch.arange(1.0, 9.0, dtype=torch.float64))


def mixture() -> GaussianMixture:
    draws = Draws(0, torch.arange(5))
    means = 0.63 * draws.normal((64,), "means", dtype=torch.float64)
    q = torch.linalg.qr(draws.normal((64, 64), "turns", dtype=torch.float64)).Q
    values = 0.8 * torch.exp(-torch.arange(64, dtype=torch.float64) / 8) + 0.003
    covariances = (q * values) @ q.mT
    return target(means, covariances, torch.tensor([0.1, 0.15, 0.2, 0.25, 0.3]).double())


class Counted:
    """E[x_0 | x_0 + sigma eps = y], counting its calls."""

    def __init__(self, goal: GaussianMixture):
        self.goal, self.calls = goal, 0

    def __call__(self, y: Tensor, sigma: float) -> Tensor:
        self.calls += 1
        one = torch.ones(len(y), dtype=torch.float64)
        return self.goal.mean(y.double(), one, sigma * one)


def exact(denoise: Counted, y: Tensor, steps: int = 400) -> Tensor:
    """The end of the probability-flow ODE dy/dlog sigma = y - D(y, sigma)."""
    level = torch.linspace(math.log(SIGMA_MAX), math.log(SIGMA_MIN), steps + 1).tolist()
    for here, there in pairwise(level):
        h = there - here

        def slope(z: Tensor, at: float) -> Tensor:
            return z - denoise(z, math.exp(at))

        k1 = slope(y, here)
        k2 = slope(y + h / 2 * k1, here + h / 2)
        k3 = slope(y + h / 2 * k2, here + h / 2)
        k4 = slope(y + h * k3, there)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return denoise(y, SIGMA_MIN)


def distance(x: Tensor, goal: Tensor) -> float:
    return float((x - goal).square().mean().sqrt())


def peer_error(run: Run, goal: GaussianMixture, y: Tensor, end: Tensor, n: int) -> float:
    """The error of a peer's run; infinite where it fails or takes more calls than it has."""
    denoise = Counted(goal)
    try:
        x = run(denoise, y, n)
    except (IndexError, RuntimeError, ValueError, AssertionError) as problem:
        print(f"  (failed at {n} calls: {type(problem).__name__}: {str(problem)[:80]})")
        return math.inf
    if denoise.calls > n:
        return math.inf
    error = distance(x, end)
    return error if math.isfinite(error) else math.inf


def our_error(sampler: Sampler, model: Denoiser, y: Tensor, end: Tensor,
              steppers: dict[str, DPMSolverV3] | None = None) -> float:  # fmt: skip
    # Divided by its largest value of noise level the start is that of t = 1.
    start = {"x": (y / math.sqrt(1 + SIGMA_MAX**2))[:, None]}
    draws = Draws(0, torch.arange(len(y)))
    report = sampler(model, all_real(len(y)), draws, start=start, dtype=torch.float64,
                     steppers=steppers)  # fmt: skip
    assert report.calls <= sampler.steps
    return distance(report.state["x"][:, 0], end)


def solvers_v3(goal: GaussianMixture, samples: int) -> dict[str, DPMSolverV3]:
    """By order; the statistics are taken along our own samples of the model."""
    draws, context = Draws(3, torch.arange(samples)), all_real(samples)
    with torch.no_grad():
        data = Sampler(steps=100)(goal, context, draws, dtype=torch.float64).state
        statistics = estimate_statistics(goal, data, draws, logsnr=(-5.0, 5.0), knots=60)
    return {str(k): DPMSolverV3(statistics, k) for k in (1, 2, 3)}


def fitted(goal: GaussianMixture, y: Tensor, end: Tensor, n: int,
           steppers: dict[str, DPMSolverV3]) -> dict[str, Any]:  # fmt: skip
    """DPM-Solver-v3 in the best of its orders and grids."""
    found = []
    for grid in ("uniform-logsnr", "uniform-u", "fine-u", "power-u"):
        for order, maker in steppers.items():
            sampler = Sampler(steps=n, method="dpmpp2m", grid=grid,
                              logsnr_last=-math.log(SIGMA_MIN))  # fmt: skip
            error = our_error(sampler, goal, y, end, {"x": maker})
            found.append({"rmse": error, "method": f"v3-{order}", "grid": grid})
    return min(found, key=lambda entry: entry["rmse"])


def learned(goal: GaussianMixture, y: Tensor, end: Tensor, n: int, noises: int) -> dict[str, Any]:
    """The learned grids of each method; the one reported is chosen on noise held out there."""
    context = all_real(noises)
    found: dict[str, Any] = {}
    for told in (False, True):
        grids = []
        for chosen in LEARNERS:
            begin = time.perf_counter()
            sampler = Sampler(steps=n, **chosen)
            grid = learn_grid(
                goal, context, sampler, Draws(1, torch.arange(noises)),
                Draws(2, torch.arange(noises)), Sampler(steps=100), told, iterations=12,
            )  # fmt: skip
            grids.append((grid, sampler, time.perf_counter() - begin))
        grid, sampler, seconds = min(grids, key=lambda entry: entry[0].after)
        model = DecoupledTimes(goal, grid.times, grid.told) if grid.told else goal
        error = our_error(replace(sampler, grid=grid.times), model, y, end)
        found["told" if told else "learned"] = {
            "rmse": error, "method": sampler.method, "extrapolate": sampler.extrapolate,
            "times": grid.times, "told": grid.told, "seconds": round(seconds, 1),
        }  # fmt: skip
    return found


def errors(name: str, goal: GaussianMixture, samples: int, noises: int, quick: bool,
           peers: dict[str, tuple[dict[str, Run], dict[str, Run]]]) -> dict[str, Any]:  # fmt: skip
    """Everything of part 1 on one target."""
    z = Draws(0, torch.arange(samples)).normal((goal.means.shape[1],), "x_T", dtype=torch.float64)
    y = z * math.sqrt(1 + SIGMA_MAX**2)
    end = exact(Counted(goal), y)
    result: dict[str, Any] = {}
    v3 = solvers_v3(goal, noises)
    for n in CALLS:
        ours = {"default": {"rmse": our_error(Sampler(steps=n), goal, y, end)}}
        settings = [
            {"method": m, "grid": g, **end_in}
            for m in OURS for g in GRIDS
            for end_in in ({}, {"extrapolate": True} if m.startswith(("ab", "reab")) else {})
        ]  # fmt: skip
        hand = [
            (our_error(Sampler(steps=n, logsnr_last=-math.log(SIGMA_MIN), **chosen), goal, y, end),
             chosen)
            for chosen in settings
        ]  # fmt: skip
        least, chosen = min(hand, key=lambda pair: pair[0])
        ours["hand-made"] = {"rmse": least, **chosen}
        ours["v3"] = fitted(goal, y, end, n, v3)
        if n <= (5 if quick else 10):
            ours |= learned(goal, y, end, n, noises)
        row: dict[str, Any] = {"sciflow": ours}
        for peer, (default, option) in peers.items():
            row[peer] = {}
            for kind, runs in (("default", default), ("best", default | option)):
                found = {k: peer_error(r, goal, y, end, n) for k, r in runs.items()}
                best = min(found, key=lambda k: found[k])
                row[peer][kind] = {"rmse": found[best], "setting": best}
        row["ratios"] = ratios(row, list(peers))
        result[str(n)] = row
        print(f"{name}, {n} calls")
        for who in ("sciflow", *peers):
            for kind, entry in row[who].items():
                said = " ".join(str(entry[k]) for k in ("method", "grid", "extrapolate", "setting")
                                if k in entry)  # fmt: skip
                print(f"  {who:12s} {kind:10s} {entry['rmse']:.5f}  {said}")
        print("  " + ", ".join(f"{k} {v:.3f}" for k, v in row["ratios"].items()), flush=True)
    return result


def ratios(row: dict[str, Any], peers: list[str]) -> dict[str, float]:
    """Ours over theirs, below 1 where we are nearer to the exact ODE."""
    ours = {k: entry["rmse"] for k, entry in row["sciflow"].items()}
    found = {}
    if "diffusers" in peers:
        found["default / diffusers default"] = ours["default"] / row["diffusers"]["default"]["rmse"]
    for peer in peers:
        found[f"hand-made / {peer} best"] = ours["hand-made"] / row[peer]["best"]["rmse"]
    least = min((row[p]["best"]["rmse"] for p in peers), default=math.nan)
    for kind in ("v3", "learned", "told"):
        if kind in ours:
            found[f"{kind} / best of all peers"] = ours[kind] / least
    return found


class Half(Denoiser):
    """0.5 x of every field: all that is left is the sampler."""

    def __init__(self, sizes: dict[str, int]):
        super().__init__()
        self.paths = {f: GaussianPath(Euclidean(d), SCHEDULE) for f, d in sizes.items()}

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        return Prediction({f: 0.5 * x for f, x in state.fields.items()})


def fastest(work: Callable[[], object], repeats: int) -> float:
    """Microseconds of processor time of the fastest of several runs (the machine may be shared)."""
    seconds = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        seconds.append(time.process_time() - begin)
    return 1e6 * min(seconds)


def by_hand(x: Tensor, table: list[tuple[float, float, float]]) -> Tensor:
    """DPM-Solver++(2M) with the model inside and nothing around it."""
    last = None
    for from_x, from_clean, from_last in table:
        clean = 0.5 * x
        x = (x * from_x).add_(clean, alpha=from_clean)
        if last is not None:
            x.add_(last, alpha=from_last)
        last = clean
    return x


def overhead(repeats: int, peers: Iterable[str]) -> dict[str, float]:
    """Microseconds a call in this process."""
    batch, n = 1024, 20
    context, draws = all_real(batch), Draws(0, torch.arange(batch))
    result: dict[str, float] = {}
    # As a model's activations do: the C library then keeps memory of the size of our states,
    # where else it may give it back, and clear it anew, at every step of whoever is measured.
    torch.empty(4_000_000)
    x = torch.ones(batch, 64)
    with torch.no_grad():
        result["model alone"] = fastest(lambda: 0.5 * x, n * repeats)
        result["by hand"] = fastest(lambda: by_hand(x, [(0.9, 0.05, 0.01)] * n), repeats) / n
    for method in MULTISTEP:
        if method not in METHODS:
            continue
        sampler = Sampler(steps=n, method=method)
        for label, sizes in (
            ("one tensor", {"x": 64}),
            ("three fields", {"a": 3, "b": 20, "c": 41}),
        ):
            model = Half(sizes)
            start = {f: torch.ones(batch, 1, d) for f, d in sizes.items()}

            def work(sampler: Sampler = sampler, model: Half = model,
                     start: dict[str, Tensor] = start) -> object:  # fmt: skip
                return sampler(model, context, draws, start=start)

            result[f"sciflow {method}, {label}"] = fastest(work, repeats) / n
    for peer in peers:
        for name, loop in LOOPS[peer]().items():

            def theirs(loop: Loop = loop) -> object:
                with torch.no_grad():
                    return loop(x, n)

            result[f"{peer} {name}"] = fastest(theirs, repeats) / n
    return result


def overheads(repeats: int, peers: Iterable[str], processes: int = 5) -> dict[str, float]:
    """The median of several processes."""
    code = (
        "import json, torch; torch.set_num_threads(1); from benchmarks.samplers import overhead; "
        f"print(json.dumps(overhead({repeats}, {list(peers)})))"
    )
    found: list[dict[str, float]] = []
    for _ in range(processes):
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True,
                              check=True, cwd=Path(__file__).parents[1])  # fmt: skip
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return {name: statistics.median(f[name] for f in found) for name in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer samples; a minute or two")
    parser.add_argument("--out", type=Path, help="also write the JSON there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    quick = arguments.quick
    peers, versions = {}, {"torch": torch.__version__}
    for peer, runs in PEERS.items():
        try:
            peers[peer] = runs()
            versions[peer] = version(peer)
        except ImportError as problem:
            print(f"{peer} is left out: {problem}")
    result: dict[str, Any] = {"quick": quick, "versions": versions}
    # Before anything else: long runs warm the machine.
    result["overhead"] = overheads(100 if quick else 400, peers)
    hand = result["overhead"]["by hand"]
    known = [result["overhead"][k] / us for k, us in NOTED.items() if k in result["overhead"]]
    if known:
        slower = result["slower"] = statistics.median(known)
        goal = TARGET * slower
        print(f"this machine takes {slower:.2f} times as long: the goal is {goal:.0f} us a call, "
              f"{2 * goal:.0f} in three fields")  # fmt: skip
    for name, value in result["overhead"].items():
        print(f"{value:8.1f} us a call, {value / hand:5.2f} x by hand  {name}")
    for name, target, samples in (("ring", ring(), 500 if quick else 10_000),
                                ("mixture64", mixture(), 200 if quick else 1000)):  # fmt: skip
        result[name] = errors(name, target, samples, 128 if quick else 256, quick, peers)
    text = json.dumps(result)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
