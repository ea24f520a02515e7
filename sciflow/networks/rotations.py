r"""Random rotations without a random generator: a point cloud's noise decides its own rotation.

Training step k must be a function of (seed, k), whatever the batch, the rank or the padding. A
generator inside a network would break that. But a training input is already random: its noise is
drawn from (seed, sample, step). So the rotation is read off the input,

    φ_c = frac( g Σ_i x_{ic}² ),     c = x, y, z;     R = Shoemake(φ) ∈ SO(3).

The three sums are independent and spread over many turns when g is large, so that φ is uniform on
the cube to within an error that falls exponentially in the spread, and R is uniform on SO(3)
(Shoemake, *Uniform random rotations*, Graphics Gems III, 1992). A sum of squares knows no order of
points and no padding; unlike a hash of the bits it is smooth, so inputs that differ by rounding
(another padding, another rank) are rotated alike.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["rotation_from_points"]

GAIN = 64.0
"""Turns of φ per unit of Σ x². Noise of relative size 1e-3 on 18 points still moves φ by a quarter
turn (one standard deviation); float32 rounding moves it by about 3e-5 turns."""


def rotation_from_points(x: Tensor, mask: Tensor, gain: float = GAIN) -> Tensor:
    """A rotation matrix a sample, ``[B, 3, 3]``, constant with respect to gradients.

    Args:
        x: points ``[B, N, 3]`` of about unit variance.
        mask: bool ``[B, N]``, true where a point is real.
        gain: turns per unit; see above.
    """
    with torch.no_grad():
        turns = gain * (x.double() * mask[..., None]).square().sum(1)
        # A triangle wave of a uniform is uniform, and has no jump where a turn is completed.
        u = 1 - (2 * (turns[:, 0] % 1) - 1).abs()
        a, b = 2 * math.pi * turns[:, 1], 2 * math.pi * turns[:, 2]
        p, q = (1 - u).clamp(min=0).sqrt(), u.clamp(min=0).sqrt()
        quaternion = torch.stack((q * b.cos(), p * a.sin(), p * a.cos(), q * b.sin()), -1)
        return _matrix(quaternion).to(x.dtype)


def _matrix(quaternion: Tensor) -> Tensor:
    """Unit quaternions (w, x, y, z) ``[B, 4]`` as rotation matrices ``[B, 3, 3]``."""
    w, x, y, z = quaternion.unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)
