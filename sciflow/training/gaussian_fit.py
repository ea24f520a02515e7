r"""A Gaussian fitted to incomplete data in closed form, and the denoiser that it is.

For x ~ N(m, C) and y_i = A_i x_i + η_i, η_i ~ N(0, Σ_i), the likelihood is climbed by (Dempster et
al. 1977)

    E:  x̂_i = m + K_i (y_i − A_i m),   P_i = C − K_i A_i C,   K_i = C A_iᵀ (A_i C A_iᵀ + Σ_i)⁻¹,
    M:  m = mean x̂_i,                  C = mean [ P_i + (x̂_i − m)(x̂_i − m)ᵀ ].

Its denoiser D = m + a C (a² C + s²)⁻¹ (x_t − a m) is where learning from corrupted data starts: it
already knows the scale and the correlations, and its posterior given y is exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.guidance.measured.measurements import Measurement, dense
from sciflow.paths import GaussianPath
from sciflow.state import State, Times, field_times

__all__ = ["GaussianDenoiser", "fit_gaussian_em"]

_TINY = 1e-300


class GaussianDenoiser(Denoiser):
    """The exact denoiser of one field with a joint normal law over all of its numbers.

    Args:
        path: of the field, with white noise.
        mean: shaped as the field of one sample; all of its elements must be real and none given.
        covariance: ``[n, n]`` over the flattened field.
        field: its name.
    """

    def __init__(self, path: GaussianPath, mean: Tensor, covariance: Tensor, field: str = "x"):
        super().__init__()
        self.path, self.field, self.paths = path, field, {field: path}
        self.mean, self.covariance = mean.double(), covariance.double()
        values, self.vectors = torch.linalg.eigh(self.covariance)
        self.values = values.clamp(min=0)

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        """See the formula of the module; computed in float64."""
        x, time = state[self.field], field_times(t, state)[self.field]
        if time.ndim > 1 or not bool(state.context.mask.all()):
            raise InputError(
                "a Gaussian over a whole field has no given elements and no padding; use a trained "
                "network for those"
            )
        a, s = (y.double()[:, None] for y in self.path.schedule(time))
        m = self.mean.to(x.device).flatten()
        vectors, values = self.vectors.to(x.device), self.values.to(x.device)
        z = (x.double().flatten(1) - a * m) @ vectors
        gain = a * values / (a**2 * values + s**2).clamp(min=_TINY)
        clean = m + (gain * z) @ vectors.mT
        return Prediction({self.field: clean.view(x.shape).to(x.dtype)})


def fit_gaussian_em(
    y: Tensor,
    measurement: Measurement,
    shape: Sequence[int],
    iterations: int = 200,
    tolerance: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Mean, shaped ``shape``, and covariance ``[n, n]`` of greatest likelihood, float64.

    Memory is that of the matrices A_i: for fields of some hundred numbers.

    Args:
        y: measurements ``[M, *m]``.
        measurement: A and Σ, one a row of ``y`` or one for all.
        shape: of the field of one sample.
        iterations: of EM, at most.
        tolerance: stop where no entry changes by more, relative to the largest standard deviation.
    """
    y = y.double()
    like = torch.zeros(len(y), *shape, dtype=torch.float64, device=y.device)
    a, noise = dense(measurement, like)
    y = y.flatten(1)
    n = a.shape[-1]
    m = torch.zeros(n, dtype=torch.float64, device=y.device)
    c = torch.eye(n, dtype=torch.float64, device=y.device) * y.square().mean().clamp(min=_TINY)
    for _ in range(iterations):
        ac = a @ c
        gain = torch.linalg.solve(ac @ a.mT + noise, ac).mT
        x = m + (gain @ (y - a @ m)[..., None])[..., 0]
        m_new = x.mean(0)
        left = x - m_new
        c_new = c - (gain @ ac).mean(0) + left.mT @ left / len(y)
        c_new = (c_new + c_new.mT) / 2
        scale = float(c_new.diagonal().max().sqrt())
        change = max(float((m_new - m).abs().max()) / scale,
                     float((c_new - c).abs().max()) / scale**2)  # fmt: skip
        m, c = m_new, c_new
        if change < tolerance:
            break
    return m.view(*shape), c
