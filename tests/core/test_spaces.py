"""Spaces: projections, the covariance of their noise, padding, sums over real elements."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sciflow.random import Draws
from sciflow.spaces import Euclidean, Space, Tokens, ZeroCoM
from sciflow.state import Context

MASK = torch.arange(5) < torch.tensor([5, 3, 1, 0])[:, None]
CONTEXT = Context(MASK)
DRAWS = Draws(0, torch.arange(4))
SPACES = {
    "scalars": Euclidean(),
    "vectors": Euclidean(2),
    "matrices": Euclidean(2, 2),
    "points": ZeroCoM(3),
    "tokens": Tokens(4),
    "pairs": Tokens(4, pairs=True),
}
every = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)


def anything(space: Space, context: Context = CONTEXT) -> Tensor:
    """A value that breaks every rule of its space."""
    like = space.noise(context, Draws(0, torch.arange(len(context))), "like")
    g = torch.Generator().manual_seed(0)
    if like.is_floating_point():
        return torch.randn(like.shape, generator=g)
    return torch.randint(0, 4, like.shape, generator=g)


@every
def test_projection_is_idempotent_and_empties_padding(space: Space) -> None:
    x = anything(space)
    once = space.project(x, CONTEXT)
    torch.testing.assert_close(space.project(once, CONTEXT), once, rtol=0, atol=1e-6)
    real = space.expand(space.mask(CONTEXT), once).expand(once.shape)
    assert not bool(once[~real].any()) and bool(once[real].any())
    assert once.dtype == x.dtype


@every
def test_projection_is_clean_of_what_padding_holds(space: Space) -> None:
    x = anything(space)
    real = space.expand(space.mask(CONTEXT), x).expand(x.shape)
    dirty = torch.where(real, x, torch.nan if x.is_floating_point() else 3)
    assert torch.equal(space.project(dirty, CONTEXT), space.project(x, CONTEXT))
    if x.is_floating_point():
        assert torch.equal(space.sum(dirty, CONTEXT), space.sum(x, CONTEXT))


@every
def test_noise_is_legal_and_ignores_padding_and_companions(space: Space) -> None:
    z = space.noise(CONTEXT, DRAWS, "n")
    torch.testing.assert_close(space.project(z, CONTEXT), z, rtol=0, atol=1e-6)
    longer = Context(torch.nn.functional.pad(MASK, (0, 4)))
    padded = space.noise(longer, DRAWS, "n")
    cut = padded[:, :5, :5] if isinstance(space, Tokens) and space.pairs else padded[:, :5]
    torch.testing.assert_close(cut, z, rtol=0, atol=1e-6)
    alone = space.noise(Context(MASK[1:2]), DRAWS.rows(slice(1, 2)), "n")
    torch.testing.assert_close(alone[0], z[1], rtol=0, atol=1e-6)


@every
def test_sums_and_counts(space: Space) -> None:
    ones = torch.ones_like(anything(space), dtype=torch.float64)
    event = ones[0].numel() // space.mask(CONTEXT)[0].numel()
    real = {True: [20, 6, 0, 0], False: [5, 3, 1, 0]}[getattr(space, "pairs", False)]
    assert space.count(CONTEXT).tolist() == real
    assert space.sum(ones, CONTEXT).tolist() == [event * n for n in real]
    per_element = torch.ones(space.mask(CONTEXT).shape)
    assert space.sum(per_element, CONTEXT).tolist() == real


@every
def test_times_are_expanded(space: Space) -> None:
    x = anything(space)
    for t in (torch.tensor(2.0), torch.full((4,), 2.0), torch.full((4, 5), 2.0)):
        assert torch.equal((space.expand(t, x) * x).float(), 2.0 * x)


def test_noise_takes_the_type_that_is_asked_for() -> None:
    for space in (Euclidean(2), ZeroCoM(3)):
        assert space.noise(CONTEXT, DRAWS, "n", dtype=torch.float64).dtype == torch.float64
        assert space.noise(CONTEXT, DRAWS, "n").dtype == torch.float32


def test_points_are_centred_over_real_points() -> None:
    x = ZeroCoM(3).project(anything(ZeroCoM(3)), CONTEXT)
    assert float(x.sum(1).abs().max()) < 1e-6
    assert not bool(x[2].any())  # One point alone has nowhere to be but the centre.


def test_covariance_of_centred_noise_is_the_projector() -> None:
    n, batch = 4, 40_000
    context = Context((torch.arange(6) < n).expand(batch, 6))
    z = ZeroCoM(3).noise(context, Draws(1, torch.arange(batch)), "n", dtype=torch.float64)[:, :n]
    covariance = torch.einsum("bic,bjd->icjd", z, z) / batch
    projector = torch.eye(n, dtype=torch.float64) - 1 / n
    expected = torch.einsum("ij,cd->icjd", projector, torch.eye(3, dtype=torch.float64))
    assert float((covariance - expected).abs().max()) < 5 / batch**0.5


def test_color_is_the_covariance_of_the_noise() -> None:
    g = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(1))
    coloured = ZeroCoM(3).color(g, CONTEXT)
    projector = torch.eye(5) - 1 / 5
    torch.testing.assert_close(coloured[0], projector @ g[0])


def test_given_points_hold_the_frame() -> None:
    """Only in their own sample: a companion without given points is still centred."""
    given = torch.zeros(4, 5, dtype=torch.bool)
    given[0, 1] = True
    context = CONTEXT.replace(given={"coords": given})
    space = ZeroCoM(3, "coords")
    x = anything(space)
    y = space.project(x, context)
    assert torch.equal(y[0], x[0])
    torch.testing.assert_close(y[1:], ZeroCoM(3).project(x, CONTEXT)[1:])
    padded_only = CONTEXT.replace(given={"coords": ~MASK})
    torch.testing.assert_close(space.project(x, padded_only), ZeroCoM(3).project(x, CONTEXT))
    assert float(space.noise(context, DRAWS, "n")[0].sum(0).abs().max()) > 0.1


def test_pairs_are_symmetric_without_diagonal() -> None:
    space = Tokens(4, pairs=True)
    for x in (space.project(anything(space), CONTEXT), space.noise(CONTEXT, DRAWS, "n")):
        assert torch.equal(x, x.transpose(1, 2))
        assert not bool(x.diagonal(dim1=1, dim2=2).any())
    u = space.uniform(CONTEXT, DRAWS, "u")
    assert torch.equal(u, u.transpose(1, 2)) and u.dtype == torch.float64


def test_a_pair_is_as_noisy_as_its_noisier_end() -> None:
    """Times of atoms are times of pairs, and symmetric; a pair is known if both ends are."""
    t = torch.tensor([[0.0, 0.2, 0.7], [0.0, 0.0, 0.5]])
    x = torch.zeros(2, 3, 3)
    pair = Tokens(4, pairs=True).expand(t, x)
    assert torch.equal(pair, pair.transpose(1, 2))
    assert pair[0, 0, 1] == t[0, 1] and pair[0, 1, 2] == t[0, 2] and pair[1, 0, 1] == 0
    known = Tokens(4, pairs=True).expand(t <= 0, x)
    assert torch.equal(known, pair <= 0)


def test_sampled_symbols_follow_their_probabilities() -> None:
    space = Tokens(4)
    p = torch.tensor([0.1, 0.0, 0.6, 0.3], dtype=torch.float64)
    u = Draws(0, [0]).uniform((20_000,), "u", dtype=torch.float64)[0]
    counts = torch.bincount(space.sample(p.expand(20_000, 4), u), minlength=4)
    assert counts[1] == 0
    expected = 20_000 * p[[0, 2, 3]]
    assert float(((counts[[0, 2, 3]] - expected) ** 2 / expected).sum()) < 2 + 4 * 2
    edges = torch.tensor([1e-12, 1.0], dtype=torch.float64)
    ends = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.5, 0.0]], dtype=torch.float64)
    assert space.sample(ends[:, None].expand(2, 2, 3), edges.expand(2, 2)).tolist() == [
        [1, 1],
        [0, 1],
    ]


def test_uniform_symbols() -> None:
    context = Context(torch.ones(2000, 5, dtype=torch.bool))
    x = Tokens(4).noise(context, Draws(0, torch.arange(2000)), "n")
    counts = torch.bincount(x.flatten(), minlength=4)
    assert len(counts) == 4
    assert float(((counts - 2500) ** 2 / 2500).sum()) < 3 + 4 * 6**0.5
