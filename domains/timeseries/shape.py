"""What a set of series looks like, in a handful of numbers: scores of synthetic beside real."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from domains.timeseries.series import Series

__all__ = ["shape_of"]


def shape_of(records: Sequence[Series]) -> dict[str, float]:
    """Means over series of quantities that have no unit; NaN values are left out.

    ``autocorrelation_1`` at the next step, ``autocorrelation_season`` a season later, ``roughness``
    the standard deviation of steps over that of values, ``skewness``, and ``finite``, the share of
    values that are numbers.
    """
    found: dict[str, list[float]] = {}
    for s in records:
        for k in range(s.values.shape[1]):
            for name, value in _of(s.values[:, k], s.season).items():
                found.setdefault(name, []).append(value)
    result = {}
    for name, values in found.items():
        known = [v for v in values if np.isfinite(v)]
        if known:
            result[name] = float(np.mean(known))
    return result


def _of(y: np.ndarray, season: int) -> dict[str, float]:
    finite = np.isfinite(y)
    result = {"finite": float(finite.mean()) if len(y) else float("nan")}
    if finite.sum() < 3 or not (std := float(np.std(y[finite]))) > 0:
        return result
    z = (y - np.mean(y[finite])) / std
    result["autocorrelation_1"] = _mean(z[1:] * z[:-1])
    if 1 < season < len(y):
        result["autocorrelation_season"] = _mean(z[season:] * z[:-season])
    result["roughness"] = _mean((z[1:] - z[:-1]) ** 2) ** 0.5
    result["skewness"] = _mean(z**3)
    return result


def _mean(v: np.ndarray) -> float:
    v = v[np.isfinite(v)]
    return float(v.mean()) if len(v) else float("nan")
