r"""Couplings across the batch: the noises of a batch are dealt out anew among its samples.

    π = argmin over permutations Σ_i c(i, π(i)),    c(i, j) = |x_0^i − ε^j|^p + w |y_i − y_j|²,

with y the conditions (p = 1: immiscible diffusion, Li et al. 2024; p = 2: minibatch optimal
transport, Tong et al. 2024, Pooladian et al. 2023, whose plan between equal weights *is* a
permutation). It is solved exactly and without replacement: each noise and each datum is used once,
while drawing pairs from the plan with replacement would leave (1 − 1/B)^B ≈ 1/e of the data unused.

A permutation of independent draws keeps their law over the data. It does not keep it given a
condition: noise would come to tell the classes apart, and conditional sampling, which starts from
plain noise, would start elsewhere than training did (Cheng & Schwing 2025, *The Curse of
Conditions*). So by default (w = None, infinity) noise is exchanged only between samples whose
conditions, covariates and shape are equal; conditions that were dropped count as a value of their
own. Finite w trades that bias against straighter paths where conditions are numbers that never
agree; w = 0 ignores their values. Samples with given elements are conditioned on them and keep
their own noise.
"""

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

__all__ = ["Immiscible", "MinibatchTransport", "alike"]


@dataclass(frozen=True)
class Immiscible(Coupling):
    """Linear assignment of noises to data by distance.

    Attributes:
        condition_weight: w; ``None`` for exchange between equal conditions only.
    """

    kind: ClassVar[str] = "immiscible"
    batched: ClassVar[bool] = True
    power: ClassVar[float] = 1.0
    condition_weight: float | None = None

    def __post_init__(self) -> None:
        if self.condition_weight is not None and not self.condition_weight >= 0:
            raise InputError(
                "condition_weight must be 0 or more (or None: exchange between equal conditions), "
                f"not {self.condition_weight}"
            )

    def __call__(self, x0: Tensor, draw: NoiseDraw, space: Space, context: Context) -> Tensor:
        noise = draw(0)
        real = space.expand(space.mask(context), x0)
        x, e = (y.masked_fill(~real, 0).flatten(1).double() for y in (x0, noise))
        cost = _squares(x, e) ** (self.power / 2)
        strict = self.condition_weight is None
        if self.condition_weight:
            cost = cost + self.condition_weight * _condition_squares(context)
        return noise[_assign(cost, alike(context, space, conditions=strict))]


@dataclass(frozen=True)
class MinibatchTransport(Immiscible):
    """Minibatch optimal transport: the assignment by squared distance."""

    kind: ClassVar[str] = "minibatch-ot"
    power: ClassVar[float] = 2.0


def alike(context: Context, space: Space, conditions: bool = True) -> Tensor:
    """The group of each sample, int64 ``[B]``: noise has one law in a group, whatever is known.

    Args:
        context: of the batch.
        space: of the field; samples of a group have the same real elements.
        conditions: whether their conditions must be equal, or only known in both or in neither.
    """
    size, device = len(context), context.mask.device
    known = [space.mask(context), *context.extras.values()]
    for c in context.conditions.values():
        missing = c.isnan()
        known += [missing, c.masked_fill(missing, 0)] if conditions else [missing]
    fixed = torch.zeros(size, dtype=torch.bool, device=device)
    for given in context.given.values():
        fixed = fixed | given.flatten(1).any(1)
    # A sample with given elements is a group of its own.
    alone = torch.where(fixed, torch.arange(1, size + 1, device=device), 0)
    key = torch.cat([k.reshape(size, -1).double() for k in (alone, *known)], 1)
    return torch.unique(key, dim=0, return_inverse=True)[1]


def _squares(x: Tensor, y: Tensor) -> Tensor:
    """|x_i − y_j|² of rows, ``[B, B]``."""
    return (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp(min=0)


def _condition_squares(context: Context) -> Tensor:
    """|y_i − y_j|², ``[B, B]``; what is unknown in both is equal."""
    values = [c.nan_to_num(0).reshape(len(context), -1) for c in context.conditions.values()]
    if not values:
        return torch.zeros((), dtype=torch.float64, device=context.mask.device)
    y = torch.cat(values, 1).double()
    return _squares(y, y)


def _assign(cost: Tensor, groups: Tensor) -> Tensor:
    """Rows of the noise for each sample: the cheapest permutation within every group."""
    order = torch.arange(len(cost))
    costs, number = cost.cpu(), groups.cpu()
    for g in number.unique():
        rows = (number == g).nonzero().flatten()
        if len(rows) > 1:
            best = linear_sum_assignment(costs[rows][:, rows].numpy())[1]
            order[rows] = rows[torch.from_numpy(best)]
    return order.to(cost.device)
