r"""Known parts for a model that was never trained with them: replacement, RePaint, reconstruction.

Some numbers or tokens y of the clean sample are known, K; the rest, U, is asked for. Networks that
were trained with given elements take them through ``context.given``, exactly. For any other model:

**Replacement** (Song et al. 2021). x_t on K should be what the forward process makes of y. Only the
*trajectory* of that process is right, whose levels share their noise as the sampler's do: under the
reverse SDE noise of K is renewed bit by bit, q(x_s | x_t, y), under the ODE it is one ε for ever.
Every stepper makes just this, up to its own error, of the clean estimate

    D_K = y,      D_U = the model's,

so nothing needs to be drawn, tokens included (their bridge q(x_s | x_t, y) is the jump for a
certain y). ``noise="level"`` is the published form: K is drawn anew at every noise level. Along the
ODE such noise averages out, and samples are narrower than those of the process that was asked for.

Either is biased alike: x_s of U follows p(x_s | x_t), which does not know y where x_t does not.

**RePaint** (Lugmayr et al. 2022) walks each step several times with noise in between, so that U and
K come to agree at every level: replacement under ``Sampler(method="ddpm", recurrence=10)``, or,
coarser, with restarts. In the limit of many rounds x_t of U has the law p(x_t | x_t of K) at every
level, hence the right one at t = 0.

**Reconstruction** (Ho et al. 2022, video diffusion) adds what the estimate of K says,

    D ← D + (s²/a) C ∇ log p(y | x_t),      p(y | x_t) ≈ N(y; D_K, s²/(w a²)),
    for one field:  D ← D − (w a/2) C ∇ |y − D_K|²,

w = 1 where the data are wide against the noise, larger in practice, 0 is replacement alone. Known
tokens speak through the network's own log-probabilities. A measurement without noise is also
:class:`~sciflow.guidance.Observed` with a small variance: :class:`~sciflow.guidance.MomentMatching`
is exact for Gaussian data.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.guidance.acting import check_weight
from sciflow.paths import CategoricalPath, GaussianPath, Path
from sciflow.random import Draws
from sciflow.spaces import ZeroCoM
from sciflow.state import Context, State, Times, field_times

__all__ = ["Known", "KnownNoise", "Reconstruction", "Replacement"]

KnownNoise = Literal["trajectory", "level"]
_LEAST_SIGNAL = 1e-3
"""a/s counts as at least this where it divides: in pure noise there is no gradient to scale."""


@dataclass(frozen=True)
class Known:
    """What is known of clean samples.

    Attributes:
        values: y, ``{field: [B, ...]}`` shaped as the fields; whatever stands elsewhere is ignored.
            Points without a centre of mass may be in any frame: where they lie relative to the rest
            is found out, which way they are turned is kept.
        mask: bool, true where known: an element ``[B, N]`` (of pairs both ends) or each number,
            shaped as the field.
    """

    values: Mapping[str, Tensor]
    mask: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        if set(self.values) != set(self.mask):
            raise InputError(
                f"values are known of {sorted(self.values)}, masks of {sorted(self.mask)}; "
                "give both of the same fields"
            )
        for name, mask in self.mask.items():
            if mask.dtype != torch.bool:
                raise InputError(f"the mask of known {name!r} must be bool, not {mask.dtype}")

    def rows(self, index: Tensor | slice) -> Known:
        """What is known of some samples of the batch."""
        return Known({f: y[index] for f, y in self.values.items()},
                     {f: m[index] for f, m in self.mask.items()})  # fmt: skip


class Replacement(Denoiser):
    """A model whose clean estimate is y where y is known.

    Args:
        denoiser: the model, guided or not.
        known: row i belongs to row i of the batch.
        noise: how the known part of x_t comes about, ``trajectory`` or ``level``; see the module.
        draws: of the batch, for ``level``. A level has one noise, however often it is visited.

    Raises:
        InputError: a field that the model does not have, values that cannot be, no draws.
    """

    def __init__(self, denoiser: Denoiser, known: Known, noise: KnownNoise = "trajectory",
                 draws: Draws | None = None):  # fmt: skip
        super().__init__()
        self.denoiser, self.paths, self.known = denoiser, denoiser.paths, known
        if noise not in get_args(KnownNoise):
            raise InputError(f"noise must be one of {get_args(KnownNoise)}, not {noise!r}")
        if noise == "level" and draws is None:
            raise InputError("noise='level' is drawn: give draws=Draws(seed, samples)")
        for name, y in known.values.items():
            if name not in denoiser.paths:
                raise InputError(f"{name!r} is known; fields: {', '.join(denoiser.paths)}")
            _check_values(name, y, known.mask[name], denoiser.paths[name])
        self.noise, self.draws = noise, draws

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        """The model's estimate with y filled in."""
        if self.noise == "level":
            state = self._presented(state, t)
        return self._filled(self.denoiser(state, t, previous), state.context)

    def where(self, name: str, context: Context, like: Tensor) -> Tensor:
        """Bool, broadcastable to the field ``like``: its real numbers that are known."""
        mask = self.known.mask[name]
        if len(mask) != len(context):
            raise InputError(
                f"{len(mask)} samples are known in part, but the batch has {len(context)}: give "
                "one row a sample"
            )
        space = self.paths[name].space
        return space.expand(mask, like) & space.expand(space.mask(context), like)

    def placed(self, name: str, like: Tensor, known: Tensor) -> Tensor:
        """y where known, else ``like``; points without a centre lie where ``like`` has theirs."""
        y = self.known.values[name].to(like)
        y = torch.where(known, y, like)
        if isinstance(self.paths[name].space, ZeroCoM):
            n = known.expand_as(y).sum(1, keepdim=True).clamp(min=1)
            y = torch.where(known, y + (like - y).sum(1, keepdim=True) / n, y)
        return y

    def _presented(self, state: State, t: Times | float) -> State:
        assert self.draws is not None
        times, fields = field_times(t, state), dict(state.fields)
        for name in self.known.values:
            path, x = self.paths[name], fields[name]
            known = self.where(name, state.context, x)
            clean = torch.where(known, self.known.values[name].to(x), _legal(path, x))
            level = path.space.expand(times[name], x)
            for value in level.unique():
                noisy = path.corrupt(clean, value.expand(len(x)), state.context, self.draws,
                                     f"{name}/known", _bits(float(value)))  # fmt: skip
                here = known & (level == value)
                if isinstance(path.space, ZeroCoM):
                    n = here.expand_as(x).sum(1, keepdim=True).clamp(min=1)
                    noisy = noisy + ((x - noisy) * here).sum(1, keepdim=True) / n
                fields[name] = torch.where(here, noisy, fields[name])
        return State(fields, state.context)

    def _filled(self, prediction: Prediction, context: Context) -> Prediction:
        clean = dict(prediction.clean)
        for name in self.known.values:
            path, d = self.paths[name], clean[name]
            if isinstance(path, CategoricalPath):
                y = self.known.values[name]
                known = self.where(name, context, y)
                y = torch.where(known, y, 0)
                # At t = 0 a path's estimate is the token itself, with certainty.
                sure = path.clean(d, y, d.new_zeros(len(y)), context)
                clean[name] = torch.where(known[..., None], sure, d)
            else:
                clean[name] = self.placed(name, d, self.where(name, context, d))
        return Prediction(clean)


class Reconstruction(Replacement):
    """Replacement, and the unknown part pulled to where the model would have guessed y.

    One call of the model and one gradient through it a step. Gaussian fields are pulled, by what is
    known of Gaussian and token fields; other fields follow through them.

    Args:
        denoiser: the model, differentiable.
        known: see :class:`Replacement`.
        weight: w ≥ 0.
        noise: see :class:`Replacement`.
        draws: see :class:`Replacement`.
    """

    def __init__(self, denoiser: Denoiser, known: Known, weight: float = 1.0,
                 noise: KnownNoise = "trajectory", draws: Draws | None = None):  # fmt: skip
        super().__init__(denoiser, known, noise, draws)
        check_weight(weight)
        self.weight = weight

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        """The estimate with y filled in and the rest pulled along."""
        if self.weight == 0:
            return super().forward(state, t, previous)
        if self.noise == "level":
            state = self._presented(state, t)
        times, differentiable = field_times(t, state), torch.is_grad_enabled()
        moved = {f: p for f, p in self.paths.items() if isinstance(p, GaussianPath)}
        with torch.enable_grad():
            x = {f: state[f] if state[f].requires_grad else state[f].detach().requires_grad_(True)
                 for f in moved}  # fmt: skip
            prediction = self.denoiser(state.replace(**x), t, previous)
            log_p = self._log_likelihood(prediction, times, state.context)
            gradients = torch.autograd.grad(
                log_p.sum(), list(x.values()), create_graph=differentiable, allow_unused=True
            ) if log_p.requires_grad else [None] * len(x)  # fmt: skip
        clean = dict(prediction.clean)
        for (name, path), gradient in zip(moved.items(), gradients, strict=True):
            if gradient is not None:
                a, s = path.schedule(times[name])
                ratio = path.space.expand(s**2 / torch.maximum(a, s * _LEAST_SIGNAL), gradient)
                pull = path.space.color(gradient, state.context)
                clean[name] = clean[name] + self.weight * ratio.to(pull.dtype) * pull
        answer = self._filled(Prediction(clean), state.context)
        return answer if differentiable else answer.detach()

    def _log_likelihood(self, prediction: Prediction, times: Mapping[str, Tensor],
                        context: Context) -> Tensor:  # fmt: skip
        """log p(y | x_t) up to a constant, for w = 1, ``[B]``."""
        total = torch.zeros(len(context), device=context.mask.device)
        for name, y in self.known.values.items():
            path, d = self.paths[name], prediction[name]
            if isinstance(path, CategoricalPath):
                known = self.where(name, context, y)
                seen = d.log_softmax(-1).gather(-1, torch.where(known, y, 0)[..., None])[..., 0]
                # A token that cannot be has no slope either.
                usable = known & seen.isfinite()
                total = total + path.space.sum(torch.where(usable, seen, 0), context)
            elif isinstance(path, GaussianPath):
                known = self.where(name, context, d)
                a, s = path.schedule(times[name])
                precision = torch.where(s > 0, a**2 / s**2, torch.zeros_like(a))
                error = self.placed(name, d, known) - d
                precision = path.space.expand(precision, d).to(d.dtype)
                total = total - path.space.sum(precision * error**2, context) / 2
        return total


def _legal(path: Path, x: Tensor) -> Tensor:
    """Clean values that stand in where nothing is known: a masked symbol is none."""
    return x.clamp(max=path.classes - 1) if isinstance(path, CategoricalPath) else x


def _bits(t: float) -> int:
    """A number of the level ``t`` for the counter: the bits of its float32."""
    return int(struct.unpack("<I", struct.pack("<f", t))[0])


def _check_values(name: str, y: Tensor, mask: Tensor, path: Path) -> None:
    if not 2 <= mask.ndim <= y.ndim or len(mask) != len(y):
        raise InputError(
            f"the mask of known {name!r} is {list(mask.shape)} for values {list(y.shape)}: give "
            "one entry an element, [B, N], or one a number"
        )
    seen = path.space.expand(mask, y)
    if isinstance(path, CategoricalPath):
        bad = (y < 0) | (y >= path.classes)
        if bool((bad & seen).any()):
            raise InputError(f"known tokens of {name!r} must lie in 0 to {path.classes - 1}")
    elif not bool(torch.where(seen, y, 0).isfinite().all()):
        raise InputError(
            f"known values of {name!r} must be finite; unmark what is missing and padding"
        )
