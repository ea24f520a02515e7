r"""Products of models and of conditions: sums of log-densities with weights of either sign.

For ∏_i q_i(x_0)^{w_i}, W = Σ w_i, the posterior given x_t is ∏ q_i(x_0 | x_t)^{w_i} times
N(x_t; a x_0, s² C)^{1 − W}. With normal q_i(x_0 | x_t) = N(D_i, V_i) its mean solves

    Σ w_i V_i⁻¹ (D − D_i) + (1 − W)(a/s²) C⁻¹ (a D − x_t) = 0,

and the rules differ in what they know of V_i:

``round``   V_i = σ² s²/(a² σ² + s²) C for all, σ the data's standard deviation:

                D = ((a² σ² + s²) Σ w_i D_i + (1 − W) a σ² x_t) / (a² σ² + W s²),

            exact for factors N(m_i, σ² C); near the data, where it matters what models say, it is
            ``score``. For W > 0; what is wider or narrower than the data comes out a little so.
``normal``  V_i = (s²/a) J_i C, J_i the Jacobian of D_i: exact for Gaussian models at every noise
            level, so under any sampler. It costs the Jacobian: as many products as a sample has
            numbers, for small fields.
``score``   Σ w_i ∇ log q_i(x_t): D = Σ w_i D_i + (1 − W) x_t/a (Liu et al. 2022). The score of the
            product *of the noisy densities*, which is not the noisy density of the product (Du et
            al. 2023): in noise it is N(0, s²/W), which no sampler starts from. For samplers that
            equilibrate (``pc``) from a little signal on; a deterministic one shrinks all samples to
            a point for W > 1 and blows up for W < 1. In pure noise a counts as at least 0.1 s/σ.

With W = 1 ``round`` and ``score`` are one: an affine mix of estimates, for any field.

Token fields take Σ w_i log p_i(x_0 | x_t) + (1 − W) log q(x_t | x_0), exact for one token.

A condition is a model: :class:`~sciflow.guidance.weak.estimates.Instead` asks one for fixed values.
"c1 and c2" is weights (1, 1, −1) of (c1, c2, unconditional), "c1 and not c2" (1, −w, w): what is
missing to 1 is best given to a model. The sum of
densities, Σ w_i q_i, is :class:`~sciflow.guidance.several.superposition.Superposition` with ``or``.
Rewards, log f of clean states, are composed by :func:`all_of` and :func:`any_of`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.paths import CategoricalPath, GaussianPath, Path
from sciflow.state import State, Times, field_times

__all__ = ["Product", "all_of", "any_of", "blend", "same_paths"]

Rule = Literal["round", "normal", "score"]
LogDensity = Callable[[State], Tensor]
_LEAST_SIGNAL = 1e-3
"""Where the signal is a smaller share of the noise, ``normal`` asks at that share."""
_LEAST_SHARE = 0.1
"""The same of ``score``, in standard deviations of the data."""


class Product(Denoiser):
    """∏ q_i^{w_i} as one model; see the module.

    A model of weight 0 is not called; one of weight 1 alone is itself, bit for bit. ``calls``
    counts evaluations of models.

    Args:
        denoisers: models of the same fields and schedules.
        weights: w_i, of either sign; default 1 each.
        rule: how the estimates of Gaussian fields make one.

    Raises:
        InputError: weights that no density has, or a rule that is not known.
    """

    def __init__(self, denoisers: Sequence[Denoiser], weights: Sequence[float] | None = None,
                 rule: Rule = "round"):  # fmt: skip
        super().__init__()
        weights = [1.0] * len(denoisers) if weights is None else list(weights)
        if len(weights) != len(denoisers):
            raise InputError(f"{len(weights)} weights for {len(denoisers)} models: give one each")
        if rule not in get_args(Rule):
            raise InputError(f"rule is one of {', '.join(get_args(Rule))}, not {rule!r}")
        self.paths = same_paths(denoisers)
        used = [(d, float(w)) for d, w in zip(denoisers, weights, strict=True) if w != 0]
        if not used:
            raise InputError("all weights are 0: give at least one model another")
        self.denoisers = torch.nn.ModuleList(d for d, _ in used)
        self.weights, self.rule = [w for _, w in used], rule
        self.rest = 1 - sum(self.weights)
        curved = [n for n, p in self.paths.items()
                  if not isinstance(p, GaussianPath | CategoricalPath)]  # fmt: skip
        if curved and abs(self.rest) > 1e-9:
            raise InputError(
                f"weights must sum to 1 for points of a manifold (field {curved[0]!r}), not to "
                f"{sum(self.weights):g}; add an unconditional model for the rest"
            )
        gaussian = [n for n, p in self.paths.items() if isinstance(p, GaussianPath)]
        if rule == "round" and gaussian and not self.rest < 1:
            raise InputError(
                f"weights that sum to {sum(self.weights):g} leave nothing of field {gaussian[0]!r} "
                "to normalise; let them sum to more than 0, or take rule='normal', which knows how "
                "wide the models are"
            )
        self.calls = 0

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        if self.weights == [1.0]:
            self.calls += 1
            answer: Prediction = self.denoisers[0](state, t, previous)
            return answer
        if self.rule == "normal":
            return self._normal(state, t, previous)
        self.calls += len(self.denoisers)
        parts = [d(state, t, previous) for d in self.denoisers]
        times = field_times(t, state)
        return Prediction({
            name: self._scores(path, state, name, times[name], [p[name] for p in parts])
            for name, path in self.paths.items()
        })  # fmt: skip

    def _scores(self, path: Path, state: State, name: str, t: Tensor,
                parts: list[Tensor]) -> Tensor:  # fmt: skip
        x = state[name]
        clean = blend(path, x, parts, self.weights)
        if abs(self.rest) <= 1e-9:
            return clean
        if isinstance(path, CategoricalPath):
            chain = path.within(state.context)
            alpha = path.keep(path.space.expand(t, x)).expand(x.shape)
            seen = chain.likelihood(x, alpha, clean.dtype)
            # What cannot have led here no model thinks possible.
            seen = torch.where(seen > 0, seen, torch.ones_like(seen)).log()
            return torch.add(clean, seen, alpha=self.rest)
        assert isinstance(path, GaussianPath)
        a, s = path.schedule(t)
        variance = path.data_std**2
        if self.rule == "score":
            a = torch.maximum(a, _LEAST_SHARE * s / path.data_std)
            return clean + path.space.expand(self.rest / a, x).to(x.dtype) * x
        open_ = a**2 * variance + sum(self.weights) * s**2
        ours = path.space.expand((a**2 * variance + s**2) / open_, x).to(x.dtype)
        rest = path.space.expand(self.rest * a * variance / open_, x).to(x.dtype)
        return ours * clean + rest * x

    def _normal(self, state: State, t: Times | float, previous: Prediction | None) -> Prediction:
        times = field_times(t, state)
        asked: dict[str, Tensor] = {}
        fields: dict[str, Tensor] = {}
        for name, path in self.paths.items():
            x, asked[name] = state[name], times[name]
            if not isinstance(path, GaussianPath):
                continue
            # Pure noise has no Jacobian; an estimate there is that of a little signal.
            one = torch.tensor([_LEAST_SIGNAL], dtype=torch.float64).log()
            latest = float(path.schedule.at_logsnr(one))
            asked[name] = times[name].clamp(max=latest)
            s, early = path.schedule(times[name])[1], path.schedule(asked[name])[1]
            gain = torch.where(asked[name] < times[name], early / s, torch.ones_like(s))
            x = x * path.space.expand(gain, x).to(x.dtype)
            fields[name] = x.detach().requires_grad_(True)
        same = all(bool((asked[n] == times[n]).all()) for n in fields)
        self.calls += len(self.denoisers)
        noisy = state.replace(**fields)
        with torch.enable_grad():
            parts = [d(noisy, t if same else asked, previous) for d in self.denoisers]
            moments = {
                name: [(p[name].detach().double(), _jacobian(p[name], x)) for p in parts]
                for name, x in fields.items()
            }
        clean = {}
        for name, path in self.paths.items():
            if name not in fields:
                answers = [p[name].detach() for p in parts]
                clean[name] = self._scores(path, state, name, times[name], answers)
                continue
            clean[name] = self._posterior(path, noisy, name, asked[name], moments[name])
        return Prediction(clean)

    def _posterior(self, path: Path, state: State, name: str, t: Tensor,
                   moments: list[tuple[Tensor, Tensor]]) -> Tensor:  # fmt: skip
        """The solution of the module's linear system."""
        x = state[name].detach()
        known = (path.space.expand(t, x) <= 0).expand(x.shape)
        a = path.space.expand(path.schedule(t)[0], x).expand(x.shape).flatten(1).double()
        n = a.shape[1]
        eye = torch.eye(n, dtype=torch.float64, device=x.device)
        precision = self.rest * torch.diag_embed(a)
        right = self.rest * x.flatten(1).double()
        for w, (mean, jacobian) in zip(self.weights, moments, strict=True):
            # What a model does not move (padding, the centre) it knows, as what is given.
            fixed = known.flatten(1)[:, :, None] | known.flatten(1)[:, None, :]
            inverse = torch.linalg.inv(eye.where(fixed, jacobian + _KNOWN * eye))
            precision = precision + w * inverse
            right = right + w * (inverse @ mean.flatten(1)[..., None])[..., 0]
        clean = torch.linalg.solve(precision, right).view(x.shape).to(x.dtype)
        return torch.where(known, x, path.space.project(clean, state.context))


_KNOWN = 1e-12
"""Added to Jacobians, so that they have an inverse."""


def _jacobian(y: Tensor, x: Tensor) -> Tensor:
    """∂y/∂x of every sample, float64 ``[B, n, n]``."""
    n = x[0].numel()
    basis = torch.eye(n, dtype=x.dtype, device=x.device).view(n, 1, *x.shape[1:])
    rows = [
        torch.autograd.grad(y, x, e.expand_as(x), retain_graph=True, materialize_grads=True)[0]
        for e in basis
    ]
    return torch.stack([r.flatten(1) for r in rows], 1).double()


def blend(path: Path, x: Tensor, estimates: Sequence[Tensor],
          weights: Sequence[float | Tensor]) -> Tensor:  # fmt: skip
    """Σ w_i D_i: of means, of log-probabilities, of vectors towards points of a manifold.

    Args:
        path: of the field.
        x: the noisy field.
        estimates: clean ones.
        weights: a number each, or ``[B]``.
    """
    if isinstance(path, CategoricalPath):
        estimates = [d.log_softmax(-1) for d in estimates]
    curved = not isinstance(path, CategoricalPath | GaussianPath)
    if curved:
        estimates = [path.space.log(x, d) for d in estimates]  # type: ignore[attr-defined]
    total: Tensor | None = None
    for w, d in zip(weights, estimates, strict=True):
        if isinstance(w, Tensor):
            w = w.to(d).reshape(-1, *(1,) * (d.ndim - 1))
        total = w * d if total is None else total + w * d
    assert total is not None
    return path.space.exp(x, total) if curved else total  # type: ignore[attr-defined]


def same_paths(denoisers: Sequence[Denoiser]) -> dict[str, Path]:
    """The paths that all have in common.

    Raises:
        InputError: there is no model, or two differ in fields or schedules.
    """
    if not denoisers:
        raise InputError("give at least one model")
    first = dict(denoisers[0].paths)
    for i, other in enumerate(denoisers[1:], start=2):
        if set(other.paths) != set(first):
            raise InputError(
                f"models to be composed have the same fields; model 1 has {', '.join(first)}, "
                f"model {i} {', '.join(other.paths)}"
            )
        for name, path in other.paths.items():
            if type(path) is not type(first[name]) or path.schedule != first[name].schedule:
                raise InputError(
                    f"models to be composed have the same path and schedule of every field; "
                    f"{name!r} of model {i} differs from that of model 1: reschedule one of them"
                )
    return first


def all_of(*log_densities: LogDensity, weights: Sequence[float] | None = None) -> LogDensity:
    """log ∏ f_i^{w_i} = Σ w_i log f_i of clean states; default weights 1."""
    w = _weights(log_densities, weights)
    return (
        lambda clean: sum(  # type: ignore[return-value]
            (c * f(clean) for c, f in zip(w[1:], log_densities[1:], strict=True)),
            start=w[0] * log_densities[0](clean),
        )
    )


def any_of(*log_densities: LogDensity, weights: Sequence[float] | None = None) -> LogDensity:
    """log Σ w_i f_i of clean states; default weights 1."""
    w = torch.tensor(_weights(log_densities, weights), dtype=torch.float64)
    if not bool((w > 0).all()):
        raise InputError(f"weights of a sum must be above 0, not {w.tolist()}")
    return lambda clean: torch.stack(
        [f(clean) + float(c) for c, f in zip(w.log(), log_densities, strict=True)]
    ).logsumexp(0)


def _weights(what: Sequence[LogDensity], weights: Sequence[float] | None) -> list[float]:
    if not what or (weights is not None and len(weights) != len(what)):
        raise InputError(f"{len(weights or ())} weights for {len(what)} log-densities")
    return [1.0] * len(what) if weights is None else list(weights)
