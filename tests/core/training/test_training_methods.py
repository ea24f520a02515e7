"""Curricula, couplings, learned weights and given elements in a training that is stopped."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import data, denoiser, run

from sciflow.denoisers import NetworkDenoiser
from sciflow.errors import InputError
from sciflow.objectives import DenoisingObjective
from sciflow.objectives.contrast import Contrast
from sciflow.objectives.curriculum import Curriculum, TimeDistribution
from sciflow.objectives.given import GivenRule
from sciflow.objectives.uncertainty import Uncertainty
from sciflow.objectives.weights import LossWeight
from sciflow.paths import GaussianPath
from sciflow.schedules import Rectified
from sciflow.spaces import ZeroCoM
from sciflow.training.checkpoints import load_averaged, read_checkpoint

STEPS = 9


def coupled(seed: int = 0) -> NetworkDenoiser:
    model = denoiser(seed=seed)
    model.paths["coords"] = GaussianPath(
        ZeroCoM(3, "coords"), Rectified(), coupling={"kind": "immiscible", "condition_weight": 0.1}
    )
    return model


def everything(**changed: Any) -> DenoisingObjective:
    return DenoisingObjective(**{
        "clock": Curriculum([(0, TimeDistribution(low=0.5)), (8, TimeDistribution(beta=1.5))]),
        "stratify": True,
        "levels": {"coords": LossWeight("min-snr"), "types": LossWeight("elbo")},
        "uncertainty": Uncertainty(("coords", "bonds")),
        "given": {"part": GivenRule(("coords", "types"), share=(0.0, 0.6)),
                  "composition": GivenRule(("types",), "all", 0.2)},
        "contrast": {"coords": Contrast()},
        **changed,
    })  # fmt: skip


def saved(out: Path, step: int = STEPS) -> dict[str, Any]:
    return read_checkpoint(out / "checkpoints" / f"step-{step:08d}.ckpt")


def test_a_stopped_run_goes_on_with_the_same_bits(tmp_path) -> None:
    settings = {"decay_start": 10**6, "validation": data(9, seed=3), "validate_every": 3}
    objective = everything()
    whole = run(tmp_path / "whole", steps=STEPS, denoiser=coupled(), objective=objective,
                **settings)  # fmt: skip
    run(tmp_path / "parts", steps=4, denoiser=coupled(), objective=everything(), **settings)
    # Other initial weights, of network and loss: all that matters must come from the checkpoint.
    other = everything()
    torch.nn.init.ones_(other.uncertainty.weight)
    parts = run(tmp_path / "parts", steps=STEPS, denoiser=coupled(9), objective=other, **settings)
    a, b = saved(tmp_path / "whole"), saved(tmp_path / "parts")
    assert a["state_dict"].keys() == b["state_dict"].keys()
    assert all(torch.equal(v, b["state_dict"][k]) for k, v in a["state_dict"].items())
    assert torch.equal(objective.uncertainty.weight, other.uncertainty.weight)
    drop = {"seconds"}
    rows = [
        [{k: v for k, v in r.items() if k not in drop} for r in csv.DictReader(p.open())]
        for p in (tmp_path / "whole" / "log.csv", tmp_path / "parts" / "log.csv")
    ]
    assert rows[0][-1] == rows[1][-1] and whole.row.keys() == parts.row.keys()


def test_learned_weights_are_trained_but_are_no_part_of_the_model(tmp_path) -> None:
    objective = DenoisingObjective(uncertainty=Uncertainty(("coords",)))
    plain = run(tmp_path / "plain", steps=5)
    result = run(tmp_path / "learned", steps=5, objective=objective)
    assert float(objective.uncertainty.weight.detach().abs().min()) > 0
    assert result.denoiser.state_dict().keys() == plain.denoiser.state_dict().keys()
    content = saved(tmp_path / "learned", 5)
    assert torch.equal(content["state_dict"]["uncertainty.weight"], objective.uncertainty.weight)
    decays = [g["weight_decay"] for g in content["optimizer_states"][0]["param_groups"]]
    assert decays == [0.01, 0.0]
    loaded = load_averaged(result.checkpoint, denoiser(seed=5))
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, result.denoiser.state_dict()[name])


def test_a_validation_loss_is_that_of_the_last_stage() -> None:
    end = TimeDistribution(beta=1.5)
    way = DenoisingObjective(clock=Curriculum([(0, TimeDistribution(low=0.9)), (8, end)]))
    assert way.settled() == DenoisingObjective(clock=end)
    fixed = DenoisingObjective(beta=2.0)
    assert fixed.settled() is fixed


@pytest.mark.parametrize("changed", [
    {"clock": TimeDistribution(beta=1.5)}, {"stratify": False}, {"levels": {}},
    {"uncertainty": None}, {"given": {}}, {"contrast": {"coords": Contrast(0.1)}},
], ids=lambda c: next(iter(c)))  # fmt: skip
def test_another_method_is_another_run(tmp_path, changed: dict[str, Any]) -> None:
    run(tmp_path, steps=1, objective=everything())
    with pytest.raises(InputError, match="objective differs"):
        run(tmp_path, steps=2, objective=everything(**changed))
