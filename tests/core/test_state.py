"""Batches of named fields: indexing, repeating, types, and the times of their elements."""

from __future__ import annotations

import pytest
import torch

from sciflow.state import Context, State, field_times


@pytest.fixture
def state() -> State:
    context = Context(
        torch.tensor([[True, True, True], [True, False, False]]),
        {"gap": torch.tensor([6.0, float("nan")])},
        {"x": torch.tensor([[True, False, False], [False, False, False]])},
        {"edges": torch.arange(12).view(2, 3, 2)},
    )
    fields = {"x": torch.randn(2, 3, 3), "types": torch.tensor([[1, 2, 3], [4, 0, 0]])}
    return State(fields, context)


def test_is_a_mapping_of_its_fields(state: State) -> None:
    assert list(state) == ["x", "types"] and len(state) == 2 and state.batch_size == 2
    assert state.context.lengths.tolist() == [3, 1] and len(state.context) == 2
    changed = state.replace(x=torch.zeros(2, 3, 3))
    assert not changed["x"].any() and state["x"].any()
    assert changed["types"] is state["types"] and changed.context is state.context


def test_index_and_repeat_take_everything_along(state: State) -> None:
    twice = state.repeat(2)
    assert twice.context.lengths.tolist() == [3, 3, 1, 1]
    back = twice.index(torch.tensor([2, 1]))
    assert torch.equal(back["x"], state["x"][[1, 0]])
    assert torch.equal(back.context.extras["edges"], state.context.extras["edges"][[1, 0]])
    assert torch.equal(back.context.given["x"], state.context.given["x"][[1, 0]])
    assert back.context.conditions["gap"].isnan().tolist() == [True, False]
    assert state.index(slice(0, 0)).batch_size == 0


def test_dtype_changes_numbers_and_not_symbols(state: State) -> None:
    double = state.to(torch.float64)
    assert double["x"].dtype == double.context.conditions["gap"].dtype == torch.float64
    assert double["types"].dtype == torch.int64 and double.context.mask.dtype == torch.bool
    assert double.to("cpu")["x"].dtype == torch.float64 and double.device.type == "cpu"


def test_unconditional_asks_for_nothing(state: State) -> None:
    bare = state.context.unconditional()
    assert bool(bare.conditions["gap"].isnan().all())
    assert state.context.conditions["gap"][0] == 6.0
    assert torch.equal(bare.mask, state.context.mask)


def test_a_time_for_all_reaches_each_sample_and_spares_what_is_given(state: State) -> None:
    times = field_times(0.3, state)
    assert times["types"].tolist() == pytest.approx([0.3, 0.3])
    expected = torch.tensor([[0.0, 0.3, 0.3], [0.3, 0.3, 0.3]], dtype=times["x"].dtype)
    torch.testing.assert_close(times["x"], expected)


def test_times_of_samples_fields_and_elements(state: State) -> None:
    a_sample = field_times(torch.tensor([0.1, 0.9]), state)
    assert a_sample["x"][0].tolist() == pytest.approx([0.0, 0.1, 0.1])
    assert a_sample["x"][1].tolist() == pytest.approx([0.9] * 3)
    element = torch.tensor([[0.2, 0.4, 0.6], [0.8, 0.0, 0.0]])
    mixed = field_times({"x": element, "types": torch.tensor(0.5)}, state)
    assert mixed["x"][0].tolist() == pytest.approx([0.0, 0.4, 0.6])
    assert mixed["types"].tolist() == [0.5, 0.5]


def test_a_plain_number_loses_nothing(state: State) -> None:
    """The grid is float64: a step's coefficients and its time must not differ by float32."""
    t = 1 / 3
    assert float(field_times(t, state)["types"][0]) == t


def test_an_integer_is_a_time(state: State) -> None:
    assert field_times(1, state)["types"].tolist() == [1.0, 1.0]
    assert field_times(torch.tensor(1), state)["types"].is_floating_point()
