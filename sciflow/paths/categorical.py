r"""Corruption of tokens: each forgets its value at its own moment, or by and by.

    q(x_t | x_0) = α_t δ(x_t, x_0) + (1 − α_t) π(x_t),      α = a/(a + s),

a Markov chain with Q_{t|s} = (α_t/α_s) 1 + (1 − α_t/α_s) 1πᵀ. The stationary π makes the kind
(Austin et al. 2021, D3PM):

* ``absorbing``: π = a further symbol K, "masked"; a symbol once seen is right (Sahoo et al. 2024);
* ``uniform``: π = 1/K;
* ``marginal``: π = the data's frequencies (Vignac et al. 2023); or one π an element, from the
  context: frequencies given another, fixed field (after Liu et al. 2024, Graph DiT), see
  :func:`~sciflow.paths.companion.stationary_given`;
* ``matrix``: any chain in detailed balance, q(x_t | x_0) = Q(α_t), see
  :mod:`sciflow.paths.transitions`: ordered symbols move to their neighbours first.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any, Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from sciflow.errors import InputError
from sciflow.paths.base import Path
from sciflow.paths.transitions import Interpolating, Reversible, Transitions
from sciflow.random import Draws
from sciflow.schedules import Schedule
from sciflow.spaces import Tokens
from sciflow.state import Context

__all__ = ["CategoricalPath", "Corruption"]

Corruption = Literal["absorbing", "uniform", "marginal", "matrix"]
_SURE = 40.0
"""Logit of a symbol that is known: e⁻⁴⁰ is below the resolution of float64."""


class CategoricalPath(Path):
    """Token corruption; the clean estimate is a tensor of logits ``[B, *elements, K]``.

    Args:
        space: a :class:`~sciflow.spaces.Tokens` with K classes.
        schedule: sets the probability α = a/(a + s) that a token still has its value.
        kind: which π; see above.
        marginal: for ``kind="marginal"`` the K frequencies; or the name of the entry of
            ``context.extras`` that holds those of every element, ``[B, *elements, K]`` (of pairs
            the upper triangle counts).
        rates: ``[K, K]`` from row to column, for ``kind="matrix"``.
    """

    space: Tokens

    def __init__(
        self,
        space: Tokens,
        schedule: Schedule,
        kind: Corruption = "absorbing",
        marginal: Sequence[float] | str | None = None,
        rates: Sequence[Sequence[float]] | None = None,
    ):
        super().__init__(space, schedule)
        if kind not in get_args(Corruption):
            raise ValueError(
                f"unknown corruption {kind!r}; known: {', '.join(get_args(Corruption))}"
            )
        k = space.classes
        self.kind, self.classes, self.marginal, self.rates = kind, k, marginal, rates
        self._chain = self._transitions()

    def _transitions(self) -> Transitions | None:
        k = self.classes
        if self.kind == "matrix":
            if self.rates is None or len(self.rates) != k:
                raise InputError(f"kind='matrix' needs rates [{k}, {k}], got {self.rates}")
            return Reversible(self.rates)
        if self.kind == "absorbing":
            return Interpolating(F.one_hot(torch.tensor(k), k + 1).double())
        if self.kind == "uniform":
            return Interpolating(torch.full((k,), 1 / k, dtype=torch.float64))
        if isinstance(self.marginal, str):
            return None
        if self.marginal is None or len(self.marginal) != k:
            raise ValueError(f"kind='marginal' needs {k} frequencies, got {self.marginal}")
        pi = torch.tensor(self.marginal, dtype=torch.float64)
        return Interpolating(pi / pi.sum())

    @property
    def transitions(self) -> Transitions:
        """The chain. Where π comes from a context, only a path :meth:`within` one has it."""
        if self._chain is None:
            raise InputError(
                f"frequencies are those of context.extras[{self.marginal!r}]: ask "
                "path.within(context) in place of the path"
            )
        return self._chain

    @property
    def stationary(self) -> Tensor:
        """π, float64 ``[S]``, or ``[B, *elements, S]`` where it comes from the context."""
        return self.transitions.stationary

    @property
    def symbols(self) -> int:
        """Number of values a token can hold on the way: K, or K + 1 with the masked symbol."""
        return self.classes + (self.kind == "absorbing")

    def within(self, context: Context) -> Self:
        """The path with the transitions of this batch: itself, unless π comes from the context.

        Raises:
            InputError: the context has no such frequencies, or they do not fit the field.
        """
        if self.kind != "marginal" or not isinstance(self.marginal, str):
            return self
        pi = context.extras.get(self.marginal)
        shape = (*self.space.mask(context).shape, self.classes)
        if pi is None or pi.shape != shape:
            found = f"only {sorted(context.extras)}" if pi is None else f"one {list(pi.shape)}"
            raise InputError(
                f"frequencies are those of context.extras[{self.marginal!r}], {list(shape)} for "
                f"this batch, but there is {found}; stationary_given makes them from a table"
            )
        pi = pi.double()
        if not bool(((pi >= 0) & pi.isfinite()).all()):
            raise InputError(
                f"frequencies must be finite and 0 or more; context.extras[{self.marginal!r}] holds"
                " others"
            )
        bound = copy(self)
        bound._chain = Interpolating(pi / pi.sum(-1, keepdim=True).clamp(min=1e-30))
        return bound

    def with_schedule(self, schedule: Schedule) -> Self:
        return type(self)(self.space, schedule, self.kind, self.marginal, self.rates)

    def keep(self, t: Tensor) -> Tensor:
        """α(t), the probability that a token is still itself (what is left of it: ``matrix``)."""
        a, s = self.schedule(t)
        return a / (a + s)

    def prior(self, context: Context, draws: Draws, stream: str, dtype: torch.dtype) -> Tensor:
        u = self.space.uniform(context, draws, stream, 0)
        return self._stationary_sample(u, context)

    def corrupt(self, x0: Tensor, t: Tensor, context: Context, draws: Draws, stream: str,
                step: int = 0) -> Tensor:  # fmt: skip
        alpha = self.keep(self.space.expand(t, x0))
        return self._jump(x0, alpha, context, draws, stream, step)

    def renoise(self, x: Tensor, s: float, t: float, context: Context, draws: Draws, stream: str,
                step: int = 0) -> Tensor:  # fmt: skip
        """Q(α_t/α_s): each token stays with that probability, and is drawn from π else."""
        at, as_ = (float(self.keep(torch.tensor(u, dtype=torch.float64))) for u in (t, s))
        ratio = torch.tensor(at / as_, dtype=torch.float64, device=x.device)
        jumped = self._jump(x, ratio, context, draws, stream, step)
        return self.space.project(jumped, context)

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

    def extrapolate(self, x_t: Tensor, clean: Tensor, weak: Tensor, weight: float) -> Tensor:
        """log p + w (log p − log p_weak)."""
        return super().extrapolate(x_t, clean.log_softmax(-1), weak.log_softmax(-1), weight)

    def config(self) -> dict[str, Any]:
        m = self.marginal
        return {
            "kind": self.kind,
            "classes": self.classes,
            "pairs": self.space.pairs,
            "schedule": self.schedule.config(),
            "marginal": m if m is None or isinstance(m, str) else list(m),
            **({} if self.rates is None else {"rates": [list(row) for row in self.rates]}),
        }

    def likelihood(self, x_t: Tensor, alpha: Tensor, dtype: torch.dtype) -> Tensor:
        """q(x_t | x_0) of every clean symbol x_0, ``[..., K]``.

        Args:
            x_t: ``[...]`` current symbols.
            alpha: keep probabilities, broadcastable to ``x_t``.
            dtype: of the answer.
        """
        here = F.one_hot(x_t, self.symbols).to(dtype)
        return self.transitions.pull(here, alpha.to(dtype))[..., : self.classes]

    def posterior(self, p0: Tensor, x_t: Tensor, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
        r"""p(x_s | x_t) = Σ_{x_0} p_0(x_0) q(x_s | x_t, x_0), for s < t; ``[..., symbols]``.

        q(x_s | x_t, x_0) = Q_{t|s}(x_s → x_t) q(x_s | x_0) / q(x_t | x_0).

        Args:
            p0: ``[..., K]`` probabilities of the clean symbol.
            x_t: ``[...]`` current symbols.
            alpha_t: keep probabilities at t and s, broadcastable to ``x_t``.
            alpha_s: see ``alpha_t``; larger.
        """
        at, as_ = (a.to(p0) for a in torch.broadcast_tensors(alpha_t, alpha_s))
        here = F.one_hot(x_t, self.symbols).to(p0)
        back = self.transitions.pull(here, at / as_.clamp(min=1e-30))
        p = back * self.transitions.push(self._per_evidence(p0, x_t, at), as_)
        return p / p.sum(-1, keepdim=True).clamp(min=1e-30)

    def reverse_rates(self, p0: Tensor, x_t: Tensor, alpha_t: Tensor) -> Tensor:
        r"""Rates of the reversed chain from x_t to every other symbol, per unit of α.

        λ(y) = R(y → x_t)/α Σ_{x_0} p_0(x_0) q(y | x_0)/q(x_t | x_0)   (Campbell et al. 2022),
        which diverges at pure noise, α = 0.

        Args:
            p0: see :meth:`posterior`.
            x_t: see :meth:`posterior`.
            alpha_t: see :meth:`posterior`; above 0.
        """
        at = alpha_t.to(p0)
        inward = self.transitions.inward(x_t).to(p0)
        return inward / at[..., None] * self.transitions.push(self._per_evidence(p0, x_t, at), at)

    def _per_evidence(self, p0: Tensor, x_t: Tensor, alpha: Tensor) -> Tensor:
        """p_0(x_0)/q(x_t | x_0), with 0/0 = 0 where x_0 cannot have led to x_t; ``[..., S]``."""
        evidence = self.likelihood(x_t, alpha, p0.dtype)
        w = torch.where(evidence > 0, p0 / evidence.clamp(min=1e-30), torch.zeros_like(p0))
        return F.pad(w, (0, self.symbols - self.classes))

    def _jump(self, x: Tensor, alpha: Tensor, context: Context, draws: Draws, stream: str,
              step: int) -> Tensor:  # fmt: skip
        """A draw of Q(α) from ``x``."""
        u = self.space.uniform(context, draws, stream, 2 * step)
        if self.kind == "matrix":
            here = F.one_hot(x, self.symbols).to(u.dtype)
            p = self.transitions.push(here, alpha.to(u.dtype))
            return self.space.project(self.space.sample(p, u), context)
        other = self._stationary_sample(
            self.space.uniform(context, draws, stream, 2 * step + 1), context
        )
        return torch.where(u > alpha, other, x)

    def _stationary_sample(self, u: Tensor, context: Context) -> Tensor:
        p = self.within(context).stationary.to(u.device).expand(*u.shape, -1)
        return self.space.project(self.space.sample(p, u), context)
