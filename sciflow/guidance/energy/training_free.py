r"""Training-free guidance by any energy of the clean sample: three strengths, ρ, μ and γ̄.

Ye et al. (2024, TFG) found that the methods of this kind differ in where they put the gradient of
one log-density log f. With D = D(x_t, t), the clean estimate, and L = log E_δ f(D + δ),

    D  ←  D  +  ρ(t) (s²/a) C ∇_{x_t} L(D(x_t))          through the network ("variance guidance")
             +  lift(t) Δ,                               past it             ("mean guidance")
    Δ: N_iter steps  z ← z + μ(t) V C ∇_z L(z)  from z = D,       Δ = z − D,
    δ ~ γ̄(t) √V times the space's noise, in m copies,     V = (sσ)²/((aσ)² + s²).

C is the covariance of the noise (1 where it is white), σ the data's standard deviation, and V the
variance of x_0 given x_t for Gaussian data of that width. So the strengths have no units: ρ = 1 is
Bayes' rule with f(D) in place of E[f(x_0) | x_t], μ = 1 is the same without the Jacobian of the
network, and γ̄ = 1 smooths f by all that x_t leaves open (Song et al. 2023, LGD), so that for round
Gaussian data ρ = 1 is exact with any f, as m grows. ρ + μ = 1 counts the evidence once.

Tokens enter f as probabilities p, and have a strength μ only:

* ``gradient``: log p ← log p + μ ∂L/∂p, to first order p f^μ;
* ``reweight`` (Lin et al. 2025, TFG-Flow): each copy has one complete draw of the tokens of p, and
  the estimate is the mean of the draws with weights softmax(μ log f): 1/μ is the temperature.

Points of a manifold are moved in the tangent space, with V = c²/(1 + c²), and have no ρ.

N_recur is a setting of the sampler, ``recurrence``. :mod:`sciflow.guidance.energy.published` has
the strengths that make the updates of the papers, :mod:`sciflow.guidance.energy.guidance_search`
looks for the best ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.guidance.acting import check_interval
from sciflow.guidance.energy.smoothed_energy import (
    SmoothedEnergy,
    differentiated,
    leaf,
    pulled_back,
    readable,
)
from sciflow.guidance.energy.strengths import (
    Strength,
    Strengths,
    bayes_gain,
    by_field,
    open_variance,
    strength_at,
    time_of_noise,
)
from sciflow.paths import CategoricalPath, GaussianPath, GeodesicPath, Path
from sciflow.random import Draws
from sciflow.state import Context, State, Times, field_times

__all__ = ["TokenGuidance", "TrainingFree"]

TokenGuidance = Literal["gradient", "reweight"]


class TrainingFree(Denoiser):
    """A model and an energy; see the formulas of the module.

    ``calls`` counts evaluations of the model so far and ``energies`` those of ``log_f``. Gradients
    that are cached (``every``) belong to rows of the batch: do not reorder it under way.

    Args:
        denoiser: the model.
        log_f: the clean state to its log-density up to a constant, ``[B]``, differentiable; token
            fields are probabilities ``[B, *elements, K]``.
        rho: ρ, of all Gaussian fields or one a field (those not named have none).
        mu: μ, of all fields or one a field.
        gamma: γ̄, of all Gaussian fields or one a field.
        iterations: N_iter.
        copies: m, the noise (and tokens) over which f is averaged.
        lift: factor on Δ, of all fields or one a field.
        tokens: how token fields are guided, see above.
        clip: largest root mean square of a gradient C ∇L over a sample's numbers of one field;
            a sample with more has its gradient shortened. Default no limit.
        interval: times (first, last) of the shared clock between which guidance acts.
        every: gradients are taken at every k-th call; in between the last shift is used again.
        noise_limit: where s/a exceeds this many standard deviations of the data, the Jacobian of
            the network is taken at it, by a second call: beyond, s²/a multiplies the errors of a
            network. ``None`` is no limit.
        draws: the random numbers of the batch; or a seed, and all samples see the same noise (so
            that sample i still does not depend on its companions).
        noisy: ``log_f(state, t)`` is a density given the noisy state: a classifier of x_t
            (Dhariwal & Nichol 2021). The network is not differentiated; there is ρ only.

    Raises:
        InputError: an argument is out of its range, or a strength is of a field that has none.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        log_f: Callable[..., Tensor],
        rho: Strengths = 0.0,
        mu: Strengths = 0.0,
        gamma: Strengths = 0.0,
        *,
        iterations: int = 1,
        copies: int = 1,
        lift: Strengths = 1.0,
        tokens: TokenGuidance = "gradient",
        clip: float | None = None,
        interval: tuple[float, float] = (0.0, 1.0),
        every: int = 1,
        noise_limit: float | None = 5.0,
        draws: Draws | int = 0,
        noisy: bool = False,
    ):
        super().__init__()
        for name, n in (("iterations", iterations), ("copies", copies), ("every", every)):
            if n < 1:
                raise InputError(f"{name} must be at least 1, not {n}")
        for name, x in (("clip", clip), ("noise_limit", noise_limit)):
            if x is not None and not x > 0:
                raise InputError(f"{name} must be above 0, or None for no limit, not {x}")
        check_interval(interval)
        if tokens not in get_args(TokenGuidance):
            raise InputError(
                f"unknown tokens {tokens!r}; known: {', '.join(get_args(TokenGuidance))}"
            )
        self.denoiser, self.paths, self.log_f = denoiser, denoiser.paths, log_f
        gaussian = [f for f, p in self.paths.items() if isinstance(p, GaussianPath)]
        self.rho = by_field("rho", rho, gaussian)
        self.mu = by_field("mu", mu, list(self.paths))
        self.gamma = by_field("gamma", gamma, gaussian)
        self.lift = by_field("lift", lift, list(self.paths))
        if noisy and (self.mu or self.gamma):
            raise InputError("a density of noisy states has rho only; set mu and gamma to 0")
        self.iterations, self.tokens, self.noisy = iterations, tokens, noisy
        self.clip, self.interval, self.every = clip, interval, every
        self.latest = {f: 1.0 if noise_limit is None else time_of_noise(self.paths[f], noise_limit)
                       for f in self.rho}  # fmt: skip
        self.energy = SmoothedEnergy(log_f, self.paths, copies, draws, tokens == "reweight")
        self.calls = 0
        self._turn, self._shift = 0, dict[str, Tensor]()

    @property
    def energies(self) -> int:
        """Calls of ``log_f`` so far."""
        return self.energy.calls

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        """The guided estimate; gradients flow where grad mode is on."""
        if previous is None:
            self._turn, self._shift = 0, {}
        times = field_times(t, state)
        rho, mu = self._now(self.rho, times), self._now(self.mu, times)
        if not (rho or mu):
            return self._model(state, t, previous)
        fits = all(len(x) == state.batch_size for x in self._shift.values())
        if self._shift and fits and self._turn % self.every:
            prediction, shift = self._model(state, t, previous), self._shift
        else:
            prediction, shift = self._guide(state, t, previous, times, rho, mu)
            self._shift = {f: x.detach() for f, x in shift.items()} if self.every > 1 else {}
        self._turn += 1
        clean = dict(prediction.clean)
        for name, step in shift.items():
            clean[name] = _moved(self.paths[name], clean[name], step, state, name, times)
        return Prediction(clean)

    def _model(self, state: State, t: Times | float, previous: Prediction | None) -> Prediction:
        self.calls += 1
        return self.denoiser(state, t, previous)

    def _now(
        self, strengths: Mapping[str, Strength], times: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Strengths at these times, shaped as they are, without the fields that have none now.

        What is given (t = 0) has strength 0.
        """
        first, last = self.interval
        found = {}
        for name, strength in strengths.items():
            t = times[name]
            acts = (t >= first) & (t <= last) & (t > 0)
            value = torch.where(acts, strength_at(strength, t), 0.0)
            if bool((value != 0).any()):
                found[name] = value
        return found

    def _guide(
        self, state: State, t: Times | float, previous: Prediction | None,
        times: Mapping[str, Tensor], rho: Mapping[str, Tensor], mu: Mapping[str, Tensor],
    ) -> tuple[Prediction, dict[str, Tensor]]:  # fmt: skip
        """The model's estimate, and the shift of every guided field."""
        keep, context = torch.is_grad_enabled(), state.context
        through = bool(rho) and not self.noisy
        with torch.enable_grad():
            noisy = {f: leaf(state[f], True) for f in rho}
            at, asked = self._earlier(noisy, t, times)
        with torch.set_grad_enabled(keep or (through and asked is t)):
            prediction = self._model(state.replace(**noisy), t, previous)
        with torch.enable_grad():
            shift: dict[str, Tensor] = {}
            if self.noisy:
                self.energy.calls += 1
                gradient = differentiated(self.log_f(state.replace(**at), asked), at, keep)
            else:
                gradient, shift = self._mean_shift(prediction, context, times, mu, through, keep)
            if through:
                estimate = prediction
                if asked is not t:
                    estimate = self._model(state.replace(**at), asked, previous)
                gradient = pulled_back(readable(self.paths, estimate.clean), gradient, at, keep)
        told = field_times(asked, state)
        for name, strength in rho.items():
            path = self.paths[name]
            assert isinstance(path, GaussianPath)
            g = path.space.color(_unknown(path, gradient[name], told[name]), context)
            g = self._clipped(_unknown(path, g, told[name]), path, context)
            step = _like(path, strength * bayes_gain(path, told[name]), g) * g
            shift[name] = shift[name] + step if name in shift else step
        if not keep:
            prediction = prediction.detach()
            shift = {f: x.detach() for f, x in shift.items()}
        return prediction, shift

    def _mean_shift(
        self, prediction: Prediction, context: Context, times: Mapping[str, Tensor],
        mu: Mapping[str, Tensor], wanted: bool, keep: bool,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:  # fmt: skip
        """∇L at the model's estimate (if ``wanted``), and lift · Δ of the fields that have μ."""
        start = prediction.clean if keep else prediction.detach().clean
        width = {}
        for name, gamma in self._now(self.gamma, times).items():
            path = self.paths[name]
            std = gamma * open_variance(path, times[name]).sqrt()
            width[name] = _like(path, std, start[name])
        drawn = {f: x for f, x in mu.items() if f in self.energy.tokens}
        stepped = {f: x for f, x in mu.items() if f not in drawn}
        z, first, shift = dict(start), dict[str, Tensor](), dict[str, Tensor]()
        for k in range(self.iterations if stepped else 1):
            seen = {f: leaf(x, keep) for f, x in readable(self.paths, z).items()}
            values, symbols = self.energy.values(seen, context, width, self._turn)
            gradient = dict[str, Tensor]()
            if wanted or stepped:
                gradient = differentiated(self.energy.mean(values), seen, keep)
            if k == 0:
                first = gradient
                for name, power in drawn.items():
                    power = power.flatten(1).amax(1) if power.ndim > 1 else power
                    logits = self.energy.reweighted(values, symbols, name, power)
                    shift[name] = logits - start[name].log_softmax(-1)
            for name, strength in stepped.items():
                step = self._mean_step(name, z[name], gradient[name], strength, times, context)
                z[name] = _exp(self.paths[name], z[name], step)
        for name in stepped:
            shift[name] = _log(self.paths[name], start[name], z[name])
        for name in shift:
            lift = strength_at(self.lift.get(name, 0.0), times[name])
            shift[name] = _like(self.paths[name], lift, shift[name]) * shift[name]
        return first, shift

    def _mean_step(
        self, name: str, z: Tensor, gradient: Tensor, strength: Tensor, times: Mapping[str, Tensor],
        context: Context,
    ) -> Tensor:  # fmt: skip
        """μ V C ∇L, as a tangent vector of the field."""
        path, t = self.paths[name], times[name]
        gradient = _unknown(path, gradient, t)
        if isinstance(path, CategoricalPath):
            # A pair of elements has one symbol, and f may read it at either place.
            g = gradient + gradient.transpose(1, 2) if path.space.pairs else gradient
        elif isinstance(path, GeodesicPath):
            g = path.space.tangent(z, gradient)
            g = g.masked_fill(~path.space.expand(path.space.mask(context), g), 0)
        else:
            g = path.space.color(gradient, context)
        g = self._clipped(_unknown(path, g, t), path, context)
        return _like(path, strength * open_variance(path, t), g) * g

    def _earlier(
        self, noisy: Mapping[str, Tensor], t: Times | float, times: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], Times | float]:
        """The same noise at the noise limit, for fields beyond it, and their times."""
        at, early = dict(noisy), dict[str, Tensor]()
        for name, x in noisy.items():
            path, full = self.paths[name], times[name]
            capped = full.clamp(max=self.latest[name])
            if bool((capped < full).any()):
                shrink = path.schedule(capped)[1] / path.schedule(full)[1]
                shrink = torch.where(capped < full, shrink, torch.ones_like(shrink))
                at[name], early[name] = x * _like(path, shrink, x), capped
        if not early:
            return at, t
        others: Mapping[str, Any] = t if isinstance(t, Mapping) else dict.fromkeys(self.paths, t)
        return at, {**others, **early}

    def _clipped(self, g: Tensor, path: Path, context: Context) -> Tensor:
        """A gradient no longer than ``clip`` in root mean square over the sample's own numbers."""
        if self.clip is None:
            return g
        n = path.space.sum(torch.ones_like(g), context).clamp(min=1)
        rms = (path.space.sum(g**2, context) / n).clamp(min=torch.finfo(g.dtype).tiny).sqrt()
        return g * _like(path, (self.clip / rms).clamp(max=1), g)


def _like(path: Path, value: Tensor, x: Tensor) -> Tensor:
    """``value`` (``[B]`` or one an element) shaped and typed to multiply ``x``."""
    return path.space.expand(value, x).to(x.dtype)


def _unknown(path: Path, g: Tensor, t: Tensor) -> Tensor:
    """A gradient without its part by what is given (t = 0), which may be anything there."""
    return g.masked_fill(path.space.expand(t, g) <= 0, 0)


def _exp(path: Path, x: Tensor, v: Tensor) -> Tensor:
    return path.space.exp(x, v) if isinstance(path, GeodesicPath) else x + v


def _log(path: Path, x: Tensor, y: Tensor) -> Tensor:
    return path.space.log(x, y) if isinstance(path, GeodesicPath) else y - x


def _moved(path: Path, clean: Tensor, shift: Tensor, state: State, name: str,
           times: Mapping[str, Tensor]) -> Tensor:  # fmt: skip
    """The estimate after a shift; of tokens, known ones stay known."""
    if isinstance(path, CategoricalPath):
        logits = clean.log_softmax(-1) + shift
        return path.clean(logits, state[name], times[name], state.context)
    return _exp(path, clean, shift)
