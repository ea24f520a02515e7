r"""Published training-free guidance as settings of one denoiser.

=============  =======================================================  ========================
name           update of the state, or of the estimate                  source
=============  =======================================================  ========================
dps            x_s + ρ_t ∇_{x_t} (−‖y − A D‖²)/‖y − A D‖                Chung et al. 2023
lgd            x_s + ρ_t ∇_{x_t} log 1/m Σ f(D + γ̄ s z_j)               Song et al. 2023
mpgd           D + μ_t ∇_D log f inside DDIM                            He et al. 2024
freedom        x_s + ρ_t ∇_{x_t} log f, time travel                     Yu et al. 2023
ugd            ε − ρ s ∇_{x_t} log f − (a/s) Δ, recurrence              Bansal et al. 2023
classifier     ε − ρ s ∇_{x_t} log p(c | x_t)                           Dhariwal & Nichol 2021
tfg            x_s + (ρ_t/√α_t) ∇_{x_t} L + b Δ, recurrence             Ye et al. 2024
=============  =======================================================  ========================

with x_s what the sampler makes of x_t and D, Δ the sum of N_iter gradient steps on D, and the
numbers ρ, μ, γ̄ and shapes as in the papers. With the sampler ``ddim`` (or ``ddpm``) and the plan
that was given here they are these updates to rounding; any other sampler takes them as the change
of D that they are. Recurrence is the sampler's (``Sampler(recurrence=…)``); a plan that has it
does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sciflow.denoisers import Denoiser
from sciflow.errors import InputError
from sciflow.guidance.energy.strengths import Increments, Shape, Strength, increments, open_variance
from sciflow.guidance.energy.training_free import TrainingFree
from sciflow.paths import GaussianPath, Path
from sciflow.samplers.plan import Plan
from sciflow.state import State

__all__ = ["PUBLISHED", "Published", "as_published"]


@dataclass(frozen=True)
class Published:
    """What a published method may be told.

    Attributes:
        numbers: which of ρ, μ and γ̄ it has.
        inner: it has N_iter.
        over_alpha: see :func:`~sciflow.guidance.energy.strengths.increments`.
        of_estimate: ρ and Δ change D itself, so that no plan is asked for.
    """

    numbers: tuple[str, ...]
    inner: bool = False
    over_alpha: bool = False
    of_estimate: bool = False


PUBLISHED = {
    "dps": Published(("rho",)),
    "lgd": Published(("rho", "gamma")),
    "mpgd": Published(("mu",)),
    "freedom": Published(("rho",)),
    "ugd": Published(("rho", "mu"), inner=True, of_estimate=True),
    "classifier": Published(("rho",), of_estimate=True),
    "tfg": Published(("rho", "mu", "gamma"), inner=True, over_alpha=True),
}


def as_published(
    name: str,
    denoiser: Denoiser,
    log_f: Callable[..., Tensor],
    plan: Plan | None = None,
    *,
    eta: float = 0.0,
    rho: float = 0.0,
    mu: float = 0.0,
    gamma: float = 0.0,
    shapes: tuple[Shape, Shape] | None = None,
    iterations: int = 1,
    noise_limit: float | None = None,
    **options: Any,
) -> TrainingFree:
    """A published method; see the table of the module.

    Args:
        name: of the method.
        denoiser: the model; each of its Gaussian fields gets the update, tokens the strength ``mu``
            as it is.
        log_f: the clean state to ``[B]``; for ``dps`` minus a squared residual; for ``classifier``
            a function of the noisy state and of t.
        plan: of the sampler (``sampler.plan(denoiser)``); ``ugd`` and ``classifier`` need none.
        eta: of the sampler (``ddpm`` has 1).
        rho: ρ̄ of the method.
        mu: μ̄ of the method.
        gamma: γ̄ of the method.
        shapes: of ρ_t and μ_t; default increasing for ``tfg``, constant for all others.
        iterations: N_iter.
        noise_limit: see :class:`~sciflow.guidance.TrainingFree`.
        options: its further arguments (``copies``, ``draws``, ``interval``, …).

    Raises:
        InputError: no such method, or it has no such number.
    """
    if name not in PUBLISHED:
        raise InputError(f"unknown method {name!r}; known: {', '.join(PUBLISHED)}")
    method = PUBLISHED[name]
    for key, value in (("rho", rho), ("mu", mu), ("gamma", gamma)):
        if value and key not in method.numbers:
            raise InputError(f"{name} has no {key}; its numbers: {', '.join(method.numbers)}")
    if iterations != 1 and not method.inner:
        raise InputError(f"{name} makes one gradient step; iterations are of ugd and tfg")
    default: Shape = "increase" if name == "tfg" else "constant"
    shaped = (default, default) if shapes is None else shapes
    gaussian = {f: p for f, p in denoiser.paths.items() if isinstance(p, GaussianPath)}
    strengths: dict[str, Increments] = {}
    for field, path in gaussian.items():
        if method.of_estimate:
            steps: Strength = _over_variance(mu, path) if mu else 0.0
            strengths[field] = Increments(rho, steps, 1.0, 0.0)
        elif plan is None:
            raise InputError(f"{name} is an increment of a step: give the plan of the sampler")
        else:
            strengths[field] = increments(
                plan, path, eta, rho, mu, gamma, shaped, method.over_alpha
            )
    others = [f for f in denoiser.paths if f not in gaussian]
    return TrainingFree(
        denoiser,
        _over_residual(log_f) if name == "dps" else log_f,
        {f: x.rho for f, x in strengths.items()},
        {f: x.mu for f, x in strengths.items()} | dict.fromkeys(others, mu),
        {f: x.gamma for f, x in strengths.items()},
        lift={f: x.lift for f, x in strengths.items()} | dict.fromkeys(others, 1.0),
        iterations=iterations,
        noise_limit=noise_limit,
        noisy=name == "classifier",
        **options,
    )


def _over_variance(mu: float, path: Path) -> Callable[[Tensor], Tensor]:
    return lambda t: mu / open_variance(path, t)


def _over_residual(log_f: Callable[[State], Tensor]) -> Callable[[State], Tensor]:
    """−2‖r‖ from −‖r‖²: its gradient is that of −‖r‖², divided by ‖r‖ of the sample itself."""

    def residual(clean: State) -> Tensor:
        value = log_f(clean)
        if bool((value > 0).any()):
            raise InputError("dps divides by a residual: log_f must be minus a squared one, ≤ 0")
        # At a residual of zero there is nothing to follow, and the root has no slope.
        return -2 * (-value).clamp(min=torch.finfo(value.dtype).tiny).sqrt()

    return residual
