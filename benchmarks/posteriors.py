"""Measurements whose posterior is known: the problems, the meter, and how samples are judged.

Exact posteriors are mixtures again for linear measurements (:class:`Exact`), and a sum over a grid
for any other of two numbers (:class:`Cloud`). Both answer with moments, with the distribution of
projections and with draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.guidance import MatrixMeasurement, NonlinearMeasurement
from sciflow.random import Draws
from sciflow.state import State, Times
from sciflow.testing.targets import GaussianMixture

__all__ = ["Cloud", "Exact", "Measured", "Metered", "judge", "lines_of", "most_steps", "problem",
           "w1"]  # fmt: skip


class Metered(Denoiser):
    """A target that counts its ``calls``: evaluations, and products with its gradient."""

    def __init__(self, mixture: GaussianMixture):
        super().__init__()
        self.mixture, self.paths, self.calls = mixture, mixture.paths, 0

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        prediction = self.mixture(state, t, previous)
        self.calls += 1
        for x in prediction.clean.values():
            if x.requires_grad:
                x.register_hook(self._product)
        return prediction

    def _product(self, gradient: Tensor) -> None:
        self.calls += 1


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes:
        y: ``[B, m]``.
        instrument: of the field x ``[B, 1, d]``.
    """

    y: Tensor
    instrument: MatrixMeasurement | NonlinearMeasurement

    def rows(self, index: Tensor | slice) -> Measured:
        return Measured(self.y[index], self.instrument.rows(index))

    def log_f(self, clean: State) -> Tensor:
        """log p(y | x), ``[B]``, up to a constant."""
        left = self.y.to(clean["x"]) - self.instrument.apply(clean["x"])
        return -0.5 * (left * self.instrument.precision(left)).sum(1)


def most_steps(goal: Metered, calls: int, sample: Callable[[int, int], tuple[Tensor, int]],
               n: int) -> tuple[Tensor, int]:  # fmt: skip
    """What ``sample(steps, n)`` gives with as many steps as the calls that it returns allow.

    Returns:
        The samples, and the steps. What finding them took is not the method's cost:
        ``goal.calls`` are those of the samples.
    """
    low, high = 1, calls + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if sample(middle, 1)[1] <= calls else (low, middle)
    goal.calls = 0
    x, goal.calls = sample(low, n)
    return x, low


@dataclass(frozen=True)
class Exact:
    """The posterior of a mixture for each of Y measurements.

    Attributes:
        log_weights: ``[Y, K]``.
        means: ``[Y, K, d]``.
        covariances: ``[K, d, d]``; they do not depend on y.
    """

    log_weights: Tensor
    means: Tensor
    covariances: Tensor

    @classmethod
    def of(cls, goal: GaussianMixture, a: Tensor, variance: float, y: Tensor) -> Exact:
        prior = (goal.vectors * goal.values[:, None]) @ goal.vectors.mT
        seen = a @ prior @ a.mT + variance * torch.eye(len(a), dtype=torch.float64)
        gain = torch.linalg.solve(seen, a @ prior).mT
        left = y[:, None] - goal.means @ a.mT
        evidence = torch.distributions.MultivariateNormal(torch.zeros(len(a)).double(), seen)
        means = goal.means + torch.einsum("kdm,ykm->ykd", gain, left)
        log_weights = (goal.log_weights + evidence.log_prob(left)).log_softmax(-1)
        return cls(log_weights, means, prior - gain @ a @ prior)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean ``[Y, d]`` and covariance ``[Y, d, d]``."""
        w = self.log_weights.exp()
        mean = torch.einsum("yk,ykd->yd", w, self.means)
        left = self.means - mean[:, None]
        between = torch.einsum("yk,ykd,yke->yde", w, left, left)
        return mean, torch.einsum("yk,kde->yde", w, self.covariances) + between

    def cdf(self, x: Tensor, lines: Tensor) -> Tensor:
        """Of u·x for samples ``[Y, n, d]`` and lines ``[R, d]``: ``[Y, n, R]``."""
        sd = torch.einsum("rd,kde,re->rk", lines, self.covariances, lines).sqrt()
        middle = torch.einsum("rd,ykd->yrk", lines, self.means)
        z = ((x @ lines.mT)[..., None] - middle[:, None]) / sd
        p = torch.special.ndtr(z)
        return (p * self.log_weights.exp()[:, None, None]).sum(-1)

    def sample(self, n: int, draws: Draws) -> Tensor:
        """``[Y, n, d]``."""
        y, k, d = self.means.shape
        u = draws.uniform((), "component", dtype=torch.float64).view(y, n)
        edges = self.log_weights.exp().cumsum(-1)[:, None]
        pick = (u[..., None] > edges).sum(-1).clamp(max=k - 1)
        root = torch.linalg.cholesky(self.covariances)
        z = draws.normal((d,), "exact", dtype=torch.float64).view(y, n, d)
        mean = self.means.gather(1, pick[..., None].expand(y, n, d))
        return mean + (root[pick] @ z[..., None])[..., 0]


@dataclass(frozen=True)
class Cloud:
    """The posterior of two numbers for each of Y measurements, as weights of the points of a grid.

    Attributes:
        points: ``[M, d]``.
        weights: ``[Y, M]``, sum 1.
    """

    points: Tensor
    weights: Tensor

    @classmethod
    def of(cls, goal: GaussianMixture, log_f: Callable[[Tensor], Tensor], reach: float = 2.0,
           n: int = 400) -> Cloud:  # fmt: skip
        """Prior times likelihood on n x n points of [-reach, reach]^2, normalised.

        Args:
            goal: the prior, of two numbers.
            log_f: points ``[M, 2]`` to log-likelihoods of the Y measurements ``[Y, M]``.
            reach: of the grid.
            n: points along an axis.
        """
        axis = (torch.arange(n, dtype=torch.float64) + 0.5) / n * 2 * reach - reach
        points = torch.cartesian_prod(axis, axis)
        one = torch.ones(len(points), dtype=torch.float64)
        log_p = goal.log_density(points, one, 0 * one) + log_f(points)
        # What has no weight anywhere only costs time.
        p = log_p.softmax(1)
        kept = (p > 1e-9 * p.amax(1, keepdim=True)).any(0)
        p = p[:, kept]
        return cls(points[kept], p / p.sum(1, keepdim=True))

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean ``[Y, d]`` and covariance ``[Y, d, d]``."""
        mean = self.weights @ self.points
        square = torch.einsum("ym,md,me->yde", self.weights, self.points, self.points)
        return mean, square - mean[:, :, None] * mean[:, None]

    def cdf(self, x: Tensor, lines: Tensor) -> Tensor:
        """Of u·x for samples ``[Y, n, d]`` and lines ``[R, d]``: ``[Y, n, R]``."""
        answer = []
        for u in lines:
            places, order = (self.points @ u).sort()
            w = self.weights[:, order]
            # A point stands for the middle of its cell.
            total = w.cumsum(1) - 0.5 * w
            at = (x @ u).contiguous()
            upper = torch.searchsorted(places, at).clamp(1, len(places) - 1)
            low, high = places[upper - 1], places[upper]
            share = ((at - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
            left, right = total.gather(1, upper - 1), total.gather(1, upper)
            answer.append(left + share * (right - left))
        return torch.stack(answer, -1)

    def sample(self, n: int, draws: Draws) -> Tensor:
        """``[Y, n, d]``, of the points."""
        u = draws.uniform((), "point", dtype=torch.float64).view(len(self.weights), n)
        rows = torch.searchsorted(self.weights.cumsum(1), u.contiguous()).clamp(
            max=len(self.points) - 1
        )
        return self.points[rows]


def w1(x: Tensor, exact: Exact | Cloud, lines: Tensor) -> Tensor:
    """Of each measurement ``[Y]``: distance of the exact cdf at samples ``[Y, n, d]`` from uniform.

    The mean over lines of the 1-Wasserstein distance of the law of the exact posterior's cdf at the
    samples from the uniform law, whose own samples have about 0.3/sqrt(n).
    """
    p = exact.cdf(x, lines).sort(dim=1).values
    ideal = (torch.arange(x.shape[1], dtype=torch.float64) + 0.5) / x.shape[1]
    return (p - ideal[:, None]).abs().mean((1, 2))


def lines_of(dimensions: int, seed: int = 7) -> Tensor:
    """16 random directions ``[16, d]``, not normalised."""
    return Draws(seed, torch.arange(16)).normal((dimensions,), "lines", dtype=torch.float64)


def judge(x: Tensor, exact: Exact | Cloud, truth: Tensor, lines: Tensor) -> dict[str, float]:
    """The columns of the table for samples ``[Y, n, d]``."""
    mean, covariance = exact.moments()
    left = x - x.mean(1, keepdim=True)
    found = left.mT @ left / (x.shape[1] - 1)
    sd = covariance.diagonal(dim1=1, dim2=2).sqrt()
    p = exact.cdf(x, lines)
    along = (x @ lines.mT).quantile(torch.tensor([0.05, 0.95]).double(), dim=1)
    at = truth @ lines.mT
    return {
        "mean": float(((x.mean(1) - mean) / sd).square().mean().sqrt()),
        "cov": float(((found - covariance).flatten(1).norm(dim=1)
                      / covariance.flatten(1).norm(dim=1)).mean()),
        "w1": float(w1(x, exact, lines).mean()),
        "in90": float(((p > 0.05) & (p < 0.95)).double().mean()),
        "truth90": float(((at > along[0]) & (at < along[1])).double().mean()),
    }  # fmt: skip


def problem(goal: GaussianMixture, sigma: float, count: int, seed: int = 1
            ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """A ``[m, d]``, the same for all seeds, truths ``[Y, d]`` and measurements ``[Y, m]``."""
    d = goal.means.shape[1]
    a = torch.tensor([[0.9, 0.436]]).double()
    if d > 2:
        a = Draws(5, torch.arange(16)).normal((d,), "rows", dtype=torch.float64) / math.sqrt(d)
    truth = goal.sample(count, seed=seed)
    noise = Draws(5 + seed, torch.arange(count)).normal((len(a),), "noise", dtype=torch.float64)
    return a, truth, truth @ a.mT + sigma * noise
