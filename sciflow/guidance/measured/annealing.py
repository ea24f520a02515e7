r"""Decoupled annealing (Zhang et al. 2024, DAPS): a draw of x_0 given x_t *and* y, then renoised.

Where V, the spread of x_0 given x_t, is taken as r² C, r² = σ²s²/(a²σ² + s²),

    p(x_0 | x_t, y) ∝ N(x_0; D, r² C) · N(y; H(x_0), Σ_y)^w

can be drawn from without the network. For linear H one draw is

    x = D + r ξ + r² C Aᵀ (Σ_y/w + r² A C Aᵀ)⁻¹ (y + η/√w − A(D + r ξ)),

ξ ~ N(0, C), η ~ N(0, Σ_y) (Matheron's rule), by conjugate gradients. Otherwise the draw is made
with the tangent of H at D and mended by Langevin steps on the true density, of step
h = rate/(1/r² + w λ), λ the largest eigenvalue of C AᵀΣ_y⁻¹A:

    x ← x + h [ (D − x)/r² + w C AᵀΣ_y⁻¹(y − H(x)) ] + √(2h) ξ.

The authors take D from a few steps of the flow (``inner``) and run Langevin from there for every H.

The answer is a *draw*. A step x_s = a_s D + s_s (√(1−φ) ε + √φ z) has the right law where D is a
draw of x_0, whatever φ: so ``ddim`` (any η), ``ddpm`` and ``sde`` may run it. All noise drawn anew,
as published, is ``Sampler(method="ddim", eta=1e9)``. Methods that extrapolate earlier estimates
want ``temperature=0``, the mean (for linear H) in place of a draw; then any sampler may.

Only the network is left out of the gradient, so a call costs one evaluation, or those of ``inner``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.guidance.acting import check_weight
from sciflow.guidance.measured.conjugate_gradients import conjugate_gradients
from sciflow.guidance.measured.measurements import Measurement, NonlinearMeasurement, linearized
from sciflow.guidance.measured.posterior import isotropic_variance, measured_path
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.state import State, Times, field_times

__all__ = ["DecoupledAnnealing"]

_SOLVE = 200
_POWER = 8
"""Power iterations; what is missing of the eigenvalue then, ``rate`` can spare."""


class DecoupledAnnealing(Denoiser):
    """A draw from p(x_0 | x_t, y) in place of the mean; see the module.

    Args:
        denoiser: the model.
        field: the name of a Gaussian field.
        y: what was measured, ``[B, *m]``; row i belongs to row i of the batch.
        measurement: H and Σ_y.
        draws: random numbers of the batch; the same x_t and t give the same draw.
        langevin: steps after the draw with the tangent; 0 is enough for linear H.
        rate: of a Langevin step, below 2; the variance it leaves is too large by rate/2.
        temperature: of the draw; 0 is the most probable x_0.
        inner: integrates the flow from x_t to the centre of the draw; ``None`` takes D itself.
            Needs one time for all, a plain number.
        weight: w, on the log-likelihood; 0 is the model itself, bit for bit.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        field: str,
        y: Tensor,
        measurement: Measurement | NonlinearMeasurement,
        draws: Draws,
        langevin: int = 0,
        rate: float = 0.1,
        temperature: float = 1.0,
        inner: Sampler | None = None,
        weight: float = 1.0,
    ):
        super().__init__()
        self.path = measured_path(denoiser, field, y)
        if len(draws) != len(y):
            raise InputError(f"{len(draws)} rows of random numbers for {len(y)} measurements")
        if langevin < 0:
            raise InputError(f"langevin must be 0 or more steps, not {langevin}")
        if not 0 < rate < 2:
            raise InputError(f"rate must lie above 0 and below 2, where steps blow up, not {rate}")
        if not temperature >= 0:
            raise InputError(f"temperature must be 0 (no noise) or more, not {temperature}")
        check_weight(weight)
        self.denoiser, self.paths, self.field = denoiser, denoiser.paths, field
        self.y, self.measurement, self.draws = y, measurement, draws
        self.langevin, self.rate, self.temperature = langevin, rate, temperature
        self.inner, self.weight = inner, weight
        self.calls = 0

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        """The drawn x_0 of the measured field; the estimates of the others."""
        if len(self.y) != state.batch_size:
            raise InputError(
                f"{len(self.y)} measurements for a batch of {state.batch_size}: give one a sample"
            )
        self.calls += 1
        prediction = self.denoiser(state, t, previous)
        if self.weight == 0:
            return prediction
        center = prediction[self.field]
        if self.inner is not None:
            center = self._flow(state, t)
        times = field_times(t, state)[self.field]
        variance = self.path.space.expand(isotropic_variance(self.path, times), center)
        x = self._draw(center.detach(), variance.to(center.dtype), times, state)
        return Prediction({**prediction.clean, self.field: x})

    def _flow(self, state: State, t: Times | float) -> Tensor:
        if not isinstance(t, float) or self.inner is None:
            raise InputError("an inner sampler begins at one time for all, a number")
        given = {f: state[f] for f in state.context.given}
        report = self.inner(self.denoiser, state.context, self.draws, given or None,
                            state[self.field].dtype, start=state.fields, begin=t)  # fmt: skip
        self.calls += report.calls
        return report.state[self.field]

    def _draw(self, center: Tensor, variance: Tensor, times: Tensor, state: State) -> Tensor:
        space, context, weight = self.path.space, state.context, self.weight
        y, tangent = self.y.to(center), linearized(self.measurement, center)
        noise = _Noise(self, state, times, center)
        hot = math.sqrt(self.temperature)
        start = center
        if hot:
            start = center + hot * variance.sqrt() * noise.field("start")
            y = y + hot / math.sqrt(weight) * tangent.root(noise.measured(y))

        def system(v: Tensor) -> Tensor:
            pulled = variance * space.color(tangent.adjoint(v), context)
            return tangent.covariance(v) / weight + tangent.apply(pulled)

        residual = y - self.measurement.apply(center) - tangent.apply(start - center)
        v = conjugate_gradients(system, residual, _SOLVE, lambda v: tangent.covariance(v) / weight)
        x = start + variance * space.color(tangent.adjoint(v), context)
        if not self.langevin:
            return x.detach()
        step = self.rate / (
            1 / variance + weight * self._curvature(noise.field("power"), tangent, state)
        )
        # A given element has no variance, and no step either.
        step = torch.where(variance > 0, step, torch.zeros_like(step))
        pull = torch.where(variance > 0, step / variance, torch.zeros_like(step))
        for k in range(self.langevin):
            x = x.detach()
            here = linearized(self.measurement, x)
            misfit = here.precision(self.y.to(x) - self.measurement.apply(x))
            x = x + pull * (center - x) + step * weight * space.color(here.adjoint(misfit), context)
            if hot:
                x = x + hot * (2 * step).sqrt() * noise.field(f"langevin{k}")
        return x.detach()

    def _curvature(self, u: Tensor, tangent: Measurement, state: State) -> Tensor:
        """The largest eigenvalue of C AᵀΣ_y⁻¹A of each sample, from a random field ``u``."""
        space = self.path.space

        def curve(u: Tensor) -> Tensor:
            return space.color(tangent.adjoint(tangent.precision(tangent.apply(u))), state.context)

        for _ in range(_POWER):
            norm = u.flatten(1).norm(dim=1)
            u = curve(u / torch.where(norm > 0, norm, 1.0).reshape(-1, *(1,) * (u.ndim - 1)))
        return u.flatten(1).norm(dim=1).reshape(-1, *(1,) * (u.ndim - 1))


class _Noise:
    """Noise that is a function of the sample's number and its time, whatever the batch is."""

    def __init__(self, owner: DecoupledAnnealing, state: State, times: Tensor, like: Tensor):
        self.owner, self.state, self.like = owner, state, like
        latest = times.flatten(1).amax(1) if times.ndim > 1 else times
        self.steps = (latest.double() * 2**31).round().long().tolist()

    def field(self, name: str) -> Tensor:
        """A draw of the space's noise."""
        space, stream = self.owner.path.space, f"{self.owner.field}/posterior/{name}"
        out = torch.zeros_like(self.like)
        for step, rows in self._groups():
            context = self.state.context.apply(lambda x, rows=rows: x[rows])  # type: ignore[misc]
            out[rows] = space.noise(context, self.owner.draws.rows(rows.cpu()), stream, step,
                                    out.dtype)  # fmt: skip
        return out

    def measured(self, y: Tensor) -> Tensor:
        """Standard normals shaped as y."""
        shape = tuple(y.shape[1:]) if y.ndim <= 4 else (y[0].numel(),)
        out = torch.zeros_like(y)
        for step, rows in self._groups():
            z = self.owner.draws.rows(rows.cpu()).normal(
                shape, f"{self.owner.field}/posterior/measured", step, y.dtype, y.device
            )
            out[rows] = z.reshape(len(rows), *y.shape[1:])
        return out

    def _groups(self) -> list[tuple[int, Tensor]]:
        steps = torch.tensor(self.steps, device=self.like.device)
        return [(step, (steps == step).nonzero().flatten()) for step in sorted(set(self.steps))]
