"""Internal coordinates and the chains they build: exact both ways, equivariant, handed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from domains.proteins.rebuild import (
    BEND_MEAN,
    BEND_STD,
    C_N,
    C_O,
    CA_C,
    N_CA,
    UNDEFINED,
    angle,
    dihedral,
    internal_coordinates,
    place,
    rebuild,
)
from sciflow.data import shared_data
from sciflow.random import Draws


def angles(n: int, batch: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    draws = Draws(seed, torch.arange(batch))
    torsions = (2 * draws.uniform((n, 3), "torsions", dtype=torch.float64) - 1) * math.pi
    z = draws.normal((n, 3), "bends", dtype=torch.float64)
    return torsions, z.new_tensor(BEND_MEAN) + z.new_tensor(BEND_STD) * z


def superposed(x: np.ndarray, y: np.ndarray) -> float:
    """Root mean square deviation after the best rotation (Kabsch)."""
    x, y = x - x.mean(0), y - y.mean(0)
    u, s, v = np.linalg.svd(x.T @ y)
    s[-1] *= np.sign(np.linalg.det(u @ v))
    return float(np.sqrt(max(((x**2).sum() + (y**2).sum() - 2 * s.sum()) / len(x), 0)))


def test_a_dihedral_of_a_known_figure() -> None:
    """Looking along b→c, a positive dihedral turns clockwise (IUPAC)."""
    a, b, c = (
        torch.tensor(p, dtype=torch.float64) for p in ([1.0, 0, 0], [0.0, 0, 0], [0.0, 0, 1])
    )
    for degrees in (-150.0, -60.0, 0.0, 75.0, 179.0):
        turn = math.radians(degrees)
        d = torch.tensor([math.cos(turn), math.sin(turn), 1.0], dtype=torch.float64)
        assert float(dihedral(a, b, c, d)) == pytest.approx(turn, abs=1e-12)
        assert float(angle(b, c, d)) == pytest.approx(math.pi / 2)
        bend = torch.tensor(math.pi / 2, dtype=torch.float64)
        torsion = torch.tensor(turn, dtype=torch.float64)
        torch.testing.assert_close(place(a, b, c, 1.0, bend, torsion), d, atol=1e-12, rtol=0)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64])
def test_angles_come_back(n: int) -> None:
    """Every angle that has atoms, at every length; the others are told as such."""
    torsions, bends = angles(n)
    t, b = internal_coordinates(rebuild(torsions, bends))
    turn = (t - torsions).sin().abs() + (1 - (t - torsions).cos())
    assert float(turn[:, 1:, 0].max() if n > 1 else 0) < 1e-9
    assert float(turn[:, :, 1].max()) < 1e-9
    assert float(turn[:, :-1, 2].max() if n > 1 else 0) < 1e-9
    assert bool((t[:, 0, 0] == UNDEFINED[0]).all() and (t[:, -1, 2] == UNDEFINED[2]).all())
    torch.testing.assert_close(b[:, :, 0], bends[:, :, 0], atol=1e-9, rtol=0)
    torch.testing.assert_close(b[:, :-1], bends[:, :-1], atol=1e-9, rtol=0)


def test_bonds_are_ideal() -> None:
    n, ca, c, o = rebuild(*angles(40)).unbind(-2)
    for x, y, bond in ((n, ca, N_CA), (ca, c, CA_C), (c, o, C_O), (c[:, :-1], n[:, 1:], C_N)):
        d = torch.linalg.vector_norm(x - y, dim=-1)
        torch.testing.assert_close(d, torch.full_like(d, bond), atol=1e-10, rtol=0)


def test_it_is_the_chain_placed_atom_by_atom() -> None:
    """The parallel product against the sequential definition."""
    torsions, bends = angles(20, 1)
    built = rebuild(torsions, bends)[0]
    n, ca, c = built[0, :3]
    for i in range(19):
        (_, psi, omega), (tau, alpha, beta) = torsions[0, i], bends[0, i]
        del tau
        n1 = place(n, ca, c, C_N, alpha, psi)
        ca1 = place(ca, c, n1, N_CA, beta, omega)
        c1 = place(c, n1, ca1, CA_C, bends[0, i + 1, 0], torsions[0, i + 1, 0])
        torch.testing.assert_close(torch.stack((n1, ca1, c1)), built[i + 1, :3], atol=1e-9, rtol=0)
        n, ca, c = n1, ca1, c1


def test_padding_does_not_move_a_chain() -> None:
    torsions, bends = angles(12)
    longer = [torch.cat((x, 3 * torch.ones_like(x)), 1) for x in (torsions, bends)]
    torch.testing.assert_close(rebuild(*longer)[:, :11], rebuild(torsions, bends)[:, :11])
    mask = torch.arange(24) < torch.tensor([12, 5, 24])[:, None]
    x = rebuild(*longer)
    short = internal_coordinates(x[1:2, :5])
    for found, alone in zip(internal_coordinates(x, mask), short, strict=True):
        torch.testing.assert_close(found[1:2, :5], alone)


def test_a_mirror_image_is_another_chain() -> None:
    """Torsions change their sign, so that right-handed helices become left-handed."""
    torsions, bends = angles(15)
    x = rebuild(torsions, bends)
    mirrored = x * x.new_tensor([1.0, 1.0, -1.0])
    t, b = internal_coordinates(mirrored)
    torch.testing.assert_close(t[:, 1:, 0], -torsions[:, 1:, 0])
    torch.testing.assert_close(t[:, :-1, 1], -torsions[:, :-1, 1])
    torch.testing.assert_close(b[:, :-1], bends[:, :-1])


def test_gradients_are_right() -> None:
    torsions, bends = angles(6, 2)
    torsions.requires_grad_()
    bends.requires_grad_()
    assert torch.autograd.gradcheck(rebuild, (torsions, bends))
    x = rebuild(torsions.detach(), bends.detach()).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: internal_coordinates(y), (x,))


@pytest.mark.skipif(shared_data() is None, reason="backbones.npz is not on this machine")
def test_experimental_chains_come_back() -> None:
    """With the chain's own bond angles and ideal bonds: 0.07 Å CA RMSD at the median."""
    from domains.proteins.datasets import backbones

    table = backbones().select((40, 128))
    found = []
    for i in range(0, len(table), max(1, len(table) // 60)):
        x = torch.from_numpy(table[i].backbone).double()[None]
        again = rebuild(*internal_coordinates(x))
        found.append(superposed(again[0, :, 1].numpy(), x[0, :, 1].numpy()))
    assert np.median(found) < 0.07 and np.quantile(found, 0.9) < 0.15
