"""Infilling of sequences: some residues are given, a model of sequences finds the rest.

A template says which: letters are given, "?" and "X" are to be found, ``"MKT????????C"``. Given
residues have time 0 all through sampling. Under absorbing noise a residue that is given looks as
one that was found already, so that a model trained without any given residue samples from
p(rest | given) as well as it knows the data.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from domains.proteins.letters import FIELD
from domains.proteins.sequence_encoding import template
from sciflow.random import Draws
from sciflow.tasks import Beginning, Task

__all__ = ["Infilling"]


class Infilling(Task):
    """Samples that hold the letters of a template.

    Args:
        text: the template; see :func:`~domains.proteins.sequence_encoding.template`.
        wanted: conditions of the samples of some draws.

    Raises:
        InputError: nothing is left open, or a letter is no amino acid.
    """

    def __init__(self, text: str, wanted: Callable[[Draws], dict[str, Tensor]]):
        self.row, self.wanted = template(text), wanted

    def begin(self, draws: Draws) -> Beginning:
        """The template in every row."""
        state = self.row.index(torch.zeros(len(draws), dtype=torch.long))
        context = state.context.replace(conditions=self.wanted(draws))
        return Beginning(context, {FIELD: state[FIELD]})
