"""How scalars enter: formulas at known points, and what "not asked for" means."""

from __future__ import annotations

import math

import pytest
import torch

from sciflow.networks.embeddings import (
    ConditionEmbedding,
    LevelEmbedding,
    RadialBasis,
    masked_softmax,
)
from sciflow.networks.inputs import Modulation


def condition_embedding() -> ConditionEmbedding:
    torch.manual_seed(0)
    embedding = ConditionEmbedding({"gap": (5.0, 2.0), "dipole": (3.0, 1.0)}, 8)
    with torch.no_grad():
        for p in embedding.parameters():
            p.normal_()
    return embedding


def test_nan_and_absence_give_the_learned_null() -> None:
    embedding = condition_embedding()
    like, nan = torch.zeros(3, 1), torch.full((3,), torch.nan)
    null = sum(embedding.null.values())
    for conditions in ({}, {"gap": nan}, {"gap": nan, "dipole": nan}):
        torch.testing.assert_close(embedding(conditions, like), null.expand(3, -1))
    some = embedding({"gap": torch.tensor([torch.nan, 5.0, 6.0])}, like)
    torch.testing.assert_close(some[0], null)
    assert float((some[1] - some[2]).abs().max().detach()) > 1e-2
    assert float((some[1] - null).abs().max().detach()) > 1e-2


def test_conditions_add_and_rows_are_independent() -> None:
    embedding = condition_embedding()
    like = torch.zeros(1, 1)
    gap, dipole = torch.tensor([6.0]), torch.tensor([2.0])
    both = embedding({"gap": gap, "dipole": dipole}, like)
    parts = embedding({"gap": gap}, like) + embedding({"dipole": dipole}, like)
    torch.testing.assert_close(both, parts - embedding({}, like))
    rows = embedding({"gap": torch.cat((gap, gap + 1))}, torch.zeros(2, 1))
    torch.testing.assert_close(rows[:1], embedding({"gap": gap}, like))


def test_values_are_standardised_and_extrapolate() -> None:
    embedding = condition_embedding()
    like = torch.zeros(1, 1)
    z = (torch.tensor([8.0]) - 5.0) / 2.0
    gaussians = torch.exp(-(((z - torch.linspace(-4, 4, 24)) / (8 / 23)) ** 2) / 2)
    want = embedding.maps["gap"](torch.cat((gaussians, z)))[None] + embedding.null["dipole"]
    torch.testing.assert_close(embedding({"gap": torch.tensor([8.0])}, like), want)
    far = [embedding({"gap": torch.tensor([v])}, like) for v in (50.0, 60.0)]
    assert float((far[0] - far[1]).abs().max().detach()) > 0.1


def test_missing_values_leave_gradients_finite() -> None:
    embedding = condition_embedding()
    embedding({"gap": torch.tensor([torch.nan, 5.0])}, torch.zeros(2, 1)).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in embedding.parameters() if p.grad is not None)


def test_levels_are_sines_and_cosines() -> None:
    embedding = LevelEmbedding(16)
    level = torch.tensor([[-8.0, 0.0], [1.5, 8.0]])
    out = embedding(level)
    assert out.shape == (2, 2, 16)
    torch.testing.assert_close(out.square().sum(-1), torch.full((2, 2), 8.0))
    assert float(embedding.frequencies[0]) == pytest.approx(0.1)
    assert float(embedding.frequencies[-1]) == pytest.approx(8.0)
    assert float(out[1, 0, 0]) == pytest.approx(math.sin(0.15), rel=1e-5)
    # The slowest wave alone tells all levels in [−8, 8] apart.
    slow = embedding(torch.linspace(-8, 8, 50))[:, 0]
    assert bool((slow.diff() > 0).all())


def test_radial_functions_peak_at_their_centres() -> None:
    basis = RadialBasis(8)
    d = -basis.centres[1:].log()
    out = basis(d)
    assert out.shape == (7, 8)
    torch.testing.assert_close(out[torch.arange(7), torch.arange(1, 8)], torch.ones(7))
    assert bool((out >= 0).all() and (out <= 1).all())
    want = math.exp(-32 * (math.exp(-0.7) - 1 / 7) ** 2)
    assert float(basis(torch.tensor(0.7))[1]) == pytest.approx(want, rel=1e-4)


def test_masked_softmax_sums_over_what_is_real() -> None:
    logits = torch.tensor([[1.0, 2.0, 30.0], [1.0, 2.0, 3.0]], requires_grad=True)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    p = masked_softmax(logits, mask)
    torch.testing.assert_close(p[0, :2], torch.tensor([1.0, 2.0]).softmax(0))
    assert float(p[0, 2].detach()) == 0
    assert not bool(p[1].any())
    p.square().sum().backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
    assert masked_softmax(torch.zeros(2, 0), torch.ones(2, 0, dtype=torch.bool)).shape == (2, 0)


def test_modulation_starts_as_the_identity() -> None:
    shift, scale, gate = Modulation(4, 1)(torch.randn(2, 1, 4))
    assert not bool(shift.any())
    assert bool((scale == 1).all() and (gate == 1).all())
