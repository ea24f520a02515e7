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
        self.older = [()] * n if older is None else [tuple(w) for w in older]
        self.remembered = [0.0] * n if remembered is None else list(remembered)
        longest = max(map(len, self.older), default=0)
        # What no later interval uses is neither computed nor kept.
        self.needed = [
            any(len(self.older[k]) >= k - i for k in range(i + 1, min(i + longest + 1, n)))
            for i in range(n)
        ]
        self.longest = longest
        self.history: list[Tensor] = []

    def step(self, i: int, x: Tensor, clean: Tensor, context: Context, draws: Draws) -> Tensor:
        y = (x * self.from_x[i]).add_(clean, alpha=self.from_clean[i])
        for weight, past in zip(self.older[i], self.history, strict=False):
            y.add_(past, alpha=weight)
        if self.needed[i]:
            # A new list each time: runs share the table through shallow copies of the stepper.
            self.history = self.history[: self.longest - 1]
            mix = self.remembered[i]
            new = torch.add(clean, x, alpha=mix) if mix else clean
            self.history = [new, *self.history]
        if self.from_noise[i] > 0:
            z = self.path.space.noise(context, draws, f"{self.stream}/ancestral", i + 1, x.dtype)
            y.add_(z, alpha=self.from_noise[i])
        return y
