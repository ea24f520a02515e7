r"""How wide a trained model's forecasts should spread, from windows kept from training.

A network that saw too little, or too few series, forecasts with intervals too narrow or too wide.
The noise that paths start from is scaled by γ (``prior_scale`` of the sampler), which the flow
carries over to the paths, until 80 % of held-out values lie within the central 80 % interval:

    r_t = (y_t − m_t)/(u_t − m_t) above the median m_t, (m_t − y_t)/(m_t − l_t) below it,
    γ  ← γ · q^{1/p},    q = 80 % quantile of r,

repeated with p, by which power of γ intervals widen, from the last two rounds (1 at first): values
are unsquashed, and far from linear in the noise. The step is that of conformal prediction by ratios
(Sesia and Candès 2020), but it moves the paths, not the interval, so every quantile and all that is
made of the paths follow. Test windows play no part.

What a network knows least is how far it may be wrong where the history ends long before the
forecast begins, which is rare in training. So γ is fitted at several ages of the last value, with
the steps after it hidden, and interpolated between them. There errors are more skewed than wide,
and intervals that hold what they say cost CRPS (M4 hourly, half of the history hidden, validation
windows: 80 % intervals cover 67, 74, 83 % at CRPS .0270, .0279, .0306), so γ goes a third of the
way, for some 2 % of CRPS there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from domains.timeseries.forecast import Forecast
from domains.timeseries.forecaster import Forecaster
from domains.timeseries.series import Series
from domains.timeseries.task import ForecastTask
from sciflow.subsets import evenly_spread

__all__ = ["calibrated_spread", "fitted_spread", "interval_ratios"]

_LEVEL = 0.8
_WINDOWS, _SAMPLES, _ROUNDS = 120, 50, 3
_LOW, _HIGH = 0.4, 2.5
"""Beyond lies a model that is wrong in more than its spread."""
_ALIKE, _POWERS = 0.02, (0.5, 4.0)
"""Two log γ nearer than this tell no power; and the powers that are believed."""


def fitted_spread(forecaster: Forecaster, task: ForecastTask) -> dict[str, Any]:
    """The spread of a model on the validation windows of a task.

    Returns:
        ``prior_scale``, γ where the history reaches the forecast, and ``ages`` of the last value in
        steps, from 0 to half of the context, with the ``factors`` on γ there, a third of the way
        (in logarithms) to those that calibrate.
    """
    ages = sorted({0, forecaster.context // 8, forecaster.context // 2})
    scales = [calibrated_spread(forecaster, task, age) for age in ages]
    factors = [round((scale / scales[0]) ** (1 / 3), 3) for scale in scales]
    return {"prior_scale": scales[0], "ages": ages, "factors": factors}


def calibrated_spread(forecaster: Forecaster, task: ForecastTask, age: int = 0) -> float:
    """γ of a model on the validation windows of a task; 1 where there are none.

    Args:
        forecaster: the model.
        task: whose validation windows the model was not trained on.
        age: of the last value: so many steps before the forecast are hidden.
    """
    windows = task.validation_windows() if task.validation else []
    if not windows:
        return 1.0
    rows = evenly_spread(len(windows), _WINDOWS)
    histories, truths = ([windows[i][k] for i in rows] for k in (0, 1))
    # No more of a history than the model reads: hiding copies it.
    histories = [h.tail(forecaster.context) for h in histories]
    histories = [h.hidden(slice(max(len(h) - age, 0), None)) for h in histories]
    kept = [i for i, h in enumerate(histories) if h.observed.any()]
    histories, truths = ([part[i] for i in kept] for part in (histories, truths))
    gamma, power, last = 1.0, 1.0, None
    for _ in range(_ROUNDS if kept else 0):
        made = forecaster.forecast(histories, task.horizon, _SAMPLES, prior_scale=gamma)
        ratios = interval_ratios(made, truths, _LEVEL)
        if not len(ratios):
            break
        here = np.log([gamma, np.clip(np.quantile(ratios, _LEVEL), 1e-3, 1e3)])
        if last is not None and abs(here[0] - last[0]) > _ALIKE:
            power = float(np.clip((last[1] - here[1]) / (here[0] - last[0]), *_POWERS))
        gamma = float(np.clip(np.exp(here[0] + here[1] / power), _LOW, _HIGH))
        last = here
    return round(gamma, 3)


def interval_ratios(
    forecasts: Sequence[Forecast], truths: Sequence[Series], level: float
) -> NDArray[np.float64]:
    """Distance of each observed value to the median in units of the central interval's half there.

    At most ``level`` of them are above 1 where the interval covers as much. An interval without
    width is infinitely far from all but its own value.
    """
    found = []
    for f, truth in zip(forecasts, truths, strict=True):
        y, middle = truth.values, f.quantile(0.5)
        side = np.where(y >= middle, f.quantile((1 + level) / 2), f.quantile((1 - level) / 2))
        with np.errstate(divide="ignore", invalid="ignore"):
            r = np.where(y == middle, 0.0, (y - middle) / (side - middle))
        found.append(r[np.isfinite(y)])
    return np.concatenate(found) if found else np.zeros(0)
