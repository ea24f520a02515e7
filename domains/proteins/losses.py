r"""What a clean estimate looks like in space: a loss of its backbone against the data's.

    L = w(t) [ mean over near atoms  h(d − d*)  +  mean over CA pairs  min(|d − d*|, 10 Å)/10 Å ],
    w(t) = max(0, 1 − t/T),        h the Huber loss at 1 Å.

Near atoms are N, CA, C, O of residues at most four apart: bonds, bond angles, peptide planes and
the turns of helices (Yim et al. 2023 score atoms within 6 Å likewise). The pairs of CA atoms tell
the fold; an error of 10 Å is as bad as any, so that one wrong torsion does not outweigh all. Of
angles, gradients come through the rebuilding of the chain. Distances know no frame and need no
superposition; handedness is the paths' own business. Only below T is x_0 told by x_t so well that
the estimate has a shape of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from domains.proteins.encoding import Encoding
from sciflow.networks.pairs import length
from sciflow.state import State

__all__ = ["StructureLoss"]

_CAP = 10.0
_REACH = 4


@dataclass(frozen=True)
class StructureLoss:
    """An :class:`~sciflow.objectives.auxiliary.Auxiliary`; see the module's text.

    Attributes:
        encoding: of the model.
        latest: T.
        fold: weight of the CA pairs; 0 leaves them out.
    """

    encoding: Encoding
    latest: float = 0.5
    fold: float = 1.0

    def __call__(self, clean: State, target: State, t: Mapping[str, Tensor]) -> Tensor:
        """``[B]``."""
        latest = torch.stack([x.reshape(len(x), -1).amax(1) for x in t.values()]).amax(0)
        weight = (1 - latest / self.latest).clamp(min=0)
        found = self.encoding.backbone(clean, None)
        with torch.no_grad():
            wanted = self.encoding.backbone(target, None)
        mask = clean.context.mask
        loss = self._near(found, wanted, mask)
        if self.fold:
            loss = loss + self.fold * self._fold(found[:, :, 1], wanted[:, :, 1], mask)
        return weight.to(loss) * loss

    def _near(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        total, count = x.new_zeros(len(x)), x.new_zeros(len(x))
        for k in range(1, min(_REACH, x.shape[1] - 1) + 1):
            both = (mask[:, k:] & mask[:, :-k]).to(x)
            d, wanted = (length(z[:, k:, :, None] - z[:, :-k, None]) for z in (x, y))
            error = F.huber_loss(d, wanted, reduction="none").mean((-2, -1))
            total, count = total + (error * both).sum(1), count + both.sum(1)
        return total / count.clamp(min=1)

    def _fold(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        pairs = (mask[:, :, None] & mask[:, None]).to(x)
        d, wanted = (length(z[:, :, None] - z[:, None]) for z in (x, y))
        error = (d - wanted).abs().clamp(max=_CAP) / _CAP
        return (error * pairs).sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)

    def config(self) -> dict[str, Any]:
        """Plain data."""
        return {"kind": "structure", "latest": self.latest, "fold": self.fold}
