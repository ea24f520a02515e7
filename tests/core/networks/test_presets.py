"""Every network inside a real denoiser: its training loss is a function of (seed, sample, step)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from domains.molecules.adapter import Molecules
from domains.molecules.networks import PRESETS, build_denoiser
from sciflow.denoisers import NetworkDenoiser
from sciflow.errors import InputError
from sciflow.random import Draws
from sciflow.state import Context, State

ENCODING = {"elements": [1, 6, 7, 8, 9], "charges": [0, 1, -1], "scale": 1.4}
LENGTHS = torch.tensor([9, 5, 7, 1])


def denoiser(preset: str) -> tuple[NetworkDenoiser, dict[str, Any]]:
    config = {**PRESETS[preset], "encoding": ENCODING, "conditions": {"gap": [5.0, 2.0]}}
    torch.manual_seed(0)
    result = build_denoiser(config)
    with torch.no_grad():
        for p in result.parameters():
            p.add_(0.02 * torch.randn_like(p))
    return result.train(), config


def batch() -> State:
    g = torch.Generator().manual_seed(0)
    mask = torch.arange(9) < LENGTHS[:, None]
    real = mask[..., None]
    x = torch.randn(4, 9, 3, generator=g) * real
    bonds = torch.randint(5, (4, 9, 9), generator=g).triu(1) * (real & mask[:, None])
    fields = {
        "coords": (x - x.sum(1, keepdim=True) / LENGTHS[:, None, None]) * real,
        "types": torch.randint(5, (4, 9), generator=g) * mask,
        "charges": torch.zeros(4, 9, dtype=torch.int64),
        "bonds": bonds + bonds.mT,
    }
    return State(fields, Context(mask, {"gap": torch.tensor([4.0, 5.0, torch.nan, 6.0])}))


def loss(preset: str, rows: Tensor) -> Tensor:
    """Losses of some samples, padded to the longest of them."""
    model, config = denoiser(preset)
    n = int(LENGTHS[rows].max())
    state = batch().index(rows)
    fields = {k: v[:, :n, :n] if k == "bonds" else v[:, :n] for k, v in state.fields.items()}
    state = State(fields, state.context.replace(mask=state.context.mask[:, :n]))
    with torch.no_grad():
        return Molecules().objective(config)(model, state, Draws(3, rows), step=11).total


@pytest.mark.parametrize("preset", PRESETS)
def test_a_training_step_is_repeated_exactly_and_does_not_depend_on_the_shard(preset: str) -> None:
    together = loss(preset, torch.arange(4))
    assert bool(together.isfinite().all())
    assert torch.equal(together, loss(preset, torch.arange(4)))
    for rank in range(2):
        shard = loss(preset, torch.arange(4)[rank::2])
        torch.testing.assert_close(shard, together[rank::2], rtol=2e-4, atol=1e-5)


def test_an_unknown_network_is_named_with_the_known_ones() -> None:
    config = {**PRESETS["small"], "encoding": ENCODING, "conditions": {}}
    config["network"] = {**config["network"], "kind": "perceptron"}
    with pytest.raises(InputError, match=r"perceptron.*augmented-transformer"):
        build_denoiser(config)
