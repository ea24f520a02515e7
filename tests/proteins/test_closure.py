"""Bonds turn as calculus says, loops close, and nothing else moves."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from domains.proteins.closure import _Chains, close, deviation, superposition
from domains.proteins.evaluators.superposition import rmsd
from domains.proteins.ideal import helix_bundle
from domains.proteins.rebuild import internal_coordinates, rebuild
from sciflow.random import Draws

PIECES = ((4, 14), (28, 36))


def chain() -> tuple[Tensor, Tensor, Tensor]:
    """Torsions, bends and atoms of two chains."""
    x = torch.stack([torch.from_numpy(helix_bundle(i).backbone[:40]).double() for i in (1, 2)])
    torsions, bends = internal_coordinates(x)
    return torsions, bends, rebuild(torsions, bends)


def pieces() -> tuple[Tensor, Tensor]:
    """Who carries the motif, ``[2, 40]``; which φ and ψ are free, ``[2, 40, 2]``."""
    carries, free = torch.zeros(2, 40, dtype=torch.bool), torch.ones(2, 40, 2, dtype=torch.bool)
    for a, b in PIECES:
        carries[:, a:b] = True
        free[:, a + 1 : b, 0] = free[:, a : b - 1, 1] = False
    return carries, free


def bent(size: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Torsions whose free bonds were turned; bends, motif, who carries it, what is free."""
    torsions, bends, x = chain()
    carries, free = pieces()
    turn = size * Draws(0, [0, 1]).normal((40, 2), "turn", dtype=torch.float64) * free
    moved = torsions.clone()
    moved[..., :2] += turn
    return moved, bends, x[:, :, :3], carries, free


def misfit(torsions: Tensor, bends: Tensor, motif: Tensor, carries: Tensor) -> Tensor:
    weight = carries[..., None].expand(*carries.shape, 3).flatten(1)
    return deviation(rebuild(torsions, bends)[:, :, :3].flatten(1, 2), motif.flatten(1, 2), weight)


def test_the_deviation_is_kabschs_and_its_gradient_that_of_differences() -> None:
    draws = Draws(3, [0, 1])
    x, y = (draws.normal((7, 3), s, dtype=torch.float64) for s in "xy")
    weight = torch.tensor([[1.0] * 7, [1.0] * 5 + [0.0] * 2])
    d = deviation(x, y, weight)
    assert abs(d[0].item() - rmsd(x[0], y[0])) < 1e-12
    assert abs(d[1].item() - rmsd(x[1, :5], y[1, :5])) < 1e-12
    assert torch.autograd.gradcheck(lambda z: deviation(z, y, weight), (x.requires_grad_(True),))
    # A mirror image cannot be superposed.
    mirror = y * torch.tensor([1.0, 1.0, -1.0])
    assert float(deviation(mirror, y, weight).min()) > 0.3
    rotation, shift = superposition(y @ rotation_of(1).T + 5, y, weight)
    torch.testing.assert_close(rotation, rotation_of(1).T.expand(2, 3, 3))
    torch.testing.assert_close(shift, (-5 * rotation_of(1).sum(0)).expand(2, 3))


def rotation_of(seed: int) -> Tensor:
    q = torch.linalg.qr(Draws(seed, [0]).normal((3, 3), "q", dtype=torch.float64)[0])[0]
    return q * torch.linalg.det(q).sign()


def test_slopes_are_those_of_the_rebuilt_chain() -> None:
    """Of misfit and clashes, by automatic differentiation through rebuilding and superposition."""
    moved, bends, motif, carries, free = bent(0.3)
    moved[1, 18:24, 1] += 2.0
    chains = _Chains(moved, bends, motif, carries, free, 0.5, 2.0)
    zero = torch.zeros(chains.turns.shape, dtype=torch.float64)
    x, error, cost = chains(zero)
    j, residual = chains.slopes(x, error)
    assert int((residual[:, -32:] > 0).sum()) > 0, "no clash: the test would show nothing"
    torch.testing.assert_close(residual.square().sum(1), cost)
    mine = (j.mT @ residual[..., None])[..., 0]

    theta = moved.clone().requires_grad_(True)
    atoms = rebuild(theta, bends)
    weight = carries[..., None].expand(*carries.shape, 3).flatten(1)
    d = deviation(atoms[:, :, :3].flatten(1, 2), motif.flatten(1, 2), weight)
    i, k = torch.triu_indices(40, 40, 3)
    near = (4.2 - (atoms[:, i, 1] - atoms[:, k, 1]).norm(dim=-1)).clamp(min=0) / 0.5
    f = 0.5 * d**2 * weight.sum(1) / 0.5**2 + 0.5 * 2.0 * near.square().sum(1)
    (slope,) = torch.autograd.grad(f.sum(), theta)
    theirs = slope[..., :2].flatten(1).gather(1, chains.bonds) * chains.turns
    torch.testing.assert_close(mine[:, :-6], theirs, atol=1e-8, rtol=1e-8)
    # At the best superposition rigid motions have no slope.
    assert float(mine[:, -6:].abs().max()) < 1e-8 * float(mine.abs().max())


def test_loops_close_by_bonds_that_are_free_and_no_farther_than_needed() -> None:
    moved, bends, motif, carries, free = bent(0.15)
    before = misfit(moved, bends, motif, carries)
    variance = torch.tensor([0.02, 0.02])
    closed = close(moved, bends, motif, carries, free, variance, 0.2, 25)
    after = misfit(closed, bends, motif, carries)
    assert float(before.min()) > 1.5 and float(after.max()) < 0.1
    held = torch.cat((~free, torch.ones_like(free[..., :1])), -1)
    assert torch.equal(closed[held], moved[held])
    # Many chains close; the nearest is asked for, not the one that the motif was taken from.
    turned = (closed - moved).square().sum((1, 2))
    back = (chain()[0] - moved).square().sum((1, 2))
    assert bool((turned < back).all())
    still = close(chain()[0], bends, motif, carries, free, variance, 0.2, 5)
    torch.testing.assert_close(still, chain()[0], atol=1e-9, rtol=0)


def test_closing_knows_no_frame_no_padding_and_no_companion() -> None:
    moved, bends, motif, carries, free = bent(0.2)
    variance = torch.tensor([0.02, 0.05])
    closed = close(moved, bends, motif, carries, free, variance, 0.2, 8, 3.0)
    elsewhere = motif @ rotation_of(2).T + 30
    same = close(moved, bends, elsewhere, carries, free, variance, 0.2, 8, 3.0)
    torch.testing.assert_close(same, closed, atol=1e-7, rtol=0)
    mirrored = close(moved, bends, -motif, carries, free, variance, 0.2, 8, 3.0)
    assert float((mirrored - closed).abs().max()) > 0.05

    def wide(x: Tensor, value: float = 0.3) -> Tensor:
        pad = (0, 0) * (x.ndim - 2) + (0, 7)
        return torch.nn.functional.pad(x, pad, value=value)

    alone = close(wide(moved[1:]), wide(bends[1:]), wide(motif[1:]), wide(carries[1:], 0),
                  wide(free[1:], 0), variance[1:], 0.2, 8, 3.0)  # fmt: skip
    torch.testing.assert_close(alone[:, :40], closed[1:], atol=1e-7, rtol=0)
    assert bool((alone[:, 40:] == 0.3).all())


def test_chains_step_out_of_themselves() -> None:
    moved, bends, motif, carries, free = bent(0.0)
    moved[:, 20:24, 1] += 2.0
    i, k = torch.triu_indices(40, 40, 3)

    def clashes(torsions: Tensor) -> int:
        ca = rebuild(torsions, bends)[:, :, 1]
        return int(((ca[:, i] - ca[:, k]).norm(dim=-1) < 3.6).sum())

    variance = torch.full((2,), 0.1)
    freed = close(moved, bends, motif, carries, free, variance, 0.2, 25, 5.0)
    left = close(moved, bends, motif, carries, free, variance, 0.2, 25)
    assert clashes(freed) == 0 < max(clashes(moved), clashes(left))
    assert float(misfit(freed, bends, motif, carries).max()) < 0.3


def test_what_cannot_close_comes_as_near_as_it_can_and_a_broken_chain_stays() -> None:
    moved, bends, motif, carries, free = bent(0.1)
    far = motif.clone()
    far[:, 20:] += 200.0
    before = misfit(moved, bends, far, carries)
    near = close(moved, bends, far, carries, free, torch.ones(2), 0.2, 15)
    assert bool(near.isfinite().all())
    assert bool((misfit(near, bends, far, carries) < before).all())
    moved[0, 3, 1] = math.nan
    kept = close(moved, bends, motif, carries, free, torch.ones(2), 0.2, 15)
    assert np.array_equal(kept[0].numpy(), moved[0].numpy(), equal_nan=True)
    assert bool((kept[1] != moved[1]).any())
