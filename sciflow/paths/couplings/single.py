r"""Couplings within one sample: they depend on nothing else in the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sciflow.errors import InputError
from sciflow.paths.couplings.base import Coupling, NoiseDraw
from sciflow.spaces import Space
from sciflow.state import Context

__all__ = ["EquivariantTransport", "Independent", "NearestNoise", "equivariant_transport"]


@dataclass(frozen=True)
class Independent(Coupling):
    """Fresh noise, whatever the data."""

    kind: ClassVar[str] = "independent"
    independent: ClassVar[bool] = True

    def __call__(self, x0: Tensor, draw: NoiseDraw, space: Space, context: Context) -> Tensor:
        return draw(0)


@dataclass(frozen=True)
class EquivariantTransport(Coupling):
    """Optimal transport within one point cloud; see :func:`equivariant_transport`.

    Attributes:
        rounds: alternations of assignment and rotation.
    """

    kind: ClassVar[str] = "equivariant-ot"
    rounds: int = 2

    def __call__(self, x0: Tensor, draw: NoiseDraw, space: Space, context: Context) -> Tensor:
        return equivariant_transport(x0, draw(0), space.mask(context), self.rounds)


@dataclass(frozen=True)
class NearestNoise(Coupling):
    r"""The nearest of k fresh draws (Immiscible Diffusion, Li et al. 2024, its nearest-noise form).

        ε' = ε_m,   m = argmin_{m < k} |x_0 − ε_m|.

    It needs no batch, at the price of a **bias**: ε' leans towards the data, so a network is
    trained on other noise than sampling starts from. For data N(0, 1) in d dimensions and k = 4,
    E|ε'|²/d is 0.65 (d = 2), 0.76 (d = 8), 0.90 (d = 64) where it should be 1, and the mean of
    ε'·x_0/|x_0| is 0.7 to 0.85 where it should be 0. :class:`~.minibatch.Immiscible` has the exact
    marginal; prefer it where batches are large enough.

    Attributes:
        candidates: k.
    """

    kind: ClassVar[str] = "immiscible-knn"
    candidates: int = 4

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise InputError(f"candidates must be 1 noise a sample or more, not {self.candidates}")

    def __call__(self, x0: Tensor, draw: NoiseDraw, space: Space, context: Context) -> Tensor:
        best = draw(0)
        least = space.sum((x0 - best) ** 2, context)
        for k in range(1, self.candidates):
            other = draw(k)
            distance = space.sum((x0 - other) ** 2, context)
            best = torch.where(space.expand(distance < least, best), other, best)
            least = torch.minimum(distance, least)
        return best


def equivariant_transport(x0: Tensor, noise: Tensor, mask: Tensor, rounds: int = 2) -> Tensor:
    r"""The permuted and rotated noise nearest to ``x0``.

    The noise of a point cloud does not care about the order of its points, nor about rotations and
    reflections. Training may therefore meet each x_0 with the copy of its noise that lies nearest,

        ε' = argmin over permutations P and Q ∈ O(3) of ‖x_0 − P ε Q‖²,

    which leaves the marginal of ε' standard normal (Klein et al. 2023; Song et al. 2023,
    equivariant flow matching). Assignment and rotation (Kabsch) alternate, from assignment on.

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
