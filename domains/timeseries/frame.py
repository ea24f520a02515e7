r"""The coordinates in which a window is denoised: what seasonal naive leaves, in its own units.

A series may be anywhere and of any size, and what is uncertain of it may be a thousandth of what
varies. So a window y is written relative to what its observed part tells (the *frame*),

    x_t = squash( (y_t − μ_t) / σ(ℓ_t) ),

    μ_t   = y_{t−ℓ_t}, the latest observation before t at the same phase of the season, ℓ_t steps
            ago: the seasonal naive forecast (the last value, where there is no season)
    σ(ℓ)² = mean of (y_u − y_{u−ℓ})² over observed pairs: the naive forecast's own error at that
            lag. Lags with few pairs lean on the shorter ones.

Then x is of order one for every series, horizon and pattern of gaps; x = 0 is the naive forecast,
and a model that knows nothing gives its classical intervals. Where nothing of the phase was
observed before t, the next observation after t takes its place; where nothing of it was observed at
all, μ is the mean m and σ the standard deviation of all that was. A series of which nothing is
observed has m = 0, σ = 1.

Real series have jumps of many σ. squash(r) = k asinh(r/k), k = 3, leaves |r| < 1 as it is and grows
like a logarithm beyond, so that one jump does not outweigh a thousand ordinary steps; it is undone
exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Frame", "decoded", "flat_frame_of", "frame_of", "moments"]

_SQUASH = 3.0
_FEW = 2.0
"""Pairs at a lag that weigh as much as what the shorter lags say."""
_UNSEEN = 1e-2
"""Pairs that two unrelated values count for."""
_LEAST = 1e-4
"""Smallest σ in units of the standard deviation: below lies the rounding of tables."""


@dataclass(frozen=True)
class Frame:
    """Anchors and scales of a batch of windows, float64.

    Attributes:
        centre: m, mean of what is observed, ``[B, 1, C]``.
        spread: standard deviation of what is observed, ``[B, 1, C]``.
        anchor: μ, ``[B, L, C]``.
        scale: σ(ℓ_t), ``[B, L, C]``.
    """

    centre: Tensor
    spread: Tensor
    anchor: Tensor
    scale: Tensor

    def encode(self, y: Tensor) -> Tensor:
        """x of values ``y [B, L, C]``; NaN stays."""
        return _SQUASH * torch.asinh((y - self.anchor) / self.scale / _SQUASH)

    def decode(self, x: Tensor) -> Tensor:
        """y of ``x [B, L, C]``."""
        return decoded(x, self.anchor, self.scale)


def decoded(x: Tensor, anchor: Tensor, scale: Tensor) -> Tensor:
    """y of ``x`` in a frame of which μ and σ are known, float64 ``[B, L, C]``."""
    return anchor + scale * _SQUASH * torch.sinh(x.double() / _SQUASH)


def flat_frame_of(y: Tensor, given: Tensor) -> Frame:
    """The frame in which every step is seen from the mean, in units of the standard deviation.

    Args:
        y: float64 ``[B, L, C]``.
        given: bool ``[B, L, C]``: whose mean and standard deviation those are.
    """
    known = given & torch.isfinite(y)
    centre, spread = _units(torch.where(known, y, torch.zeros_like(y)), known)
    return Frame(centre, spread, centre.expand_as(y), spread.expand_as(y))


def frame_of(y: Tensor, given: Tensor, season: int) -> Frame:
    """The frame that the given values of windows tell.

    Args:
        y: float64 ``[B, L, C]``; what is not given does not matter.
        given: bool ``[B, L, C]``.
        season: steps of a season, 1 for none.
    """
    known = given & torch.isfinite(y)
    if y.numel() == 0:
        return Frame(*(torch.ones_like(y) for _ in range(4)))
    y = torch.where(known, y, torch.zeros_like(y))
    centre, spread = _units(y, known)
    z = torch.where(known, y - centre, torch.zeros_like(y))

    # Rows of a phase: [B, R, season, C], the season's r-th repetition.
    b, length, c = y.shape
    rows = max(-(-length // season), 1)
    z, known = (_in_rows(v, rows, season) for v in (z / spread, known))
    number = torch.arange(rows).view(1, rows, 1, 1)
    last = torch.where(known, number, -1).cummax(1).values
    before = torch.cat((torch.full_like(last[:, :1], -1), last[:, :-1]), 1)
    next_ = torch.where(known, number, rows).flip(1).cummin(1).values.flip(1)
    after = torch.cat((next_[:, 1:], torch.full_like(next_[:, :1], rows)), 1)
    source = torch.where(before >= 0, before, after)
    found = (source >= 0) & (source < rows)
    source = torch.where(found, source, number.expand_as(source))
    anchor = torch.where(found, z.gather(1, source), torch.zeros_like(z))
    variances = _lag_variances(z, known)
    lag = (number - source).abs()
    scale = variances.gather(1, lag.flatten(2).flatten(1, 2).view(b, -1, c)).view_as(lag).sqrt()
    scale = torch.where(found, scale.clamp(min=_LEAST), torch.ones_like(scale))

    anchor, scale = (v.reshape(b, rows * season, c)[:, :length] for v in (anchor, scale))
    return Frame(centre, spread, centre + spread * anchor, spread * scale)


def moments(y: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance over the steps of what is known of finite ``y [B, L, ...]``.

    Returns:
        ``[B, 1, ...]`` each, 0 where nothing is known.
    """
    n = known.sum(1, keepdim=True).clamp(min=1)
    mean = torch.where(known, y, 0.0).sum(1, keepdim=True) / n
    return mean, (torch.where(known, y - mean, 0.0) ** 2).sum(1, keepdim=True) / n


def _units(y: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Centre and spread of what is known of finite ``y``, ``[B, 1, C]``."""
    centre, variance = moments(y, known)
    spread = variance.sqrt()
    # A constant series has no scale of its own: its size, or one.
    tiny = 1e-12 * centre.abs()
    return centre, torch.where(spread > tiny, spread, torch.where(centre != 0, centre.abs(), 1.0))


def _in_rows(v: Tensor, rows: int, season: int) -> Tensor:
    padding = rows * season - v.shape[1]
    return F.pad(v, (0, 0, 0, padding)).view(len(v), rows, season, v.shape[2])


def _lag_variances(z: Tensor, known: Tensor) -> Tensor:
    r"""v_k = mean of (z_{r+k} − z_r)² over known pairs of rows, ``[B, R, C]`` for k = 0 … R − 1.

    The sums are correlations, done for all lags at once by FFT:
    Σ g_r g_{r+k} (z_{r+k} − z_r)² = corr(g, g z²) + corr(g z², g) − 2 corr(g z, g z).
    """
    rows = z.shape[1]
    g = known.to(z.dtype)
    # Padding to twice the length keeps the ends apart.
    f0, f1, f2 = (torch.fft.rfft(v, 2 * rows, 1) for v in (g, g * z, g * z**2))
    pairs = torch.fft.irfft(f0.conj() * f0, 2 * rows, 1)[:, :rows].sum(2)
    squares = f0.conj() * f2 + f2.conj() * f0 - 2 * f1.conj() * f1
    sums = torch.fft.irfft(squares, 2 * rows, 1)[:, :rows].sum(2)
    pairs, sums = pairs.round(), sums.clamp(min=0)
    # What all shorter lags say together; of lag 1, the variance of two unrelated values.
    shorter_sums, shorter_pairs = (F.pad(v[:, 1:-1].cumsum(1), (0, 0, 2, 0)) for v in (sums, pairs))
    prior = (shorter_sums + 2 * _UNSEEN) / (shorter_pairs + _UNSEEN)
    few = torch.full((rows, 1), _FEW, dtype=z.dtype)
    few[:2] = _UNSEEN
    return ((sums + few * prior) / (pairs + few))[:, :rows]
