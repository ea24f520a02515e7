"""Black-box oracles: a function of clean samples that has no gradient, may fail, and costs.

What guidance sees is one call on a batch, ``oracle(clean) -> [B]`` or ``[B, N, ...]``, NaN in the
rows that failed. ``clean`` is data as a sampler returns it: continuous fields as they are, tokens
as symbols. :class:`RecordOracle` makes it of a function of one decoded sample (a molecule, a chain)
run in parallel by joblib, whose Dask and Ray backends carry it to a cluster; :class:`StateOracle`
of a function of the batch. A failure is an answer: it is counted with its reason and takes no
companion with it, not even where a worker process dies or overruns. :class:`Ledger` keeps the calls
of each sample within a budget.
"""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sciflow.errors import InputError
from sciflow.state import State

__all__ = ["Ledger", "Oracle", "OracleReport", "RecordOracle", "StateOracle"]

_Answer = tuple[NDArray[np.float64] | None, str]
_LOST = (BrokenProcessPool, TimeoutError, multiprocessing.TimeoutError)
_START = 60.0
"""Seconds that workers may need to import what they run, over and above a record's time."""


class Oracle(Protocol):
    """What zeroth-order estimators and force guidance need.

    Attributes:
        unit: physical length (ångström, say) of one unit of the field that is moved.
        resolution: what the oracle rounds positions to, in physical units; 0 where it does not. A
            text file "%.5f" has 1e-5.
        dtype: the floating-point type in which it sees positions.
    """

    unit: float
    resolution: float
    dtype: torch.dtype

    def __call__(self, clean: State) -> Tensor:
        """A number ``[B]``, or a tensor shaped as a field, of each sample; NaN where it failed."""


@dataclass
class StateOracle:
    """A function of a whole batch of clean states.

    Attributes:
        function: ``State -> [B]`` or shaped as a field; its exceptions are errors, not failures.
        unit: see :class:`Oracle`.
        resolution: see :class:`Oracle`.
        dtype: see :class:`Oracle`; fields are cast to it.
    """

    function: Callable[[State], Tensor]
    unit: float = 1.0
    resolution: float = 0.0
    dtype: torch.dtype = torch.float64

    def __call__(self, clean: State) -> Tensor:
        """See :class:`Oracle`."""
        return _masked(self.function(clean.to(self.dtype)).double(), clean)


@dataclass
class RecordOracle:
    """A function of one decoded sample, run over the batch on several cores.

    Attributes:
        function: record -> a number, or an array ``[n, ...]`` with a row for each of its n real
            elements. Raising, or an answer that is not finite, is a failure. With ``jobs`` other
            than 1 it is pickled by joblib.
        decode: a batch of clean states -> records; the same state must give the same record, or
            differences of answers are noise (draw what is random with a fixed
            :class:`~sciflow.random.Draws`).
        shaped: name of the field that an array is shaped as; ``None`` for a number.
        jobs: processes; 1 is this one, where nothing guards against a crash, -1 every core.
        timeout: seconds for one record, where ``jobs`` is not 1.
        unit: see :class:`Oracle`.
        resolution: see :class:`Oracle`.
        dtype: see :class:`Oracle`.
        reasons: how often each failure occurred.
    """

    function: Callable[[Any], Any]
    decode: Callable[[State], Sequence[Any]]
    shaped: str | None = None
    jobs: int = 1
    timeout: float = 60.0
    unit: float = 1.0
    resolution: float = 0.0
    dtype: torch.dtype = torch.float64
    reasons: Counter[str] = field(default_factory=Counter)

    def __call__(self, clean: State) -> Tensor:
        """See :class:`Oracle`.

        Raises:
            InputError: an array has another shape than the sample.
        """
        answers = self.answers(list(self.decode(clean.to(self.dtype))))
        like = None if self.shaped is None else clean[self.shaped]
        shape = (clean.batch_size,) if like is None else like.shape
        values = torch.zeros(shape, dtype=torch.float64)
        lengths = clean.context.lengths.tolist()
        for row, (answer, reason) in enumerate(answers):
            if answer is not None and not np.isfinite(answer).all():
                answer, reason = None, "not finite"
            if answer is None:
                self.reasons[reason] += 1
                values[row] = torch.nan
                continue
            target = values[row] if like is None else values[row, : lengths[row]]
            if answer.size != target.numel():
                raise InputError(
                    f"the oracle answered with an array {list(answer.shape)} for a sample whose "
                    f"{self.shaped or 'value'} has shape {list(target.shape)}"
                )
            target.copy_(torch.from_numpy(answer.reshape(target.shape)))
        return values.to(clean.device)

    def answers(self, records: Sequence[Any]) -> list[_Answer]:
        """For each record the function's answer, or ``None`` and why there is none."""
        from joblib import Parallel, delayed

        if self.jobs == 1:
            return [_attempt(self.function, record) for record in records]
        parallel = Parallel(n_jobs=self.jobs, timeout=self.timeout + _START)
        try:
            return list(parallel(delayed(_attempt)(self.function, record) for record in records))
        except _LOST:
            # Somebody's worker died or overran; find out whose, each by itself.
            return [self._alone(record) for record in records]

    def _alone(self, record: Any) -> _Answer:
        """The answer from the only worker, which is replaced when it is lost."""
        from joblib.externals.loky import get_reusable_executor

        executor = get_reusable_executor(max_workers=1)
        # What a new worker must import is not the record's time.
        executor.submit(_attempt, bool, self.function).result()
        try:
            answer: _Answer = executor.submit(_attempt, self.function, record).result(self.timeout)
            return answer
        except _LOST as error:
            executor.shutdown(kill_workers=True)
            overran = not isinstance(error, BrokenProcessPool)
            return None, f"no answer within {self.timeout:g} s" if overran else "its worker died"


@dataclass(frozen=True)
class OracleReport:
    """What guidance cost, sample by sample in the order in which batches were sampled.

    Attributes:
        calls: of the oracle, int64 ``[n]``.
        failures: how many of them failed, int64 ``[n]``.
    """

    calls: Tensor
    failures: Tensor

    def __str__(self) -> str:
        if not len(self.calls):
            return "no oracle calls"
        return (
            f"{self.calls.double().mean():.1f} oracle calls a sample (at most "
            f"{int(self.calls.max())}), {int(self.failures.sum())} of {int(self.calls.sum())} "
            "failed"
        )


class Ledger:
    """The calls of each sample of a batch, kept within a budget.

    Args:
        batch: number of samples.
        budget: calls a sample may cost; ``None`` for any number.
    """

    def __init__(self, batch: int, budget: int | None = None):
        self.calls = torch.zeros(batch, dtype=torch.int64)
        self.failures = torch.zeros(batch, dtype=torch.int64)
        self.budget = budget

    def affords(self, calls: int) -> Tensor:
        """Bool ``[B]``: the samples whose budget still covers so many calls."""
        if self.budget is None:
            return torch.ones_like(self.calls, dtype=torch.bool)
        return self.calls + calls <= self.budget

    def charge(self, rows: Tensor, calls: Tensor, failures: Tensor) -> None:
        """Write down what some samples cost."""
        self.calls[rows] += calls.to(self.calls)
        self.failures[rows] += failures.to(self.failures)


def _attempt(function: Callable[[Any], Any], record: Any) -> _Answer:
    try:
        return np.asarray(function(record), dtype=np.float64), ""
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


def _masked(values: Tensor, clean: State) -> Tensor:
    """Rows with a value that is not finite at a real element are NaN; padding is zero."""
    if values.ndim > 1:
        mask = clean.context.mask
        mask = mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim))
        values = values.masked_fill(~mask, 0)
    failed = ~values.flatten(1).isfinite().all(1) if values.ndim > 1 else ~values.isfinite()
    return values.masked_fill(failed.reshape(-1, *(1,) * (values.ndim - 1)), torch.nan)
