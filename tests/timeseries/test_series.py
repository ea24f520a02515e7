"""Time stamps of steps by arithmetic are those that pandas counts out."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from domains.timeseries.series import Series

STEPS = ("h", "D", "B", "W-SUN", "W-TUE", "MS", "ME", "BME", "QE-DEC", "YS-JAN", "15min", "2MS")


@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
@pytest.mark.parametrize("start", ["2024-03-30 07:00", "2020-02-29", "2023-10-28 12:00"])
@pytest.mark.parametrize("freq", STEPS)
def test_stamps_are_those_of_the_whole_index(freq: str, start: str, zone: str | None) -> None:
    """Starts beside the grid, ends of months and clocks that are put back included."""
    s = Series("s", pd.Timestamp(start, tz=zone), freq, np.arange(40.0))
    whole = pd.date_range(s.start, periods=60, freq=freq)
    assert [s.stamp(i) for i in (0, 1, 17, 39, 40, 59)] == list(whole[[0, 1, 17, 39, 40, 59]])
    assert list(s.future(20)) == list(whole[40:])
    tail = s.tail(15)
    assert tail.start == whole[25] and list(tail.index) == list(whole[25:40])
    assert list(tail.future(20)) == list(whole[40:])


def test_a_tail_longer_than_the_series_is_the_series() -> None:
    s = Series("s", pd.Timestamp("2024-01-01"), "h", np.arange(5.0))
    assert len(s.tail(9)) == 5 and s.tail(9).start == s.start
    assert len(s.tail(0)) == 0 and s.tail(0).start == s.stamp(5)
