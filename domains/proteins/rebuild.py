r"""Backbones from internal coordinates and back: exact, differentiable, parallel along the chain.

Per residue, three torsions and three bond angles; the bonds have their ideal lengths:

===========  ============================  ======  ===============================
torsions     φ_i  C_{i−1} N  CA C          bends   τ_i  N CA C
             ψ_i  N CA C N_{i+1}                   α_i  CA C N_{i+1}
             ω_i  CA C N_{i+1} CA_{i+1}            β_i  C N_{i+1} CA_{i+1}
===========  ============================  ======  ===============================

Each atom is placed from the three before it (NeRF: Parsons et al. 2005). Atom after atom that takes
3N steps; but the step from residue i to i + 1 is one rigid motion G_i in the frame of residue i
(:mod:`domains.proteins.frames`), a function of seven of these angles, so that frame n is the
product G_1 G_2 ⋯ G_{n−1} and all of them come out of ⌈log₂ N⌉ batched products (a prefix scan; cf.
the pieces of pNeRF, AlQuraishi 2019).

φ of the first residue and ω, α, β of the last have no atoms; they are set to :data:`UNDEFINED`
values. ψ of the last is told by its oxygen, which stands opposite to the next nitrogen.

Ideal lengths are the means of 950,000 residues of experimental chains.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from domains.proteins.frames import axes, compose

__all__ = [
    "BEND_MEAN",
    "BEND_STD",
    "CA_C",
    "C_N",
    "C_O",
    "N_CA",
    "UNDEFINED",
    "angle",
    "bends_in_radians",
    "dihedral",
    "internal_coordinates",
    "place",
    "rebuild",
    "standard_bends",
]

N_CA, CA_C, C_N, C_O = 1.4597, 1.5245, 1.3299, 1.2310
"""Bond lengths, ångström."""
CA_C_O = math.radians(120.4)
BEND_MEAN = (math.radians(111.0), math.radians(116.6), math.radians(121.6))
BEND_STD = (math.radians(2.7), math.radians(1.3), math.radians(1.7))
"""Of τ, α, β in experimental chains."""
UNDEFINED = (math.radians(-65.0), math.radians(135.0), math.radians(179.0))
"""φ, ψ, ω where their atoms are missing; bends then have their mean."""


def place(a: Tensor, b: Tensor, c: Tensor, length: Tensor | float, bend: Tensor,
          torsion: Tensor) -> Tensor:  # fmt: skip
    """The atom d with |d − c|, angle b c d and dihedral a b c d as given; points ``[..., 3]``."""
    u = _unit(c - b)
    n = _unit(torch.linalg.cross(b - a, u))
    m = torch.linalg.cross(n, u)
    across = bend.sin()[..., None] * (torsion.cos()[..., None] * m + torsion.sin()[..., None] * n)
    return c + length * (across - bend.cos()[..., None] * u)


def angle(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The angle a b c in [0, π], ``[..., 3]`` to ``[...]``."""
    u, v = a - b, c - b
    return torch.atan2(torch.linalg.vector_norm(torch.linalg.cross(u, v), dim=-1), (u * v).sum(-1))


def dihedral(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """The dihedral a b c d in (−π, π], IUPAC's sign, ``[..., 3]`` to ``[...]``."""
    u, v, w = b - a, c - b, d - c
    n, m = torch.linalg.cross(u, v), torch.linalg.cross(v, w)
    y = torch.linalg.vector_norm(v, dim=-1) * (u * m).sum(-1)
    return torch.atan2(y, (n * m).sum(-1))


def internal_coordinates(backbone: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Torsions (φ, ψ, ω) and bends (τ, α, β) of backbones.

    Args:
        backbone: N, CA, C, O in ångström, ``[..., N, 4, 3]``.
        mask: bool ``[..., N]``, real residues, first in the row; default all.

    Returns:
        Two tensors ``[..., N, 3]`` in radians; see the module's text for those that do not exist.
    """
    n, ca, c, o = backbone.unbind(-2)
    mask = torch.ones_like(n[..., 0], dtype=torch.bool) if mask is None else mask
    linked = mask & _next(mask, False)
    n1, ca1 = _next(n, 0.0, -2), _next(ca, 0.0, -2)
    before = torch.roll(linked, 1, -1)
    before[..., :1] = False
    phi = dihedral(torch.roll(c, 1, -2), n, ca, c)
    psi = torch.where(linked, dihedral(n, ca, c, n1), _opposite(dihedral(n, ca, c, o)))
    omega = dihedral(ca, c, n1, ca1)
    empty = [torch.full_like(phi, value) for value in UNDEFINED]
    torsions = torch.stack(
        (
            torch.where(before, phi, empty[0]),
            torch.where(mask, psi, empty[1]),
            torch.where(linked, omega, empty[2]),
        ),
        -1,
    )
    mean = [torch.full_like(phi, value) for value in BEND_MEAN]
    bends = torch.stack(
        (
            torch.where(mask, angle(n, ca, c), mean[0]),
            torch.where(linked, angle(ca, c, n1), mean[1]),
            torch.where(linked, angle(c, n1, ca1), mean[2]),
        ),
        -1,
    )
    return torsions, bends


def rebuild(torsions: Tensor, bends: Tensor) -> Tensor:
    """Backbones N, CA, C, O ``[..., N, 4, 3]`` in ångström, in the frame of the first residue.

    Args:
        torsions: φ, ψ, ω in radians, ``[..., N, 3]``.
        bends: τ, α, β in radians, ``[..., N, 3]``.
    """
    _, psi, omega = torsions.unbind(-1)
    tau, alpha, beta = bends.unbind(-1)
    n, ca, c, o = _residue(tau, psi)
    # The next residue in the frame of this one.
    phi1, tau1 = _next(torsions[..., 0], 0.0), _next(tau, BEND_MEAN[0])
    n1 = place(n, ca, c, C_N, alpha, psi)
    ca1 = place(ca, c, n1, N_CA, beta, omega)
    c1 = place(c, n1, ca1, CA_C, tau1, phi1)
    rotation, translation = _prefix(axes(c1 - ca1, n1 - ca1), ca1)
    local = torch.stack((n, ca, c, o), -2)
    first, rest = local[..., :1, :, :], local[..., 1:, :, :]
    # Row vectors: x ↦ x Rᵀ + t.
    moved = rest @ rotation[..., :-1, :, :].mT + translation[..., :-1, None, :]
    return torch.cat((first, moved), -3)


def _residue(tau: Tensor, psi: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """N, CA, C, O in the residue's own frame: CA at the origin, C along x, N in the xy plane."""
    zero = torch.zeros_like(tau)
    n = torch.stack((N_CA * tau.cos(), N_CA * tau.sin(), zero), -1)
    ca = torch.stack((zero, zero, zero), -1)
    c = torch.stack((torch.full_like(tau, CA_C), zero, zero), -1)
    o = place(n, ca, c, C_O, torch.full_like(tau, CA_C_O), psi + math.pi)
    return n, ca, c, o


def _prefix(rotation: Tensor, translation: Tensor) -> tuple[Tensor, Tensor]:
    """G_1 ⋯ G_n for every n (Hillis & Steele 1986), rigid motions along axis −3."""
    n, shift = rotation.shape[-3], 1
    while shift < n:
        left = rotation[..., :-shift, :, :], translation[..., :-shift, :]
        right = rotation[..., shift:, :, :], translation[..., shift:, :]
        r, t = compose(left, right)
        rotation = torch.cat((rotation[..., :shift, :, :], r), -3)
        translation = torch.cat((translation[..., :shift, :], t), -2)
        shift *= 2
    return rotation, translation


def bends_in_radians(x: Tensor) -> Tensor:
    """τ, α, β of a field of bends ``[..., 3]``, which has mean 0 and standard deviation 1."""
    return x.new_tensor(BEND_MEAN) + x.new_tensor(BEND_STD) * x


def standard_bends(bends: Tensor) -> Tensor:
    """The field of τ, α, β in radians; undoes :func:`bends_in_radians`."""
    return (bends - bends.new_tensor(BEND_MEAN)) / bends.new_tensor(BEND_STD)


def _next(x: Tensor, fill: float, axis: int = -1) -> Tensor:
    """``x`` of the next residue along ``axis``, ``fill`` behind the last."""
    n = x.shape[axis]
    last = torch.full_like(x.narrow(axis, 0, min(n, 1)), fill)
    return torch.cat((x.narrow(axis, min(n, 1), n - min(n, 1)), last), axis)


def _opposite(x: Tensor) -> Tensor:
    return torch.remainder(x, 2 * math.pi) - math.pi


def _unit(x: Tensor) -> Tensor:
    # The length of a vector that vanishes has no gradient; 1e-12 Å keeps it finite.
    return x / (x.square().sum(-1, keepdim=True) + 1e-24).sqrt()
