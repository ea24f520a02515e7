r"""Time told by the noise share u = s/(a + s) of one field.

Densities are integrals over noise levels. In u they look alike for every schedule: the velocity
coordinates of a Gaussian field have dz/du = ε − D, and u is the probability that an absorbing token
is masked. Several fields on one shared clock t follow the first of them, at the rate du_f/du.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sciflow.errors import InputError
from sciflow.paths import CategoricalPath, GaussianPath, Path
from sciflow.schedules import Schedule
from sciflow.state import Context, State

__all__ = ["Clock", "noise_share", "split_fields"]


def noise_share(a: Tensor, s: Tensor) -> Tensor:
    """u = s/(a + s), rising from 0 (data) to 1 (noise)."""
    return s / (a + s)


class Clock:
    """Shared time and rates as functions of the first field's u.

    Args:
        schedules: one a field; the first sets the pace.
    """

    def __init__(self, schedules: Mapping[str, Schedule]):
        self.schedules = dict(schedules)
        self.pace = next(iter(self.schedules.values()))
        self._known: dict[float, Tensor] = {}

    def prepare(self, u: Tensor) -> None:
        """Look up the times of all ``u`` that will be asked for one by one, in one pass."""
        times = self.time(u.flatten())
        self._known = dict(zip(u.flatten().tolist(), times, strict=True))

    def share(self, t: float) -> float:
        """u of the first field at time ``t``."""
        return float(noise_share(*self.pace(torch.tensor(t, dtype=torch.float64))))

    def time(self, u: Tensor) -> Tensor:
        """t at which the first field has noise share ``u``; 1 beyond its last, exactly 0 at 0."""
        if u.ndim == 0 and self._known:
            return self._known[float(u)]
        return torch.where(u > 0, self.pace.invert(noise_share, u), torch.zeros_like(u))

    def rates(self, t: Tensor) -> dict[str, Tensor]:
        """du_f/du of every field at times ``t``, shaped as ``t``."""
        one = torch.ones_like(t)
        return {
            name: one if other == self.pace else self._speed(other, t) / self._speed(self.pace, t)
            for name, other in self.schedules.items()
        }

    @staticmethod
    def _speed(schedule: Schedule, t: Tensor) -> Tensor:
        (a, s), (da, ds) = schedule(t), schedule.derivatives(t)
        return (a * ds - s * da) / (a + s) ** 2


def split_fields(
    paths: Mapping[str, Path], state: State, kind: type[GaussianPath] | type[CategoricalPath]
) -> tuple[list[str], dict[str, Tensor]]:
    """The fields whose density is asked for, and where elements are free, ``[B, *elements]``.

    Every field of another kind must be given in full: it is what the density is conditional on.

    Raises:
        InputError: a field of another kind is not given, or nothing is left.
    """
    free = {name: _free(path, name, state.context) for name, path in paths.items()}
    names = [name for name, path in paths.items() if isinstance(path, kind)]
    what = "Gaussian (flat, continuous)" if kind is GaussianPath else "token"
    for name in paths:
        if name not in names and bool(free[name].any()):
            raise InputError(
                f"this density is of {what} fields; field {name!r} is none, so all its elements "
                f"must be given: mark them in context.given[{name!r}]"
            )
    if not names:
        raise InputError(f"no {what} field among {', '.join(paths)}")
    return names, free


def _free(path: Path, name: str, context: Context) -> Tensor:
    mask = path.space.mask(context)
    given = context.given.get(name)
    return mask if given is None else mask & ~path.space.expand(given, mask)
