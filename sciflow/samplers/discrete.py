r"""Steps for token fields: the reverse Markov chain of the categorical path.

Any corruption: x_s ~ Σ_{x_0} p(x_0 | x_t) q(x_s | x_t, x_0), sampled in each element on its own.

Absorbing corruption has a simpler form with one more knob, the probability ρ with which a symbol
already seen is masked again (Wang et al. 2025, ReMDM); marginals are kept for every ρ up to
ρ_max = min(1, (1 − α_s)/α_t):

    masked:   unmask with probability (α_s − (1 − ρ) α_t)/(1 − α_t), to a symbol from p(x_0 | x_t),
    unmasked: mask with probability ρ,                                 ρ = η ρ_max.

η = 0 is the plain chain; η > 0 lets mistakes be mended. On the last interval (s = 0) everything is
unmasked to its most probable symbol if ``greedy``, else to a draw.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.paths import CategoricalPath
from sciflow.random import Draws
from sciflow.samplers.plan import Plan
from sciflow.samplers.steppers import Stepper
from sciflow.state import Context

__all__ = ["MarkovJumps"]


class MarkovJumps(Stepper):
    """Ancestral jumps of a token field.

    Args:
        path: the field's path.
        plan: the intervals.
        eta: how often seen symbols are masked again, 0 to 1 (absorbing only).
        temperature: logits are divided by it before a symbol is drawn.
        greedy: end with the most probable symbols.
        stream: name of the field's random numbers.
    """

    def __init__(
        self,
        path: CategoricalPath,
        plan: Plan,
        eta: float = 0.0,
        temperature: float = 1.0,
        greedy: bool = True,
        stream: str = "field",
    ):
        self.path, self.stream, self.eta = path, stream, eta
        self.temperature, self.greedy = temperature, greedy
        self.alpha = list(
            zip(*(path.keep(t).tolist() for t in (plan.start, plan.end)), strict=True)
        )
        self.last = (plan.end <= 0).tolist()

    def step(self, i: int, x: Tensor, clean: Tensor, context: Context, draws: Draws) -> Tensor:
        space = self.path.space
        last = self.last[i]
        if last and self.greedy:
            return space.project(clean.argmax(-1), context)
        p0 = (clean / self.temperature).softmax(-1)
        value = space.uniform(context, draws, f"{self.stream}/value", i + 1).to(p0.dtype)
        at, as_ = self.alpha[i]
        if self.path.kind != "absorbing":
            one = torch.ones((), dtype=p0.dtype, device=p0.device)
            return space.project(
                space.sample(self.path.posterior(p0, x, at * one, as_ * one), value), context
            )
        rho = self.eta * min(1.0, (1 - as_) / max(at, 1e-12)) if not last else 0.0
        unmask = min(1.0, (as_ - (1 - rho) * at) / max(1 - at, 1e-12))
        # In float64, where it stays below 1: on the last interval every token must be unmasked.
        when = space.uniform(context, draws, f"{self.stream}/when", i + 1)
        masked = x == self.path.classes
        seen = torch.where(when < unmask, space.sample(p0, value), x)
        again = torch.where(when < rho, torch.full_like(x, self.path.classes), x)
        return space.project(torch.where(masked, seen, again), context)
