"""Philox: published answers, independence of everything but (seed, sample, stream, step)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sciflow.random import Draws, philox

PI = ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0")
ONES = ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff")
ZERO = ("0 0 0 0", "0 0")


def words(text: str) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(int(w, 16)) for w in text.split())


@pytest.mark.parametrize(
    ("rounds", "given", "answer"),
    [
        (10, ZERO, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (10, ONES, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (10, PI, "d16cfe09 94fdcceb 5001e420 24126ea1"),
        (7, ZERO, "5f6fb709 0d893f64 4f121f81 4f730a48"),
        (7, ONES, "5207ddc2 45165e59 4d8ee751 8c52f662"),
        (7, PI, "4dfccaba 190a87f0 c47362ba b6b5242a"),
    ],
)
def test_known_answers(rounds: int, given: tuple[str, str], answer: str) -> None:
    """The vectors that ship with the authors' Random123."""
    assert philox(words(given[0]), words(given[1]), rounds) == words(answer)  # type: ignore[arg-type]


def test_streams_are_frozen() -> None:
    """Saved seeds must mean the same samples for ever."""
    z = Draws(7, [3]).normal((2, 3), "coords/prior", 1, torch.float64).flatten()
    frozen = [-1.169644970007501, -1.6876880616827328, 0.08545788593950422,
              1.2075470235622536, -0.718325858601981, 1.3854025314897014]  # fmt: skip
    assert z.tolist() == pytest.approx(frozen, rel=1e-12)


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_value_depends_on_its_indices_alone(kind: str) -> None:
    def draw(samples: list[int], shape: tuple[int, ...], **more: int) -> Tensor:
        return getattr(Draws(1, samples), kind)(shape, "s", **more)

    whole = draw([0, 1, 2, 3, 4], (6, 9))
    assert torch.equal(draw([3], (6, 9))[0], whole[3])
    assert torch.equal(draw([4, 1], (6, 9)), whole[[4, 1]])
    assert torch.equal(draw([0, 1, 2, 3, 4], (4, 2)), whole[:, :4, :2])
    assert torch.equal(draw([2], (11, 13))[0, :6, :9], whole[2])
    assert torch.equal(draw([2], (1, 6, 9))[0, 0], whole[2])
    assert not torch.equal(draw([0, 1, 2, 3, 4], (6, 9), step=1), whole)


def test_rows_and_batches() -> None:
    draws = Draws(5, torch.arange(100, 110))
    z = draws.normal((4,), "a")
    assert len(draws) == 10
    assert torch.equal(draws.rows(torch.tensor([7, 0])).normal((4,), "a"), z[[7, 0]])
    assert torch.equal(draws.rows(slice(2, 5)).normal((4,), "a"), z[2:5])
    assert draws.rows(slice(0, 0)).normal((4, 3), "a").shape == (0, 4, 3)
    assert draws.normal((0, 3), "a").shape == (10, 0, 3)


def test_one_number_a_sample() -> None:
    draws = Draws(0, torch.arange(5))
    assert torch.equal(draws.uniform((), "a"), draws.uniform((3,), "a")[:, 0])


def test_more_than_three_axes_are_refused() -> None:
    with pytest.raises(ValueError, match="three axes"):
        Draws(0, [0]).normal((1, 2, 3, 4), "a")


def test_moments_of_normals() -> None:
    z = Draws(0, torch.arange(64)).normal((32, 128), "moments", dtype=torch.float64).flatten()
    n = len(z)
    # Standard errors of the first four moments of N(0, 1): √1, √2, √15, √96 over √n.
    for power, wanted, deviation in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((z**power).mean()) - wanted) < 4 * math.sqrt(deviation / n)
    quantiles = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0], dtype=torch.float64)
    expected = torch.special.ndtr(quantiles)
    observed = (z[:, None] < quantiles).double().mean(0)
    assert float((observed - expected).abs().max()) < 4 * 0.5 / math.sqrt(n)


def test_uniforms_are_uniform() -> None:
    u = Draws(3, torch.arange(128)).uniform((1024,), "u", dtype=torch.float64).flatten()
    assert float(u.min()) > 0 and float(u.max()) < 1
    counts = torch.bincount((u * 64).long(), minlength=64).double()
    chi2 = float(((counts - len(u) / 64) ** 2 / (len(u) / 64)).sum())
    assert chi2 < 63 + 4 * math.sqrt(2 * 63)


def test_nothing_is_correlated() -> None:
    """Neighbouring elements, samples, steps, streams and seeds, in pairs."""
    draws = Draws(0, torch.arange(2048))
    z = draws.normal((8,), "a", dtype=torch.float64)
    others = {
        "sample": z.roll(1, 0),
        "element": z.roll(1, 1),
        "step": draws.normal((8,), "a", 1, torch.float64),
        "stream": draws.normal((8,), "b", 0, torch.float64),
        "seed": Draws(1, torch.arange(2048)).normal((8,), "a", 0, torch.float64),
    }
    for name, y in others.items():
        # Also of the squares: Box–Muller's pairs share a radius.
        for f in (lambda x: x, lambda x: x**2 - 1):
            a, b = f(z).flatten(), f(y).flatten()
            r = float((a * b).mean() / (a.std() * b.std()))
            assert abs(r) < 4 / math.sqrt(z.numel()), name


def test_integers_cover_their_range() -> None:
    k = Draws(0, torch.arange(3000)).integers(5, "rows")
    counts = torch.bincount(k, minlength=5)
    assert counts.shape == (5,)
    assert float(((counts - 600) ** 2 / 600).sum()) < 4 + 4 * math.sqrt(8)
    high = torch.tensor([1, 2, 3] * 1000)
    assert bool((Draws(0, torch.arange(3000)).integers(high, "rows") < high).all())
