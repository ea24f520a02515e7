r"""What a model keeps of its training set, and what a sample takes from there: its size.

The reference is a fixed random part of the training set: sizes and property values, a row a record.
Targets say nothing of size, yet the two go together, so a sample takes the size of a row drawn near
its targets,

    p(row) ∝ Π_k exp(−d_k²/2h_k²),     h_k = 0.15 σ_k,

d_k the distance of the row's value of property k to its target (0 inside a range) and σ_k the
property's standard deviation. This is a Gaussian kernel estimate of p(size | targets).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sciflow.random import Draws
from sciflow.targets import Target
from sciflow.training.prepared import PreparedData

__all__ = ["fixed_part", "reference_of", "rows_near", "same_size_error", "values_asked"]

_SIZE = 4096
_KERNEL = 0.15
"""Width h of the kernel, in standard deviations."""
_FAR = 1e3
"""Distance of a row whose value is not known, in standard deviations."""


def fixed_part(n: int, size: int = _SIZE) -> Tensor:
    """Rows of a random part of ``n``, the same each time; rising, int64 ``[≤ size]``."""
    rows = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    return rows[:size].sort().values


def reference_of(data: PreparedData) -> dict[str, Tensor]:
    """``lengths`` and every property of a fixed random part of the samples, ``[≤ 4096]`` each."""
    rows = fixed_part(len(data))
    return {
        "lengths": data.lengths[rows].to(torch.int16),
        **{name: values[rows] for name, values in data.conditions.items()},
    }


def rows_near(
    reference: Mapping[str, Tensor],
    targets: Mapping[str, Target],
    std: Mapping[str, float],
    draws: Draws,
    stream: str,
) -> Tensor:
    """A row near the targets for each sample; any row where there are none. Int64 ``[B]``.

    Args:
        reference: ``lengths`` and the value of every target, ``[M]`` each; NaN where not known.
        targets: by property.
        std: σ of each target's property.
        draws: of the samples; one uniform each is used.
        stream: its name.
    """
    m = len(reference["lengths"])
    log_weight = torch.zeros(m, dtype=torch.float64)
    for name, target in targets.items():
        value = reference[name].double()
        outside = (target.low - value).clamp(min=0) + (value - target.high).clamp(min=0)
        d = outside.nan_to_num(nan=_FAR * std[name]) / (_KERNEL * std[name])
        log_weight = log_weight - 0.5 * d**2
    # Far from every row all weights would vanish; the nearest then decide.
    p = (log_weight - log_weight.max()).exp().cumsum(0)
    u = draws.uniform((), stream, dtype=torch.float64)
    return torch.searchsorted(p, u * p[-1]).clamp(max=m - 1)


def values_asked(
    reference: Mapping[str, Tensor],
    rows: Tensor,
    targets: Mapping[str, Target],
    statistics: Mapping[str, Sequence[float]],
) -> dict[str, Tensor]:
    """What each sample is asked for, ``{property: float32 [B]}``; NaN where it is not asked.

    For a point it is the point. For a range it is the row's own value, moved into the range.

    Args:
        reference: as of :func:`rows_near`.
        rows: one a sample.
        targets: by property.
        statistics: ``{property: (mean, std)}`` of all that the model knows; the mean stands in for
            a value that is not known.
    """
    asked = {}
    for name, (mean, _) in statistics.items():
        values = torch.full((len(rows),), torch.nan)
        if name in targets:
            t = targets[name]
            values = reference[name][rows].nan_to_num(nan=mean).clamp(t.low, t.high)
        asked[name] = values.float()
    return asked


def same_size_error(
    lengths: Tensor, wanted: Tensor, reference: Mapping[str, Tensor], name: str
) -> float:
    """Mean over samples of E|wanted − value| over training samples of the sample's size.

    Args:
        lengths: sizes of the samples, ``[B]``.
        wanted: values asked for, ``[B]``.
        reference: as of :func:`rows_near`; without sizes or the property the answer is NaN.
        name: of the property.
    """
    if "lengths" not in reference or name not in reference:
        return float("nan")
    sizes, values = reference["lengths"].long(), reference[name].double()
    known = ~values.isnan()
    errors = []
    for n, w in zip(lengths.tolist(), wanted.double().tolist(), strict=True):
        same = values[known & (sizes == n)]
        if len(same):
            errors.append(float((same - w).abs().mean()))
    return sum(errors) / len(errors) if errors else float("nan")
