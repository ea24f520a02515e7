"""AutoETS, AutoTheta and AutoARIMA of statsforecast, one model a history (extra ``timeseries``).

Their laws are told as quantiles. Gaps are filled linearly, since these models know none, and only
the recent past is read: exponential smoothing forgets, and the time is linear in the length. A
history that a model cannot fit (constant, or too short) gets the bootstrap seasonal naive instead.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from domains.timeseries.baselines.base import BaseForecast, QuantileTable, filled
from domains.timeseries.baselines.naive import SeasonalNaive
from domains.timeseries.series import Series
from sciflow.errors import InputError

__all__ = ["Statistical"]

_log = logging.getLogger(__name__)
_MODELS = ("AutoETS", "AutoTheta", "AutoARIMA")
_CENTRAL = (20, 40, 60, 80, 95)
_LEVELS = (0.025, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.975)


@dataclass(frozen=True)
class Statistical:
    """A model of statsforecast by its name.

    Attributes:
        model: ``AutoETS``, ``AutoTheta`` or ``AutoARIMA``.
        season: steps.
        recent: values of the history that it reads; at least two seasons.
    """

    model: str
    season: int
    recent: int = 1000

    def __post_init__(self) -> None:
        if self.model not in _MODELS:
            raise InputError(f"unknown model {self.model!r}; there are {', '.join(_MODELS)}")

    def fit(self, series: Sequence[Series], horizon: int) -> Statistical:
        return self

    def predict(
        self, histories: Sequence[Series], horizon: int, samples: int = 100, seed: int = 0
    ) -> list[BaseForecast]:
        """One model a history and channel.

        Raises:
            InputError: statsforecast is not installed.
        """
        try:
            from statsforecast import models
        except ImportError as error:
            raise InputError(
                f"{self.model} needs statsforecast; install this project with the extra "
                "'timeseries': pip install -e '.[timeseries]'"
            ) from error
        model = getattr(models, self.model)(season_length=self.season)
        last = max(self.recent, 2 * self.season)
        result: list[BaseForecast] = []
        for history in histories:
            y = filled(history.values[-last:])
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    channels = [self._quantiles(model, y[:, c], horizon) for c in range(y.shape[1])]
            except Exception as error:
                _log.info("%s cannot fit %r (%s); seasonal naive instead", self.model,
                          history.name, error)  # fmt: skip
                fallback = SeasonalNaive(self.season, bootstrap=True)
                result += fallback.predict([history], horizon, samples, seed)
            else:
                result.append(QuantileTable(_LEVELS, np.stack(channels, -1), samples))
        return result

    @staticmethod
    def _quantiles(model: object, y: np.ndarray, horizon: int) -> np.ndarray:
        """``[K, H]``."""
        told = model.forecast(y=y, h=horizon, level=list(_CENTRAL))  # type: ignore[attr-defined]
        low = [np.asarray(told[f"lo-{level}"]) for level in reversed(_CENTRAL)]
        high = [np.asarray(told[f"hi-{level}"]) for level in _CENTRAL]
        values = np.stack([*low, np.asarray(told["mean"]), *high]).astype(np.float64)
        if not np.isfinite(values).all():
            raise ValueError("its forecast is not finite")
        return np.sort(values, 0)
