"""Guides by name: what a text means, what is refused, settings with their types."""

from __future__ import annotations

from typing import Any

import pytest

from sciflow.errors import InputError
from sciflow.guides import GUIDES, Guide, find_guide, parse_guide

DEFAULTS: dict[str, Any] = {"weight": 1.0, "every": 2, "soft": True, "file": ""}


def guide() -> Guide:
    return Guide("a test", DEFAULTS, lambda model, settings, denoiser: denoiser)


@pytest.mark.parametrize(
    ("text", "name", "settings"),
    [
        ("classifier", "classifier", {}),
        ("classifier:", "classifier", {}),
        ("classifier:weight=2", "classifier", {"weight": "2"}),
        (" a : x = 1 , y=b=c ,", "a", {"x": "1", "y": "b=c"}),
    ],
)
def test_a_text_is_a_name_and_settings(text: str, name: str, settings: dict[str, str]) -> None:
    assert parse_guide(text) == (name, settings)


@pytest.mark.parametrize("text", ["", ":weight=1", "a:weight", "a:=1", "a:weight="])
def test_another_text_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="NAME:key=value"):
        parse_guide(text)


def test_settings_have_the_type_of_their_default() -> None:
    given = {"weight": "2", "every": "3", "soft": "no", "file": "x"}
    assert guide().complete("g", given) == {"weight": 2.0, "every": 3, "soft": False, "file": "x"}
    assert guide().complete("g", {}) == DEFAULTS
    assert guide().complete("g", {"weight": 3})["weight"] == 3.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"wait": 1}, "guide g has no setting 'wait'; it has: weight, every, soft, file"),
        ({"weight": "much"}, "guide g, weight: write a number, not 'much'"),
        ({"every": "2.5"}, "guide g, every: write a whole number, not '2.5'"),
        ({"every": 2.5}, "guide g, every: write a whole number, not 2.5"),
        ({"soft": "maybe"}, "guide g, soft: write true or false, not 'maybe'"),
    ],
)
def test_a_wrong_setting_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        guide().complete("g", given)


def test_a_wrong_name_lists_the_guides() -> None:
    assert find_guide("own", {"own": guide()}).summary == "a test"
    with pytest.raises(InputError) as error:
        find_guide("clasifier", {"own": guide()})
    for name in [*GUIDES, "own"]:
        assert f"  {name}: " in str(error.value)
