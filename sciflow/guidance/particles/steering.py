r"""Particles: K weighted trajectories a sample, of which promising ones are copied.

The target is the sampler's own law tilted by a reward, p(x_0) e^{λ r(x_0)}, with f = e^{λ r} the
likelihood of an observation for example. Particle k carries

    log w = log ψ(now) + Σ [ log p(x' | x) − log p̃(x' | x) ],

log ψ a guess of λ r(x_0) from the clean estimate D(x_t), which ends in λ r(x_0) itself, and p̃ the
law that made the step where it is not the model's. Where a group's effective sample size
1/Σ w̄² falls below ``threshold`` K its particles are drawn anew in proportion to their weights, by
one uniform a group (systematic resampling), and all weigh the same afterwards. **Else the weights
stay and go on accumulating**: without that the result is biased.

Feynman–Kac steering (Singhal et al. 2025), gradient-free, with one of three potentials, taken where
resampling is considered:

    difference   log ψ_t = λ_t r(D_t)                      the best guess of the reward now
    max          log ψ_t = Σ_{s ≥ t} λ_s max_{u ≥ s} r(D_u)
    sum          log ψ_t = Σ_{s ≥ t} λ_s Σ_{u ≥ s} r(D_u)

Twisted diffusion sampling (Wu et al. 2023) also steers the steps, D̃ = D + (s²/a) C ∇ λ r(D(x_t)),
and weighs them by the two Gaussians N(A x + c D, σ² C) and N(A x + c D̃, σ² C) of the stepper.

A reward that is much sharper than what x_t tells of x_0 must not be believed at once. With

    λ_t = λ/(1 + blur · V_t/σ_d²),     V_t = σ_d² s²/(a² σ_d² + s²),

the guess is as wide as the reward and the uncertainty together: for a measurement of variance v of
something whose variance under the model is V, ``blur`` = V/v. The published form is blur = 0.

*What is exact.* Steering is consistent (K → ∞) under any sampler, whose law p then is; copies of a
particle part again only where steps are stochastic, so a deterministic solver gains from the
choice of its starts alone. Twisting needs steps of a known law with noise in all but the last:
``ddpm``, ``ddim`` with η > 0, ``sde``. The evidence E_p[e^{λ r}] is estimated without bias for
every K. A single draw out of K particles has the law of the target up to O(1/K).

Best-of-n is ``threshold=0, pick="best"``; ``threshold=0, pick="draw"`` is importance resampling at
the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.guidance.particles.twisting import Twist, Twisted, clean_state, transition_ratio
from sciflow.paths import GaussianPath
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.samplers.passes import pace_setter
from sciflow.state import Context, State

__all__ = ["ParticleReport", "Potential", "sample_particles", "systematic"]

Potential = Literal["difference", "max", "sum"]
Pick = Literal["draw", "best"]


@dataclass(frozen=True)
class ParticleReport:
    """What a run of particles produced.

    Attributes:
        state: one clean sample a group, ``[B, ...]``.
        particles: all of them, ``[B·K, ...]``, the K of a group in a row.
        rewards: r(x_0), float64 ``[B, K]``; minus infinity where it is not a number.
        log_weights: of the particles, normalised in each group, float64 ``[B, K]``.
        log_evidence: log of the unbiased estimate of E[e^{λ r}], float64 ``[B]``.
        ess: effective sample size at the end, 1 to K, float64 ``[B]``.
        ess_history: where resampling was considered, before it, ``[considered, B]``.
        resampled: how often each group was, int64 ``[B]``.
        roots: which of the K starts each particle descends from, int64 ``[B, K]``: few different
            ones are a warning.
        calls: evaluations of the denoiser a group, K times those of one sample.
        reward_calls: evaluations of the reward a group.
        broken: bool ``[B]``, the chosen sample holds a value that is not finite.
    """

    state: State
    particles: State
    rewards: Tensor
    log_weights: Tensor
    log_evidence: Tensor
    ess: Tensor
    ess_history: Tensor
    resampled: Tensor
    roots: Tensor
    calls: int
    reward_calls: int
    broken: Tensor


def sample_particles(
    sampler: Sampler,
    denoiser: Denoiser,
    context: Context,
    draws: Draws,
    reward: Callable[[State], Tensor],
    particles: int = 8,
    *,
    scale: float = 1.0,
    potential: Potential = "difference",
    twisted: bool = False,
    blur: float = 0.0,
    threshold: float = 0.5,
    every: int = 1,
    pick: Pick = "draw",
    given: dict[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ParticleReport:
    """Samples from the model's law tilted by e^{scale · reward}; see the module.

    Sample i depends on (seed, ``draws.samples[i]``, K) alone. Particle k of it has the random
    numbers of sample number K i + k; the particles of one sample are rows of one batch.

    Args:
        sampler: any; with ``twisted`` a stochastic one of order 1.
        denoiser: the model, guided or not.
        context: of the B samples.
        draws: of the B samples.
        reward: r of clean states, ``[rows]``; token fields are probabilities ``[..., K]``. Where it
            is not finite on an estimate the particle keeps its weight; on a finished sample that
            counts as minus infinity. Differentiable for ``twisted``.
        particles: K.
        scale: λ.
        potential: how estimates are weighed on the way.
        blur: how many times wider the model is than the reward, in variances; see the module.
        twisted: also steer the steps by the gradient of the reward.
        threshold: resample below this share of K; 0 never, above 1 always.
        every: consider resampling at every so many calls.
        pick: ``draw`` the result in proportion to the weights, or take the ``best`` reward.
        given: values of given elements, ``{field: [B, ...]}``.
        dtype: of continuous fields.
        progress: called with (calls done, calls in all).

    Raises:
        InputError: a setting that cannot be, or a sampler whose steps cannot be twisted.
    """
    if particles < 1 or every < 1:
        raise InputError(f"particles and every must be 1 or more, not {particles} and {every}")
    if potential not in get_args(Potential):
        known = ", ".join(get_args(Potential))
        raise InputError(f"unknown potential {potential!r}; known: {known}")
    if pick not in get_args(Pick):
        raise InputError(f"pick is one of {', '.join(get_args(Pick))}, not {pick!r}")
    if not 0 <= scale < math.inf or not threshold >= 0 or not blur >= 0:
        raise InputError(
            f"scale, threshold and blur must be 0 or more, not {scale}, {threshold} and {blur}; a "
            "reward that is to be small is asked for with its sign changed"
        )
    if twisted and potential != "difference":
        raise InputError(f"twisted steps are weighed by potential='difference', not {potential!r}")
    k = particles
    own = torch.arange(k, device=draws.samples.device)
    numbers = (draws.samples[:, None] * k + own).flatten()
    wide = context.apply(lambda x: x.repeat_interleave(k, 0))
    plan = sampler.plan(denoiser)
    run = _Run(denoiser, reward, draws, k, context.mask.device, len(plan) - 1, scale, potential,
               blur, threshold, every)  # fmt: skip
    model = denoiser
    if twisted and scale > 0:
        run.ratio = transition_ratio(sampler, denoiser)
        model = Twisted(denoiser, lambda clean, t: run.scale_at(t) * reward(clean),
                        until=float(plan.start[-1]))  # fmt: skip
    values = {name: x.repeat_interleave(k, 0) for name, x in (given or {}).items()}
    report = sampler(model, wide, Draws(draws.seed, numbers), given=values or None, dtype=dtype,
                     progress=progress, select=run.select)  # fmt: skip
    rewards = run.finish(report.state)
    weights = _normal(run.log_w)
    if pick == "best":
        best = rewards.argmax(1)
    else:
        u = draws.uniform((), "particles/pick", 0, torch.float64, weights.device)
        best = systematic(weights, u, 1)[:, 0]
    rows = torch.arange(len(context), device=best.device) * k + best
    chosen = State({f: x[rows] for f, x in report.state.items()}, context)
    broken = torch.zeros(len(context), dtype=torch.bool, device=best.device)
    for x in chosen.values():
        broken = broken | ~x.flatten(1).isfinite().all(1)
    return ParticleReport(
        chosen, report.state, rewards, _normal(run.log_w).log(), run.log_z, _ess(run.log_w),
        torch.stack(run.history) if run.history else rewards.new_zeros(0, len(context)),
        run.resampled, run.roots, k * report.calls, k * run.reward_calls, broken,
    )  # fmt: skip


def systematic(weights: Tensor, u: Tensor, n: int) -> Tensor:
    """``n`` draws of each row in proportion to ``weights [B, K]``, by one uniform ``u [B]`` each.

    Item k is taken ⌊n w̄_k⌋ or ⌈n w̄_k⌉ times. Int64 ``[B, n]``, rising.
    """
    total = weights.cumsum(1)
    places = (torch.arange(n, device=u.device) + u[:, None]) / n * total[:, -1:]
    found = torch.searchsorted(total, places)
    return found.clamp(max=weights.shape[1] - 1)


class _Run:
    """Weights of one run; its :meth:`select` is the sampler's hook."""

    def __init__(self, denoiser: Denoiser, reward: Callable[[State], Tensor], draws: Draws, k: int,
                 device: torch.device, end: int, scale: float, potential: Potential, blur: float,
                 threshold: float, every: int):  # fmt: skip
        self.paths, self.reward, self.draws, self.k = denoiser.paths, reward, draws, k
        self.scale, self.potential, self.blur = scale, potential, blur
        self.threshold, self.every, self.end = threshold, every, end
        size = len(draws)
        zeros = torch.zeros(size, k, dtype=torch.float64, device=device)
        self.log_w = self.psi = zeros
        self.seen = zeros - torch.inf if potential == "max" else zeros
        self.log_z = zeros[:, 0]
        self.roots = torch.arange(k, device=device).expand(size, k)
        self.resampled = torch.zeros(size, dtype=torch.int64, device=device)
        self.history: list[Tensor] = []
        self.reward_calls = 0
        self.ratio: Callable[[int, State, Twist, State], Tensor] | None = None
        self.last: tuple[int, State, Twist] | None = None

    def scale_at(self, t: float) -> float:
        """λ_t."""
        if self.blur == 0:
            return self.scale
        pace = pace_setter(self.paths)
        a, s = (float(y) ** 2 for y in pace.schedule(torch.tensor(t, dtype=torch.float64)))
        variance = pace.data_std**2 if isinstance(pace, GaussianPath) else 1.0
        return self.scale / (1 + self.blur * s / (a * variance + s))

    def select(self, i: int, t: float, state: State, prediction: Prediction) -> Tensor | None:
        """Weigh the particles at call ``i``, and say which go on."""
        # Copies made before the last step, which has no noise, would stay copies.
        look = i % self.every == 0 and i < self.end
        if isinstance(prediction, Twist):
            if self.ratio is not None and self.last is not None:
                ratio = self.ratio(self.last[0], self.last[1], self.last[2], state)
                # A trajectory that broke does not go on.
                ratio = ratio.nan_to_num(-torch.inf, -torch.inf)
                self.log_w = self.log_w + ratio.view_as(self.log_w)
            self._weigh(prediction.log_f.view_as(self.log_w))
            self.reward_calls += 1
        elif look and self.scale > 0:
            clean = clean_state(self.paths, state.context, prediction.clean)
            self._weigh(self._potential(clean, self.scale_at(t)))
        rows = self._resample(i) if look else None
        if isinstance(prediction, Twist):
            self.last = (i, state, prediction)
            if rows is not None:
                moved = State({f: x[rows] for f, x in state.items()}, state.context)
                self.last = (i, moved, prediction.index(rows))
        return rows

    def finish(self, state: State) -> Tensor:
        """The weights of the finished samples, and their rewards ``[B, K]``."""
        r = self._rewards(clean_state(self.paths, state.context, state.fields))
        r = r.where(r.isfinite(), torch.full_like(r, -torch.inf))
        if self.scale > 0:
            self.log_w = self.log_w + self.scale * r - self.psi
        self.log_z = self.log_z + self.log_w.logsumexp(1) - math.log(self.k)
        return r

    def _weigh(self, psi: Tensor) -> None:
        psi = psi.where(psi.isfinite(), self.psi)
        self.log_w, self.psi = self.log_w + psi - self.psi, psi

    def _potential(self, clean: State, scale: float) -> Tensor:
        r = self._rewards(clean)
        if self.potential == "difference":
            return scale * r
        more = self.seen + r if self.potential == "sum" else torch.maximum(self.seen, r)
        self.seen = more.where(r.isfinite(), self.seen)
        return self.psi + scale * self.seen

    def _rewards(self, clean: State) -> Tensor:
        self.reward_calls += 1
        with torch.no_grad():
            r = self.reward(clean)
        if r.shape != (self.log_w.numel(),):
            raise InputError(
                f"a reward is one number a sample, [{self.log_w.numel()}] for this batch of "
                f"particles, not {list(r.shape)}"
            )
        return r.to(self.log_w).view_as(self.log_w)

    def _resample(self, i: int) -> Tensor | None:
        ess = _ess(self.log_w)
        self.history.append(ess)
        # A group whose weights are all equal gains nothing.
        few = (ess < self.threshold * self.k) & (ess < self.k * (1 - 1e-12))
        if not bool(few.any()):
            return None
        u = self.draws.uniform((), "particles/resample", i, torch.float64, ess.device)
        same = torch.arange(self.k, device=ess.device).expand_as(self.log_w)
        take = torch.where(few[:, None], systematic(_normal(self.log_w), u, self.k), same)
        log_mean = self.log_w.logsumexp(1) - math.log(self.k)
        self.log_z = torch.where(few, self.log_z + log_mean, self.log_z)
        self.log_w = self.log_w.masked_fill(few[:, None], 0.0)
        self.psi, self.seen, self.roots = (x.gather(1, take)
                                           for x in (self.psi, self.seen, self.roots))  # fmt: skip
        self.resampled = self.resampled + few
        return (take + self.k * torch.arange(len(take), device=take.device)[:, None]).flatten()


def _ess(log_w: Tensor) -> Tensor:
    return 1 / (_normal(log_w) ** 2).sum(1)


def _normal(log_w: Tensor) -> Tensor:
    """Weights that sum to one; equal where no particle has any."""
    return log_w.masked_fill(log_w.logsumexp(1, keepdim=True).isneginf(), 0.0).softmax(1)
