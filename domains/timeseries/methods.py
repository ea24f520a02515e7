r"""How a model is made to agree with what was observed: three mechanisms, one window at a time.

    conditional    the observed part has time 0 and frames the window: what the network was trained
                   for; one pass
    replacement    the unconditional model, whose clean estimate is set to the observations where
                   there are any (Song et al. 2021); no gradient
    self-guidance  the unconditional model with its own estimate as the likelihood of y,
                   p(y | x_t) ∝ exp(−E(y − D)) (TSDiff, Kollovieh et al. 2023):
                   ``quadratic`` E = r²/2 with the variance that x_t leaves open (PiGDM, so that no
                   scale is tuned), or ``quantile`` E = max(κ r, (κ − 1) r) with κ = (i + 1)/(S + 1)
                   for path i of S, so that the paths spread over the quantiles

The last two see the window in units of the mean and spread of what was observed, since nothing of
the window itself is given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from domains.timeseries.encoding import FIELD, batch_of, unframed
from sciflow.denoisers import Denoiser
from sciflow.guidance import Known, Observed, Posterior, Replacement, TrainingFree
from sciflow.state import State

__all__ = ["METHODS", "Method", "prepared"]

Method = Literal["conditional", "replacement", "self-guidance", "quantile"]
METHODS: tuple[Method, ...] = ("conditional", "replacement", "self-guidance", "quantile")

_VARIANCE = 1e-3
"""Of the noise that self-guidance allows an observation, in squared spreads of the window."""
_SCALE = 4.0
"""Strength of quantile guidance; chosen on validation windows of m4_hourly."""


def prepared(
    method: Method,
    denoiser: Denoiser,
    y: Tensor,
    given: Tensor,
    real: Tensor,
    covariates: Tensor | None,
    season: int,
    lags: list[int],
    kappa: Tensor,
) -> tuple[Denoiser, State]:
    """The denoiser and the batch that draw what is real and not given.

    Args:
        method: one of ``METHODS``.
        denoiser: of the model.
        y: windows, float64 ``[B, L, C]``, NaN where unknown.
        given: bool ``[B, L, C]``.
        real: bool ``[B, L, C]``.
        covariates: standardised, ``[B, L, K]``.
        season: of the frame.
        lags: of the features.
        kappa: the quantile that each row aims at, ``[B]``.
    """
    if method == "conditional":
        return denoiser, batch_of(y, given, real, season, lags, covariates)
    batch = unframed(y, given, real, len(lags), covariates)
    x = batch[FIELD]
    wrap: dict[str, Callable[[], Denoiser]] = {
        "replacement": lambda: Replacement(denoiser, Known({FIELD: x}, {FIELD: given})),
        "self-guidance": lambda: Posterior(denoiser, FIELD, x, Observed(given, _VARIANCE), "pigdm"),
        "quantile": lambda: TrainingFree(denoiser, _pinball(x, given, kappa), rho=_SCALE),
    }
    return wrap[method](), batch


def _pinball(y: Tensor, given: Tensor, kappa: Tensor) -> Callable[[State], Tensor]:
    k = kappa.to(y)[:, None, None]

    def log_f(clean: State) -> Tensor:
        r = (y - clean[FIELD]).masked_fill(~given, 0.0)
        return -torch.maximum(k * r, (k - 1) * r).flatten(1).sum(1)

    return log_f
