"""Several trained models as one, by name."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any

from sciflow.errors import InputError
from sciflow.guides.guide import Guide
from sciflow.guides.others import other_model

if TYPE_CHECKING:
    from sciflow.denoisers import Denoiser
    from sciflow.model import Model

__all__ = ["SEVERAL"]

_STOCHASTIC = ("ddpm", "ddim with eta=1")


def _superposition(model: Model, settings: dict[str, Any], denoiser: Denoiser) -> Denoiser:
    """The model of the run under the guides before this one, and the other under its own."""
    from sciflow.denoisers import NetworkDenoiser
    from sciflow.guidance import ClassifierFree, Superposition
    from sciflow.guidance.several.path_density import has_density
    from sciflow.paths import coupled_fields

    if not settings["model"]:
        raise InputError(
            "guide superposition needs a second model of the same fields: "
            "superposition:model=FOLDER,rule=or"
        )
    rule, sampler = settings["rule"], model.sampler
    if rule != "average" and (coupled := coupled_fields(denoiser.paths)):
        raise InputError(
            f"guide superposition: {rule!r} follows densities along the reverse process, and of "
            f"{coupled[0]!r} only the flow is known (its noise was coupled with the data in "
            "training); rule=average takes any model"
        )
    flows = [name for name, path in denoiser.paths.items() if not has_density(path)]
    if rule != "average" and flows:
        raise InputError(
            f"guide superposition: {rule!r} weighs models by densities, and a flow along geodesics "
            f"tells none of {flows[0]!r}; rule=average takes any model, {rule!r} one whose "
            f"{flows[0]} are trained as a diffusion"
        )
    if rule != "average" and sampler.ancestral_eta != 1:
        raise InputError(
            f"guide superposition: {rule!r} follows densities along the reverse process: sample by "
            f"{' or '.join(_STOCHASTIC)}, not by {sampler.method!r}; rule=average takes any method"
        )
    other = other_model(model, "superposition", settings["model"])
    plain = other.denoiser
    assert isinstance(plain, NetworkDenoiser)
    second: Denoiser = plain.reschedule({k: path.schedule for k, path in denoiser.paths.items()})
    weight, between = model.classifier_free
    if weight > 0:
        second = ClassifierFree(second, weight, between)
    run = copy(other)
    run.sampler, run.targets, run.classifier_free = sampler, model.targets, model.classifier_free
    second, _ = run.under_guides(second)
    offsets = [settings["bias"], 0.0]
    return Superposition([denoiser, second], rule, settings["temperature"], offsets)


SEVERAL: dict[str, Guide] = {
    "superposition": Guide(
        "with a second model, model=FOLDER: rule=or draws from both, and what both find likely, "
        "average mixes scores (Skreta et al. 2025); bias is towards the first; give it last",
        {"model": "", "rule": "or", "temperature": 1.0, "bias": 0.0},
        _superposition,
    ),
}
"""Name → guide."""
