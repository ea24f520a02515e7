"""From a table of chains to a backbone model's configuration and its training tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from domains.proteins.crops import cut
from domains.proteins.encoding import Encoding
from domains.proteins.letters import FIELD
from domains.proteins.networks import PRESETS
from domains.proteins.table import ChainTable, split
from sciflow.errors import InputError
from sciflow.training.prepared import PreparedData, statistics

__all__ = ["prepare_backbones"]


def prepare_backbones(
    table: ChainTable,
    preset: str,
    conditions: Sequence[str],
    like: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], PreparedData, PreparedData]:
    """(configuration, training tensors, validation tensors); sides are clusters of the table.

    Args:
        table: the chains.
        preset: of ``PRESETS``, for a new model.
        conditions: properties that it can be asked for; a length always can.
        like: configuration of the model to go on from, whose encoding and conditions are kept.

    Raises:
        InputError: no chain of the training part can be used.
    """
    settings = (PRESETS[preset] if like is None else like)["pieces"]
    parts = split(table)
    if not len(parts["train"]):
        parts["train"] = parts["valid"]
    train, held_out = (
        cut(table.subset(parts[side]), tuple(settings["lengths"]),
            crops=settings["crops"], rg_ratio=settings["rg_ratio"], coil=settings["coil"])
        for side in ("train", "valid")
    )  # fmt: skip
    if not len(train):
        raise InputError(
            f"no chain of the training part is unbroken, compact and {settings['lengths'][0]} "
            f"to {settings['lengths'][1]} residues long"
        )
    fields = PRESETS[preset]["fields"] if like is None else like["encoding"]["fields"]
    if FIELD in fields:
        train, held_out = (p.known() for p in (train, held_out))
        if not len(train):
            raise InputError(
                f"no chain of {table.name} has a known sequence, which this model needs"
            )
    asked = list(conditions if like is None else like["conditions"])
    asked = [c for c in asked if c != "length"]
    encoding = (
        Encoding.of(fields, train.backbones)
        if like is None
        else Encoding.from_config(like["encoding"])
    )
    data, valid = (
        encoding.prepare(p.backbones, {c: p.properties[c] for c in asked}, p.residues)
        for p in (train, held_out)
    )
    if like is not None:
        return {**like, "dataset": table.name}, data, valid
    config = {
        "domain": "proteins",
        "dataset": table.name,
        "encoding": encoding.config(),
        "conditions": statistics(data.conditions),
        **{k: v for k, v in PRESETS[preset].items() if k != "fields"},
    }
    return config, data, valid
