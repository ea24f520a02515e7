r"""Gaussian corruption of a continuous field, and every prediction type in one table.

    x_t = a x_0 + s ε,         ε ~ the space's noise,
    x_0 = c_x x_t + c_F F,     F = the network's output.

The prediction types differ only in (c_x, c_F):

=========  ==========================================  ==============================
type       what F estimates                            (c_x, c_F)
=========  ==========================================  ==============================
x0         x_0                                         (0, 1)
eps        ε                                           (1/a, −s/a)
v          a ε − s x_0  (Salimans & Ho 2022)           (a, −s) / (a² + s²)
score      ∇ log p(x_t) = −ε/s                         (1/a, s²/a)
velocity   a' x_0 + s' ε  (flow matching)              (s', −s) / (a s' − a' s)
edm        unit-variance mix (Karras et al. 2022)      (a σ², s σ √(a²σ²+s²)) / (a²σ²+s²)
=========  ==========================================  ==============================

with σ the standard deviation of the data. The loss is the mean squared error of F, i.e. of x_0 with
weight 1/c_F².
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor

from sciflow.paths.base import LEVEL_LIMIT, Path
from sciflow.paths.couplings import Coupling, coupling_from_config
from sciflow.random import Draws
from sciflow.schedules import Schedule
from sciflow.spaces import Space
from sciflow.state import Context

__all__ = ["GaussianPath", "PredictionType", "coupled_fields"]

_LEAST_SIGNAL = math.exp(-LEVEL_LIMIT)
"""Noise alone says nothing of x_0: "eps" and "score" count a/s as at least this, where the time
that a network sees ends too."""

PredictionType = Literal["x0", "eps", "v", "score", "velocity", "edm"]


class GaussianPath(Path):
    """Linear-Gaussian corruption with any schedule and prediction type.

    Args:
        space: the field's geometry; it draws the noise and projects.
        schedule: a(t), s(t).
        prediction: what the network's output means; see the table above.
        data_std: σ, the standard deviation of the (scaled) data, used to scale inputs and by "edm".
        coupling: which noise a sample meets in training, by name, as plain data with its settings
            or as an object; see :mod:`sciflow.paths.couplings`.
        data_mean: the data's mean for a context, shaped as the tensor given beside it, where it is
            not zero; see :mod:`sciflow.prior_mean`. Not part of ``config()``.
    """

    def __init__(
        self,
        space: Space,
        schedule: Schedule,
        prediction: PredictionType = "edm",
        data_std: float = 1.0,
        coupling: Coupling | str | Mapping[str, Any] = "independent",
        data_mean: Callable[[Context, Tensor], Tensor] | None = None,
    ):
        super().__init__(space, schedule)
        if prediction not in get_args(PredictionType):
            known = ", ".join(get_args(PredictionType))
            raise ValueError(f"unknown prediction type {prediction!r}; known: {known}")
        self.prediction, self.data_std = prediction, data_std
        self.coupling, self.data_mean = coupling_from_config(coupling), data_mean

    def with_schedule(self, schedule: Schedule) -> Self:
        return type(self)(self.space, schedule, self.prediction, self.data_std, self.coupling,
                          self.data_mean)  # fmt: skip

    def prior(self, context: Context, draws: Draws, stream: str, dtype: torch.dtype) -> Tensor:
        z = self.space.noise(context, draws, stream, 0, dtype)
        mean, scale = self.prior_moments(context, z)
        return scale * z + mean

    def prior_moments(self, context: Context, like: Tensor) -> tuple[Tensor | float, float]:
        """Mean of x at t = 1, shaped as ``like``, and its standard deviation in units of the noise.

        A schedule that keeps some signal there still starts at the right mean and variance.
        """
        a, s = (float(y) for y in self.schedule(torch.ones((), dtype=torch.float64)))
        scale = math.sqrt(a**2 * self.data_std**2 + s**2) if a > 0 else s
        mean = 0.0 if self.data_mean is None else a * self.data_mean(context, like)
        return mean, scale

    def corrupt(self, x0: Tensor, t: Tensor, context: Context, draws: Draws, stream: str,
                step: int = 0) -> Tensor:  # fmt: skip
        return self.mix(x0, self.noise(x0, context, draws, stream, step), t)

    def noise(self, x0: Tensor, context: Context, draws: Draws, stream: str,
              step: int = 0) -> Tensor:  # fmt: skip
        """The ε that :meth:`corrupt` mixes into ``x0``, by the coupling."""

        def draw(k: int) -> Tensor:
            name = f"{stream}/candidate{k}" if k else stream
            return self.space.noise(context, draws, name, step, x0.dtype)

        return self.coupling(x0, draw, self.space, context)

    def mix(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """a x_0 + s ε."""
        a, s = self._scales(x0, t)
        return a * x0 + s * noise

    def renoise(self, x: Tensor, s: float, t: float, context: Context, draws: Draws, stream: str,
                step: int = 0, inflation: float = 1.0) -> Tensor:  # fmt: skip
        """x_t = (a_t/a_s) x_s + √(s_t² − (a_t/a_s)² s_s²) z; from s = 0 on with the coupling.

        A coupling across the batch is left out: a sample must not depend on its companions.
        ``inflation`` multiplies the noise where s > 0 (S_noise of Karras et al. 2022).
        """
        times = torch.tensor([s, t], dtype=torch.float64, device=x.device)
        if s <= 0 and not self.coupling.batched:
            return self.corrupt(x, times[1].expand(len(x)), context, draws, stream, step)
        signal, noise = (y.tolist() for y in self.schedule(times))
        keep = signal[1] / signal[0]
        fresh = math.sqrt(max(noise[1] ** 2 - (keep * noise[0]) ** 2, 0.0))
        z = self.space.noise(context, draws, stream, step, x.dtype)
        return torch.add(keep * x, z, alpha=fresh * (inflation if s > 0 else 1.0))

    def network_input(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x_t / √(a²σ² + s²), of unit variance at every time."""
        a, s = self._scales(x_t, t)
        return x_t / (a**2 * self.data_std**2 + s**2).sqrt()

    def clean(self, output: Tensor, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        t = self.space.expand(t, x_t)
        # Where t = 0 the element is given and is its own clean estimate, whatever the network says.
        # Any other time stands in there: some coefficients are 0/0, whose gradient is NaN even so.
        known = t <= 0
        c_x, c_f = (c.to(x_t.dtype) for c in self.coefficients(t.masked_fill(known, 0.5)))
        return torch.where(known, x_t, c_x * x_t + c_f * self.space.project(output, context))

    def output(self, clean: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The F that :meth:`clean` would turn into ``clean``: the target of training."""
        c_x, c_f = (c.to(x_t.dtype) for c in self.coefficients(self.space.expand(t, x_t)))
        return (clean - c_x * x_t) / c_f

    def loss(self, clean: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        """Mean squared error of the network's output over unknown elements, ``[B]``."""
        t = self.space.expand(t, x0)
        _, c_f = self.coefficients(t.masked_fill(t <= 0, 0.5))
        unknown = (t > 0).to(x0.dtype)
        error = ((clean - x0) / c_f) ** 2 * unknown
        n = self.space.sum(torch.ones_like(x0) * unknown, context).clamp(min=1)
        return self.space.sum(error, context) / n

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(c_x, c_F) at times ``t``, any shape; see the table of the module."""
        a, s = self.schedule(t)
        match self.prediction:
            case "x0":
                return torch.zeros_like(a), torch.ones_like(a)
            case "eps":
                a = torch.maximum(a, s * _LEAST_SIGNAL)
                return 1 / a, -s / a
            case "v":
                return a / (a**2 + s**2), -s / (a**2 + s**2)
            case "score":
                a = torch.maximum(a, s * _LEAST_SIGNAL)
                return 1 / a, s**2 / a
            case "velocity":
                da, ds = self.schedule.derivatives(t)
                w = a * ds - da * s
                return ds / w, -s / w
            case "edm":
                v = (a * self.data_std) ** 2 + s**2
                return a * self.data_std**2 / v, s * self.data_std / v.sqrt()

    def config(self) -> dict[str, Any]:
        return {
            "kind": "gaussian",
            "schedule": self.schedule.config(),
            "prediction": self.prediction,
            "data_std": self.data_std,
            "coupling": self.coupling.config(),
        }

    def _scales(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        a, s = self.schedule(t)
        return self.space.expand(a, x).to(x.dtype), self.space.expand(s, x).to(x.dtype)


def coupled_fields(paths: Mapping[str, Path]) -> list[str]:
    """Fields whose noise was coupled with the data in training: their scores are not known."""
    return [
        name for name, path in paths.items()
        if isinstance(path, GaussianPath) and not path.coupling.independent
    ]  # fmt: skip
