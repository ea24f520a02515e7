r"""Rotations: residue frames, orientations of rigid bodies. Matrices R ∈ SO(3).

A tangent vector at R is v ∈ ℝ³, in the frame of R and in radians,

    exp_R(v) = R exp(v̂),     log_R(Q) = the v with exp(v̂) = RᵀQ, |v| ≤ π,     v̂ w = v × w,

so |v| is the angle, and turning R and Q from the left by one rotation leaves v as it is: whatever
is written with exp and log is equivariant. log goes by the unit quaternion (w, q) of RᵀQ,

    v = 4 atan(|q|/(1 + w)) q/|q|,     w ≥ 0,

which is as exact near half a turn as near none. The noise is uniform (Haar): normals as a
quaternion. Heat spreads a rotation to IGSO(3), see :mod:`sciflow.spaces.igso3`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.random import Draws
from sciflow.spaces import igso3
from sciflow.spaces.euclidean import Euclidean
from sciflow.state import Context

__all__ = ["SO3", "hat", "nearest_rotation", "rotation", "rotation_vector", "vee"]

_SERIES = 1e-3
"""Squared angles below it take Taylor series, whose first neglected term is under 1e-17."""


def hat(v: Tensor) -> Tensor:
    """The skew matrix v̂ with v̂ w = v × w: ``[..., 3]`` to ``[..., 3, 3]``."""
    x, y, z = v.unbind(-1)
    o = torch.zeros_like(x)
    return torch.stack((o, -z, y, z, o, -x, -y, x, o), -1).unflatten(-1, (3, 3))


def vee(m: Tensor) -> Tensor:
    """The v whose v̂ is the skew part of ``m [..., 3, 3]``, ``[..., 3]``."""
    return torch.stack(
        (m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]), -1
    ) / 2  # fmt: skip


def rotation(v: Tensor) -> Tensor:
    """exp(v̂) by Rodrigues' formula, ``[..., 3]`` to ``[..., 3, 3]``; gradients finite at 0."""
    square = _square(v)
    small = square < _SERIES
    angle = square.masked_fill(small, 1.0).sqrt()
    one = 1 + square * (-1 / 6 + square * (1 / 120 - square / 5040))
    one = torch.where(small, one, angle.sin() / angle)
    two = 0.5 + square * (-1 / 24 + square * (1 / 720 - square / 40320))
    two = torch.where(small, two, 2 * ((angle / 2).sin() / angle) ** 2)
    x, y, z = v.unbind(-1)
    xx, yy, zz = two * x * x, two * y * y, two * z * z
    xy, xz, yz = two * x * y, two * x * z, two * y * z
    x, y, z = one * x, one * y, one * z
    rows = (1 - yy - zz, xy - z, xz + y, xy + z, 1 - xx - zz, yz - x, xz - y, yz + x, 1 - xx - yy)
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def rotation_vector(r: Tensor) -> Tensor:
    """The v of least length with exp(v̂) = ``r [..., 3, 3]``; gradients finite, at π too."""
    q = _quaternion(r)
    q = torch.where(q[..., :1] < 0, -q, q)
    w, v = q[..., 0], q[..., 1:]
    square = _square(v)
    small = square < _SERIES / 10
    length = square.masked_fill(small, 1.0).sqrt()
    u = square / (w.masked_fill(~small, 1.0) ** 2)
    near = 2 / w.masked_fill(~small, 1.0) * (1 + u * (-1 / 3 + u * (1 / 5 - u / 7)))
    far = 4 * (length / (1 + w)).atan() / length
    return torch.where(small, near, far)[..., None] * v


def nearest_rotation(m: Tensor) -> Tensor:
    """The rotation nearest to ``m [..., 3, 3]``: U diag(1, 1, ±1) Vᵀ, determinant +1.

    Its differential is that of the polar factor, R [ω]^ with (tr S − S) ω = 2 vee(Rᵀ dM), S = RᵀM;
    through the singular vectors, which are arbitrary at a rotation, it would be NaN.
    A matrix with a NaN stays NaN.
    """
    with torch.no_grad():
        broken = ~m.isfinite().flatten(-2).all(-1)[..., None, None]
        one = torch.eye(3, dtype=m.dtype, device=m.device)
        u, _, v = torch.linalg.svd(torch.where(broken, one, m))
        flip = torch.ones(m.shape[:-1], dtype=m.dtype, device=m.device)
        flip[..., 2] = torch.linalg.det(u @ v)
        r = ((u * flip[..., None, :]) @ v).masked_fill(broken, torch.nan)
    if not m.requires_grad:
        return r
    s = (r.mT @ m).detach()
    s = s.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] * one - s
    change = 2 * vee(r.mT @ (m - m.detach()))
    return r + r @ hat(torch.linalg.solve(s, change))


def _square(v: Tensor) -> Tensor:
    x, y, z = v.unbind(-1)
    return x * x + y * y + z * z


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a b of 3 × 3 matrices, every entry summed in one order whatever the batch."""
    return (
        a[..., :, 0:1] * b[..., 0:1, :]
        + a[..., :, 1:2] * b[..., 1:2, :]
        + a[..., :, 2:3] * b[..., 2:3, :]
    )


def _quaternion(r: Tensor) -> Tensor:
    """(w, x, y, z) of unit length, from the longest row of 4 q qᵀ (Shepperd 1978)."""
    (a, b, c), (d, e, f), (g, h, i) = (row.unbind(-1) for row in r.unbind(-2))
    rows = (
        1 + a + e + i, h - f, c - g, d - b,
        h - f, 1 + a - e - i, b + d, c + g,
        c - g, b + d, 1 - a + e - i, f + h,
        d - b, c + g, f + h, 1 - a - e + i,
    )  # fmt: skip
    k = torch.stack(rows, -1).unflatten(-1, (4, 4))
    longest = k.diagonal(dim1=-2, dim2=-1).argmax(-1)
    q = k.gather(-2, longest[..., None, None].expand(*k.shape[:-2], 1, 4))[..., 0, :]
    return q / (q[..., :1] ** 2 + _square(q[..., 1:])[..., None]).sqrt()


def _from_quaternion(q: Tensor) -> Tensor:
    """Rotation matrices of quaternions (w, x, y, z) of any length but 0."""
    w, x, y, z = (q / (q[..., :1] ** 2 + _square(q[..., 1:])[..., None]).sqrt()).unbind(-1)
    rows = (
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    )  # fmt: skip
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


class SO3(Euclidean):
    """One rotation an element, ``[B, *elements, 3, 3]``; the identity where padded.

    Tangent vectors are ``[B, *elements, 3]``; see the module's text.
    """

    def __init__(self) -> None:
        super().__init__(3, 3)

    def noise(self, context: Context, draws: Draws, stream: str, step: int = 0,
              dtype: torch.dtype | None = None) -> Tensor:  # fmt: skip
        """Uniform rotations."""
        shape = (*context.mask.shape[1:], 4)
        q = draws.normal(shape, stream, step, torch.float64, context.mask.device)
        r = _from_quaternion(q).to(dtype or torch.get_default_dtype())
        return self._identity_where_padded(r, context)

    def project(self, x: Tensor, context: Context) -> Tensor:
        """The nearest rotations; the identity in padding."""
        return nearest_rotation(self._identity_where_padded(x, context))

    def color(self, gradient: Tensor, context: Context) -> Tensor:
        return super().project(gradient, context)

    def dimensions(self, x: Tensor, context: Context) -> Tensor:
        return 3 * self.count(context)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        return _product(x, rotation(v))

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return rotation_vector(_product(x.mT, y))

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        """Tangent coordinates as they are; a gradient by the nine entries of ``x`` in them."""
        return 2 * vee(_product(x.mT, v)) if v.ndim == x.ndim else v

    def transport(self, x: Tensor, v: Tensor, w: Tensor) -> Tensor:
        # In the moving frame a parallel field turns against the geodesic, by half its angle.
        return (rotation(-v / 2) * w[..., None, :]).sum(-1)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """The angle between rotations, radians, ``[B, *elements]``."""
        return torch.linalg.vector_norm(self.log(x, y), dim=-1)

    def log_density(self, x: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
        """log of IGSO(3)'s density relative to the uniform measure, ``[B, *elements]``, float64.

        Args:
            x: rotations.
            mean: its centre.
            sigma: σ > 0, ``[]``, ``[B]`` or one an element.
        """
        omega = self.distance(mean.double(), x.double())
        return igso3.log_density(omega, self.expand(sigma, omega))

    def score(self, x: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
        """∇_x log p(x; M, σ), a tangent vector at ``x``; see :meth:`log_density`."""
        v = self.log(mean.double(), x.double())
        omega = torch.linalg.vector_norm(v, dim=-1)
        # v is the same in both frames: the rotation between them leaves its own axis alone.
        score = igso3.radial_score(omega, self.expand(sigma, omega))[..., None] * v
        return score.to(x.dtype)

    def diffuse(self, x: Tensor, sigma: Tensor, context: Context, draws: Draws, stream: str,
                step: int = 0) -> Tensor:  # fmt: skip
        """Draws of IGSO(3) around ``x``; where σ = 0, ``x`` itself."""
        z = draws.normal((*x.shape[1:-2], 3), stream, step, torch.float64, x.device)
        r = _square(z).sqrt()
        v = igso3.heat_angle(r, self.expand(sigma, r))[..., None] * z
        return self._identity_where_padded(self.exp(x, v.to(x.dtype)), context)

    def _identity_where_padded(self, x: Tensor, context: Context) -> Tensor:
        one = torch.eye(3, dtype=x.dtype, device=x.device)
        return torch.where(self.expand(context.mask, x), x, one)
