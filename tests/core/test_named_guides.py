"""Guides by name on a model: what they cost, what they leave alone, what they refuse and why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sciflow
from domains.molecules.adapter import Molecules
from sciflow.domain import OracleAnswer
from sciflow.errors import InputError
from sciflow.guides import GUIDES
from sciflow.guides.weaker import WEAKER
from sciflow.model import Model, Samples
from sciflow.predictors import save_predictor

WANTED = {"gap": 4.0, "dipole": (1.0, 2.0)}
STEPS = 4
FEW = {"steps": STEPS}


@pytest.fixture(scope="module")
def model(tiny_model_folder: Path) -> Model:
    return sciflow.load(tiny_model_folder)


@pytest.fixture(scope="module")
def predictor_folder(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = model.domain.predictor_config(model.config)
    torch.manual_seed(1)
    predictor = model.domain.predictor(config)
    return save_predictor(tmp_path_factory.mktemp("predictors") / "tiny", predictor, config)


def settings_of(name: str, folder: Path) -> dict[str, Any]:
    """What a guide needs to be told beside its defaults."""
    return {"autoguidance": {"model": str(folder)}, "negative": {"target": "gap=3+dipole=2"}}.get(
        name, {}
    )


def sample(model: Model, target: Any = WANTED, **settings: Any) -> Samples:
    return model.sample(2, target, sampler={**FEW, **settings.pop("sampler", {})}, **settings)


def same(a: Samples, b: Samples, atol: float = 0.0) -> bool:
    return all(
        x.numbers.tolist() == y.numbers.tolist()
        and np.allclose(x.positions, y.positions, rtol=0, atol=atol)
        for x, y in zip(a.records, b.records, strict=True)
    )


OF_ANY_POINTS = [name for name in WEAKER if name != "cfg-frequency"]


@pytest.mark.parametrize("name", OF_ANY_POINTS)
def test_weight_zero_is_the_model_at_a_call_a_step(name: str, model: Model,
                                                   tiny_model_folder: Path) -> None:  # fmt: skip
    guided = model.guided(name, weight=0.0, **settings_of(name, tiny_model_folder))
    found = sample(guided)
    assert same(found, sample(model, guidance=0.0))
    assert found.calls == STEPS


@pytest.mark.parametrize("name", OF_ANY_POINTS)
def test_every_network_call_is_counted(name: str, model: Model, tiny_model_folder: Path) -> None:
    """Twice the steps, and the look that a perturbation takes to see that it is one."""
    # CFG++ is for steps of the first order.
    sampler = {"method": "ddim"} if name == "cfg++" else {}
    found = sample(model.guided(name, **settings_of(name, tiny_model_folder)), sampler=sampler)
    ((label, cost),) = found.settings["guide_costs"].items()
    assert label.startswith(f"{name}:")
    assert found.calls == cost["network_calls"] == 2 * STEPS + (name == "perturbed-attention")


def test_cfg_is_the_guidance_of_that_weight(model: Model) -> None:
    guided = sample(model.guided("cfg", weight=1.5, first=0.2))
    assert same(guided, sample(model, guidance=1.5, guidance_interval=(0.2, 1.0)))
    assert guided.calls == sample(model, guidance=1.5, guidance_interval=(0.2, 1.0)).calls


def test_a_weaker_estimate_stands_in_for_the_models_own_guidance(model: Model) -> None:
    own = Model(model.domain, model.denoiser, {**model.config, "guidance": 2.0}, model.reference)
    assert sample(own).settings["guidance"] == 2.0
    guided = own.guided("time-step")
    assert sample(guided).settings["guidance"] == 0.0
    assert sample(guided, guidance=0.5).settings["guidance"] == 0.5
    # A guide of another kind leaves it on.
    assert sample(own.guided(lambda denoiser: denoiser)).settings["guidance"] == 2.0


def test_away_from_itself_is_nowhere(model: Model, tiny_model_folder: Path) -> None:
    """But for rounding, which normalised logits bring."""
    itself = sample(model.guided("autoguidance", model=str(tiny_model_folder), weight=2.0))
    assert same(itself, sample(model, guidance=0.0), 1e-4) and itself.calls == 2 * STEPS


@pytest.mark.parametrize(
    ("name", "settings", "target", "message"),
    [
        ("cfg", {}, None, "give a target"),
        ("apg", {}, None, "give a target"),
        ("cfg-frequency", {}, WANTED, "set of points in no order"),
        ("independent-condition", {}, None, "there are none"),
        ("negative", {}, WANTED, "negative:target=NAME=NUMBER"),
        ("negative", {"target": "gap"}, WANTED, "NAME=NUMBER"),
        ("negative", {"target": "mass=1"}, WANTED, "cannot be asked for 'mass'"),
        ("autoguidance", {}, WANTED, "model=FOLDER"),
        ("autoguidance", {"model": "nowhere"}, WANTED, "no model 'nowhere'"),
        ("perturbed-attention", {"kind": "sideways"}, WANTED, "identity, blur, shuffle"),
        ("perturbed-attention", {"layer": 9}, WANTED, "layers are numbers from 0"),
        ("particles", {}, None, "give a target"),
        ("particles", {"by": "me"}, WANTED, "predictor or oracle"),
        ("cfg", {"weight": -1.0}, WANTED, "weight must be 0"),
    ],
)
def test_what_a_model_cannot_do_is_said(
    name: str, settings: dict[str, Any], target: Any, message: str, model: Model
) -> None:
    with pytest.raises(InputError, match=message):
        sample(model.guided(name, **settings), target)


def test_a_model_without_conditions_is_told_what_it_can_have(model: Model) -> None:
    bare = Model(model.domain, model.denoiser, {**model.config, "conditions": {}}, model.reference)
    for name in ("cfg", "negative", "independent-condition"):
        with pytest.raises(InputError, match="autoguidance, perturbed-attention and time-step"):
            GUIDES[name].wrap(bare, GUIDES[name].complete(name, {}), bare.denoiser)


def test_a_weaker_model_must_be_of_the_same_data(model: Model, tmp_path: Path) -> None:
    encoding = {**model.config["encoding"], "scale": 2.0}
    other = Model(model.domain, model.denoiser, {**model.config, "encoding": encoding},
                  model.reference)  # fmt: skip
    folder = other.save(tmp_path / "other")
    with pytest.raises(InputError, match="differs in 'encoding'"):
        sample(model.guided("autoguidance", model=str(folder)))


def test_one_particle_is_the_sample(model: Model, predictor_folder: Path) -> None:
    guided = model.guided("particles", count=1, predictor=str(predictor_folder))
    assert same(sample(guided), sample(model))


def test_particles_cost_what_they_say(model: Model, predictor_folder: Path) -> None:
    guided = model.guided("particles", count=3, every=2, predictor=str(predictor_folder))
    found = sample(guided)
    (cost,) = found.settings["guide_costs"].values()
    assert found.calls == cost["network_calls"] == 3 * STEPS
    # Considered at calls 0 and 2, and when all is done.
    assert cost["energy_calls"] == 3 * 3
    with pytest.raises(InputError, match="make this guide the last"):
        sample(guided.guided("time-step"))


def test_particles_are_chosen_by_the_oracle(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[float]] = []

    def carbons(self: Molecules, records: Sequence[Any], names: Sequence[str], jobs: int = -1,
                progress: Any = None) -> list[OracleAnswer]:  # fmt: skip
        values = [float((record.numbers == 6).sum()) for record in records]
        asked.append(values)
        return [OracleAnswer({"gap": v}) for v in values]

    monkeypatch.setattr(Molecules, "oracle", carbons)
    guided = model.guided("particles", count=4, threshold=0.0, pick="best", by="oracle", every=9)
    found = sample(guided, {"gap": 2.0})
    ((_, cost),) = found.settings["guide_costs"].items()
    assert cost["oracle_calls"] == sum(map(len, asked)) == 2 * 2 * 4
    assert cost["oracle_failed"] == 0
    # Batches are sorted by size; a group stands together in the last call.
    groups = sorted(np.abs(np.array(asked[-1]).reshape(2, 4) - 2.0).min(1).tolist())
    chosen = sorted(abs(float((m.numbers == 6).sum()) - 2.0) for m in found.records)
    assert chosen == groups


def test_an_oracle_that_fails_is_counted(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Molecules, "oracle", lambda self, records, *_, **__: [
        OracleAnswer({}, "no") for _ in records])  # fmt: skip
    guided = model.guided("particles", count=2, by="oracle", every=9)
    cost = sample(guided, {"gap": 2.0}).settings["guide_costs"]
    (cost,) = cost.values()
    assert cost["oracle_calls"] == cost["oracle_failed"] == 2 * 2 * 2
