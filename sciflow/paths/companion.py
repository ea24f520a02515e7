r"""Stationary laws of tokens that depend on another, fixed field of the same sample.

Where a field is noised down to frequencies, its prior knows no other field: bonds would begin as
often between two hydrogens as between two carbons. Given the other field c and a table P(k | c),

    points on points, pairs on pairs:   π_i = P(· | c_i),
    pairs on their end points:          π_ij = ½ [P(· | c_i, c_j) + P(· | c_j, c_i)],
    points on their row of pairs:       π_i = mean_{j ≠ i} P(· | c_ij),

after the graph-dependent noise of Graph DiT (Liu et al. 2024), which weighs tables by the rows of a
one-hot graph likewise. There both fields are noised together, each by the other's *clean* value,
and so the reversed chain needs a joint space; here c is known (bonds of given atoms), every element
has its own chain, and all that holds for one π holds.

Put the answer into ``context.extras`` under the name that the path's ``marginal`` says.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.errors import InputError
from sciflow.spaces import Tokens
from sciflow.state import Context

__all__ = ["stationary_given"]


def stationary_given(table: Tensor, companion: Tensor, space: Tokens, context: Context) -> Tensor:
    """π of every element, float64 ``[B, *elements, K]``; of padding any law.

    Args:
        table: P(symbol | companion), ``[C, K]``; ``[C, C, K]`` for pairs given their end points.
            Rows are made to sum to one.
        companion: symbols of the other field in [0, C), ``[B, N]`` or symmetric ``[B, N, N]``.
        space: the field whose π is wanted, K classes.
        context: says what is real.

    Raises:
        InputError: a table of another shape or with a row that is no law, or a companion whose
            shape or symbols do not fit.
    """
    batch = (*context.mask.shape, context.mask.shape[1])[: companion.ndim]
    if companion.ndim not in (2, 3) or companion.shape != batch:
        raise InputError(
            f"a companion is [B, N] or [B, N, N] for a mask {list(context.mask.shape)}, not "
            f"{list(companion.shape)}"
        )
    ends = space.pairs and companion.ndim == 2
    c = len(table)
    wanted = (c, c, space.classes) if ends else (c, space.classes)
    if table.shape != wanted:
        raise InputError(
            f"the table for this companion is [{'C, C' if ends else 'C'}, {space.classes}], not "
            f"{list(table.shape)}"
        )
    p = table.to(companion.device, torch.float64)
    total = p.sum(-1, keepdim=True)
    if not bool(((p >= 0) & p.isfinite()).all() & (total > 0).all()):
        raise InputError(
            "each row of the table must be finite, 0 or more, and not all 0; add a small count to "
            "companions that were never seen"
        )
    p = p / total
    own = Tokens(c, companion.ndim == 3)
    real = own.mask(context)
    if bool((((companion < 0) | (companion >= c)) & real).any()):
        raise InputError(f"a symbol of the companion is outside of the table's 0 to {c - 1}")
    x = companion.masked_fill(~real, 0)
    if ends:
        p = (p + p.transpose(0, 1)) / 2
        return p[x[:, :, None], x[:, None, :]]
    if own.pairs and not space.pairs:
        # Who is alone has no row; 0 is what the diagonal holds.
        alone = ~real.any(2, keepdim=True)
        weight = torch.where(alone, torch.eye(x.shape[1], device=x.device), real.double())
        return (weight[..., None] * p[x]).sum(2) / weight.sum(2)[..., None]
    return p[x]
