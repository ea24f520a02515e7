"""When, how strongly and on what a guidance acts: checks that all of them share."""

from __future__ import annotations

import math

from sciflow.denoisers import Denoiser
from sciflow.errors import InputError
from sciflow.paths import GaussianPath
from sciflow.state import Times

__all__ = ["acts_at", "check_interval", "check_weight", "gaussian_path"]


def check_weight(weight: float) -> None:
    """Raise an :class:`InputError` unless the weight is finite and 0 or more."""
    if not 0 <= weight < math.inf:
        raise InputError(f"guidance weight must be 0 (off) or more, not {weight}")


def check_interval(interval: tuple[float, float]) -> None:
    """Raise an :class:`InputError` unless first and last are times of the clock, in order."""
    if not 0 <= interval[0] <= interval[1] <= 1:
        raise InputError(f"guidance acts between times 0 <= first <= last <= 1, not {interval}")


def acts_at(t: Times | float, interval: tuple[float, float]) -> bool:
    """Whether the shared clock lies in the interval; other kinds of times always do."""
    return not isinstance(t, float) or interval[0] <= t <= interval[1]


def gaussian_path(denoiser: Denoiser, field: str, what: str) -> GaussianPath:
    """The path of a field that has to be Gaussian.

    Args:
        denoiser: the model.
        field: its field.
        what: needs it, e.g. "a measurement is of".

    Raises:
        InputError: there is no such field, or it is of another kind.
    """
    path = denoiser.paths.get(field)
    if not isinstance(path, GaussianPath):
        gaussian = [f for f, p in denoiser.paths.items() if isinstance(p, GaussianPath)]
        raise InputError(
            f"{what} a Gaussian field, not {field!r}; this model has: "
            + (", ".join(gaussian) or "none")
        )
    return path
