r"""Posterior denoising from a measurement by moment matching (Rozet et al. 2024, MMPS).

For y = A x_0 + η, η ~ N(0, Σ_y), the posterior of x_0 given the noisy x_t is taken as Gaussian,

    p(x_0 | x_t) ≈ N(D, V),     V = (s²/a) C Jᵀ,     J = ∂D/∂x_t     (C: covariance of the noise),

both moments exact (Tweedie; the second by its derivative). Then

    E[x_0 | x_t, y] = D + V Aᵀ v,     (Σ_y + A V Aᵀ) v = y − A D,

solved by a few steps of conjugate gradients, each one vector-Jacobian product. No strength is to be
tuned, and for Gaussian data the result is exact at every noise level, so that any sampler draws
exact posterior samples. Where a network's V is not positive along a direction, which would turn the
small Σ_y into a huge pull, the sample's iteration stops.

It is the method "mmps" of :class:`~sciflow.guidance.measured.posterior.Posterior`.
"""

from __future__ import annotations

from torch import Tensor

from sciflow.denoisers import Denoiser
from sciflow.guidance.measured.conjugate_gradients import conjugate_gradients
from sciflow.guidance.measured.measurements import Measurement, NonlinearMeasurement
from sciflow.guidance.measured.posterior import Posterior

__all__ = ["MomentMatching", "conjugate_gradients"]


class MomentMatching(Posterior):
    """A model and a measurement of one of its fields.

    Args:
        denoiser: the model.
        field: the name of a Gaussian field.
        y: what was measured, ``[B, *m]``; row i belongs to row i of the batch.
        measurement: A and Σ_y.
        iterations: steps of conjugate gradients; as many as y has numbers are exact.
        noise_limit: s/a in units of the data's scale, see
            :mod:`sciflow.guidance.measured.posterior`.
    """

    def __init__(self, denoiser: Denoiser, field: str, y: Tensor,
                 measurement: Measurement | NonlinearMeasurement, iterations: int = 3,
                 noise_limit: float = 5.0):  # fmt: skip
        super().__init__(denoiser, field, y, measurement, "mmps", iterations=iterations,
                         noise_limit=noise_limit)  # fmt: skip
