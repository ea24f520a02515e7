"""Motif scaffolding and partial re-design: residues are given, a model builds the chain around.

**Models of frames** were trained with given residues, by
:class:`~sciflow.objectives.given.GivenRule`: a motif has time 0 all through sampling, so that the
model answers with the conditional distribution of the rest, at no extra calls. The frame in space
is the motif's: its centre is the origin, and the noise of the others is not centred. Designs come
back with the motif's own atoms.

**Models of angles** have no place in space. Their estimates are given the angles of each piece, and
the pieces are brought together by the bonds between (:mod:`domains.proteins.motif_guidance`). What
is left to miss is told by ``motif_rmsd``; designs are laid over the motif where its file has it.

**Re-design** keeps some residues of a structure, and of the others what is left of them at a noise
time t0 (SDEdit: Meng et al. 2022): 1 keeps nothing but their number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from domains.proteins.chain import Chain
from domains.proteins.contigs import Contig, Layout
from domains.proteins.encoding import Encoding, empty_context, in_single_precision
from domains.proteins.evaluators.superposition import motif_rmsd, rmsd, superimpose
from domains.proteins.letters import FIELD, MASKED, codes
from domains.proteins.motif_guidance import MOTIF, known_angles
from sciflow.denoisers import Denoiser
from sciflow.errors import InputError
from sciflow.model import Model
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.state import State
from sciflow.tasks import Beginning, Task

__all__ = ["BREAK", "Scaffolding", "numbered_apart", "scaffold", "scaffold_state"]

BREAK = 64
"""Residue numbers between chains of one design: farther than the network tells distances apart."""


def scaffold_state(
    encoding: Encoding, layouts: Sequence[Layout], around: Chain | None = None, told: bool = True
) -> State:
    """The motifs of layouts as clean fields, marked as given; the other residues are not yet.

    Args:
        encoding: of the model.
        layouts: one a sample.
        around: a structure that the other residues come from; default they are any.
        told: the model was trained with given residues. If not, a model of angles has none marked.

    Raises:
        InputError: several chains of a model that builds one.
    """
    context = empty_context(torch.tensor([len(layout) for layout in layouts]), {})
    b, n = context.mask.shape
    backbone = torch.zeros(b, n, 4, 3, dtype=torch.float64)
    # Any rigid residue will do where nothing is known.
    backbone[:, :, 0, 0], backbone[:, :, 2, 1] = 1.46, 1.52
    piece = torch.full((b, n), -1)
    index = torch.arange(n).repeat(b, 1)
    residues = torch.full((b, n), MASKED)
    for i, layout in enumerate(layouts):
        places, motif = torch.from_numpy(layout.places), layout.contig.motif
        if around is not None:
            backbone[i, : len(layout)] = torch.from_numpy(around.backbone).double()
            residues[i, : len(layout)] = _tokens(around)
        backbone[i, places] = torch.from_numpy(motif.backbone).double()
        residues[i, places] = _tokens(motif)
        piece[i, places] = torch.from_numpy(np.cumsum(np.append(0, motif.joints))[: len(places)])
        index[i, : len(layout)] += BREAK * torch.from_numpy(layout.chains)
    given = piece >= 0
    extras: dict[str, Tensor] = {"index": index}
    fields = encoding.tensors(backbone, context.mask)
    if "positions" in encoding.fields:
        seen = torch.where(given.any(1, keepdim=True), given, context.mask)[..., None].double()
        centre = (backbone[:, :, 1] * seen).sum(1, keepdim=True) / seen.sum(1, keepdim=True)
        x = (backbone[:, :, 1] - centre) * context.mask[..., None] / encoding.scale
        fields["positions"] = x
    else:
        if any(layout.chains.any() for layout in layouts):
            raise InputError(
                "angles build one chain, and the contig asks for several; use a model of frames"
            )
        extras |= {"motif": backbone, "piece": piece}
        torsions, bends = known_angles(context.replace(extras=extras))
        # Residues at the ends of a piece have angles that are not the motif's.
        given = torsions.all(-1) & bends.all(-1) & told
    marks = dict.fromkeys(encoding.structure, given) if bool(given.any()) else {}
    if encoding.sequence:
        fields[FIELD] = residues
        # A motif's residue may be none of the twenty: it is found like any other.
        known = (piece >= 0) & (residues != MASKED)
        marks |= {FIELD: known} if bool(known.any()) else {}
    return State(fields, context.replace(given=marks, extras=extras))


class Scaffolding(Task):
    """Chains around given residues.

    Args:
        encoding: of the model.
        contig: what is kept, and how much is built between.
        conditions: wanted properties of the samples of some draws.
        told: see :func:`scaffold_state`.
        around: the structure that is re-designed.
        time: t0, where its noise begins.
    """

    def __init__(
        self,
        encoding: Encoding,
        contig: Contig,
        conditions: Callable[[Draws], dict[str, Tensor]],
        told: bool = True,
        around: Chain | None = None,
        time: float = 1.0,
    ):
        self.encoding, self.contig, self.conditions = encoding, contig, conditions
        self.told, self.around, self.time = told, around, time

    def begin(self, draws: Draws) -> Beginning:
        """Motif and structure in place; see :class:`sciflow.tasks.Task`."""
        layouts = self.contig.sample(draws)
        state = scaffold_state(self.encoding, layouts, self.around, self.told)
        context = state.context.replace(conditions=self.conditions(draws))
        fields = in_single_precision(state.fields)
        given = {f: fields[f] for f in context.given}
        return Beginning(context, given, fields if self.time < 1 else None, self.time)

    def guided(self, run: Model, denoiser: Denoiser) -> Denoiser:
        """Angles carry their motif; a guide ``motif`` of the user's own does it instead."""
        named = run.has_guide("motif")
        if named or "positions" in self.encoding.fields or not len(self.contig.motif):
            return denoiser
        return MOTIF.wrap(run, dict(MOTIF.settings), denoiser)

    def finish(
        self, records: Sequence[Chain], draws: Draws
    ) -> list[tuple[Chain, Mapping[str, float]]]:
        """Designs where the motif's file has it; ``motif_rmsd``, and of a re-design ``moved``, Å.

        ``motif_rmsd`` is of the atoms that the model made, N, CA and C. ``moved`` is of all CA from
        where they were.
        """
        layouts = self.contig.sample(draws)
        return [self._placed(*pair) for pair in zip(records, layouts, strict=True)]

    def _placed(self, chain: Chain, layout: Layout) -> tuple[Chain, dict[str, float]]:
        motif, places = self.contig.motif, layout.places
        x, told = chain.backbone.astype(np.float64), dict[str, float]()
        finite = bool(np.isfinite(x).all())
        if finite:
            if len(places):
                told["motif_rmsd"] = motif_rmsd(chain, places, motif.backbone)
            if self.around is not None:
                told["moved"] = rmsd(x[:, 1], self.around.ca)
            if "positions" in self.encoding.fields and len(places):
                # Given frames were never turned, so that one shift brings all of them home.
                x += motif.ca.mean(0, dtype=np.float64) - x[places, 1].mean(0)
                x[places] = motif.backbone
            else:
                here, there = x[places], motif.backbone
                if not len(places) and self.around is not None:
                    here, there = x, self.around.backbone
                if len(here):
                    rotation, shift = superimpose(here[:, :3].reshape(-1, 3),
                                                  there[:, :3].reshape(-1, 3))  # fmt: skip
                    x = x @ rotation.T + shift
        if layout.chains.any():
            told["chains"] = float(layout.chains.max() + 1)
        letters, given = np.array(list(chain.sequence)), np.zeros(len(chain), bool)
        own = np.array(list(motif.sequence), dtype=letters.dtype)
        letters[places], given[places] = np.where(own == "X", letters[places], own), True
        ends = np.diff(layout.chains) != 0
        ids = numbered_apart(layout.chains)
        # A chain that is not finite is dropped, and its breaks cannot be looked for.
        breaks = np.zeros(max(len(x) - 1, 0), bool)
        if finite:
            breaks = Chain(x.astype(np.float32), residue_ids=ids).joints | ends
        design = Chain(
            x.astype(np.float32), "".join(letters), str(layout), ids,
            given=given if given.any() else None, breaks=breaks, properties=told,
        )  # fmt: skip
        return design, told


def scaffold(
    denoiser: Denoiser,
    config: Mapping[str, Any],
    sampler: Sampler,
    contig: Contig,
    n: int,
    seed: int = 0,
    first: int = 0,
) -> list[Chain]:
    """``n`` designs around a motif, numbered from ``first``; design i depends on (seed, i) alone.

    Args:
        denoiser: the model, guided or not; of angles, inside
            :class:`~domains.proteins.motif_guidance.MotifGuidance`.
        config: its configuration.
        sampler: how to integrate.
        contig: what is kept, and how much is built between.
        n: how many.
        seed: of lengths and noise.
        first: number of the first.

    Raises:
        InputError: the contig keeps nothing; see also :func:`scaffold_state`.
    """
    if not len(contig.motif):
        raise InputError("the contig has no residues of a motif: there is nothing to scaffold")

    def unknown(draws: Draws) -> dict[str, Tensor]:
        return {c: torch.full((len(draws),), torch.nan) for c in config.get("conditions", {})}

    encoding, draws = Encoding.from_config(config["encoding"]), Draws(seed, range(first, first + n))
    task = Scaffolding(encoding, contig, unknown, config["objective"]["scaffolds"])
    begin = task.begin(draws)
    report = sampler(denoiser, begin.context, draws, given=begin.given or None)
    return [design for design, _ in task.finish(encoding.decode(report.state), draws)]


def _tokens(chain: Chain) -> Tensor:
    return torch.from_numpy(codes(chain.sequence, unknown=True).astype(np.int64))


def numbered_apart(chains: np.ndarray[Any, Any]) -> tuple[str, ...]:
    """Residue numbers from 1; another chain of the design goes on behind the next hundred.

    Args:
        chains: number of the chain of each residue, ``[N]``.
    """
    ids, number = list[str](), 0
    for i, chain in enumerate(chains):
        if i and chain != chains[i - 1]:
            number = (number // 100 + 2) * 100
        number += 1
        ids.append(str(number))
    return tuple(ids)
