"""A training small enough for tests: random molecules-like data and a tiny network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sciflow.denoisers import NetworkDenoiser
from sciflow.networks.equivariant import EquivariantTransformer
from sciflow.objectives import DenoisingObjective
from sciflow.paths import CategoricalPath, GaussianPath
from sciflow.schedules import Rectified
from sciflow.spaces import Tokens, ZeroCoM
from sciflow.training.data import PreparedData
from sciflow.training.fit import FitResult, fit

AXES = {"coords": 1, "types": 1, "bonds": 2}
SETTINGS: dict[str, Any] = {
    "steps": 12, "batch_size": 8, "lr": 3e-3, "warmup": 3, "decay_start": 10**6, "ema": 0.9,
    "checkpoint_every": 100, "log_every": 2, "progress": False, "accelerator": "cpu",
}  # fmt: skip


def data(
    samples: int = 37, largest: int = 7, seed: int = 0, conditions: bool = True
) -> PreparedData:
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, largest + 1, (samples,), generator=g)
    mask = torch.arange(largest) < lengths[:, None]
    pairs = mask[:, :, None] & mask[:, None] & ~torch.eye(largest, dtype=torch.bool)
    x = torch.randn(samples, largest, 3, generator=g) * mask[..., None]
    x = (x - x.sum(1, keepdim=True) / lengths[:, None, None]) * mask[..., None]
    bonds = torch.randint(0, 3, (samples, largest, largest), generator=g).triu(1)
    fields = {
        "coords": x,
        "types": (torch.randint(0, 4, (samples, largest), generator=g) * mask).to(torch.uint8),
        "bonds": ((bonds + bonds.transpose(1, 2)) * pairs).to(torch.uint8),
    }
    gap = torch.randn(samples, generator=g)
    gap[::5] = torch.nan
    return PreparedData(fields, AXES, lengths, {"gap": gap} if conditions else {})


def denoiser(dim: int = 16, seed: int = 0) -> NetworkDenoiser:
    torch.manual_seed(seed)
    paths = {
        "coords": GaussianPath(ZeroCoM(3, "coords"), Rectified()),
        "types": CategoricalPath(Tokens(4), Rectified()),
        "bonds": CategoricalPath(Tokens(3, pairs=True), Rectified()),
    }
    network = EquivariantTransformer(
        "coords", {"types": (5, 4)}, {"bonds": (4, 3)}, {"gap": (0.0, 1.0)},
        dim=dim, pair_dim=8, depth=1, heads=2, radial=6,
    )  # fmt: skip
    return NetworkDenoiser(network, paths, self_conditioning=True)


def objective() -> DenoisingObjective:
    return DenoisingObjective(beta=1.5, drift=0.5, groups=(("types", "bonds"),), drop_each=0.3)


def run(out: Path, **changed: Any) -> FitResult:
    given = {"denoiser": denoiser(), "objective": objective(), "data": data()} | SETTINGS | changed
    return fit(given.pop("denoiser"), given.pop("objective"), given.pop("data"), out, **given)
