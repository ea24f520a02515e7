r"""Which noise levels are trained, and how that changes in the course of training.

A :class:`TimeDistribution` turns a uniform u into a time by its quantile function, falling in u:

    beta          t ~ Beta(α, β)           uniform for α = β = 1; near the data for β > α
    logit-normal  log(s/a) ~ N(μ, σ²)      EDM's P_mean, P_std (Karras et al. 2022); on the
                                           rectified clock logit t ~ N(μ, σ²) (Esser et al. 2024)

A :class:`Curriculum` moves it with the step: between two stages times are the interpolation of
quantiles, t = (1 − w) Q_0 + w Q_1, the shortest way between distributions (Wasserstein). Starting
at high noise, the easier task, and coming down is Kim et al.'s (2024) curriculum. It is a pure
function of the step, so a resumed run goes on exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from sciflow.errors import InputError
from sciflow.random import Draws
from sciflow.schedules import Schedule

__all__ = ["Curriculum", "TimeDistribution", "stratified"]

Kind = Literal["beta", "logit-normal"]


@dataclass(frozen=True)
class TimeDistribution:
    """A distribution of training times on [low, high].

    Attributes:
        kind: see above.
        alpha: α of ``beta``.
        beta: β of ``beta``.
        mean: μ of ``logit-normal``.
        std: σ of ``logit-normal``.
        low: the distribution on [0, 1] is shrunk to [low, high].
        high: see ``low``.
        schedule: whose log(s/a) is meant by ``logit-normal``; the rectified one by default.
    """

    kind: Kind = "beta"
    alpha: float = 1.0
    beta: float = 1.0
    mean: float = 0.0
    std: float = 1.0
    low: float = 0.0
    high: float = 1.0
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InputError(
                f"unknown distribution of times {self.kind!r}; known: {', '.join(get_args(Kind))}"
            )
        if not (self.alpha > 0 and self.beta > 0 and self.std > 0):
            raise InputError(
                f"alpha, beta and std must be above 0, not {self.alpha}, {self.beta}, {self.std}"
            )
        if not 0 <= self.low < self.high <= 1:
            raise InputError(f"times lie in 0 <= low < high <= 1, not [{self.low}, {self.high}]")

    def __call__(self, u: Tensor, step: int = 0) -> Tensor:
        """Q(1 − u), the time at which a share 1 − u of the distribution lies below.

        Args:
            u: uniforms in (0, 1), any shape.
            step: of training; plays no role here.
        """
        t = self._beta(u) if self.kind == "beta" else self._logit_normal(u)
        return t if (self.low, self.high) == (0.0, 1.0) else self.low + (self.high - self.low) * t

    def config(self) -> dict[str, Any]:
        """Plain data that tells one distribution from another."""
        schedule = None if self.schedule is None else self.schedule.config()
        plain = {k: v for k, v in vars(self).items() if k != "schedule"}
        return {**plain, "schedule": schedule}

    def _beta(self, u: Tensor) -> Tensor:
        if self.alpha == 1.0:
            return 1 - u ** (1 / self.beta)
        if self.beta == 1.0:
            return (1 - u) ** (1 / self.alpha)
        from scipy.special import betaincinv

        t = 1 - betaincinv(self.beta, self.alpha, u.double().cpu().numpy())
        return torch.from_numpy(t).to(u)

    def _logit_normal(self, u: Tensor) -> Tensor:
        level = self.mean - self.std * torch.special.ndtri(u.double())
        if self.schedule is None:
            return level.sigmoid().to(u.dtype)
        return self.schedule.at_logsnr(-level).to(u.dtype)


@dataclass(frozen=True)
class Curriculum:
    """Distributions of times that follow one another.

    Attributes:
        stages: ``(step, distribution)``, steps rising: the distribution that holds at that step.
            Before the first and after the last stage nothing changes.
    """

    stages: Sequence[tuple[int, TimeDistribution]]

    def __post_init__(self) -> None:
        steps = [k for k, _ in self.stages]
        if not steps or steps != sorted(set(steps)) or steps[0] < 0:
            raise InputError(
                f"a curriculum needs stages at rising steps from 0 on, not at {steps}; give "
                "[(step, distribution), ...]"
            )

    def __call__(self, u: Tensor, step: int = 0) -> Tensor:
        """Times of training step ``step``; see :meth:`TimeDistribution.__call__`."""
        after = next((i for i, (k, _) in enumerate(self.stages) if k > step), len(self.stages))
        if after in (0, len(self.stages)):
            return self.stages[max(after - 1, 0)][1](u)
        (k0, first), (k1, second) = self.stages[after - 1], self.stages[after]
        w = (step - k0) / (k1 - k0)
        return (1 - w) * first(u) + w * second(u)

    def config(self) -> list[Any]:
        """Plain data that tells one curriculum from another."""
        return [[k, d.config()] for k, d in self.stages]


def stratified(u: Tensor, draws: Draws, stream: str, step: int) -> Tensor:
    r"""Uniforms of which each of the B equal parts of (0, 1) holds exactly one.

        u'_i = (π(i) + u_i)/B,   π a random permutation of the batch, another in each step.

    Each u'_i is still uniform and independent of everything about its sample, since π comes from
    random keys, not from the order of the batch (which may be sorted by length). Only companions
    are dependent: they repel, and the mean of any function of t over the batch varies less, for a
    smooth one with variance O(B⁻³) and not O(B⁻¹).

    Args:
        u: independent uniforms ``[B]``.
        draws: of the same batch; each process stratifies its own share.
        stream: name of the random numbers.
        step: of training.
    """
    keys = draws.uniform((), stream, step, torch.float64, u.device)
    return ((keys.argsort().argsort() + u.double()) / len(u)).to(u.dtype)
