r"""Rewards of clean samples by the targets of a run, for guides that need no gradient.

By the predictor, log p(c | x_0). By the oracle

    r(x_0) = −½ Σ_k ((value_k − c_k)/(width · σ_k))²,

σ_k the property's standard deviation over the training set; NaN where the oracle fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sciflow.errors import InputError
from sciflow.guidance.oracles.black_box import OracleReport
from sciflow.paths import CategoricalPath
from sciflow.paths import Path as FieldPath
from sciflow.state import State

if TYPE_CHECKING:
    from sciflow.model import Model

__all__ = ["OracleReward", "reward_of"]


def reward_of(
    model: Model, by: str, width: float, predictor: str | Path | None
) -> Callable[[State], Tensor]:
    """The reward of a run's targets.

    Args:
        model: of the run.
        by: "predictor" or "oracle".
        width: of the oracle's reward, in standard deviations of each property.
        predictor: by name or folder; default the model's own.

    Raises:
        InputError: there are no targets, or nobody who knows them.
    """
    if by not in ("predictor", "oracle"):
        raise InputError(f"by is predictor or oracle, not {by!r}")
    if not model.targets:
        raise InputError("particles are weighed by the targets, and there are none; give a target")
    if by == "oracle":
        if not 0 < width < math.inf:
            raise InputError(f"the width of a reward must be above 0, not {width}")
        return OracleReward(model, width)
    found = model.predictor(predictor)
    found.require(model.targets)
    return found.of_clean


class OracleReward:
    """See the module; counts the oracle's ``calls`` and ``failures``.

    Raises:
        InputError: the spread of a target over the training set is not known.
    """

    def __init__(self, model: Model, width: float, jobs: int = -1):
        self.model, self.jobs = model, jobs
        self.calls = self.failures = 0
        self.widths: dict[str, float] = {}
        for name in model.targets:
            values = model.reference.get(name, torch.zeros(0)).double()
            values = values[~values.isnan()]
            if len(values) < 2 or not float(values.std()) > 0:
                raise InputError(
                    f"this model does not know how {name} is spread over its training samples, in "
                    "units of which the oracle's reward is wide; use by=predictor"
                )
            self.widths[name] = width * float(values.std())

    @property
    def report(self) -> OracleReport:
        """What it cost."""
        return OracleReport(torch.tensor([self.calls]), torch.tensor([self.failures]))

    def __call__(self, clean: State) -> Tensor:
        """``[B]`` of clean samples, token fields as probabilities."""
        state = symbols(clean, self.model.denoiser.paths).to("cpu")
        records = self.model.domain.decode(self.model.config, state)
        answers = self.model.domain.oracle(records, list(self.widths), self.jobs)
        self.calls += len(records)
        rewards = torch.full((len(records),), math.nan, dtype=torch.float64)
        for row, answer in enumerate(answers):
            if set(self.widths) <= set(answer.values):
                wanted = {k: float(clean.context.conditions[k][row]) for k in self.widths}
                rewards[row] = -0.5 * sum(
                    ((answer.values[k] - wanted[k]) / w) ** 2 for k, w in self.widths.items()
                )
            else:
                self.failures += 1
        return rewards.to(clean.device)


def symbols(clean: State, paths: Mapping[str, FieldPath]) -> State:
    """A clean state with the likeliest symbols in place of probabilities."""
    found = {
        name: clean[name].argmax(-1)
        for name, path in paths.items()
        if isinstance(path, CategoricalPath) and clean[name].is_floating_point()
    }
    return clean.replace(**found)
