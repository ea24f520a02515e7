r"""Time grids: where the denoiser is called.

A grid of n calls is t_0 > t_1 > … > t_n = 0. The first n times are where the network is evaluated;
the last interval ends in the data, so that its step is the final denoising.

* ``uniform-u``:      u = s/(a + s) equally spaced (best default measured with multistep solvers);
* ``uniform-logsnr``: λ = log(a/s) equally spaced;
* ``karras``:         σ = s/a with σ^{1/7} equally spaced (Karras et al. 2022);
* ``time``:           t equally spaced.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sciflow.errors import InputError
from sciflow.schedules import Schedule

__all__ = ["GRIDS", "time_grid"]

_RHO = 7.0


def _spaced(first: Tensor, last: Tensor, n: int) -> Tensor:
    return torch.linspace(0, 1, n, dtype=torch.float64) * (last - first) + first


def _down(first: Tensor, last: Tensor, n: int) -> Tensor:
    """n equal intervals from ``first`` to 0, the last one longer if ``last`` is met before."""
    return _spaced(first, torch.maximum(first / n, last), n)


def _uniform_u(schedule: Schedule, n: int, first: Tensor, last: Tensor) -> Tensor:
    def u(a: Tensor, s: Tensor) -> Tensor:
        return s / (a + s)

    return schedule.invert(u, _down(u(*schedule(first)), u(*schedule(last)), n))


def _uniform_logsnr(schedule: Schedule, n: int, first: Tensor, last: Tensor) -> Tensor:
    targets = _spaced(-schedule.logsnr(first), -schedule.logsnr(last), n)
    return schedule.invert(lambda a, s: s.log() - a.log(), targets)


def _karras(schedule: Schedule, n: int, first: Tensor, last: Tensor) -> Tensor:
    roots = [(s / a) ** (1 / _RHO) for a, s in (schedule(first), schedule(last))]
    return schedule.invert(lambda a, s: s / a, _spaced(roots[0], roots[1], n) ** _RHO)


def _time(schedule: Schedule, n: int, first: Tensor, last: Tensor) -> Tensor:
    return _down(first, last, n)


GRIDS: dict[str, Callable[[Schedule, int, Tensor, Tensor], Tensor]] = {
    "uniform-u": _uniform_u,
    "uniform-logsnr": _uniform_logsnr,
    "karras": _karras,
    "time": _time,
}


def time_grid(
    kind: str,
    schedule: Schedule,
    n: int,
    logsnr_first: float = -7.0,
    logsnr_last: float = 5.0,
    begin: float = 1.0,
) -> Tensor:
    """The n + 1 times of a run with n network calls, falling, float64, the last one 0.

    Args:
        kind: a name in :data:`GRIDS`.
        schedule: the schedule of the field that sets the pace.
        n: number of network calls, at least 1.
        logsnr_first: log(a/s) at the first call, where ``kind`` cannot start at pure noise.
        logsnr_last: log(a/s) of the last call that precedes the final denoising.
        begin: the first time; the grid is that of a run which starts there.
    """
    if kind not in GRIDS:
        raise InputError(f"unknown time grid {kind!r}; known: {', '.join(GRIDS)}")
    if n < 1:
        raise InputError(f"a sampler needs at least 1 network call, not {n}")
    if not 0 < begin <= 1:
        raise InputError(f"a grid begins at a time above 0 and at most 1, not {begin}")
    first = torch.tensor(begin, dtype=torch.float64)

    def noise(a: Tensor, s: Tensor) -> Tensor:
        return s.log() - a.log()

    last = schedule.invert(noise, torch.tensor(-logsnr_last, dtype=torch.float64))
    last = torch.minimum(last, first)
    if kind in ("uniform-logsnr", "karras"):
        a, s = schedule(first)
        if not bool(a > 0) or float(s / a) > torch.tensor(-logsnr_first).exp():
            first = schedule.invert(noise, torch.tensor(-logsnr_first, dtype=torch.float64))
    times = GRIDS[kind](schedule, n, first, last)
    return torch.cat((times, torch.zeros(1, dtype=torch.float64)))
