r"""Learning a distribution from corrupted observations only (Rozet et al. 2024).

Data are never seen, only y_i = A_i x_i + η_i with an instrument that may differ from sample to
sample. Expectation–maximisation alternates

    E:  x_i ~ p(x | y_i) under the current model, one draw a measurement, by moment matching
        (:mod:`sciflow.guidance.measured.moment_matching`) under any sampler,
    M:  train the model on those draws, beginning from its own weights.

The likelihood of y never falls in expectation. It begins with a Gaussian of greatest likelihood
(:func:`~sciflow.training.gaussian_fit.fit_gaussian_em`). What no instrument ever sees stays as the
model began: the A_i together must see everything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, NetworkDenoiser
from sciflow.errors import InputError, NonFiniteError
from sciflow.guidance.measured.measurements import Measurement
from sciflow.guidance.measured.moment_matching import MomentMatching
from sciflow.objectives import DenoisingObjective
from sciflow.paths import GaussianPath
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.state import Context, State
from sciflow.training.gaussian_fit import GaussianDenoiser
from sciflow.training.prepared import PreparedData

__all__ = ["CorruptedData", "Expectation", "MStep", "gaussian_step", "learn", "network_step"]

MStep = Callable[[State, int], Denoiser]
"""``m_step(samples, round)``: the model of greatest likelihood of the samples."""


@dataclass(frozen=True)
class CorruptedData:
    """Measurements of one field of M samples.

    Attributes:
        field: the measured field.
        y: ``[M, *m]``.
        measurement: A and Σ_y, one a row of ``y`` or one for all.
        context: masks and conditions of the M samples.
    """

    field: str
    y: Tensor
    measurement: Measurement
    context: Context

    def __post_init__(self) -> None:
        if len(self.y) != len(self.context):
            raise InputError(
                f"{len(self.y)} measurements, but the context is that of {len(self.context)} "
                "samples; give one measurement a sample"
            )

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Expectation:
    """How posterior samples are drawn.

    Attributes:
        sampler: any; the posterior's quality is its own.
        iterations: of conjugate gradients in each call.
        noise_limit: s/a, in units of the data's scale, at which V stays; see
            :class:`~sciflow.guidance.measured.moment_matching.MomentMatching`.
        batch_size: samples at once; which are together does not matter.
    """

    sampler: Sampler = field(default_factory=Sampler)
    iterations: int = 3
    noise_limit: float = 5.0
    batch_size: int = 1024

    def __call__(self, denoiser: Denoiser, data: CorruptedData, seed: int,
                 dtype: torch.dtype | None = None) -> tuple[State, Tensor]:  # fmt: skip
        """One draw of p(x | y_i) for each measurement, and bool ``[M]``: which are broken."""
        parts: list[State] = []
        broken: list[Tensor] = []
        for first in range(0, len(data), self.batch_size):
            rows = torch.arange(first, min(first + self.batch_size, len(data)))
            posterior = MomentMatching(denoiser, data.field, data.y[rows],
                                       data.measurement.rows(rows), self.iterations,
                                       self.noise_limit)  # fmt: skip
            context = data.context.apply(lambda x, rows=rows: x[rows])  # type: ignore[misc]
            report = self.sampler(posterior, context, Draws(seed, rows), dtype=dtype)
            parts.append(report.state)
            broken.append(report.broken)
        fields = {name: torch.cat([p[name] for p in parts]) for name in parts[0]}
        return State(fields, data.context), torch.cat(broken)


def learn(
    denoiser: Denoiser,
    data: CorruptedData,
    m_step: MStep,
    rounds: int,
    expectation: Expectation | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    progress: Callable[[int, State], None] | None = None,
) -> Denoiser:
    """Expectation–maximisation; returns the model of the last round.

    Args:
        denoiser: where to begin, best the Gaussian fit.
        data: the measurements.
        m_step: :func:`gaussian_step`, :func:`network_step` or your own.
        rounds: how often; each halves, about, what is left of the error where half is missing.
        expectation: how posterior samples are drawn.
        seed: round k draws with seed + k.
        dtype: of continuous fields; default torch's.
        progress: called with (round, posterior samples) after each E-step.

    Raises:
        InputError: ``rounds`` below 1.
        NonFiniteError: every posterior sample of a round is broken; single ones are left out.
    """
    if rounds < 1:
        raise InputError(f"rounds must be at least 1, not {rounds}")
    expectation = expectation or Expectation()
    for k in range(rounds):
        samples, broken = expectation(denoiser, data, seed + k, dtype)
        if bool(broken.all()):
            raise NonFiniteError(
                f"round {k}: all {len(data)} posterior samples are NaN or infinite, seed {seed + k}"
            )
        samples = samples.index((~broken).nonzero().flatten())
        if progress is not None:
            progress(k, samples)
        denoiser = m_step(samples, k)
    return denoiser


def gaussian_step(path: GaussianPath, field: str = "x") -> MStep:
    """The normal law with the samples' mean and covariance, as a denoiser."""

    def step(samples: State, _: int) -> Denoiser:
        x = samples[field].double().flatten(1)
        left = x - x.mean(0)
        covariance = left.mT @ left / len(x)
        return GaussianDenoiser(path, x.mean(0).view(samples[field].shape[1:]), covariance, field)

    return step


def network_step(
    denoiser: NetworkDenoiser, objective: DenoisingObjective, out: str | Path, **settings: Any
) -> MStep:
    """Train ``denoiser`` further, in place, on each round's samples (``[B, N]`` masks).

    Args:
        denoiser: the model, which keeps its weights from round to round.
        objective: the loss.
        out: folder; round k writes into ``out/round-k``.
        settings: of :func:`sciflow.training.fit.fit`: steps, batch_size, lr, …
    """

    def step(samples: State, k: int) -> Denoiser:
        # Lightning is heavy, and a Gaussian M-step needs none of it.
        from sciflow.training.fit import fit

        if samples.context.mask.ndim != 2:
            raise InputError("prepared data has elements in one row: the mask must be [B, N]")
        axes = {name: denoiser.paths[name].space.mask(samples.context).ndim - 1 for name in samples}
        prepared = PreparedData(dict(samples.fields), axes, samples.context.lengths,
                                samples.context.conditions)  # fmt: skip
        seed = settings.get("seed", 0) + k
        options = {"progress": False, **settings, "seed": seed}
        result = fit(denoiser, objective, prepared, Path(out) / f"round-{k}", **options)
        if not result.finished:
            # Called again with the same arguments, the finished rounds are read, not repeated.
            raise KeyboardInterrupt(f"round {k} was ended by {result.stopped_by}")
        assert isinstance(result.denoiser, NetworkDenoiser)
        return result.denoiser

    return step
