"""The plan of a run: passes from noise to data, with the churn and restarts that are asked for.

A pass is one way down a grid: to the data, or to a level above them. A run is one pass; with
restarts (:mod:`sciflow.samplers.sampler`) it is a first pass through ``restart_low``, where so many
rounds from ``restart_time`` down to ``restart_low`` are put in. All calls together are ``steps``,
each made ``recurrence`` times.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from sciflow.paths import CategoricalPath, GaussianPath, Path
from sciflow.samplers.churn import churned
from sciflow.samplers.grids import given_times, time_grid
from sciflow.samplers.methods import METHODS
from sciflow.samplers.plan import Plan
from sciflow.samplers.settings import SamplerSettings

__all__ = ["pace_setter", "plan_of"]


def plan_of(settings: SamplerSettings, paths: Mapping[str, Path], begin: float = 1.0) -> Plan:
    """The intervals of a run, one network call each.

    Args:
        settings: of the sampler.
        paths: of the fields; :func:`pace_setter` says whose schedule the grid is on.
        begin: the time of the shared clock to begin at.
    """
    again = int(settings.steps * settings.restart_share + 1e-9) if settings.restarts else 0
    low, high = settings.restart_low, min(settings.restart_time, begin)
    if low < high and (part := _pass(settings, paths, again, high, low)):
        left = settings.steps - settings.restarts * (len(part) // settings.recurrence)
        if plan := _pass(settings, paths, left, begin, through=low):
            return plan.restarted(part, settings.restarts)
    return _pass(settings, paths, settings.steps, begin)


def pace_setter(paths: Mapping[str, Path]) -> Path:
    """The path on whose schedule a grid is spaced.

    The first Gaussian one; else the first on a manifold; else, of tokens alone, the first.
    """
    every = list(paths.values())
    smooth = [p for p in every if not isinstance(p, CategoricalPath)]
    gaussian = [p for p in smooth if isinstance(p, GaussianPath)]
    return (gaussian or smooth or every)[0]


def _pass(
    settings: SamplerSettings, paths: Mapping[str, Path], calls: int, begin: float,
    end: float = 0.0, through: float = 0.0,
) -> Plan:  # fmt: skip
    """One way down in ``calls`` calls; empty if those are too few to end or pass there."""
    pace = pace_setter(paths)
    twice = METHODS[settings.method].doubled
    steps = (calls + (end == 0)) // 2 if twice else calls
    if steps < 1 + (through > 0):
        return Plan.along(torch.zeros(1))
    if end > 0:
        times = _down_to(end, _times(settings, pace, 1000, begin, logsnr_last=5.0), steps)
    else:
        times = _times(settings, pace, steps, begin, settings.logsnr_last)
    if through > 0:
        times[1:-1][(times[1:-1] - through).abs().argmin()] = through
    plan = Plan.along(times)
    if settings.churn > 0:
        plan = churned(plan, pace.schedule, settings.churn, settings.churn_min, settings.churn_max)
    # Before doubling: what is repeated is a step, with both of its calls.
    plan = plan.repeated(settings.recurrence)
    return plan.doubled() if twice else plan


def _times(
    settings: SamplerSettings, pace: Path, n: int, begin: float, logsnr_last: float
) -> Tensor:
    if not isinstance(settings.grid, str):
        return given_times(settings.grid, n, begin)
    # A token has no noise to be small against: its times are spaced equally.
    kind = "time" if isinstance(pace, CategoricalPath) else settings.grid
    # Angles spread over their whole circle: one unit of noise.
    data_std = pace.data_std if isinstance(pace, GaussianPath) else 1.0
    return time_grid(kind, pace.schedule, n, logsnr_last=logsnr_last, begin=begin,
                     data_std=data_std)  # fmt: skip


def _down_to(end: float, fine: Tensor, n: int) -> Tensor:
    """n + 1 times to ``end``, spaced as the falling grid ``fine`` is."""
    place = np.interp(-end, -fine.numpy(), np.arange(len(fine)))
    times = np.interp(np.linspace(0, place, n + 1), np.arange(len(fine)), fine.numpy())
    times[-1] = end
    return torch.from_numpy(times)
