r"""Hard constraints: the clean estimate is moved onto what must hold, at every step.

    D ← D + w (P(D) − D),        P linear: P(x) = x − C Aᵀ (A C Aᵀ)⁻¹ (A x − y)

for constraints A x = y of one field (C the covariance of the noise: the nearest point in the norm
that the noise gives, the Euclidean one for white noise, and centred or smooth fields stay so). Any
other P is a function of the clean state. Where a run ends at t = 0 the finished state is projected
too, so that the constraint holds exactly whatever the last step of the sampler is.

It is what posterior sampling (:mod:`sciflow.guidance.measured.posterior`) becomes for Σ_y → 0 with
"pigdm" and no gradient of the network; the sample obeys, but its law is not that of the posterior.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.guidance.acting import acts_at, check_interval
from sciflow.guidance.measured.conjugate_gradients import conjugate_gradients
from sciflow.guidance.measured.measurements import Measurement, NonlinearMeasurement, linearized
from sciflow.guidance.measured.posterior import measured_path
from sciflow.paths import CategoricalPath
from sciflow.samplers.hooks import Step, after_inner
from sciflow.spaces import Space
from sciflow.state import State, Times

__all__ = ["Affine", "Projected", "Projection"]

Projection = Callable[[State], Mapping[str, Tensor]]
"""``projection(clean)``: the fields it moves, each row by itself. Tokens are probabilities
``[B, *elements, K]`` in the clean estimate, before and after, and numbers in a finished sample,
where they are left alone."""

_SOLVE = 500
_LEAST = 1e-30


@dataclass(frozen=True)
class Affine:
    """The projection onto H(x) = y of one field.

    Attributes:
        field: its name.
        y: ``[B, *m]``.
        measurement: A; its noise does not count. A non-linear one is linearised ``rounds`` times.
        space: of the field.
        rounds: of Newton's method; linear constraints are solved to rounding in two.
    """

    field: str
    y: Tensor
    measurement: Measurement | NonlinearMeasurement
    space: Space
    rounds: int = 2

    def __call__(self, clean: State) -> dict[str, Tensor]:
        """The nearest field that obeys."""
        x = clean[self.field]
        if len(self.y) != len(x):
            raise InputError(f"{len(self.y)} constraints for a batch of {len(x)}: give one a row")
        for _ in range(self.rounds):
            tangent = linearized(self.measurement, x)

            def pull(v: Tensor, tangent: Measurement = tangent) -> Tensor:
                return self.space.color(tangent.adjoint(v), clean.context)

            residual = self.y.to(x) - self.measurement.apply(x)
            v = conjugate_gradients(lambda v, a=tangent, p=pull: a.apply(p(v)),  # type: ignore[misc]
                                    residual, min(_SOLVE, 2 * residual[0].numel()))  # fmt: skip
            x = x + pull(v)
            if not torch.is_grad_enabled():
                x = x.detach()
        return {self.field: x}


class Projected(Denoiser):
    """A model whose clean estimates obey a constraint.

    Args:
        denoiser: the model, guided or not.
        projection: see :data:`Projection`; :meth:`linear` makes that of A x = y.
        weight: w; 0 is the model itself, bit for bit, and only 1 obeys exactly.
        interval: times (first, last) of the shared clock between which estimates are projected; the
            finished state always is, where w = 1.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        projection: Projection,
        weight: float = 1.0,
        interval: tuple[float, float] = (0.0, 1.0),
    ):
        super().__init__()
        if not 0 <= weight <= 1:
            raise InputError(f"an estimate is moved by a share from 0 to 1, not {weight}")
        check_interval(interval)
        self.denoiser, self.paths = denoiser, denoiser.paths
        self.projection, self.weight, self.interval = projection, weight, interval

    @classmethod
    def linear(
        cls,
        denoiser: Denoiser,
        field: str,
        y: Tensor,
        measurement: Measurement | NonlinearMeasurement,
        weight: float = 1.0,
        rounds: int = 2,
    ) -> Projected:
        """Onto A x = y of one Gaussian field; see :class:`Affine`."""
        path = measured_path(denoiser, field, y)
        return cls(denoiser, Affine(field, y, measurement, path.space, rounds), weight)

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        """The projected estimate."""
        prediction = self.denoiser(state, t, previous)
        if self.weight == 0 or not acts_at(t, self.interval):
            return prediction
        tokens = {f for f, p in self.paths.items() if isinstance(p, CategoricalPath)}
        clean = State({f: x.softmax(-1) if f in tokens else x
                       for f, x in prediction.clean.items()}, state.context)  # fmt: skip
        moved = {}
        for name, x in self.projection(clean).items():
            if name not in self.paths:
                raise InputError(
                    f"the projection moves {name!r}; this model has: {', '.join(self.paths)}"
                )
            if self.weight < 1:
                x = torch.lerp(clean[name], x, self.weight)
            moved[name] = x.clamp(min=_LEAST).log() if name in tokens else x
        return Prediction({**prediction.clean, **moved})

    def after_step(self, step: Step) -> State:
        """The finished state obeys too, after the hook of the guided model, if it has one."""
        step = after_inner(self.denoiser, step)
        if step.end > 0 or self.weight < 1:
            return step.state
        moved = self.projection(step.state)
        tokens = {f for f, p in self.paths.items() if isinstance(p, CategoricalPath)}
        return step.state.replace(**{f: x for f, x in moved.items() if f not in tokens})
