"""Autoguidance and classifier-free guidance on a 2-D tree of two classes, all models exact.

    python -m benchmarks.autoguidance_tree [--quick] [--out FILE]

After the 2-D fractal of Karras et al. (2024), *Guiding a diffusion model with a bad version of
itself*. Two classes are two trees, each branch a chain of narrow Gaussians. A trained model has not
resolved them: here it is the exact denoiser of the class blurred by ``BLUR``, so that everything is
known and nothing is trained. The weak models are

* autoguidance: the same class, blurred by ``WEAK``: what a smaller or less trained model knows;
* classifier-free: both classes together, blurred as the model is;
* classifier-free, weak: both classes together, blurred by ``WEAK``, as in the paper, where the
  unconditional model is the smaller one too.

Outliers are samples that are less likely under the true class than all but 1 % of its draws.
Coverage is the share of the class whose parts (its Gaussians) have their samples,
Sum_k min(p_k, q_k), over what as many true draws reach. Calls are of the network, both models
counted.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from sciflow.guidance.weak.away import MoveAway
from sciflow.paths import GaussianPath
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.schedules import VarianceExploding
from sciflow.spaces import Euclidean
from sciflow.testing.targets import GaussianMixture, all_real

BLUR, WEAK = 0.04, 0.08
WEIGHTS = {
    "unguided": (0.0,),
    "autoguidance": (0.5, 1.0, 2.0, 3.0),
    "classifier-free": (0.5, 1.0, 2.0, 3.0),
    "classifier-free, weak": (0.5, 1.0, 2.0, 3.0),
}


def branches(levels: int, beads: int, angle: float,
             mirror: float) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """A tree that grows from the origin: means ``[K, 2]``, covariances ``[K, 2, 2]``, weights."""
    means, covariances, weights = [], [], []
    tips = [((0.0, 0.0), angle, 1.0, 1.0)]
    for level in range(levels):
        grown = []
        for (x, y), direction, length, mass in tips:
            along = torch.tensor([math.cos(direction), math.sin(direction)], dtype=torch.float64)
            across = torch.stack((-along[1], along[0]))
            thin, step = 0.025 * length, 0.9 * length / beads
            covariance = (step / 2) ** 2 * along[:, None] * along
            covariance = covariance + thin**2 * across[:, None] * across
            for k in range(beads):
                means.append(torch.tensor([x, y], dtype=torch.float64) + along * step * (k + 0.5))
                covariances.append(covariance)
                weights.append(mass / beads)
            end = (x + float(along[0]) * step * beads, y + float(along[1]) * step * beads)
            for turn in (0.55, -0.75):
                turned = direction + mirror * turn * (1 + 0.1 * level)
                grown.append((end, turned, 0.68 * length, 0.45 * mass))
        tips = grown
    return torch.stack(means), torch.stack(covariances), torch.tensor(weights, dtype=torch.float64)


@dataclass
class Tree:
    """The two classes: parts of each, and the path that noises them."""

    levels: int = 4
    beads: int = 4

    def __post_init__(self) -> None:
        self.path = GaussianPath(Euclidean(2), VarianceExploding(0.002, 5.0), "x0", 0.5)
        self.classes = [
            branches(self.levels, self.beads, 0.25 * math.pi, 1.0),
            branches(self.levels, self.beads, 1.25 * math.pi, -1.0),
        ]

    def model(self, blur: float, classes: Sequence[int] = (0,)) -> GaussianMixture:
        """The exact denoiser of the chosen classes with all widths increased by ``blur``."""
        means, covariances, weights = (torch.cat([self.classes[c][k] for c in classes])
                                       for k in range(3))  # fmt: skip
        wider = covariances + blur**2 * torch.eye(2, dtype=torch.float64)
        return GaussianMixture(self.path, means, wider, weights)

    def weak(self, kind: str) -> GaussianMixture:
        """What guidance of this kind moves away from."""
        match kind:
            case "autoguidance":
                return self.model(WEAK)
            case "classifier-free":
                return self.model(BLUR, (0, 1))
        return self.model(WEAK, (0, 1))


@dataclass(frozen=True)
class Row:
    """One way of sampling."""

    guidance: str
    weight: float
    calls: int
    outliers: float
    coverage: float


def experiment(
    samples: int = 2000,
    steps: int = 32,
    weights: Mapping[str, Sequence[float]] = WEIGHTS,
    seed: int = 0,
) -> list[Row]:
    """Outliers and coverage of each kind of guidance at each weight.

    Args:
        samples: of each.
        steps: calls of the model; a weak one is called as often.
        weights: by kind, see ``WEIGHTS``; 0 is unguided.
        seed: of the samples.
    """
    tree = Tree()
    truth, model, sampler = tree.model(0.0), tree.model(BLUR), Sampler(steps=steps)
    one = torch.ones((), dtype=torch.float64)
    parts = len(truth.means)

    def shares(x: Tensor) -> Tensor:
        log_p = truth.components(x, one, 0 * one)[0]
        return log_p.argmax(-1).bincount(minlength=parts) / len(x)

    many = truth.sample(5000, 1)
    rare = truth.log_density(many, one, 0 * one).quantile(0.01)
    p = shares(many)
    true = [shares(truth.sample(samples, 2 + k)) for k in range(10)]
    reachable = torch.stack([torch.minimum(p, q).sum() for q in true]).mean()
    rows = []
    for kind, values in weights.items():
        for w in values:
            guided = MoveAway(model, tree.weak(kind), w)
            report = sampler(guided, all_real(samples), Draws(seed, torch.arange(samples)),
                             dtype=torch.float64)  # fmt: skip
            x = report.state["x"][:, 0]
            outliers = (truth.log_density(x, one, 0 * one) < rare).double().mean()
            coverage = torch.minimum(p, shares(x)).sum() / reachable
            rows.append(Row(kind, w, guided.calls, float(outliers), float(coverage)))
    return rows


def table(rows: Sequence[Row]) -> str:
    """Plain text."""
    lines = [f"{'guidance':24}{'weight':>7}{'calls':>7}{'outliers':>10}{'coverage':>10}"]
    lines += [f"{r.guidance:24}{r.weight:7.1f}{r.calls:7d}{r.outliers:10.1%}{r.coverage:10.1%}"
              for r in rows]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer samples and steps")
    parser.add_argument("--out", type=Path, help="also write the JSON there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = experiment(400, 16) if arguments.quick else experiment()
    print(table(rows))
    text = json.dumps({"quick": arguments.quick, "rows": [asdict(r) for r in rows]})
    if arguments.out:
        arguments.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
