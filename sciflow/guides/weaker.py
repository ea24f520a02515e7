"""Guides away from a weaker estimate: of the model asked for less, or worse, or of another model.

All act in place of the model's own classifier-free guidance; ``--guidance W`` puts that inside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sciflow.errors import InputError
from sciflow.guides.guide import Guide, parse_values
from sciflow.guides.others import other_model

if TYPE_CHECKING:
    from sciflow.denoisers import Denoiser
    from sciflow.guidance.weak.rules import Rule
    from sciflow.model import Model

__all__ = ["WEAKER"]

Settings = dict[str, Any]
_BETWEEN: Settings = {"weight": 1.0, "first": 0.0, "last": 1.0}


def _away(denoiser: Denoiser, weak: Denoiser, settings: Settings,
          rule: Rule | None = None) -> Denoiser:  # fmt: skip
    from sciflow.guidance import MoveAway

    between = (settings["first"], settings["last"])
    return MoveAway(denoiser, weak, settings["weight"], between, rule=rule)


def _classifier_free(name: str, rule: Callable[[Model, Settings, Denoiser], Rule | None]
                     ) -> Callable[[Model, Settings, Denoiser], Denoiser]:  # fmt: skip
    def wrap(model: Model, settings: Settings, denoiser: Denoiser) -> Denoiser:
        from sciflow.guidance import Unasked

        _require_conditions(name, model)
        if not model.targets:
            raise InputError(
                f"guide {name} moves away from the model asked for nothing, and nothing is asked "
                "for; give a target"
            )
        chosen = rule(model, settings, denoiser)
        return _away(denoiser, Unasked(denoiser), settings, chosen)

    return wrap


def _plus_plus(model: Model, settings: Settings, denoiser: Denoiser) -> Rule:
    from sciflow.guidance import PlusPlus

    sampler = model.sampler
    return PlusPlus(sampler.plan(denoiser), sampler.ancestral_eta)


def _tangential(model: Model, settings: Settings, denoiser: Denoiser) -> Rule:
    from sciflow.guidance import Tangential

    return Tangential()


def _zero_star(model: Model, settings: Settings, denoiser: Denoiser) -> Rule:
    from sciflow.guidance import ZeroStar

    return ZeroStar(settings["still_from"] or None)


def _rescale(model: Model, settings: Settings, denoiser: Denoiser) -> Rule:
    from sciflow.guidance import Rescale

    return Rescale(settings["phi"])


def _orthogonal(model: Model, settings: Settings, denoiser: Denoiser) -> Rule:
    from sciflow.guidance import Orthogonal

    return Orthogonal(settings["parallel"], settings["cap"] or None, settings["momentum"])


def _frequencies(model: Model, settings: Settings, denoiser: Denoiser) -> Rule:
    from sciflow.guidance import FrequencySplit

    return FrequencySplit(settings["low"], settings["high"], settings["cutoff"])


def _negative(model: Model, settings: Settings, denoiser: Denoiser) -> Denoiser:
    from sciflow.guidance import Instead

    _require_conditions("negative", model)
    if not settings["target"]:
        raise InputError("guide negative needs what is not wanted: negative:target=NAME=NUMBER")
    values = parse_values("guide negative, target", settings["target"])
    if unknown := sorted(set(values) - set(model.properties)):
        raise InputError(
            f"guide negative: this model cannot be asked for {unknown[0]!r}; it knows: "
            f"{', '.join(model.properties)}"
        )
    return _away(denoiser, Instead(denoiser, values), settings)


def _independent(model: Model, settings: Settings, denoiser: Denoiser) -> Denoiser:
    import torch

    from sciflow.guidance import IndependentCondition

    _require_conditions("independent-condition", model)
    asked = list(model.targets)
    if not asked:
        raise InputError("guide independent-condition draws other targets, and there are none")
    if missing := [name for name in asked if name not in model.reference]:
        raise InputError(
            f"guide independent-condition: this model keeps no training values of {missing[0]} to "
            "draw from"
        )
    pool = {name: model.reference[name] for name in asked}
    known = torch.stack([~values.isnan() for values in pool.values()]).all(0)
    pool = {name: values[known] for name, values in pool.items()}
    return _away(denoiser, IndependentCondition(denoiser, pool, settings["seed"]), settings)


def _time_step(model: Model, settings: Settings, denoiser: Denoiser) -> Denoiser:
    from sciflow.guidance import PerturbedTime

    weak = PerturbedTime(denoiser, settings["scale"], settings["power"], settings["seed"])
    return _away(denoiser, weak, settings)


def _attention(model: Model, settings: Settings, denoiser: Denoiser) -> Denoiser:
    import math

    from sciflow.guidance import PerturbedAttention

    layers = None if settings["layer"] < 0 else [settings["layer"]]
    weak = PerturbedAttention(denoiser, settings["kind"], layers, settings["sigma"] or math.inf,
                              settings["seed"])  # fmt: skip
    return _away(denoiser, weak, settings)


def _autoguidance(model: Model, settings: Settings, denoiser: Denoiser) -> Denoiser:
    from sciflow.denoisers import NetworkDenoiser

    if not settings["model"]:
        raise InputError(
            "guide autoguidance needs a weaker model of the same data, smaller or less trained: "
            "autoguidance:model=FOLDER"
        )
    other = other_model(model, "autoguidance", settings["model"])
    weak = other.denoiser
    assert isinstance(weak, NetworkDenoiser)
    schedules = {name: path.schedule for name, path in denoiser.paths.items() if name in weak.paths}
    return _away(denoiser, weak.reschedule(schedules), settings)


def _require_conditions(name: str, model: Model) -> None:
    if not model.properties:
        raise InputError(
            f"guide {name} is for models with conditions, of which this one has none; without any "
            "there are autoguidance, perturbed-attention and time-step"
        )


def _guide(summary: str, more: Settings, wrap: Callable[[Model, Settings, Denoiser], Denoiser],
           **defaults: Any) -> Guide:  # fmt: skip
    return Guide(summary, {**_BETWEEN, **defaults, **more}, wrap, instead=True)


WEAKER: dict[str, Guide] = {
    "cfg": _guide(
        "classifier-free, between two times (Ho & Salimans 2022; Kynkäänniemi et al. 2024)",
        {}, _classifier_free("cfg", lambda *_: None)),
    "cfg++": _guide(
        "the same with the unconditional noise, weight is λ of 0 to 1 (Chung et al. 2025)",
        {}, _classifier_free("cfg++", _plus_plus), weight=0.6),
    "tcfg": _guide("cfg along what both estimates share (Kwon et al. 2025)", {},
                   _classifier_free("tcfg", _tangential)),
    "cfg-zero-star": _guide("cfg with the weak velocity fitted (Fan et al. 2025)",
                            {"still_from": 0.0}, _classifier_free("cfg-zero-star", _zero_star)),
    "cfg-rescale": _guide("cfg with the spread brought back (Lin et al. 2024)", {"phi": 0.7},
                          _classifier_free("cfg-rescale", _rescale)),
    "apg": _guide("cfg without what lies along the estimate (Sadat et al. 2024)",
                  {"parallel": 0.0, "cap": 0.0, "momentum": 0.0},
                  _classifier_free("apg", _orthogonal)),
    "cfg-frequency": _guide("cfg by frequency, for series and grids (Huang et al. 2025)",
                            {"low": 1.0, "high": 1.0, "cutoff": 0.1},
                            _classifier_free("cfg-frequency", _frequencies)),
    "negative": _guide("away from what is not wanted, target=gap=3 or target=gap=3+dipole=2",
                       {"target": ""}, _negative),
    "independent-condition": _guide(
        "away from the targets of random training samples (Sadat et al. 2024, ICG)",
        {"seed": 0}, _independent),
    "time-step": _guide("away from the model told a wrong time (Sadat et al. 2024, TSG)",
                        {"scale": 0.2, "power": 1.0, "seed": 0}, _time_step),
    "perturbed-attention": _guide(
        "away from broken attention, kind=identity, blur or shuffle (Ahn et al. 2024; Hong 2024; "
        "Rajabi et al. 2025)",
        {"kind": "identity", "layer": -1, "sigma": 0.0, "seed": 0}, _attention),
    "autoguidance": _guide(
        "away from a smaller or less trained model, model=FOLDER (Karras et al. 2024)",
        {"model": ""}, _autoguidance),
}  # fmt: skip
"""Name → guide."""
