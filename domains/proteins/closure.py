r"""Pieces of a motif brought into place by turning the bonds between them.

A chain given by angles has its motif right piece by piece; how the pieces lie to one another is
decided by every φ and ψ in between. Of the chains near the estimate θ⁰ the likeliest that carries
the motif minimises

    f(θ) = Σ_k (θ_k − θ⁰_k)²/(2V)  +  E(θ)  +  c Σ_{|i−j|>2} (max(0, 4.2 Å − d_ij)/0.5 Å)²/2
           +  (max(0, Rg/Rg⁰ − r)/0.02)²/2,
    E = min_{R,t} Σ_m |R x_m(θ) + t − y_m|²/(2σ²),

x_m the motif's atoms N, CA, C in the chain, y_m in the motif's file, d_ij between CA atoms; the
inner minimum is the best superposition (Kabsch 1976), and E is 3K RMSD²/(2σ²) for K residues. V is
what the noise leaves open of an angle, so that f is −log p(θ | x_t, motif) for a Gaussian estimate
and a motif known to σ. Rg is of the CA atoms and Rg⁰ = 2.2 N^0.38 Å. Distances that are wanted
between single atoms, as those of strands in a sheet, are further squares (:class:`Links`).

A bond that turns moves all behind it about its axis u through p: ∂x_m/∂θ = u × (x_m − p). With
these and the six rigid motions, which cost nothing, f is a sum of squares, and is minimised by
Levenberg's and Marquardt's method (1944, 1963): the inverse kinematics of robot arms, and what
loop closure by cyclic coordinate descent (Canutescu & Dunbrack 2003) does one bond at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from domains.proteins.rebuild import rebuild

__all__ = [
    "NEAREST",
    "NEAR_STD",
    "Links",
    "bond_turns",
    "close",
    "deviation",
    "globular_radius",
    "superposition",
]

_LEAST_DAMPING, _MOST_DAMPING = 1e-6, 1e6
_FARTHEST_TURN = 0.6
"""Radians that a bond turns in one step: beyond, the tangent says nothing of the circle."""
_STILL = 1e-6
"""Radians: smaller steps are none."""
NEAREST, NEAR_STD = 4.2, 0.5
"""Ångström: CA atoms nearer than the first touch, by so many of the second."""
_SIZE_STD = 0.02
"""Rg/Rg⁰ is held to this."""
_CLASHES = 32
"""Pairs, the nearest, whose slopes a step looks at; what a step is worth is judged by all."""


@dataclass(frozen=True)
class Links:
    """Distances that are wanted between atoms of a chain: Σ (d − l)²/(2σ²) more in f.

    Attributes:
        atoms: of each link, int64 ``[B, Q, 2]``: 4 · residue + place among N, CA, C, O.
        length: l in ångström, ``[B, Q]``.
        weight: 1/σ, ``[B, Q]``; 0 is no link.
    """

    atoms: Tensor
    length: Tensor
    weight: Tensor

    def scaled(self, factor: float) -> Links:
        """With other weights."""
        return Links(self.atoms, self.length, self.weight * factor)

    def to(self, device: torch.device) -> Links:
        """On a device."""
        return Links(self.atoms.to(device), self.length.to(device), self.weight.to(device))

    def residual(self, x: Tensor) -> Tensor:
        """(d − l)/σ in chains ``[B, N, 4, 3]``, ``[B, Q]``."""
        a, b = self.ends(x)
        d = (a - b).square().sum(-1).clamp(min=1e-12).sqrt()
        return (d - self.length) * self.weight

    def ends(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both atoms of each link, ``[B, Q, 3]`` each."""
        flat = x.flatten(1, 2)
        a, b = (flat.gather(1, k[..., None].expand(-1, -1, 3)) for k in self.atoms.unbind(-1))
        return a, b


def superposition(x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """(R ``[B, 3, 3]``, t ``[B, 3]``) for which Σ w |R x + t − y|² is least.

    Args:
        x, y: points ``[B, M, 3]``.
        weight: w ≥ 0, ``[B, M]``; points without weight may be anything finite.
    """
    w = weight[..., None].to(x)
    total = w.sum(1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    mean_x, mean_y = (w * x).sum(1, keepdim=True) / total, (w * y).sum(1, keepdim=True) / total
    u, _, vt = torch.linalg.svd((w * (y - mean_y)).mT @ (x - mean_x))
    sign = torch.ones_like(u[:, 0])
    sign[:, 2] = torch.det(u @ vt).sign()
    rotation = u * sign[:, None] @ vt
    return rotation, (mean_y - mean_x @ rotation.mT)[:, 0]


def deviation(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Root mean square deviation after the best superposition, ``[B]``; differentiable in ``x``.

    The gradient is exact with R and t held: they are where the sum has none.
    """
    with torch.no_grad():
        rotation, shift = superposition(x, y, weight)
    d = (x @ rotation.mT + shift[:, None] - y).square().sum(-1)
    w = weight.to(x)
    return ((w * d).sum(1) / w.sum(1).clamp(min=1)).sqrt()


def bond_turns(backbone: Tensor) -> tuple[Tensor, Tensor]:
    """Axes u and points p on them of the bonds of φ and ψ, each ``[B, N, 2, 3]``.

    Args:
        backbone: N, CA, C, O in any frame, ``[B, N, 4, 3]``.
    """
    n, ca, c = backbone[:, :, 0], backbone[:, :, 1], backbone[:, :, 2]
    axes = torch.stack((ca - n, c - ca), 2)
    axes = axes / axes.square().sum(-1, keepdim=True).clamp(min=1e-12).sqrt()
    return axes, ca[:, :, None].expand_as(axes)


def close(
    torsions: Tensor,
    bends: Tensor,
    motif: Tensor | None,
    carries: Tensor | None,
    free: Tensor,
    variance: Tensor,
    tolerance: float,
    iterations: int,
    clash: float = 0.0,
    links: Links | None = None,
    size: Tensor | None = None,
) -> Tensor:
    """Torsions near the given ones whose chain carries the motif; see the module.

    Args:
        torsions: θ⁰, φ, ψ, ω in radians, ``[B, N, 3]``.
        bends: τ, α, β in radians, ``[B, N, 3]``.
        motif: y, N, CA, C of the motif where it goes in the chain, ``[B, N, 3, 3]`` in ångström;
            ``None`` where there is none.
        carries: bool ``[B, N]``, residues that are the motif's; ``None``: of none.
        free: bool ``[B, N, 2]``, φ and ψ that may turn; of real residues.
        variance: V in radians², ``[B]``.
        tolerance: σ in ångström.
        iterations: steps; one that does not lower f is taken back and tried again shorter.
        clash: c.
        links: distances to be kept.
        size: r, the largest Rg/Rg⁰, ``[B]``; ``None`` leaves the size alone.

    Returns:
        ``[B, N, 3]``; ω is as it was.
    """
    # A broken sample stays as it is, and must not stop those beside it.
    sound = torsions.isfinite().all((1, 2)) & bends.isfinite().all((1, 2))
    start = torsions.double().where(sound[:, None, None], 0.0)
    if motif is None or carries is None:
        motif, carries = start.new_zeros(*start.shape, 3), torch.zeros_like(free[..., 0])
    chains = _Chains(start, bends.double().where(sound[:, None, None], 1.0), motif.double(),
                     carries, free, tolerance, clash, links, size)  # fmt: skip
    prior = chains.turns.double() / variance.double()[:, None]
    turned, damping = torch.zeros_like(prior), torch.full_like(prior[:, 0], 1e-2)
    x, misfit, cost = chains(turned)
    for _ in range(iterations):
        j, residual = chains.slopes(x, misfit)
        pull = torch.nn.functional.pad(prior * turned, (0, 6))
        pull = pull + (j.mT @ residual[..., None])[..., 0]
        normal = j.mT @ j
        # The frame is free to turn: damping it would let where the motif lies be felt.
        scale = torch.nn.functional.pad(1 + normal.diagonal(dim1=1, dim2=2)[:, :-6], (0, 6))
        # Columns without a bond are empty; a rigid motion costs next to nothing.
        own = torch.nn.functional.pad(prior + (~chains.turns).double(), (0, 6), value=1e-9)
        normal = normal + torch.diag_embed(own + damping[:, None] * scale)
        step = -torch.cholesky_solve(pull[..., None], torch.linalg.cholesky(normal))[:, :-6, 0]
        largest = step.abs().amax(1, keepdim=True)
        if float(largest.max()) < _STILL:
            break
        tried = turned + step * (_FARTHEST_TURN / largest.clamp(min=_FARTHEST_TURN))
        tried_x, tried_misfit, tried_cost = chains(tried)
        better = tried_cost + (prior * tried**2).sum(1) <= cost + (prior * turned**2).sum(1)
        turned = torch.where(better[:, None], tried, turned)
        x = torch.where(better[:, None, None, None], tried_x, x)
        misfit = torch.where(better[:, None, None], tried_misfit, misfit)
        cost = torch.where(better, tried_cost, cost)
        damping = torch.where(better, damping / 4, damping * 8)
        damping = damping.clamp(_LEAST_DAMPING, _MOST_DAMPING)
    moved = chains.turned(turned)
    # What did not turn is as it was, bit for bit.
    return torch.where((moved == start) | ~sound[:, None, None], torsions, moved.to(torsions))


class _Chains:
    """What of f depends on space, for the chains of a batch.

    Only bonds that turn have columns, ``turns`` marks those of ``[B, P]`` that there are, and only
    atoms of the motif have rows.
    """

    def __init__(self, theta: Tensor, bends: Tensor, motif: Tensor, carries: Tensor, free: Tensor,
                 tolerance: float, clash: float, links: Links | None = None,
                 size: Tensor | None = None):  # fmt: skip
        self.theta, self.bends = theta, bends
        self.tolerance, self.clash, self.links, self.size = tolerance, clash, links, size
        self.bonds, self.turns = _packed(free.flatten(1))
        self.atoms, there = _packed(carries[..., None].expand(*carries.shape, 3).flatten(1))
        self.weight = there.double()
        self.y = motif.flatten(1, 2).gather(1, self.atoms[..., None].expand(-1, -1, 3))
        # Padding has no bond that turns, and clashes with nothing.
        self.real = real = free.any(-1) | carries
        i = torch.arange(theta.shape[1], device=theta.device)
        self.apart = real[:, :, None] & real[:, None] & (i[:, None] + 2 < i)

    def turned(self, turned: Tensor) -> Tensor:
        """Torsions after the turns ``[B, P]`` of the bonds."""
        by = torch.zeros_like(self.theta[..., :2]).flatten(1)
        by = by.scatter_add(1, self.bonds, turned * self.turns).unflatten(1, (-1, 2))
        return torch.cat((self.theta[..., :2] + by, self.theta[..., 2:]), -1)

    def __call__(self, turned: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Atoms over the motif ``[B, N, 4, 3]``, misfit ``[B, M, 3]`` in ångström, and twice
        what of f depends on space."""
        x = rebuild(self.turned(turned), self.bends)
        rotation, shift = superposition(self._motif(x), self.y, self.weight)
        x = x @ rotation.mT[:, None] + shift[:, None, None]
        misfit = (self._motif(x) - self.y) * self.weight[..., None]
        cost = misfit.square().sum((1, 2)) / self.tolerance**2
        if self.clash > 0:
            cost = cost + self._near(x).square().sum((1, 2))
        if self.size is not None:
            cost = cost + self._excess(x)[0] ** 2
        if self.links is not None:
            cost = cost + self.links.residual(x).square().sum(1)
        return x, misfit, cost

    def slopes(self, x: Tensor, misfit: Tensor) -> tuple[Tensor, Tensor]:
        """Jacobian ``[B, R, P + 6]`` and residuals ``[B, R]`` of the squares in space."""
        axes, points = (z.flatten(1, 2) for z in bond_turns(x))
        index = self.bonds[..., None].expand(-1, -1, 3)
        axes, points = axes.gather(1, index), points.gather(1, index)
        # Order along the chain: N 0, CA 1, C 2; φ moves what lies behind its CA, ψ behind its C.
        last = 3 * (self.bonds // 2) + 1 + self.bonds % 2

        def slope(at: Tensor, order: Tensor) -> Tensor:
            """∂at/∂θ, ``[B, M, P, 3]``."""
            shape = (*at.shape[:2], axes.shape[1], 3)
            turn = torch.linalg.cross(axes[:, None].expand(shape), at[:, :, None] - points[:, None])
            return turn * ((order[:, :, None] > last[:, None]) & self.turns[:, None])[..., None]

        at = self._motif(x)
        one = torch.eye(3, dtype=x.dtype, device=x.device).expand(*at.shape[:2], 3, 3)
        centre = (at * self.weight[..., None]).sum(1, keepdim=True)
        away = at - centre / self.weight.sum(1)[:, None, None].clamp(min=1)
        spin = torch.linalg.cross(one, away[:, :, None].expand_as(one))
        j = torch.cat((slope(at, self.atoms), one, spin), 2) * self.weight[..., None, None]
        j, residual = j.transpose(2, 3).flatten(1, 2) / self.tolerance, misfit / self.tolerance
        rows, residuals = [j], [residual.flatten(1)]

        def stretched(a: Tensor, b: Tensor, order: tuple[Tensor, Tensor], weight: Tensor) -> None:
            """Rows of weighted distances between atoms."""
            toward = (a - b) / (a - b).square().sum(-1, keepdim=True).clamp(min=1e-12).sqrt()
            move = slope(a, order[0]) - slope(b, order[1])
            row = (move * toward[:, :, None]).sum(-1) * weight[..., None]
            rows.append(torch.nn.functional.pad(row, (0, 6)))

        if self.size is not None:
            excess, gradient = self._excess(x)
            order = 3 * torch.arange(x.shape[1], device=x.device) + 1
            move = slope(x[:, :, 1], order.expand(len(x), -1))
            row = torch.einsum("bnpk,bnk->bp", move, gradient)
            rows.append(torch.nn.functional.pad(row[:, None], (0, 6)))
            residuals.append(excess[:, None])
        if self.links is not None:
            # An oxygen turns with its ψ, like the next nitrogen.
            first, second = (3 * (k // 4) + k % 4 for k in self.links.atoms.unbind(-1))
            stretched(*self.links.ends(x), (first, second), self.links.weight)
            residuals.append(self.links.residual(x))
        if self.clash <= 0:
            return torch.cat(rows, 1), torch.cat(residuals, 1)
        n, ca = x.shape[1], x[:, :, 1]
        near, pairs = self._near(x).flatten(1).topk(min(_CLASHES, n * n), 1)
        first, second = pairs // n, pairs % n
        a, b = (ca.gather(1, k[..., None].expand(-1, -1, 3)) for k in (first, second))
        slack = -(self.clash**0.5 / NEAR_STD) * (near > 0).to(near)
        stretched(a, b, (3 * first + 1, 3 * second + 1), slack)
        return torch.cat(rows, 1), torch.cat((*residuals, near), 1)

    def _motif(self, x: Tensor) -> Tensor:
        """The motif's atoms of chains, ``[B, M, 3]``."""
        flat = x[:, :, :3].flatten(1, 2)
        return flat.gather(1, self.atoms[..., None].expand(-1, -1, 3))

    def _excess(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(Rg/Rg⁰ − r)/0.02 of chains larger than that, ``[B]``, and its gradient by their CA
        atoms, ``[B, N, 3]``."""
        assert self.size is not None
        real = self.real[..., None].to(x)
        n = real.sum((1, 2)).clamp(min=1)
        away = x[:, :, 1] - (x[:, :, 1] * real).sum(1, keepdim=True) / n[:, None, None]
        away = away * real
        # 1e-6 Å²: one residue alone has a radius of 0.
        rg = (away.square().sum((1, 2)) / n + 1e-6).sqrt()
        law = _SIZE_STD * globular_radius(n)
        excess = (rg / law - self.size.to(x) / _SIZE_STD).clamp(min=0)
        return excess, away * ((excess > 0) / (n * rg * law))[:, None, None]

    def _near(self, x: Tensor) -> Tensor:
        """√c (4.2 Å − d_ij)/0.5 Å of pairs nearer than that, ``[B, N, N]``."""
        d = torch.cdist(x[:, :, 1], x[:, :, 1])
        return (NEAREST - d).clamp(min=0) * self.apart * (self.clash**0.5 / NEAR_STD)


def globular_radius(n: Tensor) -> Tensor:
    """Rg⁰ in ångström of globular chains of n residues."""
    return 2.2 * n**0.38


def _packed(marks: Tensor) -> tuple[Tensor, Tensor]:
    """Places of the marks of each row, first ones first, ``[B, P]``, and which of them are real."""
    count = marks.sum(1)
    order = (~marks).int().argsort(dim=1, stable=True)[:, : max(int(count.max()), 1)]
    return order, torch.arange(order.shape[1], device=marks.device) < count[:, None]
