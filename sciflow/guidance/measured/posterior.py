r"""Posterior sampling from measurements y = H(x_0) + η, η ~ N(0, Σ_y): one formula, named settings.

The likelihood of a noisy x_t is that of its clean estimate D, blurred by what x_t leaves open:

    p(y | x_t) ≈ N(y; H(D), S),      E[x_0 | x_t, y] ≈ D + w (s²/a) C Jᵀ Aᵀ S⁻¹ (y − H(D)),

with J = ∂D/∂x_t, A the tangent of H at D, C the covariance of the noise. V = (s²/a) C Jᵀ is the
covariance of x_0 given x_t (Tweedie), so the exact S of Gaussian data is Σ_y + A V Aᵀ. Methods
differ in the S that they can afford; r² = σ²s²/(a²σ² + s²) is V of a Gaussian of the data's scale:

===========  ==============================  ==================================================
method       S                               exact where
===========  ==============================  ==================================================
dps-scaled   Σ_y + r²                        σ_y is large against r (Rozet & Louppe 2023)
pigdm        Σ_y + r² A C Aᵀ                 data ~ N(m, σ² C) (Song et al. 2023, ΠGDM)
tmpd         Σ_y + diag(A V Aᵀ)              A V Aᵀ is diagonal (Boys et al. 2023)
mmps         Σ_y + A V Aᵀ                    data are Gaussian (Rozet et al. 2024)
dps          ∝ |y − H(D)|, see below         nowhere (Chung et al. 2023)
===========  ==============================  ==================================================

"tmpd" takes row sums A V Aᵀ 1 for the diagonal, as published: one product, but not the diagonal
where correlations are strong; ``diagonal="exact"`` costs as many products as y has numbers.

"dps" is the published update, which knows no Σ_y: each of N steps, equally spaced in t, moves x by
−ζ ∇_x |y − H(D)|, the norm of each sample by itself. A step of a stochastic sampler moves x by
(D's move) · (2a/N) d log(s/a)/dt, from which the move of D follows. w is ζ.

``through="estimate"`` leaves J out, (s²/a) J → r², for "dps-scaled" and "pigdm": one call a step,
no gradient of the network, and "pigdm" exact where it is.

Other Gaussian fields of a mixed state get the gradient of the same likelihood through the network,
D_z + w (s_z²/a_z) C_z (∂D/∂z_t)ᵀ Aᵀ S⁻¹ (y − H(D)), which is exact for jointly Gaussian fields;
tokens and points of manifolds follow only through the noisy state.

In the noise V is a small derivative times a large s²/a, which multiplies the errors of a network.
Where s/a exceeds ``noise_limit``, V is that of the same noise at the limit, at the price of a
second call: it is within (σ a/s)² of where it ends, the covariance of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.guidance.acting import acts_at, check_interval, check_weight, gaussian_path
from sciflow.guidance.energy.strengths import time_of_noise
from sciflow.guidance.measured.conjugate_gradients import conjugate_gradients
from sciflow.guidance.measured.measurements import Measurement, NonlinearMeasurement, linearized
from sciflow.paths import GaussianPath
from sciflow.state import State, Times, field_times

__all__ = ["Posterior", "PosteriorMethod", "isotropic_variance", "measured_path"]

PosteriorMethod = Literal["dps", "dps-scaled", "pigdm", "tmpd", "mmps"]
_FREE = 200
"""Iterations where the system needs no network; they end earlier where they have converged."""


class Posterior(Denoiser):
    """A model and a measurement of one of its fields; see the formulas of the module.

    ``calls`` and ``products`` count evaluations of the network and of its vector-Jacobian products
    since the denoiser was made: an outer call costs more than one of them.

    Args:
        denoiser: the model.
        field: the name of a Gaussian field.
        y: what was measured, ``[B, *m]``; row i belongs to row i of the batch.
        measurement: H and Σ_y.
        method: which S.
        weight: w, on the gradient; 0 is the model itself, bit for bit. 1 is the posterior, and for
            "dps" the published ζ.
        iterations: of conjugate gradients for "mmps", each one product; as many as y has numbers
            are exact.
        noise_limit: s/a in units of the data's scale, see above.
        through: ``network``, or ``estimate`` for no gradient of the network.
        interval: times (first, last) of the shared clock between which guidance acts.
        diagonal: of "tmpd", ``rows`` or ``exact``.
        steps: N of "dps", the steps of the sampler; its strength depends on them.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        field: str,
        y: Tensor,
        measurement: Measurement | NonlinearMeasurement,
        method: PosteriorMethod = "mmps",
        weight: float = 1.0,
        iterations: int = 3,
        noise_limit: float = 5.0,
        through: Literal["network", "estimate"] = "network",
        interval: tuple[float, float] = (0.0, 1.0),
        diagonal: Literal["rows", "exact"] = "rows",
        steps: int = 1000,
    ):
        super().__init__()
        path = measured_path(denoiser, field, y)
        if method not in get_args(PosteriorMethod):
            raise InputError(
                f"unknown posterior method {method!r}; known: "
                + ", ".join(get_args(PosteriorMethod))
            )
        check_weight(weight)
        if iterations < 1:
            raise InputError(f"iterations must be at least 1, not {iterations}")
        if not noise_limit > 0:
            raise InputError(f"noise_limit must be above 0, not {noise_limit}")
        if through not in ("network", "estimate"):
            raise InputError(f"through is 'network' or 'estimate', not {through!r}")
        if through == "estimate" and method not in ("dps-scaled", "pigdm"):
            raise InputError(
                f"method {method!r} is a gradient of the network; through='estimate' is for "
                "dps-scaled and pigdm"
            )
        check_interval(interval)
        if diagonal not in ("rows", "exact"):
            raise InputError(f"diagonal is 'rows' or 'exact', not {diagonal!r}")
        if steps < 1:
            raise InputError(f"steps must be at least 1, not {steps}")
        self.denoiser, self.paths, self.field, self.path = denoiser, denoiser.paths, field, path
        self.y, self.measurement, self.method, self.weight = y, measurement, method, weight
        self.iterations, self.noise_limit, self.through = iterations, noise_limit, through
        self.interval, self.diagonal, self.steps = interval, diagonal, steps
        self.gaussian = {f: p for f, p in self.paths.items() if isinstance(p, GaussianPath)}
        # "dps" is a step of fixed length: nothing is divided by a.
        self.latest = {} if method == "dps" or through == "estimate" else {
            f: time_of_noise(p, noise_limit)
            for f, p in self.gaussian.items()
        }  # fmt: skip
        self.calls = self.products = 0

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        """The clean estimate given x_t and y; gradients flow where grad mode is on."""
        if len(self.y) != state.batch_size:
            raise InputError(
                f"{len(self.y)} measurements for a batch of {state.batch_size}: give one a sample"
            )
        if self.weight == 0 or not acts_at(t, self.interval):
            self.calls += 1
            return self.denoiser(state, t, previous)
        differentiable = torch.is_grad_enabled()
        times = field_times(t, state)
        with torch.set_grad_enabled(differentiable or self.through == "network"):
            if self.through == "network":
                state = state.replace(**{f: _leaf(state[f]) for f in self.gaussian})
            prediction = self.denoiser(state, t, previous)
            self.calls += 1
            at, early, estimate = self._limited(state, t, times, prediction[self.field])
        clean = prediction[self.field]
        tangent = linearized(self.measurement, clean)
        residual = self.y.to(clean) - self.measurement.apply(clean)

        def spread(w: Tensor, *names: str) -> list[Tensor]:
            """V w, a block of it for each field of ``names``."""
            if self.through == "estimate":
                variance = self._variance(early, clean)
                return [variance * self.path.space.color(w, state.context)]
            self.products += 1
            gradients = torch.autograd.grad(
                estimate, [at[f] for f in names], w,
                retain_graph=True, create_graph=differentiable, materialize_grads=True,
            )  # fmt: skip
            return [
                self._gain(f, early[f], g) * self.gaussian[f].space.color(g, state.context)
                for f, g in zip(names, gradients, strict=True)
            ]

        solved: list[Tensor] = []

        def blurred(w: Tensor) -> Tensor:
            solved[:] = spread(w, self.field)
            return solved[0]

        v = self._solve(residual, tangent, early, clean, state, blurred)
        moved = list(self.gaussian) if self.through == "network" else [self.field]
        if self.method == "mmps" and self.iterations == 1 and moved == [self.field] and solved:
            # v is a multiple of the residual, of which the product is known.
            shifts = [_share(v, residual, clean) * solved[0]]
        else:
            shifts = spread(tangent.adjoint(v), *moved)
        guided = {f: torch.add(prediction[f], shift, alpha=self.weight)
                  for f, shift in zip(moved, shifts, strict=True)}  # fmt: skip
        answer = Prediction({**prediction.clean, **guided})
        return answer if differentiable else answer.detach()

    def _solve(
        self,
        residual: Tensor,
        tangent: Measurement,
        early: Mapping[str, Tensor],
        clean: Tensor,
        state: State,
        spread: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """S⁻¹ (y − H(D))."""
        if self.method == "dps":
            norm = residual.flatten(1).norm(dim=1).reshape(-1, *(1,) * (residual.ndim - 1))
            return torch.where(norm > 0, residual / torch.where(norm > 0, norm, 1.0), 0.0)
        if self.method == "dps-scaled":
            largest = self._variance(early, clean).flatten(1).amax(1)
            largest = largest.reshape(-1, *(1,) * (residual.ndim - 1))
        elif self.method == "tmpd":
            if self.diagonal == "rows":
                uncertain = tangent.apply(spread(tangent.adjoint(torch.ones_like(residual))))
            else:
                uncertain = _diagonal(tangent, spread, residual)
            uncertain = uncertain.clamp(min=0)

        def blur(v: Tensor) -> Tensor:
            """(S − Σ_y) v."""
            match self.method:
                case "dps-scaled":
                    return largest * v
                case "tmpd":
                    return uncertain * v
                case "pigdm":
                    pulled = self.path.space.color(tangent.adjoint(v), state.context)
                    return tangent.apply(self._variance(early, clean) * pulled)
                case _:
                    return tangent.apply(spread(tangent.adjoint(v)))

        iterations = self.iterations if self.method == "mmps" else _FREE
        return conjugate_gradients(lambda v: tangent.covariance(v) + blur(v), residual, iterations,
                                   tangent.covariance)  # fmt: skip

    def _limited(
        self, state: State, t: Times | float, times: Mapping[str, Tensor], clean: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """Noisy fields, their times and D of the measured one, where V is taken."""
        early = {f: times[f].clamp(max=self.latest[f]) if f in self.latest else times[f]
                 for f in self.gaussian}  # fmt: skip
        at = {f: state[f] for f in self.gaussian}
        if not any(bool((early[f] < times[f]).any()) for f in early):
            return at, early, clean
        for f, path in self.gaussian.items():
            shrink = path.schedule(early[f])[1] / path.schedule(times[f])[1]
            shrink = torch.where(early[f] < times[f], shrink, torch.ones_like(shrink))
            at[f] = at[f] * path.space.expand(shrink, at[f]).to(at[f].dtype)
        others = t if isinstance(t, Mapping) else dict.fromkeys(self.paths, t)
        asked: dict[str, Any] = {**others, **early}
        self.calls += 1
        return at, early, self.denoiser(state.replace(**at), asked)[self.field]

    def _gain(self, field: str, t: Tensor, like: Tensor) -> Tensor:
        """What turns C times the gradient of a field into a move of its clean estimate."""
        path = self.gaussian[field]
        a, s = path.schedule(t)
        gain = s**2 / a
        if self.method == "dps":
            # Given elements (t = 0) do not move; some schedules have no slope there.
            known = t <= 0
            inner = t.masked_fill(known, 0.5)
            (a, s), (da, ds) = path.schedule(inner), path.schedule.derivatives(inner)
            gain = (self.steps * s / (2 * (a * ds - da * s))).masked_fill(known, 0)
        return path.space.expand(gain, like).to(like.dtype)

    def _variance(self, times: Mapping[str, Tensor], like: Tensor) -> Tensor:
        variance = isotropic_variance(self.path, times[self.field])
        return self.path.space.expand(variance, like).to(like.dtype)


def isotropic_variance(path: GaussianPath, t: Tensor) -> Tensor:
    """r² = σ²s²/(a²σ² + s²): the variance of x_0 given x_t for N(m, σ² C), shaped as ``t``."""
    a, s = path.schedule(t)
    return path.data_std**2 * s**2 / (a**2 * path.data_std**2 + s**2)


def measured_path(denoiser: Denoiser, field: str, y: Tensor) -> GaussianPath:
    """The path of the measured field.

    Raises:
        InputError: it is not a Gaussian field of the model, or y is not finite.
    """
    path = gaussian_path(denoiser, field, "a measurement is of")
    if not bool(y.isfinite().all()):
        raise InputError("measured values must be finite; write 0 where nothing was seen")
    return path


def _share(v: Tensor, r: Tensor, like: Tensor) -> Tensor:
    """c of v = c r in each sample, 0 where r is."""
    square = r.square().flatten(1).sum(1)
    share = (v * r).flatten(1).sum(1) / torch.where(square > 0, square, 1.0)
    return share.reshape(-1, *(1,) * (like.ndim - 1))


def _leaf(x: Tensor) -> Tensor:
    return x if x.requires_grad else x.detach().requires_grad_(True)


def _diagonal(tangent: Measurement, spread: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """diag(A V Aᵀ), a product for each number of y."""
    entries = []
    for k in range(like[0].numel()):
        unit = torch.zeros_like(like)
        unit.flatten(1)[:, k] = 1
        entries.append(tangent.apply(spread(tangent.adjoint(unit))).flatten(1)[:, k])
    return torch.stack(entries, 1).view_as(like)
