r"""DPM-Solver-v3 (Zheng et al. 2023): an exponential multistep method fitted to the model.

With y = x/a, λ = log(a/s) and statistics l, s, b of the model along its flow
(:mod:`sciflow.samplers.solver_statistics`), N = D − (1 − l) y = −f is what the linear part of the
flow leaves over, and df/dλ ≈ s f + b how it moves. From λ_0 to λ_t, with L = ∫ l and S = ∫ s from
λ_0 on and B(λ) = ∫_{λ_0}^λ e^{−S} b,

    y_t = e^{−L_t} y_0 − ∫_{λ_0}^{λ_t} e^{L − L_t + S} (g(λ) + B(λ)) dλ,       g = e^{−S} f − B,

exactly. g is constant where the statistics tell all, otherwise its Lagrange polynomial through the
last ``order`` values is integrated (Gauss–Legendre, l, s and b being quintic splines). So a step is
linear in x, D, earlier N and 1, as in :mod:`sciflow.samplers.linear`, with a coefficient for each
component of the field.

(l, s, b) = (1, 0, 0) is DPM-Solver++, (0, −1, 0) DPM-Solver; on data N(m, diag v) any step is
exact. ``corrector`` integrates each step anew when its end has been called, through that value too,
f there kept as it was found: order p + 1 for p at no call (it acts in the next step, as in
:mod:`sciflow.samplers.unipc`). Without it only the first step is mended so, for a method of order 2
or more and a step of at most 1 in λ, as
:class:`~sciflow.samplers.multistep.ExponentialMultistep` does.

Below the statistics, down to a = 0, 1 − l goes on as e^{2λ}, its law at high noise for any data,
with s = b = 0, and no value is kept for a polynomial. The last interval (to s = 0) ends in D.

    statistics = estimate_statistics(model, data, draws)
    sampler(model, context, draws, steppers={"x": DPMSolverV3(statistics)})
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.polynomial import legendre
from torch import Tensor

from sciflow.errors import InputError
from sciflow.paths import GaussianPath, Path
from sciflow.random import Draws
from sciflow.samplers.multistep import usable
from sciflow.samplers.plan import Plan
from sciflow.samplers.solver_statistics import SolverStatistics
from sciflow.samplers.steppers import Stepper
from sciflow.state import Context

__all__ = ["DPMSolverV3"]

_PANEL = 0.25
_NODES, _WEIGHTS = legendre.leggauss(8)
# Row i: ∫_{−1}^{node i} of the polynomial through values at the nodes.
_UP_TO = np.stack(
    [legendre.legval(_NODES, legendre.legint(row, lbnd=-1)) for row in np.eye(8)], -1
) @ np.linalg.inv(legendre.legvander(_NODES, 7))


class DPMSolverV3:
    """The method with a model's statistics; makes the stepper of a field for a plan.

    Args:
        statistics: of the field.
        order: number of values used, 1 to 3.
        corrector: mend every step, not the first alone; see the module.
    """

    def __init__(self, statistics: SolverStatistics, order: int = 2, corrector: bool = True):
        if order not in (1, 2, 3):
            raise InputError(f"order must be 1, 2 or 3, not {order}")
        self.statistics, self.order, self.corrector = statistics, order, corrector

    def __call__(self, path: Path, plan: Plan) -> Stepper:
        """The stepper of a continuous field.

        Raises:
            InputError: another kind of field, or a plan that goes above the statistics' λ.
        """
        if not isinstance(path, GaussianPath):
            raise InputError("DPM-Solver-v3 moves continuous fields only; leave the others out")
        return _V3Stepper(path, plan, self.statistics, self.order, self.corrector)


class _V3Stepper(Stepper):
    """A table of numbers a component, computed for a plan."""

    remembers = ("history",)

    def __init__(self, path: GaussianPath, plan: Plan, statistics: SolverStatistics, order: int,
                 corrector: bool):  # fmt: skip
        self.path, self.order = path, order
        self.history: list[Tensor] = []
        flow = _Integrals(statistics)
        a, s = (y.numpy() for y in path.schedule(plan.start))
        b, r = (y.numpy() for y in path.schedule(plan.end))
        with np.errstate(divide="ignore"):
            start, end = np.log(a / s), np.log(b / r)
        highest = float(end[r > 0].max(initial=-math.inf))
        if highest > flow.high:
            raise InputError(
                f"the statistics reach log(a/s) = {statistics.logsnr[-1]:.3g}, the run "
                f"{highest:.3g} before its last step; estimate them on a wider range or lower "
                "logsnr_last"
            )
        ages, nothing = plan.age, np.zeros(flow.size)
        # Values below the statistics are of no use to a polynomial.
        places = np.where(start < flow.low, -math.inf, start)
        table: list[tuple[np.ndarray, ...]] = []
        missed: np.ndarray | None = None
        for i, age in enumerate(ages):
            if r[i] <= 0:
                # No call of the same pass follows, so nothing need be remembered.
                table.append((nothing, nothing + 1, nothing, nothing))
                missed = None
                continue
            inside = places[i] > -math.inf
            begin = start[i] if inside else min(flow.first, end[i])
            m = usable(places, i, min(order, age + 1)) if inside else 1
            nodes = np.array([begin]) if m == 1 else places[i - m + 1 : i + 1][::-1]
            keep, step = flow.decay(begin, end[i]), flow.step(nodes, begin, end[i])
            mend = corrector or (age == 1 and m == 2 and places[i] - places[i - 1] <= 1)
            # 1, N_0, N_1, …
            weights = step if missed is None or not mend or age == 0 else _sum(step, keep * missed)
            missed = None
            if inside and end[i] > begin:
                missed = flow.step(np.append(end[i], nodes), begin, end[i])
                missed -= np.insert(step, 1, 0.0, axis=0)
            if inside:
                by_x, by_clean, slope = nothing + 1 / a[i], nothing, (1 - flow.l(begin)) / a[i]
            else:
                by_x, by_clean, slope = flow.lead(a[i], s[i], begin)
            table.append((
                b[i] * (keep * by_x - weights[1] * slope), b[i] * (keep * by_clean + weights[1]),
                slope, b[i] * weights[0], *(b[i] * weights[2:]),
            ))  # fmt: skip
        kept = statistics.l.shape[1:]
        self.table = [[torch.from_numpy(y.reshape(kept)) for y in row] for row in table]

    def step(self, i: int, x: Tensor, clean: Tensor, context: Context, draws: Draws) -> Tensor:
        from_x, from_clean, slope, constant, *older = (y.to(x) for y in self.table[i])
        if slope.ndim > x.ndim or torch.broadcast_shapes(slope.shape, x.shape) != x.shape:
            raise InputError(
                f"statistics of {list(slope.shape)} do not fit the trailing axes of a field "
                f"{list(x.shape)}; estimate them with another number of axes"
            )
        y = from_x * x + from_clean * clean + constant
        for weight, past in zip(older, self.history, strict=False):
            y = y + weight * past
        # A new list each time: runs share the table through shallow copies of the stepper.
        self.history = [clean - slope * x, *self.history[: self.order - 1]]
        return self.path.space.project(y, context)


class _Integrals:
    """The integrals of the module for splines l, s and b, ``[size]`` components at once."""

    def __init__(self, statistics: SolverStatistics):
        from scipy.interpolate import make_interp_spline

        knots = statistics.logsnr.double().cpu().numpy()
        self.l, rate, self.b = (
            make_interp_spline(knots, y.double().cpu().numpy().reshape(len(knots), -1), k=5)
            for y in (statistics.l, statistics.s, statistics.b)
        )
        self.big_l, self.big_s = self.l.antiderivative(), rate.antiderivative()
        self.size, self.first = self.l.c.shape[-1], float(knots[0])
        # Splines go on for a knot: grids may end a rounding error beyond.
        self.low, self.high = 2 * knots[0] - knots[1], 2 * knots[-1] - knots[-2]

    def lead(self, a: float, s: float, end: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """y at λ = ``end`` from x and D below the statistics, and N = D − slope x there.

        With 1 − l = k u² and u = e^{λ − end}, it is
        y = u_0 y_0 e^{k (1 − u_0²)/2} + N ∫_{u_0}^1 e^{k (1 − u²)/2} du.
        """
        k = (1 - self.l(self.first)) * math.exp(2 * (end - self.first))
        u = a / s * math.exp(-end)
        at, weights, _ = _panels(u, 1.0)
        total = np.asarray(weights @ np.exp(k * (1 - at[:, None] ** 2) / 2))
        slope = k * u * math.exp(-end) / s
        return math.exp(-end) / s * np.exp(k * (1 - u**2) / 2) - total * slope, total, slope

    def decay(self, low: float, high: float) -> np.ndarray:
        """e^{−L}."""
        return np.asarray(np.exp(self.big_l(low) - self.big_l(high)))

    def step(self, nodes: np.ndarray, low: float, high: float) -> np.ndarray:
        """y_t − e^{−L_t} y_0 as weights of 1, N_0, N_1, … at the nodes: ``[1 + n, size]``."""
        at, weights, shift = self._shift(low, high)
        kernel = weights[:, None] * np.exp(
            self.big_l(at) - self.big_l(high) + self.big_s(at) - self.big_s(low)
        )
        total = [-(kernel * shift).sum(0)]
        for i, node in enumerate(nodes):
            basis = np.ones_like(at)
            for other in np.delete(nodes, i):
                basis = basis * (at - other) / (node - other)
            weight = basis @ kernel
            # g = −e^{−S} N − B.
            total.append(weight * np.exp(self.big_s(low) - self.big_s(node)))
            if node != low:
                total[0] = total[0] + weight * self._shift(low, node, whole=True)[2][-1]
        return np.stack(total)

    def _shift(
        self, low: float, high: float, whole: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Nodes and weights of ∫_low^high, and B = ∫_low e^{−S} b there (or after each panel)."""
        at, weights, half = _panels(low, high)
        slope = half * np.exp(self.big_s(low) - self.big_s(at)) * self.b(at)
        slope = slope.reshape(-1, len(_NODES), self.size)
        panels = np.einsum("q,pqe->pe", _WEIGHTS, slope).cumsum(0)
        if whole:
            return at, weights, panels
        before = np.concatenate((np.zeros_like(panels[:1]), panels[:-1]))
        shift = before[:, None] + np.einsum("iq,pqe->pie", _UP_TO, slope)
        return at, weights, shift.reshape(len(at), self.size)


def _panels(low: float, high: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Nodes and weights of ∫_low^high, and half the width of a panel of eight."""
    n = max(1, math.ceil(abs(high - low) / _PANEL))
    half = (high - low) / n / 2
    at = ((low + half * (2 * np.arange(n) + 1))[:, None] + half * _NODES).ravel()
    return at, half * np.tile(_WEIGHTS, n), half


def _sum(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of weights of 1, N_0, N_1, …, one with fewer than the other."""
    total = np.zeros((max(len(x), len(y)), x.shape[1]))
    total[: len(x)] += x
    total[: len(y)] += y
    return total
