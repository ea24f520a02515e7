"""What may reach into a run between the denoiser and the steppers.

Guidance is a denoiser, and needs no more than to be called. Two things do need the sampler itself:

* :data:`Select`, after a call and before its step: rows of the batch take the place of others
  (:mod:`sciflow.guidance.particles.steering`). State, estimate and the solvers' history move
  together; the random numbers stay with the rows, so that copies part again where steps are
  stochastic;
* :data:`After`, after a step: the state is moved, onto a constraint for example. A denoiser that
  needs it has it as its method ``after_step``, which every sampler calls, through whatever wraps
  it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.state import State

__all__ = ["After", "Select", "Step", "after_inner", "hook_of"]


@dataclass(frozen=True)
class Step:
    """One step of a run.

    Attributes:
        number: of the interval, from 0.
        start: time of the call.
        end: time at which the step ended.
        before: the fields at ``start``.
        prediction: the clean estimate there.
        state: the fields at ``end``.
    """

    number: int
    start: float
    end: float
    before: State
    prediction: Prediction
    state: State


Select = Callable[[int, float, State, Prediction], Tensor | None]
"""(number of the interval, time, fields, estimate) ↦ for every row which row it becomes, int64
``[B]``, or ``None``. Rows may only be exchanged where their contexts and given values are equal."""

After = Callable[[Step], State]
"""The fields to go on from. Given elements are put back afterwards."""


def hook_of(denoiser: Denoiser) -> After | None:
    """The ``after_step`` of a denoiser; of one without that only wraps another, the other's."""
    inner: Denoiser | None = denoiser
    while inner is not None:
        hook: After | None = getattr(inner, "after_step", None)
        if hook is not None:
            return hook
        inner = getattr(inner, "denoiser", None)
    return None


def after_inner(denoiser: Denoiser, step: Step) -> Step:
    """The step as the hook of a guided model left it, if it has one: before that of its guide."""
    inner = hook_of(denoiser)
    return step if inner is None else replace(step, state=inner(step))
