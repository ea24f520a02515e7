"""What a user asks for: a value, or a range, of a property.

``gap=6``, ``gap=5..6``, ``gap=5..`` (at least 5), ``gap=..6`` and ``gap=..`` (as in the training
data: each sample is asked for the value of a random training record of its size); from Python,
``{"gap": 6.0}`` or ``{"gap": (5.0, 6.0)}``, with ``±math.inf`` for an open end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sciflow.errors import InputError

__all__ = ["Target", "as_targets", "parse_targets"]


@dataclass(frozen=True)
class Target:
    """Values from ``low`` to ``high``, either of which may be infinite; one value if equal."""

    low: float
    high: float

    def __post_init__(self) -> None:
        ends_wrong = self.low == math.inf or self.high == -math.inf
        if ends_wrong or not self.low <= self.high:
            raise InputError(
                f"a target must be a value or a rising range, not {self.low:g}..{self.high:g}"
            )

    @property
    def is_point(self) -> bool:
        """One value is asked for."""
        return self.low == self.high

    def distance(self, value: float) -> float:
        """How far ``value`` lies outside."""
        return max(self.low - value, value - self.high, 0.0)

    def __str__(self) -> str:
        if self.is_point:
            return f"{self.low:.12g}"
        low, high = ("" if math.isinf(end) else f"{end:.12g}" for end in (self.low, self.high))
        return f"{low}..{high}"


def as_targets(
    wanted: Mapping[str, float | tuple[float, float] | Target], allowed: Iterable[str]
) -> dict[str, Target]:
    """Targets from plain numbers and pairs.

    Raises:
        InputError: a property that ``allowed`` does not hold, a range upside down, no number.
    """
    allowed = list(allowed)
    targets = {}
    for name, value in wanted.items():
        if name not in allowed:
            raise InputError(f"this model has no property {name!r}; it has: {', '.join(allowed)}")
        if isinstance(value, Target):
            targets[name] = value
            continue
        ends = tuple(value) if isinstance(value, tuple | list) else (value, value)
        if len(ends) != 2:
            raise InputError(f"a range of {name} needs two ends, not {len(ends)}")
        try:
            low, high = (float(end) for end in ends)
        except (TypeError, ValueError):
            raise InputError(
                f"a target is a number or a pair of them; {name} is {value!r}"
            ) from None
        targets[name] = Target(low, high)
    return targets


def parse_targets(texts: Iterable[str]) -> dict[str, float | tuple[float, float] | Target]:
    """Targets from ``NAME=VALUE`` or ``NAME=LOW..HIGH``."""
    wanted: dict[str, float | tuple[float, float] | Target] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        low, dots, high = value.partition("..")
        try:
            if not (equals and name.strip()):
                raise ValueError
            ends = Target(
                float(low) if low.strip() or not dots else -math.inf,
                float(high if high.strip() else math.inf) if dots else float(low),
            )
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"target {text!r}: write NAME=VALUE or NAME=LOW..HIGH") from error
        if name.strip() in wanted:
            raise InputError(f"target {name.strip()!r} is given twice")
        wanted[name.strip()] = ends
    return wanted
