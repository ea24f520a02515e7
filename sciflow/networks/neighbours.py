"""Which points are near each other: exact, in memory proportional to the answer.

One k-d tree (scipy) holds the whole batch: a sample's number becomes a fourth coordinate in steps
beyond the cutoff, so that points of two samples are never neighbours and distances within a sample
are untouched. The search runs on the CPU in float64 and costs O(M log M) for M points.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

__all__ = ["neighbours"]


def neighbours(x: Tensor, sample: Tensor, cutoff: float, limit: int | None = None) -> Tensor:
    """Unordered pairs (i < j) of points of one sample within ``cutoff``, int64 ``[2, E]``.

    A point that is not finite has no neighbours. Pairs come in lexical order, so that sums over
    them do not depend on how the tree was built.

    Args:
        x: points ``[M, 3]``.
        sample: int64 ``[M]``, the sample each belongs to.
        cutoff: largest distance.
        limit: at most this many nearest partners a point; a pair is kept if either end keeps it,
            so E ≤ limit · M however dense the points lie. Points that tie for the last place are
            taken in no particular order.
    """
    points = x.detach().to("cpu", torch.float64).numpy()
    index = np.flatnonzero(np.isfinite(points).all(1))
    if len(index) < 2:
        return torch.empty(2, 0, dtype=torch.int64, device=x.device)
    apart = sample.cpu().numpy()[index, None] * (2.0 * cutoff + 1.0)
    tree = cKDTree(np.concatenate((points[index], apart), 1))
    if limit is None:
        found = tree.query_pairs(cutoff, output_type="ndarray").astype(np.int64)
    else:
        # The nearest point to each is itself, or one that coincides with it.
        k = min(limit + 1, len(index))
        _, partner = tree.query(tree.data, k, distance_upper_bound=np.nextafter(cutoff, np.inf))
        start = np.repeat(np.arange(len(index)), k)
        end = partner.reshape(-1)
        kept = (end < len(index)) & (end != start)
        found = np.stack((start[kept], end[kept]), 1)
    found = np.sort(index[found.reshape(-1, 2)], 1)
    key = np.unique(found[:, 0] * len(points) + found[:, 1])
    pairs = np.stack(np.divmod(key, len(points)))
    return torch.from_numpy(pairs).to(x.device)
