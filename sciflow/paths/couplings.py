r"""Which noise meets which data: optimal transport within one sample.

The noise of a point cloud does not care about the order of its points, nor about rotations and
reflections. Training may therefore meet each x_0 with the copy of its noise that lies nearest,

    ε' = argmin over permutations P and Q ∈ O(3) of ‖x_0 − P ε Q‖²,

which leaves the marginal of ε' standard normal and makes paths short and straight (Klein et al.
2023; Song et al. 2023, equivariant flow matching). Only the noise is moved: the data, and every
other field, keep their order. Assignment and rotation (Kabsch) alternate, from assignment on.
The probability-flow ODE of the coupled process is what samplers then integrate; an ancestral
(stochastic) sampler is exact for independent noise only.
"""

from __future__ import annotations

from typing import Literal

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

__all__ = ["Coupling", "equivariant_transport"]

Coupling = Literal["independent", "equivariant-ot"]


def equivariant_transport(x0: Tensor, noise: Tensor, mask: Tensor, rounds: int = 2) -> Tensor:
    """The permuted and rotated noise nearest to ``x0``.

    Args:
        x0: points ``[B, N, D]``, centred, zero where padded.
        noise: the same shape.
        mask: bool ``[B, N]``.
        rounds: alternations; the distance never grows.
    """
    lengths = mask.sum(1).tolist()
    for _ in range(rounds):
        # −2 x·ε orders pairs as the squared distance does: the norms are constant in a permutation.
        cost = -(x0 @ noise.transpose(1, 2)).double().cpu().numpy()
        order = torch.arange(mask.shape[1]).repeat(len(mask), 1)
        for b, n in enumerate(lengths):
            order[b, :n] = torch.from_numpy(linear_sum_assignment(cost[b, :n, :n])[1])
        noise = noise.gather(1, order.to(noise.device)[..., None].expand_as(noise))
        u, _, v = torch.linalg.svd(noise.transpose(1, 2) @ x0)
        noise = noise @ (u @ v)
    return noise
