"""A whole run of the sampler as a differentiable function of the noise that it begins with.

Each call of the network is computed again on the way back (gradient checkpointing, Chen et al.
2016), so that memory does not grow with the number of calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sciflow.denoisers import Denoiser, Prediction
from sciflow.paths import CategoricalPath
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.state import Context, State, Times

__all__ = ["differentiable_sample"]


def differentiable_sample(
    sampler: Sampler,
    denoiser: Denoiser,
    context: Context,
    draws: Draws,
    start: Mapping[str, Tensor],
    given: dict[str, Tensor] | None = None,
    begin: float = 1.0,
    recompute: bool = True,
) -> tuple[State, Callable[[], int]]:
    """The sampler's own run with its graph, where grad mode is on.

    Args:
        sampler: of few steps.
        denoiser: the model, guided or not.
        context: of the batch.
        draws: of the batch.
        start: fields at ``begin``.
        given: values of given elements.
        begin: where on the shared clock to begin.
        recompute: keep no network's graph, but call it again on the way back.

    Returns:
        The clean state, tokens as the probabilities of the last estimate; and what counts the calls
        so far, those on the way back included.
    """
    model = _Recomputed(denoiser, recompute)
    state = sampler(model, context, draws, given=given, start=start, begin=begin,
                    differentiable=True).state  # fmt: skip
    assert model.last is not None
    probabilities = {f: model.last[f].softmax(-1) for f, p in denoiser.paths.items()
                     if isinstance(p, CategoricalPath)}  # fmt: skip
    return state.replace(**probabilities), lambda: model.calls


class _Recomputed(Denoiser):
    """A denoiser that forgets its graph, and counts its calls."""

    def __init__(self, denoiser: Denoiser, recompute: bool):
        super().__init__()
        self.denoiser, self.paths, self.recompute = denoiser, denoiser.paths, recompute
        self.calls, self.last = 0, None

    last: Prediction | None

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        def call(*fields: Tensor) -> dict[str, Tensor]:
            self.calls += 1
            asked = State(dict(zip(state, fields, strict=True)), state.context)
            return self.denoiser(asked, t, previous).clean

        if self.recompute and torch.is_grad_enabled():
            clean = checkpoint(call, *state.values(), use_reentrant=False,
                               preserve_rng_state=False)  # fmt: skip
        else:
            clean = call(*state.values())
        self.last = Prediction(clean)
        return self.last
