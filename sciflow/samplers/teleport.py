r"""Gaussian teleportation: the noisiest part of a trajectory in closed form, at no call.

While the noise exceeds the data, no denoiser can tell the data from a Gaussian of their mean m and
covariance C (Wang & Vastola 2024).
For a Gaussian the probability-flow ODE is solved: along each eigenvector of C, with variance λ_k,

    x_s = a_s m + Σ_k u_k √((a_s² λ_k + s_s²)/(a_t² λ_k + s_t²)) u_k^T (x_t − a_t m),

with one more variance for all directions outside the r largest. A run then begins lower,

    start = teleported(model, context, draws, {"x": fit_gaussian(data)}, time)
    sampler(model, context, draws, start=start, begin=time)

and all its calls go where the data are not Gaussian. Jump to noise of 3 to 10 standard deviations
of the data (:func:`skip_time`): a deeper jump errs, whatever the number of calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sciflow.denoisers import Denoiser
from sciflow.errors import InputError
from sciflow.paths import GaussianPath
from sciflow.random import Draws
from sciflow.state import Context

__all__ = ["GaussianFit", "fit_gaussian", "skip_time", "teleport", "teleported"]


@dataclass(frozen=True)
class GaussianFit:
    """Mean and covariance of the trailing axes of a field: of one element, or of all together.

    Attributes:
        mean: m, ``[*shape]``, float64.
        basis: u_k, ``[numel(shape), r]``, orthonormal.
        variances: λ_k, ``[r]``.
        rest: variance of all other directions.
    """

    mean: Tensor
    basis: Tensor
    variances: Tensor
    rest: float = 0.0


def fit_gaussian(data: Tensor, rank: int | None = None) -> GaussianFit:
    """The Gaussian of clean values.

    Args:
        data: ``[M, *shape]``, real elements only (say ``x[mask]`` for a law of one element).
        rank: eigenvectors kept, the largest; default all. The others share their mean variance.

    Raises:
        InputError: fewer than two values, or a rank that does not exist.
    """
    x = data.double().flatten(1)
    m, d = x.shape
    if m < 2:
        raise InputError(f"a covariance needs at least 2 values, not {m}")
    r = d if rank is None else rank
    if not 0 <= r <= d:
        raise InputError(f"the rank must lie between 0 and {d}, not {r}")
    mean = x.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((x - mean).mT).reshape(d, d))
    values = values.clamp(min=0)
    rest = float(values[: d - r].mean()) if r < d else 0.0
    return GaussianFit(mean.view(data.shape[1:]), vectors[:, d - r :], values[d - r :], rest)


def teleport(x: Tensor, path: GaussianPath, fit: GaussianFit, start: float, end: float) -> Tensor:
    """The field at time ``end`` from ``x`` at time ``start``; see the formula of the module.

    Args:
        x: ``[..., *shape]`` with the shape of the fit's mean.
        path: of the field.
        fit: mean and covariance of the data.
        start: from.
        end: to, below it.
    """
    shape = fit.mean.shape
    if x.shape[x.ndim - len(shape) :] != shape:
        raise InputError(f"a Gaussian of {tuple(shape)} does not fit a field of {tuple(x.shape)}")
    times = torch.tensor([start, end], dtype=torch.float64)
    (a, b), (s, r) = (y.to(x.device) for y in path.schedule(times))
    mean, basis, variances = (
        y.to(x.device) for y in (fit.mean.flatten(), fit.basis, fit.variances)
    )

    def factor(v: Tensor) -> Tensor:
        return ((b**2 * v + r**2) / (a**2 * v + s**2)).sqrt()

    centered = x.double().reshape(*x.shape[: x.ndim - len(shape)], -1) - a * mean
    inside = centered @ basis
    rest = factor(torch.as_tensor(fit.rest, dtype=torch.float64, device=x.device))
    moved = rest * (centered - inside @ basis.mT) + (inside * factor(variances)) @ basis.mT
    return (b * mean + moved).view(x.shape).to(x.dtype)


def skip_time(path: GaussianPath, multiple: float = 5.0) -> float:
    """The time at which the noise s/a is ``multiple`` standard deviations of the data."""
    if not multiple > 0:
        raise InputError(f"the noise is a positive multiple of the data's, not {multiple}")
    level = torch.tensor(multiple * path.data_std, dtype=torch.float64)
    return float(path.schedule.invert(lambda a, s: s / a, level))


def teleported(
    denoiser: Denoiser,
    context: Context,
    draws: Draws,
    fits: Mapping[str, GaussianFit],
    time: float,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """The fields at ``time``, from the draws of the prior that a run from t = 1 begins with.

    Args:
        denoiser: for its paths; it is not called.
        context: of the batch.
        draws: of the batch.
        fits: one a field.
        time: where the run will begin; see :func:`skip_time`.
        dtype: of the fields; default torch's.

    Raises:
        InputError: a field has no fit, or is not continuous.
    """
    if not 0 < time <= 1:
        raise InputError(f"a run begins at a time above 0 and at most 1, not {time}")
    start: dict[str, Tensor] = {}
    for name, path in denoiser.paths.items():
        if not isinstance(path, GaussianPath):
            raise InputError(f"field {name!r} is not continuous and cannot be teleported")
        if name not in fits:
            raise InputError(f"field {name!r} has no Gaussian; given: {', '.join(fits) or 'none'}")
        x = path.prior(context, draws, f"{name}/prior", dtype or torch.get_default_dtype())
        x = teleport(x, path, fits[name], 1.0, time)
        start[name] = path.space.project(x, context)
    return start
