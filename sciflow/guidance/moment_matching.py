r"""Posterior denoising from a linear measurement by moment matching (Rozet et al. 2024, MMPS).

For y = A x_0 + η, η ~ N(0, Σ_y), the posterior of x_0 given the noisy x_t is taken as Gaussian,

    p(x_0 | x_t) ≈ N(D, V),     V = (s²/a) C Jᵀ,     J = ∂D/∂x_t     (C: covariance of the noise),

both moments exact (Tweedie; the second by its derivative). Then

    E[x_0 | x_t, y] = D + V Aᵀ v,     (Σ_y + A V Aᵀ) v = y − A D,

solved by a few steps of conjugate gradients, each one vector-Jacobian product. No strength is to be
tuned, and for Gaussian data the result is exact at every noise level, so that any sampler draws
exact posterior samples. Where a network's V is not positive along a direction, which would turn the
small Σ_y into a huge pull, the sample's iteration stops.

In the noise V is a small derivative times a large s²/a, which multiplies the errors of a network.
Where s/a exceeds ``noise_limit``, V is that of the same noise at the limit, at the price of a
second call: it is within (σ_d a/s)² of where it ends, the covariance of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.guidance.measurements import Measurement
from sciflow.paths import GaussianPath
from sciflow.state import State, Times, field_times

__all__ = ["MomentMatching", "conjugate_gradients"]


class MomentMatching(Denoiser):
    """A model and a measurement of one of its fields; the other fields are left alone.

    Their estimates are those of the model for the same noisy state, so they follow the measured
    field only through it.

    Args:
        denoiser: the model.
        field: the name of a Gaussian field.
        y: what was measured, ``[B, *m]``; row i belongs to row i of the batch.
        measurement: A and Σ_y.
        iterations: steps of conjugate gradients; as many as y has numbers are exact.
        noise_limit: s/a in units of the data's scale, see above.
    """

    def __init__(self, denoiser: Denoiser, field: str, y: Tensor, measurement: Measurement,
                 iterations: int = 3, noise_limit: float = 5.0):  # fmt: skip
        super().__init__()
        path = denoiser.paths.get(field)
        if not isinstance(path, GaussianPath):
            gaussian = [f for f, p in denoiser.paths.items() if isinstance(p, GaussianPath)]
            raise InputError(
                f"a linear measurement is of a Gaussian field, not {field!r}; this model has: "
                + (", ".join(gaussian) or "none")
            )
        if iterations < 1:
            raise InputError(f"iterations must be at least 1, not {iterations}")
        if not bool(y.isfinite().all()):
            raise InputError("measured values must be finite; write 0 where nothing was seen")
        self.denoiser, self.paths = denoiser, denoiser.paths
        self.field, self.path, self.iterations = field, path, iterations
        self.y, self.measurement = y, measurement
        if not noise_limit > 0:
            raise InputError(f"noise_limit must be above 0, not {noise_limit}")
        limit = torch.tensor(noise_limit * path.data_std, dtype=torch.float64)
        self.latest = float(path.schedule.invert(lambda a, s: s / a, limit))

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        """The clean estimate given x_t and y; gradients flow where grad mode is on."""
        if len(self.y) != state.batch_size:
            raise InputError(
                f"{len(self.y)} measurements for a batch of {state.batch_size}: give one a sample"
            )
        differentiable, space = torch.is_grad_enabled(), self.path.space
        x, times = state[self.field], field_times(t, state)[self.field]
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_(True)
            prediction = self.denoiser(state.replace(**{self.field: x}), t, previous)
            clean = prediction[self.field]
            at, estimate, early = x, clean, times.clamp(max=self.latest)
            if bool((early < times).any()):
                shrink = self.path.schedule(early)[1] / self.path.schedule(times)[1]
                shrink = torch.where(early < times, shrink, torch.ones_like(shrink))
                at = x * space.expand(shrink, x).to(x.dtype)
                others = t if isinstance(t, Mapping) else dict.fromkeys(self.paths, t)
                asked: dict[str, Any] = {**others, self.field: early}
                estimate = self.denoiser(state.replace(**{self.field: at}), asked)[self.field]
        a, s = self.path.schedule(early)
        ratio = space.expand(s**2 / a, x).to(x.dtype)

        def spread(w: Tensor) -> Tensor:
            """V w."""
            (g,) = torch.autograd.grad(
                estimate, at, w,
                retain_graph=True, create_graph=differentiable, materialize_grads=True,
            )  # fmt: skip
            return ratio * space.color(g, state.context)

        def system(v: Tensor) -> Tensor:
            seen = self.measurement.apply(spread(self.measurement.adjoint(v)))
            return self.measurement.covariance(v) + seen

        residual = self.y.to(clean) - self.measurement.apply(clean)
        v = conjugate_gradients(system, residual, self.iterations, self.measurement.covariance)
        posterior = clean + spread(self.measurement.adjoint(v))
        answer = Prediction({**prediction.clean, self.field: posterior})
        return answer if differentiable else answer.detach()


def conjugate_gradients(
    system: Callable[[Tensor], Tensor],
    b: Tensor,
    iterations: int,
    least: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """v with ``system(v) = b`` for a symmetric positive definite system in each sample.

    A sample stops where its residual has vanished, or where rounding (or a network that is no
    gradient) makes the system indefinite; its companions go on.

    Args:
        system: linear, ``[B, *m]`` to ``[B, *m]``.
        b: right-hand sides.
        iterations: at most.
        least: a linear map that the system exceeds, as Σ + A V Aᵀ does Σ; a sample also stops
            where it does not.
    """
    v, r = torch.zeros_like(b), b
    p, rr = r, _dot(r, r)
    floor = (8 * torch.finfo(b.dtype).eps) ** 2 * rr.detach()
    alive = rr.detach() > 0
    for _ in range(iterations):
        if not bool(alive.any()):
            break
        q = system(p)
        pq = _dot(p, q)
        alive = alive & (pq.detach() > (0.0 if least is None else _dot(p, least(p)).detach()))
        alpha = torch.where(alive, rr / torch.where(alive, pq, 1.0), 0.0)
        v, r = v + _like(alpha, p) * p, r - _like(alpha, q) * q
        new = _dot(r, r)
        alive = alive & (new.detach() > floor)
        beta = torch.where(alive, new / torch.where(alive, rr, 1.0), 0.0)
        p, rr = r + _like(beta, p) * p, new
    return v


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).flatten(1).sum(1)


def _like(value: Tensor, x: Tensor) -> Tensor:
    return value.reshape(-1, *(1,) * (x.ndim - 1))
