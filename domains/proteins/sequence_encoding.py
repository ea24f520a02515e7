"""Sequences as states of one field of tokens (:mod:`domains.proteins.letters`).

Where some residues are given, a template says which: letters stand for themselves, "?" and "X" for
what is to be found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from domains.proteins.chain import Chain
from domains.proteins.encoding import known_properties
from domains.proteins.letters import FIELD, MASKED, codes, letters_of
from domains.proteins.residue_data import SequenceTable, from_chains, sequence_chain
from domains.proteins.table import ChainTable
from sciflow.errors import InputError
from sciflow.state import Context, State
from sciflow.training.prepared import PreparedData, statistics

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["decode", "encode", "is_sequence_model", "prepare", "template"]

_OPEN = "?X"


def is_sequence_model(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is one of sequences."""
    return list(config["encoding"]["fields"]) == [FIELD]


def encode(chains: Sequence[Chain], conditions: Sequence[str] = ()) -> State:
    """A batch of chains by their sequences.

    Args:
        chains: every residue must be one of the twenty.
        conditions: properties of the chains to carry along.
    """
    n = max(map(len, chains), default=0)
    tokens, mask = torch.zeros(len(chains), n, dtype=torch.long), torch.zeros(len(chains), n) > 0
    for i, chain in enumerate(chains):
        if not len(chain):
            raise InputError(f"chain {i} ({chain.name or 'unnamed'}) has no residues")
        tokens[i, : len(chain)] = torch.from_numpy(codes(chain.sequence).astype(np.int64))
        mask[i, : len(chain)] = True
    return State({FIELD: tokens}, Context(mask, known_properties(chains, conditions)))


def decode(state: State) -> list[Chain]:
    """The sequences of a state as chains without coordinates; a masked residue is an "X"."""
    tokens = state[FIELD].detach().cpu().numpy()
    given = state.context.given.get(FIELD, torch.zeros_like(state.context.mask)).cpu().numpy()
    return [
        _chain(letters_of(tokens[i, :n]), given[i, :n])
        for i, n in enumerate(state.context.lengths.tolist())
    ]


def template(text: str, count: int = 1) -> State:
    """A batch of ``count`` rows in which the letters of ``text`` are given and the rest is masked.

    Args:
        text: for instance ``"MKT???...C"``: letters are given; "?", "X" and "." are to be found.

    Raises:
        InputError: nothing to find, or a letter that is no amino acid.
    """
    text = "".join(text.split()).upper().replace(".", "?")
    free = np.array([letter in _OPEN for letter in text], bool)
    if not free.any():
        raise InputError(f"template {text!r}: no residue is left open; mark those with ?")
    known = "".join("A" if f else c for f, c in zip(free, text, strict=True))
    tokens = np.where(free, MASKED, codes(known))
    row = torch.from_numpy(tokens.astype(np.int64)).expand(count, -1).clone()
    given = torch.from_numpy(~free).expand(count, -1).clone()
    return State({FIELD: row}, Context(torch.ones_like(given), given={FIELD: given}))


def prepare(
    dataset: SequenceTable | ChainTable,
    settings: Mapping[str, Any],
    conditions: Sequence[str],
    like: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], PreparedData, PreparedData]:
    """(configuration of a model of sequences, training tensors, validation tensors).

    Args:
        dataset: sequences, or chains whose sequences are taken.
        settings: of the preset.
        conditions: properties that the network shall read.
        like: the configuration of a model to go on from. All properties that the data know are
            then kept, so that a predictor can be trained on them.
    """
    table = from_chains(dataset) if isinstance(dataset, ChainTable) else dataset
    low, high = settings["lengths"]
    table = table.subset([i for i, s in enumerate(table.sequences) if low <= len(s) <= high])
    train, valid = table.part("train"), table.part("valid")
    if not len(train):
        raise InputError(f"no sequence of the training part is {low} to {high} residues long")
    asked = list(conditions) if like is None else list(table.properties)
    if missing := [c for c in asked if c not in table.properties]:
        raise InputError(
            f"the sequences of {table.name} come without {missing[0]!r}; train on backbones, or on "
            "a folder of structures, where it is known"
        )
    data, held_out = (_tensors(part, asked) for part in (train, valid))
    known = statistics(data.conditions)
    if like is not None:
        return {**like, "dataset": table.name, "labels": known}, data, held_out
    config = {
        "domain": "proteins",
        "dataset": table.name,
        "encoding": {"fields": [FIELD]},
        "conditions": known,
        "informed": list(known),
        **settings,
    }
    return config, data, held_out


def _chain(sequence: str, given: NDArray[np.bool_]) -> Chain:
    return sequence_chain(sequence, given=given if given.any() else None)


def _tensors(table: SequenceTable, conditions: Sequence[str]) -> PreparedData:
    lengths = torch.tensor([len(s) for s in table.sequences], dtype=torch.long)
    longest = int(lengths.max()) if len(table) else 0
    tokens = torch.zeros(len(table), longest, dtype=torch.uint8)
    for i, sequence in enumerate(table.sequences):
        tokens[i, : len(sequence)] = torch.from_numpy(codes(sequence))
    values = {c: torch.from_numpy(table.properties[c]).float() for c in conditions}
    return PreparedData({FIELD: tokens}, {FIELD: 1}, lengths, values)
