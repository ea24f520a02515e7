r"""Rigid frames of residues: (R, t) ∈ SE(3) from N, CA, C, and the atoms back.

t is the CA atom; the columns of R are e₁ along CA→C, e₂ towards N in the plane of the three, and
e₃ = e₁ × e₂ (Gram–Schmidt; Jumper et al. 2021). Where the angle τ = N–CA–C is not the ideal one,
half of the difference is put on either side, so that ideal atoms lie nearest to the real ones.
Rotating the atoms by Q turns R into QR; a mirror image has no such R, so frames keep chirality.

Atoms come back at ideal lengths and the mean angle τ; the oxygen by the torsion ψ where that is
told, else opposite to the next residue's nitrogen, in the plane of CA, C and N_{i+1}.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "Frames",
    "atoms_from_frames",
    "axes",
    "compose",
    "frames_from_atoms",
    "frames_from_trace",
]

Frames = tuple[Tensor, Tensor]
"""Rotations ``[..., 3, 3]`` and translations ``[..., 3]``."""

_TAU = math.radians(111.0)
_N_CA, _CA_C, _C_O = 1.4597, 1.5245, 1.2310


def frames_from_atoms(n: Tensor, ca: Tensor, c: Tensor) -> Frames:
    """(R, t) of three atoms ``[..., 3]`` each; see the module's text."""
    u, v = _unit(c - ca), _unit(n - ca)
    half = axes(u + v, v - u)
    turn = half.new_tensor(
        [[math.cos(_TAU / 2), -math.sin(_TAU / 2), 0.0],
         [math.sin(_TAU / 2), math.cos(_TAU / 2), 0.0], [0.0, 0.0, 1.0]]
    )  # fmt: skip
    return half @ turn.mT, ca


def frames_from_trace(ca: Tensor, mask: Tensor) -> Tensor:
    """R of each residue from the CA atoms before and behind it, ``[B, N, 3, 3]``.

    e₁ along CA_{i−1}→CA_{i+1}, e₂ towards the outside of the bend. Ends take the frame of their
    neighbour. Of a mirrored trace, R is no mirror image but another rotation.

    Args:
        ca: ``[B, N, 3]``.
        mask: real residues, first in their rows.
    """
    last = mask.sum(1, keepdim=True) - 1
    i = torch.arange(ca.shape[1], device=ca.device).expand(len(ca), -1)
    middle = torch.minimum(i.clamp(min=1), (last - 1).clamp(min=0))

    def at(k: Tensor) -> Tensor:
        return ca.gather(1, k.clamp(0, ca.shape[1] - 1)[..., None].expand(*k.shape, 3))

    before, here, behind = at(middle - 1), at(middle), at(torch.minimum(middle + 1, last))
    return axes(behind - before, 2 * here - before - behind)


def atoms_from_frames(
    rotation: Tensor, translation: Tensor, mask: Tensor | None = None, psi: Tensor | None = None
) -> Tensor:
    """N, CA, C, O ``[..., N, 4, 3]`` of frames in ångström.

    Args:
        rotation: ``[..., N, 3, 3]``.
        translation: ``[..., N, 3]``.
        mask: bool ``[..., N]``, real residues, first in their rows; default all.
        psi: torsions that place the oxygens; of the last residue only, where the chain goes on.
    """
    local = rotation.new_tensor(
        [[_N_CA * math.cos(_TAU), _N_CA * math.sin(_TAU), 0.0], [0.0, 0.0, 0.0], [_CA_C, 0.0, 0.0]]
    )
    atoms = local @ rotation.mT + translation[..., None, :]
    n, ca, c = atoms.unbind(-2)
    e1, e2, e3 = rotation.unbind(-1)
    psi = torch.full_like(ca[..., 0], math.radians(135.0)) if psi is None else psi
    turn = psi + math.pi
    bend = math.radians(120.4)
    # Torsion N CA C O about e1, from the side of N, which is e2.
    across = turn.cos()[..., None] * e2 + turn.sin()[..., None] * e3
    end = c + _C_O * (math.sin(bend) * across - math.cos(bend) * e1)
    if n.shape[-2] < 2:
        return torch.stack((n, ca, c, end), -2)
    mask = torch.ones_like(n[..., 0], dtype=torch.bool) if mask is None else mask
    linked = torch.cat((mask[..., 1:], torch.zeros_like(mask[..., :1])), -1) & mask
    following = torch.cat((n[..., 1:, :], n[..., -1:, :]), -2)
    # In the plane of the peptide, opposite to the bisector of CA C N.
    away = -_unit(_unit(ca - c) + _unit(following - c))
    o = torch.where(linked[..., None], c + _C_O * away, end)
    return torch.stack((n, ca, c, o), -2)


def compose(a: Frames, b: Frames) -> Frames:
    """The motion b after which a is made: x ↦ R_a (R_b x + t_b) + t_a."""
    (ra, ta), (rb, tb) = a, b
    return ra @ rb, (ra @ tb[..., None])[..., 0] + ta


def axes(x: Tensor, y: Tensor) -> Tensor:
    """Columns: x, what of y is across it, and their cross product, all of length 1."""
    e1 = _unit(x)
    e2 = _unit(y - (e1 * y).sum(-1, keepdim=True) * e1)
    return torch.stack((e1, e2, torch.linalg.cross(e1, e2)), -1)


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) + 1e-24).sqrt()
