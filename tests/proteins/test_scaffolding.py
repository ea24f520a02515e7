"""Scaffolds keep their motif, have the lengths of their contig, and turn with the motif."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from domains.proteins.chain import Chain
from domains.proteins.contigs import parse_contig
from domains.proteins.encoding import Encoding
from domains.proteins.evaluators.superposition import motif_rmsd
from domains.proteins.ideal import helix_bundle
from domains.proteins.networks import PRESETS, build_denoiser
from domains.proteins.scaffolding import scaffold, scaffold_state
from sciflow.denoisers import NetworkDenoiser
from sciflow.errors import InputError
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.testing.probes import randomise

CONFIG = {
    **PRESETS["frames"],
    "encoding": {"fields": ["positions", "rotations"], "scale": 7.7},
    "conditions": {"helix": [0.4, 0.2]},
    "network": {"dim": 16, "pair_dim": 8, "depth": 1, "heads": 2},
}
SAMPLER = Sampler(steps=4, method="ab2")
CONTIG = "3-9/A5-12/4/A30-36/2-6"


def denoiser() -> NetworkDenoiser:
    torch.manual_seed(0)
    return randomise(build_denoiser(CONFIG), size=0.2)


def source() -> Chain:
    x = helix_bundle(1).backbone + np.float32(40)
    return Chain(x)


def test_the_motif_stays_where_it_was() -> None:
    contig = parse_contig(CONTIG, [source()])
    designs = scaffold(denoiser(), CONFIG, SAMPLER, contig, 4, seed=3)
    layouts = contig.sample(Draws(3, torch.arange(4)))
    assert len({len(d) for d in designs}) > 1
    for design, layout in zip(designs, layouts, strict=True):
        assert len(design) == len(layout) and design.complete
        assert design.given is not None and (np.flatnonzero(design.given) == layout.places).all()
        assert (design.backbone[layout.places] == contig.motif.backbone).all()
        assert motif_rmsd(design, layout.places, contig.motif.backbone) < 1e-4
        built = design.backbone[~design.given]
        assert np.abs(built[1:, 1] - built[:-1, 1]).max() > 0.1
    alone = scaffold(denoiser(), CONFIG, SAMPLER, contig, 1, seed=3, first=2)[0]
    assert np.abs(alone.backbone - designs[2].backbone).max() < 1e-3


def test_what_was_generated_was_told_the_motif() -> None:
    """Sampled with given residues, the fields end at their values before atoms are put back."""
    contig = parse_contig(CONTIG, [source()])
    draws = Draws(0, torch.arange(2))
    state = scaffold_state(Encoding.from_config(CONFIG["encoding"]), contig.sample(draws))
    values = {f: x.float() for f, x in state.fields.items()}
    context = state.context.replace(conditions={"helix": torch.full((2,), torch.nan)})
    end = SAMPLER(denoiser(), context, draws, given=values).state
    known = state.context.given["positions"]
    assert torch.equal(end["positions"][known], values["positions"][known])
    torch.testing.assert_close(end["rotations"][known], values["rotations"][known])
    centre = torch.stack([x[k].mean(0) for x, k in zip(values["positions"], known, strict=True)])
    assert float(centre.abs().max()) < 1e-5


def test_designs_turn_with_the_motif_and_not_with_a_mirror() -> None:
    """With the noise turned as well, which is what a rotation of the frame does."""
    contig = parse_contig(CONTIG, [source()])
    model = denoiser().double().requires_grad_(False)
    draws = Draws(0, torch.arange(2))
    state = scaffold_state(Encoding.from_config(CONFIG["encoding"]), contig.sample(draws))
    context = state.context.replace(conditions={"helix": torch.full((2,), torch.nan)})
    start = {f: p.prior(context, draws, f, torch.float64) for f, p in model.paths.items()}

    def run(q: torch.Tensor) -> torch.Tensor:
        def turn(x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {"positions": x["positions"] @ q.T, "rotations": q @ x["rotations"]}

        given, noise = turn(state.fields), turn(start)
        report = SAMPLER(model, context, draws, given=given, start=noise, dtype=torch.float64)
        return report.state["positions"]

    q = torch.linalg.qr(Draws(0, [0]).normal((3, 3), "q", dtype=torch.float64)[0])[0]
    q[:, 0] *= torch.linalg.det(q)
    one = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(run(q), run(one) @ q.T, atol=1e-8, rtol=0)


def test_what_cannot_be_scaffolded_is_refused() -> None:
    contig = parse_contig("20", [])
    with pytest.raises(InputError, match="nothing to scaffold"):
        scaffold(denoiser(), CONFIG, SAMPLER, contig, 1)
    layouts = parse_contig("3/A5-12/0 A30-36", [source()]).sample(Draws(0, [0]))
    with pytest.raises(InputError, match="build one chain"):
        scaffold_state(Encoding(("torsions", "bends")), layouts)
