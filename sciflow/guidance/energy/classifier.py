r"""Classifier guidance: a model of p(c | x_t) makes an unconditional denoiser a conditional one.

By Bayes' rule, with D(x_t) = E[x_0 | x_t] and log p(c | x_t) of noisy samples,

    D_c = D + w (s²/a) C ∇_{x_t} log p(c | x_t),                                        (means)
    log p(x_0^i = k | x_t, c) = log p(x_0^i = k | x_t) + w log p(c | x_t, x_0^i = k) + const.

w = 1 is exact (Dhariwal & Nichol 2021 for the means), more sharpens. An absorbing token that is
masked shows its value as soon as it is unmasked, so p(c | x_t, x_0^i = k) is p(c | x_t) with k in
its place. Asking for every element and symbol in turn would take many calls; to first order in the
one-hot input e (Nisonoff et al. 2025; Schiff et al. 2025) all are known at once,

    log p(c | x_t^{i→k}) ≈ log p(c | x_t) + ∂/∂e_ik − ∂/∂e_i,masked.

Token fields of another corruption and points of manifolds stay the denoiser's own. What moves a
mean is capped, a sample at a time: at high noise s²/a is large, and a network's gradient, which
ought to vanish there, does not.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.guidance.acting import acts_at, check_interval, check_weight
from sciflow.guidance.energy.strengths import bayes_gain
from sciflow.paths import CategoricalPath, GaussianPath
from sciflow.predictors import PropertyPredictor
from sciflow.state import State, Times, field_times

__all__ = ["ClassifierGuidance"]


class ClassifierGuidance(Denoiser):
    """Moves estimates up the gradient of a predictor's log p(c | x_t).

    ``energies`` counts evaluations of the predictor, each with its gradient.

    Args:
        denoiser: conditional or not; its own conditions stay as they are.
        predictor: of noisy samples, under the same corruption.
        weight: w ≥ 0; at 0 the denoiser itself, bit for bit.
        tokens: w of token fields, default the same. A sampler that draws tokens at temperature τ
            multiplies it by 1/τ.
        wanted: ``{property: [B]}``; default the conditions of the context. NaN is not asked for.
        interval: times (first, last) of the shared clock between which guidance acts.
        largest: cap of a mean's root-mean-square change, in standard deviations of the data.

    Raises:
        InputError: a weight or interval out of range.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        predictor: PropertyPredictor,
        weight: float = 1.0,
        wanted: Mapping[str, Tensor] | None = None,
        interval: tuple[float, float] = (0.0, 1.0),
        largest: float = 0.3,
        tokens: float | None = None,
    ):
        super().__init__()
        tokens = weight if tokens is None else tokens
        for w in (weight, tokens):
            check_weight(w)
        check_interval(interval)
        if not largest > 0:
            raise InputError(f"the largest change must be above 0, not {largest}")
        self.denoiser, self.predictor = denoiser, predictor
        self.paths, self.wanted = denoiser.paths, wanted
        self.weight, self.tokens = weight, tokens
        self.interval, self.largest, self.energies = interval, largest, 0

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        prediction = self.denoiser(state, t, previous)
        if self.weight == self.tokens == 0 or not acts_at(t, self.interval):
            return prediction
        gradient = self._gradient(state, t)
        times, clean = field_times(t, state), dict(prediction.clean)
        for name, g in gradient.items():
            path, x, known = self.paths[name], state[name], times[name] <= 0
            if isinstance(path, GaussianPath):
                gain = bayes_gain(path, times[name]).masked_fill(known, 0.0)
                move = self.weight * path.space.expand(gain, x).to(x) * g
                move = path.space.color(move, state.context)
                clean[name] = clean[name] + self._capped(path, move, state)
            elif isinstance(path, CategoricalPath):
                k = path.classes
                change = self.tokens * (g[..., :k] - g[..., k:])
                open_ = (x == k) & ~path.space.expand(known, x)
                clean[name] = clean[name] + torch.where(open_[..., None], change, 0.0)
        return Prediction(clean)

    def _gradient(self, state: State, t: Times | float) -> dict[str, Tensor]:
        """∂ log p(c | x_t) by each field that it can move; of tokens by their one-hot input."""
        fields, leaves = dict(state.fields), {}
        dtype = next((x.dtype for x in fields.values() if x.is_floating_point()), torch.float32)
        for name, path in self.paths.items():
            x = fields[name]
            if isinstance(path, CategoricalPath) and path.kind == "absorbing":
                x = F.one_hot(x, path.symbols).to(dtype)
            elif not isinstance(path, GaussianPath):
                continue
            fields[name] = leaves[name] = x.detach().requires_grad_()
        wanted = state.context.conditions if self.wanted is None else self.wanted
        asked = {k: v for k, v in wanted.items() if k in self.predictor.statistics}
        self.energies += 1
        with torch.enable_grad():
            log_p = self.predictor.log_prob(State(fields, state.context), t, asked)
            found = torch.autograd.grad(log_p.sum(), list(leaves.values()), materialize_grads=True)
        gradient = dict(zip(leaves, found, strict=True))
        for name, g in gradient.items():
            path = self.paths[name]
            if isinstance(path, CategoricalPath) and path.space.pairs:
                # Both entries of a pair are one token.
                gradient[name] = g + g.transpose(1, 2)
        return gradient

    def _capped(self, path: GaussianPath, move: Tensor, state: State) -> Tensor:
        """``move``, shortened where its root mean square over a sample is above the cap."""
        move = path.space.project(move, state.context)
        n = path.space.sum(torch.ones_like(move), state.context).clamp(min=1)
        rms = (path.space.sum(move**2, state.context) / n).sqrt() / path.data_std
        factor = (self.largest / rms.clamp(min=1e-30)).clamp(max=1.0)
        return move * path.space.expand(factor, move).to(move)
