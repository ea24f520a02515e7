"""What there is of some windows, in the series' own units: where every way to draw them starts."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

__all__ = ["View"]


@dataclass(frozen=True)
class View:
    """Windows of B series.

    Attributes:
        y: float64 ``[B, L, C]``, NaN where unknown.
        given: bool ``[B, L, C]``: the values that are conditions.
        real: bool ``[B, L, C]``: steps that exist: given, or to be drawn.
        covariates: standardised, ``[B, L, K]``, NaN where unknown.
        known_future: whether those go on over the horizon; else they end with the history.
    """

    y: Tensor
    given: Tensor
    real: Tensor
    covariates: Tensor | None = None
    known_future: bool = False

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, rows: slice | Tensor) -> View:
        covariates = None if self.covariates is None else self.covariates[rows]
        return View(self.y[rows], self.given[rows], self.real[rows], covariates, self.known_future)

    def holding(self, y: Tensor) -> View:
        """The same windows with other values."""
        return replace(self, y=y)
