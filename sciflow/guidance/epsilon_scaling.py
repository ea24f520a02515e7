r"""Epsilon scaling: a remedy for exposure bias (Ning et al. 2024).

While sampling, a network sees its own errors, and the noise it predicts is a little larger there
than on corrupted data. Dividing it by λ(t) = b + k t,

    ε ← ε/λ,      D ← D + (1 − 1/λ)(x_t − a D)/a,

brings it back; b is 1.0005 to 1.02 in the paper, smaller for better solvers. :func:`fit_scale`
finds it from norms, λ = |ε| on the way of the sampler / |ε| on corrupted data at the same time.

Where a is small D would be moved far, though ε is not: noise above ``largest`` data units is left
alone. λ = 1 is the bare denoiser, bit for bit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.paths import GaussianPath
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.state import State, Times, field_times

__all__ = ["EpsilonScaling", "fit_scale"]

_LARGEST = 20.0


class EpsilonScaling(Denoiser):
    """A denoiser whose predicted noise is divided by λ(t) = ``scale`` + ``slope`` · t.

    Args:
        denoiser: the model, guided or not.
        scale: b, the same for all continuous fields.
        slope: k.
        largest: noise s/a above it is left alone, in standard deviations of the data.
    """

    def __init__(
        self, denoiser: Denoiser, scale: float, slope: float = 0.0, largest: float = _LARGEST
    ):
        super().__init__()
        if not (0 < scale < math.inf and 0 < scale + slope < math.inf):
            raise InputError(
                "the predicted noise is divided by numbers above 0 (1 is off), not by "
                f"{scale} at t = 0 and {scale + slope} at t = 1"
            )
        self.denoiser, self.paths = denoiser, denoiser.paths
        self.scale, self.slope, self.largest = scale, slope, largest

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        """The estimate that belongs to the scaled noise."""
        prediction = self.denoiser(state, t, previous)
        if self.scale == 1 and self.slope == 0:
            return prediction
        times = field_times(t, state)
        clean = dict(prediction.clean)
        for name, path in self.paths.items():
            if isinstance(path, GaussianPath):
                clean[name] = self._scaled(path, state[name], clean[name], times[name])
        return Prediction(clean)

    def _scaled(self, path: GaussianPath, x: Tensor, clean: Tensor, t: Tensor) -> Tensor:
        a, s = path.schedule(t)
        # Given elements (s = 0) are their own estimate; there is no noise to scale.
        used = (s > 0) & (s <= self.largest * path.data_std * a)
        gain = torch.where(used, 1 - 1 / (self.scale + self.slope * t), torch.zeros_like(a))
        a = torch.where(used, a, torch.ones_like(a))
        gain, a = (path.space.expand(y, x).to(x.dtype) for y in (gain / a, a))
        return clean + gain * (x - a * clean)


class _Norms(Denoiser):
    """Watches |ε| of a field at every call."""

    def __init__(self, denoiser: Denoiser, field: str):
        super().__init__()
        self.denoiser, self.paths, self.field = denoiser, denoiser.paths, field
        self.norms: list[float] = []

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        prediction = self.denoiser(state, t, previous)
        path, x = self.paths[self.field], state[self.field]
        a, s = (path.space.expand(y, x) for y in path.schedule(field_times(t, state)[self.field]))
        eps = (x - a * prediction[self.field]) / s
        self.norms.append(float(path.space.sum(eps.double() ** 2, state.context).sqrt().mean()))
        return prediction


def fit_scale(
    denoiser: Denoiser,
    data: State,
    draws: Draws,
    sampler: Sampler,
    field: str | None = None,
    linear: bool = False,
    largest: float = _LARGEST,
) -> tuple[float, float]:
    """(scale, slope) of :class:`EpsilonScaling` by matching norms; see the module.

    Args:
        denoiser: the model, guided or not.
        data: clean states with their context; norms of few small samples are rough.
        draws: of the batch, for the sampler and for corrupting.
        sampler: the one that is to be mended.
        field: the continuous field to look at; default the first.
        linear: also fit the slope; else it is 0.
        largest: as in :class:`EpsilonScaling`.

    Raises:
        InputError: the field is not continuous, or no call lies below ``largest``.
    """
    gaussian = [f for f, p in denoiser.paths.items() if isinstance(p, GaussianPath)]
    name = field if field is not None else next(iter(gaussian), "")
    if name not in gaussian:
        raise InputError(
            f"noise is scaled in a continuous field, not {name!r}; {', '.join(gaussian) or 'none'}"
        )
    plan = sampler.plan(denoiser)
    watched, trained = _Norms(denoiser, name), _Norms(denoiser, name)
    x = data[name]
    report = sampler(watched, data.context, draws, dtype=x.dtype)
    if bool(report.broken.any()):
        raise InputError(f"a sample broke while the scale was fitted: {report.where}")
    with torch.no_grad():
        for i, (t, _) in enumerate(plan):
            at = torch.full((data.batch_size,), t, dtype=torch.float64, device=x.device)
            noisy = {f: p.corrupt(data[f], at, data.context, draws, f"{f}/scale", i)
                     for f, p in denoiser.paths.items()}  # fmt: skip
            trained(State(noisy, data.context), t)
    path = denoiser.paths[name]
    assert isinstance(path, GaussianPath)
    a, s = path.schedule(plan.start)
    used = s <= largest * path.data_std * a
    if not bool(used.any()):
        raise InputError(f"no call of the sampler has noise below {largest} of the data's")
    ratio = torch.tensor(watched.norms, dtype=torch.float64)[used]
    ratio = ratio / torch.tensor(trained.norms, dtype=torch.float64)[used]
    if not linear or len(ratio) < 2:
        return float(ratio.mean()), 0.0
    columns = torch.stack((torch.ones_like(ratio), plan.start[used]), -1)
    b, k = torch.linalg.lstsq(columns, ratio[:, None]).solution[:, 0].tolist()
    return b, k
