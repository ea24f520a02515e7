"""Frames of residues: back to atoms, equivariant, and nothing that a mirror image has."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from domains.proteins.frames import (
    atoms_from_frames,
    compose,
    frames_from_atoms,
    frames_from_trace,
)
from domains.proteins.ideal import helix_bundle
from domains.proteins.rebuild import dihedral
from sciflow.data import shared_data


def rotation(seed: int = 0, sign: float = 1.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(3, 3, generator=g, dtype=torch.float64))[0]
    q[:, 0] *= sign * torch.linalg.det(q).sign()
    return q


def helix() -> Tensor:
    """Float64 ``[1, N, 4, 3]``."""
    return torch.from_numpy(helix_bundle(3).backbone).double()[None]


def test_ideal_atoms_come_back_exactly() -> None:
    x = helix()
    r, t = frames_from_atoms(*x[..., :3, :].unbind(-2))
    again = atoms_from_frames(r, t)
    torch.testing.assert_close(again, x, atol=2e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(r), torch.ones(r.shape[:-2]).double())
    torch.testing.assert_close(r.mT @ r, torch.eye(3).double().expand_as(r))


def test_rotations_turn_frames_and_reflections_do_not_mirror_them() -> None:
    x, q, shift = helix(), rotation(1), torch.tensor([1.0, -2.0, 3.0]).double()
    r, t = frames_from_atoms(*x[..., :3, :].unbind(-2))
    moved, place = frames_from_atoms(*(x @ q.T + shift)[..., :3, :].unbind(-2))
    torch.testing.assert_close(moved, q @ r, atol=1e-10, rtol=0)
    torch.testing.assert_close(place, t @ q.T + shift, atol=1e-10, rtol=0)
    mirror = rotation(1, -1.0)
    other, _ = frames_from_atoms(*(x @ mirror.T)[..., :3, :].unbind(-2))
    torch.testing.assert_close(torch.linalg.det(other), torch.ones(other.shape[:-2]).double())
    # Atoms rebuilt at mirrored frames are L-amino acids still: the chain is not the mirror image.
    back = atoms_from_frames(other, x[..., 1, :] @ mirror.T)
    assert float((back - x @ mirror.T)[..., 3, :].abs().max()) > 0.5


def test_the_trace_tells_left_from_right() -> None:
    """Turns between neighbouring frames of a right-handed helix and of its mirror image differ."""
    ca = helix()[:, :, 1]
    mask = torch.ones(ca.shape[:2], dtype=torch.bool)
    q = rotation(2)
    r = frames_from_trace(ca, mask)
    torch.testing.assert_close(frames_from_trace(ca @ q.T, mask), q @ r, atol=1e-10, rtol=0)
    mirrored = frames_from_trace(ca * ca.new_tensor([1, 1, -1]), mask)
    turn, other = (x[:, 3].mT @ x[:, 4] for x in (r, mirrored))
    assert float((turn - other).abs().max()) > 0.3


def test_the_trace_knows_no_padding() -> None:
    ca = helix()[:, :9, 1]
    mask = torch.ones(1, 9, dtype=torch.bool)
    longer = torch.cat((ca, torch.full((1, 4, 3), 7.0).double()), 1)
    real = torch.arange(13)[None] < 9
    torch.testing.assert_close(frames_from_trace(longer, real)[:, :9], frames_from_trace(ca, mask))
    for n in (1, 2):
        r = frames_from_trace(ca[:, :n], mask[:, :n])
        assert bool(r.isfinite().all())


def test_motions_compose() -> None:
    a, b = ((rotation(k), torch.tensor([1.0, k, -k]).double()) for k in (1, 2))
    x = torch.tensor([0.3, 0.2, -1.0]).double()
    r, t = compose(a, b)
    torch.testing.assert_close(r @ x + t, a[0] @ (b[0] @ x + b[1]) + a[1])


def test_oxygens_lie_in_the_plane_of_the_peptide() -> None:
    """Trans to the next CA, as ω = 180° has it: dihedral CA C=O against N CA next."""
    x = atoms_from_frames(*frames_from_atoms(*helix()[..., :3, :].unbind(-2)))[0]
    ca, c, o, n1 = x[:-1, 1], x[:-1, 2], x[:-1, 3], x[1:, 0]
    flat = dihedral(ca, c, n1, o).abs()
    assert float((flat - torch.pi).abs().max()) < 1e-9


@pytest.mark.skipif(shared_data() is None, reason="backbones.npz is not on this machine")
def test_experimental_chains_come_back() -> None:
    """N, CA and C within 0.05 Å RMSD."""
    from domains.proteins.datasets import backbones

    table = backbones().select((40, 128))
    found = []
    for i in range(0, len(table), max(1, len(table) // 100)):
        x = torch.from_numpy(table[i].backbone).double()
        again = atoms_from_frames(*frames_from_atoms(*x[:, :3].unbind(1)))
        found.append(float((again - x)[:, :3].square().sum(-1).mean().sqrt()))
    assert np.median(found) < 0.035 and np.quantile(found, 0.95) < 0.05
