r"""Elements that are given in training, so that one network generates, forecasts and infills.

A rule marks some real elements of some fields as given: they keep their value, their time is 0 and
no loss is asked of them. A network trained so is an exact conditional model of the rest, whatever
is given (per-element times: Chen et al. 2024, diffusion forcing, with two levels; masked training
of series and scaffolds alike). With n real elements and a share r, drawn for each sample,

    random   runs of ``run`` elements, each given with probability r
    prefix   the first ⌊r·n⌋, to forecast the rest
    infill   all but one run of n − ⌊r·n⌋ at a uniform place
    all      every element: the field is a condition of the other fields
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sciflow.errors import InputError
from sciflow.random import Draws

__all__ = ["GivenRule"]

Kind = Literal["random", "prefix", "infill", "all"]


@dataclass(frozen=True)
class GivenRule:
    """Which elements are given, and how often.

    Attributes:
        fields: the fields in which the same elements are given.
        kind: see above.
        probability: of a sample to be trained under the rule.
        share: (least, largest) r; uniform between.
        run: length of the runs of ``random``; they begin at a random offset.
    """

    fields: tuple[str, ...]
    kind: Kind = "random"
    probability: float = 0.5
    share: tuple[float, float] = (0.0, 1.0)
    run: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.fields, str):
            raise InputError(f"fields must be a tuple of names, ({self.fields!r},)")
        if self.kind not in get_args(Kind):
            raise InputError(
                f"unknown rule {self.kind!r} of given elements; known: {', '.join(get_args(Kind))}"
            )
        if not 0 <= self.probability <= 1:
            raise InputError(f"probability must lie in [0, 1], not {self.probability}")
        if not 0 <= self.share[0] <= self.share[1] <= 1:
            raise InputError(f"share must be 0 <= least <= largest <= 1, not {self.share}")
        if self.run < 1:
            raise InputError(f"run must be 1 element or more, not {self.run}")

    def __call__(self, mask: Tensor, draws: Draws, stream: str, step: int) -> Tensor:
        """True where an element is given, bool shaped as ``mask [B, *elements]``.

        Elements are counted over the real ones, so that padding changes nothing.
        """
        device, real = mask.device, mask.flatten(1)
        u = draws.uniform((3,), stream, step, torch.float64, device)
        low, high = self.share
        r = (low + (high - low) * u[:, :1]).expand(-1, 1)
        n = real.sum(1, keepdim=True)
        place = real.cumsum(1) - 1
        known = (r * n).floor().long()
        match self.kind:
            case "random":
                offset = (u[:, 2:3] * self.run).long()
                runs = draws.uniform((real.shape[1] // self.run + 2,), f"{stream}/runs", step,
                                     torch.float64, device)  # fmt: skip
                number = (place.clamp(min=0) + offset) // self.run
                given = runs.gather(1, number) < r
            case "prefix":
                given = place < known
            case "infill":
                start = (u[:, 2:3] * (known + 1)).long()
                given = (place < start) | (place >= start + n - known)
            case "all":
                given = torch.ones_like(real)
        given = given & real & (u[:, 1:2] < self.probability)
        return given.view(mask.shape)
