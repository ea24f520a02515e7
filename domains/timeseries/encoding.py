"""Between series and states of the core: one field, its frame, and what the network is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from domains.timeseries.frame import Frame, decoded, flat_frame_of, frame_of, moments
from domains.timeseries.series import Series
from domains.timeseries.view import View
from sciflow.state import Context, State

__all__ = [
    "FIELD",
    "batch_of",
    "decode_series",
    "encode_free",
    "feature_count",
    "features_of",
    "free_context",
    "unframed",
    "values_of",
]

FIELD = "series"

_LEAST_VARIANCE = 0.01
"""v₀, of a standardised covariate that does not vary where the series is seen."""


def feature_count(config: Mapping[str, Any]) -> int:
    """Numbers a step and channel that :func:`batch_of` tells the network of a configuration."""
    known = config["covariates"]
    covariates = 0 if known is None else len(known["names"]) * (2 if known["known_future"] else 3)
    return 3 + len(config["lags"]) + covariates


def features_of(y: Tensor, given: Tensor, frame: Frame, lags: Sequence[int] = ()) -> Tensor:
    """What the network is told of each step, float32 ``[B, L, C, 3 + len(lags)]``.

    The given values and the anchors in units of the window's spread, log(σ/spread), and the given
    values at fixed lags relative to the frame (0 where there is none).
    """
    z = torch.where(given, (y - frame.centre) / frame.spread, 0.0)
    anchor = (frame.anchor - frame.centre) / frame.spread
    parts = [z.asinh(), anchor.asinh(), (frame.scale / frame.spread).log()]
    for lag in lags:
        parts.append(_lagged(y, given, frame, lag))
    return torch.stack(parts, -1).float()


def _lagged(y: Tensor, given: Tensor, frame: Frame, lag: int) -> Tensor:
    """x of the value ``lag`` steps before, 0 where it is not given."""
    past = torch.full_like(y, torch.nan)
    if lag < y.shape[1]:
        past[:, lag:] = torch.where(given, y, torch.nan)[:, : y.shape[1] - lag]
    return frame.encode(past).nan_to_num(nan=0.0)


def batch_of(view: View, season: int, lags: Sequence[int] = ()) -> State:
    """Windows as a batch of the core: the field, the mask, what is given, features and the frame.

    Args:
        view: of the windows.
        season: of the frame.
        lags: see :func:`features_of`.
    """
    y, real = view.y, view.real
    given = view.given & torch.isfinite(y)
    none = ~given.flatten(1).any(1)
    # Where nothing is given, the window is seen in units of its own mean and spread.
    seen = torch.where(none[:, None, None], real, given)
    plain = frame_of(y, seen, season)
    frame = Frame(
        plain.centre, plain.spread,
        torch.where(none[:, None, None], plain.centre, plain.anchor),
        torch.where(none[:, None, None], plain.spread, plain.scale),
    )  # fmt: skip
    x = frame.encode(y).nan_to_num(nan=0.0).float()
    features = features_of(torch.where(given, y, torch.nan), given, frame, lags)
    if view.covariates is not None:
        features = torch.cat((features, _told(view.covariates, seen, view.known_future)), -1)
    extras = {"features": features, "anchor": frame.anchor, "scale": frame.scale}
    return State({FIELD: x}, Context(real, {}, {FIELD: given}, extras))


def unframed(view: View, lags: Sequence[int] = ()) -> State:
    """Windows for the unconditional model: nothing is given, and the network is told nothing.

    Args:
        view: of the windows; the mean and spread of its given values are the units, and only their
            x is not 0.
        lags: that the network reads.
    """
    frame = flat_frame_of(view.y, view.given)
    x = torch.where(view.given, frame.encode(view.y), 0.0).float()
    features = torch.zeros(*view.y.shape, 3 + len(lags))
    if view.covariates is not None:
        features = torch.cat((features, _told(view.covariates, view.given, view.known_future)), -1)
    extras = {"features": features, "anchor": frame.anchor, "scale": frame.scale}
    return State({FIELD: x}, Context(view.real, {}, {}, extras))


def _told(covariates: Tensor, seen: Tensor, known_future: bool) -> Tensor:
    """Covariates as the network reads them, ``[B, L, C, 2K or 3K]``: c, whether it is known, and of
    those that end with the history asinh (c − m)/√(v + v₀), with mean m and variance v of c where
    the series is ``seen``.

    The series is told relative to what was seen of it alone, so that only a covariate told in the
    same way can stand in for it where it was not. (In the frame's coordinates, x of the value in
    its place, it fills gaps still better, but forecasts of PM2.5 on validation windows get worse.
    Of covariates known beforehand it gains nothing on those of prices and of the solar plant.)
    """
    known = torch.isfinite(covariates)[:, :, None].expand(*seen.shape, -1)
    c = covariates.nan_to_num(nan=0.0)[:, :, None].expand_as(known)
    if known_future:
        return torch.cat((c, known), -1).float()
    mean, variance = moments(c, known & seen[..., None])
    z = (c - mean) / (variance + _LEAST_VARIANCE).sqrt()
    return torch.cat((c, known, torch.where(known, z.asinh(), 0.0)), -1).float()


def free_context(config: Mapping[str, Any], centre: Tensor, spread: Tensor) -> Context:
    """Windows of which nothing is given, of a wanted mean and spread, each ``[B, C]``."""
    b, c = centre.shape
    length = config["context"] + config["horizon"]
    anchor, scale = (v.double()[:, None].expand(b, length, c) for v in (centre, spread))
    return _free(config, torch.ones(b, length, c, dtype=torch.bool), anchor, scale)


def encode_free(config: Mapping[str, Any], records: Sequence[Series]) -> State:
    """Whole series as clean data, each in units of its own mean and spread; shorter ones padded."""
    length = max(map(len, records), default=0)
    c = len(records[0].channels) if records else config["channels"]
    y = torch.full((len(records), length, c), torch.nan, dtype=torch.float64)
    for row, s in zip(y, records, strict=True):
        row[: len(s)] = torch.from_numpy(s.values)
    real = torch.isfinite(y)
    frame = flat_frame_of(y, real)
    x = frame.encode(y).nan_to_num(nan=0.0).float()
    return State({FIELD: x}, _free(config, real, frame.anchor, frame.scale))


def values_of(x: Tensor, context: Context) -> Tensor:
    """Values of the field ``x`` of a batch with this context, float64 ``[B, L, C]``."""
    return decoded(x, context.extras["anchor"], context.extras["scale"])


def decode_series(config: Mapping[str, Any], state: State) -> list[Series]:
    """The series of a batch; time stamps begin at an arbitrary date."""
    y = values_of(state[FIELD], state.context)
    y = y.masked_fill(~state.context.mask, torch.nan)
    records = []
    for i, (row, real) in enumerate(zip(y, state.context.mask, strict=True)):
        n = int(real.any(1).nonzero().max()) + 1 if bool(real.any()) else 0
        names = ("y",) if row.shape[1] == 1 else tuple(f"y{k}" for k in range(row.shape[1]))
        start = pd.Timestamp("2000-01-01")
        records.append(Series(f"series-{i}", start, config["freq"], row[:n].numpy(), names))
    return records


def _free(config: Mapping[str, Any], real: Tensor, anchor: Tensor, scale: Tensor) -> Context:
    features = torch.zeros(*real.shape, feature_count(config))
    return Context(real, {}, {}, {"features": features, "anchor": anchor, "scale": scale})
