"""Guides that a model brings along: used unless replaced or taken away, and saved with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from domains.proteins.adapter import Proteins
from domains.proteins.encoding import Encoding
from domains.proteins.networks import PRESETS
from sciflow.errors import InputError
from sciflow.model import Model


def model() -> Model:
    config = {
        **PRESETS["angles"],
        "domain": "proteins",
        "encoding": Encoding(("torsions", "bends")).config(),
        "conditions": {},
        "network": {"dim": 16, "pair_dim": 0, "depth": 1, "heads": 2},
        "guides": ["shape:rg_ratio=1.0,clash=0"],
    }
    torch.manual_seed(0)
    domain = Proteins()
    return Model(domain, domain.denoiser(config), config, {"lengths": torch.tensor([30, 40])})


def test_a_loaded_model_brings_its_guides(tmp_path: Path) -> None:
    plain = model()
    loaded = Model.from_folder(plain.save(tmp_path / "a"))
    assert len(loaded.guides) == 1 and loaded.guides[0].startswith("shape:rg_ratio=1.0,")
    again = Model.from_folder(loaded.save(tmp_path / "b"))
    assert again.guides == loaded.guides
    stronger = loaded.guided("shape", rg_ratio=0.9)
    assert len(stronger.guides) == 1 and "rg_ratio=0.9" in stronger.guides[0]
    with pytest.raises(InputError, match="cannot be saved"):
        stronger.save(tmp_path / "c")
    settings = {"seed": 1, "sampler": {"steps": 3}}
    free = loaded.guided("none").sample(2, **settings)
    assert free.settings["guides"] == []
    for a, b in zip(free.records, plain.sample(2, **settings).records, strict=True):
        assert (a.backbone == b.backbone).all()
    assert loaded.sample(2, **settings).settings["guides"] == loaded.guides


def test_a_guide_is_replaced_in_its_place(tmp_path: Path) -> None:
    """Settings of one guide change nothing but that guide: not the order in which all act."""
    config = {"guides": ["shape:clash=0", "contract:weight=0.4", "unclash:iterations=2"]}
    plain = model()
    several = Model(plain.domain, plain.denoiser, {**plain.config, **config}, plain.reference)
    loaded = Model.from_folder(several.save(tmp_path / "a"))
    same = loaded.guided("shape", clash=0)
    assert same.guides == loaded.guides
    for a, b in zip(same.sample(2).records, loaded.sample(2).records, strict=True):
        assert (a.backbone == b.backbone).all()
