"""What every network reads of a pair of points: its symbols and its distance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sciflow.networks.embeddings import RadialBasis, embed

__all__ = ["PairInputs", "distances", "length"]


def length(difference: Tensor) -> Tensor:
    """√(|r|² + 1e-8), ``[..., 3] → [...]``: its gradient is finite where two points coincide."""
    return (difference.square().sum(-1) + 1e-8).sqrt()


def distances(x: Tensor) -> Tensor:
    """All distances of ``x [B, N, 3]``, ``[B, N, N]``."""
    return length(x[:, :, None] - x[:, None])


class PairInputs(nn.Module):
    """Features of pairs in any layout, ``[B, N, N]`` or a list of edges ``[E]``.

    Args:
        pairs: ``{field: (symbols, classes)}``.
        dim: size of the features.
        radial: number of radial functions of the distance.
        self_conditioning: reserve inputs for a previous estimate.
    """

    def __init__(self, pairs: Mapping[str, Sequence[int]], dim: int, radial: int,
                 self_conditioning: bool):  # fmt: skip
        super().__init__()
        self.radial = RadialBasis(radial)
        self.distance = nn.Linear(radial + 1, dim)
        self.symbol = nn.ModuleDict({f: nn.Embedding(s, dim) for f, (s, _) in pairs.items()})
        if self_conditioning:
            self.distance_back = nn.Linear(radial + 1, dim)
            self.symbol_back = nn.ModuleDict(
                {f: nn.Linear(c, dim, bias=False) for f, (_, c) in pairs.items()}
            )

    def forward(self, symbols: Mapping[str, Tensor], d: Tensor,
                previous: Mapping[str, Tensor] | None, back: Tensor | None) -> Tensor:  # fmt: skip
        """``[*layout, dim]``.

        Args:
            symbols: of each field, ``[*layout]``, or weights of them ``[*layout, S]``.
            d: distances ``[*layout]``.
            previous: class probabilities of each field ``[*layout, classes]``, or ``None``.
            back: distances of the previous estimate, or ``None``.
        """
        e = self.distance(self._expand(d))
        for f, embedding in self.symbol.items():
            e = e + embed(embedding, symbols[f])
        if previous is not None and back is not None:
            e = e + self.distance_back(self._expand(back))
            for f, linear in self.symbol_back.items():
                e = e + linear(previous[f].to(e.dtype))
        return e

    def _expand(self, d: Tensor) -> Tensor:
        return torch.cat((self.radial(d), d[..., None]), -1)
