"""What a user asks for: a value, or a range, of a property.

``gap=6``, ``gap=5..6`` and, from Python, ``{"gap": 6.0}`` or ``{"gap": (5.0, 6.0)}``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sciflow.errors import InputError

__all__ = ["Target", "as_targets", "parse_targets"]


@dataclass(frozen=True)
class Target:
    """Values from ``low`` to ``high``; one value where they are equal."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise InputError(f"a target must be a finite value or range, not {self.low}..{self.high}")

    @property
    def is_point(self) -> bool:
        """One value is asked for."""
        return self.low == self.high

    def distance(self, value: float) -> float:
        """How far ``value`` lies outside."""
        return max(self.low - value, value - self.high, 0.0)

    def __str__(self) -> str:
        return f"{self.low:g}" if self.is_point else f"{self.low:g}..{self.high:g}"


def as_targets(
    wanted: Mapping[str, float | tuple[float, float] | Target], allowed: Iterable[str]
) -> dict[str, Target]:
    """Targets from plain numbers and pairs.

    Raises:
        InputError: a property that ``allowed`` does not hold, or a range upside down.
    """
    allowed = list(allowed)
    targets = {}
    for name, value in wanted.items():
        if name not in allowed:
            raise InputError(f"this model has no property {name!r}; it has: {', '.join(allowed)}")
        if isinstance(value, Target):
            targets[name] = value
        elif isinstance(value, tuple | list):
            if len(value) != 2:
                raise InputError(f"a range of {name} needs two ends, not {len(value)}")
            targets[name] = Target(float(value[0]), float(value[1]))
        else:
            targets[name] = Target(float(value), float(value))
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
            ends = Target(float(low), float(high if dots else low))
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"target {text!r}: write NAME=VALUE or NAME=LOW..HIGH") from error
        if name.strip() in wanted:
            raise InputError(f"target {name.strip()!r} is given twice")
        wanted[name.strip()] = ends
    return wanted
