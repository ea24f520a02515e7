r"""The gradient of a smoothed energy of the clean estimate, L = log 1/m Σ_j f(z + δ_j).

Smoothing says of x_0 what the estimate alone does not: that it may lie anywhere within the spread
of p(x_0 | x_t) around it (Song et al. 2023, LGD). Of tokens that spread is a draw from their
probabilities (Lin et al. 2025, TFG-Flow), and then the draws themselves can be weighted by f.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from sciflow.errors import InputError
from sciflow.paths import CategoricalPath, Path
from sciflow.random import Draws
from sciflow.state import Context, State

__all__ = ["SmoothedEnergy", "differentiated", "leaf", "pulled_back", "readable"]

_NEVER = 40.0
"""−log-probability of a symbol that no draw has."""


class SmoothedEnergy:
    """L and its gradient; counts its ``calls`` of f.

    Args:
        log_f: the clean state to ``[B]``, differentiable.
        paths: of the fields.
        copies: m, where something is drawn.
        draws: the random numbers of the batch; or a seed, and every sample sees the same numbers,
            so that a sample still does not depend on its companions.
        hard_tokens: f sees complete draws of the tokens, one-hot, in place of probabilities.
    """

    def __init__(self, log_f: Callable[[State], Tensor], paths: Mapping[str, Path], copies: int,
                 draws: Draws | int, hard_tokens: bool):  # fmt: skip
        self.log_f, self.paths, self.copies, self.draws = log_f, paths, copies, draws
        self.tokens = [f for f, p in paths.items() if isinstance(p, CategoricalPath)]
        self.tokens = self.tokens if hard_tokens else []
        self.calls = 0

    def values(
        self, clean: Mapping[str, Tensor], context: Context, width: Mapping[str, Tensor], step: int
    ) -> tuple[Tensor, list[dict[str, Tensor]]]:
        """log f of each copy ``[m, B]``, and the tokens that each has, one-hot.

        Args:
            clean: the estimates, tokens as probabilities.
            context: of the batch.
            width: standard deviations of the noise of the fields that have any, shaped to multiply
                them.
            step: number of the draws.
        """
        copies = self.copies if width or self.tokens else 1
        draws = self.draws
        if isinstance(draws, int):
            draws = Draws(draws, torch.zeros(len(context), dtype=torch.int64))
        elif (width or self.tokens) and len(draws) != len(context):
            raise InputError(f"draws of {len(draws)} samples for a batch of {len(context)}")
        values, symbols = [], []
        for m in range(copies):
            fields = dict(clean)
            for name, std in width.items():
                z = self.paths[name].space.noise(
                    context, draws, f"{name}/smoothing{m}", step, clean[name].dtype
                )
                fields[name] = clean[name] + std * z
            drawn = {f: self._draw(f, clean[f], context, draws, m, step) for f in self.tokens}
            values.append(self.log_f(State({**fields, **drawn}, context)))
            symbols.append(drawn)
        self.calls += copies
        _check_shape(values[0], len(context))
        return torch.stack(values), symbols

    def mean(self, values: Tensor) -> Tensor:
        """L from the values of the copies, ``[B]``."""
        return values[0] if len(values) == 1 else values.logsumexp(0) - math.log(len(values))

    def reweighted(
        self, values: Tensor, symbols: list[dict[str, Tensor]], name: str, power: Tensor
    ) -> Tensor:
        """log of the mean of the draws of a token field, weighted by softmax(power · log f).

        Args:
            values: of :meth:`values`.
            symbols: of :meth:`values`.
            name: of the field.
            power: one a sample ``[B]``, the inverse of a temperature.
        """
        weights = (power.to(values) * values).softmax(0)
        drawn = torch.stack([tokens[name] for tokens in symbols])
        p = (weights.reshape(*weights.shape, *(1,) * (drawn.ndim - 2)) * drawn).sum(0)
        return p.clamp(min=math.exp(-_NEVER)).log()

    def _draw(self, name: str, p: Tensor, context: Context, draws: Draws, m: int,
              step: int) -> Tensor:  # fmt: skip
        path = self.paths[name]
        assert isinstance(path, CategoricalPath)
        u = path.space.uniform(context, draws, f"{name}/copy{m}", step)
        return F.one_hot(path.space.sample(p.detach(), u), path.classes).to(p.dtype)


def readable(paths: Mapping[str, Path], clean: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Estimates as an energy wants them: tokens as probabilities, everything else as it is."""
    return {f: x.softmax(-1) if isinstance(paths[f], CategoricalPath) else x
            for f, x in clean.items()}  # fmt: skip


def leaf(x: Tensor, keep: bool) -> Tensor:
    """``x`` as something to differentiate by; in its own graph if that is to be kept."""
    return x if keep and x.requires_grad else x.detach().requires_grad_()


def differentiated(value: Tensor, by: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """∂value/∂x of each sample, for every x of ``by``.

    Args:
        value: ``[B]``; row i depends on row i of every tensor alone.
        by: tensors that require gradients.
        keep: keep the graph, to differentiate once more.

    Raises:
        InputError: the value is not one number a sample, or not a differentiable function.
    """
    _check_shape(value, len(next(iter(by.values()))))
    if not value.requires_grad:
        raise InputError(
            "log_f has no gradient: compute it with torch from the state that it is given, or take "
            "a zeroth-order estimator for a black box"
        )
    found = torch.autograd.grad(value.sum(), list(by.values()), create_graph=keep,
                                materialize_grads=True)  # fmt: skip
    return dict(zip(by, found, strict=True))


def pulled_back(
    estimate: Mapping[str, Tensor], gradient: Mapping[str, Tensor], by: Mapping[str, Tensor],
    keep: bool,
) -> dict[str, Tensor]:  # fmt: skip
    """Jᵀ ∇L, J the derivative of the estimates of all fields.

    Args:
        estimate: what was estimated, see :func:`readable`.
        gradient: ∇L by it.
        by: the noisy fields that it was estimated from.
        keep: keep the graph.

    Raises:
        InputError: the estimate does not depend on them in a differentiable way.
    """
    ends = [f for f, x in estimate.items() if x.requires_grad]
    if not ends:
        raise InputError(
            "the model's estimate has no gradient by x_t, which rho needs; guide with mu alone"
        )
    found = torch.autograd.grad(
        [estimate[f] for f in ends], list(by.values()), [gradient[f] for f in ends],
        create_graph=keep, materialize_grads=True,
    )  # fmt: skip
    return dict(zip(by, found, strict=True))


def _check_shape(value: Tensor, n: int) -> None:
    if value.shape != (n,):
        raise InputError(
            f"log_f must give one number a sample, [{n}], not {list(value.shape)}: sum over "
            "elements, never over the batch"
        )
