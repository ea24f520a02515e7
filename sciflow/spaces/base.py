"""The contract of a space."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from sciflow.random import Draws
from sciflow.state import Context

__all__ = ["Space"]


class Space(ABC):
    """The geometry of one field; knows neither time nor networks.

    A field is ``[B, *elements, *event]``: ``elements`` are the axes that padding can lengthen
    (atoms, pairs of atoms, residues, time steps, grid points) and ``event`` belongs to one element.
    All shape manipulation of a field lives here.
    """

    @abstractmethod
    def mask(self, context: Context) -> Tensor:
        """Bool ``[B, *elements]``: the elements of this field that are real."""

    @abstractmethod
    def noise(self, context: Context, draws: Draws, stream: str, step: int = 0,
              dtype: torch.dtype | None = None) -> Tensor:  # fmt: skip
        """A draw of the space's noise (the prior of a path), zero where padded."""

    @abstractmethod
    def project(self, x: Tensor, context: Context) -> Tensor:
        """The nearest legal value: zero in padding and whatever else the space demands.

        Idempotent.
        """

    def anchor(self, x: Tensor, context: Context) -> Tensor:
        """Clean data in the frame that given elements fix; here every frame is the same."""
        return x

    def expand(self, t: Tensor, x: Tensor) -> Tensor:
        """``t`` (``[]``, ``[B]`` or one an element) shaped so that it multiplies ``x``."""
        return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))

    def sum(self, q: Tensor, context: Context) -> Tensor:
        """Sum of ``q`` (shaped as the field, or ``[B, *elements]``) over real elements: ``[B]``."""
        return q.masked_fill(~self.expand(self.mask(context), q), 0).flatten(1).sum(1)

    def count(self, context: Context) -> Tensor:
        """Number of real elements of each sample: ``[B]``."""
        return self.mask(context).flatten(1).sum(1)

    def color(self, gradient: Tensor, context: Context) -> Tensor:
        """The noise covariance C times a gradient; C = 1 for white noise."""
        return self.project(gradient, context)

    def inner(self, x: Tensor, y: Tensor, context: Context) -> Tensor:
        """⟨x, C⁻¹ y⟩ with the noise covariance C, over real elements: ``[B]``."""
        return self.sum(x * y, context)

    def logdet(self, context: Context) -> Tensor:
        """log det C on the space of legal values, float64 ``[B]``; 0 for white noise."""
        return torch.zeros(len(context), dtype=torch.float64, device=context.mask.device)

    def dimensions(self, x: Tensor, context: Context) -> Tensor:
        """Dimension of the space of legal values of fields shaped as ``x``: int64 ``[B]``."""
        return self.sum(torch.ones_like(x, dtype=torch.int64), context)
