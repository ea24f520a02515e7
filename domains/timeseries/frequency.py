"""Steps of time: their names, the season that goes with them, and how one is inferred.

Names are pandas' (``h``, ``D``, ``B``, ``W-SUN``, ``MS``, ``15min``). The season is the field's
convention (gluonts, M4): 24 hours, 5 business days, 12 months, 4 quarters; days and weeks have
none (1). It scales MASE and is the period of the seasonal naive forecast.
"""

from __future__ import annotations

import pandas as pd

from sciflow.errors import InputError

__all__ = ["season_of"]

_SEASONS = {"s": 3600, "min": 1440, "h": 24, "D": 1, "B": 5, "W": 1, "MS": 12, "ME": 12,
            "QS": 4, "QE": 4, "YS": 1, "YE": 1}  # fmt: skip
"""gluonts.time_feature.get_seasonality, for one step of each unit."""


def season_of(freq: str) -> int:
    """Steps of a season: that of the unit divided by the steps' length, 1 if it does not divide.

    Raises:
        InputError: pandas does not know this step.
    """
    try:
        offset = pd.tseries.frequencies.to_offset(freq)
    except ValueError as error:
        raise InputError(
            f"unknown frequency {freq!r}; use pandas' names, e.g. h, D, B, W-SUN, MS, 15min"
        ) from error
    assert offset is not None
    unit = offset.name.split("-")[0] if offset.n == 1 else offset.base.name.split("-")[0]
    season, rest = divmod(_SEASONS.get(unit, 1), offset.n)
    return season if season > 0 and rest == 0 else 1
