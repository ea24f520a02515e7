"""What a model has made: records of a science, what was asked for, what was lost, what it cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sciflow.domain import Domain, Progress

__all__ = ["Samples", "SamplingInterrupted"]


@dataclass(frozen=True)
class Samples:
    """What :meth:`sciflow.model.Model.sample` made.

    Attributes:
        records: the domain's objects, in order of their numbers; ``None`` where one was dropped.
        targets: ``{property: [n]}``, the value asked of each sample (NaN: not asked for).
        dropped: why, for each dropped sample, ``{number: reason}``.
        calls: network evaluations a sample, those of guides and of weaker models included.
        seconds: wall-clock time.
        settings: everything needed to make the same samples again. Its ``guide_costs`` are of each
            guide: network calls (of what it guides too) and evaluations of an energy, predictor or
            reward a sample; oracle calls of all samples together.
        domain: the adapter that made them.
        cpu_seconds: processor time, over all threads.
        same_size: ``{property: error}``, the mean distance between the values asked for and those
            of training samples of the same sizes: what one gets by asking for the size alone.
        columns: ``{name: [n]}``, further numbers of each sample (NaN: none), for ``samples.csv``.
    """

    records: list[Any | None]
    targets: dict[str, list[float]]
    dropped: dict[int, str]
    calls: int
    seconds: float
    settings: dict[str, Any]
    domain: Domain = field(repr=False)
    cpu_seconds: float = 0.0
    same_size: dict[str, float] = field(default_factory=dict)
    columns: dict[str, list[float]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def kept(self) -> list[Any]:
        """The records that were not dropped."""
        return [r for r in self.records if r is not None]

    def relaxed(self, jobs: int = -1, progress: Progress | None = None) -> Samples:
        """The sound samples moved to the nearest minimum of the domain's energy.

        A sample that cannot be relaxed, or does not survive it, is dropped with the reason. What
        the way there tells (how far, how much energy) stands in :attr:`columns`.

        Args:
            jobs: processes; -1 is every core.
            progress: told of samples done.

        Raises:
            InputError: the domain has no energy.
        """
        kept = [i for i, r in enumerate(self.records) if r is not None]
        verdicts = self.domain.verdicts([self.records[i] for i in kept])
        sound = [i for i, why in zip(kept, verdicts, strict=True) if not why]
        ends = self.domain.relax([self.records[i] for i in sound], jobs, progress)
        first = int(self.settings.get("first", 0))
        records, dropped = list(self.records), dict(self.dropped)
        names = list(dict.fromkeys(name for end in ends for name in end.values))
        columns = {name: [math.nan] * len(records) for name in names}
        for i, end in zip(sound, ends, strict=True):
            records[i] = end.record
            if end.failure:
                dropped[first + i] = end.failure
            for name, value in end.values.items():
                columns[name][i] = value
        return replace(
            self, records=records, dropped=dict(sorted(dropped.items())),
            columns={**self.columns, **columns}, settings={**self.settings, "relaxed": True},
        )  # fmt: skip

    def save(self, folder: str | Path, oracle: Sequence[str] | None = None, report: bool = True,
             progress: Progress | None = None, jobs: int = -1) -> Path:  # fmt: skip
        """Write files of the field, ``samples.csv``, ``metrics.json`` and ``report.html``.

        Args:
            folder: made if absent; files of the same names in it are replaced.
            oracle: properties to measure; default those that were targets.
            report: also make the page.
            progress: told of oracle calls done.
            jobs: processes of the oracle; -1 is every core.
        """
        from sciflow.reports.run import save_run

        return save_run(self, Path(folder), oracle, report, progress, jobs)


class SamplingInterrupted(KeyboardInterrupt):
    """Ctrl-C while sampling; what was done by then is in ``samples``.

    Args:
        samples: those not reached are dropped with the reason "interrupted".
    """

    def __init__(self, samples: Samples):
        super().__init__()
        self.samples = samples
