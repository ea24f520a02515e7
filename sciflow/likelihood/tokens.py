r"""A bound on the log-probability of tokens under absorbing corruption.

A symbol of a field is masked with probability m_f = 1 − α_f, and in continuous time (Sahoo et al.
2024; Shi et al. 2024)

    −log p(x_0) ≤ Σ_f ∫ dt (m_f'/m_f) E [ Σ_{i masked} −log p(x_0^i | x_t) ],

with equality where the conditionals p(x^i | unmasked) are those of one joint distribution: the
right side is then the chain rule, averaged over random orders. Drawn as it stands, with t uniform,
the integral has infinite variance at small m. Instead each of the L tokens draws the moment at
which it is masked, and one of these L moments is chosen, the k-th, all being masked up to then:

    −log p(x_0) ≤ L · E_k [ Σ_{i masked} h_i ce_i / Σ_{i masked} h_i ],     h_i = m_f'/m_f,

which is the same integral and bounded; with one schedule it is (L/k) Σ ce_i. k is uniform in 1 … L
and stratified: one draw a stratum with one random shift a sample (Kingma et al. 2021).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sciflow.denoisers import Denoiser
from sciflow.errors import InputError
from sciflow.likelihood.clock import Clock, noise_share, split_fields
from sciflow.paths import CategoricalPath, Path
from sciflow.random import Draws
from sciflow.state import State

__all__ = ["TokenBound", "TokenLikelihood"]


@dataclass(frozen=True)
class TokenBound:
    """What is known of the log-probabilities of a batch.

    Attributes:
        log_probability: estimated lower bound in nats, ``[B]``, float64.
        standard_error: of that estimate ``[B]``, as if k were not stratified: an upper estimate.
        tokens: L of each sample, ``[B]``; a symmetric pair counts once.
        calls: evaluations of the denoiser.
    """

    log_probability: Tensor
    standard_error: Tensor
    tokens: Tensor
    calls: int

    @property
    def perplexity(self) -> Tensor:
        """exp(−log p / tokens), an upper bound, ``[B]``."""
        return (-self.log_probability / self.tokens).exp()


@dataclass(frozen=True)
class TokenLikelihood:
    """How the bound is estimated; plain data.

    Attributes:
        strata: how many times k is drawn, one call each.
    """

    strata: int = 64

    def __post_init__(self) -> None:
        if self.strata < 1:
            raise InputError(f"strata must be at least 1, not {self.strata}")

    def __call__(self, denoiser: Denoiser, state: State, draws: Draws) -> TokenBound:
        """Bounds for clean samples; gradients flow where grad mode is on.

        Args:
            denoiser: the model; all its fields that are not given must be absorbing tokens.
            state: clean fields; what ``context.given`` marks is what p is conditional on.
            draws: random numbers; sample i depends on (seed, ``draws.samples[i]``) alone.

        Raises:
            InputError: a field that is free and no absorbing token.
        """
        names, free = split_fields(denoiser.paths, state, CategoricalPath)
        paths: dict[str, CategoricalPath] = {}
        for name in names:
            path = denoiser.paths[name]
            assert isinstance(path, CategoricalPath)
            if path.kind != "absorbing" and bool(free[name].any()):
                raise InputError(
                    f"the bound is that of absorbing corruption; field {name!r} has "
                    f"{path.kind!r}: give it, or train with kind='absorbing'"
                )
            paths[name] = path
        clock, n = Clock({name: path.schedule for name, path in paths.items()}), self.strata
        shift = draws.uniform((), "likelihood/order", 0, torch.float64, state.device)
        total = _total(paths, free, state)
        values = torch.stack([
            total * _mean_loss(denoiser, state, draws, clock, paths, free,
                               (total * (j + shift) / n).long(), j)
            for j in range(n)
        ])  # fmt: skip
        error = values.detach().std(0) / math.sqrt(n) if n > 1 else values.detach()[0] * torch.nan
        return TokenBound(-values.mean(0), error, total, n)


def _mean_loss(denoiser: Denoiser, state: State, draws: Draws, clock: Clock,
               paths: Mapping[str, CategoricalPath], free: Mapping[str, Tensor], k: Tensor,
               step: int) -> Tensor:  # fmt: skip
    """Cross-entropy of the masked tokens, averaged with weights h, ``[B]``.

    Args:
        k: how many tokens are masked beside the first, ``[B]``.
        step: number of the draw.
    """
    context = state.context
    when = {
        name: _moments(clock, name, path.space.uniform(context, draws, f"likelihood/{name}", step))
        for name, path in paths.items()
    }
    once = [_once(path, when[name].masked_fill(~free[name], math.inf)).flatten(1)
            for name, path in paths.items()]  # fmt: skip
    moments = torch.cat(once, 1).sort(1).values
    moment = moments.gather(1, k.clamp(max=moments.shape[1] - 1)[:, None])[:, 0].clamp(max=1)
    t = clock.time(moment)
    rates, masked, noisy = clock.rates(t), {}, {}
    for name, path in paths.items():
        hidden = (when[name] <= path.space.expand(moment, when[name])) & free[name]
        masked[name] = hidden
        noisy[name] = torch.where(hidden, path.classes, state[name])
    prediction = denoiser(state.replace(**noisy), t)
    lost, weight = torch.zeros_like(moment), torch.zeros_like(moment)
    for name, path in paths.items():
        same = path.schedule == clock.pace
        share = moment if same else noise_share(*path.schedule(t))
        h = rates[name] / share * _multiplicity(path)
        logits = prediction[name].double().movedim(-1, 1)
        ce = F.cross_entropy(logits, state[name], reduction="none")
        lost = lost + h * path.space.sum(ce.masked_fill(~masked[name], 0), context)
        weight = weight + h * path.space.sum(masked[name].double(), context)
    return lost / weight.clamp(min=1e-30)


def _moments(clock: Clock, name: str, u: Tensor) -> Tensor:
    """The first field's m at which tokens of another field reach their own m = ``u``."""
    schedule = clock.schedules[name]
    if schedule == clock.pace:
        return u
    return noise_share(*clock.pace(schedule.invert(noise_share, u)))


def _total(paths: Mapping[str, Path], free: Mapping[str, Tensor], state: State) -> Tensor:
    """L of each sample, float64 ``[B]``."""
    counts = [_multiplicity(path) * path.space.sum(free[name].double(), state.context)
              for name, path in paths.items()]  # fmt: skip
    return torch.stack(counts).sum(0)


def _multiplicity(path: Path) -> float:
    """A symmetric field holds each of its tokens twice."""
    return 0.5 if getattr(path.space, "pairs", False) else 1.0


def _once(path: CategoricalPath, when: Tensor) -> Tensor:
    """The moments with each token once: of pairs, the upper triangle."""
    if not path.space.pairs:
        return when
    lower = torch.ones_like(when, dtype=torch.bool).tril()
    return when.masked_fill(lower, math.inf)
