r"""Samples with the coarse features of a reference (Choi et al. 2021, ILVR).

After each step the low frequencies Φ(x) are made those of a noised reference,

    x ← x + Φ(y_t) − Φ(x),      Φ linear.

As a change of the clean estimate, under any sampler,

    D ← D + w Φ(y − D):

the steppers do the same with the noise that Φ(x_t) already has, and that of y needs no draw. For
w = 1 and a projection, Φ Φ = Φ, the sample has exactly Φ(x_0) = Φ(y); other filters leave
(Φ − Φ²)(y − D).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.guidance.acting import acts_at, check_interval
from sciflow.paths import GaussianPath
from sciflow.state import State, Times

__all__ = ["AveragePool", "FourierLowPass", "LowPass", "LowPassReference"]


class LowPass(Protocol):
    """Φ: a linear map of a field, the same for every sample."""

    def __call__(self, x: Tensor, real: Tensor) -> Tensor:
        """Φ(x), shaped as ``x``; ``real`` is bool, broadcastable to it, false in padding."""


@dataclass(frozen=True)
class AveragePool:
    """Means over blocks of ``size`` elements along each of ``axes``: a projection.

    Only real elements count, so padding changes nothing; a last block may be shorter.

    Attributes:
        size: elements of a block along an axis; 1 keeps all.
        axes: axes of the field, 1 the first beside the batch.
    """

    size: int
    axes: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"a block has 1 element or more, not {self.size}")

    def __call__(self, x: Tensor, real: Tensor) -> Tensor:
        """See :class:`LowPass`."""
        real = real.expand_as(x)
        total, count = x.masked_fill(~real, 0), real.to(x.dtype)
        for axis in self.axes:
            total, count = self._blocks(total, axis), self._blocks(count, axis)
        return (total / count.clamp(min=1)).masked_fill(~real, 0)

    def _blocks(self, x: Tensor, axis: int) -> Tensor:
        """Sums over blocks, given back to every element of them."""
        n = x.shape[axis]
        block = torch.arange(n, device=x.device) // self.size
        sums = x.new_zeros(*x.shape[:axis], -(-n // self.size), *x.shape[axis + 1 :])
        return sums.index_add(axis, block, x).index_select(axis, block)


@dataclass(frozen=True)
class FourierLowPass:
    """Waves of at most ``cutoff`` periods over the whole of each of ``axes``: a projection.

    For fields without padding, on whose length the waves depend; they are periodic there.

    Attributes:
        cutoff: 0 keeps the mean alone.
        axes: axes of the field, 1 the first beside the batch.
    """

    cutoff: float
    axes: tuple[int, ...] = (1,)

    def __call__(self, x: Tensor, real: Tensor) -> Tensor:
        """See :class:`LowPass`."""
        if not bool(real.all()):
            raise InputError(
                "waves over padded samples depend on the padding; use AveragePool, or batches of "
                "one length"
            )
        waves = torch.fft.fftn(x, dim=self.axes)
        for axis in self.axes:
            n = x.shape[axis]
            k = torch.fft.fftfreq(n, 1 / n, dtype=x.dtype, device=x.device).abs()
            keep = (k <= self.cutoff).to(x.dtype)
            waves = waves * keep.reshape(-1, *(1,) * (x.ndim - axis - 1))
        return torch.fft.ifftn(waves, dim=self.axes).real


class LowPassReference(Denoiser):
    """A model whose samples have the low frequencies of a reference.

    Args:
        denoiser: the model, guided or not.
        reference: y, clean values of some Gaussian fields, ``{field: [B, ...]}``.
        low_pass: Φ, for all of them or one a field.
        weight: w, 0 (off) to 1.
        interval: times (first, last) of the shared clock between which it acts; a first above 0
            leaves the last steps to the model.

    Raises:
        InputError: a field that is not Gaussian, a weight outside 0 to 1, an empty interval.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        reference: Mapping[str, Tensor],
        low_pass: LowPass | Mapping[str, LowPass],
        weight: float = 1.0,
        interval: tuple[float, float] = (0.0, 1.0),
    ):
        super().__init__()
        for name in reference:
            if not isinstance(denoiser.paths.get(name), GaussianPath):
                gaussian = [f for f, p in denoiser.paths.items() if isinstance(p, GaussianPath)]
                raise InputError(
                    f"frequencies are those of a Gaussian field, not of {name!r}; this model has: "
                    + (", ".join(gaussian) or "none")
                )
        filters = low_pass if isinstance(low_pass, Mapping) else dict.fromkeys(reference, low_pass)
        if missing := sorted(set(reference) - set(filters)):
            raise InputError(f"no low pass for {missing[0]!r}; give one a field, or one for all")
        if not 0 <= weight <= 1:
            raise InputError(f"the weight of a reference lies in 0 (off) to 1, not {weight}")
        check_interval(interval)
        self.denoiser, self.paths = denoiser, denoiser.paths
        self.reference, self.filters = dict(reference), dict(filters)
        self.weight, self.interval = weight, interval

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        """The model's estimate with the reference's low frequencies."""
        prediction = self.denoiser(state, t, previous)
        if self.weight == 0 or not acts_at(t, self.interval):
            return prediction
        clean = dict(prediction.clean)
        for name, y in self.reference.items():
            d, space = clean[name], self.paths[name].space
            if y.shape != d.shape:
                raise InputError(
                    f"the reference of {name!r} is {list(y.shape)}, the field {list(d.shape)}"
                )
            real = space.expand(space.mask(state.context), d)
            change = self.filters[name]((y.to(d) - d).masked_fill(~real, 0), real)
            clean[name] = d + self.weight * space.project(change, state.context)
        return Prediction(clean)
