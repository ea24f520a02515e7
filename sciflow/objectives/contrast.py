r"""Contrastive flow matching: targets of other samples push away (Stoica et al. 2025, ΔFM).

    L = |F − F*|² − λ |F − F*_neg|²

with F*_neg the target at the same time of another sample of the batch, made of its own data *and*
its own noise. Since the negative is independent of x_t, the minimiser is

    F° = (E[F* | x_t, c] − λ E[F*]) / (1 − λ),

not the flow but an overshoot of it, away from the mean over all data: classes are told apart more
clearly, at the price of the law. Where E[x_0] = 0 it is no contrast at all but a network scaled by
1/(1 − λ). :func:`corrected`, or :class:`Uncontrasted` around a denoiser, undoes it where the truth
is wanted. In terms of clean estimates, with m = E[x_0] and x_0 = c_x x_t + c_F F,

    D = (1 − λ) D° + λ [ m + c_x (x_t − a m) ].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.paths import GaussianPath
from sciflow.random import Draws
from sciflow.state import Context, State, Times, field_times

__all__ = ["Contrast", "Uncontrasted", "corrected"]


@dataclass(frozen=True)
class Contrast:
    """Negatives from the batch. A sample's loss then depends on its companions.

    Samples whose companions all have another number of elements get no negative, and learn the
    plain flow.

    Attributes:
        weight: λ, below 1.
        different: a condition in which the negative must differ (a class), both of them known; m is
            then the mean over the other classes. Samples without the condition get no negative.
    """

    weight: float = 0.05
    different: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.weight < 1:
            raise InputError(
                f"the weight of a contrast must lie in [0, 1), not {self.weight}: from 1 on the "
                "loss has no minimum"
            )

    def partners(self, mask: Tensor, context: Context, draws: Draws, step: int
                 ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The row of each sample's negative, int64 ``[B]``, and whether it has one, bool ``[B]``.

        Samples stand in a random cycle, and each takes the next one that it may take: all of them
        are equally likely, and without ``different`` each is taken once.

        Args:
            mask: real elements of the field, ``[B, *elements]``.
            context: with the conditions.
            draws: of the batch.
            step: of training.
        """
        shape = torch.unique(mask.flatten(1), dim=0, return_inverse=True)[1]
        may = (shape[:, None] == shape).fill_diagonal_(False)
        if self.different is not None:
            if self.different not in context.conditions:
                raise InputError(
                    f"no condition {self.different!r} to tell negatives by; conditions: "
                    + (", ".join(context.conditions) or "none")
                )
            c = context.conditions[self.different].reshape(len(mask), -1)
            known = ~c.isnan().any(1)
            may &= (c[:, None] != c[None]).any(-1) & known[:, None] & known
        key = draws.uniform((), "objective/contrast", step, torch.float64, mask.device)
        ahead = ((key[None] - key[:, None]) % 1.0).masked_fill(~may, 2.0)
        return ahead.argmin(1), may.any(1)

    def penalty(self, path: GaussianPath, clean: Tensor, negative: tuple[Tensor, Tensor],
                x_t: Tensor, t: Tensor, context: Context) -> Tensor:  # fmt: skip
        """λ |F − F*_neg|², a mean over unknown elements, ``[B]``.

        Args:
            path: of the field.
            clean: the estimate D of the network at x_t.
            negative: ``(x_0, noise)`` of the negatives.
            x_t: the samples' own noisy field.
            t: their times.
            context: of the samples.
        """
        x0, noise = negative
        u = path.space.expand(t, x0)
        # Where t = 0 an element is given and has no target; any other time stands in there.
        u = u.masked_fill(u <= 0, 0.5)
        target = path.output(x0, path.mix(x0, noise, u), u)
        # The clean estimate that a network with this output would give at x_t.
        return self.weight * path.loss(clean, path.clean(target, x_t, t, context), x_t, t, context)


def corrected(path: GaussianPath, clean: Tensor, x_t: Tensor, t: Tensor, mean: Tensor | float,
              weight: float) -> Tensor:  # fmt: skip
    """The true E[x_0 | x_t] from the estimate of a network trained with a contrast.

    Args:
        path: of the field, with a prediction type as in training.
        clean: D°, shaped as the field.
        x_t: the noisy field.
        t: its times.
        mean: m = E[x_0] over the negatives, broadcastable to the field; for point clouds without
            their centre it is 0.
        weight: λ.
    """
    u = path.space.expand(t, x_t)
    u = u.masked_fill(u <= 0, 0.5)
    c_x, _ = (c.to(x_t.dtype) for c in path.coefficients(u))
    a = path.schedule(u)[0].to(x_t.dtype)
    true = (1 - weight) * clean + weight * (mean + c_x * (x_t - a * mean))
    return torch.where(path.space.expand(t, x_t) <= 0, clean, true)


class Uncontrasted(Denoiser):
    """A denoiser trained with a contrast, corrected; it samples the data's own law.

    Args:
        denoiser: D°.
        means: m of each field that was trained with a contrast, a number or a tensor that the
            field's shape takes; the other fields are left alone.
        weight: λ of that training.
    """

    def __init__(self, denoiser: Denoiser, means: Mapping[str, Tensor | float],
                 weight: float = 0.05):  # fmt: skip
        super().__init__()
        for name in means:
            if not isinstance(denoiser.paths.get(name), GaussianPath):
                raise InputError(
                    f"{name!r} is no Gaussian field, so no contrast was trained on it; fields: "
                    + ", ".join(denoiser.paths)
                )
        self.denoiser, self.paths = denoiser, denoiser.paths
        self.means, self.weight = dict(means), weight

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        prediction = self.denoiser(state, t, previous)
        times, clean = field_times(t, state), dict(prediction.clean)
        for name, mean in self.means.items():
            path = self.paths[name]
            assert isinstance(path, GaussianPath)
            true = corrected(path, clean[name], state[name], times[name], mean, self.weight)
            clean[name] = path.space.project(true, state.context)
        return Prediction(clean)
