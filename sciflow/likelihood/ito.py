r"""The density of a model along a stochastic trajectory, without any divergence (Itô's formula).

In the coordinates y = x/a, σ = s/a the corruption is pure diffusion, and along any path with the
quadratic variation of the reverse process (Skreta et al. 2025, *SuperDiff*; here for any schedule)

    d log q(y) = ⟨dy, S⟩ − ½ |S|² dv,     S = ∇ log q = (D − y)/σ²,     dv = −d(σ²) > 0.

The Gaussian q° = N(0, σ_d² + σ²), σ_d the scale of the data, obeys the same law and is known, so
only the difference, which vanishes in the noise where steps are long, is summed:

    log q = log q° + Σ ⟨Δy, S − S°⟩ − ½ (|S|² − |S°|²) Δv,     S − S° = (D − D°)/σ².

The drift of the path does not matter: a model can follow samples that another one makes. The noise
does: this holds for stochastic samplers (``ddpm``, or ``ddim`` with η = 1), not for ODE solvers.

It is a **tool for ranking** samples or models, not a likelihood: the error of one trajectory falls
as the square root of the step only (strong order ½), and is some tenths of a nat at hundreds of
steps. For numbers to report see :class:`~sciflow.likelihood.FlowLikelihood`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.likelihood.clock import split_fields
from sciflow.paths import GaussianPath
from sciflow.state import State, Times

__all__ = ["ItoDensity"]

_LEAST_SIGNAL = 1e-6
"""Pure noise has no y = x/a; a signal of this share of the noise stands for none."""


class ItoDensity(Denoiser):
    """A denoiser that keeps count of log q of what it is asked about.

    Wrap the model and sample as usual, at a call a step (not ``heun``); afterwards ``log_density``
    is log q of the sample as it was at the last call, whose time is ``time``. A call at no earlier
    time than the one before begins a new trajectory.

    Args:
        denoiser: the model whose density is followed; all fields that are free are continuous.
    """

    def __init__(self, denoiser: Denoiser):
        super().__init__()
        self.denoiser, self.paths = denoiser, denoiser.paths
        self.time = math.nan
        self._summed = self._reference = torch.zeros(0, dtype=torch.float64)
        self._last: dict[str, tuple[Tensor, Tensor, Tensor, float]] = {}

    @property
    def log_density(self) -> Tensor:
        """log q of x at ``time``, nats ``[B]``, float64.

        Raises:
            InputError: nothing was sampled yet.
        """
        if not self._last:
            raise InputError("no trajectory has been followed yet; sample with this denoiser first")
        return self._summed + self._reference

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        """The estimate of the wrapped denoiser, unchanged.

        Raises:
            InputError: ``t`` is no single number, or a token field is not given in full.
        """
        if not isinstance(t, float):
            raise InputError("a trajectory is followed on one shared clock: t must be a number")
        prediction = self.denoiser(state, t, previous)
        with torch.no_grad():
            self._follow(state, prediction, t)
        return prediction

    def _follow(self, state: State, prediction: Prediction, t: float) -> None:
        names, free = split_fields(self.paths, state, GaussianPath)
        context = state.context
        zeros = torch.zeros(len(context), dtype=torch.float64, device=state.device)
        if not t < self.time:
            self._last, self._summed = {}, zeros
        self._reference, self.time = zeros, t
        for name in names:
            path, x = self.paths[name], state[name].double()
            assert isinstance(path, GaussianPath)
            space, std = path.space, path.data_std
            fixed = ~space.expand(free[name], x)
            a, s = (float(c) for c in path.schedule(torch.tensor(t, dtype=torch.float64)))
            a = max(a, _LEAST_SIGNAL * s)
            variance = (s / a) ** 2
            y = (x / a).masked_fill(fixed, 0)
            if name in self._last:
                y_last, extra, both, variance_last = self._last[name]
                drift = space.inner(y - y_last, extra, context)
                spread = space.inner(extra, both, context) * (variance_last - variance) / 2
                self._summed = self._summed + drift - spread
            score = (prediction[name].double() - y).masked_fill(fixed, 0) / variance
            known = -y / (std**2 + variance)
            self._last[name] = (y, score - known, score + known, variance)
            d = space.dimensions(x, context) - space.sum(torch.ones_like(x) * fixed, context)
            total = a**2 * std**2 + s**2
            self._reference = self._reference - 0.5 * (
                a**2 / total * space.inner(y, y, context)
                + space.logdet(context) + d * math.log(2 * math.pi * total)
            )  # fmt: skip
