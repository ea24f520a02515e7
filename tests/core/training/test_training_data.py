import numpy as np
import pytest
import torch
from tiny_training import data, denoiser, objective

from sciflow.errors import InputError
from sciflow.random import Draws
from sciflow.state import State
from sciflow.training.data import Batches, PreparedData


def test_an_epoch_holds_each_sample_at_most_once_and_nearly_all() -> None:
    batches = Batches(data(100), batch_size=8, seed=3, pool=4)
    for epoch in range(3):
        steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
        rows = np.concatenate([batches.rows(k) for k in steps])
        assert len(rows) == 96
        assert len(np.unique(rows)) == 96


def test_the_remainder_changes_from_epoch_to_epoch() -> None:
    batches = Batches(data(20), batch_size=16)
    seen = set(np.concatenate([batches.rows(k) for k in range(12)]).tolist())
    assert seen == set(range(20))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_partition_each_batch(world: int) -> None:
    prepared = data(64)
    whole = Batches(prepared, batch_size=16, seed=1)
    parts = [iter(Batches(prepared, 16, 1, rank=r, world=world)) for r in range(world)]
    for step in range(9):
        rows = [next(p).samples for p in parts]
        assert {len(r) for r in rows} == {16 // world}
        assert sorted(torch.cat(rows).tolist()) == sorted(whole.rows(step).tolist())


def test_a_batch_is_a_function_of_seed_and_step_alone() -> None:
    prepared = data(50)
    steps = [13, 2, 40, 0, 13]
    asked_out_of_order = Batches(prepared, 8, seed=5)
    for k in steps:
        fresh = iter(Batches(prepared, 8, seed=5, start=lambda k=k: k))
        assert next(fresh).samples.tolist() == asked_out_of_order.rows(k).tolist()
    assert Batches(prepared, 8, seed=6).rows(0).tolist() != asked_out_of_order.rows(0).tolist()


def test_batches_of_similar_length_carry_little_padding() -> None:
    prepared = data(640, largest=30)
    batches = Batches(prepared, batch_size=16)
    padded = real = 0
    for k in range(batches.steps_per_epoch):
        lengths = prepared.lengths[torch.from_numpy(batches.rows(k))]
        padded += int(lengths.max()) * len(lengths)
        real += int(lengths.sum())
    # At random the longest of 16 would leave almost half of each batch empty.
    assert real / padded > 0.9


def test_a_batch_is_cut_to_its_longest_sample() -> None:
    prepared = data(37)
    shortest = prepared.lengths.argsort()[:3]
    state = prepared.collate(shortest)
    n = int(prepared.lengths[shortest].max())
    assert state["bonds"].shape == (3, n, n)
    assert state["coords"].shape == (3, n, 3)
    assert state["types"].dtype == torch.int64
    assert state.context.lengths.tolist() == prepared.lengths[shortest].tolist()


def test_padding_does_not_influence_the_loss() -> None:
    model, loss = denoiser().double(), objective()
    state = data().collate(torch.arange(10)).to(torch.float64)
    mask = state.context.mask
    pairs = mask[:, :, None] & mask[:, None]
    garbage = State({
        "coords": torch.where(mask[..., None], state["coords"], 1e3),
        "types": torch.where(mask, state["types"], 3),
        "bonds": torch.where(pairs, state["bonds"], 2),
    }, state.context)  # fmt: skip
    torch.set_default_dtype(torch.float64)
    try:
        for step in range(4):
            clean, dirty = (loss(model, s, Draws(0, range(10)), step) for s in (state, garbage))
            for name in clean.fields:
                torch.testing.assert_close(dirty.fields[name], clean.fields[name])
    finally:
        torch.set_default_dtype(torch.float32)


def test_save_and_load_give_the_same_tensors(tmp_path) -> None:
    before = data()
    before.meta["source"] = {"name": "random", "numbers": [1, 2.5, None]}
    after = PreparedData.load(before.save(tmp_path / "data.safetensors"))
    assert after.axes == before.axes
    assert after.meta == before.meta
    assert torch.equal(after.lengths, before.lengths)
    for a, b in ((after.fields, before.fields), (after.conditions, before.conditions)):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].dtype == b[name].dtype
            assert torch.equal(a[name].nan_to_num(), b[name].nan_to_num())


@pytest.mark.parametrize("damage", [
    "truncated", "text", "empty", "absent", "foreign", "half", "flipped bit",
])  # fmt: skip
def test_a_file_that_is_not_prepared_data_is_named(tmp_path, damage: str) -> None:
    from safetensors.torch import save

    path = tmp_path / "data.safetensors"
    whole = data().save(tmp_path / "whole").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    contents = {
        "flipped bit": flipped,
        "truncated": whole[: len(whole) // 2],
        "text": b"<html>404</html>",
        "empty": b"",
        "foreign": save({"weight": torch.zeros(2)}),
        "half": save({"field/x": torch.zeros(2)}, {"sciflow": '{"axes": {"x": 1}, "meta": {}}'}),
    }
    if damage in contents:
        path.write_bytes(contents[damage])
    with pytest.raises(InputError, match=r"data\.safetensors: .*sciflow data build"):
        PreparedData.load(path)


@pytest.mark.parametrize("changed, reason", [
    ({"lengths": torch.ones(3, dtype=torch.int64)}, "37 rows"),
    ({"axes": {"coords": 1, "types": 1}}, "bonds"),
    ({"lengths": torch.full((37,), 9)}, "longer"),
])  # fmt: skip
def test_tensors_that_do_not_fit_together_are_refused(changed: dict, reason: str) -> None:
    good = data()
    given = {"fields": good.fields, "axes": good.axes, "lengths": good.lengths} | changed
    with pytest.raises(InputError, match=reason):
        PreparedData(**given)


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(InputError, match="empty"):
        Batches(data().subset(torch.arange(0)), batch_size=4)
