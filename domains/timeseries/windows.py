r"""Training windows: where they begin, what of them is given, and how the network sees them.

A window is ``context + horizon`` steps of one series. What is given of it is drawn with it, so that
one network learns every task:

    forecast   all that was observed before the origin, mostly ``horizon`` steps from the end
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

from domains.timeseries.covariates import Covariates
from domains.timeseries.encoding import batch_of
from domains.timeseries.series import Series
from domains.timeseries.view import View
from sciflow.random import Draws
from sciflow.state import State

__all__ = ["Patterns", "Windows"]


@dataclass(frozen=True)
class Patterns:
    """Shares of the training patterns; what is left to one is ``forecast``.

    Attributes:
        gaps: share of forecasts with part of the history missing.
        infill: share of windows with gaps anywhere.
        free: share of windows of which nothing is given.
        blocks: of the gaps, those that are one block; the others are single steps.
        late: of the blocks, those that end with the history; half of the others begin it.
        anywhere: of the forecasts, those whose origin stands anywhere in the window.
        silent: of all, those in which the covariates of the past are unknown where no value is
            given, as of a station that fails. Without them a network fills every gap from what
            was measured beside it, and is far too sure of itself where nothing was.
    """

    gaps: float = 0.3
    infill: float = 0.1
    free: float = 0.15
    blocks: float = 0.5
    late: float = 1 / 3
    anywhere: float = 0.2
    silent: float = 0.5

    @classmethod
    def beside(cls, covariates: Covariates | None) -> Patterns:
        """Those of series with such covariates.

        With covariates that end with the history, a history that ends early is two tasks, as they
        are known after its end or not. Both are rare, so they come more often.
        """
        past = covariates is not None and not covariates.known_future
        return cls(blocks=0.7, late=0.5) if past else cls()

    def __call__(self, real: Tensor, origin: int, draws: Draws) -> Tensor:
        """Bool ``[B, L, C]``: what is given, of ``real`` elements of windows."""
        length = real.shape[1]
        u = self._numbers(draws)
        place = torch.arange(length)
        kind, moved = u[:, 0], u[:, 1] < self.anywhere
        start = torch.where(moved, (u[:, 2] * length).long(), origin)[:, None]
        given = place < start
        # A block of up to 0.7 of the history (or window), or as many single steps.
        free, infill = kind < self.free, kind < self.free + self.infill
        gaps = kind < self.free + self.infill + self.gaps
        span = torch.where(infill, length, start[:, 0]).double()
        size = (u[:, 3] * 0.7 * span).long()
        early = (1 - self.late) / 2
        later = torch.where(u[:, 4] < early + self.late, 1.0, u[:, 5])
        ends = torch.where(u[:, 4] < early, 0.0, later)
        first = ((span - size) * ends).long()[:, None]
        block = (place >= first) & (place < first + size[:, None])
        single = draws.uniform((length,), "pattern/steps") < 0.7 * u[:, 3:4]
        missing = torch.where((u[:, 6] < self.blocks)[:, None], block, single)
        given = torch.where(infill[:, None], ~missing, given)
        given = torch.where((gaps & ~infill)[:, None], given & ~missing, given)
        return (given & ~free[:, None])[..., None] & real

    def heard(self, given: Tensor, draws: Draws) -> Tensor:
        """Bool ``[B, L, 1]``: where covariates of the past are told, of what is given."""
        return (
            given.any(2, keepdim=True) | (self._numbers(draws)[:, 7] >= self.silent)[:, None, None]
        )

    @staticmethod
    def _numbers(draws: Draws) -> Tensor:
        return draws.uniform((8,), "pattern", dtype=torch.float64)


class Windows:
    """Every window of a set of series, encoded as it is asked for.

    Args:
        series: the training part of each.
        context: steps before the origin.
        horizon: steps from it on.
        season: of the frame.
        patterns: what is given; ``None`` is plain forecasts.
        lags: see :func:`~domains.timeseries.encoding.features_of`.
        covariates: how those of the series enter, if they have any.
        origins: so many windows a series, its last horizons one after the other; default all.
        seed: of the patterns.
    """

    def __init__(
        self,
        series: Sequence[Series],
        context: int,
        horizon: int,
        season: int,
        patterns: Patterns | None = None,
        lags: Sequence[int] = (),
        covariates: Covariates | None = None,
        origins: int | None = None,
        seed: int = 0,
    ):
        self.context, self.horizon, self.season = context, horizon, season
        self.patterns, self.lags, self.seed = patterns, tuple(lags), seed
        self.covariates = covariates
        # Before the first value stand empty steps, so that short histories are windows as well.
        pad = np.full((context, series[0].values.shape[1]), np.nan)
        self.values = torch.from_numpy(np.concatenate([p for s in series for p in (pad, s.values)]))
        if covariates is not None:
            empty = np.full((context, len(covariates.names)), np.nan)
            told = [covariates.of(s, len(s)) for s in series]
            self.told = torch.from_numpy(np.concatenate([p for x in told for p in (empty, x)]))
        least = min(max(2 * season, horizon), context)
        starts, offset = [], 0
        for s in series:
            first = least if origins is None else max(least, len(s) - origins * horizon)
            step = 1 if origins is None else horizon
            last = len(s) - horizon
            starts.append(offset + np.arange(last, first - 1, -step)[::-1])
            offset += context + len(s)
        self.starts = torch.from_numpy(np.concatenate(starts))
        self.lengths = torch.full((len(self.starts),), context + horizon)

    def __len__(self) -> int:
        return len(self.starts)

    def digest(self) -> str:
        """SHA-256 of the values and of where windows begin."""
        h = hashlib.sha256(self.values.numpy().tobytes())
        h.update(self.starts.numpy().tobytes())
        if self.covariates is not None:
            h.update(self.told.numpy().tobytes())
        return h.hexdigest()

    def window(self, rows: Tensor) -> Tensor:
        """Values of the windows ``rows``, ``[B, context + horizon, C]``, NaN where unknown."""
        return self.values[self._steps(rows)]

    def _steps(self, rows: Tensor) -> Tensor:
        return self.starts[rows][:, None] + torch.arange(self.context + self.horizon)

    def collate(self, rows: Tensor) -> State:
        """The windows ``rows`` as a batch."""
        steps = self._steps(rows)
        y = self.values[steps]
        real = torch.isfinite(y)
        draws = Draws(self.seed, rows)
        if self.patterns is None:
            given = real & (torch.arange(y.shape[1]) < self.context)[:, None]
        else:
            given = self.patterns(real, self.context, draws)
        told, known_future = None, False
        if self.covariates is not None:
            told, known_future = self.told[steps], self.covariates.known_future
            if not known_future:
                told[:, self.context :] = torch.nan
                if self.patterns is not None:
                    told.masked_fill_(~self.patterns.heard(given, draws), torch.nan)
        return batch_of(View(y, given, real, told, known_future), self.season, self.lags)
