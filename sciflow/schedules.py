r"""Noise schedules: how much of the data and how much noise a corrupted sample holds.

    x_t = a(t)·x_0 + s(t)·noise,      t = 0 data, t = 1 noise,   λ(t) = log(a/s) falling in t.

A schedule only says ``t ↦ (a, s)``; everything else (samplers, losses, guidance) is written in
terms of a and s, so a trained network takes any schedule at inference. All are pure torch, work on
tensors of any shape and are differentiable.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

import torch
from torch import Tensor

from sciflow.errors import InputError
from sciflow.monotone import interpolate, monotone_slopes

__all__ = [
    "SCHEDULES",
    "Cosine",
    "FreeSchedule",
    "Rectified",
    "Schedule",
    "SubVP",
    "Tabulated",
    "VPLinear",
    "VarianceExploding",
    "schedule_from_config",
]


class Schedule(ABC):
    """Maps times in [0, 1] to the pair (a, s)."""

    @abstractmethod
    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal a(t) > 0 for t < 1 and noise s(t) > 0 for t > 0, shaped as ``t``."""

    def logsnr(self, t: Tensor) -> Tensor:
        """λ(t) = log(a/s), strictly falling."""
        a, s = self(t)
        return a.log() - s.log()

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(a', s') with respect to t, by automatic differentiation."""
        with torch.enable_grad():
            t = t.detach().clone().requires_grad_(True)
            a, s = self(t)
            return _slope(a, t), _slope(s, t)

    def invert(self, f: Callable[[Tensor, Tensor], Tensor], target: Tensor) -> Tensor:
        """Times at which the rising ``f(a, s)`` takes the values ``target``, by bisection."""
        low, high = torch.zeros_like(target), torch.ones_like(target)
        for _ in range(60):
            middle = (low + high) / 2
            below = f(*self(middle)) < target
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def at_logsnr(self, logsnr: Tensor) -> Tensor:
        """Times at which log(a/s) takes the values ``logsnr``, the inverse of :meth:`logsnr`."""
        return self.invert(lambda a, s: s.log() - a.log(), -logsnr)

    def config(self) -> dict[str, Any]:
        """Plain data from which :func:`schedule_from_config` rebuilds the schedule."""
        values: dict[str, Any] = asdict(self) if is_dataclass(self) else {}
        return {"kind": _NAMES[type(self)], **values}


def _name(f: Callable[..., object]) -> str:
    return getattr(f, "__name__", type(f).__name__)


def _slope(y: Tensor, t: Tensor) -> Tensor:
    # A constant (the signal of a variance-exploding schedule) has no graph.
    if not y.requires_grad:
        return torch.zeros_like(t)
    return torch.autograd.grad(y.sum(), t, retain_graph=True)[0].detach()


@dataclass(frozen=True)
class Rectified(Schedule):
    """Straight line (rectified flow, Liu et al. 2023): a = 1 − t^p, s = t^p.

    ``power`` p ≠ 1 lets a field run early (p < 1: its noise goes late) or late on a shared clock.
    """

    power: float = 1.0

    def __post_init__(self) -> None:
        if not self.power > 0:
            raise InputError(f"the power of a rectified schedule must be above 0, not {self.power}")

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        s = t if self.power == 1.0 else t**self.power
        return 1 - s, s


@dataclass(frozen=True)
class Cosine(Schedule):
    """Variance preserving, a = cos(πt^p/2), s = sin(πt^p/2); p = 1 is also called GVP (Ma et al.
    2024).

    ``power`` p ≠ 1 is the exponent ν by which Vignac et al. (2023, MiDi) let some fields run early
    (p < 1: their noise goes late) or late on a shared clock.
    """

    power: float = 1.0

    def __post_init__(self) -> None:
        if not self.power > 0:
            raise InputError(f"the power of a cosine schedule must be above 0, not {self.power}")

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        # The cosine of a rounded π/2 is −4e-8 in float32, and has no logarithm.
        if self.power == 1.0:
            return torch.sin((1 - t) * (math.pi / 2)), torch.sin(t * (math.pi / 2))
        u, rest = t**self.power, -torch.expm1(self.power * t.log())
        return torch.sin(rest * (math.pi / 2)), torch.sin(u * (math.pi / 2))


@dataclass(frozen=True)
class VPLinear(Schedule):
    """Variance preserving with β rising linearly (Song et al. 2021).

    a = exp(−(β₀ t + (β₁ − β₀) t²/2)/2), s = sqrt(1 − a²).
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not (self.beta_min >= 0 and self.beta_max > 0):
            raise InputError(
                "rates of noise must be beta_min >= 0 and beta_max > 0, not "
                f"{self.beta_min} and {self.beta_max}"
            )

    def _log_a(self, t: Tensor) -> Tensor:
        return -0.5 * (self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t * t)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_a = self._log_a(t)
        return log_a.exp(), (-torch.expm1(2 * log_a)).sqrt()


@dataclass(frozen=True)
class SubVP(VPLinear):
    """Sub-variance preserving (Song et al. 2021): a as in :class:`VPLinear`, s = 1 − a²."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_a = self._log_a(t)
        return log_a.exp(), -torch.expm1(2 * log_a)


@dataclass(frozen=True)
class VarianceExploding(Schedule):
    """Variance exploding: a = 1, s = σ_max·(r^t − 1)/(r − 1) with r = σ_max/σ_min.

    Geometric for t well above 0 as in Song et al. 2021, and exactly free of noise at t = 0.
    """

    sigma_min: float = 0.01
    sigma_max: float = 100.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise InputError(
                f"noise levels must be 0 < sigma_min < sigma_max, not {self.sigma_min} and "
                f"{self.sigma_max}"
            )

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        r = math.log(self.sigma_max / self.sigma_min)
        s = self.sigma_max * torch.expm1(r * t) / math.expm1(r)
        return torch.ones_like(t), s


@dataclass(frozen=True, repr=False)
class Tabulated(Schedule):
    """A schedule known at some times only, e.g. that of a model trained elsewhere.

    Between them u = s/(a + s), which rises from 0 to 1, and κ = a + s follow monotone cubics
    (:mod:`sciflow.monotone`); s = κ u and a = κ (1 − u), so that λ falls and derivatives are
    continuous. The table itself is met exactly.

    Args:
        t: rising times in (0, 1], the last one 1; that of the data, (0, 1, 0), is added.
        a: signal at these times, above 0 (at t = 1 also 0).
        s: noise at these times, above 0; a/s must fall.
    """

    t: Sequence[float]
    a: Sequence[float]
    s: Sequence[float]

    def __post_init__(self) -> None:
        columns = [[float(y) for y in column] for column in (self.t, self.a, self.s)]
        if [column[:1] for column in columns] == [[0.0], [1.0], [0.0]]:
            columns = [column[1:] for column in columns]
        for name, column in zip("tas", columns, strict=True):
            object.__setattr__(self, name, tuple(column))
        if not 0 < len(self.t) == len(self.a) == len(self.s):
            raise InputError(
                f"a table of {len(self.t)} times, {len(self.a)} signals and {len(self.s)} noises; "
                "give equally many of each, at least one"
            )
        t, a, s = (torch.tensor([y, *column], dtype=torch.float64)
                   for y, column in zip((0.0, 1.0, 0.0), columns, strict=True))  # fmt: skip
        if not (bool((t.diff() > 0).all()) and float(t[-1]) == 1.0):
            raise InputError("the times of a table must rise from above 0 to 1")
        if not (bool((a[:-1] > 0).all()) and float(a[-1]) >= 0 and bool((s[1:] > 0).all())
                and bool(((s / a).diff() > 0).all())):  # fmt: skip
            raise InputError("a must be above 0 before t = 1, s above 0 after t = 0, and a/s fall")
        kappa = a + s
        knots = torch.stack((a / kappa, s / kappa, kappa))
        object.__setattr__(self, "_knots", (t, knots, monotone_slopes(t, knots)))

    @classmethod
    def from_gammas(cls, gammas: Sequence[float]) -> Tabulated:
        """From γ = log(s²/a²) at the times 1/n, 2/n, …, 1, variance preserving.

        A model of n discrete steps (Ho et al. 2020) has γ = log((1 − ᾱ)/ᾱ); Kingma et al. 2021
        give γ itself.
        """
        gamma = torch.as_tensor(gammas, dtype=torch.float64)
        times = torch.arange(1, len(gamma) + 1, dtype=torch.float64) / max(len(gamma), 1)
        a, s = (torch.sigmoid(y).sqrt() for y in (-gamma, gamma))
        return cls(times.tolist(), a.tolist(), s.tolist())

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        table = (x.to(t.device) for x in self._knots)  # type: ignore[attr-defined]
        signal, noise, kappa = interpolate(t.double(), *table)
        return (kappa * signal).to(t.dtype), (kappa * noise).to(t.dtype)

    def __repr__(self) -> str:
        # Names made from it must differ where tables do: times alone would not.
        digest = hashlib.sha256(repr((self.t, self.a, self.s)).encode()).hexdigest()
        return f"{type(self).__name__}({len(self.t)} rows, {digest[:8]})"


class FreeSchedule(Schedule):
    """Any pair of functions given by the user; λ = log(a/s) must fall in t."""

    def __init__(self, a: Callable[[Tensor], Tensor], s: Callable[[Tensor], Tensor]):
        self.a, self.s = a, s
        lam = self.logsnr(torch.linspace(0.001, 0.999, 257, dtype=torch.float64))
        if not bool((lam.diff() < 0).all()):
            raise ValueError("log(a/s) must fall strictly from t = 0 (data) to t = 1 (noise)")

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(t), self.s(t)

    def __repr__(self) -> str:
        # Without an address: names made from it must be equal in every process.
        return f"{type(self).__name__}({_name(self.a)}, {_name(self.s)})"

    def config(self) -> dict[str, Any]:
        """A schedule of free functions has no plain-data form."""
        raise ValueError("a FreeSchedule cannot be saved; use a named schedule in a checkpoint")


SCHEDULES: dict[str, type[Schedule]] = {
    "rectified": Rectified,
    "cosine": Cosine,
    "vp-linear": VPLinear,
    "sub-vp": SubVP,
    "ve": VarianceExploding,
    "table": Tabulated,
}
_ALIASES = {"gvp": "cosine"}
_NAMES = {cls: name for name, cls in SCHEDULES.items()}


def schedule_from_config(config: dict[str, Any]) -> Schedule:
    """The schedule that ``config()`` described, e.g. ``{"kind": "rectified", "power": 2.0}``."""
    values = dict(config)
    kind = values.pop("kind")
    kind = _ALIASES.get(kind, kind)
    if kind not in SCHEDULES:
        raise ValueError(f"unknown schedule {kind!r}; known: {', '.join(SCHEDULES)}")
    return SCHEDULES[kind](**values)
