r"""Learned time grids: the n times at which few calls do the work of many (LD3, Tong et al. 2024).

A grid of n calls is given by n logits ξ: with u = s/(σ a + s) of the pace-setting field,

    u_k = u_0 (1 − Σ_{j≤k} softmax(ξ)_j),     u_0 fixed, u_n = 0,

and ξ is what brings the samples of n calls next to those of a teacher from the same noise,

    min_ξ Σ_i ρ(e_i),    e_i = |x^{(i)}(ξ) − x_teacher^{(i)}|,    ρ(e) = 2c² (√(1 + e²/c²) − 1),

the same solver with many calls, or any other. ρ is e² up to c, three medians of e at the first
grid, and linear beyond: where a trajectory ends in another mode e is ten times that of the rest, by
chance of the noise, and squares would see nothing else. Optionally the times told to the network
part from those of the solver ("decoupled"): told level = level + δ_k, at most half way to a
neighbour.

LD3 descends by back-propagation through the sampler. There are only n numbers, though, and a sum of
squares: differences along each of them give the whole Jacobian in n runs, and steps

    (J^T J + S + μ diag J^T J) Δ = −J^T r

(Levenberg–Marquardt; S is the secant estimate of Σ r ∇²r by Dennis, Gay & Welsch 1981, for what no
grid can bring to zero) arrive in some ten iterations where descent takes a hundred. They need no
gradient of the denoiser, so they serve every solver, guidance and black box. Grids are compared on
noise that was not learned from, and the best of them there is kept: with few samples a grid
overfits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.paths import GaussianPath
from sciflow.random import Draws
from sciflow.samplers.sampler import Sampler
from sciflow.state import Context, State, Times

__all__ = ["DecoupledTimes", "LearnedGrid", "learn_grid"]

_BEND = 3.0
_DIFFERENCE = 1e-3
_LARGEST_STEP = 1.0
_LEAST_LOGIT = -15.0


@dataclass(frozen=True)
class LearnedGrid:
    """A grid, plain data: ``Sampler(steps=len(times), grid=times)``.

    Attributes:
        times: of the calls, falling.
        told: what the network is told at each of them; ``None`` is the same times. See
            :class:`DecoupledTimes`.
        before: distance to the teacher on held-out noise at the first grid, √(Σ_i ρ(e_i)) over
            the root of the number of values, in standard deviations of the data.
        after: the same at this grid; never above ``before``.
    """

    times: list[float]
    told: list[float] | None
    before: float
    after: float


class DecoupledTimes(Denoiser):
    """A denoiser that is told other times than the solver works with.

    Args:
        denoiser: the model.
        times: of the solver, falling.
        told: one for each; between them the line through both neighbours.
    """

    def __init__(self, denoiser: Denoiser, times: list[float], told: list[float]):
        super().__init__()
        if len(times) != len(told):
            raise InputError(f"{len(told)} told times are not one for each of {len(times)} times")
        self.denoiser, self.paths = denoiser, denoiser.paths
        self.shift = dict(zip(times, told, strict=True))

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        """The model's estimate at the told time; other times than the grid's stay."""
        if isinstance(t, float):
            t = self.shift.get(t, t)
        return self.denoiser(state, t, previous)


def learn_grid(
    denoiser: Denoiser,
    context: Context,
    sampler: Sampler,
    draws: Draws,
    held_out: Draws,
    teacher: Sampler | None = None,
    decoupled: bool = False,
    iterations: int = 20,
    dtype: torch.dtype = torch.float64,
) -> LearnedGrid:
    """The grid of ``sampler.steps`` calls that comes closest to the teacher.

    Args:
        denoiser: the model, guided or not. Its continuous fields are compared.
        context: of a batch ``[B]``, used with both draws.
        sampler: the method, the calls, and the grid to start from; it must draw no fresh noise, or
            the teacher's path differs by chance.
        draws: noise to learn from, ``[B]``.
        held_out: noise to choose by, ``[B]``.
        teacher: default the same sampler with 20 times the calls on its default grid.
        decoupled: also learn what times the network is told.
        iterations: of Levenberg–Marquardt, each about n + 2 runs of n calls.
        dtype: of the runs; differences need the digits of float64.

    Raises:
        InputError: no field is continuous, or the first grid already breaks samples.
    """
    teacher = teacher or replace(sampler, steps=20 * sampler.steps, grid=Sampler.grid)
    problem = _Problem(denoiser, context, sampler, teacher, decoupled, dtype)
    learn, choose = problem.residual(draws), problem.residual(held_out)
    first = problem.first()
    before = _rms(choose(first))
    if not math.isfinite(before):
        raise InputError(
            "samples break on the grid to start from; start from another grid, or more steps"
        )
    best, after = first, before
    # A grid that gains on most must not lose more on the few that end in another mode.
    most = problem.plain
    for x in _levenberg_marquardt(learn, first, iterations):
        if (error := _rms(choose(x))) < after and problem.plain <= most:
            best, after = x, error
    times, told = problem.grid(best)
    return LearnedGrid(times, told if decoupled else None, before, after)


class _Problem:
    """Numbers → grid → samples − teacher's samples."""

    def __init__(self, denoiser: Denoiser, context: Context, sampler: Sampler, teacher: Sampler,
                 decoupled: bool, dtype: torch.dtype):  # fmt: skip
        self.denoiser, self.context, self.dtype = denoiser, context, dtype
        self.sampler, self.teacher, self.decoupled = sampler, teacher, decoupled
        self.fields = {f: p for f, p in denoiser.paths.items() if isinstance(p, GaussianPath)}
        if not self.fields:
            raise InputError("a grid is learned from continuous fields, and this model has none")
        pace = next(iter(self.fields.values()))
        self.schedule, self.std = pace.schedule, pace.data_std
        plan = sampler.plan(denoiser)
        self.begin = plan.start[:1]
        # Methods of two calls a step visit inner times twice.
        self.times = torch.cat((plan.start.unique_consecutive(), plan.end[-1:]))
        self.n = len(self.times) - 1
        self.values, self.bend, self.plain = 0.0, 0.0, math.inf

    def u(self, a: Tensor, s: Tensor) -> Tensor:
        return s / (self.std * a + s)

    def first(self) -> Tensor:
        """The sampler's own grid: log gaps, and no shift of what is told."""
        logits = (-self.u(*self.schedule(self.times)).diff()).clamp(min=1e-12).log()
        shifts = torch.zeros(self.n - 1 if self.decoupled else 0, dtype=torch.float64)
        return torch.cat((logits - logits.max(), shifts))

    def grid(self, x: Tensor) -> tuple[list[float], list[float]]:
        """The times of the calls, and what is told at them."""
        logits, shifts = x[: self.n], x[self.n :]
        gaps = (logits - logits.max()).clamp(min=_LEAST_LOGIT).softmax(0)
        u = self.u(*self.schedule(self.begin)) * (1 - gaps.cumsum(0)[:-1])
        times = torch.cat((self.begin, self.schedule.invert(self.u, u)))
        if not self.decoupled or self.n == 1:
            return times.tolist(), times.tolist()
        level = self.schedule.logsnr(times[1:])
        room = level.diff().abs().min() / 2 if self.n > 2 else torch.tensor(0.5)
        told = self.schedule.at_logsnr(level + shifts.clamp(-room, room))
        return times.tolist(), [float(self.begin), *told.tolist()]

    def residual(self, draws: Draws) -> Callable[[Tensor], Tensor | None]:
        """The distances to the teacher's samples, one number an element; ``None`` if one broke."""
        goal = self._run(self.teacher, self.denoiser, draws)
        if goal is None:
            raise InputError("samples of the teacher break; give another teacher")

        def miss(x: Tensor) -> Tensor | None:
            times, told = self.grid(x)
            sampler = replace(self.sampler, grid=times)
            model = DecoupledTimes(self.denoiser, times, told) if self.decoupled else self.denoiser
            found = self._run(sampler, model, draws)
            return None if found is None else found - goal

        at_first = miss(self.first())
        if not self.bend and at_first is not None:
            # One measure for the noise to learn from and that to choose by.
            self.bend = max(_BEND * float(at_first.norm(dim=1).median()), 1e-12)

        def distance(x: Tensor) -> Tensor | None:
            r = miss(x)
            if r is None:
                return None
            self.plain = float(r.norm())
            # ρ(e)/e², which is 1 at e = 0.
            q = (1 + r.square().sum(1, keepdim=True) / self.bend**2).sqrt()
            return (r * (2 / (q + 1)).sqrt()).flatten() / math.sqrt(self.values)

        return distance

    def _run(self, sampler: Sampler, denoiser: Denoiser, draws: Draws) -> Tensor | None:
        report = sampler(denoiser, self.context, draws, dtype=self.dtype)
        if bool(report.broken.any()):
            return None
        parts, values = [], 0.0
        for f, path in self.fields.items():
            x = path.space.project(report.state[f], self.context)
            values += float(path.space.sum(torch.ones_like(x), self.context).sum())
            # Columns of padding alone would change the order of sums, and by rounding which steps
            # of the search are taken.
            real = path.space.expand(path.space.mask(self.context), x).expand_as(x)
            parts.append((x.double() / path.data_std).flatten(1)[:, real.flatten(1).any(0)])
        self.values = max(values, 1.0)
        return torch.cat(parts, 1)


def _levenberg_marquardt(
    residual: Callable[[Tensor], Tensor | None], x: Tensor, iterations: int
) -> list[Tensor]:
    """The points of a falling sum of squares, in order; see the formulas of the module."""
    path: list[Tensor] = []
    r = residual(x)
    if r is None:
        return path
    damping, curvature = 1e-2, torch.zeros(len(x), len(x), dtype=x.dtype)
    jacobian = _jacobian(residual, x, r)
    for _ in range(iterations):
        normal, slope = jacobian.mT @ jacobian, jacobian.mT @ r
        scale = normal.diagonal().clamp(min=1e-12 * float(normal.diagonal().max()) + 1e-300)
        while damping < 1e6:
            matrix = normal + curvature + torch.diag(damping * scale)
            factor, failed = torch.linalg.cholesky_ex(matrix)
            if not failed:
                step = -torch.cholesky_solve(slope[:, None], factor)[:, 0]
                step = step.clamp(-_LARGEST_STEP, _LARGEST_STEP)
                trial = residual(x + step)
                if trial is not None and float(trial @ trial) < float(r @ r):
                    break
            damping *= 4
        else:
            break
        gain = 1 - float(trial @ trial) / float(r @ r)
        x, r, damping = x + step, trial, damping / 4
        path.append(x)
        if gain < 1e-4:
            break
        before, jacobian = jacobian, _jacobian(residual, x, r)
        curvature = _secant(curvature, step, (jacobian - before).mT @ r, jacobian.mT @ r - slope)
    return path


def _jacobian(residual: Callable[[Tensor], Tensor | None], x: Tensor, r: Tensor) -> Tensor:
    columns = []
    for k in range(len(x)):
        moved = residual(x + _DIFFERENCE * torch.eye(len(x), dtype=x.dtype)[k])
        columns.append(torch.zeros_like(r) if moved is None else (moved - r) / _DIFFERENCE)
    return torch.stack(columns, -1)


def _secant(curvature: Tensor, step: Tensor, bent: Tensor, change: Tensor) -> Tensor:
    """S that maps ``step`` to ``bent``, the nearest to the last S (Dennis, Gay & Welsch 1981)."""
    along = float(change @ step)
    if not along > 0:
        return curvature
    held = float(step @ curvature @ step)
    curvature = curvature * min(1.0, abs(float(step @ bent) / held) if held else 1.0)
    miss = bent - curvature @ step
    outer = torch.outer(miss, change) + torch.outer(change, miss)
    return curvature + outer / along - float(step @ miss) / along**2 * torch.outer(change, change)


def _rms(r: Tensor | None) -> float:
    return math.inf if r is None else float(r.norm())
