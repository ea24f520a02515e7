"""A model on disk is whole or absent, and a changed byte is refused by name."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from killed_saves import version, version_of

from sciflow.checkpoints import FORMAT, Checkpoint, load_checkpoint, save_checkpoint
from sciflow.errors import CheckpointError, InputError
from sciflow.model import Model, load

ROOT = Path(__file__).resolve().parents[2]
FILES = ("config.json", "model.safetensors", "card.md", "manifest.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "model", version(1))


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    tensors = {
        "network/a": torch.randn(3, 4, dtype=torch.float64),
        "network/strided": torch.arange(12).view(3, 4).T,
        "network/half": torch.randn(5).bfloat16(),
        "network/scalar": torch.tensor(2.5),
        "network/empty": torch.zeros(0, 3),
        "reference/lengths": torch.arange(7, dtype=torch.int16),
    }
    config = {"x": [1, 2.5, None, True], "nested": {"é": "ü"}}
    saved = Checkpoint(config, tensors, "# Karte\nÄ\n")
    loaded = load_checkpoint(save_checkpoint(tmp_path / "m", saved))
    assert loaded.config == config and loaded.card == saved.card
    assert loaded.tensors.keys() == tensors.keys()
    for name, x in tensors.items():
        assert loaded.tensors[name].dtype == x.dtype and loaded.tensors[name].equal(x)
    assert set(loaded.part("network")) == {"a", "strided", "half", "scalar", "empty"}


def test_the_digest_is_the_identity_of_the_content(tmp_path: Path) -> None:
    a, b, c = (load_checkpoint(save_checkpoint(tmp_path / n, version(k))).digest
               for n, k in (("a", 1), ("b", 1), ("c", 2)))  # fmt: skip
    assert a == b != c and len(a) == 64


def test_saving_over_a_model_leaves_the_new_one_alone(folder: Path) -> None:
    save_checkpoint(folder, version(2))
    assert version_of(load_checkpoint(folder)) == 2
    assert [p.name for p in folder.parent.iterdir()] == ["model"]
    assert sorted(p.name for p in folder.iterdir()) == sorted(FILES)


def test_relative_and_trailing_slash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_checkpoint("deep/down/model/", version(3))
    assert version_of(load_checkpoint("deep/down/model/")) == 3


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_refused_by_name(folder: Path, name: str) -> None:
    path = folder / name
    whole = path.read_bytes()
    rng = random.Random(name)
    places = {0, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(40))}
    for place in sorted(places):
        broken = bytearray(whole)
        broken[place] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
            load_checkpoint(folder)
    path.write_bytes(whole)
    assert version_of(load_checkpoint(folder)) == 1


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut", "empty", "longer", "gone"])
def test_other_damage_is_refused_by_name(folder: Path, name: str, damage: str) -> None:
    path = folder / name
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(
            {"cut": whole[: len(whole) // 2], "empty": b"", "longer": whole + b" "}[damage]
        )
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load_checkpoint(folder)


def test_a_newer_format_says_what_to_do(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace(f'"format": {FORMAT}', f'"format": {FORMAT + 1}'))
    with pytest.raises(CheckpointError, match=f"format {FORMAT + 1} is newer .* update it"):
        load_checkpoint(folder)


def test_what_is_no_model_says_what_one_is(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a model is a folder with config\.json"):
        load_checkpoint(tmp_path)
    with pytest.raises(InputError, match=r"no model .*neither a folder nor one of"):
        load(tmp_path / "nothing")


def test_nan_in_a_configuration_is_not_saved(folder: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        save_checkpoint(folder, Checkpoint({"x": float("nan")}, {}))
    assert version_of(load_checkpoint(folder)) == 1
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_a_save_that_is_killed_leaves_a_loadable_model(tmp_path: Path) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("killed_saves.py")
    env["PYTHONPATH"] = str(ROOT)
    run = subprocess.run(
        [sys.executable, script, tmp_path], env=env, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    results = json.loads(run.stdout)
    # Both outcomes occur: the old model before the last rename, the new one after it.
    assert set(results["points"]) == {1, 2} and len(results["points"]) > 20
    assert max(results["random"]) > 0


def test_load_finds_a_model_whose_save_was_killed_between_its_renames(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model_folder, tmp_path / ".model.old.abc")
    assert load(model).properties == load(tiny_model_folder).properties


def test_a_model_of_another_network_is_refused(tiny_model_folder: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(tiny_model_folder)
    tensors = dict(checkpoint.tensors)
    name = next(k for k in tensors if k.startswith("network/"))
    tensors[name] = tensors[name][..., :-1]
    folder = save_checkpoint(tmp_path / "m", Checkpoint(checkpoint.config, tensors))
    with pytest.raises(CheckpointError, match="weights do not fit .*1 differ, first " + name[8:]):
        Model.from_folder(folder)
