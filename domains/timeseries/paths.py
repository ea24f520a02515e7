"""Sample paths of what is unknown in windows: the one place where a series meets the sampler."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from domains.timeseries.encoding import FIELD, batch_of, values_of
from domains.timeseries.methods import METHODS, SAMPLERS, Method, prepared
from domains.timeseries.refining import PILOT, Refinement, base_weight
from domains.timeseries.view import View
from sciflow.errors import InputError, NonFiniteError
from sciflow.model import Model
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.state import State

__all__ = ["PathDrawer", "stream_of"]


def stream_of(text: str) -> int:
    """A 32-bit number of a name: whose random numbers those are, whatever else is in the table."""
    return zlib.crc32(text.encode())


@dataclass(frozen=True)
class PathDrawer:
    """Draws windows by a model.

    Attributes:
        model: of the domain.
        method: see :mod:`domains.timeseries.methods`.
        sampler: how to integrate.
        seed: any integer.
        rows: windows a network call.
    """

    model: Model
    method: Method
    sampler: Sampler
    seed: int
    rows: int = 512

    @classmethod
    def of(cls, model: Model, method: str | None, steps: int | None, seed: int,
           batch_size: int | None = None, **settings: Any) -> PathDrawer:  # fmt: skip
        """The drawer of a model, checked.

        Raises:
            InputError: an unknown method.
        """
        method = method or model.config.get("method", "conditional")
        if method not in METHODS:
            raise InputError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
        own = model.config["forecasting"] if method == "conditional" else SAMPLERS[method]
        sampler = Sampler(**own | ({} if steps is None else {"steps": steps}))
        if batch_size is not None and batch_size < 1:
            raise InputError(f"a batch holds at least 1 path, not {batch_size}")
        return cls(model, method, replace(sampler, **settings), seed, batch_size or 512)

    def __call__(
        self,
        view: View,
        streams: Sequence[int],
        numbers: Tensor,
        paths: int,
        spread: Tensor | None = None,
    ) -> Tensor:
        """The windows with what is real and not given drawn, float64 ``[B, L, C]``.

        Args:
            view: of the windows.
            streams: whose random numbers each row has (:func:`stream_of`).
            numbers: int64 ``[B]``, which path each row is.
            paths: how many there are, for quantile guidance.
            spread: a factor on the noise that each row starts from, ``[B]``.

        Raises:
            NonFiniteError: the sampler lost a path.
        """
        config, keys = self.model.config, _keys(streams, numbers)

        def drawn(part: slice) -> Tensor:
            denoiser, batch = prepared(
                self.method, self.model.denoiser, view[part], config["season"], config["lags"],
                (numbers[part] + 1) / (paths + 1),
            )  # fmt: skip
            known = {FIELD: batch[FIELD]} if batch.context.given else None
            draws, wide = Draws(self.seed, keys[part]), None if spread is None else spread[part]
            start = self.sampler.prior(denoiser, batch.context, draws, scales=wide)
            report = self.sampler(denoiser, batch.context, draws, known, start=start)
            if bool(report.broken.any()):
                raise NonFiniteError(f"a path was lost: {report.where}; try more steps")
            return values_of(report.state[FIELD], batch.context)

        return torch.where(view.given, view.y, self._in_parts(len(view), drawn))

    def refined(self, view: View, streams: Sequence[int], numbers: Tensor, how: Refinement,
                samples: int) -> Tensor:  # fmt: skip
        """The windows of one series with what is not given moved from the values that it has.

        The first ``PILOT`` rows say how far those values are trusted; the first ``samples`` move.
        """
        config, keys = self.model.config, _keys(streams, numbers)
        y, given = view.y, view.given
        mine = self(view.holding(torch.where(given, y, torch.nan)), streams, numbers, len(y))

        def batch(values: Tensor, part: slice) -> State:
            return batch_of(view.holding(values)[part], config["season"], config["lags"])

        first = slice(PILOT)
        asked = (torch.isfinite(y) & ~given)[0]
        weight, variance = base_weight(
            batch(mine, first)[FIELD], batch(y, first)[FIELD], asked)  # fmt: skip
        weight = weight if how.trust is None else how.trust

        theirs = torch.where(torch.isfinite(y), y, mine)

        def drawn(part: slice) -> Tensor:
            base, own = batch(theirs, part), batch(mine, part)
            x = how(self.model.denoiser, self.sampler, base, own[FIELD], weight, variance,
                    Draws(self.seed, keys[part]))  # fmt: skip
            return values_of(x, base.context)

        return torch.where(given[:samples], y[:samples], self._in_parts(samples, drawn))

    def _in_parts(self, n: int, drawn: Callable[[slice], Tensor]) -> Tensor:
        """Values ``[n, L, C]``, as many rows at once as a network call takes."""
        starts = range(0, n, self.rows)
        return torch.cat([drawn(slice(i, min(i + self.rows, n))) for i in starts])


def _keys(streams: Sequence[int], numbers: Tensor) -> Tensor:
    """A number a row, 32 bits: the path's place on a long walk that begins at the stream's."""
    return (torch.tensor(streams) + numbers * 0x9E3779B1) & 0xFFFFFFFF
