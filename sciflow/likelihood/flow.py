r"""Log-densities by the probability-flow ODE of any schedule (Chen et al. 2018; Song et al. 2021).

In velocity coordinates z = x/(a + s), u = s/(a + s) the flow from data to noise is

    dz/du = ε − D = (z − D)/u,      d log|det|/du = (d − (a + s) tr ∂D/∂x)/u,

whose limit at u = 0 is dz/du = −z. Integrated from u_b to u_1, the noise share at t = 1,

    log p(x_0) = log N(x_1; m, c² C) + d log(1 − u_b) + ∫ d log|det| + d log(a_1 + s_1),

where m and c are mean and scale of the path's prior and d is the dimension of the space of legal
values: padding does not count, and N centred points in three dimensions have 3(N − 1). Begun at
t_b > 0 this is exactly the density of x_0 + (s/a)(t_b)·noise, at x_0: data smoothed below the
resolution of the network. Begun at 0 it is the density of the data itself, which must be smooth.

The identity's part of the divergence is never estimated, so random probes see the denoiser alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sciflow.denoisers import Denoiser
from sciflow.errors import InputError
from sciflow.likelihood.clock import Clock, noise_share, split_fields
from sciflow.likelihood.divergence import Probe, Probes
from sciflow.likelihood.runge_kutta import (
    TABLEAUX,
    Values,
    solve_adaptive,
    solve_fixed,
    stage_places,
)
from sciflow.paths import GaussianPath
from sciflow.random import Draws
from sciflow.spaces import Space
from sciflow.state import State

__all__ = ["FlowDensity", "FlowLikelihood"]

Divergence = Literal["exact", "hutchinson"]


@dataclass(frozen=True)
class FlowDensity:
    """Log-densities of a batch.

    Attributes:
        log_density: nats ``[B]``, float64, with respect to volume in the data's own units.
        standard_error: of the mean over probes ``[B]``; 0 if exact, NaN with a single probe.
        dimensions: of each sample, float64 ``[B]``.
        noise: where the flow ends, x at t = 1, a field.
        calls: evaluations of the denoiser.
    """

    log_density: Tensor
    standard_error: Tensor
    dimensions: Tensor
    noise: dict[str, Tensor]
    calls: int

    @property
    def bits_per_dimension(self) -> Tensor:
        """−log₂ p / d, ``[B]``."""
        return -self.log_density / (math.log(2) * self.dimensions)


@dataclass(frozen=True)
class FlowLikelihood:
    """How to integrate; plain data.

    Attributes:
        steps: of a fixed grid, u = u_b + (u_1 − u_b)(n/steps)²: fine where the data has detail.
        method: ``heun`` (2 calls a step, order 2), ``rk4`` (4) or ``dopri5`` (6, order 5).
        tolerance: instead of the fixed grid, steps of ``dopri5`` chosen by each sample's own error.
        begin: t_b, see above; 0 for the density of smooth data itself.
        divergence: ``exact``, or ``hutchinson``, which is unbiased and needs fewer products.
        probes: how many random probes a sample.
        probe: their law, ``rademacher`` or ``normal``.
        fresh: new probes in every step of a fixed grid, not one set a trajectory.
        chunk: vector-Jacobian products at once; 1 serves networks that torch cannot batch.
    """

    steps: int = 30
    method: str = "dopri5"
    tolerance: float | None = None
    begin: float = 1e-3
    divergence: Divergence = "exact"
    probes: int = 1
    probe: Probe = "rademacher"
    fresh: bool = False
    chunk: int = 16

    def __post_init__(self) -> None:
        if self.method not in TABLEAUX:
            raise InputError(f"unknown method {self.method!r}; known: {', '.join(TABLEAUX)}")
        for name, kind in (("divergence", Divergence), ("probe", Probe)):
            if getattr(self, name) not in get_args(kind):
                raise InputError(
                    f"unknown {name} {getattr(self, name)!r}; known: {', '.join(get_args(kind))}"
                )
        for name in ("steps", "probes", "chunk"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.begin < 1:
            raise InputError(f"begin must be a time in [0, 1), not {self.begin}")
        if self.tolerance is not None and not self.tolerance > 0:
            raise InputError(f"tolerance must be above 0, not {self.tolerance}")
        if self.tolerance is not None and self.fresh:
            raise InputError(
                "steps can only be chosen by their error along one smooth flow: take fresh=False, "
                "or a fixed grid (tolerance=None)"
            )

    def __call__(
        self,
        denoiser: Denoiser,
        state: State,
        draws: Draws | None = None,
        differentiable: bool = False,
    ) -> FlowDensity:
        """Log-densities of clean samples.

        Args:
            denoiser: the model; called without feedback (``previous``).
            state: clean fields; what ``context.given`` marks is what the density is conditional on.
            draws: random numbers of the probes, for ``divergence="hutchinson"``.
            differentiable: keep the graph to ``state`` and the weights (memory grows with calls).

        Raises:
            InputError: a token field that is not given in full, or no draws for random probes.
        """
        if self.divergence == "hutchinson" and draws is None:
            raise InputError("random probes need draws=Draws(seed, samples)")
        with torch.set_grad_enabled(differentiable):
            return _Flow(self, denoiser, state, draws, differentiable).run()


class _Flow:
    """One run: the slope of all continuous fields, and of log|det| for each probe."""

    def __init__(self, settings: FlowLikelihood, denoiser: Denoiser, state: State,
                 draws: Draws | None, differentiable: bool):  # fmt: skip
        self.settings, self.denoiser, self.state = settings, denoiser, state
        self.draws, self.differentiable = draws, differentiable
        self.names, self.free = split_fields(denoiser.paths, state, GaussianPath)
        self.paths = {name: denoiser.paths[name] for name in self.names}
        self.clock = Clock({name: path.schedule for name, path in self.paths.items()})
        self.given = {name: self._legal(name, state[name]) for name in self.names}
        self.dimensions = {name: self._dimensions(name) for name in self.names}
        self.calls, self.probes_of_step = 0, -1
        self.probes: dict[str, Probes] = {}

    def run(self) -> FlowDensity:
        settings, clock = self.settings, self.clock
        start, end = clock.share(settings.begin), clock.share(1.0)
        y: list[Tensor] = []
        log_det = torch.zeros(len(self.state.context), dtype=torch.float64,
                              device=self.state.device)  # fmt: skip
        for name, path in self.paths.items():
            u = float(
                noise_share(*path.schedule(torch.tensor(settings.begin, dtype=torch.float64)))
            )
            y.append(self._still(name, (1 - u) * self.given[name]))
            log_det = log_det + self.dimensions[name] * math.log1p(-u)
        self._draw_probes(0)
        columns = next(iter(self.probes.values())).columns
        y.append(log_det[:, None].expand(-1, columns))
        if settings.tolerance is not None:
            tableau = TABLEAUX["dopri5"]
            y_end = solve_adaptive(self._slope, tuple(y), start, end, tableau, settings.tolerance)
        else:
            n = settings.steps
            nodes = [start + (end - start) * (i / n) ** 2 for i in range(n + 1)]
            tableau = TABLEAUX[settings.method]
            clock.prepare(stage_places(nodes, tableau).to(self.state.device))
            y_end = solve_fixed(self._slope, tuple(y), nodes, tableau)
        return self._finish(y_end)

    def _slope(self, u: Tensor, y: Values, step: int) -> Values:
        if not bool(u.any()):
            # The limit at the data, where the denoiser has nothing to say.
            rates = self.clock.rates(u) if len(self.names) > 1 else dict.fromkeys(self.names, 1.0)
            growth = torch.stack([-d * rates[name] for name, d in self.dimensions.items()]).sum(0)
            return (*(-z * rates[name] for name, z in zip(self.names, y, strict=False)),
                    growth[:, None].expand_as(y[-1]))  # fmt: skip
        self._draw_probes(step if self.settings.fresh else 0)
        with torch.no_grad():
            t = self.clock.time(u)
            rates = self.clock.rates(t) if len(self.names) > 1 else {self.names[0]: u * 0 + 1}
        fields, levels = {}, {}
        for name, z in zip(self.names, y, strict=False):
            a, s = self.paths[name].schedule(t)
            levels[name] = (a + s, noise_share(a, s))
            x = self._expand(name, a + s, z) * z
            x = torch.where(self._free(name, x), x, self.given[name])
            # Without a graph to keep, the products still need one of this call alone.
            fields[name] = x if x.requires_grad else x.detach().requires_grad_(True)
        with torch.enable_grad():
            prediction = self.denoiser(self.state.replace(**fields), float(t) if t.ndim == 0 else t)
            self.calls += 1
            traces = {name: self.probes[name].traces(prediction[name], fields[name],
                                                     self.differentiable)
                      for name in self.names}  # fmt: skip
        slopes: list[Tensor] = []
        log_det = torch.zeros_like(y[-1])
        for name, z in zip(self.names, y, strict=False):
            kappa, share = levels[name]
            clean = prediction[name] if self.differentiable else prediction[name].detach()
            v = (z - clean) * self._expand(name, rates[name] / share, z)
            slopes.append(self._still(name, self.paths[name].space.project(v, self.state.context)))
            growth = self.dimensions[name][:, None] - _column(kappa) * traces[name]
            log_det = log_det + growth * _column(rates[name] / share)
        return (*slopes, log_det)

    def _finish(self, y: Values) -> FlowDensity:
        one = torch.ones((), dtype=torch.float64)
        context, by_probe, noise = self.state.context, y[-1], {}
        for name, z in zip(self.names, y, strict=False):
            path, d = self.paths[name], self.dimensions[name]
            a, s = (float(c) for c in path.schedule(one))
            noise[name] = (a + s) * z
            assert isinstance(path, GaussianPath)
            mean, scale = path.prior_moments(context, noise[name])
            w = self._still(name, (noise[name] - mean).double() / scale)
            log_prior = -0.5 * (path.space.inner(w, w, context) + path.space.logdet(context)
                                + d * math.log(2 * math.pi * scale**2))  # fmt: skip
            by_probe = by_probe + (log_prior + d * math.log(a + s))[:, None]
        k = by_probe.shape[1]
        error = by_probe.detach().std(1) / math.sqrt(k) if k > 1 else by_probe.detach()[:, 0] * 0
        if self.settings.divergence == "hutchinson" and k == 1:
            error = torch.full_like(error, torch.nan)
        dimensions = torch.stack(list(self.dimensions.values())).sum(0)
        return FlowDensity(by_probe.mean(1), error, dimensions, noise, self.calls)

    def _draw_probes(self, step: int) -> None:
        if step == self.probes_of_step:
            return
        settings, context = self.settings, self.state.context
        self.probes_of_step = step
        for name, path in self.paths.items():
            where = (path.space, context, self.free[name], self.given[name].detach())
            if settings.divergence == "exact":
                # Along an exact divergence nothing is random, whatever the step.
                self.probes[name] = Probes(*where, chunk=settings.chunk)
            else:
                assert self.draws is not None
                self.probes[name] = Probes.draw(
                    *where, self.draws, settings.probe, settings.probes, f"likelihood/{name}",
                    step, settings.chunk,
                )  # fmt: skip

    def _dimensions(self, name: str) -> Tensor:
        space, context, x = self.paths[name].space, self.state.context, self.given[name]
        fixed = space.mask(context) & ~self.free[name]
        if type(space).inner is not Space.inner and bool(fixed.any()):
            raise InputError(
                f"noise of field {name!r} is correlated between elements; its density is known for "
                "whole fields, or given whole fields, not where some elements are given"
            )
        kept = space.sum(torch.ones_like(x, dtype=torch.int64) * space.expand(fixed, x), context)
        # In float64: an integer tensor times a Python number would be float32.
        return (space.dimensions(x, context) - kept).double()

    def _legal(self, name: str, x: Tensor) -> Tensor:
        return self.paths[name].space.project(x, self.state.context)

    def _expand(self, name: str, value: Tensor, x: Tensor) -> Tensor:
        value = self.paths[name].space.expand(value, x)
        return value.to(x.dtype) if value.is_floating_point() else value

    def _free(self, name: str, x: Tensor) -> Tensor:
        return self.paths[name].space.expand(self.free[name], x)

    def _still(self, name: str, x: Tensor) -> Tensor:
        """Zero where an element is given (or padding)."""
        return x.masked_fill(~self._free(name, x), 0)


def _column(value: Tensor) -> Tensor:
    return value[:, None] if value.ndim else value
