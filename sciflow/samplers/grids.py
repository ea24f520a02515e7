r"""Time grids: where the denoiser is called.

A grid of n calls is t_0 > t_1 > … > t_n = 0. The first n times are where the network is evaluated;
the last interval ends in the data, so that its step is the final denoising.

* ``power-u``:        u^{2/3} equally spaced, u = s/(3σ a + s) with σ the data's standard deviation;
* ``fine-u``:         u^{3/4} equally spaced, u = s/(σ a + s): more calls near the data;
* ``uniform-u``:      u = s/(a + s) equally spaced;
* ``uniform-logsnr``: λ = log(a/s) equally spaced;
* ``karras``:         σ = s/a with σ^{1/7} equally spaced (Karras et al. 2022);
* ``time``:           t equally spaced.

``power-u`` is the default; its two numbers have reasons. *The exponent*: the final denoising errs
by O(s_{n−1}²), as it leaves out what of the data is narrower than the noise it starts from, while a
method of order q errs by O(n^{−q}) before it. The two stay in balance at every n where the noise of
the last call falls as n^{−q/2}: u^{2/q} equally spaced, which is 2/3 at order 3 (and ``uniform-u``
at order 2). *The scale*: u is equally spaced in the angle of noise against data where data have
one scale. But several elements together decide between modes, which are farther apart than the
spread σ of one element, and a mode once missed is not mended: 3σ puts calls up there, which
``uniform-u`` crosses in one stride from pure noise. In units of σ the grid is that of the data
whatever their unit. With 20 calls or more no stride is that long, and ``fine-u`` can spend them on
details (a third less error there on the narrow modes of :mod:`benchmarks.samplers`).

A grid may also be the list of the n times of its calls, say a learned one
(:mod:`sciflow.samplers.learned_grid`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from sciflow.errors import InputError
from sciflow.schedules import Schedule

__all__ = ["GRIDS", "Spacing", "check_times", "given_times", "time_grid"]

_RHO = 7.0
_SCALE = 3.0


@dataclass(frozen=True)
class Spacing:
    """What a kind of grid spaces equally.

    Attributes:
        value: a quantity that rises with the noise, of (a, s, σ); ``None`` is the time itself.
        to_data: n equal intervals reach from the first time to the data, so that the last call
            comes nearer with n; else the n calls reach from the first level to ``logsnr_last``.
    """

    value: Callable[[Tensor, Tensor, float], Tensor] | None
    to_data: bool = True


GRIDS: dict[str, Spacing] = {
    "fine-u": Spacing(lambda a, s, std: (s / (std * a + s)) ** (3 / 4)),
    "uniform-u": Spacing(lambda a, s, std: s / (a + s)),
    "power-u": Spacing(lambda a, s, std: (s / (_SCALE * std * a + s)) ** (2 / 3)),
    "uniform-logsnr": Spacing(lambda a, s, std: s.log() - a.log(), to_data=False),
    "karras": Spacing(lambda a, s, std: (s / a) ** (1 / _RHO), to_data=False),
    "time": Spacing(None),
}


def time_grid(
    kind: str,
    schedule: Schedule,
    n: int,
    logsnr_first: float = -7.0,
    logsnr_last: float = 5.0,
    begin: float = 1.0,
    data_std: float = 1.0,
) -> Tensor:
    """The n + 1 times of a run with n network calls, falling, float64, the last one 0.

    Args:
        kind: a name in :data:`GRIDS`.
        schedule: the schedule of the field that sets the pace.
        n: number of network calls, at least 1.
        logsnr_first: log(a/s) at the first call, where ``kind`` cannot start at pure noise.
        logsnr_last: log(a/s) of the last call that precedes the final denoising.
        begin: the first time; the grid is that of a run which starts there.
        data_std: σ, the standard deviation of the field's data.
    """
    if kind not in GRIDS:
        raise InputError(f"unknown time grid {kind!r}; known: {', '.join(GRIDS)}")
    if n < 1:
        raise InputError(f"a sampler needs at least 1 network call, not {n}")
    if not 0 < begin <= 1:
        raise InputError(f"a grid begins at a time above 0 and at most 1, not {begin}")
    spacing = GRIDS[kind]
    first = torch.tensor(begin, dtype=torch.float64)

    def value(a: Tensor, s: Tensor) -> Tensor:
        assert spacing.value is not None
        return spacing.value(a, s, data_std)

    last = schedule.at_logsnr(torch.tensor(logsnr_last, dtype=torch.float64))
    last = torch.minimum(last, first)
    if not spacing.to_data:
        a, s = schedule(first)
        if not bool(a > 0) or float(s / a) > math.exp(-logsnr_first):
            first = schedule.at_logsnr(torch.tensor(logsnr_first, dtype=torch.float64))
    ends = [first, last] if spacing.value is None else [value(*schedule(t)) for t in (first, last)]
    if spacing.to_data:
        # The last interval is longer than the others where logsnr_last is met before.
        ends[1] = torch.maximum(ends[0] / n, ends[1])
    levels = torch.linspace(0, 1, n, dtype=torch.float64) * (ends[1] - ends[0]) + ends[0]
    times = levels if spacing.value is None else schedule.invert(value, levels)
    return torch.cat((times, torch.zeros(1, dtype=torch.float64)))


def check_times(times: Sequence[float]) -> tuple[float, ...]:
    """The times of a grid's calls as floats.

    Raises:
        InputError: they do not fall, or do not lie in (0, 1].
    """
    try:
        values = tuple(float(t) for t in times)
    except (TypeError, ValueError):
        raise InputError(f"a time grid is a name or a list of times, not {times!r}") from None
    if not values or not values[0] <= 1 or not values[-1] > 0:
        raise InputError(f"the times of a grid lie above 0 and at most at 1: {list(values)}")
    for before, after in pairwise(values):
        if not before > after:
            raise InputError(f"the times of a grid fall, but {after} comes after {before}")
    return values


def given_times(times: Sequence[float], n: int, begin: float = 1.0) -> Tensor:
    """The n + 1 times of a run that calls the denoiser at ``times``, float64, the last one 0.

    Raises:
        InputError: not n times, or the run begins below the first one.
    """
    if len(times) != n:
        raise InputError(
            f"the grid is a list of {len(times)} times, but the run has {n} steps; set steps to "
            "what the list is for, or name a kind of grid"
        )
    if times[0] > begin:
        raise InputError(f"the grid starts at {times[0]}, but the run begins at {begin}")
    return torch.tensor([*times, 0.0], dtype=torch.float64)
