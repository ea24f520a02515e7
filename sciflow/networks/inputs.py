"""What every network reads beside geometry: noise levels, size, wanted properties, symbols."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sciflow.networks.embeddings import ConditionEmbedding, LevelEmbedding, embed
from sciflow.state import Context

__all__ = ["Modulation", "PointInputs", "SampleEmbedding", "pair_mask"]

_LEVEL = 32


def pair_mask(mask: Tensor) -> Tensor:
    """Bool ``[B, N, N]``: pairs of two different real points, from ``mask [B, N]``."""
    off = ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    return mask[:, :, None] & mask[:, None] & off


class SampleEmbedding(nn.Module):
    """Noise levels, size and conditions as one vector a sample, or a point where levels differ.

    Args:
        fields: every field that has a level, in a fixed order.
        conditions: ``{property: (mean, std)}``.
        dim: size of the embedding.
    """

    def __init__(self, fields: Sequence[str], conditions: Mapping[str, Sequence[float]], dim: int):
        super().__init__()
        self.fields = list(fields)
        self.level = LevelEmbedding(_LEVEL)
        self.condition = ConditionEmbedding(conditions, dim)
        self.size = nn.Linear(2, dim)
        self.time = nn.Sequential(
            nn.Linear(_LEVEL * len(self.fields), dim), nn.SiLU(), nn.Linear(dim, dim)
        )

    def forward(self, levels: Mapping[str, Tensor], context: Context) -> Tensor:
        """``[B, 1, dim]``, or ``[B, N, dim]`` where any field has a level an element.

        Levels given per pair reach a point as the mean over its real partners.
        """
        mask, dtype = context.mask, self.size.weight.dtype
        n = mask.sum(1).clamp(min=1).to(dtype)
        # log n and 1/√n stay of order one from one atom to thousands.
        size = self.size(torch.stack(((n / 16).log() / 2, n**-0.5), -1))
        shared = size + self.condition(context.conditions, n)
        parts = [self._level(levels[f].to(dtype), mask) for f in self.fields]
        width = mask.shape[1] if any(levels[f].ndim > 1 for f in self.fields) else 1
        parts = [p.expand(-1, width, -1) for p in parts]
        return F.silu(self.time(torch.cat(parts, -1)) + shared[:, None])

    def _level(self, level: Tensor, mask: Tensor) -> Tensor:
        embedded = self.level(level)
        if level.ndim == 1:
            return embedded[:, None]
        if level.ndim == 2:
            return embedded
        pairs = pair_mask(mask)
        # A point without partners has no pair whose level could be told: its own entry stands in.
        alone = torch.diag_embed(~pairs.any(2))
        total = (embedded * (pairs | alone)[..., None]).sum(2)
        return total / pairs.sum(2).clamp(min=1)[..., None]


class PointInputs(nn.Module):
    """Symbols of a point, and how many pair symbols of each kind it takes part in.

    The row sums of pair symbols tell a point how many bonds of each order it already has.

    Args:
        tokens: ``{field: (symbols, classes)}`` on points.
        pairs: the same on pairs.
        dim: size of the features.
        self_conditioning: reserve inputs for a previous estimate.
    """

    def __init__(self, tokens: Mapping[str, Sequence[int]], pairs: Mapping[str, Sequence[int]],
                 dim: int, self_conditioning: bool):  # fmt: skip
        super().__init__()
        self.symbols = {f: s for f, (s, _) in pairs.items()}
        self.symbol = nn.ModuleDict({f: nn.Embedding(s, dim) for f, (s, _) in tokens.items()})
        self.degree = nn.ModuleDict(
            {f: nn.Linear(s, dim, bias=False) for f, (s, _) in pairs.items()}
        )
        self.back = nn.ModuleDict(
            {f: nn.Linear(c, dim, bias=False) for f, (_, c) in tokens.items()}
            if self_conditioning
            else {}
        )

    def forward(self, inputs: Mapping[str, Tensor], mask: Tensor,
                previous: Mapping[str, Tensor] | None, start: Tensor) -> Tensor:  # fmt: skip
        """Point features ``[B, N, dim]``, added to ``start`` ``[B, 1 or N, dim]``."""
        h = start.expand(-1, mask.shape[1], -1)
        for f, embedding in self.symbol.items():
            h = h + embed(embedding, inputs[f])
        if len(self.degree):
            real = pair_mask(mask)
        for f, weigh in self.degree.items():
            # One symbol at a time: no [B, N, N, symbols] tensor.
            x = inputs[f]
            if x.is_floating_point():
                counts = (x * real[..., None]).sum(2)
            else:
                each = [((x == s) & real).sum(2) for s in range(self.symbols[f])]
                counts = torch.stack(each, -1).to(h.dtype)
            h = h + weigh(counts)
        if previous is not None:
            for f, back in self.back.items():
                h = h + back(previous[f].to(h.dtype))
        return h


class Modulation(nn.Module):
    """Adaptive layer norm (Peebles & Xie 2023): ``parts`` × (shift, scale, gate) from a sample.

    Starts at zero: shift 0, scale and gate 1.
    """

    def __init__(self, dim: int, parts: int):
        super().__init__()
        self.parts = parts
        self.linear = nn.Linear(dim, 3 * parts * dim)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, c: Tensor) -> tuple[Tensor, ...]:
        """``parts`` triples in a row, each ``[..., dim]``; scale and gate are around 1."""
        chunks = self.linear(c).chunk(3 * self.parts, -1)
        return tuple(x if i % 3 == 0 else 1 + x for i, x in enumerate(chunks))
