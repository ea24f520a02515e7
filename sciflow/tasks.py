"""Tasks: what a run may be asked for besides values and sizes, a part that is given, say.

A domain declares options (:attr:`sciflow.domain.Domain.options`); ``sciflow sample`` offers them as
``--motif FILE`` and so on, ``model.sample(task={"motif": ...})`` takes them from Python, and
:meth:`sciflow.domain.Domain.task` makes a :class:`Task` of those that were given. It has three
places at which it may act: where a run begins, what denoises, and what becomes of the records.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from sciflow.denoisers import Denoiser
    from sciflow.model import Model
    from sciflow.random import Draws
    from sciflow.state import Context

__all__ = ["Beginning", "Task"]


@dataclass(frozen=True)
class Beginning:
    """Where the samples of a batch begin.

    Attributes:
        context: sizes, conditions, marks of what is given.
        given: values of given elements, ``{field: [B, ...]}``.
        start: clean fields that are noised to ``time``; default a draw of the prior.
        time: of the shared clock, 1 noise.
    """

    context: Context
    given: dict[str, Tensor] = field(default_factory=dict)
    start: dict[str, Tensor] | None = None
    time: float = 1.0


class Task(ABC):
    """What a run is asked for. Row i depends on (seed, i) alone, in every method."""

    @abstractmethod
    def begin(self, draws: Draws) -> Beginning:
        """Where the samples of ``draws`` begin, one a row."""

    def guided(self, run: Model, denoiser: Denoiser) -> Denoiser:
        """The denoiser of the run, which guides of the user guide already.

        Args:
            run: the model of the run; its ``guides`` are labels of what guides it.
            denoiser: to be guided.
        """
        return denoiser

    def finish(self, records: Sequence[Any], draws: Draws) -> list[tuple[Any, Mapping[str, float]]]:
        """Each record as it is handed out, and its further columns of ``samples.csv``.

        Records may hold numbers that are not finite; they are dropped afterwards.
        """
        return [(record, {}) for record in records]
