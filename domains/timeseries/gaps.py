"""What was filled in, without what was there: sample paths at the missing values alone.

Paths of a whole table of long series would fill the memory; those of its gaps are few. The file of
a part has the samples ``[S, M]`` of the M missing values of its series, one series after the other,
in the order of steps and channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from domains.timeseries.imputed import ImputationLike
from domains.timeseries.series import Series
from sciflow.errors import InputError
from sciflow.files import reading_arrays, writing

__all__ = ["Gaps", "load_gaps", "save_gaps"]


@dataclass(frozen=True, eq=False)
class Gaps:
    """An imputation that keeps samples of the missing values alone; see :class:`ImputationLike`.

    Attributes:
        series: with its gaps.
        values: what each of the M gaps is filled with, ``[M]``.
        paths: samples of the gaps, ``[S, M]``.
    """

    series: Series
    values: NDArray[np.float64]
    paths: NDArray[np.float64]

    @property
    def samples(self) -> NDArray[np.float64]:
        """``[S, T, C]``, observed values as they were."""
        result = np.repeat(self.series.values[None], len(self.paths), 0)
        result[:, ~self.series.observed] = self.paths
        return result

    def filled(self) -> Series:
        """The series with one value in each gap."""
        result = self.series.values.copy()
        result[~self.series.observed] = self.values
        return self.series.replace(values=result)


def save_gaps(imputations: Sequence[ImputationLike], path: str | Path) -> Path:
    """Write values and samples of the gaps of some series."""
    missing = [~i.series.observed for i in imputations]
    values = [i.filled().values[gone] for i, gone in zip(imputations, missing, strict=True)]
    paths = [i.samples[:, gone] for i, gone in zip(imputations, missing, strict=True)]
    sizes = np.array([len(v) for v in values])
    with writing(path) as f:
        np.savez(f, sizes=sizes, values=np.concatenate(values), paths=np.concatenate(paths, 1))
    return Path(path)


def load_gaps(series: Sequence[Series], path: str | Path) -> list[Gaps]:
    """Read back what :func:`save_gaps` wrote of these series.

    Raises:
        InputError: the file is damaged, or of other series.
    """
    with reading_arrays(path, "gaps that are filled") as file:
        sizes, values, paths = (file[k] for k in ("sizes", "values", "paths"))
    if sizes.tolist() != [int((~s.observed).sum()) for s in series]:
        raise InputError("not the gaps of these series", path)
    cuts = np.cumsum(sizes)[:-1]
    return [
        Gaps(s, v, p)
        for s, v, p in zip(series, np.split(values, cuts), np.split(paths, cuts, 1), strict=True)
    ]
