r"""Exponential multistep methods: Adams–Bashforth where the flow of a Gaussian field is simple.

With x = a x_0 + s ε and λ = log(a/s) the probability-flow ODE has one form in several coordinates,

    x_end = A x_start + C ∫ e^{−k (w_end − w)} N(w) dw,

a part that is solved exactly, and a quantity N of which only its Lagrange polynomial through the
last ``order`` values is known (Hochbruck & Ostermann 2010, *Exponential integrators*). With (a, s)
at the start of a step, (b, r) at its end and σ the standard deviation of the data:

========  =======================  ===========  =========  ======  ===============================
kind      N                        w            A          C       k
========  =======================  ===========  =========  ======  ===============================
velocity  ε − D                    u = s/(a+s)  κ'/κ       κ'      0;  κ = a + s
angle     (aσ ε − (s/σ) D)/κ       atan s/(aσ)  κ'/κ       κ'      0;  κ = √(a²σ² + s²)
x0        D                        λ            (r/s) e⁻ᵠ  b(1+η)  1 + η;  φ = η (λ' − λ)
eps       ε                        λ            b/a        −r      −1
========  =======================  ===========  =========  ======  ===============================

* ``velocity`` is our default. dz/du = ε − D for z = x/(a + s): it treats VP, VE and rectified
  schedules alike, and both ends of time are ordinary points.
* ``angle`` has N = 0 for data N(0, σ²), which it solves exactly in one step (REAB in azula);
  N is the v of Salimans & Ho (2022).
* ``x0`` is DPM-Solver++ (Lu et al. 2022b), with η > 0 its SDE form: r √(1 − e⁻²ᵠ) z is added and A
  shrinks; η = 1 is the reverse SDE of Song et al. (2021).
* ``eps`` is DPM-Solver (Lu et al. 2022a) in multistep form.

``rule="exact"`` integrates the polynomial exactly. ``rule="midpoint"`` multiplies its value in the
middle of the step by ∫ e^{…} dw, which is the published DPM-Solver++(2M): of order 2 as well. For
order 3 the exact integral is the one that has it: with h = λ' − λ and divided differences
D1, D2 = h² D''/2 it reads … − 2b ((e^{−h} − 1 + h)/h² − 1/2) D2, where the formula in circulation
lacks the factor 2 and falls back to order 2.

Where few values are known the order is lower: in the first steps, after a restart (the history is
forgotten), at repeated times, and next to a = 0, whose λ = −∞ no polynomial in λ can use (on grids
that start there ``x0`` and ``eps`` lose a part of an order). A first step of order 1 has an error
of h² N'/2 that alone would hold order 3 down to 2: the exact rule adds in the second step what the
line through both values would have given, at no further call (not over a first step of |k| h > 1,
where a line says little). The last interval (to s = 0) ends in D.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np

from sciflow.paths import GaussianPath
from sciflow.samplers.linear import LinearStepper
from sciflow.samplers.plan import Plan

__all__ = ["ExponentialMultistep", "Kind", "lagrange_integrals", "moments", "usable"]

Kind = Literal["velocity", "angle", "x0", "eps"]


def moments(q: float, n: int) -> np.ndarray:
    """∫₀¹ e^{−q(1−y)} y^j dy = j! φ_{j+1}(−q) for j < n (relative error 1e-13)."""
    if abs(q) < 1:
        k = np.arange(24)
        factorials = np.cumprod(np.maximum(np.arange(24.0 + n), 1))
        return np.array([np.sum((-q) ** k * factorials[j] / factorials[j + 1 + k])
                         for j in range(n)])  # fmt: skip
    values = [-math.expm1(-q) / q]
    for j in range(1, n):
        values.append((1 - j * values[-1]) / q)
    return np.array(values)


def lagrange_integrals(nodes: np.ndarray, low: float, high: float, rate: float = 0.0) -> np.ndarray:
    """∫_low^high e^{−rate (high − w)} L_i(w) dw for the Lagrange basis of ``nodes``."""
    width = high - low
    weights = np.empty(len(nodes))
    powers = moments(rate * width, len(nodes))
    for i, node in enumerate(nodes):
        # In the scaled variable (w − low)/width the polynomial's coefficients stay of order one.
        roots = (np.delete(nodes, i) - low) / width
        basis = np.poly1d(roots, r=True) / np.prod((node - low) / width - roots)
        weights[i] = np.dot(basis.coeffs[::-1], powers[: basis.order + 1]) * width
    return weights


class ExponentialMultistep(LinearStepper):
    """Multistep of order 1, 2 or 3; order 1 is DDIM, except for ``angle``.

    Args:
        path: the field's path.
        plan: the intervals.
        kind: the coordinates; see the table of the module.
        order: number of values used.
        rule: how the polynomial is integrated; "midpoint" up to order 2.
        eta: fresh noise, for kind "x0".
        stream: name of the field's random numbers.
        extrapolate: the last step uses earlier values like any other instead of ending in D; for
            kinds "velocity" and "angle", whose w is finite there.
    """

    def __init__(
        self,
        path: GaussianPath,
        plan: Plan,
        kind: Kind = "velocity",
        order: int = 2,
        rule: Literal["exact", "midpoint"] = "exact",
        eta: float = 0.0,
        stream: str = "field",
        extrapolate: bool = False,
    ):
        if kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, not {kind!r}")
        if order not in (1, 2, 3):
            raise ValueError(f"order must be 1, 2 or 3, not {order}")
        if rule == "midpoint" and order > 2:
            raise ValueError("the midpoint rule is of order 2; use rule='exact' for order 3")
        if eta != 0 and kind != "x0":
            raise ValueError(f"eta is of kind 'x0' alone, not of {kind!r}")
        a, s, b, r = (y.numpy() for y in plan.levels(path.schedule))
        with np.errstate(divide="ignore", invalid="ignore"):
            w, end, keep, scale, rate, p, q = _coordinates(kind, a, s, b, r, path.data_std, eta)
            # e^{−(λ' − λ)}, also where a = 0.
            decay = np.where(plan.start == plan.end, 1.0, a * r / (b * s))
        ages = plan.age
        from_x: list[float] = []
        from_clean: list[float] = []
        older: list[list[float]] = []
        for i, age in enumerate(ages):
            open_ended = r[i] > 0 or (extrapolate and kind in ("velocity", "angle"))
            m = usable(w, i, min(order, age + 1)) if open_ended and end[i] != w[i] else 1
            if m == 1 and (kind != "angle" or not open_ended or end[i] == w[i]):
                # Order 1 is DDIM in all other coordinates, written so that a = 0 is no exception.
                left = r[i] / s[i] * decay[i] ** eta
                from_x.append(float(left))
                from_clean.append(float(b[i] - a[i] * left))
                older.append([])
                continue
            nodes = w[i - m + 1 : i + 1][::-1]
            if rule == "midpoint" and m == 2:
                slope = (end[i] - w[i]) / 2 / (nodes[0] - nodes[1])
                total = lagrange_integrals(nodes[:1], w[i], end[i], rate)[0]
                c = scale[i] * total * np.array([1 + slope, -slope])
            else:
                c = scale[i] * lagrange_integrals(nodes, w[i], end[i], rate)
            small = age > 0 and abs(rate * (w[i] - w[i - 1])) <= 1
            if age == 1 and m == 2 and rule == "exact" and eta == 0 and small:
                # What a line through both values would have given in the first step.
                missed = lagrange_integrals(nodes, w[i - 1], w[i], rate)[0]
                c += keep[i] * scale[i - 1] * missed * np.array([1.0, -1.0])
            from_x.append(float(keep[i] + c[0] * p[i]))
            from_clean.append(float(c[0] * q[i]))
            older.append((c[1:] * q[i - np.arange(1, m)]).tolist())
        fresh = np.zeros_like(s)
        if eta > 0:
            fresh = r * np.sqrt(1 - decay ** (2 * eta))
        super().__init__(
            path, from_x, from_clean, fresh.tolist(), older,
            # Where a = 0, "eps" is of no use to later intervals.
            np.divide(p, q, out=np.zeros_like(p), where=q != 0).tolist(), stream,
        )  # fmt: skip


def usable(w: np.ndarray, i: int, most: int) -> int:
    """How many of the values at w_i, w_{i−1}, … determine a polynomial, at most ``most``.

    A repeated time (a grid clamped at its end) carries no information twice, an infinite one none.
    """
    for m in range(1, most):
        if math.isinf(w[i - m]) or not abs(w[i - m] - w[i - m + 1]) > 1e-12:
            return m
    return most


def _coordinates(
    kind: Kind, a: np.ndarray, s: np.ndarray, b: np.ndarray, r: np.ndarray, std: float, eta: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float, np.ndarray, np.ndarray]:
    """w at start and end, A, C, k and N = p x + q D; see the table of the module."""
    if kind == "velocity":
        here, there = a + s, b + r
        return s / here, r / there, there / here, there, 0.0, 1 / s, -(a / s + 1)
    if kind == "angle":
        here, there = np.hypot(a * std, s), np.hypot(b * std, r)
        w, end = np.arctan2(s, a * std), np.arctan2(r, b * std)
        return w, end, there / here, there, 0.0, a * std / (s * here), -here / (s * std)
    w, end = np.log(a / s), np.log(b / r)
    if kind == "eps":
        return w, end, b / a, -r, -1.0, 1 / s, -a / s
    keep = r / s * (a * r / (b * s)) ** eta
    return w, end, keep, b * (1 + eta), 1 + eta, np.zeros_like(s), np.ones_like(s)
