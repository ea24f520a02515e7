"""Another trained model beside the one that is guided, by name: of the same fields, or refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sciflow.errors import InputError

if TYPE_CHECKING:
    from sciflow.model import Model

__all__ = ["other_model"]

_MAY_DIFFER = {
    "conditions", "dataset", "guidance", "guidance_interval", "guides", "network", "objective",
    "paths", "pieces", "sampler", "schedules", "self_conditioning", "training",
}  # fmt: skip
"""How a model is built, trained and sampled; the rest of a configuration says what its fields
mean."""


def other_model(model: Model, guide: str, name: str) -> Model:
    """The model ``name``, whose samples mean what those of ``model`` mean.

    Args:
        model: the one that is guided.
        guide: what it is for, as errors name it.
        name: bundled, or a folder.

    Raises:
        InputError: there is none, or it is of another domain, encodes the data in another way, or
            is asked for properties that ``model`` does not know.
    """
    from sciflow.model import load

    other = load(name)
    what = f"guide {guide}: model {name!r}"
    if other.domain.name != model.domain.name:
        raise InputError(f"{what} makes {other.domain.name}, not {model.domain.name}")
    for key in sorted((set(model.config) | set(other.config)) - _MAY_DIFFER):
        if model.config.get(key) != other.config.get(key):
            raise InputError(
                f"{what} differs in {key!r} from the one that is guided, so that its samples mean "
                "something else; train it on the same data with the same settings, or start its "
                "training from that one (--start-from)"
            )
    if more := sorted(set(other.properties) - set(model.properties)):
        raise InputError(
            f"{what} is asked for {more[0]!r}, which the one that is guided does not know; train "
            "it with the same --conditions, or fewer"
        )
    return other
