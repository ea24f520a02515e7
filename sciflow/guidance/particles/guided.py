"""Particles as a denoiser, for whoever samples denoisers: a run of its own in place of a plain one.

A guidance that must have the run in its own hands has a method ``sample``, which is called in place
of the sampler; it must be the outermost, or its trajectories would be somebody else's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.guidance.oracles.black_box import OracleReport
from sciflow.guidance.particles.steering import sample_particles
from sciflow.random import Draws
from sciflow.samplers import Sampler, SamplerReport
from sciflow.state import Context, State, Times

__all__ = ["ParticleGuidance"]


class ParticleGuidance(Denoiser):
    """A denoiser whose samples are chosen among weighted particles.

    Attributes:
        calls: of the denoiser, ``particles`` times those of a sample.
        energies: evaluations of the reward.

    Args:
        denoiser: the model, guided or not.
        reward: see :func:`~sciflow.guidance.particles.steering.sample_particles`.
        particles: K.
        settings: its further arguments.
    """

    def __init__(self, denoiser: Denoiser, reward: Callable[[State], Tensor], particles: int = 4,
                 **settings: Any):  # fmt: skip
        super().__init__()
        if particles < 1:
            raise InputError(f"there must be 1 particle or more, not {particles}")
        self.denoiser, self.paths = denoiser, denoiser.paths
        self.reward, self.particles, self.settings = reward, particles, settings
        self.calls = self.energies = 0

    @property
    def report(self) -> OracleReport | None:
        """What the reward's oracle cost; ``None`` where it has none."""
        return getattr(self.reward, "report", None)

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        raise InputError(
            "particles are a run of their own: make this guide the last, and sample the model"
        )

    def sample(self, sampler: Sampler, context: Context, draws: Draws, **options: Any
               ) -> SamplerReport:  # fmt: skip
        """One clean sample a row of the context.

        Args:
            sampler: any that steps of the settings allow.
            context: of the batch.
            draws: of the batch.
            options: as of the sampler (``given``, ``dtype``, ``progress``).
        """
        found = sample_particles(sampler, self.denoiser, context, draws, self.reward,
                                 self.particles, **self.settings, **options)  # fmt: skip
        self.calls += found.calls
        self.energies += found.reward_calls
        rows = found.broken.nonzero().flatten().tolist()
        reasons = {
            row: f"all particles of sample {int(draws.samples[row])}, seed {draws.seed}"
            for row in rows
        }
        return SamplerReport(found.state, found.calls, found.broken,
                             next(iter(reasons.values()), ""), reasons)  # fmt: skip
