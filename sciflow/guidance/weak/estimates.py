r"""Weak models made from a model by telling it less, or something wrong.

Each is a denoiser of its own, for :class:`~sciflow.guidance.weak.away.MoveAway`:

* :class:`Unasked`: conditions not asked for (classifier-free guidance; with another, unconditional
  model no wrapper is needed);
* :class:`Instead`: other conditions in their place (negative conditions);
* :class:`IndependentCondition`: conditions drawn from a pool without regard to the sample (ICG,
  Sadat et al. 2024, *No training, no problem*): their mean over draws is the unconditional model,
  for models that never learned "not asked for";
* :class:`PerturbedTime`: the wrong time (TSG, same paper), for models without conditions,

      t̃ = t + scale · t^power · z,      z ~ N(0, 1), or 1.

Random ones take the samples' numbers from ``context.extras["sample"]``, so that a sample does not
depend on its batch; the draw at a time is a function of (seed, sample, time) alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.guidance.oracles.oracle_guidance import SAMPLE
from sciflow.random import Draws
from sciflow.state import State, Times

__all__ = ["IndependentCondition", "Instead", "PerturbedTime", "Unasked", "draws_of"]

_EARLIEST = 0.1


def draws_of(state: State, seed: int) -> Draws:
    """Random numbers of the samples of a batch, by the numbers in ``context.extras["sample"]``.

    Raises:
        InputError: the context does not number its samples.
    """
    numbers = state.context.extras.get(SAMPLE)
    if numbers is None:
        raise InputError(
            f"a random weak model needs the number of each sample in context.extras[{SAMPLE!r}]; "
            "make the context with sciflow.guidance.numbered(context, draws)"
        )
    return Draws(seed, numbers.cpu())


class Unasked(Denoiser):
    """The model asked for less.

    Args:
        denoiser: accepts NaN as "not asked for".
        names: conditions that are dropped; default all.
    """

    def __init__(self, denoiser: Denoiser, names: Sequence[str] | None = None):
        super().__init__()
        self.denoiser, self.paths = denoiser, denoiser.paths
        self.names = None if names is None else list(names)

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        context = state.context
        bare = context.unconditional()
        if self.names is not None:
            _check_names(self.names, context.conditions)
            changed = {name: bare.conditions[name] for name in self.names}
            bare = context.replace(conditions={**context.conditions, **changed})
        return self.denoiser(State(state.fields, bare), t, previous)


class Instead(Denoiser):
    """The model asked for something else.

    Args:
        denoiser: the model.
        conditions: what it is asked for, a number for all samples or ``[B, ...]``; others stay as
            they are (NaN drops one).
    """

    def __init__(self, denoiser: Denoiser, conditions: Mapping[str, float | Tensor]):
        super().__init__()
        self.denoiser, self.paths = denoiser, denoiser.paths
        self.conditions = dict(conditions)

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        context = state.context
        _check_names(self.conditions, context.conditions)
        changed = {}
        for name, value in self.conditions.items():
            old = context.conditions[name]
            changed[name] = torch.as_tensor(value, dtype=old.dtype, device=old.device) \
                .expand_as(old)  # fmt: skip
        context = context.replace(conditions={**context.conditions, **changed})
        return self.denoiser(State(state.fields, context), t, previous)


class IndependentCondition(Denoiser):
    """The model asked for what another, random sample has; what is not asked for stays so.

    Args:
        denoiser: the model.
        pool: ``{condition: [M, ...]}``, values of M samples, of the training set for example; row
            by row, so that conditions that belong together stay together.
        seed: of the draws.
    """

    def __init__(self, denoiser: Denoiser, pool: Mapping[str, Tensor], seed: int = 0):
        super().__init__()
        sizes = {len(values) for values in pool.values()}
        if len(sizes) != 1 or 0 in sizes:
            raise InputError(
                "a pool of conditions has the same number of rows, at least one, for each; this "
                f"has {dict((name, len(values)) for name, values in pool.items())}"
            )
        self.denoiser, self.paths, self.seed = denoiser, denoiser.paths, seed
        self.pool, self.size = dict(pool), sizes.pop()

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        context = state.context
        _check_names(self.pool, context.conditions)
        rows = draws_of(state, self.seed).integers(self.size, "independent", _step(t))
        changed = {}
        for name, values in self.pool.items():
            old = context.conditions[name]
            changed[name] = torch.where(old.isnan(), old, values[rows].to(old))
        context = context.replace(conditions={**context.conditions, **changed})
        return self.denoiser(State(state.fields, context), t, previous)


class PerturbedTime(Denoiser):
    """The model told another time than that of the noise.

    Args:
        denoiser: the model.
        scale: how far; see the module. The told time lies between t/10 and 1.
        power: exponent of t, above 0: clean elements stay clean.
        seed: of z, one number a sample and time; ``None`` for z = 1, told of more noise (of less,
            if the scale is negative).
    """

    def __init__(self, denoiser: Denoiser, scale: float, power: float = 1.0, seed: int | None = 0):
        super().__init__()
        if not math.isfinite(scale) or not power > 0:
            raise InputError(f"scale must be finite and power above 0, not {scale} and {power}")
        self.denoiser, self.paths = denoiser, denoiser.paths
        self.scale, self.power, self.seed = scale, power, seed

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        z = torch.ones(state.batch_size, dtype=torch.float64, device=state.device)
        if self.seed is not None:
            draws = draws_of(state, self.seed)
            z = draws.normal((), "time", _step(t), torch.float64, state.device)
        told = {name: self._told(t[name], z) for name in t} if isinstance(t, Mapping) \
            else self._told(t, z)  # fmt: skip
        return self.denoiser(state, told, previous)

    def _told(self, t: Tensor | float, z: Tensor) -> Tensor:
        value = torch.as_tensor(t, dtype=torch.float64, device=z.device)
        z = z.reshape(-1, *(1,) * max(value.ndim - 1, 0))
        moved = value + self.scale * value**self.power * z
        return torch.maximum(moved, _EARLIEST * value).clamp(max=1)


def _step(t: Times | float) -> int:
    """A number for the time, so that each call of a run has draws of its own; 0 without a clock."""
    if isinstance(t, Mapping):
        t = next(iter(t.values()))
    if isinstance(t, Tensor):
        return int(float(t) * 2**31) if t.ndim == 0 else 0
    return int(t * 2**31)


def _check_names(names: Sequence[str] | Mapping[str, object], known: Mapping[str, Tensor]) -> None:
    for name in names:
        if name not in known:
            raise InputError(
                f"no condition {name!r} in this context; it has: {', '.join(known) or '(none)'}"
            )
