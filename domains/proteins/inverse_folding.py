"""Inverse folding: a backbone is given, a model of frames and residues finds sequences for it.

All frames have time 0, so that the model answers with p(sequence | backbone), for which it was
trained (``folds`` of the preset ``codesign``); ProteinMPNN (Dauparas et al. 2022) models the same.
Residues may be given as well, and keep their letter. A gap of the chain is far along it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from domains.proteins.chain import Chain
from domains.proteins.encoding import Encoding, in_single_precision
from domains.proteins.letters import FIELD, MASKED, codes
from domains.proteins.scaffolding import BREAK
from sciflow.errors import InputError
from sciflow.random import Draws
from sciflow.state import Context, State
from sciflow.tasks import Beginning, Task

__all__ = ["InverseFolding", "folded_state"]


def folded_state(
    encoding: Encoding, chains: Sequence[Chain], kept: Sequence[np.ndarray] | None = None
) -> State:
    """Chains of which all frames are given, and of the residues those ``kept``.

    Args:
        encoding: of a model of frames and residues.
        chains: without missing atoms; they may have gaps.
        kept: places of residues whose letter is given, of each chain; default none.

    Raises:
        InputError: a chain lacks atoms, or a letter that is to be kept is unknown.
    """
    for chain in chains:
        missing = np.flatnonzero(~np.isfinite(chain.backbone).all((1, 2)))
        if len(missing):
            shown = ", ".join(chain.residue_ids[i] for i in missing[:3])
            raise InputError(
                f"chain {chain.chain_id}: {len(missing)} residues lack backbone atoms ({shown}"
                + (", …" if len(missing) > 3 else "")
                + "); take them out of the file, a gap in a chain is allowed"
            )
    residues = [codes(c.sequence, unknown=True) for c in chains]
    fields, mask = encoding.batch([c.backbone for c in chains], residues)
    index = torch.arange(mask.shape[1]).repeat(len(chains), 1)
    given = torch.zeros_like(mask)
    for i, chain in enumerate(chains):
        index[i, : len(chain)] += BREAK * torch.from_numpy(np.append(0, np.cumsum(chain.joints)))
        if kept is not None:
            if unknown := [chain.residue_ids[k] for k in kept[i] if residues[i][k] == MASKED]:
                raise InputError(f"residue {unknown[0]} is to be kept, and none of the twenty")
            given[i, kept[i]] = True
    marks = dict.fromkeys(encoding.structure, mask)
    marks |= {FIELD: given} if bool(given.any()) else {}
    context = Context(mask, given=marks, extras={"index": index})
    return State(in_single_precision(fields), context)


class InverseFolding(Task):
    """Sequences for one backbone.

    Args:
        encoding: of a model of frames and residues.
        chain: the backbone; its sequence may be unknown.
        kept: places of the residues that keep their letter.
        wanted: conditions of the samples of some draws.

    Raises:
        InputError: see :func:`folded_state`, or a model that makes no sequences.
    """

    def __init__(
        self,
        encoding: Encoding,
        chain: Chain,
        kept: np.ndarray,
        wanted: Callable[[Draws], dict[str, Tensor]],
    ):
        if not encoding.sequence:
            raise InputError("--backbone needs a model of frames and residues (preset codesign)")
        self.chain, self.kept, self.wanted = chain, kept, wanted
        self.row = folded_state(encoding, [chain], [kept])

    def begin(self, draws: Draws) -> Beginning:
        """The backbone in every row."""
        state = self.row.index(torch.zeros(len(draws), dtype=torch.long))
        context = state.context.replace(conditions=self.wanted(draws))
        return Beginning(context, {f: state[f] for f in context.given})

    def finish(
        self, records: Sequence[Chain], draws: Draws
    ) -> list[tuple[Chain, Mapping[str, float]]]:
        """The backbone as its file has it, with each sequence; ``recovery`` of the file's own.

        ``recovery`` is the share of residues that are found as they were, of those that were known
        and not kept; there is none where all of the file's residues are alike. ``gaps`` is where
        the backbone is broken, if it is.
        """
        own = np.array(list(self.chain.sequence))
        # A generator's backbone is written as one residue throughout, which is no sequence.
        asked = (own != "X") & (len(set(own)) > 1)
        asked[self.kept] = False
        done = list[tuple[Chain, Mapping[str, float]]]()
        given = np.zeros(len(self.chain), bool)
        given[self.kept] = True
        for record in records:
            told = {"gaps": float(self.chain.joints.sum())} if self.chain.joints.any() else {}
            if asked.any():
                same = np.array(list(record.sequence)) == own
                told["recovery"] = float(same[asked].mean())
            design = self.chain.replace(
                sequence=record.sequence, given=given if given.any() else None, properties=told
            )
            done.append((design, told))
        return done
