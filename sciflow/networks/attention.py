"""Attention of several heads among the elements of a row, as every transformer here has it."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

__all__ = ["attend"]


def attend(
    qkv: Tensor,
    heads: int,
    bias: Tensor | None,
    turn: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Σ_j softmax_j(q_i·k_j/√m + bias) v_j with the heads side by side, ``[B, N, dim]``.

    Args:
        qkv: queries, keys and values behind one another, ``[B, N, 3 dim]``.
        heads: each of width m = dim / heads.
        bias: added to the logits, or bool, where attention is allowed; shaped as
            ``[B, heads, N, N]`` or so that it broadcasts.
        turn: what is done to queries and keys ``[B, heads, N, m]`` first, rotary positions.
    """
    b, n, width = qkv.shape
    q, k, v = qkv.view(b, n, 3, heads, width // 3 // heads).permute(2, 0, 3, 1, 4).unbind(0)
    if turn is not None:
        q, k = turn(q), turn(k)
    values = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return values.transpose(1, 2).reshape(b, n, width // 3)
