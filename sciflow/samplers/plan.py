r"""Plans: at which times the denoiser is called, and where each step ends.

A run with n network calls has n intervals (start_i → end_i), start_i ≥ end_i, the last one ending
at 0. Where start_{i+1} = end_i a trajectory simply goes on. Where start_{i+1} > end_i the state is
noised up again in between, by the forward process of each field. So one loop serves

* a grid of times,                     (t_0 → t_1), (t_1 → t_2), …, (t_{n−1} → 0);
* methods with two calls a step,       (t_0 → t_1), (t_1 → t_1), (t_1 → t_2), …;
* churn (Karras et al. 2022),          (t̂_0 → t_1), (t̂_1 → t_2), … with t̂_i above t_i;
* restarts (Xu et al. 2023),           … (t_i → low), then rounds of (high → …), …, (… → low), and
                                       on from low to 0;
* recurrence (RePaint, FreeDoM, TFG),  (t_0 → t_1), (t_0 → t_1), …, (t_1 → t_2), (t_1 → t_2), ….
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sciflow.schedules import Schedule

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """Intervals of a run, float64 ``[n]`` each; see the module's text.

    Attributes:
        start: where the denoiser is called.
        end: where the step that follows ends.
    """

    start: Tensor
    end: Tensor

    @classmethod
    def along(cls, times: Tensor) -> Plan:
        """The intervals of a falling grid of n + 1 times."""
        times = times.double()
        return cls(times[:-1], times[1:])

    def __len__(self) -> int:
        return len(self.start)

    def __iter__(self) -> Iterator[tuple[float, float]]:
        return iter(zip(self.start.tolist(), self.end.tolist(), strict=True))

    @property
    def age(self) -> list[int]:
        """For each interval, how many went before it without noise in between: 0 is a new start.

        A stepper may use so many values of its history.
        """
        ages: list[int] = []
        for i, (start, _) in enumerate(self):
            goes_on = i > 0 and start == float(self.end[i - 1])
            ages.append(ages[-1] + 1 if goes_on else 0)
        return ages

    def levels(self, schedule: Schedule) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(a, s) at the starts and (a, s) at the ends, float64 ``[n]`` each."""
        return *schedule(self.start), *schedule(self.end)

    def doubled(self) -> Plan:
        """Each inner end is called twice: 2n − 1 calls for n steps."""
        start, end = [], []
        for s, e in self:
            start.append(s)
            end.append(e)
            if e > 0:
                start.append(e)
                end.append(e)
        return Plan(*(torch.tensor(x, dtype=torch.float64) for x in (start, end)))

    def repeated(self, times: int) -> Plan:
        """Each interval ``times`` times in a row, with noise in between."""
        return Plan(self.start.repeat_interleave(times), self.end.repeat_interleave(times))

    def then(self, other: Plan) -> Plan:
        """This plan, and after it the other one."""
        return Plan(torch.cat((self.start, other.start)), torch.cat((self.end, other.end)))

    def restarted(self, again: Plan, rounds: int) -> Plan:
        """The plan with ``rounds`` of ``again`` put in where it last reaches the end of ``again``.

        Args:
            again: intervals from a higher time down to one at which this plan has an end.
            rounds: how often.
        """
        where = int((self.end == again.end[-1]).nonzero()[-1]) + 1
        plan = Plan(self.start[:where], self.end[:where])
        for _ in range(rounds):
            plan = plan.then(again)
        return plan.then(Plan(self.start[where:], self.end[where:]))
