"""Motif scaffolding: given residues keep their place, a model builds the chain around them.

The motif's residues have time 0 all through sampling, as in training
(:class:`~sciflow.objectives.given.GivenRule`), so a model of frames answers with the conditional
distribution of the rest, at no extra calls. The frame in space is the motif's: its centre is the
origin, and the noise of the others is not centred. The designs come back where the motif's file has
it, with the motif's own atoms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from domains.proteins.chain import Chain
from domains.proteins.contigs import Contig, Layout
from domains.proteins.encoding import Encoding, empty_context
from sciflow.denoisers import Denoiser
from sciflow.errors import InputError
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.state import State

__all__ = ["scaffold", "scaffold_state"]

_BREAK = 64
"""Residue numbers between chains of one design: farther than the network tells distances apart."""


def scaffold_state(encoding: Encoding, layouts: list[Layout]) -> State:
    """The motifs of layouts as clean fields, marked as given; the other residues are not yet.

    Raises:
        InputError: the model has no positions in space, or a motif is too small to have a frame.
    """
    if "positions" not in encoding.fields:
        raise InputError(
            "angles have no place in space, so that a motif of several pieces cannot be given; "
            "use a model of frames"
        )
    lengths = torch.tensor([len(layout) for layout in layouts])
    context = empty_context(lengths, {})
    n = context.mask.shape[1]
    backbone = torch.zeros(len(layouts), n, 4, 3, dtype=torch.float64)
    # Any rigid residue will do where nothing is given.
    backbone[:, :, 0, 0], backbone[:, :, 2, 1] = 1.46, 1.52
    given = torch.zeros_like(context.mask)
    index = torch.arange(n).repeat(len(layouts), 1)
    for i, layout in enumerate(layouts):
        places = torch.from_numpy(layout.places)
        if not len(places):
            raise InputError("the contig has no residues of a motif: there is nothing to scaffold")
        backbone[i, places] = torch.from_numpy(layout.contig.motif.backbone).double()
        given[i, places] = True
        index[i, : len(layout)] += _BREAK * torch.from_numpy(layout.chains)
    context = context.replace(given=dict.fromkeys(encoding.fields, given),
                              extras={"index": index})  # fmt: skip
    fields = encoding.tensors(backbone, context.mask)
    known = given[..., None].double()
    centre = (backbone[:, :, 1] * known).sum(1, keepdim=True) / known.sum(1, keepdim=True)
    places_ = (backbone[:, :, 1] - centre) * context.mask[..., None] / encoding.scale
    return State({**fields, "positions": places_}, context)


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
        denoiser: a model of frames, guided or not.
        config: its configuration.
        sampler: how to integrate.
        contig: what is kept, and how much is built between.
        n: how many.
        seed: of lengths and noise.
        first: number of the first.

    Raises:
        InputError: see :func:`scaffold_state`.
    """
    draws = Draws(seed, torch.arange(first, first + n))
    layouts = contig.sample(draws)
    encoding = Encoding.from_config(config["encoding"])
    state = scaffold_state(encoding, layouts)
    unknown = {c: torch.full((n,), torch.nan) for c in config.get("conditions", {})}
    context = state.context.replace(conditions=unknown)
    values = {f: x.float() for f, x in state.fields.items()}
    report = sampler(denoiser, context, draws, given=values)
    designs = []
    for i, chain in enumerate(encoding.decode(report.state)):
        motif, places = contig.motif, layouts[i].places
        x = chain.backbone.astype(np.float64)
        # Given frames were never turned, so that one shift brings all of them home.
        x += motif.ca.mean(0, dtype=np.float64) - x[places, 1].mean(0)
        x[places] = motif.backbone
        letters = np.array(list("X" * len(chain)))
        letters[places] = list(motif.sequence)
        given = np.zeros(len(chain), bool)
        given[places] = True
        breaks = None if np.isfinite(x).all() else np.zeros(max(len(x) - 1, 0), bool)
        designs.append(
            Chain(
                x.astype(np.float32),
                "".join(letters),
                name=str(layouts[i]),
                given=given,
                breaks=breaks,
            )
        )
    return designs
