r"""How a predictor of properties learns: maximum likelihood on noisy data.

    L = mean_k ½ [ (c_k − m_k(x_t, t))²/v_k + log v_k ],       c in units of the statistics,

the batch being corrupted just as for a denoiser (:class:`~sciflow.objectives.DenoisingObjective`),
but for a share of samples that stay clean (t = ``t_min``): there the predictor serves as an oracle.
A property that is unknown (NaN) owes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sciflow.objectives.denoising import DenoisingObjective, Losses
from sciflow.predictors import PropertyPredictor
from sciflow.random import Draws
from sciflow.state import State, field_times

__all__ = ["PropertyObjective"]


@dataclass(frozen=True)
class PropertyObjective:
    """Negative log-likelihood of properties at random times.

    Attributes:
        corruption: whose times and clocks are used; its weights of fields are not.
        clean: probability that a sample is left (nearly) clean.
    """

    corruption: DenoisingObjective
    clean: float = 0.2
    uncertainty = None

    def names(self, predictor: PropertyPredictor) -> Sequence[str]:
        """What the losses are reported by."""
        return list(predictor.statistics)

    def settled(self) -> PropertyObjective:
        """What validation measures."""
        return PropertyObjective(self.corruption.settled(), self.clean)

    def config(self) -> dict[str, Any]:
        """Plain data by which a resumed run is recognised."""
        return {"corruption": self.corruption.config(), "clean": self.clean}

    def __call__(
        self, predictor: PropertyPredictor, batch: State, draws: Draws, step: int
    ) -> Losses:
        """Losses of a clean ``batch`` at training step ``step``."""
        paths, context = predictor.paths, batch.context
        times = self.corruption.times(list(paths), draws, step, batch.device)
        u = draws.uniform((), "objective/clean", step, device=batch.device)
        least = torch.full_like(u, self.corruption.t_min)
        times = {name: torch.where(u < self.clean, least, t) for name, t in times.items()}
        local = field_times(times, batch)
        noisy = State(
            {
                name: path.corrupt(path.space.anchor(batch[name], context), local[name], context,
                                   draws, f"objective/{name}", step)
                for name, path in paths.items()
            },
            context,
        )  # fmt: skip
        losses = {}
        for name, (m, log_v) in predictor.standardised(noisy, local).items():
            mean, std = predictor.statistics[name]
            z = (context.conditions[name] - mean) / std
            known = ~z.isnan()
            error = torch.where(known, z - m, torch.zeros_like(m))
            losses[name] = known * 0.5 * (error**2 * (-log_v).exp() + log_v)
        total = torch.stack(list(losses.values())).mean(0)
        return Losses(total, losses, times[""])
