r"""Statistics of a model along its own flow: what DPM-Solver-v3 takes out of the equation.

With y = x/a, σ = s/a and λ = log(a/s) the probability-flow ODE is dy/dλ = −σ ε = D − y. For a
field of one's choice l(λ), elementwise,

    dy/dλ = −(l y + f),       f = σ ε − l y = (1 − l) y − D,
    df/dλ = −l' y + (1 − l) dy/dλ − dD/dλ                       along the flow,

and (Zheng et al. 2023) the choices that leave least to a polynomial are

    l = E[diag ∂(s ε)/∂x] = 1 − a E[diag ∂D/∂x],
    df/dλ ≈ s f + b,          s = Cov(f, df/dλ)/Var(f),       b = E df/dλ − s E f,

means over x_t at one λ. For data N(m, diag v) they are l = s²/(a² v + s²), s = 0, b = −m l' and
nothing is left at all. Where f hardly varies, s is 0.

Both derivatives are differences of fourth order, along probes and along the flow, with a step of
ε^{1/5} for roundoff ε: they serve guided denoisers and networks whose preconditioning torch does
not differentiate forward. The diagonal is Σ v (∂D v) / Σ v² over random signs v, projected on the
space, or over every unit vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sciflow.denoisers import Denoiser
from sciflow.errors import InputError
from sciflow.paths import GaussianPath
from sciflow.random import Draws
from sciflow.state import State, field_times

__all__ = ["SolverStatistics", "estimate_statistics"]

_STENCIL = ((1, 8 / 12), (-1, -8 / 12), (2, -1 / 12), (-2, 1 / 12))


@dataclass(frozen=True, eq=False)
class SolverStatistics:
    """l, s and b on a grid of λ = log(a/s), float64; ``vars(statistics)`` is plain tensors to save.

    Attributes:
        logsnr: rising, ``[n]``, n ≥ 6.
        l: ``[n, *kept]``, where ``kept`` are trailing axes of the field, or broadcast to them.
        s: see ``l``.
        b: see ``l``, in units of the data.

    Raises:
        InputError: shapes that differ, a grid that does not rise, or values that are not finite.
    """

    logsnr: Tensor
    l: Tensor  # noqa: E741 - the letter of the formula
    s: Tensor
    b: Tensor

    def __post_init__(self) -> None:
        n = len(self.logsnr)
        if n < 6 or not bool((self.logsnr.diff() > 0).all()):
            raise InputError("solver statistics need at least 6 values of log(a/s) that rise")
        for name in ("l", "s", "b"):
            value = getattr(self, name)
            if len(value) != n or value.shape != self.l.shape:
                raise InputError(
                    f"statistic {name!r} is {list(value.shape)}; wanted: l, s and b of one shape "
                    f"[{n}, ...], a row for each log(a/s)"
                )
            if not bool(value.isfinite().all()):
                raise InputError(f"statistic {name!r} is not finite; estimate on a narrower range")


def estimate_statistics(
    denoiser: Denoiser,
    data: State,
    draws: Draws,
    field: str = "x",
    logsnr: tuple[float, float] = (-7.0, 6.0),
    knots: int = 105,
    axes: int = 1,
    probes: int | None = 1,
) -> SolverStatistics:
    """The statistics of one field; see the formulas of the module. About 9 calls a knot.

    Args:
        denoiser: the model, guided or not.
        data: clean samples ``[B, ...]`` of every field, data or the model's own; float64 fields
            give the derivatives two more digits than float32. Given elements do not count.
        draws: of their noise and probes, ``[B]``; the same at every λ, so all is smooth in λ.
        field: a continuous one. Others are corrupted beside it, on the shared clock; continuous
            ones move along the flow, tokens stay.
        logsnr: range of log(a/s); cut where the field's schedule begins. A run may end a step
            nowhere above it.
        knots: of the grid.
        axes: how many trailing axes keep their own statistics: 1 is one law for all elements of a
            vector field, whatever their number, 0 one for all values (on spaces with rotations).
        probes: random probes for l; ``None`` takes every unit vector, the exact diagonal.

    Raises:
        InputError: the field is not a continuous one, or a setting is out of range.
    """
    path = denoiser.paths.get(field)
    if not isinstance(path, GaussianPath):
        known = [f for f, p in denoiser.paths.items() if isinstance(p, GaussianPath)]
        raise InputError(
            f"statistics are of a continuous field ({', '.join(known) or 'none here'}), "
            f"not of {field!r}"
        )
    if knots < 6 or (probes is not None and probes < 1):
        raise InputError(f"at least 6 knots and 1 probe are needed, not {knots} and {probes}")
    if not 0 <= axes < data[field].ndim:
        raise InputError(f"axes must lie between 0 and {data[field].ndim - 1}, not {axes}")
    flow = _AlongFlow(denoiser, data, draws, field, path, axes)
    # Differences at both ends need room on the clock.
    first = float(path.schedule.logsnr(torch.ones((), dtype=torch.float64))) + 3 * flow.h
    levels = torch.linspace(max(logsnr[0], first), logsnr[1], knots, dtype=torch.float64)
    if not bool(levels[0] < levels[-1]):
        raise InputError(f"no log(a/s) of the schedule lies in {logsnr}; its least is {first:.3g}")
    from scipy.interpolate import make_interp_spline

    with torch.no_grad():
        times = flow.times(levels)
        linear = torch.stack([flow.linear(t[0], probes) for t in times])
        spline = make_interp_spline(levels.numpy(), linear.cpu().numpy(), k=5)
        slope = torch.from_numpy(spline(levels.numpy(), 1)).to(linear)
        rest = [
            flow.regression(t, y, dy) for t, y, dy in zip(times, linear, slope, strict=True)
        ]  # fmt: skip
    s, b = (torch.stack(y).cpu() for y in zip(*rest, strict=True))
    return SolverStatistics(levels, linear.cpu(), s, b)


class _AlongFlow:
    """Noisy states at one λ, means over them, and derivatives of D there."""

    def __init__(self, denoiser: Denoiser, data: State, draws: Draws, field: str,
                 path: GaussianPath, axes: int):  # fmt: skip
        self.denoiser, self.data, self.draws = denoiser, data, draws
        self.field, self.path, self.axes = field, path, axes
        x = data[field]
        self.roundoff = torch.finfo(x.dtype).eps
        self.h = self.roundoff**0.2
        real = path.space.mask(data.context)
        given = data.context.given.get(field)
        real = real if given is None else real & ~given
        self.weight = path.space.expand(real, x).expand_as(x).double()
        if not bool(real.any()):
            raise InputError(f"no element of field {field!r} is real and not given")

    def times(self, levels: Tensor) -> list[list[float]]:
        """Of each λ, and those around it that a difference along the flow takes."""
        around = self.h * torch.tensor([0, *(k for k, _ in _STENCIL)], dtype=torch.float64)
        targets = -(levels[:, None] + around)
        times = self.path.schedule.invert(lambda a, s: s.log() - a.log(), targets.flatten())
        return times.view_as(targets).tolist()  # type: ignore[no-any-return]

    def noisy(self, t: float) -> State:
        fields, context = {}, self.data.context
        for name, path in self.denoiser.paths.items():
            x0 = self.data[name]
            times = torch.full((len(context),), t, dtype=torch.float64, device=x0.device)
            x = path.corrupt(x0, times, context, self.draws, f"{name}/statistics")
            given = context.given.get(name)
            fields[name] = x if given is None else torch.where(path.space.expand(given, x), x0, x)
        return State(fields, context)

    def mean(self, q: Tensor, weight: Tensor) -> Tensor:
        """Over all axes but the last, float64 ``[*kept]``; 0 where nothing counts."""
        over = tuple(range(q.ndim - self.axes))
        return (q * weight).sum(over) / weight.sum(over).clamp(min=1e-300)

    def linear(self, t: float, probes: int | None) -> Tensor:
        """l = 1 − a E[diag ∂D/∂x]."""
        state, space = self.noisy(t), self.path.space
        x, context = state[self.field], state.context
        a, s = (float(y) for y in self.path.schedule(torch.tensor(t, dtype=torch.float64)))
        shape = x.shape[1:]
        total, norm = torch.zeros_like(self.weight), torch.zeros_like(self.weight)
        for i in range(shape.numel() if probes is None else probes):
            if probes is None:
                v = torch.zeros(shape.numel(), dtype=x.dtype, device=x.device)
                v[i] = 1.0
                v = v.view(shape).expand_as(x)
            else:
                v = self.draws.normal(shape, "statistics/probe", i, x.dtype, x.device).sign()
            v = space.project(v * self.weight.to(x.dtype), context)
            # The estimate bends over distances of the noise.
            h, product = self.h * s, torch.zeros_like(x)
            for k, w in _STENCIL:
                moved = state.replace(**{self.field: x + k * h * v})
                product += w / h * self.denoiser(moved, t)[self.field]
            total += (v * product).double()
            norm += v.double() ** 2
        whole = self.mean(norm, self.weight).clamp(min=1e-300)
        return 1 - a * self.mean(total, self.weight) / whole

    def regression(
        self, times: list[float], linear: Tensor, slope: Tensor
    ) -> tuple[Tensor, Tensor]:
        """s and b, from f and df/dλ of every sample; ``times`` as of :meth:`times`."""
        t, *around = times
        state = self.noisy(t)
        clean = self.denoiser(state, t)
        clock = torch.tensor(t, dtype=torch.float64)
        signal, noise = self.path.schedule(clock)
        up, down = self.path.schedule.derivatives(clock)
        rise = float(up / signal - down / noise)
        directions = {}
        for name, path in self.denoiser.paths.items():
            if isinstance(path, GaussianPath):
                # dx/dλ = (a' D + s' ε)/λ', each field by its own schedule on the clock.
                known = path.space.expand(field_times(t, state)[name], state[name]) <= 0
                a, s = (float(y) for y in path.schedule(clock))
                da, ds = (float(y) for y in path.schedule.derivatives(clock))
                x, d = state[name], clean[name]
                v = (da * d + ds * (x - a * d) / s) / rise
                directions[name] = v.masked_fill(known, 0)
        change = torch.zeros_like(self.weight)
        for (k, w), near in zip(_STENCIL, around, strict=True):
            moved = {name: state[name] + k * self.h * v for name, v in directions.items()}
            estimate = self.denoiser(state.replace(**moved), near)[self.field]
            change += w / self.h * estimate.double()
        y, d = state[self.field].double() / float(signal), clean[self.field].double()
        f = (1 - linear) * y - d
        df = -slope * y + (1 - linear) * (d - y) - change
        mean_f, mean_df = self.mean(f, self.weight), self.mean(df, self.weight)
        variance = self.mean((f - mean_f) ** 2, self.weight)
        both = self.mean((f - mean_f) * (df - mean_df), self.weight)
        # Of the error that differences leave in l nothing is learned.
        least = (100 * self.h**4) ** 2 * self.mean(y**2, self.weight)
        slopes = torch.where(variance > least, both / variance.clamp(min=1e-300), 0.0)
        return slopes, mean_df - slopes * mean_f
