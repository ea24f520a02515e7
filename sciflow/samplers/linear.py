r"""Steps that are linear in what has been computed: one loop body for most solvers.

A multistep method, a predictor with its corrector, DDIM, ancestral and other stochastic steps all
have the form

    x_{i+1} = A_i x_i + C_i D_i + Σ_{j≥1} w_ij N_{i−j} + σ_i z,      N_i = D_i + ρ_i x_i,

with N the quantity whose polynomial a method extrapolates (D, or ε or a velocity up to a factor)
and z fresh noise of the space. A solver is then nothing but its table of numbers, computed once
for a plan.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence

import torch
from torch import Tensor

from sciflow.paths import GaussianPath
from sciflow.random import Draws
from sciflow.samplers.steppers import Stepper
from sciflow.state import Context

__all__ = ["LinearStepper"]


class LinearStepper(Stepper, ABC):
    """Applies a table of coefficients; see the formula of the module.

    A broken value stays one: 0 · NaN is NaN.

    Args:
        path: the field's path.
        from_x: A, one an interval.
        from_clean: C.
        from_noise: σ; where it is 0 nothing is drawn.
        older: w_1, w_2, …, as many as the interval uses.
        remembered: ρ; where it is 0, D itself is remembered.
        stream: name of the field's random numbers.
    """

    remembers = ("history",)
    keeps_broken = True

    def __init__(
        self,
        path: GaussianPath,
        from_x: Sequence[float],
        from_clean: Sequence[float],
        from_noise: Sequence[float] | None = None,
        older: Sequence[Sequence[float]] | None = None,
        remembered: Sequence[float] | None = None,
        stream: str = "field",
    ):
        n = len(from_x)
        self.path, self.stream = path, stream
        self.from_x, self.from_clean = list(from_x), list(from_clean)
        self.from_noise = [0.0] * n if from_noise is None else list(from_noise)
        self.older: list[tuple[float, ...]] = (
            [()] * n if older is None else [tuple(w) for w in older]
        )
        self.remembered = [0.0] * n if remembered is None else list(remembered)
        longest = max(map(len, self.older), default=0)
        # What no later interval uses is neither computed nor kept.
        self.needed = [
            any(len(self.older[k]) >= k - i for k in range(i + 1, min(i + longest + 1, n)))
            for i in range(n)
        ]
        # One older value is kept as D and x: no pass over memory to add them, and none to store.
        self.apart = longest == 1
        terms = self.older
        if self.apart:
            before = [0.0, *self.remembered[:-1]]
            terms = [tuple(w * m for w in weights for m in (1.0, rho))
                     for weights, rho in zip(self.older, before, strict=True)]  # fmt: skip
        self.table = list(zip(self.from_x, self.from_clean, terms, self.needed, self.remembered,
                              self.from_noise, strict=True))  # fmt: skip
        self.longest = longest
        self.history: tuple[Tensor, ...] = ()

    def step(self, i: int, x: Tensor, clean: Tensor, context: Context, draws: Draws) -> Tensor:
        from_x, from_clean, terms, needed, mix, fresh = self.table[i]
        y = (x * from_x).add_(clean, alpha=from_clean)
        for weight, past in zip(terms, self.history, strict=False):
            y.add_(past, alpha=weight)
        if needed:
            if self.apart:
                self.history = (clean, x) if mix else (clean,)
            else:
                new = torch.add(clean, x, alpha=mix) if mix else clean
                self.history = (new, *self.history[: self.longest - 1])
        if fresh > 0:
            z = self.path.space.noise(context, draws, f"{self.stream}/ancestral", i + 1, x.dtype)
            y.add_(z, alpha=fresh)
        return y
