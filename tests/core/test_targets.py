from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sciflow.errors import InputError
from sciflow.targets import Target, as_targets, parse_targets

INF = math.inf


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("gap=6", 6, 6),
        ("gap=-1.5", -1.5, -1.5),
        ("gap = 6 ", 6, 6),
        ("gap=1e-3", 1e-3, 1e-3),
        ("gap=5..6", 5, 6),
        ("gap=-2..-1", -2, -1),
        ("gap=.5...75", 0.5, 0.75),
        ("gap=5..5", 5, 5),
        ("gap=5..", 5, INF),
        ("gap=..6", -INF, 6),
        ("gap=..", -INF, INF),
    ],
)
def test_values_and_ranges(text: str, low: float, high: float) -> None:
    assert parse_targets([text]) == {"gap": Target(low, high)}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gap", "write NAME=VALUE"),
        ("=6", "write NAME=VALUE"),
        ("gap=", "write NAME=VALUE"),
        ("gap=six", "write NAME=VALUE"),
        ("gap=5-6", "write NAME=VALUE"),
        ("gap=5..six", "write NAME=VALUE"),
        ("gap=5,6", "write NAME=VALUE"),
        ("gap=6..5", "rising range"),
        ("gap=nan", "rising range"),
        ("gap=nan..5", "rising range"),
        ("gap=inf", "rising range"),
        ("gap=-inf", "rising range"),
        ("", "write NAME=VALUE"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        parse_targets([text])


def test_twice_the_same_property_is_refused() -> None:
    with pytest.raises(InputError, match="'gap' is given twice"):
        parse_targets(["gap=5", "gap=6"])


def test_python_values() -> None:
    wanted = {"gap": 6, "dipole": (1, 2), "alpha": [30.0, INF], "homo": Target(-10, -9)}
    assert as_targets(wanted, wanted) == {
        "gap": Target(6, 6),
        "dipole": Target(1, 2),
        "alpha": Target(30, INF),
        "homo": Target(-10, -9),
    }


@pytest.mark.parametrize(
    ("value", "said"),
    [("high", "is a number"), (None, "is a number"), ((1, "x"), "is a number"),
     ((1, 2, 3), "two ends, not 3"), ((), "two ends, not 0"), ((2, 1), "rising"),
     (math.nan, "rising")],
)  # fmt: skip
def test_python_values_that_are_refused(value: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        as_targets({"gap": value}, ["gap"])  # type: ignore[dict-item]


def test_an_unknown_property_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="no property 'colour'; it has: gap, dipole"):
        as_targets({"colour": 1.0}, ["gap", "dipole"])


def test_distance_is_zero_inside_and_counts_outside() -> None:
    target = Target(2, 3)
    assert [target.distance(v) for v in (1.5, 2, 2.7, 3, 4)] == [0.5, 0, 0, 0, 1]
    assert Target(2, INF).distance(1e9) == 0
    assert Target(-INF, INF).distance(-5) == 0


ends = st.floats(-1e6, 1e6).map(lambda x: float(f"{x:.9g}"))


@given(ends, ends)
def test_the_text_of_a_target_reads_back(a: float, b: float) -> None:
    target = Target(min(a, b), max(a, b))
    assert parse_targets([f"gap={target}"]) == {"gap": target}
