r"""UniPC (Zhao et al. 2023): a multistep predictor, and a corrector that costs no call.

In data prediction, with λ = log(a/s), h = λ_t − λ_0, values m_0 = D at the start of the step and
m_i = D at the earlier λ_i, r_i = (λ_i − λ_0)/h, D1_i = (m_i − m_0)/r_i and B the function B(h),

    base       = (s_t/s_0) x − a_t (e^{−h} − 1) m_0
    predictor  = base − a_t B Σ_i ρ_i D1_i
    corrector  = base − a_t B (Σ_i ρ'_i D1_i + ρ'_p (m_t − m_0)),        m_t = D(predictor),

where ρ and ρ' solve Σ_i ρ_i r_i^{k−1} = −h μ_k/B, μ_k = ∫₀¹ e^{−h(1−y)} y^k dy = k! φ_{k+1}(−h),
with r = 1 for m_t. As published, ρ = 1/2 for the predictor of order 2 and the corrector of order 1;
only there does the choice of B matter: B = −h (``bh1``) or e^{−h} − 1 (``bh2``), the latter making
the predictor of order 2 DPM-Solver++(2M).

m_t is the value that the next step begins with, so the corrector is applied when that step is made
and costs nothing: predictor and corrector together are one linear combination of x, m_t and the
earlier values. The corrector raises the order p of the predictor to p + 1 (a run of order 3 stays
near 3, held by its first step). Orders rise from 1 at the start and fall to 1 at the end; the last
interval ends in D. Where a = 0, λ has no value: its D serves the step that begins there and that
step's corrector (with the B of bh2), but no polynomial.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from sciflow.paths import GaussianPath
from sciflow.samplers.linear import LinearStepper
from sciflow.samplers.multistep import moments, usable
from sciflow.samplers.plan import Plan

__all__ = ["UniPC"]


class UniPC(LinearStepper):
    """UniPC of order 1, 2 or 3 in data prediction.

    Args:
        path: the field's path.
        plan: the intervals.
        order: of the predictor.
        variant: B(h), ``bh1`` or ``bh2``.
    """

    def __init__(
        self,
        path: GaussianPath,
        plan: Plan,
        order: int = 2,
        variant: Literal["bh1", "bh2"] = "bh2",
    ):
        if order not in (1, 2, 3):
            raise ValueError(f"order must be 1, 2 or 3, not {order}")
        if variant not in ("bh1", "bh2"):
            raise ValueError(f"variant must be bh1 or bh2, not {variant!r}")
        a, s, b, r = (y.numpy() for y in plan.levels(path.schedule))
        with np.errstate(divide="ignore", invalid="ignore"):
            lam, end = np.log(a / s), np.log(b / r)
            widths = end - lam
        ages, n = plan.age, len(plan)
        from_x, from_clean, older = [], [], []
        # What the corrector adds to the prediction: weights of m_t, m_0, m_1, …
        missed = np.zeros(1)
        for i, age in enumerate(ages):
            left = next((k for k in range(i + 1, n) if ages[k] == 0), n) - i
            base = r[i] / s[i], b[i] - a[i] * r[i] / s[i]
            predictor, corrector = np.zeros(1), np.zeros(1)
            h = widths[i]
            if r[i] > 0 and h > 0:
                p = usable(lam, i, min(order, age + 1, left))
                ratios = (lam[i - np.arange(1, p)] - lam[i]) / h
                predictor, corrector = _weights(ratios, h, variant, b[i])
            # x + missed, then the predictor from there.
            start = missed if age > 0 else np.zeros(1)
            weights = base[0] * start
            weights[0] += base[1]
            weights = _sum(weights, predictor)
            from_x.append(float(base[0]))
            from_clean.append(float(weights[0]))
            older.append(weights[1:].tolist())
            missed = _sum(corrector, -np.concatenate(([0.0], predictor)))
        super().__init__(path, from_x, from_clean, older=older)


def _sum(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    total = np.zeros(max(len(x), len(y)))
    total[: len(x)] += x
    total[: len(y)] += y
    return total


def _weights(
    ratios: np.ndarray, h: float, variant: str, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """What is added to base: weights of m_0, m_1, … and of m_t, m_0, m_1, …"""
    p = len(ratios) + 1
    if math.isinf(h):
        big, mu = -1.0, np.zeros(p)
    else:
        mu = moments(h, p + 1)[1:]
        big = -h if variant == "bh1" else math.expm1(-h)
    rows = np.vander(np.append(ratios, 1.0), p, increasing=True).T
    target = -h * mu / big if p > 1 else np.zeros(1)
    rho = np.array([0.5]) if p == 2 else np.linalg.solve(rows[:-1, :-1], target[:-1])
    last = np.array([0.5]) if p == 1 else np.linalg.solve(rows, target)
    step = -scale * big
    predictor = step * rho / ratios
    corrector = step * last[:-1] / ratios
    new = step * last[-1]
    return (
        np.concatenate(([-predictor.sum()], predictor)),
        np.concatenate(([new, -corrector.sum() - new], corrector)),
    )
