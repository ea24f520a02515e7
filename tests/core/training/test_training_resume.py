import csv
import os
import pickle
import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from tiny_training import data, denoiser, objective, run

from sciflow.errors import CheckpointError, InputError
from sciflow.training.checkpoints import last_checkpoint, load_averaged, read_checkpoint

STEPS = 11
"""Not a multiple of the 4 steps that an epoch has."""


class Interrupt(L.Callback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, step: int, number: signal.Signals = signal.SIGTERM):
        self.step, self.number = step, number

    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        if trainer.global_step == self.step - 1:
            os.kill(os.getpid(), self.number)


def state(out: Path, step: int) -> dict[str, Any]:
    return read_checkpoint(out / "checkpoints" / f"step-{step:08d}.ckpt")


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for k in a:
            assert_same(a[k], b[k])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "log.csv").open() as f:
        return [{k: v for k, v in r.items() if k != "seconds"} for r in csv.DictReader(f)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted")
    run(out, steps=STEPS)
    return out


@pytest.mark.parametrize("stop", [1, 6, STEPS - 1])
def test_a_resumed_run_has_the_bits_of_one_never_stopped(tmp_path, uninterrupted, stop) -> None:
    first = run(tmp_path, steps=STEPS, callbacks=[Interrupt(stop)])
    assert (first.step, first.finished, first.stopped_by) == (stop, False, "SIGTERM")
    assert first.checkpoint == last_checkpoint(tmp_path / "checkpoints")
    # Other initial weights: all that matters must come from the checkpoint.
    second = run(tmp_path, steps=STEPS, denoiser=denoiser(seed=99))
    assert (second.step, second.finished, second.stopped_by) == (STEPS, True, None)
    for part in ("state_dict", "optimizer_states", "global_step"):
        assert_same(state(tmp_path, STEPS)[part], state(uninterrupted, STEPS)[part])
    assert rows(tmp_path) == rows(uninterrupted)


def test_every_step_can_be_a_stop(tmp_path, uninterrupted) -> None:
    for stop in (2, 3, 4, 5, 8):
        assert run(tmp_path, steps=STEPS, callbacks=[Interrupt(stop, signal.SIGINT)]).step == stop
    run(tmp_path, steps=STEPS)
    assert_same(state(tmp_path, STEPS)["state_dict"], state(uninterrupted, STEPS)["state_dict"])
    assert rows(tmp_path) == rows(uninterrupted)


def test_more_steps_go_on_exactly_before_the_decay(tmp_path) -> None:
    run(tmp_path / "at once", steps=STEPS, decay_start=8)
    run(tmp_path / "longer", steps=6, decay_start=6)
    run(tmp_path / "longer", steps=STEPS, decay_start=8)
    a, b = (state(tmp_path / d, STEPS) for d in ("at once", "longer"))
    assert_same(a["state_dict"], b["state_dict"])


def test_an_interruption_says_where_and_how_to_go_on(tmp_path, capfd) -> None:
    before = signal.getsignal(signal.SIGINT)
    result = run(tmp_path, callbacks=[Interrupt(3, signal.SIGINT)])
    told = capfd.readouterr().err
    assert "stopped after step 3 of 12 (SIGINT)" in told
    assert str(result.checkpoint) in told
    assert "same command again" in told
    assert signal.getsignal(signal.SIGINT) is before


def test_a_changed_learning_rate_is_allowed_and_told(tmp_path, capfd) -> None:
    run(tmp_path, steps=3)
    run(tmp_path, steps=6, lr=1e-4, weight_decay=0.5)
    told = capfd.readouterr().err
    assert "lr 0.003 -> 0.0001" in told
    assert "no longer equals" in told
    groups = state(tmp_path, 6)["optimizer_states"][0]["param_groups"]
    assert [g["weight_decay"] for g in groups] == [0.5, 0.0]


def test_a_finished_run_is_not_repeated(tmp_path, uninterrupted) -> None:
    before = rows(uninterrupted)
    result = run(uninterrupted, steps=STEPS, denoiser=denoiser(seed=7))
    assert result.finished
    assert rows(uninterrupted) == before
    assert result.row["loss"] == float(before[-1]["loss"])
    averaged = load_averaged(result.checkpoint, denoiser(seed=8)).network.state_dict()
    assert_same(dict(result.denoiser.network.state_dict()), dict(averaged))


@pytest.mark.parametrize("name, changed", [
    ("data", {"data": data(36)}),
    ("data", {"data": data(seed=1)}),
    ("batch size", {"batch_size": 4}),
    ("seed", {"seed": 1}),
    ("network", {"denoiser": denoiser(dim=32)}),
    ("objective", {"objective": objective().__class__(beta=2.0)}),
    ("beyond", {"steps": 2}),
    ("choose another folder", {"resume": False}),
])  # fmt: skip
def test_resuming_another_run_is_refused_by_name(tmp_path, name: str, changed: dict) -> None:
    run(tmp_path, steps=4)
    with pytest.raises(InputError, match=rf"step-00000004\.ckpt: .*{name}"):
        run(tmp_path, **{"steps": 6, **changed})


def test_a_half_written_file_is_never_the_last(tmp_path) -> None:
    run(tmp_path, steps=5, checkpoint_every=2, keep=2)
    folder = tmp_path / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["step-00000004.ckpt", "step-00000005.ckpt"]
    (folder / ".step-00000006.ckpt.x7qp").write_bytes(b"half")
    (folder / "step-00000006.ckpt.tmp").write_bytes(b"half")
    assert last_checkpoint(folder) == folder / "step-00000005.ckpt"


def test_a_save_that_fails_leaves_the_one_before(tmp_path, monkeypatch) -> None:
    real, calls = os.replace, []

    def full(*paths) -> None:
        calls.append(paths)
        if str(paths[1]).endswith("step-00000004.ckpt"):
            raise OSError(28, "No space left on device")
        real(*paths)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path, steps=6, checkpoint_every=2)
    folder = tmp_path / "checkpoints"
    assert [p.name for p in folder.iterdir()] == ["step-00000002.ckpt"]
    monkeypatch.undo()
    assert run(tmp_path, steps=6).finished


def test_a_flipped_bit_is_refused_by_name(tmp_path) -> None:
    path = run(tmp_path, steps=2).checkpoint
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"step-00000002\.ckpt.*checksum.*delete it"):
        run(tmp_path, steps=4)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"step-00000002\.ckpt: damaged"):
        run(tmp_path, steps=4)


def test_nothing_is_unpickled(tmp_path) -> None:
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    path = tmp_path / "checkpoints" / "step-00000002.ckpt"
    path.parent.mkdir()
    torch.save({"state_dict": {}, "trap": Trap()}, path, pickle_module=pickle)
    with pytest.raises(CheckpointError, match="could run code"):
        run(tmp_path, steps=4)
    assert not (tmp_path / "ran").exists()


def test_a_crash_loses_no_row_and_repeats_none(tmp_path, uninterrupted) -> None:
    run(tmp_path, steps=STEPS, callbacks=[Interrupt(6)])
    # After the checkpoint of step 6 the process wrote a row more, half of another, and died.
    with (tmp_path / "log.csv").open("a") as f:
        f.write("8,64" + ",9" * 7 + "\n10,80,0")
    run(tmp_path, steps=STEPS)
    assert rows(tmp_path) == rows(uninterrupted)
