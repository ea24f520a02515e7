r"""Corruption of tokens: each forgets its value at its own moment.

    q(x_t | x_0) = α_t δ(x_t, x_0) + (1 − α_t) π(x_t),      α = a/(a + s),

a Markov chain with Q_{t|s} = (α_t/α_s) 1 + (1 − α_t/α_s) 1πᵀ. The stationary π makes the kind
(Austin et al. 2021, D3PM):

* ``absorbing``: π = a further symbol K, "masked"; a symbol once seen is right (Sahoo et al. 2024);
* ``uniform``: π = 1/K;
* ``marginal``: π = the data's frequencies (Vignac et al. 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from sciflow.paths.base import Path
from sciflow.random import Draws
from sciflow.schedules import Schedule
from sciflow.spaces import Tokens
from sciflow.state import Context

__all__ = ["CategoricalPath", "Corruption"]

Corruption = Literal["absorbing", "uniform", "marginal"]
_SURE = 40.0
"""Logit of a symbol that is known: e⁻⁴⁰ is below the resolution of float64."""


class CategoricalPath(Path):
    """Token corruption; the clean estimate is a tensor of logits ``[B, *elements, K]``.

    Args:
        space: a :class:`~sciflow.spaces.Tokens` with K classes.
        schedule: sets the probability α = a/(a + s) that a token still has its value.
        kind: which π; see above.
        marginal: the K frequencies, for ``kind="marginal"``.
    """

    space: Tokens

    def __init__(
        self,
        space: Tokens,
        schedule: Schedule,
        kind: Corruption = "absorbing",
        marginal: Sequence[float] | None = None,
    ):
        super().__init__(space, schedule)
        if kind not in get_args(Corruption):
            raise ValueError(
                f"unknown corruption {kind!r}; known: {', '.join(get_args(Corruption))}"
            )
        k = space.classes
        if kind == "marginal":
            if marginal is None or len(marginal) != k:
                raise ValueError(f"kind='marginal' needs {k} frequencies, got {marginal}")
            pi = torch.tensor(marginal, dtype=torch.float64)
            self.stationary = pi / pi.sum()
        elif kind == "uniform":
            self.stationary = torch.full((k,), 1 / k, dtype=torch.float64)
        else:
            self.stationary = F.one_hot(torch.tensor(k), k + 1).double()
        self.kind, self.classes, self.marginal = kind, k, marginal

    @property
    def symbols(self) -> int:
        """Number of values a token can hold on the way: K, or K + 1 with the masked symbol."""
        return len(self.stationary)

    def with_schedule(self, schedule: Schedule) -> Self:
        return type(self)(self.space, schedule, self.kind, self.marginal)

    def keep(self, t: Tensor) -> Tensor:
        """α(t), the probability that a token is still itself."""
        a, s = self.schedule(t)
        return a / (a + s)

    def prior(self, context: Context, draws: Draws, stream: str, dtype: torch.dtype) -> Tensor:
        u = self.space.uniform(context, draws, stream, 0)
        return self._stationary_sample(u, context)

    def corrupt(self, x0: Tensor, t: Tensor, context: Context, draws: Draws, stream: str,
                step: int = 0) -> Tensor:  # fmt: skip
        u = self.space.uniform(context, draws, stream, 2 * step)
        forget = u > self.keep(self.space.expand(t, x0))
        other = self._stationary_sample(
            self.space.uniform(context, draws, stream, 2 * step + 1), context
        )
        return torch.where(forget, other, x0)

    def renoise(self, x: Tensor, s: float, t: float, context: Context, draws: Draws, stream: str,
                step: int = 0) -> Tensor:  # fmt: skip
        """Each token stays with probability α_t/α_s, and is drawn from π else."""
        at, as_ = (float(self.keep(torch.tensor(u, dtype=torch.float64))) for u in (t, s))
        forget = self.space.uniform(context, draws, stream, 2 * step) > at / as_
        other = self._stationary_sample(
            self.space.uniform(context, draws, stream, 2 * step + 1), context
        )
        return self.space.project(torch.where(forget, other, x), context)

    def network_input(self, x_t: Tensor, t: Tensor) -> Tensor:
        return x_t

    def clean(self, output: Tensor, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        """Logits; what is known (given, or unmasked under absorbing noise) is certain."""
        known = (self.space.expand(t, x_t) <= 0).expand(x_t.shape)
        if self.kind == "absorbing":
            known = known | (x_t < self.classes)
        sure = F.one_hot(x_t.clamp(max=self.classes - 1), self.classes).to(output.dtype) * _SURE
        return torch.where(known[..., None], sure, output)

    def loss(self, clean: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        """Cross-entropy summed over unknown tokens, divided by the sample's tokens, ``[B]``."""
        ce = F.cross_entropy(clean.movedim(-1, 1), x0, reduction="none")
        unknown = (self.space.expand(t, x0) > 0).expand(x0.shape)
        if self.kind == "absorbing":
            unknown = unknown & (x_t == self.classes)
        total = self.space.sum(ce * unknown, context)
        return total / self.space.count(context).clamp(min=1)

    def config(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "classes": self.classes,
            "pairs": self.space.pairs,
            "schedule": self.schedule.config(),
            "marginal": None if self.marginal is None else list(self.marginal),
        }

    def posterior(self, p0: Tensor, x_t: Tensor, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
        r"""p(x_s | x_t) = Σ_{x_0} p_0(x_0) q(x_s | x_t, x_0), for s < t; ``[..., symbols]``.

        q(x_s | x_t, x_0) = Q_{t|s}(x_s → x_t) q(x_s | x_0) / q(x_t | x_0).

        Args:
            p0: ``[..., K]`` probabilities of the clean symbol.
            x_t: ``[...]`` current symbols.
            alpha_t: keep probabilities at t and s, broadcastable to ``x_t``.
            alpha_s: see ``alpha_t``; larger.
        """
        pi = self.stationary.to(p0)
        k = self.symbols
        p0 = F.pad(p0, (0, k - self.classes))
        at, as_ = (a.to(p0)[..., None] for a in torch.broadcast_tensors(alpha_t, alpha_s))
        here = F.one_hot(x_t, k).to(p0)
        pi_here = pi[x_t][..., None]
        # 1 / q(x_t | x_0), with 0/0 = 0 where x_0 cannot have led to x_t (absorbing only).
        evidence = at * here + (1 - at) * pi_here
        w = torch.where(evidence > 0, p0 / evidence.clamp(min=1e-30), torch.zeros_like(p0))
        ratio = at / as_.clamp(min=1e-30)
        back = ratio * here + (1 - ratio) * pi_here
        p = back * (as_ * w + (1 - as_) * pi * w.sum(-1, keepdim=True))
        return p / p.sum(-1, keepdim=True).clamp(min=1e-30)

    def _stationary_sample(self, u: Tensor, context: Context) -> Tensor:
        p = self.stationary.to(u.device).expand(*u.shape, -1)
        return self.space.project(self.space.sample(p, u), context)
