r"""Scores of probabilistic forecasts, by the field's definitions (gluonts, M4, TSDiff).

With y the truth, q̂_α the forecast's α-quantile and sums over everything that is scored:

    ρ_α      = |(y − q̂_α)(α − 1{y < q̂_α})|                         the quantile (pinball) loss
    wQL_α    = 2 Σ ρ_α / Σ |y|
    CRPS     = mean of wQL_α over α = .1, ..., .9: an approximation of ∫ 2ρ_α dα, in units of |y|
    ND       = Σ |y − q̂_.5| / Σ |y|
    NRMSE    = sqrt(mean (y − mean)²) / mean |y|

    E        = mean of |y_u − y_{u−m}| over the history: the error of seasonal naive in sample
    MASE     = mean |y − q̂_.5| / E                                    Hyndman & Koehler, 2006
    MSIS     = mean [u − l + (2/α)(l − y)₊ + (2/α)(y − u)₊] / E,  l, u = q̂_{α/2}, q̂_{1−α/2}, α = .05
    sMAPE    = mean of 2 |y − q̂_.5| / (|y| + |q̂_.5|)
    coverage = share of y within the central interval of a level

The first group weighs a series by its size, so a few large ones decide; the second, averaged over
series and windows, does not. Both are wanted. What was not observed (NaN) counts nowhere. A series
with E = 0 has no MASE and leaves the mean, as in gluonts.

``crps_of_samples`` is the CRPS itself, E|X − y| − E|X − X'| / 2 (Gneiting & Raftery, 2007).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from domains.timeseries.series import Series

__all__ = [
    "LEVELS",
    "QUANTILES",
    "Scored",
    "coverage",
    "crps",
    "crps_of_samples",
    "crps_sum",
    "evaluate",
    "mase",
    "msis",
    "normalised_deviation",
    "nrmse",
    "quantile_loss",
    "rows",
    "seasonal_error",
    "smape",
    "weighted_quantile_loss",
]

Array = NDArray[np.float64]

QUANTILES = tuple(round(0.1 * k, 1) for k in range(1, 10))
"""α of the CRPS."""
LEVELS = (50, 80, 95)
"""Central intervals whose coverage is told, per cent."""
_ALPHA = 0.05


class Scored(Protocol):
    """What is asked of a forecast."""

    def quantile(self, q: float) -> Array:
        """``[H, C]``."""

    def mean(self) -> Array:
        """``[H, C]``."""


def quantile_loss(y: ArrayLike, forecast: ArrayLike, q: float) -> Array:
    """ρ_q of each value."""
    y, forecast = np.asarray(y, np.float64), np.asarray(forecast, np.float64)
    return np.abs((y - forecast) * (q - (y < forecast)))


def weighted_quantile_loss(y: ArrayLike, forecast: ArrayLike, q: float) -> float:
    """wQL_q over everything given."""
    return _ratio(2 * np.nansum(quantile_loss(y, forecast, q)), np.nansum(np.abs(y)))


def crps(y: ArrayLike, quantiles: ArrayLike) -> float:
    """Mean of wQL over ``QUANTILES``; ``quantiles`` is ``[9, ...]``, ``y`` is ``[...]``."""
    pairs = zip(QUANTILES, np.asarray(quantiles, np.float64), strict=True)
    return float(np.mean([weighted_quantile_loss(y, f, q) for q, f in pairs]))


def normalised_deviation(y: ArrayLike, median: ArrayLike) -> float:
    """ND of the median."""
    y = np.asarray(y, np.float64)
    return _ratio(np.nansum(np.abs(y - np.asarray(median))), np.nansum(np.abs(y)))


def nrmse(y: ArrayLike, mean: ArrayLike) -> float:
    """Root mean square error of the mean, in units of the mean of |y|."""
    y = np.asarray(y, np.float64)
    n = max(np.isfinite(y).sum(), 1)
    return _ratio(np.sqrt(np.nansum((y - np.asarray(mean)) ** 2) / n), np.nansum(np.abs(y)) / n)


def smape(y: ArrayLike, median: ArrayLike) -> float:
    """Symmetric mean absolute percentage error as a fraction, 0 to 2; 0/0 counts as 0."""
    y, median = np.asarray(y, np.float64), np.asarray(median, np.float64)
    size = np.abs(y) + np.abs(median)
    return _mean(2 * np.abs(y - median) / np.where(size == 0, 1.0, size))


def seasonal_error(history: ArrayLike, season: int) -> Array:
    """E of each channel of ``history [T, C]``, ``[C]``; lag 1 where a season does not fit into it.

    NaN where no pair was observed.
    """
    past = np.asarray(history, np.float64)
    lag = season if season < len(past) else 1
    steps = np.abs(past[lag:] - past[:-lag])
    n = np.isfinite(steps).sum(0)
    return np.where(n > 0, np.nansum(steps, 0) / np.maximum(n, 1), np.nan)


def mase(y: ArrayLike, median: ArrayLike, error: ArrayLike) -> float:
    """Mean absolute error in units of ``error``, the seasonal error of the history."""
    return _ratio(_mean(np.abs(np.asarray(y, np.float64) - np.asarray(median))), error)


def msis(
    y: ArrayLike, lower: ArrayLike, upper: ArrayLike, error: ArrayLike, alpha: float = _ALPHA
) -> float:
    """Mean scaled interval score of the central 1 − alpha interval."""
    y, low, high = (np.asarray(v, np.float64) for v in (y, lower, upper))
    outside = np.maximum(low - y, 0) + np.maximum(y - high, 0)
    return _ratio(_mean(high - low + 2 / alpha * outside), error)


def coverage(y: ArrayLike, lower: ArrayLike, upper: ArrayLike) -> float:
    """Share of the observed values within [lower, upper]."""
    y = np.asarray(y, np.float64)
    return _mean(np.where(np.isfinite(y), (y >= lower) & (y <= upper), np.nan))


def crps_of_samples(samples: ArrayLike, y: ArrayLike) -> Array:
    """E|X − y| − E|X − X'|/2 of each value; samples ``[S, ...]``, y ``[...]``.

    The law meant is that of the samples themselves, so X' may be X.
    """
    x, y = np.sort(np.asarray(samples, np.float64), 0), np.asarray(y, np.float64)
    s = len(x)
    # Of sorted x: Σ_{i,j} |x_i − x_j| = 2 Σ_i (2i − s + 1) x_i.
    weights = (2 * np.arange(s) - s + 1).reshape(-1, *(1,) * (x.ndim - 1))
    return np.abs(x - y).mean(0) - (weights * x).sum(0) / s**2


def crps_sum(samples: Sequence[ArrayLike], truths: Sequence[Any]) -> float:
    """CRPS of the sum over channels (CSDI, TimeGrad): a score of the joint law, comparable with no
    other CRPS; samples ``[S, H, C]`` and truths ``[H, C]`` of each window.
    """  # fmt: skip
    y = [_values(t).sum(-1) for t in truths]
    q = [np.quantile(np.asarray(x, np.float64).sum(-1), QUANTILES, 0) for x in samples]
    return crps(np.concatenate(y), np.concatenate(q, 1))


def rows(
    forecasts: Sequence[Scored], truths: Sequence[Any], histories: Sequence[Any], season: int,
    levels: Sequence[float] = LEVELS,
) -> list[dict[str, Any]]:  # fmt: skip
    """Scores of each channel of each window, in order; columns are those of :func:`evaluate`.

    ``series`` names it; of several channels, ``series/channel``. ``n`` counts observed values.
    """
    result = []
    for truth, history, y, error, told in _windows(forecasts, truths, histories, season, levels):
        for c in range(y.shape[1]):
            name = getattr(history, "name", "")
            if y.shape[1] > 1:
                name = f"{name}/{truth.channels[c] if isinstance(truth, Series) else c}"
            column = {key: v[..., c] for key, v in told.items()}
            row = {"series": name, "n": int(np.isfinite(y[:, c]).sum())}
            result.append(
                row | _sized(y[:, c], column) | _scaled(y[:, c], column, error[c], levels)
            )
    return result


def evaluate(
    forecasts: Sequence[Scored], truths: Sequence[Any], histories: Sequence[Any], season: int,
    levels: Sequence[float] = LEVELS,
) -> dict[str, float]:  # fmt: skip
    """Scores over all windows.

    Args:
        forecasts: one a window.
        truths: :class:`Series` or arrays ``[H, C]``; NaN is not scored.
        histories: what was known, :class:`Series` or arrays ``[T, C]``.
        season: m of the seasonal error.
        levels: of intervals whose coverage is told, per cent.

    Returns:
        ``crps``, ``nd``, ``nrmse``, ``wql_0.1`` … over the pooled values; ``mase``, ``msis``,
        ``smape`` as means over windows and channels; ``coverage_80`` … over the pooled values.
    """
    pooled_y, pooled, per_row = [], [], []
    for _, _, y, error, told in _windows(forecasts, truths, histories, season, levels):
        pooled_y.append(y.ravel())
        pooled.append({key: v.reshape(*v.shape[:-2], -1) for key, v in told.items()})
        for c in range(y.shape[1]):
            column = {key: v[..., c] for key, v in told.items()}
            per_row.append(_scaled(y[:, c], column, error[c], levels))
    y = np.concatenate(pooled_y)
    told = {key: np.concatenate([p[key] for p in pooled], -1) for key in pooled[0]}
    means = {key: _mean(np.array([r[key] for r in per_row])) for key in ("mase", "msis", "smape")}
    return _sized(y, told) | means | _covered(y, told, levels)


def _windows(
    forecasts: Sequence[Scored], truths: Sequence[Any], histories: Sequence[Any], season: int,
    levels: Sequence[float],
) -> Iterator[tuple[Any, Any, Array, Array, dict[str, Array]]]:  # fmt: skip
    """Truth, history, y ``[H, C]``, seasonal errors ``[C]``, and what the forecast tells."""
    for forecast, truth, history in zip(forecasts, truths, histories, strict=True):
        told = {"quantiles": np.stack([_told(forecast.quantile(q)) for q in QUANTILES])}
        told["mean"] = _told(forecast.mean())
        for level in (100 * (1 - _ALPHA), *levels):
            q = round((1 - level / 100) / 2, 6)
            told[f"lower_{level:g}"] = _told(forecast.quantile(q))
            told[f"upper_{level:g}"] = _told(forecast.quantile(1 - q))
        error = seasonal_error(_values(history), season)
        yield truth, history, _values(truth), error, told


def _sized(y: Array, told: dict[str, Array]) -> dict[str, float]:
    """Scores in units of the size of y."""
    quantiles = dict(zip(QUANTILES, told["quantiles"], strict=True))
    return {
        "crps": crps(y, told["quantiles"]),
        "nd": normalised_deviation(y, quantiles[0.5]),
        "nrmse": nrmse(y, told["mean"]),
    } | {f"wql_{q}": weighted_quantile_loss(y, f, q) for q, f in quantiles.items()}


def _scaled(
    y: Array, told: dict[str, Array], error: float, levels: Sequence[float]
) -> dict[str, float]:
    """Scores of one series, free of its size."""
    median, interval = told["quantiles"][4], f"{100 * (1 - _ALPHA):g}"
    return {
        "mase": mase(y, median, error),
        "msis": msis(y, told[f"lower_{interval}"], told[f"upper_{interval}"], error),
        "smape": smape(y, median),
    } | _covered(y, told, levels)


def _covered(y: Array, told: dict[str, Array], levels: Sequence[float]) -> dict[str, float]:
    return {
        f"coverage_{v:g}": coverage(y, told[f"lower_{v:g}"], told[f"upper_{v:g}"]) for v in levels
    }


def _values(x: Any) -> Array:
    """``[T, C]`` of a series or an array."""
    values = np.asarray(x.values if isinstance(x, Series) else x, np.float64)
    return values[:, None] if values.ndim == 1 else values


def _told(x: Any) -> Array:
    return _values(np.asarray(x))


def _ratio(a: Any, b: Any) -> float:
    """a/b; NaN where there is nothing to divide by."""
    return float(a) / float(b) if np.isfinite(b) and b > 0 else float("nan")


def _mean(v: Array) -> float:
    """Mean of what is a number, NaN where nothing is."""
    finite = np.isfinite(v)
    return float(v[finite].mean()) if finite.any() else float("nan")
