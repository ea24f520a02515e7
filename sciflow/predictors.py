r"""What a noisy sample says about properties of the clean one: p(c | x_t), from a network.

    p(c | x_t) = Π_k N(c_k; m_k(x_t, t), v_k(x_t, t)).

Trained on noisy data by maximum likelihood (:mod:`sciflow.objectives.properties`), m tends to
E[c | x_t] and v to what x_t leaves open. Its gradient turns a denoiser into a conditional one
(:mod:`sciflow.guidance.energy.classifier`); at t = 0 it is a fast stand-in for the oracle. Of
symbols it can be given weights in place of one symbol an element, so that a gradient reaches them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sciflow.bundled import bundled_predictors
from sciflow.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from sciflow.denoisers import Network, network_inputs
from sciflow.domain import get_domain
from sciflow.errors import CheckpointError, InputError
from sciflow.paths import CategoricalPath, Path
from sciflow.schedules import Schedule
from sciflow.state import State, Times, field_times

__all__ = ["PropertyPredictor", "load_predictor", "save_predictor"]

_LOG_VARIANCE = (-9.0, 3.0)
_CLEAN = 1e-3
"""Time 0 would mark everything as given; this is the least time of training."""


class PropertyPredictor(nn.Module):
    """p(c | x_t) for several properties.

    Args:
        network: answers ``{property: [B, 2]}``, mean and log-variance in units of the statistics.
        paths: one a field, as the denoiser's.
        statistics: ``{property: (mean, std)}`` over the data.
    """

    self_conditioning = False

    def __init__(self, network: Network, paths: Mapping[str, Path],
                 statistics: Mapping[str, Sequence[float]]):  # fmt: skip
        super().__init__()
        self.network, self.paths = network, dict(paths)
        self.statistics = {k: (float(m), float(s)) for k, (m, s) in statistics.items()}

    def remake(self, network: Network | None = None,
               paths: Mapping[str, Path] | None = None) -> PropertyPredictor:  # fmt: skip
        """The same predictor with another network or other paths; nothing is copied."""
        return PropertyPredictor(network or self.network, paths or self.paths, self.statistics)

    def reschedule(self, schedules: Mapping[str, Schedule]) -> PropertyPredictor:
        """The same network under other schedules, those of the denoiser that it shall guide."""
        paths = {
            name: path.with_schedule(schedules[name]) if name in schedules else path
            for name, path in self.paths.items()
        }
        return self.remake(paths=paths).train(self.training)

    def require(self, properties: Iterable[str]) -> None:
        """Nothing, if these are properties that it predicts.

        Raises:
            InputError: one is not.
        """
        if unknown := sorted(set(properties) - set(self.statistics)):
            raise InputError(
                f"the predictor does not know {unknown[0]!r}; it knows: "
                f"{', '.join(self.statistics)}"
            )

    def forward(self, state: State, t: Times | float) -> dict[str, tuple[Tensor, Tensor]]:
        """``{property: (m, v)}``, each ``[B]``, in the units of the property.

        Args:
            state: noisy fields; of token fields symbols, or weights ``[B, *elements, S]``.
            t: a time for all, one a field, one a sample or one an element.
        """
        answer = {}
        for name, (m, log_v) in self.standardised(state, t).items():
            mean, std = self.statistics[name]
            answer[name] = (mean + std * m, std**2 * log_v.exp())
        return answer

    def standardised(self, state: State, t: Times | float) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and log-variance in units of the statistics, each ``[B]``."""
        inputs, levels, _ = network_inputs(self.paths, state, field_times(t, state))
        outputs = self.network(inputs, levels, state.context, None)
        return {
            name: (y[:, 0], y[:, 1].clamp(*_LOG_VARIANCE)) for name, y in outputs.items()
        }  # fmt: skip

    def log_prob(self, state: State, t: Times | float, wanted: Mapping[str, Tensor]) -> Tensor:
        """log p(c | x_t) of the wanted values, ``[B]``; NaN is not asked for and counts 0.

        Raises:
            InputError: a property that the predictor does not know.
        """
        self.require(wanted)
        total = torch.zeros(len(state.context), device=state.device)
        for name, (m, log_v) in self.standardised(state, t).items():
            if name not in wanted:
                continue
            mean, std = self.statistics[name]
            z = ((wanted[name] - mean) / std).to(m)
            asked = ~z.isnan()
            z = torch.where(asked, z, m.detach())
            log_p = -0.5 * ((z - m) ** 2 * (-log_v).exp() + log_v + math.log(2 * math.pi))
            total = total + torch.where(asked, log_p, torch.zeros_like(log_p))
        return total

    def of_clean(self, clean: State) -> Tensor:
        """log p(c | x_0) of a clean estimate, ``[B]``; c are the conditions of its context.

        Args:
            clean: token fields as probabilities of the K classes, ``[B, *elements, K]``, or as
                symbols.
        """
        fields = dict(clean.fields)
        for name, path in self.paths.items():
            x = fields[name]
            if isinstance(path, CategoricalPath) and x.is_floating_point():
                fields[name] = F.pad(x, (0, path.symbols - x.shape[-1]))
        wanted = {k: v for k, v in clean.context.conditions.items() if k in self.statistics}
        return self.log_prob(State(fields, clean.context), _CLEAN, wanted)


def save_predictor(folder: str | FilePath, predictor: PropertyPredictor, config: Mapping[str, Any],
                   card: str = "") -> FilePath:  # fmt: skip
    """Write a predictor as a checkpoint folder: plain data with a manifest, like a model."""
    tensors = {f"network/{k}": v for k, v in predictor.network.state_dict().items()}
    return save_checkpoint(folder, Checkpoint(dict(config), tensors, card))


def load_predictor(name: str | FilePath) -> PropertyPredictor:
    """A predictor from its folder, or the one that ships for a bundled model, by its name.

    Raises:
        InputError: there is none.
        CheckpointError: its files are damaged, or hold something else.
    """
    shipped = bundled_predictors()
    folder = shipped.get(str(name), FilePath(name))
    if not folder.is_dir():
        raise InputError(
            f"no predictor {str(name)!r}: neither a folder nor one of "
            f"{', '.join(sorted(shipped)) or '(none)'}; `sciflow train --predict` makes one"
        )
    checkpoint = load_checkpoint(folder)
    if "predicts" not in checkpoint.config:
        raise CheckpointError(f"{folder}: a generative model, not a predictor of properties")
    predictor = get_domain(checkpoint.config["domain"]).predictor(checkpoint.config)
    try:
        predictor.network.load_state_dict(checkpoint.part("network"))
    except RuntimeError as error:
        raise CheckpointError(f"{folder}: weights of another network ({error})") from error
    return predictor.eval().requires_grad_(False)
