"""A guidance with a name and settings, and what the text ``NAME:key=value`` means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sciflow.errors import InputError

if TYPE_CHECKING:
    from sciflow.denoisers import Denoiser
    from sciflow.model import Model

__all__ = ["Guide", "as_setting", "parse_guide", "parse_values"]


@dataclass(frozen=True)
class Guide:
    """A guidance with a name.

    Attributes:
        summary: one line.
        settings: ``{name: default}``; a value given must be of the default's type.
        wrap: the guided denoiser of (model, settings, denoiser). The model is that of the run:
            its sampler is the one that runs, its ``targets`` are what is asked for.
        instead: the model's own classifier-free guidance is off where this one is used, unless a
            weight is asked for.
    """

    summary: str
    settings: Mapping[str, Any]
    wrap: Callable[[Model, dict[str, Any], Denoiser], Denoiser]
    instead: bool = False

    def complete(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """All settings, the given ones and the others' defaults.

        Raises:
            InputError: one that does not exist, or of another type.
        """
        if unknown := sorted(set(given) - set(self.settings)):
            raise InputError(
                f"guide {name} has no setting {unknown[0]!r}; it has: "
                f"{', '.join(self.settings) or 'none'}"
            )
        return {
            key: as_setting(type(default), f"guide {name}, {key}", given[key])
            if key in given
            else default
            for key, default in self.settings.items()
        }


def parse_guide(text: str) -> tuple[str, dict[str, str]]:
    """``NAME`` or ``NAME:key=value,key=value`` as (name, settings).

    Raises:
        InputError: the text has another form.
    """
    name, _, rest = text.partition(":")
    settings = {}
    for part in filter(None, (p.strip() for p in rest.split(","))):
        key, equals, value = (p.strip() for p in part.partition("="))
        if not equals or not key or not value:
            raise InputError(f"guide {text!r}: write NAME:key=value,key=value; {part!r} is not so")
        settings[key] = value
    if not name.strip():
        raise InputError(f"guide {text!r}: the name is missing; write NAME:key=value")
    return name.strip(), settings


def parse_values(what: str, text: str) -> dict[str, float]:
    """``gap=3`` or ``gap=3+dipole=2`` as numbers by name: commas part the settings of a guide.

    Raises:
        InputError: the text has another form; the message begins with ``what``.
    """
    values = {}
    for part in text.split("+"):
        name, _, value = (p.strip() for p in part.partition("="))
        try:
            values[name] = float(value)
        except ValueError:
            name = ""
        if not name:
            raise InputError(f"{what}: write NAME=NUMBER, several joined by +, not {text!r}")
    return values


def as_setting(kind: type, what: str, value: Any) -> Any:
    """A setting of the given type from text or a number.

    Raises:
        InputError: it cannot be one; the message begins with ``what``.
    """
    if kind is bool and isinstance(value, str):
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if value.lower() not in words:
            raise InputError(f"{what}: write true or false, not {value!r}")
        return words[value.lower()]
    if kind is int and isinstance(value, float) and not value.is_integer():
        raise InputError(f"{what}: write a whole number, not {value}")
    try:
        return kind(value)
    except (TypeError, ValueError):
        words_of = {int: "a whole number", float: "a number"}
        raise InputError(f"{what}: write {words_of.get(kind, 'text')}, not {value!r}") from None
