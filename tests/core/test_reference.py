"""Rows near targets follow their law; what is asked for is the target's or the row's own value."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from sciflow.random import Draws
from sciflow.reference import fixed_part, reference_of, rows_near, values_asked
from sciflow.targets import Target
from sciflow.training.prepared import PreparedData

N = 100_000


class Even(Draws):
    """Uniforms that are the midpoints of N equal parts: frequencies are then probabilities."""

    def uniform(self, shape: Sequence[int], stream: str, *args: object, **more: object) -> Tensor:
        return (self.samples.double() + 0.5) / N


EVEN = Even(0, torch.arange(N))


def frequencies(reference: dict[str, Tensor], targets: dict[str, Target]) -> Tensor:
    std = dict.fromkeys(targets, 2.0)
    rows = rows_near(reference, targets, std, EVEN, "row")
    return torch.bincount(rows, minlength=len(reference["lengths"])) / N


def test_a_row_is_drawn_by_the_kernel() -> None:
    """Against the formula: a point, a range and an open range at once, h = 0.15 · 2."""
    a, b = torch.tensor([1.0, 1.2, 1.5, 0.9, 2.0]), torch.tensor([3.0, 3.3, 3.9, 2.0, 2.8])
    reference = {"lengths": torch.arange(1, 6), "a": a, "b": b}
    targets = {"a": Target(1.1, 1.1), "b": Target(2.9, 3.2)}
    d = torch.stack([(a - 1.1).abs(), torch.tensor([0.0, 0.1, 0.7, 0.9, 0.1])]).double()
    p = (-((d / 0.3) ** 2).sum(0) / 2).softmax(0)
    torch.testing.assert_close(frequencies(reference, targets).double(), p, atol=2e-5, rtol=0)

    above = frequencies(reference, {"b": Target(3.2, math.inf)})
    short = torch.tensor([0.2, 0.0, 0.0, 1.2, 0.4]).double()
    p = (-((short / 0.3) ** 2) / 2).softmax(0)
    torch.testing.assert_close(above.double(), p, atol=2e-5, rtol=0)


def test_without_targets_all_rows_are_alike() -> None:
    found = frequencies({"lengths": torch.arange(1, 9)}, {})
    torch.testing.assert_close(found, torch.full((8,), 1 / 8))


@pytest.mark.parametrize("wanted", [50.0, 1e6])
def test_far_from_all_the_nearest_row_is_taken(wanted: float) -> None:
    reference = {"lengths": torch.arange(1, 4), "a": torch.tensor([1.0, 9.0, 5.0])}
    found = frequencies(reference, {"a": Target(wanted, wanted)})
    assert found.tolist() == [0.0, 1.0, 0.0]


def test_a_row_without_the_value_is_not_near() -> None:
    """Unless no row has it: then all are alike."""
    reference = {"lengths": torch.arange(1, 4), "a": torch.tensor([torch.nan, 4.0, torch.nan])}
    assert frequencies(reference, {"a": Target(1.0, 1.0)}).tolist() == [0.0, 1.0, 0.0]
    reference["a"] = torch.full((3,), torch.nan)
    found = frequencies(reference, {"a": Target(1.0, 1.0)})
    torch.testing.assert_close(found, torch.full((3,), 1 / 3), atol=1e-5, rtol=0)


def test_a_sample_keeps_its_row_in_any_batch() -> None:
    reference = {"lengths": torch.arange(1, 60), "a": torch.linspace(0, 5, 59)}
    draws = Draws(4, torch.arange(30))
    targets = {"a": Target(1.0, 3.0)}
    rows = rows_near(reference, targets, {"a": 1.5}, draws, "row")
    some = torch.tensor([29, 3, 11])
    assert torch.equal(rows_near(reference, targets, {"a": 1.5}, draws.rows(some), "row"),
                       rows[some])  # fmt: skip


def test_what_is_asked_for() -> None:
    reference = {"lengths": torch.arange(1, 5), "a": torch.tensor([1.0, 2.0, 9.0, torch.nan]),
                 "b": torch.zeros(4), "c": torch.tensor([1.0, 2.0, 3.0, 4.0])}  # fmt: skip
    targets = {"a": Target(1.5, 6.0), "c": Target(7.0, 7.0)}
    statistics = {"a": (5.0, 1.0), "b": (0.0, 1.0), "c": (0.0, 1.0)}
    asked = values_asked(reference, torch.tensor([0, 1, 2, 3, 1]), targets, statistics)
    assert asked["a"].tolist() == [1.5, 2.0, 6.0, 5.0, 2.0]
    assert bool(asked["b"].isnan().all()) and asked["c"].tolist() == [7.0] * 5


def test_the_reference_is_a_fixed_part_of_the_rows() -> None:
    rows = fixed_part(10_000)
    assert len(rows) == 4096 and bool((rows.diff() > 0).all())
    # Spread over the whole set: the mean of 4096 of 0 … 9999 has a deviation of 35.
    assert abs(float(rows.double().mean()) - 4999.5) < 140
    assert torch.equal(fixed_part(7), torch.arange(7))
    values = torch.arange(10_000).float()
    data = PreparedData({}, {}, torch.arange(10_000) % 40 + 1, {"a": values})
    found = reference_of(data)
    assert torch.equal(found["a"], values[rows])
    assert torch.equal(found["lengths"].long(), rows % 40 + 1)
