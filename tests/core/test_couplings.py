"""Couplings: which law the noise keeps, that data keep their order, and what is exchanged."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from sciflow.errors import InputError
from sciflow.paths import GaussianPath
from sciflow.paths.couplings import COUPLINGS, coupling_from_config
from sciflow.paths.couplings.minibatch import alike
from sciflow.random import Draws
from sciflow.schedules import Rectified
from sciflow.spaces import Euclidean, ZeroCoM
from sciflow.state import Context
from sciflow.testing.targets import all_real

BATCH = ["immiscible", "minibatch-ot"]
every_batch_coupling = pytest.mark.parametrize("name", BATCH)


def path(coupling: object = "independent", d: int = 3) -> GaussianPath:
    return GaussianPath(Euclidean(d), Rectified(), coupling=coupling)  # type: ignore[arg-type]


def data(n: int, elements: int = 1, d: int = 3, seed: int = 3) -> tuple[Tensor, Draws]:
    draws = Draws(seed, torch.arange(n))
    return draws.normal((elements, d), "data", dtype=torch.float64), draws


def ranks(noise: Tensor, of: Tensor) -> Tensor:
    """For each row of ``noise`` the row of ``of`` that it is a copy of."""
    same = (noise.flatten(1)[:, None] == of.flatten(1)[None]).all(-1)
    assert bool((same.sum(1) == 1).all())
    return same.long().argmax(1)


@every_batch_coupling
def test_the_cheapest_of_all_permutations(name: str) -> None:
    power = {"immiscible": 1, "minibatch-ot": 2}[name]
    x0, draws = data(6, 2)
    plain = path().noise(x0, all_real(6, 2), draws, "noise")
    found = path(name).noise(x0, all_real(6, 2), draws, "noise")
    cost = (x0[:, None] - plain[None]).flatten(2).norm(dim=-1) ** power
    best = min(sum(float(cost[i, j]) for i, j in enumerate(p))
               for p in itertools.permutations(range(6)))  # fmt: skip
    order = ranks(found, plain)
    assert sum(float(cost[i, j]) for i, j in enumerate(order)) == pytest.approx(best, rel=1e-12)


def test_minibatch_transport_of_numbers_is_sorting() -> None:
    """In one dimension the optimal plan for a convex cost is the monotone one.

    So data 2 + 3 ε are nearly a function of their noise, and one straight step generates them.
    """
    z, draws = data(400, d=1)
    x0 = 2 + 3 * z
    noise = path("minibatch-ot", 1).noise(x0, all_real(400), draws, "noise").flatten()
    assert bool((noise[x0.flatten().argsort()].diff() > 0).all())
    error = (2 + 3 * noise - x0.flatten()).square().mean()
    assert float(error) < 0.02 * float(x0.var())


@every_batch_coupling
def test_labels_stay_with_their_data(name: str) -> None:
    """Torchcfm #172: the plan permuted x_1 and not its label. Here only noise moves."""
    x0, draws = data(64)
    t = torch.linspace(0.1, 1, 64, dtype=torch.float64)
    s = t[:, None, None]
    plain = path().noise(x0, all_real(64), draws, "noise")
    x_t = path(name).corrupt(x0, t, all_real(64), draws, "noise")
    noise = (x_t - (1 - s) * x0) / s
    nearest = (noise.flatten(1)[:, None] - plain.flatten(1)).abs().amax(-1)
    assert float(nearest.min(1).values.max()) < 1e-12
    assert sorted(nearest.argmin(1).tolist()) == list(range(64))


@every_batch_coupling
def test_no_datum_is_lost(name: str) -> None:
    """Torchcfm draws pairs from the plan with replacement, which leaves 1/e of a batch unused."""
    n = 256
    x0, draws = data(n)
    plain = path().noise(x0, all_real(n), draws, "noise")
    used = ranks(path(name).noise(x0, all_real(n), draws, "noise"), plain)
    assert len(used.unique()) == n
    again = draws.integers(n, "with replacement")
    assert 1 - len(again.unique()) / n == pytest.approx(math.exp(-1), abs=0.08)


def classes(n: int, d: int) -> tuple[Tensor, Context, Draws]:
    """Two classes with means ±2, told apart by a condition."""
    noise, draws = data(n, d=d)
    y = (torch.arange(n) % 2).double()
    x0 = noise + 4 * y[:, None, None] - 2
    return x0, Context(torch.ones(n, 1, dtype=torch.bool), {"y": y}), draws


@every_batch_coupling
def test_noise_does_not_tell_the_classes_apart(name: str) -> None:
    """Torchcfm #117: coupling across conditions biases p(noise | condition)."""
    n, d = 800, 2
    x0, context, draws = classes(n, d)
    first = context.conditions["y"] == 0

    def mean(coupling: object) -> float:
        return float(path(coupling, d).noise(x0, context, draws, "noise")[first].mean())

    allowed = 4 / math.sqrt(first.sum() * d)
    assert abs(mean(name)) < allowed
    assert abs(mean({"kind": name, "condition_weight": 1e6})) < allowed
    assert mean({"kind": name, "condition_weight": 0.0}) < -0.5
    # Within a class there is something to gain, too.
    near, far = (float((path(c, d).noise(x0, context, draws, "noise") - x0).square().sum())
                 for c in (name, "independent"))  # fmt: skip
    assert near < 0.8 * far


def test_a_heavy_condition_is_an_exchange_between_equals() -> None:
    x0, context, draws = classes(100, 2)
    strict, heavy = (
        path({"kind": "minibatch-ot", "condition_weight": w}, 2).noise(x0, context, draws, "noise")
        for w in (None, 1e6)
    )
    assert torch.equal(strict, heavy)


def test_dropped_conditions_are_a_value_of_their_own() -> None:
    y = torch.tensor([1.0, 1.0, 2.0, torch.nan, torch.nan, 2.0])
    mask = torch.ones(6, 2, dtype=torch.bool)
    mask[5, 1] = False
    context = Context(mask, {"y": y}, extras={"grid": torch.zeros(6, 4)})
    groups = alike(context, Euclidean(1)).tolist()
    assert groups[0] == groups[1] and groups[3] == groups[4] and len(set(groups)) == 4
    loose = alike(context, Euclidean(1), conditions=False).tolist()
    assert loose[0] == loose[1] == loose[2] != loose[3] == loose[4] and len(set(loose)) == 3
    other = context.replace(extras={"grid": torch.arange(24.0).view(6, 4)})
    assert len(set(alike(other, Euclidean(1)).tolist())) == 6


@every_batch_coupling
def test_samples_with_given_elements_keep_their_noise(name: str) -> None:
    n = 40
    x0, draws = data(n, 3)
    given = torch.zeros(n, 3, dtype=torch.bool)
    given[::2, 0] = True
    context = all_real(n, 3).replace(given={"x": given})
    plain = path().noise(x0, context, draws, "noise")
    noise = path(name).noise(x0, context, draws, "noise")
    assert torch.equal(noise[::2], plain[::2])
    assert sorted(ranks(noise[1::2], plain).tolist()) == list(range(1, n, 2))
    assert not torch.equal(noise[1::2], plain[1::2])


@every_batch_coupling
def test_noise_is_exchanged_between_clouds_of_one_size(name: str) -> None:
    n = 60
    context = Context(torch.arange(5) < 2 + torch.arange(n)[:, None] % 4)
    draws = Draws(0, torch.arange(n))
    clouds = GaussianPath(ZeroCoM(3), Rectified(), coupling=name)
    x0 = clouds.space.project(draws.normal((5, 3), "data", dtype=torch.float64), context)
    noise = clouds.noise(x0, context, draws, "noise")
    plain = clouds.space.noise(context, draws, "noise", dtype=torch.float64)
    torch.testing.assert_close(clouds.space.project(noise, context), noise)
    order = ranks(noise, plain)
    assert torch.equal(context.lengths[order], context.lengths)
    assert not torch.equal(order, torch.arange(n))
    dirty = x0.masked_fill(~context.mask[..., None], torch.nan)
    assert torch.equal(clouds.noise(dirty, context, draws, "noise"), noise)


@pytest.mark.parametrize("name", list(COUPLINGS))
def test_a_step_is_repeated_whatever_the_order_of_the_batch(name: str) -> None:
    x0, draws = data(24, 4)
    context, rows = all_real(24, 4), Draws(0, torch.arange(24)).uniform((), "order").argsort()
    noise = path(name).noise(x0, context, draws, "noise", 5)
    again = path(name).noise(x0[rows], context, draws.rows(rows), "noise", 5)
    torch.testing.assert_close(again, noise[rows])
    assert not torch.allclose(path(name).noise(x0, context, draws, "noise", 6), noise)


@pytest.mark.parametrize("name", list(COUPLINGS))
def test_who_depends_on_companions_says_so(name: str) -> None:
    x0, draws = data(24, 4)
    p, context, part = path(name), all_real(24, 4), slice(0, 7)
    noise = p.noise(x0, context, draws, "noise")[part]
    alone = p.noise(x0[part], all_real(7, 4), draws.rows(part), "noise")
    assert torch.allclose(noise, alone) != p.coupling.batched
    # Sampling noises samples up without their companions, whatever the coupling of training.
    noisy = p.renoise(x0, 0.0, 0.6, context, draws, "noise")[part]
    other = p.renoise(x0[part], 0.0, 0.6, all_real(7, 4), draws.rows(part), "noise")
    torch.testing.assert_close(noisy, other)


@pytest.mark.parametrize(("d", "energy"), [(2, 0.646), (8, 0.760), (64, 0.903)])
def test_the_bias_of_the_nearest_noise(d: int, energy: float) -> None:
    """E|ε'|²/d and the lean of ε' towards x_0, as documented; assignment has neither."""
    n = 40_000 if d < 64 else 8000
    x0, draws = data(n, d=d)
    noise = path("immiscible-knn", d).noise(x0, all_real(n), draws, "noise")
    assert float(noise.square().mean()) == pytest.approx(energy, abs=0.006)
    lean = (noise * x0).sum((1, 2)) / x0.flatten(1).norm(dim=1)
    assert 0.65 < float(lean.mean()) < 0.88
    few = slice(0, 500)
    plain, dealt = (path(c, d).noise(x0[few], all_real(500), draws.rows(few), "noise")
                    for c in ("independent", "immiscible"))  # fmt: skip
    assert float(dealt.square().mean()) == pytest.approx(float(plain.square().mean()), rel=1e-12)


def test_the_nearest_noise_is_the_nearest() -> None:
    context = Context(torch.arange(5) < torch.tensor([5, 2, 4])[:, None])
    p, draws = path({"kind": "immiscible-knn", "candidates": 6}), Draws(0, torch.arange(3))
    x0 = p.space.project(draws.normal((5, 3), "data", dtype=torch.float64), context)
    noise = p.noise(x0, context, draws, "noise")
    drawn = [p.space.noise(context, draws, f"noise/candidate{k}" if k else "noise",
                           dtype=torch.float64) for k in range(6)]  # fmt: skip
    distance = torch.stack([(x0 - e).square().sum((1, 2)) for e in drawn])
    for i, k in enumerate(distance.argmin(0).tolist()):
        assert torch.equal(noise[i], drawn[k][i])
    one = path({"kind": "immiscible-knn", "candidates": 1})
    assert torch.equal(one.noise(x0, context, draws, "noise"), drawn[0])


def test_configurations_are_plain_and_rebuild_the_coupling() -> None:
    for config in (*COUPLINGS, {"kind": "immiscible-knn", "candidates": 8},
                   {"kind": "minibatch-ot", "condition_weight": 2.0}):  # fmt: skip
        assert coupling_from_config(config).config() == config
        assert path(config).config()["coupling"] == config
        assert path(config).with_schedule(Rectified(2.0)).coupling == coupling_from_config(config)
    assert coupling_from_config({"kind": "immiscible-knn", "candidates": 4}).config() == (
        "immiscible-knn"
    )


def test_what_is_refused() -> None:
    with pytest.raises(InputError, match="unknown coupling 'ot'; known: independent, equiv"):
        path("ot")
    with pytest.raises(InputError, match="'immiscible' has no setting 'candidates'; it has: cond"):
        path({"kind": "immiscible", "candidates": 3})
    with pytest.raises(InputError, match="candidates must be 1"):
        path({"kind": "immiscible-knn", "candidates": 0})
    with pytest.raises(InputError, match="0 or more"):
        path({"kind": "minibatch-ot", "condition_weight": -1.0})
