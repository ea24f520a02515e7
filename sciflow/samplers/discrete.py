r"""Steps for token fields: the reverse Markov chain of the categorical path.

Within a step every element moves on its own, by a law L(x_s | x_t; p) made from its clean estimate
p = p(x_0 | x_t). The methods differ in L:

``ancestral``    Σ_{x_0} p(x_0) q(x_s | x_t, x_0): exact for one element, whatever the step;
``euler``        one jump at most, with probability h Λ, Λ = Σ_y λ(y), to y ∝ λ(y); λ are the rates
                 of the reversed chain (:meth:`CategoricalPath.reverse_rates`), h = α_s − α_t;
``tau-leaping``  the same with probability 1 − e^{−hΛ} (Campbell et al. 2022): rates held for h;
``ab2``          L + w (L − L′), w = h/(2 h′), with L′ the ancestral law under the previous call's
                 estimate, and h′ that step's length, clipped at 0.

Where elements depend on each other the first three are of order 1: of two elements that jump in one
step neither knows of the other. ``ab2`` (Adams–Bashforth) is of order 2 at the same one call a
step. To leading order a pair's joint law lacks h²/2 for either order of the jumps (a, then b with
what a has changed); a jump of a in the step before and of b now has probability h′h, and w gives
back just that. It holds as long as nothing is clipped: no symbol may become less than
w/(1 + w) = 1/3 as probable by one jump elsewhere; what is clipped is an error of order 1 again. L′
must not count a's own jump: what the previous call said of an element is divided by q(x_t | x_0) of
its own symbol then, and multiplied by that of its symbol now. Trapezoidal steps (Anderson &
Mattingly 2011; Ren et al. 2025) extrapolate likewise, by w = 1 in every second step.

The reversed rates diverge at pure noise, and a run ends in a draw of x_0: the first and last
interval are ancestral for ``euler`` and ``tau-leaping``. For absorbing noise Euler is ancestral.

Absorbing corruption has one more knob, the probability ρ with which a symbol already seen is
masked again (Wang et al. 2025, ReMDM); marginals are kept for every ρ up to
ρ_max = min(1, (1 − α_s)/α_t):

    masked:   unmask with probability (α_s − (1 − ρ) α_t)/(1 − α_t), to a symbol from p(x_0 | x_t),
    unmasked: mask with probability ρ,                                 ρ = η ρ_max.

η = 0 is the plain chain; η > 0 lets mistakes be mended. On the last interval (s = 0) everything is
unmasked to its most probable symbol if ``greedy``, else to a draw.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from sciflow.errors import InputError
from sciflow.paths import CategoricalPath
from sciflow.random import Draws
from sciflow.samplers.plan import Plan
from sciflow.samplers.steppers import Stepper
from sciflow.state import Context

__all__ = ["MarkovJumps", "TokenMethod"]

TokenMethod = Literal["ancestral", "euler", "tau-leaping", "ab2"]


class MarkovJumps(Stepper):
    """Jumps of a token field.

    Args:
        path: the field's path.
        plan: the intervals.
        eta: how often seen symbols are masked again, 0 to 1 (absorbing only).
        temperature: logits are divided by it before a symbol is drawn.
        greedy: end with the most probable symbols.
        stream: name of the field's random numbers.
        method: see above.
    """

    remembers = ("memory",)

    def __init__(
        self,
        path: CategoricalPath,
        plan: Plan,
        eta: float = 0.0,
        temperature: float = 1.0,
        greedy: bool = True,
        stream: str = "field",
        method: TokenMethod = "ancestral",
    ):
        if method not in get_args(TokenMethod):
            known = ", ".join(get_args(TokenMethod))
            raise InputError(f"unknown token method {method!r}; known: {known}")
        self.path, self.stream, self.method = path, stream, method
        self.chain = path
        self.eta = eta if path.kind == "absorbing" else 0.0
        if self.eta > 0 and method in ("euler", "tau-leaping"):
            raise InputError(
                f"tokens are masked again (token_eta = {eta}) by the token methods ancestral and "
                f"ab2 only, not by {method}; set token_eta to 0 or choose one of them"
            )
        self.temperature, self.greedy = temperature, greedy
        self.alpha = list(
            zip(*(path.keep(t).tolist() for t in (plan.start, plan.end)), strict=True)
        )
        self.last = (plan.end <= 0).tolist()
        self.fresh = [age == 0 for age in plan.age]
        self.memory: tuple[Tensor, Tensor] | None = None
        self.before = 0.0

    def step(self, i: int, x: Tensor, clean: Tensor, context: Context, draws: Draws) -> Tensor:
        space = self.path.space
        if self.last[i] and self.greedy:
            return space.project(clean.argmax(-1), context)
        self.chain = self.path.within(context)
        law = self.law(i, x, (clean / self.temperature).softmax(-1))
        # In float64, where it stays below 1: on the last interval every token must be unmasked.
        u = space.uniform(context, draws, f"{self.stream}/value", i + 1)
        return space.project(space.sample(law, u), context)

    def law(self, i: int, x: Tensor, p0: Tensor) -> Tensor:
        """Probabilities of the symbol at the end of interval i, ``[..., symbols]``.

        Args:
            i: number of the interval.
            x: symbols at its start, ``[...]``.
            p0: probabilities of the clean symbol, ``[..., K]``.
        """
        at, as_ = self.alpha[i]
        if self.method == "ab2":
            return self._extrapolated(i, x, p0)
        if self.method == "ancestral" or self.last[i] or at <= 0:
            return self._ancestral(i, x, p0)
        rates = self.chain.reverse_rates(p0, x, _scalar(at, p0))
        total = rates.sum(-1, keepdim=True)
        mean = (as_ - at) * total
        jump = -torch.expm1(-mean) if self.method == "tau-leaping" else mean.clamp(max=1.0)
        here = F.one_hot(x, self.path.symbols).to(p0)
        return jump * rates / total.clamp(min=1e-30) + (1 - jump) * here

    def _ancestral(self, i: int, x: Tensor, p0: Tensor) -> Tensor:
        at, as_ = self.alpha[i]
        if self.path.kind != "absorbing":
            return self.chain.posterior(p0, x, _scalar(at, p0), _scalar(as_, p0))
        rho = 0.0 if self.last[i] else self.eta * min(1.0, (1 - as_) / max(at, 1e-12))
        unmask = min(1.0, (as_ - (1 - rho) * at) / max(1 - at, 1e-12))
        masked = F.one_hot(x.new_full((), self.path.classes), self.path.symbols).to(p0)
        here = F.one_hot(x, self.path.symbols).to(p0)
        seen = (x < self.path.classes)[..., None]
        new = F.pad(p0, (0, 1))
        stay = here.lerp(masked, rho) if rho > 0 else here
        return torch.where(seen, stay, unmask * new + (1 - unmask) * masked)

    def _extrapolated(self, i: int, x: Tensor, p0: Tensor) -> Tensor:
        """The ancestral law, carried on from that of the previous call; remembers this one."""
        at, as_ = self.alpha[i]
        law = self._ancestral(i, x, p0)
        if as_ <= at:  # A second call at one time; its estimate is of other fields' half steps.
            return law
        step = at - self.before
        memory, self.memory, self.before = self.memory, self._cavity(i, x, p0), at
        if memory is None or self.fresh[i]:
            return law
        cavity, known = memory
        earlier = cavity * self.chain.likelihood(x, _scalar(at, p0), p0.dtype)
        total = earlier.sum(-1, keepdim=True)
        # Of a symbol that was seen, and is masked again, the previous estimate says nothing.
        usable = (total > 0) & ~known
        earlier = torch.where(usable, earlier / total.clamp(min=1e-30), p0)
        weight = (as_ - at) / (2 * step)
        return torch.add(law, law - self._ancestral(i, x, earlier), alpha=weight).clamp(min=0)

    def _cavity(self, i: int, x: Tensor, p0: Tensor) -> tuple[Tensor, Tensor]:
        """p_0(x_0)/q(x_t | x_0), what the other elements say; and where that cannot be told."""
        evidence = self.chain.likelihood(x, _scalar(self.alpha[i][0], p0), p0.dtype)
        cavity = p0 / evidence.clamp(min=1e-30)
        known = (evidence <= 0).any(-1, keepdim=True)
        cavity = torch.where(evidence > 0, cavity, torch.zeros_like(cavity))
        return cavity / cavity.sum(-1, keepdim=True).clamp(min=1e-30), known


def _scalar(alpha: float, like: Tensor) -> Tensor:
    return torch.tensor(alpha, dtype=torch.float64, device=like.device)
