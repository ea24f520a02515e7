"""Guidance by name: what ``--guide NAME:key=value`` and ``model.guided("name", key=value)`` mean.

A :class:`Guide` says what its settings are and makes, for a model, the denoiser that is guided. The
table here holds what serves any domain: away from a weaker estimate (:mod:`sciflow.guides.weaker`),
with a second model (:mod:`sciflow.guides.several`) and, for models that have a predictor of their
properties, towards the targets of the run (:mod:`sciflow.guides.towards`). A domain adds its own
oracles (:meth:`sciflow.domain.Domain.guides`). A name that a model cannot use is refused with the
reason, when sampling begins.
"""

from __future__ import annotations

from collections.abc import Mapping

from sciflow.errors import InputError
from sciflow.guides.guide import Guide, as_setting, parse_guide, parse_values
from sciflow.guides.several import SEVERAL
from sciflow.guides.towards import TOWARDS
from sciflow.guides.weaker import WEAKER

__all__ = ["GUIDES", "Guide", "as_setting", "find_guide", "parse_guide", "parse_values"]

GUIDES: dict[str, Guide] = {**TOWARDS, **WEAKER, **SEVERAL}
"""Name → guide, for every domain."""


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
