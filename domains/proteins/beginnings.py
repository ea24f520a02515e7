"""Chains that a run begins from noise alone, and random numbers that depend on that noise.

A guide that draws something for each chain, a plan of sheets or a fold, draws it once, when the run
begins. A chain with a motif or with given residues, and one whose run begins in the middle (a
re-design), keeps what it has.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.random import Draws
from sciflow.state import State

__all__ = ["begins", "draws_of", "kept"]

_BEGINNING = 0.9
"""A run that begins below this time begins with a chain."""


def begins(time: Tensor) -> bool:
    """Whether a run whose first call is at these times begins from noise."""
    return bool((time >= _BEGINNING).any())


def kept(state: State) -> Tensor:
    """Chains that keep what they have: with a motif, or given residues; bool ``[B]``."""
    context = state.context
    marks = torch.full_like(context.lengths, "piece" in context.extras, dtype=torch.bool)
    if "torsions" in context.given:
        marks = marks | context.given["torsions"].any(1)
    return marks


def draws_of(noise: State) -> Draws:
    """Numbers of chains that begin with this noise: they depend on (seed, i) alone, as it does."""
    return Draws(0, (noise["torsions"][:, 0, 2].double() * 2**20).round().long().cpu())
