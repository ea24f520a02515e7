r"""Training windows: where they begin, what of them is given, and how the network sees them.

A window is ``context + horizon`` steps of one series. What is given of it is drawn with it, so that
one network learns every task:

    forecast   all that was observed before the origin (which mostly stands ``horizon`` from the end)
    gaps       the same with part of the history missing: at random, or a block anywhere in it
    infill     all but random steps, or but a block, anywhere in the window
    free       nothing: the unconditional model, which self-guidance and synthesis ask for

The window is then written in the frame of what is given (:mod:`domains.timeseries.frame`). Row i of
the data is one (series, origin), and its pattern a function of (seed, i).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from domains.timeseries.frame import Frame, frame_of
from domains.timeseries.series import Series
from sciflow.random import Draws
from sciflow.state import Context, State

__all__ = ["FIELD", "Patterns", "Windows", "batch_of", "features_of"]

FIELD = "series"
FEATURES = 6
"""Numbers a step that every network reads beside the covariates; see :func:`features_of`."""


@dataclass(frozen=True)
class Patterns:
    """Shares of the training patterns; what is left to one is ``forecast``.

    Attributes:
        gaps: share of forecasts with part of the history missing.
        infill: share of windows with gaps anywhere.
        free: share of windows of which nothing is given.
        anywhere: of the forecasts, those whose origin stands anywhere in the window.
    """

    gaps: float = 0.2
    infill: float = 0.1
    free: float = 0.15
    anywhere: float = 0.2

    def __call__(self, real: Tensor, origin: int, draws: Draws) -> Tensor:
        """Bool ``[B, L, C]``: what is given, of ``real`` elements of windows."""
        b, length, _ = real.shape
        u = draws.uniform((8,), "pattern", dtype=torch.float64)
        place = torch.arange(length)
        kind, moved = u[:, 0], u[:, 1] < self.anywhere
        start = torch.where(moved, (u[:, 2] * length).long(), origin)[:, None]
        given = place < start
        # A block of up to half the history (or window), or as many single steps.
        free, infill = kind < self.free, kind < self.free + self.infill
        gaps = kind < self.free + self.infill + self.gaps
        span = torch.where(infill, length, start[:, 0]).double()
        size = (u[:, 3] * 0.6 * span).long()
        ends = torch.where(u[:, 4] < 1 / 3, 0.0, torch.where(u[:, 4] < 2 / 3, 1.0, u[:, 5]))
        first = ((span - size) * ends).long()[:, None]
        block = (place >= first) & (place < first + size[:, None])
        single = draws.uniform((length,), "pattern/steps") < 0.6 * u[:, 3:4]
        missing = torch.where((u[:, 6] < 0.5)[:, None], block, single)
        given = torch.where(infill[:, None], ~missing, given)
        given = torch.where((gaps & ~infill)[:, None], given & ~missing, given)
        return (given & ~free[:, None])[..., None] & real


def features_of(y: Tensor, given: Tensor, frame: Frame, lags: Sequence[int] = ()) -> Tensor:
    """What the network is told of each step, float32 ``[B, L, C, 3 + len(lags)]``.

    The given values and the anchors in units of the window's spread, log(σ/spread), and the given
    values at fixed lags relative to the frame (0 where there is none).
    """

    def soft(v: Tensor) -> Tensor:
        return torch.asinh(v)

    z = torch.where(given, (y - frame.centre) / frame.spread, 0.0)
    parts = [soft(z), soft((frame.anchor - frame.centre) / frame.spread),
             (frame.scale / frame.spread).log()]  # fmt: skip
    for lag in lags:
        parts.append(_lagged(y, given, frame, lag))
    return torch.stack(parts, -1).float()


def _lagged(y: Tensor, given: Tensor, frame: Frame, lag: int) -> Tensor:
    """x of the value ``lag`` steps before, 0 where it is not given."""
    past = torch.full_like(y, torch.nan)
    if lag < y.shape[1]:
        past[:, lag:] = torch.where(given, y, torch.nan)[:, : y.shape[1] - lag]
    return frame.encode(past).nan_to_num(nan=0.0)


def batch_of(
    y: Tensor, given: Tensor, real: Tensor, season: int, lags: Sequence[int] = (),
    covariates: Tensor | None = None,
) -> State:  # fmt: skip
    """Windows as a batch of the core: the field, the mask, what is given, features and the frame.

    Args:
        y: float64 ``[B, L, C]``; NaN where unknown.
        given: bool ``[B, L, C]``.
        real: bool ``[B, L, C]``: steps that exist: given, or to be drawn.
        season: of the frame.
        lags: see :func:`features_of`.
        covariates: standardised, ``[B, L, K]``.
    """
    given = given & torch.isfinite(y)
    none = ~given.flatten(1).any(1)
    # Where nothing is given, the window is seen in units of its own mean and spread.
    plain = frame_of(y, torch.where(none[:, None, None], real, given), season)
    frame = Frame(
        plain.centre, plain.spread,
        torch.where(none[:, None, None], plain.centre, plain.anchor),
        torch.where(none[:, None, None], plain.spread, plain.scale),
    )  # fmt: skip
    x = frame.encode(y).nan_to_num(nan=0.0).float()
    features = features_of(torch.where(given, y, torch.nan), given, frame, lags)
    if covariates is not None:
        wide = covariates[:, :, None].expand(-1, -1, y.shape[2], -1).float()
        features = torch.cat((features, wide), -1)
    extras = {"features": features, "anchor": frame.anchor, "scale": frame.scale}
    return State({FIELD: x}, Context(real, {}, {FIELD: given}, extras))


class Windows:
    """Every window of a set of series, encoded as it is asked for.

    Args:
        series: the training part of each.
        context: steps before the origin.
        horizon: steps from it on.
        season: of the frame.
        patterns: what is given.
        lags: see :func:`features_of`.
        seed: of the patterns.
    """

    def __init__(self, series: Sequence[Series], context: int, horizon: int, season: int,
                 patterns: Patterns | None = None, lags: Sequence[int] = (), seed: int = 0):  # fmt: skip
        self.context, self.horizon, self.season = context, horizon, season
        self.patterns, self.lags, self.seed = patterns or Patterns(), tuple(lags), seed
        pad = np.full((context, series[0].values.shape[1]), np.nan)
        # Before the first value stand empty steps, so that short histories are windows as well.
        self.values = torch.from_numpy(np.concatenate([p for s in series for p in (pad, s.values)]))
        least = min(max(2 * season, horizon), context)
        starts, offset = [], 0
        for s in series:
            n = len(s) - horizon - least + 1
            starts.append(offset + least + np.arange(max(n, 0)))
            offset += context + len(s)
        self.starts = torch.from_numpy(np.concatenate(starts))
        self.lengths = torch.full((len(self.starts),), context + horizon)

    def __len__(self) -> int:
        return len(self.starts)

    def digest(self) -> str:
        """SHA-256 of the values and of where windows begin."""
        h = hashlib.sha256(self.values.numpy().tobytes())
        h.update(self.starts.numpy().tobytes())
        return h.hexdigest()

    def collate(self, rows: Tensor) -> State:
        """The windows ``rows`` as a batch."""
        steps = torch.arange(self.context + self.horizon)
        y = self.values[self.starts[rows][:, None] + steps]
        real = torch.isfinite(y)
        given = self.patterns(real, self.context, Draws(self.seed, rows))
        return batch_of(y, given, real, self.season, self.lags)
