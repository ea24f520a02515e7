r"""Learned weights over noise levels: every level counts by how hard it is.

    L' = e^{−u(ℓ)} L + u(ℓ),      ℓ = log(s/a)

with u learned beside the network (Karras et al. 2024, EDM2; Kendall et al. 2018 for the weights
between tasks). For a fixed network the minimiser is u = log E[L | ℓ], so that e^{−u} L is 1 on
average at every level and in every field, whatever their units; and the gradient of the network at
level ℓ is scaled by 1/E[L | ℓ]. u is linear in sines and cosines of ℓ, a convex problem, and starts
at 0, the unweighted loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sciflow.errors import InputError
from sciflow.networks.embeddings import LevelEmbedding

__all__ = ["Uncertainty"]


class Uncertainty(nn.Module):
    """u(ℓ) of each field. It is trained along, but is no part of a saved model.

    Args:
        fields: names of the fields that are weighted.
        features: sines and cosines of the level, an even number.
    """

    def __init__(self, fields: Sequence[str], features: int = 16):
        super().__init__()
        if features < 2 or features % 2:
            raise InputError(f"features must be an even number from 2 on, not {features}")
        self.fields, self.features = tuple(fields), features
        self.embedding = LevelEmbedding(features, highest=1.0)
        self.weight = nn.Parameter(torch.zeros(len(self.fields), features + 1))

    def forward(self, field: str, level: Tensor) -> Tensor:
        """u at levels ``[B]`` of one of the fields."""
        w = self.weight[self.fields.index(field)]
        return self.embedding(level.to(w.dtype)) @ w[1:] + w[0]

    def config(self) -> dict[str, Any]:
        """Plain data that describes the module."""
        return {"fields": list(self.fields), "features": self.features}
