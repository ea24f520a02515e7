"""The forecaster as a user meets it: series in, paths out, any horizon and any gaps.

    forecaster = load_forecaster()                       # the bundled model for hourly series
    forecast = forecaster.forecast(table, horizon=24)[0]
    forecast.quantile(0.9), forecast.plot()

A path of a series is a function of (model, settings, seed, the series' name and last time stamp,
the path's number): not of the other series, nor of how many paths are asked for. Horizons beyond
the model's are rolled out: each path goes on from its own past, block after block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from domains.timeseries.covariates import Covariates
from domains.timeseries.forecast import Forecast, Imputation
from domains.timeseries.imputing import imputed
from domains.timeseries.paths import PathDrawer, stream_of
from domains.timeseries.refining import PILOT, Refinement, RefineMethod
from domains.timeseries.series import Series
from domains.timeseries.view import View
from sciflow.errors import InputError
from sciflow.model import Model, load

__all__ = ["Forecaster", "load_forecaster"]

Progress = Callable[[int, int], None]


class Forecaster:
    """A trained model of series.

    Args:
        model: of the domain ``timeseries``.

    Raises:
        InputError: a model of something else.
    """

    def __init__(self, model: Model):
        if model.domain.name != "timeseries":
            raise InputError(f"model {model.name!r} makes {model.domain.name}, not time series")
        self.model, config = model, model.config
        self.context, self.horizon = config["context"], config["horizon"]
        self.channels, self.freq = config["channels"], config["freq"]
        known = config["covariates"]
        self.covariates = None if known is None else Covariates(**known)

    @classmethod
    def load(cls, name: str | Path) -> Forecaster:
        """A model's folder, or a bundled model by name."""
        return cls(load(name))

    def forecast(
        self,
        data: Sequence[Series] | Series | pd.DataFrame,
        horizon: int,
        samples: int = 100,
        seed: int = 0,
        *,
        method: str | None = None,
        steps: int | None = None,
        batch_size: int | None = None,
        progress: Progress | None = None,
        **settings: Any,
    ) -> list[Forecast]:
        """Continue each series by ``horizon`` steps.

        Args:
            data: series, or a table in any layout that ``read_table`` knows.
            horizon: how many steps.
            samples: paths a series.
            seed: any integer.
            method: see :mod:`domains.timeseries.methods`; default the model's.
            steps: network calls a block of the model's horizon; default the model's.
            batch_size: paths a network call; changes speed and memory only.
            progress: told (series done, series).
            settings: further ones of the sampler. ``prior_scale`` takes the place of the spread
                that calibration has found, at every age of the last value.

        Raises:
            InputError: a series is not one that the model can continue.
        """
        series = self._accepted(data)
        for what, n in (("horizon", horizon), ("samples", samples)):
            if n < 1:
                raise InputError(f"{what} must be 1 or more, not {n}")
        drawer = PathDrawer.of(self.model, method, steps, seed, batch_size, **settings)
        spread = self.model.config.get("spread")
        if drawer.method != "conditional" or "prior_scale" in settings:
            spread = None
        calls = len(drawer.sampler.plan(self.model.denoiser))
        forecasts: list[Forecast] = []
        for group in _groups(series, max(drawer.rows // samples, 1)):
            paths = self._continued(group, horizon, samples, drawer, spread)
            forecasts += [
                Forecast(
                    s.name, s.channels, s.future(horizon), p, calls * self._rounds(s, horizon), s
                )
                for s, p in zip(group, paths, strict=True)
            ]
            if progress is not None:
                progress(len(forecasts), len(series))
        return forecasts

    def impute(
        self,
        data: Sequence[Series] | Series | pd.DataFrame,
        samples: int = 100,
        seed: int = 0,
        *,
        method: str | None = None,
        steps: int | None = None,
        batch_size: int | None = None,
        progress: Progress | None = None,
        **settings: Any,
    ) -> list[Imputation]:
        """Fill the gaps of each series, ``samples`` times; arguments as of :meth:`forecast`."""
        series = self._accepted(data)
        drawer = PathDrawer.of(self.model, method, steps, seed, batch_size, **settings)
        done = []
        for s in series:
            done.append(Imputation(s, self._filled(s, samples, drawer)))
            if progress is not None:
                progress(len(done), len(series))
        return done

    def refine(
        self,
        base: Sequence[Forecast],
        data: Sequence[Series] | Series | pd.DataFrame,
        method: RefineMethod = "langevin",
        samples: int = 100,
        seed: int = 0,
        *,
        steps: int | None = None,
        batch_size: int | None = None,
        progress: Progress | None = None,
        **settings: Any,
    ) -> list[Forecast]:
        """Move the forecasts of any forecaster towards what this model holds for likely.

        Args:
            base: one forecast a series, at most the model's horizon long.
            data: the histories that they continue, in the same order.
            method: see :mod:`domains.timeseries.refining`, like ``settings``.
            samples: paths of the refined forecast; those of the base are repeated.
            seed, steps, batch_size, progress: as of :meth:`forecast`.

        Raises:
            InputError: a base forecast that does not fit its history or the model.
        """
        series = self._accepted(data)
        if len(series) != len(base):
            raise InputError(f"{len(base)} forecasts of {len(series)} series; give one a series")
        how = Refinement(method, **settings)
        drawer = PathDrawer.of(self.model, "conditional", steps, seed, batch_size)
        refined = []
        for f, s in zip(base, series, strict=True):
            if f.samples.shape[1] > self.horizon:
                raise InputError(
                    f"the forecast of {s.name!r} has {f.samples.shape[1]} steps, more than the "
                    f"{self.horizon} that this model looks ahead; refine its beginning"
                )
            refined.append(self._refined(f, s, samples, drawer, how))
            if progress is not None:
                progress(len(refined), len(base))
        return refined

    def synthesise(self, n: int, length: int, seed: int = 0) -> list[Series]:
        """Series like those the model learnt from; series i depends on (seed, i) alone.

        Args:
            n: how many.
            length: steps of each; beyond the model's window they go on as forecasts do.
            seed: any integer.
        """
        for what, k in (("number", n), ("length", length)):
            if k < 1:
                raise InputError(f"{what} must be 1 or more, not {k}")
        window = self.context + self.horizon
        made = self.model.sample(n, seed=seed, batch_size=256).records
        series = [s.replace(name=f"series-{i}") for i, s in enumerate(made) if s is not None]
        if length <= window:
            return [s.head(length) for s in series]
        more = self.forecast(series, length - window, samples=1, seed=seed)
        return [
            s.replace(values=np.concatenate((s.values, f.samples[0])))
            for s, f in zip(series, more, strict=True)
        ]

    def _accepted(self, data: Sequence[Series] | Series | pd.DataFrame) -> list[Series]:
        if isinstance(data, pd.DataFrame):
            from domains.timeseries.tables import read_table

            data = read_table(data).series
        series = [data] if isinstance(data, Series) else list(data)
        for s in series:
            if s.freq != self.freq:
                raise InputError(
                    f"series {s.name!r} has steps of {s.freq!r}, the model {self.model.name!r} of "
                    f"{self.freq!r}; resample it, or train a model: sciflow train timeseries "
                    "--data FILE --out RUN"
                )
            if not s.observed[-self.context :].any():
                raise InputError(
                    f"series {s.name!r}: none of its last {self.context} values is observed; there "
                    "is nothing to go on from"
                )
        return series

    def _continued(
        self,
        group: Sequence[Series],
        horizon: int,
        samples: int,
        drawer: PathDrawer,
        spread: Mapping[str, Sequence[float]] | None,
    ) -> list[np.ndarray]:
        """Paths ``[S, H, C]`` of each series; several at once, which is faster."""
        parts = [self._parts(s) for s in group]
        joint = [part for channels in parts for part in channels]
        past = torch.stack([_tail(s, self.context) for s in joint]).repeat_interleave(samples, 0)
        streams = [stream for s in joint for stream in [_stream(s)] * samples]
        numbers = torch.arange(samples).repeat(len(joint))
        # The steps before the first value of a short history do not exist.
        begin = torch.isfinite(past).any(2, keepdim=True).int().argmax(1, keepdim=True)
        early = torch.tensor([self._told_beyond(s) for s in joint]).repeat_interleave(samples)
        early = early.nonzero()[:, 0]
        blocks = []
        for b in range(-(-horizon // self.horizon)):
            y = torch.nn.functional.pad(past, (0, 0, 0, self.horizon), value=torch.nan)
            given = torch.isfinite(y)
            # What is missing of the history is drawn with the future, as in training.
            real = (torch.arange(y.shape[1])[:, None] >= begin).expand_as(y)
            told = self._told(joint, b * self.horizon, samples)
            # Each block has numbers of its own.
            own = [k ^ stream_of(f"block {b}") if b else k for k in streams]
            wide = None if spread is None else _factors(past, spread)
            view = View(y, given, real, told, self._known_future)
            y = drawer(view, own, numbers, samples, wide)
            if b == 0 and len(early):
                y = self._beyond_gaps(view, y, early, drawer, own, numbers, samples)
            blocks.append(y[:, self.context :])
            past, begin = y[:, self.horizon :], (begin - self.horizon).clamp(min=0)
        paths = torch.cat(blocks, 1)[:, :horizon].view(len(joint), samples, horizon, -1).numpy()
        ends = np.cumsum([len(channels) for channels in parts])
        return [np.concatenate(list(p), -1) for p in np.split(paths, ends[:-1])]

    def _beyond_gaps(self, view: View, y: Tensor, rows: Tensor, drawer: PathDrawer,
                     streams: Sequence[int], numbers: Tensor, samples: int
                     ) -> Tensor:  # fmt: skip
        """Windows of which the future of some ``rows`` is drawn anew, after the gap before it.

        By p(gap, future) = p(gap) p(future | gap) each path goes on from the gap that it filled: a
        network reads what covariates say of a value next to it and forecasts from values, but
        learns little of both at once.
        """
        part, past = view[rows], slice(self.context)
        part = replace(
            part,
            y=torch.cat((y[rows, past], part.y[:, self.context :]), 1),
            given=torch.cat((part.real[:, past], part.given[:, self.context :]), 1),
        )
        own = [streams[i] ^ stream_of("beyond the gap") for i in rows.tolist()]
        y[rows] = drawer(part, own, numbers[rows], samples)
        return y

    def _told_beyond(self, s: Series) -> bool:
        """Whether covariates go on where the values of a history end early."""
        age = int(np.argmax(s.observed[::-1]))
        if self.covariates is None or age == 0:
            return False
        return bool(np.isfinite(self.covariates.of(s.tail(age), age)).any())

    def _rounds(self, s: Series, horizon: int) -> int:
        """How often windows of a series are drawn for a forecast."""
        return -(-horizon // self.horizon) + any(map(self._told_beyond, self._parts(s)))

    def _refined(self, f: Forecast, s: Series, samples: int, drawer: PathDrawer,
                 how: Refinement) -> Forecast:  # fmt: skip
        horizon, joined = f.samples.shape[1], []
        rows = max(samples, PILOT)
        for part in self._parts(s):
            columns = [s.channels.index(c) for c in part.channels]
            pick = np.arange(rows) % len(f.samples)
            base = torch.from_numpy(f.samples[pick][:, :, columns])
            y = _tail(part, self.context)[None].expand(rows, -1, -1)
            y = torch.cat((y, base), 1)
            y = torch.nn.functional.pad(y, (0, 0, 0, self.horizon - horizon), value=torch.nan)
            given = torch.isfinite(y)
            given[:, self.context :] = False
            real = given.clone()
            real[:, self.context :] = True
            streams, numbers = [_stream(part)] * rows, torch.arange(rows)
            told = self._told([part], 0, rows)
            view = View(y, given, real, told, self._known_future)
            drawn = drawer.refined(view, streams, numbers, how, samples)
            joined.append(drawn[:, self.context : self.context + horizon].numpy())
        calls = how.calls(len(drawer.sampler.plan(self.model.denoiser)))
        return Forecast(s.name, s.channels, f.index, np.concatenate(joined, -1), calls, s)

    def _parts(self, s: Series) -> list[Series]:
        """The series itself, or its channels where the model does not take so many together."""
        if len(s.channels) <= self.channels:
            return [s]
        if self.channels > 1:
            raise InputError(
                f"series {s.name!r} has {len(s.channels)} channels, the model takes {self.channels}"
            )
        return [s.channel(c) for c in s.channels]

    @property
    def _known_future(self) -> bool:
        return self.covariates is not None and self.covariates.known_future

    def _told(self, joint: Sequence[Series], shift: int, samples: int) -> Tensor | None:
        """Covariates of the windows that begin ``shift`` steps after the first ones."""
        if self.covariates is None:
            return None
        length = self.context + self.horizon
        told = np.full((len(joint), length, len(self.covariates.names)), np.nan)
        for row, s in zip(told, joint, strict=True):
            values = self.covariates.of(s, len(s) + shift + self.horizon)
            if not self.covariates.known_future:
                values[len(s) :] = np.nan
            part = values[-length:]
            row[length - len(part) :] = part
        return torch.from_numpy(told).repeat_interleave(samples, 0)

    def _filled(self, s: Series, samples: int, drawer: PathDrawer) -> np.ndarray:
        """Whole paths ``[S, T, C]``."""
        parts = []
        for part in self._parts(s):
            told = None if self.covariates is None else self.covariates.of(part, len(part))
            parts.append(imputed(part, samples, drawer, self.context + self.horizon, told,
                                 self._known_future))  # fmt: skip
        return np.concatenate(parts, -1)


def load_forecaster(model: str | Path = "timeseries") -> Forecaster:
    """The bundled forecaster of hourly series, another bundled one by name, or a folder."""
    return Forecaster.load(model)


def _stream(s: Series) -> int:
    """Whose random numbers the continuations of a series have."""
    return stream_of(f"{s.name} {s.stamp(len(s) - 1)}")


def _factors(past: Tensor, spread: Mapping[str, Sequence[float]]) -> Tensor:
    """Factor on the spread of each row of histories ``[B, L, C]``, by the age of its last value."""
    ages = torch.isfinite(past).any(2).flip(1).int().argmax(1)
    return torch.from_numpy(np.interp(ages.numpy(), spread["ages"], spread["factors"]))


def _tail(s: Series, n: int) -> Tensor:
    """The last ``n`` values, ``[n, C]``; NaN before the first."""
    values = torch.from_numpy(s.values[-n:])
    return torch.nn.functional.pad(values, (0, 0, n - len(values), 0), value=torch.nan)


def _groups(series: Sequence[Series], n: int) -> Iterator[Sequence[Series]]:
    """Up to ``n`` in a row that have the same channels."""
    group: list[Series] = []
    for s in series:
        if group and (len(group) == n or s.channels != group[0].channels):
            yield group
            group = []
        group.append(s)
    if group:
        yield group
