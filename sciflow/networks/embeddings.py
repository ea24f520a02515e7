"""How scalars enter a network: noise levels, distances, wanted properties, set sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

__all__ = ["ConditionEmbedding", "LevelEmbedding", "RadialBasis", "embed", "masked_softmax"]


def embed(table: nn.Module, symbols: Tensor) -> Tensor:
    """Rows of a table, ``[..., dim]``; or their mean under weights of the symbols, as floats.

    Args:
        table: an embedding of S rows.
        symbols: integers ``[...]``, or weights ``[..., S]``, through which a gradient can flow.
    """
    assert isinstance(table, nn.Embedding)
    if symbols.is_floating_point():
        return symbols @ table.weight
    return table(symbols)  # type: ignore[no-any-return]


def masked_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last axis where ``mask``; all zero (not NaN) where nothing is real."""
    logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
    return logits.softmax(-1) * mask.any(-1, keepdim=True)


class LevelEmbedding(nn.Module):
    """Sines and cosines of log(s/a), ``[...] → [..., dim]``."""

    frequencies: Tensor

    def __init__(self, dim: int, highest: float = 8.0):
        super().__init__()
        f = torch.exp(torch.linspace(math.log(0.1), math.log(highest), dim // 2))
        self.register_buffer("frequencies", f, persistent=False)

    def forward(self, level: Tensor) -> Tensor:
        """Embed levels of any shape."""
        angle = level[..., None] * self.frequencies
        return torch.cat((angle.sin(), angle.cos()), -1)


class RadialBasis(nn.Module):
    r"""Exponential-normal functions of a distance (Unke & Meuwly 2019).

    φ_k(d) = exp(−β (e^{−d} − μ_k)²), finest at short range; ``[...] → [..., k]``.
    """

    centres: Tensor

    def __init__(self, k: int):
        super().__init__()
        self.register_buffer("centres", torch.linspace(0.0, 1.0, k), persistent=False)
        self.beta = float(k * k) / 2

    def forward(self, d: Tensor) -> Tensor:
        """Expand distances of any shape."""
        return torch.exp(-self.beta * ((-d).exp()[..., None] - self.centres) ** 2)


class ConditionEmbedding(nn.Module):
    """Wanted scalars as Gaussian expansions, with a learned vector for "not asked for" (NaN).

    Each property is standardised by its (mean, std), expanded over ``k`` Gaussians on [−4, 4] (plus
    the value itself, so that it extrapolates), mapped to ``dim`` and summed (PropMolFlow, 2025).

    Args:
        statistics: ``{name: (mean, std)}``; the order fixes the weights.
        dim: size of the embedding.
        k: number of Gaussians.
    """

    centres: Tensor

    def __init__(self, statistics: Mapping[str, Sequence[float]], dim: int, k: int = 24):
        super().__init__()
        self.statistics = {name: (float(m), float(s)) for name, (m, s) in statistics.items()}
        self.register_buffer("centres", torch.linspace(-4.0, 4.0, k), persistent=False)
        self.width = 8.0 / (k - 1)
        self.maps = nn.ModuleDict({name: nn.Linear(k + 1, dim) for name in self.statistics})
        self.null = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(dim)) for name in self.statistics}
        )
        self.dim = dim

    def forward(self, conditions: Mapping[str, Tensor], like: Tensor) -> Tensor:
        """``[B, dim]`` for the B rows of ``like``."""
        total = torch.zeros(len(like), self.dim, dtype=self.centres.dtype, device=like.device)
        for name, (mean, std) in self.statistics.items():
            null = self.null[name].expand(len(like), -1)
            value = conditions.get(name)
            if value is None:
                total = total + null
                continue
            z = ((value - mean) / std).to(self.centres.dtype)
            missing = z.isnan()
            z = z.masked_fill(missing, 0.0)
            g = torch.exp(-(((z[:, None] - self.centres) / self.width) ** 2) / 2)
            h = self.maps[name](torch.cat((g, z[:, None]), -1))
            total = total + torch.where(missing[:, None], null, h)
        return total
