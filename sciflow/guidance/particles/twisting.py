r"""Steps steered by a reward, and the price of it in probability (Wu et al. 2023, TDS).

A denoiser shifted towards the observation, D̃ = D + (s²/a) C ∇_x log f(D(x)), makes a stochastic
step of order 1 another Gaussian of the same covariance:

    p̃ = N(A x + c D̃, σ² C) where the model's is p = N(A x + c D, σ² C),     δ = c (D̃ − D),
    log p(x')/p̃(x') = −( ⟨x' − A x − c D̃, δ⟩ + ½ |δ|² )/σ²,     ⟨u, v⟩ = uᵀ C⁻¹ v.

Token fields and points of manifolds take the model's own steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.paths import CategoricalPath, GaussianPath, Path
from sciflow.samplers import Sampler
from sciflow.samplers.hooks import hook_of
from sciflow.samplers.linear import LinearStepper
from sciflow.samplers.methods import stepper_of
from sciflow.state import Context, State, Times, field_times

__all__ = ["Twist", "Twisted", "clean_state", "transition_ratio"]

_LEAST_SIGNAL = 1e-4
"""Noise with less signal than this share of it says nothing of x_0: there nothing is steered."""


@dataclass(frozen=True)
class Twist(Prediction):
    """A steered estimate.

    Attributes:
        plain: the model's own.
        log_f: log f of it, ``[B]``.
    """

    plain: Prediction
    log_f: Tensor

    def index(self, rows: Tensor) -> Twist:
        clean = {name: x[rows] for name, x in self.clean.items()}
        return Twist(clean, self.plain.index(rows), self.log_f[rows])


class Twisted(Denoiser):
    """The estimate of a model moved up the gradient of log f, with log f kept beside it.

    Args:
        denoiser: the model.
        log_f: of a clean state and the time, ``[B]``, differentiable; tokens are probabilities.
        until: at this time and before it nothing is steered.
    """

    def __init__(self, denoiser: Denoiser, log_f: Callable[[State, float], Tensor],
                 until: float = 0.0):  # fmt: skip
        super().__init__()
        self.denoiser, self.paths = denoiser, denoiser.paths
        self.log_f, self.until = log_f, until

    def forward(self, state: State, t: Times | float, previous: Prediction | None = None) -> Twist:
        if not isinstance(t, float):
            raise InputError("particles run on one shared clock: t must be a number")
        if isinstance(previous, Twist):
            previous = previous.plain
        names = [name for name, path in self.paths.items() if isinstance(path, GaussianPath)]
        steer = t > self.until
        with torch.set_grad_enabled(steer):
            x = {name: state[name].detach().requires_grad_(steer) for name in names}
            plain = self.denoiser(state.replace(**x), t, previous)
            log_f = self.log_f(clean_state(self.paths, state.context, plain.clean), t)
            if steer and not log_f.requires_grad:
                raise InputError(
                    "steps are steered by the gradient of the reward, and this one has none; "
                    "make it differentiable in torch, or set twisted=False"
                )
            gradients = torch.autograd.grad(
                log_f.sum(), list(x.values()), materialize_grads=True
            ) if steer else ()  # fmt: skip
        plain, log_f = plain.detach(), log_f.detach()
        clean, times = dict(plain.clean), field_times(t, state)
        for name, gradient in zip(names, gradients, strict=False):
            path = self.paths[name]
            a, s = path.schedule(times[name])
            gain = torch.where(a > _LEAST_SIGNAL * s, s**2 / a, torch.zeros_like(a))
            shift = path.space.color(gradient, state.context)
            shift = path.space.expand(gain, shift).to(shift.dtype) * shift
            # A reward that fails on an estimate steers nothing.
            sound = log_f.isfinite() & shift.flatten(1).isfinite().all(1)
            clean[name] = clean[name] + shift.where(
                path.space.expand(sound, shift), 0 * clean[name]
            )
        return Twist(clean, plain, log_f)


def transition_ratio(
    sampler: Sampler, denoiser: Denoiser
) -> Callable[[int, State, Twist, State], Tensor]:
    """log p(x'|x)/p̃(x'|x) of a sampler's steps.

    Returns:
        A function of the number of the interval, the fields at its start, the steered estimate
        there and the fields at its end: float64 ``[B]``.

    Raises:
        InputError: the law of a step is not known, or has no noise.
    """
    if hook_of(denoiser) is not None:
        raise InputError(
            f"{type(denoiser).__name__} moves the state after a step, whose law is not known then; "
            "set twisted=False"
        )
    plan = sampler.plan(denoiser)
    steppers: dict[str, LinearStepper] = {}
    whole = bool((plan.start[1:] == plan.end[:-1]).all())
    for name, path in denoiser.paths.items():
        if not isinstance(path, GaussianPath):
            continue
        stepper = stepper_of(name, path, plan, sampler)
        if (
            not (whole and isinstance(stepper, LinearStepper))
            or any(stepper.older)
            or not all(stepper.from_noise[:-1])
        ):
            raise InputError(
                f"twisted steps need a sampler with fresh noise in every step, without history, "
                f"churn or restarts: ddpm, ddim with eta > 0, or sde; not {sampler.method!r} with "
                f"eta = {sampler.eta:g}. Choose one, or set twisted=False"
            )
        steppers[name] = stepper

    def ratio(i: int, before: State, twist: Twist, after: State) -> Tensor:
        total = torch.zeros(before.batch_size, dtype=torch.float64, device=before.device)
        for name, stepper in steppers.items():
            space, context = stepper.path.space, before.context
            guided, c = twist[name], stepper.from_clean[i]
            shift = c * (guided - twist.plain[name])
            rest = after[name] - stepper.from_x[i] * before[name] - c * guided
            change = space.inner(rest, shift, context) + space.inner(shift, shift, context) / 2
            total = total - change.double() / stepper.from_noise[i] ** 2
        return total

    return ratio


def clean_state(paths: Mapping[str, Path], context: Context, clean: Mapping[str, Tensor]) -> State:
    """Clean estimates, or finished samples, as a reward takes them: tokens as probabilities.

    Args:
        paths: of the fields.
        context: of the batch.
        clean: means as they are; of token fields logits ``[..., K]``, or symbols.
    """
    floats = [x.dtype for x in clean.values() if x.is_floating_point()]
    kind = floats[0] if floats else torch.get_default_dtype()
    fields = {}
    for name, x in clean.items():
        path = paths[name]
        if isinstance(path, CategoricalPath):
            fields[name] = (
                x.softmax(-1) if x.is_floating_point()
                else F.one_hot(x.clamp(max=path.classes - 1), path.classes).to(kind)
            )  # fmt: skip
        else:
            fields[name] = x
    return State(fields, context)
