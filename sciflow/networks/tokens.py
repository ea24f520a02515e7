r"""A transformer on a row of tokens: residues, bases, letters.

    h_i  = Σ_{|d| ≤ w} E_d[x_{i+d}] + c                     a window of the neighbours' symbols
    A_ij = softmax_j( (R_i q_i)·(R_j k_j)/√m )              rotary positions (Su et al. 2021)
    h_i += W Σ_j A_ij v_j,      h_i += MLP(h_i)
    F_i  = W h_i

R_i turns pairs of features by angles that grow with i, so that attention sees i − j alone. The
window is one table a distance d: statistics of words, which attention would have to learn, are
there from the first step. What lies outside the row is zero in it, which marks both ends. c holds
the number of tokens and the wanted properties.

Levels are not read. Under absorbing noise the conditionals p(x_i | seen tokens) are those of the
data whatever the time (Ou et al. 2025), and how much is masked is plain to see.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sciflow.denoisers import Network
from sciflow.networks.attention import attend
from sciflow.networks.embeddings import ConditionEmbedding
from sciflow.state import Context

__all__ = ["TokenTransformer", "TokenTrunk"]


class TokenTrunk(nn.Module):
    """From symbols to features of every token.

    Args:
        symbols: size of the input alphabet, a masked symbol included.
        conditions: ``{property: (mean, std)}``.
        dim: width of the features; ``depth`` blocks with ``heads`` of attention.
        window: w, how far the window reaches to either side.
        dropout: share of features dropped in training before they are added in.
    """

    def __init__(self, symbols: int, conditions: Mapping[str, Sequence[float]], dim: int,
                 depth: int, heads: int, window: int, dropout: float = 0.0):  # fmt: skip
        super().__init__()
        if dim % (2 * heads):
            raise ValueError(f"dim must be a multiple of 2 heads = {2 * heads}, not {dim}")
        self.symbols, self.width = symbols, dim // heads
        self.window = nn.Conv1d(symbols, dim, 2 * window + 1, padding=window)
        self.condition = ConditionEmbedding(conditions, dim)
        self.size = nn.Linear(2, dim)
        self.blocks = nn.ModuleList([Block(dim, heads, dropout) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Features ``[B, N, dim]`` of symbols ``[B, N]`` or weights of symbols ``[B, N, S]``."""
        mask, dtype = context.mask, self.size.weight.dtype
        weights = x if x.is_floating_point() else F.one_hot(x, self.symbols)
        weights = weights.to(dtype) * mask[..., None]
        n = mask.sum(1).clamp(min=1).to(dtype)
        # Of order one from ten tokens to thousands.
        c = self.size(torch.stack(((n / 128).log() / 2, 10 / n), -1))
        c = c + self.condition(context.conditions, n)
        h = self.window(weights.mT).mT + c[:, None]
        turns = rotary(mask.shape[1], self.width, h)
        allowed = None if bool(mask.all()) else _among(mask)
        for block in self.blocks:
            h = block(h, turns, allowed)
        return self.norm(h)


class TokenTransformer(Network):
    """Denoises one field of tokens in a row.

    Args:
        tokens: ``(field, symbols, classes)``: its name, input alphabet and output logits.
        conditions: ``{property: (mean, std)}``.
        dim: width of the features; see :class:`TokenTrunk`, like ``depth`` to ``dropout``.
    """

    def __init__(
        self,
        tokens: tuple[str, int, int],
        conditions: Mapping[str, Sequence[float]],
        dim: int = 192,
        depth: int = 5,
        heads: int = 6,
        window: int = 7,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.field, symbols, classes = tokens
        self.trunk = TokenTrunk(symbols, conditions, dim, depth, heads, window, dropout)
        self.out = nn.Linear(dim, classes)

    def forward(
        self,
        inputs: dict[str, Tensor],
        levels: dict[str, Tensor],
        context: Context,
        previous: dict[str, Tensor] | None,
    ) -> dict[str, Tensor]:
        """See :class:`~sciflow.denoisers.Network`; neither levels nor ``previous`` are read."""
        return {self.field: self.out(self.trunk(inputs[self.field], context))}


class Block(nn.Module):
    """One round of attention along the row and of a two-layer map, each after a layer norm."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.norm_a, self.norm_m = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.SiLU(), nn.Linear(4 * dim, dim))
        self.drop = nn.Dropout(dropout)

    def forward(self, h: Tensor, turns: tuple[Tensor, Tensor], allowed: Tensor | None) -> Tensor:
        """``h [B, N, dim]``; ``turns`` of :func:`rotary`; ``allowed`` bool ``[B, 1, 1, N]``."""
        values = attend(self.qkv(self.norm_a(h)), self.heads, allowed, lambda x: turned(x, turns))
        h = h + self.drop(self.out(values))
        return h + self.drop(self.mlp(self.norm_m(h)))


def rotary(n: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the turns at places 0 … n − 1, each ``[n, width/2]``."""
    k = torch.arange(width // 2, dtype=torch.float64, device=like.device)
    angle = torch.arange(n, device=like.device)[:, None] * 10_000.0 ** (-2 * k / width)
    return angle.cos().to(like), angle.sin().to(like)


def turned(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """R_i x_i for ``x [B, heads, n, width]``: the halves of the features are the pairs."""
    cos, sin = turns
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


def _among(mask: Tensor) -> Tensor:
    """Which tokens may be looked at, bool ``[B, 1, 1, N]``; a row without any looks at all."""
    return (mask | ~mask.any(1, keepdim=True))[:, None, None]
