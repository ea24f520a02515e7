r"""Guidance by name: what ``--guide NAME:key=value`` and ``model.guided("name", key=value)`` mean.

A :class:`Guide` says what its settings are and makes, for a model, the denoiser that is guided. The
table here holds what any domain can have that has a predictor of its properties; a domain adds its
own oracles (:meth:`sciflow.domain.Domain.guides`). The wanted values are the targets of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sciflow.errors import InputError

if TYPE_CHECKING:
    from sciflow.denoisers import Denoiser
    from sciflow.model import Model

__all__ = ["GUIDES", "Guide", "as_setting", "find_guide", "parse_guide"]


@dataclass(frozen=True)
class Guide:
    """A guidance with a name.

    Attributes:
        summary: one line.
        settings: ``{name: default}``; a value given must be of the default's type.
        wrap: the guided denoiser of (model, settings, denoiser).
    """

    summary: str
    settings: Mapping[str, Any]
    wrap: Callable[[Model, dict[str, Any], Denoiser], Denoiser]

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


def _classifier(model: Model, settings: dict[str, Any], denoiser: Denoiser) -> Denoiser:
    from sciflow.guidance import ClassifierGuidance

    predictor = model.predictor(settings["predictor"] or None)
    return ClassifierGuidance(
        denoiser, predictor, settings["weight"], interval=(settings["first"], settings["last"]),
        largest=settings["largest"], tokens=settings["tokens"],
    )  # fmt: skip


def _training_free(model: Model, settings: dict[str, Any], denoiser: Denoiser) -> Denoiser:
    from sciflow.guidance.energy.training_free import TrainingFree
    from sciflow.paths import CategoricalPath

    predictor = model.predictor(settings["predictor"] or None)
    mu = {
        name: settings["tokens" if isinstance(path, CategoricalPath) else "mu"]
        for name, path in denoiser.paths.items()
    }
    return TrainingFree(
        denoiser, predictor.of_clean, rho=settings["rho"], mu=mu,
        gamma=settings["gamma"], iterations=settings["iterations"], clip=settings["clip"],
        interval=(settings["first"], settings["last"]),
    )  # fmt: skip


_CLASSIFIER: dict[str, Any] = {
    "weight": 1.0, "tokens": 0.2, "first": 0.0, "last": 1.0, "largest": 0.3, "predictor": "",
}  # fmt: skip

_TRAINING_FREE: dict[str, Any] = {
    "rho": 0.0, "mu": 1.0, "tokens": 0.2, "gamma": 0.0, "iterations": 1, "clip": 1.0,
    "first": 0.0, "last": 1.0, "predictor": "",
}  # fmt: skip

GUIDES: dict[str, Guide] = {
    "classifier": Guide(
        "towards the targets by a predictor of noisy samples (Dhariwal & Nichol 2021)",
        _CLASSIFIER,
        _classifier,
    ),
    "training-free": Guide(
        "the same by a predictor of clean samples, at the clean estimate (Ye et al. 2024, TFG)",
        _TRAINING_FREE,
        _training_free,
    ),
}
"""Name → guide, for every domain that has a predictor."""


def find_guide(name: str, own: Mapping[str, Guide]) -> Guide:
    """A guide by its name, among a domain's own and those for all.

    Raises:
        InputError: an unknown name; the message lists what there is.
    """
    known = {**GUIDES, **own}
    if name not in known:
        lines = "".join(f"\n  {k}: {g.summary}" for k, g in known.items())
        raise InputError(f"unknown guide {name!r}; there are:{lines}")
    return known[name]


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
