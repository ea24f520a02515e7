"""The guide ``superposition``: two trained models as one by name, refused where they do not fit."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sciflow
from sciflow.denoisers import NetworkDenoiser
from sciflow.errors import InputError
from sciflow.guidance import ClassifierFree, Superposition
from sciflow.model import Model, Samples

STEPS = {"steps": 4, "method": "ddpm"}


@pytest.fixture(scope="module")
def folder(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as if its noise had been independent, so that its score is known."""
    tiny = sciflow.load(tiny_model_folder)
    config = deepcopy(tiny.config)
    config["paths"]["coords"]["coupling"] = "independent"
    denoiser = tiny.domain.denoiser(config)
    denoiser.network.load_state_dict(tiny.denoiser.network.state_dict())  # type: ignore[union-attr,operator]
    made = Model(tiny.domain, denoiser, config, tiny.reference)
    return made.save(tmp_path_factory.mktemp("models") / "independent")


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return sciflow.load(folder)


@pytest.fixture(scope="module")
def other(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another training of the same kind: other weights, steps and a guide of its own."""
    config = {**model.config, "training": {"steps": 7}, "guides": ["time-step:weight=0.5"]}
    denoiser = model.domain.denoiser(config)
    denoiser.network.load_state_dict(model.denoiser.network.state_dict())  # type: ignore[union-attr,operator]
    torch.manual_seed(3)
    with torch.no_grad():
        for p in denoiser.parameters():
            p.add_(0.1 * torch.randn_like(p))
    made = Model(model.domain, denoiser, config, model.reference)
    return made.save(tmp_path_factory.mktemp("models") / "other")


def arrays(samples: Samples) -> np.ndarray[Any, Any]:
    return np.concatenate([r.positions for r in samples.kept])


@pytest.mark.parametrize("rule", ["or", "and", "average"])
def test_it_is_the_superposition_of_both(rule: str, model: Model, other: Path) -> None:
    """The second under its own guide, both under the weight of the run."""
    second = sciflow.load(other)
    guides = {"guided": (0.5, (0.0, 1.0))}
    assert isinstance(second.denoiser, NetworkDenoiser) and len(second.guides) == 1

    def by_hand(denoiser: Any) -> Superposition:
        from sciflow.guides import GUIDES

        plain = ClassifierFree(second.denoiser, *guides["guided"])
        guide = GUIDES["time-step"]
        mine = guide.wrap(second, guide.complete("time-step", {"weight": 0.5}), plain)
        return Superposition([denoiser, mine], rule)  # type: ignore[arg-type]

    asked = {"target": {"gap": 4.0}, "guidance": 0.5, "sampler": STEPS}
    named = model.guided("superposition", model=str(other), rule=rule).sample(3, **asked)
    assert np.array_equal(arrays(named), arrays(model.guided(by_hand).sample(3, **asked)))
    assert not np.allclose(arrays(named), arrays(model.sample(3, **asked)), atol=0.01)
    # Two calls of the first, and of the second two times two.
    assert named.calls == 6 * STEPS["steps"]


def test_a_model_with_itself_is_itself(model: Model, folder: Path) -> None:
    plain = arrays(model.sample(3, sampler=STEPS))
    for rule in ("or", "average"):
        both = model.guided("superposition", model=str(folder), rule=rule)
        np.testing.assert_allclose(arrays(both.sample(3, sampler=STEPS)), plain, atol=1e-4)


def test_all_weight_on_the_first_is_the_first(model: Model, other: Path) -> None:
    first = model.guided("superposition", model=str(other), bias=1e9)
    np.testing.assert_allclose(
        arrays(first.sample(3, sampler=STEPS)), arrays(model.sample(3, sampler=STEPS)), atol=1e-4
    )


@pytest.mark.parametrize(
    ("settings", "method", "message"),
    [
        ({}, "ddpm", "superposition:model=FOLDER"),
        ({"model": "nowhere"}, "ddpm", "no model 'nowhere'"),
        ({"rule": "or"}, "ab2", "not by 'ab2'"),
        ({"rule": "and"}, "heun", "rule=average takes any method"),
        ({"rule": "xor"}, "ddpm", "or, and, average"),
    ],
)
def test_what_is_refused(
    settings: dict[str, str], method: str, message: str, model: Model, other: Path
) -> None:
    settings = {"model": str(other), **settings} if settings else settings
    guided = model.guided("superposition", **settings)
    with pytest.raises(InputError, match=message):
        guided.sample(1, sampler={**STEPS, "method": method})


def test_models_may_differ_in_their_training_alone(
    model: Model, other: Path, tmp_path: Path
) -> None:
    """For autoguidance too: the weaker model is one of fewer steps."""
    model.guided("autoguidance", model=str(other)).sample(1, {"gap": 4.0}, sampler=STEPS)
    encoding = {**model.config["encoding"], "scale": 2.0}
    strange = Model(model.domain, model.denoiser, {**model.config, "encoding": encoding},
                    model.reference).save(tmp_path / "strange")  # fmt: skip
    with pytest.raises(InputError, match="differs in 'encoding'"):
        model.guided("superposition", model=str(strange)).sample(1, sampler=STEPS)


def test_densities_of_coupled_noise_are_not_known(tiny_model_folder: Path, other: Path) -> None:
    tiny = sciflow.load(tiny_model_folder)
    both = tiny.guided("superposition", model=str(other), rule="or")
    with pytest.raises(InputError, match=r"of 'coords' only the flow .* rule=average"):
        both.sample(2, sampler={"steps": 4, "method": "ab2"})
