"""The step of stamps with gaps is the one they were made with; what is beside a grid is named."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.timeseries.frequency import (
    IrregularError,
    frequency_name,
    grid_positions,
    infer_frequency,
    resolve_frequency,
    season_of,
)
from domains.timeseries.stamps import StampError, parse_stamps, write_stamps
from sciflow.errors import InputError

STEPS = ["250ms", "s", "30s", "min", "5min", "15min", "h", "3h", "6h", "D", "2D", "10D", "B",
         "W-SUN", "W-TUE", "2W-MON", "MS", "ME", "BMS", "BME", "2MS", "6MS", "QS-JAN", "QS-FEB",
         "QE-DEC", "QE-NOV", "YS-JAN", "YS-JUL", "YE-DEC", "YE-MAR", "2YS-JAN"]  # fmt: skip


def stamps(*texts: str) -> pd.DatetimeIndex:
    return pd.DatetimeIndex(list(texts))


@pytest.mark.parametrize("freq", STEPS)
@settings(max_examples=8, deadline=None)
@given(days=st.integers(0, 9000), gone=st.sets(st.integers(0, 39), max_size=12))
def test_a_step_is_found_again_through_gaps(freq: str, days: int, gone: set[int]) -> None:
    index = pd.date_range(
        pd.Timestamp("1995-02-03") + pd.Timedelta(days, "D"), periods=40, freq=freq
    )
    # Steps 12 to 20 stay, so that neighbours and a weekend are among them.
    kept = [i for i in range(40) if i not in gone or 12 <= i <= 20]
    found = infer_frequency([index[kept]])
    assert found == freq
    np.testing.assert_array_equal(grid_positions(index[kept], found), np.subtract(kept, kept[0]))
    assert resolve_frequency(freq, [index[kept]]) == freq


def test_series_with_their_own_starts_share_a_step() -> None:
    hours = [pd.date_range(f"2024-01-0{k} 0{k}:30", periods=5, freq="h") for k in (1, 2, 3)]
    assert infer_frequency([*hours, hours[0][:1], hours[1][[0, 4]]]) == "h"
    weeks = [pd.date_range("2024-01-01", periods=4, freq=f"W-{d}") for d in ("MON", "WED")]
    assert infer_frequency(weeks) == "7D"
    quarters = [pd.date_range(f"2024-0{m}-01", periods=4, freq="3MS") for m in (1, 2)]
    assert infer_frequency(quarters) == "3MS"


def test_five_working_days_may_be_any_days_and_a_week_more_are_not() -> None:
    assert infer_frequency([pd.date_range("2024-01-01", periods=5, freq="B")]) == "D"
    assert infer_frequency([pd.date_range("2024-01-01", periods=6, freq="B")]) == "B"


def test_a_stamp_beside_the_grid_is_named_with_the_nearest_place_on_it() -> None:
    index = pd.date_range("2024-01-01", periods=9, freq="h")
    moved = index.insert(4, pd.Timestamp("2024-01-01 03:07")).delete(3)
    with pytest.raises(IrregularError, match=r"03:07:00 is not on the grid of h.*01 03:00:00") as e:
        infer_frequency([index, moved])
    assert (e.value.group, e.value.row) == (1, 3)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        (stamps("2024-01-01", "2024-01-01 01:03", "2024-01-01 02:07", "2024-01-04"), "irregular"),
        (stamps("2024-01-15", "2024-02-15", "2024-03-15"), "unequal length"),
        (stamps("2024-01-01"), "one row"),
        (
            pd.date_range("2024-03-28", periods=9, tz="Europe/Berlin").tz_convert("UTC"),
            "local days written in UTC",
        ),
    ],
)
def test_stamps_without_a_step_say_why(index: pd.DatetimeIndex, said: str) -> None:
    with pytest.raises(InputError, match=said):
        infer_frequency([index])


@pytest.mark.parametrize(
    ("old", "new"),
    [("H", "h"), ("T", "min"), ("15T", "15min"), ("60min", "h"), ("24H", "D"), ("10L", "10ms"),
     ("A-MAR", "YE-MAR"), ("BM", "BME"), ("w-tue", "W-TUE"), ("W-TUE", "W-TUE"), ("M", "ME")],
)  # fmt: skip
def test_old_names_are_translated(old: str, new: str) -> None:
    assert frequency_name(old) == new


@pytest.mark.parametrize("name", ["", "fortnight", "-1h", "0D", "3"])
def test_unknown_names_say_what_is_known(name: str) -> None:
    with pytest.raises(InputError, match="W-SUN, MS"):
        frequency_name(name)


def test_open_names_take_their_day_from_the_stamps() -> None:
    first, last = (pd.date_range("2024-01-01", periods=6, freq=f) for f in ("MS", "ME"))
    assert resolve_frequency("M", [first]) == "MS"
    assert resolve_frequency("M", [last]) == "ME"
    assert resolve_frequency("Q", [first[[1, 4]]]) == "QS-FEB"
    assert resolve_frequency("Y", [last[[2]]]) == "YE-MAR"
    assert resolve_frequency("W", [pd.date_range("2024-01-03", periods=3, freq="7D")]) == "W-WED"


@pytest.mark.parametrize(
    ("freq", "said"),
    [("D", r"01:00:00 is not on the grid of the frequency D; nearest.*01 00:00:00; .* say h"),
     ("15min", "'15min' is too fine: .* say h"), ("MS", "not on the grid"),
     ("2h", "not on the grid of the frequency 2h")],
)  # fmt: skip
def test_a_wrong_frequency_is_refused(freq: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        resolve_frequency(freq, [pd.date_range("2024-01-01", periods=5, freq="h")])


@pytest.mark.parametrize(
    ("freq", "season"),
    [("h", 24), ("H", 24), ("2h", 12), ("5h", 1), ("15min", 96), ("10s", 360), ("D", 1), ("B", 5),
     ("W-TUE", 1), ("MS", 12), ("BME", 12), ("2MS", 6), ("3MS", 4), ("QE-DEC", 4), ("YS-JAN", 1)],
)  # fmt: skip
def test_seasons(freq: str, season: int) -> None:
    assert season_of(freq) == season


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["2024-01-31", "2024-02-01 13:00"], ["2024-01-31", "2024-02-01 13:00"]),
        (["31/01/2024", "01/02/2024"], ["2024-01-31", "2024-02-01"]),
        (["01/31/24 1:30 PM", "02/01/24 1:30 PM"], ["2024-01-31 13:30", "2024-02-01 13:30"]),
        (["31.01.2024 13:00"], ["2024-01-31 13:00"]),
        (["Jan 2024", "Feb 2024"], ["2024-01-01", "2024-02-01"]),
        (["2024Q1", "2024-q2"], ["2024-01-01", "2024-04-01"]),
        (["2024-W05", "2024-W06"], ["2024-01-29", "2024-02-05"]),
        (["1990", "1991"], ["1990-01-01", "1991-01-01"]),
        (["20240131", "20240201"], ["2024-01-31", "2024-02-01"]),
        (["1700000000", "1700003600"], ["2023-11-14 22:13:20Z", "2023-11-14 23:13:20Z"]),
    ],
)
def test_ways_to_write_time(cells: list[str], expected: list[str]) -> None:
    read = parse_stamps(cells)
    assert list(read.index) == [pd.Timestamp(t) for t in expected]
    assert list(parse_stamps(write_stamps(read.index, read.style)).index) == list(read.index)


@pytest.mark.parametrize(
    ("cells", "row", "said"),
    [
        (["01/02/2024", "02/02/2024"], 0, "day or the month first"),
        (["2024-01-01", "02/01/2024"], 1, "'02/01/2024'"),
        (["13/01/2024", "2024-01-14"], 1, "not written as '13/01/2024'"),
        (["2024-01-01", ""], 1, "no time stamp"),
        (["2024-01-01T00:00Z", "2024-01-01T01:00"], 1, "offset from UTC"),
        (["1", "2"], 0, "is a number, not a date"),
        (["2024-02-30"], 0, "'2024-02-30' is no time stamp"),
        (["monday"], 0, "write ISO dates"),
    ],
)
def test_stamps_that_cannot_be_read(cells: list[str], row: int, said: str) -> None:
    with pytest.raises(StampError, match=said) as e:
        parse_stamps(cells)
    assert e.value.row == row


def test_daylight_saving() -> None:
    """Hours with an offset are equal steps in UTC; local midnights are days; both years long."""
    hours = pd.date_range("2023-12-31", "2025-01-01", freq="h", tz="Europe/Berlin")
    for cells in (hours, [t.isoformat() for t in hours]):
        read = parse_stamps(cells).index
        assert str(read.tz) == "UTC" and infer_frequency([read]) == "h"
        assert list(read) == list(hours)
    days = pd.date_range("2023-12-31", "2025-01-01", freq="D", tz="Europe/Berlin")
    for cells in (days, [t.isoformat() for t in days]):
        read = parse_stamps(cells).index
        assert read.tz is None and infer_frequency([read]) == "D"
        assert read[0] == pd.Timestamp("2023-12-31")
