r"""An unknown noise level by expectation–maximisation (Dempster et al. 1977).

For y_i = H_i(x_i) + η_i, η_i ~ N(0, κ Σ_i), with Σ known and the factor κ not, the likelihood of
all measurements is climbed by

    E:  x_i ~ p(x | y_i, κ), by any posterior sampler,
    M:  κ = Σ_i (y_i − H_i(x_i))ᵀ Σ_i⁻¹ (y_i − H_i(x_i)) / Σ_i m_i,

m_i the count of numbers in y_i. With Σ = 1, κ is σ_y². Each round draws anew, and the answer is the
mean over the last third of the rounds. Where a sample is measured little more than it has numbers,
EM takes many of them: the error falls by the share of the noise that x can fit.

What is found is as good as the posterior sampler is: one whose samples are too narrow or too wide
finds another κ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sciflow.denoisers import Denoiser
from sciflow.errors import InputError, NonFiniteError
from sciflow.guidance.measured.measurements import Measurement, NonlinearMeasurement, linearized
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.state import Context

__all__ = ["NoiseLevel", "Rescaled", "fit_noise_level"]


@dataclass(frozen=True)
class Rescaled:
    """An instrument whose noise is ``factor`` Σ_y.

    Attributes:
        measurement: H and Σ_y, linear or not.
        factor: κ.
    """

    measurement: Measurement | NonlinearMeasurement
    factor: float

    def apply(self, x: Tensor) -> Tensor:
        """H(x)."""
        return self.measurement.apply(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Aᵀ y, where H is linear."""
        if isinstance(self.measurement, NonlinearMeasurement):
            raise TypeError("a non-linear measurement has an adjoint at a point only: use .at(x)")
        return self.measurement.adjoint(y)

    def at(self, x: Tensor) -> Rescaled:
        """With the tangent at ``x``."""
        return Rescaled(linearized(self.measurement, x), self.factor)

    def covariance(self, y: Tensor) -> Tensor:
        """κ Σ_y y."""
        return self.factor * self.measurement.covariance(y)

    def precision(self, y: Tensor) -> Tensor:
        """Σ_y⁻¹ y/κ."""
        return self.measurement.precision(y) / self.factor

    def root(self, z: Tensor) -> Tensor:
        """√κ Σ_y^½ z."""
        return self.factor**0.5 * self.measurement.root(z)

    def count(self, y: Tensor) -> Tensor:
        """That of the instrument."""
        return self.measurement.count(y)

    def rows(self, index: Tensor | slice) -> Rescaled:
        """The instruments of some samples."""
        return Rescaled(self.measurement.rows(index), self.factor)


@dataclass(frozen=True)
class NoiseLevel:
    """What was found.

    Attributes:
        factor: κ, the noise is κ Σ_y.
        history: κ after every round.
        measurement: the instrument with that noise.
    """

    factor: float
    history: list[float]
    measurement: Rescaled


def fit_noise_level(
    posterior: Callable[[Rescaled], Denoiser],
    field: str,
    y: Tensor,
    measurement: Measurement | NonlinearMeasurement,
    context: Context,
    sampler: Sampler | None = None,
    rounds: int = 20,
    start: float = 1.0,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> NoiseLevel:
    """κ of greatest likelihood; one level for all rows of ``y``.

    Args:
        posterior: the guided denoiser for an instrument, such as
            ``lambda m: Posterior(model, "x", y, m)``.
        field: the measured field.
        y: measurements ``[B, *m]``, of as many samples as there are.
        measurement: H and Σ_y.
        context: of the B samples.
        sampler: any; default the one that is nearest for posteriors narrow against the prior.
        rounds: of EM.
        start: κ to begin with; better too large than too small.
        seed: round k draws with seed + k.
        dtype: of continuous fields; default torch's.

    Raises:
        InputError: ``rounds`` below 1, or ``start`` not above 0.
        NonFiniteError: every posterior sample of a round is broken; single ones are left out.
    """
    if rounds < 1 or not start > 0:
        raise InputError(f"EM takes 1 round or more from a level above 0, not {rounds}, {start}")
    sampler = sampler or Sampler(method="dpmpp2m", grid="uniform-logsnr")
    factor, history = start, []
    for k in range(rounds):
        model = posterior(Rescaled(measurement, factor))
        report = sampler(model, context, Draws(seed + k, torch.arange(len(y))), dtype=dtype)
        fine = ~report.broken
        if not bool(fine.any()):
            raise NonFiniteError(f"round {k}: all {len(y)} posterior samples are NaN or infinite")
        x = report.state[field]
        left = y.to(x) - measurement.apply(x)
        misfit = (left * measurement.precision(left)).flatten(1).sum(1).double()
        factor = float(misfit[fine].sum() / measurement.count(y)[fine].sum())
        history.append(factor)
    late = history[-(-2 * len(history) // 3) - (len(history) < 2) :]
    found = sum(late) / len(late)
    return NoiseLevel(found, history, Rescaled(measurement, found))
