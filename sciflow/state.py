"""What a sampler integrates: a batch of named fields, and the context that stays fixed meanwhile.

A :class:`State` holds fields ``{name: Tensor [B, ...]}``, padded to a common size. Its
:class:`Context` says what is real (mask), what is wanted (conditions) and what is given (elements
whose value is known and must not move). A sampler asks a state for nothing but its fields; the
geometry of a field is its :class:`~sciflow.spaces.Space`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

__all__ = ["Context", "State", "Times", "field_times"]

Times = Tensor | Mapping[str, Tensor]
"""A time for all fields, or one a field; each ``[]``, ``[B]`` or one an element, ``[B, N]``."""


def _each(tensors: Mapping[str, Tensor], f: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    return {name: f(value) for name, value in tensors.items()}


@dataclass(frozen=True)
class Context:
    """What does not change while a batch is sampled.

    Attributes:
        mask: bool ``[B, N]`` (or ``[B, *elements]``), true where an element is real.
        conditions: wanted values, ``{name: [B, ...]}``; NaN means "not asked for".
        given: bool ``[B, N]`` a field, true where the field's element is known and kept.
        extras: further fixed tensors ``[B, ...]`` (edges, covariates, coordinates of a grid).
    """

    mask: Tensor
    conditions: dict[str, Tensor] = field(default_factory=dict)
    given: dict[str, Tensor] = field(default_factory=dict)
    extras: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.mask)

    @property
    def lengths(self) -> Tensor:
        """Number of real elements of each sample, int64 ``[B]``."""
        return self.mask.flatten(1).sum(1)

    def apply(self, f: Callable[[Tensor], Tensor]) -> Context:
        """Apply ``f`` to every tensor."""
        return Context(
            f(self.mask),
            _each(self.conditions, f),
            _each(self.given, f),
            _each(self.extras, f),
        )

    def replace(self, **changes: object) -> Context:
        """A copy with some attributes changed."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def unconditional(self) -> Context:
        """The same context with every condition "not asked for"."""
        return self.replace(
            conditions=_each(self.conditions, lambda c: torch.full_like(c, torch.nan))
        )


@dataclass(frozen=True)
class State(Mapping[str, Tensor]):
    """A batch of named fields with its context.

    Attributes:
        fields: ``{name: Tensor [B, ...]}``.
        context: see :class:`Context`.
    """

    fields: dict[str, Tensor]
    context: Context

    def __getitem__(self, name: str) -> Tensor:
        return self.fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self.fields)

    @property
    def batch_size(self) -> int:
        """Number of samples."""
        return len(self.context)

    @property
    def device(self) -> torch.device:
        """Where the batch lies."""
        return self.context.mask.device

    def replace(self, **fields: Tensor) -> State:
        """A copy with some fields changed."""
        return State({**self.fields, **fields}, self.context)

    def apply(self, f: Callable[[Tensor], Tensor]) -> State:
        """Apply ``f`` to every tensor of fields and context."""
        return State(_each(self.fields, f), self.context.apply(f))

    def index(self, rows: Tensor | slice) -> State:
        """Some samples of the batch, in the order of ``rows``."""
        return self.apply(lambda x: x[rows])

    def repeat(self, k: int) -> State:
        """Each sample ``k`` times in a row: ``[B·k, ...]``."""
        return self.apply(lambda x: x.repeat_interleave(k, 0))

    def to(self, target: torch.device | str | torch.dtype) -> State:
        """Move to a device, or change the floating-point type."""
        if isinstance(target, torch.dtype):
            return self.apply(lambda x: x.to(target) if x.is_floating_point() else x)
        return self.apply(lambda x: x.to(target))


def field_times(t: Times | float, state: State) -> dict[str, Tensor]:
    """One time a field, each ``[B]`` or ``[B, N]``, with time 0 where an element is given."""
    times: dict[str, Tensor] = {}
    for name, x in state.fields.items():
        value = t[name] if isinstance(t, Mapping) else t
        # A plain number comes from a grid in float64, whose coefficients are float64 too.
        kind = None if isinstance(value, Tensor) else torch.float64
        value = torch.as_tensor(value, dtype=kind, device=x.device)
        if not value.is_floating_point():
            value = value.to(torch.get_default_dtype())
        if value.ndim == 0:
            value = value.expand(state.batch_size)
        given = state.context.given.get(name)
        if given is not None:
            value = value.reshape(value.shape + (1,) * (given.ndim - value.ndim))
            value = torch.where(given, torch.zeros_like(value), value)
        times[name] = value
    return times
