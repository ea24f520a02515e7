"""One run of a model: what is sampled together, which candidate is kept, and what it cost.

:meth:`sciflow.model.Model.sample` decides what is asked for and by which denoiser; a :class:`Run`
makes it. Sample i depends on its number alone, so that batches are a matter of speed: those of
similar size go together, and padding stays small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, NetworkDenoiser
from sciflow.domain import Progress
from sciflow.errors import InputError
from sciflow.guidance import OracleReport, noised, numbered
from sciflow.random import Draws
from sciflow.samplers import Sampler, SamplerReport
from sciflow.state import Context, State
from sciflow.tasks import Beginning, Task

__all__ = ["Made", "Run"]

_CANDIDATES = 1 << 48
"""Distance of the seeds of a sample's candidates."""


@dataclass
class Made:
    """What a run has made so far.

    Attributes:
        records: of every sample; ``None`` where there is none (yet).
        columns: ``{name: [n]}``, what the task tells of each sample (NaN: nothing).
        dropped: why, by number, samples are missing.
        calls: network evaluations a sample.
        costs: of each guide, by its label.
        interrupted: whether Ctrl-C ended the run.
    """

    records: list[Any | None]
    columns: dict[str, list[float]] = field(default_factory=dict)
    dropped: dict[int, str] = field(default_factory=dict)
    calls: int = 0
    costs: dict[str, dict[str, int]] = field(default_factory=dict)
    interrupted: bool = False


@dataclass(frozen=True)
class Run:
    """The settings of a run.

    Attributes:
        denoiser: with all its guides.
        base: the model's own denoiser, of which evaluations are counted.
        guides: the denoiser that each guide made, by its label.
        sampler: integrates.
        context: sizes and conditions of all samples.
        task: lays its own samples out; ``None`` for samples from nothing.
        decode: a clean state as records.
        judge: scores ``[B]`` of candidates, minus infinity where one is not sound.
        best_of: candidates a sample.
        batch_size: samples a network call.
        device: where to compute.
    """

    denoiser: Denoiser
    base: Denoiser
    guides: Mapping[str, Denoiser]
    sampler: Sampler
    context: Context
    task: Task | None
    decode: Callable[[State], list[Any]]
    judge: Callable[[State, list[Any]], Tensor]
    best_of: int
    batch_size: int
    device: str

    def __call__(self, draws: Draws, progress: Progress | None = None) -> Made:
        """Make the samples of ``draws``; Ctrl-C ends it with those that are done.

        Args:
            draws: random numbers, one row a sample of :attr:`context`.
            progress: told (samples done, samples).
        """
        n = len(draws)
        made = Made([None] * n)
        batches = self.context.lengths.argsort(stable=True).split(self.batch_size)
        calls, done = 0.0, 0
        try:
            for rows in batches:
                own, best = draws.rows(rows), None
                begin = self._begin(rows, own)
                for candidate in range(self.best_of):
                    # A candidate is a sample of another seed, far from those that people choose.
                    its = Draws(draws.seed + candidate * _CANDIDATES, own.samples)
                    told = _share(progress, done, len(rows), n * self.best_of)
                    with _counted(self.denoiser, self.base) as evaluated:
                        report = self._sample(begin, its, told)
                    done += len(rows)
                    if rows is batches[0]:
                        calls += evaluated[0] / len(rows)
                    best = self._keep(made, report, rows, own, best)
                if rows is batches[0]:
                    made.costs = {label: _calls(guide) for label, guide in self.guides.items()}
        except KeyboardInterrupt:
            made.interrupted = True
            numbers = draws.samples.tolist()
            missing = (k for k, record in zip(numbers, made.records, strict=True) if record is None)
            made.dropped = {k: "interrupted" for k in missing} | made.dropped
        made.calls = math.ceil(calls - 1e-9)
        made.costs = {
            label: cost
            for label, guide in self.guides.items()
            if (cost := {**made.costs.get(label, {}), **_oracle_calls(guide)})
        }
        return made

    def _begin(self, rows: Tensor, own: Draws) -> Beginning:
        # A task lays its samples out anew: it knows what of them is padding.
        begin = Beginning(_part(self.context, rows)) if self.task is None else self.task.begin(own)
        return replace(begin, context=numbered(begin.context, own))

    def _sample(
        self, begin: Beginning, draws: Draws, progress: Callable[[int, int], None] | None
    ) -> SamplerReport:
        """The sampler's run, or that of a guidance that has the sampler in its own hands."""
        context = begin.context.apply(lambda x: x.to(self.device))
        given = {f: x.to(self.device) for f, x in begin.given.items()}
        own: Callable[..., SamplerReport] | None = getattr(self.denoiser, "sample", None)
        if own is not None:
            if given or begin.start is not None:
                raise InputError(
                    "particles begin from noise alone: this guide cannot serve the task"
                )
            return own(self.sampler, context, draws, progress=progress)
        start = None
        if begin.start is not None:
            clean = State({f: x.to(self.device) for f, x in begin.start.items()}, context)
            start = noised(self.denoiser.paths, clean, begin.time, draws).fields
        return self.sampler(self.denoiser, context, draws, given=given or None, progress=progress,
                            start=start, begin=begin.time)  # fmt: skip

    def _keep(
        self, made: Made, report: SamplerReport, rows: Tensor, own: Draws, best: Tensor | None
    ) -> Tensor:
        """Keep each candidate that is better than ``best``, all of them if that is ``None``.

        Returns:
            The scores of what is now kept.
        """
        state = report.state.to("cpu")
        records: Sequence[Any] = self.decode(state)
        told: Sequence[Mapping[str, float]] = [{}] * len(records)
        if self.task is not None:
            records, told = zip(*self.task.finish(records, own), strict=True)
        score = self.judge(state, list(records))
        better = torch.ones(len(rows), dtype=torch.bool) if best is None else score > best
        for i in better.nonzero().flatten().tolist():
            row, number = int(rows[i]), int(own.samples[i])
            made.dropped.pop(number, None)
            made.records[row] = records[i]
            for name, value in told[i].items():
                made.columns.setdefault(name, [math.nan] * len(made.records))[row] = value
            if i in report.reasons:
                made.records[row] = None
                made.dropped[number] = f"not finite: {report.reasons[i]}"
        return score if best is None else torch.where(better, score, best)


def _part(context: Context, rows: Tensor) -> Context:
    """Some samples, without the padding that only the others need."""
    part = context.apply(lambda x: x[rows])
    if part.mask.ndim != 2:
        return part
    return part.replace(mask=part.mask[:, : int(part.lengths.max())])


def _share(
    progress: Progress | None, done: int, size: int, n: int
) -> Callable[[int, int], None] | None:
    """Network calls of one batch, told as samples done in the whole run."""
    if progress is None:
        return None
    return lambda call, calls: progress(done + size * call // calls, n)


@contextmanager
def _counted(denoiser: Denoiser, base: Denoiser) -> Iterator[list[int]]:
    """Counts the evaluations of all networks in a denoiser, whoever asks them, in samples."""
    made = [0]

    def count(_: object, asked: tuple[State, ...], __: object) -> None:
        made[0] += asked[0].batch_size

    # A base that is no network, an exact one say, counts as one.
    networks = [m for m in denoiser.modules() if isinstance(m, NetworkDenoiser) or m is base]
    hooks = [network.register_forward_hook(count) for network in networks]
    try:
        yield made
    finally:
        for hook in hooks:
            hook.remove()


def _calls(guide: Denoiser) -> dict[str, int]:
    """What a guide has called so far, by what it says of itself."""
    names = {"network_calls": "calls", "energy_calls": "energies"}
    found = {key: getattr(guide, name, None) for key, name in names.items()}
    return {key: value for key, value in found.items() if isinstance(value, int) and value}


def _oracle_calls(guide: Denoiser) -> dict[str, int]:
    report = getattr(guide, "report", None)
    if not isinstance(report, OracleReport):
        return {}
    return {"oracle_calls": int(report.calls.sum()), "oracle_failed": int(report.failures.sum())}
