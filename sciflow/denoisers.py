r"""Denoisers: anything that maps (x_t, t) to the clean estimate D(x_t, t) = E[x_0 | x_t].

A :class:`Denoiser` answers with a :class:`Prediction`, one clean estimate a field: a mean, or
logits. :class:`NetworkDenoiser` makes one from a network and one path a field. Time enters the
network as log(s/a) of each field, so that a trained network takes any schedule at inference
(:meth:`NetworkDenoiser.reschedule`). Guidance wraps a denoiser and is a denoiser.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sciflow.paths import CategoricalPath, Path
from sciflow.schedules import Schedule
from sciflow.state import Context, State, Times, field_times

__all__ = ["Denoiser", "Network", "NetworkDenoiser", "Prediction", "network_inputs"]


@dataclass(frozen=True)
class Prediction:
    """The clean estimate of every field.

    Attributes:
        clean: ``{name: Tensor}``, a mean shaped as the field, or logits ``[B, *elements, K]``.
    """

    clean: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.clean[name]

    def detach(self) -> Prediction:
        """The same numbers, cut from the graph of gradients."""
        return Prediction({name: x.detach() for name, x in self.clean.items()})

    def index(self, rows: Tensor) -> Prediction:
        """Some samples of the batch, in the order of ``rows``."""
        return Prediction({name: x[rows] for name, x in self.clean.items()})


class Denoiser(nn.Module, ABC):
    """D(x_t, t). Subclasses hold ``paths``, one a field, and answer with a prediction."""

    paths: Mapping[str, Path]

    @abstractmethod
    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        """The clean estimate at time ``t``.

        Args:
            state: noisy fields.
            t: a time for all, one a field, one a sample or one an element.
            previous: the last estimate of the same trajectory, for self-conditioned denoisers.
        """


class Network(nn.Module, ABC):
    """The trainable function inside a :class:`NetworkDenoiser`."""

    @abstractmethod
    def forward(
        self,
        inputs: dict[str, Tensor],
        levels: dict[str, Tensor],
        context: Context,
        previous: dict[str, Tensor] | None,
    ) -> dict[str, Tensor]:
        """Outputs, one a field: shaped as the field, or logits.

        Args:
            inputs: fields of unit variance, or symbols.
            levels: log(s/a) of each field, ``[B]`` or one an element.
            context: mask, conditions, extras.
            previous: the last clean estimate (means, or probabilities), or ``None``.
        """


def network_inputs(
    paths: Mapping[str, Path],
    state: State,
    times: Mapping[str, Tensor],
    network: nn.Module | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor], torch.dtype]:
    """What a network sees of noisy fields: (inputs, levels, the type of continuous fields).

    Args:
        paths: one a field.
        state: the fields.
        times: of each field, ``[B]`` or one an element.
        network: whose type counts where all fields are tokens.
    """
    floating = [x.dtype for x in state.values() if x.is_floating_point()]
    weights = iter(()) if network is None else network.parameters()
    dtype = floating[0] if floating else next((w.dtype for w in weights), torch.get_default_dtype())
    inputs = {name: path.network_input(state[name], times[name]) for name, path in paths.items()}
    levels = {name: path.level(times[name]).to(dtype) for name, path in paths.items()}
    return inputs, levels, dtype


class NetworkDenoiser(Denoiser):
    """A network preconditioned by the path of each field.

    Args:
        network: see :class:`Network`.
        paths: one a field, in the order in which fields are reported.
        self_conditioning: hand the network its own last estimate (Chen et al. 2023).
    """

    def __init__(
        self, network: Network, paths: Mapping[str, Path], self_conditioning: bool = False
    ):
        super().__init__()
        self.network, self.paths = network, dict(paths)
        self.self_conditioning = self_conditioning

    def reschedule(self, schedules: Mapping[str, Schedule]) -> NetworkDenoiser:
        """The same network under other schedules (weights are shared, not copied)."""
        unknown = set(schedules) - set(self.paths)
        if unknown:
            raise ValueError(f"no field {sorted(unknown)}; fields: {', '.join(self.paths)}")
        paths = {
            name: path.with_schedule(schedules[name]) if name in schedules else path
            for name, path in self.paths.items()
        }
        return self.remake(paths=paths).train(self.training)

    def remake(
        self, network: Network | None = None, paths: Mapping[str, Path] | None = None
    ) -> NetworkDenoiser:
        """The same denoiser with another network or other paths; nothing is copied."""
        return NetworkDenoiser(network or self.network, paths or self.paths, self.self_conditioning)

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        times = field_times(t, state)
        inputs, levels, dtype = network_inputs(self.paths, state, times, self.network)
        feedback = None
        if self.self_conditioning and previous is not None:
            feedback = {
                name: previous[name].softmax(-1) if isinstance(path, CategoricalPath)
                else path.network_input(previous[name], torch.zeros_like(times[name]))
                for name, path in self.paths.items()
            }  # fmt: skip
        outputs = self.network(inputs, levels, state.context, feedback)
        # Under bf16 autocast a network answers in bf16; losses and steps are in full precision.
        return Prediction({
            name: path.clean(outputs[name].to(dtype), state[name], times[name], state.context)
            for name, path in self.paths.items()
        })  # fmt: skip
