r"""How much an error counts at each noise level: loss weights in one table.

The loss of a Gaussian path is the mean squared error of the network's output F, which is the error
of x_0 with weight 1/c_F² (:mod:`sciflow.paths.gaussian`). Each weight here is stated as a weight
w(a, s) on |D − x_0|² instead, whatever the network estimates; σ is the data's standard deviation.

========  =========================  ========================================================
kind      w(a, s)                    source
========  =========================  ========================================================
output    1/c_F²                     the path's own loss
x0        1                          the error of the clean estimate
snr       a²/s²                      the error of the noise (Ho et al. 2020)
edm       (a²σ² + s²)/(s²σ²)         = (σ̃² + σ²)/(σ̃σ)² with σ̃ = s/a (Karras et al. 2022)
min-snr   min(a²/s², γ)              Hang et al. 2023, γ = 5
sigmoid   γ a²/(a² + γ s²)           = γ·sigmoid(log a²/s² − log γ) (Hoogeboom et al. 2025)
elbo      −½ d(a²/s²)/dt             Kingma et al. 2021: nats a dimension, for uniform times
elbo      −α'/(1 − α)                of cross-entropy, for absorbing tokens with α = a/(a + s)
                                     (Sahoo et al. 2024; Shi et al. 2024): nats a token
========  =========================  ========================================================

A weight multiplies what the distribution of times already prefers. With uniform times, an exact
denoiser and a schedule that ends in pure noise, the ``elbo`` loss of tokens is the data's entropy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sciflow.errors import InputError
from sciflow.paths import CategoricalPath, GaussianPath, Path

__all__ = ["LossWeight"]

Kind = Literal["output", "x0", "snr", "edm", "min-snr", "sigmoid", "elbo"]


@dataclass(frozen=True)
class LossWeight:
    """A weight of the table.

    Attributes:
        kind: its name.
        gamma: γ of ``min-snr`` and ``sigmoid``.
    """

    kind: Kind = "output"
    gamma: float = 5.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InputError(
                f"unknown loss weight {self.kind!r}; known: {', '.join(get_args(Kind))}"
            )
        if not self.gamma > 0:
            raise InputError(f"gamma must be above 0, not {self.gamma}")

    def factor(self, path: Path, t: Tensor) -> Tensor:
        """What the path's own loss is to be multiplied by, shaped as ``t`` (times above 0).

        Raises:
            InputError: the weight is not defined for this path.
        """
        if self.kind == "output":
            return torch.ones_like(t)
        u = t.double()
        if isinstance(path, GaussianPath):
            _, c_f = path.coefficients(u)
            return (self.of_clean(path, u) * c_f**2).to(t.dtype)
        if isinstance(path, CategoricalPath) and self.kind == "elbo" and path.kind == "absorbing":
            a, s = path.schedule(u)
            da, ds = path.schedule.derivatives(u)
            return ((a * ds - da * s) / (s * (a + s))).to(t.dtype)
        raise InputError(
            f"loss weight {self.kind!r} does not apply to a {type(path).__name__}; Gaussian paths "
            "take every kind, tokens 'output' and, with absorbing noise, 'elbo'"
        )

    def of_clean(self, path: GaussianPath, t: Tensor) -> Tensor:
        """w(a, s) of the table at times ``t``."""
        a, s = path.schedule(t)
        snr = (a / s) ** 2
        match self.kind:
            case "output":
                return 1 / path.coefficients(t)[1] ** 2
            case "x0":
                return torch.ones_like(a)
            case "snr":
                return snr
            case "edm":
                return (snr * path.data_std**2 + 1) / path.data_std**2
            case "min-snr":
                return snr.clamp(max=self.gamma)
            case "sigmoid":
                return self.gamma * snr / (snr + self.gamma)
            case "elbo":
                da, ds = path.schedule.derivatives(t)
                return a * (a * ds - da * s) / s**3
