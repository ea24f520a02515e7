r"""The training objective: corrupt a batch at random times and score the clean estimate.

    L = Σ_fields w_f · E_t [ loss_f( D(x_t, t)_f, x_0 ) ],     t ~ Beta(1, β) on the shared clock.

β > 1 spends more of training near the data, where geometry is decided. Each field's clock may drift
from the shared one, t_f = t^{exp(drift·z)}, z ~ N(0, 1), so that the trained network accepts other
schedules at inference: bonds before atoms, or all at once. Everything random is a function of
(seed, sample, step), so step k can be repeated exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sciflow.denoisers import NetworkDenoiser, Prediction
from sciflow.random import Draws
from sciflow.state import Context, State

__all__ = ["DenoisingObjective", "Losses"]


@dataclass(frozen=True)
class Losses:
    """Losses of a batch: ``total`` and one a field, each ``[B]``; ``t`` is the shared clock."""

    total: Tensor
    fields: dict[str, Tensor]
    t: Tensor


@dataclass(frozen=True)
class DenoisingObjective:
    """Weighted sum of the fields' losses.

    Attributes:
        weights: weight of each field, 1 where absent.
        beta: β of the time distribution Beta(1, β).
        t_min: smallest time drawn.
        drift: standard deviation of log-exponents by which a group's clock drifts.
        groups: fields that drift together; fields in no group keep the shared clock.
        drop_all: probability that a sample is trained without any condition.
        drop_each: probability with which each condition is dropped on its own.
        feedback: probability of self-conditioning on a first estimate.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    beta: float = 1.0
    t_min: float = 1e-3
    drift: float = 0.0
    groups: Sequence[Sequence[str]] = ()
    drop_all: float = 0.1
    drop_each: float = 0.0
    feedback: float = 0.5

    def times(self, names: Sequence[str], draws: Draws, step: int,
              device: torch.device) -> dict[str, Tensor]:  # fmt: skip
        """One time a field, ``[B]``, float32; the shared clock under the key ``""``."""
        u = draws.uniform((), "objective/time", step, device=device)
        t = (1 - u ** (1 / self.beta)).clamp(self.t_min, 1.0)
        times = dict.fromkeys(["", *names], t)
        for i, group in enumerate(self.groups):
            z = draws.normal((), f"objective/drift{i}", step, device=device)
            for name in group:
                times[name] = (t ** (self.drift * z).exp()).clamp(self.t_min, 1.0)
        return times

    def drop_conditions(self, context: Context, draws: Draws, step: int) -> Context:
        """Make conditions "not asked for" at random."""
        if not context.conditions:
            return context
        device = context.mask.device
        everything = draws.uniform((), "objective/drop", step, device=device) < self.drop_all
        conditions = {}
        for name, c in context.conditions.items():
            one = draws.uniform((), f"objective/drop/{name}", step, device=device) < self.drop_each
            drop = (everything | one).reshape(-1, *(1,) * (c.ndim - 1))
            conditions[name] = torch.where(drop, torch.nan, c)
        return context.replace(conditions=conditions)

    def __call__(self, denoiser: NetworkDenoiser, batch: State, draws: Draws, step: int) -> Losses:
        """Losses of a clean ``batch`` at training step ``step``."""
        times = self.times(list(denoiser.paths), draws, step, batch.device)
        context = self.drop_conditions(batch.context, draws, step)
        noisy = State(
            {
                name: path.corrupt(batch[name], times[name], context, draws,
                                   f"objective/{name}", step)
                for name, path in denoiser.paths.items()
            },
            context,
        )  # fmt: skip
        previous = None
        if denoiser.self_conditioning:
            previous = self._feedback(denoiser, noisy, times, draws, step)
        prediction = denoiser(noisy, times, previous)
        losses = {
            name: path.loss(prediction[name], batch[name], noisy[name], times[name], context)
            for name, path in denoiser.paths.items()
        }
        total = torch.stack([self.weights.get(k, 1.0) * v for k, v in losses.items()]).sum(0)
        return Losses(total, losses, times[""])

    def _feedback(self, denoiser: NetworkDenoiser, noisy: State, times: dict[str, Tensor],
                  draws: Draws, step: int) -> Prediction | None:  # fmt: skip
        """With one coin a step (not a sample), so that half of the steps cost no extra pass."""
        if float(Draws(draws.seed, [0]).uniform((), "objective/feedback", step)) >= self.feedback:
            return None
        with torch.no_grad():
            return denoiser(noisy, times).detach()
