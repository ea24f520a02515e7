"""Sample paths of what is unknown in windows: the one place where a series meets the sampler."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from domains.timeseries.encoding import FIELD, batch_of
from domains.timeseries.frame import Frame
from domains.timeseries.methods import METHODS, SAMPLERS, Method, prepared
from domains.timeseries.refining import Refinement
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
        y: Tensor,
        given: Tensor,
        real: Tensor,
        covariates: Tensor | None,
        streams: Sequence[int],
        numbers: Tensor,
        paths: int,
    ) -> Tensor:
        """The windows with what is real and not given drawn, float64 ``[B, L, C]``.

        Args:
            y: float64 ``[B, L, C]``, NaN where unknown.
            given: bool ``[B, L, C]``.
            real: bool ``[B, L, C]``.
            covariates: standardised, ``[B, L, K]``.
            streams: whose random numbers each row has (:func:`stream_of`).
            numbers: int64 ``[B]``, which path each row is.
            paths: how many there are, for quantile guidance.

        Raises:
            NonFiniteError: the sampler lost a path.
        """
        parts = []
        # A number a row, 32 bits: the path's place on a long walk that begins at the stream's.
        keys = _keys(streams, numbers)
        for i in range(0, len(y), self.rows):
            part = slice(i, i + self.rows)
            told = None if covariates is None else covariates[part]
            parts.append(self._drawn(y[part], given[part], real[part], told, keys[part],
                                     (numbers[part] + 1) / (paths + 1)))  # fmt: skip
        return torch.cat(parts)

    def refined(self, y: Tensor, given: Tensor, real: Tensor, covariates: Tensor | None,
                streams: Sequence[int], numbers: Tensor, how: Refinement) -> Tensor:  # fmt: skip
        """The windows with what is not given moved from the values it has in ``y``."""
        config, parts, keys = self.model.config, [], _keys(streams, numbers)
        for i in range(0, len(y), self.rows):
            part = slice(i, i + self.rows)
            told = None if covariates is None else covariates[part]
            batch = batch_of(y[part], given[part], real[part], config["season"], config["lags"],
                             told)  # fmt: skip
            draws = Draws(self.seed, keys[part])
            x = how(self.model.denoiser, self.sampler, batch, draws)
            parts.append(torch.where(given[part], y[part], _decoded(x, batch)))
        return torch.cat(parts)

    def _drawn(self, y: Tensor, given: Tensor, real: Tensor, covariates: Tensor | None,
               keys: Tensor, kappa: Tensor) -> Tensor:  # fmt: skip
        config = self.model.config
        denoiser, batch = prepared(self.method, self.model.denoiser, y, given, real, covariates,
                                   config["season"], config["lags"], kappa)  # fmt: skip
        known = {FIELD: batch[FIELD]} if batch.context.given else None
        report = self.sampler(denoiser, batch.context, Draws(self.seed, keys), known)
        if bool(report.broken.any()):
            raise NonFiniteError(f"a path was lost: {report.where}; try more steps")
        return torch.where(given, y, _decoded(report.state[FIELD], batch))


def _keys(streams: Sequence[int], numbers: Tensor) -> Tensor:
    return (torch.tensor(streams) + numbers * 0x9E3779B1) & 0xFFFFFFFF


def _decoded(x: Tensor, batch: State) -> Tensor:
    anchor, scale = batch.context.extras["anchor"], batch.context.extras["scale"]
    return Frame(anchor, scale, anchor, scale).decode(x)
