"""Data sets of one kind of secondary structure, and models of them as one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from domains.proteins.adapter import Proteins
from domains.proteins.datasets import LOADERS, backbones, split
from domains.proteins.encoding import Encoding
from domains.proteins.evaluators.secondary_structure import secondary_structure
from domains.proteins.ideal import helix_bundle
from domains.proteins.networks import PRESETS
from domains.proteins.pdb import write_pdb
from sciflow.checkpoints import load_checkpoint
from sciflow.cli import cli
from sciflow.data import shared_data
from sciflow.errors import InputError
from sciflow.model import Model

needs_data = pytest.mark.skipif(shared_data() is None, reason="backbones.npz is not here")


@needs_data
def test_alpha_and_beta_are_what_they_say() -> None:
    domain, whole = Proteins(), backbones()
    assert set(LOADERS) <= set(domain.datasets)
    parts = split(whole).items()
    sides = {text: side for side, rows in parts for text in whole.subset(rows).sequences}
    assert len(sides) == len(whole)
    for name, count, clusters, state in (
        ("backbones-alpha", 1638, 1232, "helix"),
        ("backbones-beta", 836, 374, "strand"),
    ):
        table = domain.dataset(name)
        assert (table.name, len(table), len(set(table.cluster30.tolist()))) == (
            name, count, clusters,
        )  # fmt: skip
        assert f"{count:,}" in domain.datasets[name]
        # By DSSP computed anew, not by the states that the table keeps.
        content = secondary_structure([table[i] for i in range(0, len(table), 40)])
        other = {"helix": "strand", "strand": "helix"}[state]
        assert content[state] > 0.35 and content[other] < 0.1
        # What is held out stays held out.
        for side, rows in split(table).items():
            assert {sides[text] for text in table.subset(rows).sequences} == {side}
    alpha, beta = (set(domain.dataset(n).sequences) for n in ("backbones-alpha", "backbones-beta"))
    assert not alpha & beta


def tiny(folder: Path, seed: int, preset: str = "angles-by-heat") -> Path:
    """Random weights, and the guides that the bundled model brings."""
    config = {
        **PRESETS[preset],
        "domain": "proteins",
        "encoding": Encoding(("torsions", "bends")).config(),
        "conditions": {},
        "network": {"dim": 16, "pair_dim": 0, "depth": 1, "heads": 2},
        "guides": ["contract:weight=0.4", "shape:iterations=2"],
        "sampler": {"steps": 4, "method": "ddpm"},
        "training": {"steps": seed},
    }
    torch.manual_seed(seed)
    domain = Proteins()
    denoiser = domain.denoiser(config)
    with torch.no_grad():
        # Fresh networks begin with layers of zeros, which would make all models one.
        for p in denoiser.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return Model(domain, denoiser, config, {"lengths": torch.tensor([28, 30])}).save(
        folder / str(seed)
    )


@pytest.fixture
def double() -> Iterator[None]:
    """Random networks are chaotic: in single precision rounding grows to tenths of an ångström."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("rule", ["or", "and", "average"])
def test_two_models_of_angles_are_one(rule: str, tmp_path: Path, double: None) -> None:
    """Under the guides of both; the sample of a number stays what it is in other company."""
    one, other = (Model.from_folder(tiny(tmp_path, seed)) for seed in (1, 2))
    both = one.guided("superposition", model=str(other.name), rule=rule)
    made = both.sample(3, {"length": (20, 24)}, seed=5)
    assert len(made.kept) == 3 and all(c.complete and c.unbroken for c in made.kept)
    assert made.calls == 2 * 4
    alone = both.sample(1, {"length": (20, 24)}, seed=5, first=2).records[0]
    np.testing.assert_allclose(made.records[2].backbone, alone.backbone, atol=1e-6)  # type: ignore[union-attr]
    for model in (one, other):
        single = model.sample(3, {"length": (20, 24)}, seed=5)
        assert np.abs(single.records[2].backbone - made.records[2].backbone).max() > 0.1  # type: ignore[union-attr]


def test_flows_tell_nothing_to_weigh_models_by(tmp_path: Path) -> None:
    """The torsions say whether a chain is of helices or strands; bends alone would blur the two."""
    one, other = (Model.from_folder(tiny(tmp_path, seed, "angles")) for seed in (1, 2))
    asked = {"length": (20, 24)}
    for rule in ("or", "and"):
        both = one.guided("superposition", model=str(other.name), rule=rule)
        with pytest.raises(InputError, match="geodesics tells none of 'torsions'"):
            both.sample(1, asked)
    assert one.guided("superposition", model=str(other.name), rule="average").sample(1, asked).kept


def test_training_goes_on_by_other_paths(tmp_path: Path) -> None:
    """A preset of the same network takes a model's weights, its scale and its properties."""

    def run(*arguments: Any) -> Result:
        return CliRunner().invoke(cli, [str(a) for a in arguments])

    write_pdb(tmp_path / "bundles.pdb", [helix_bundle(k) for k in range(12)])
    common = ["train", "proteins", "--data", tmp_path / "bundles.pdb", "--steps", 1,
              "--lr", 1e-12, "--batch-size", 2, "--accelerator", "cpu", "--threads", 1]  # fmt: skip
    first = run(*common, "--preset", "angles", "--target-properties", "helix",
                "--out", tmp_path / "a")  # fmt: skip
    assert first.exit_code == 0, first.output
    origin = tmp_path / "a" / "model"
    second = run(*common, "--preset", "angles-by-heat", "--start-from", origin,
                 "--out", tmp_path / "b")  # fmt: skip
    assert second.exit_code == 0, second.output
    before, after = (load_checkpoint(f) for f in (origin, tmp_path / "b" / "model"))
    for key in ("encoding", "conditions", "network"):
        assert after.config[key] == before.config[key]
    assert after.config["paths"]["torsions"]["kind"] == "diffusion"
    old, new = before.part("network"), after.part("network")
    assert max(float((old[k] - new[k]).abs().max()) for k in old) < 1e-6
