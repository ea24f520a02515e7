"""Oligomers are exact copies about an axis, in touch, and nothing depends on padding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from domains.proteins.adapter import Proteins
from domains.proteins.encoding import Encoding, empty_context
from domains.proteins.io import read_chains
from domains.proteins.networks import PRESETS
from domains.proteins.symmetry import InterfaceEnergy, Symmetric, parse_symmetry, turns
from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.model import Model
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.state import State, Times
from sciflow.testing.probes import randomise

FAST = {"steps": 4, "method": "ab1"}


def model(preset: str) -> Model:
    config = {
        **PRESETS[preset],
        "encoding": Encoding(tuple(PRESETS[preset]["fields"]), 7.7).config(),
        "conditions": {},
        "network": {"dim": 16, "pair_dim": 8, "depth": 1, "heads": 2},
    }
    torch.manual_seed(0)
    domain = Proteins()
    denoiser = domain.denoiser(config)
    randomise(denoiser, size=0.1)
    return Model(domain, denoiser, config, {"lengths": torch.tensor([30, 40])})


class Constant(Denoiser):
    """The estimate that it was made with, whatever is asked."""

    def __init__(self, like: Denoiser, clean: dict[str, Tensor]):
        super().__init__()
        self.paths, self.clean = like.paths, clean

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        return Prediction(self.clean)


def test_the_turns_are_the_group() -> None:
    q = turns(5, torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(torch.linalg.matrix_power(q[1], 3), q[3])
    torch.testing.assert_close(q[1] @ q[4], torch.eye(3, dtype=torch.float64))
    assert parse_symmetry(" c5") == 5


@pytest.mark.parametrize("order", [2, 3, 5])
def test_an_estimate_becomes_the_nearest_symmetric_one(order: int) -> None:
    net, draws = model("frames").denoiser, Draws(1, [0, 1])
    context = empty_context(torch.tensor([4 * order, 3 * order]), {})
    fields = {f: p.prior(context, draws, f, torch.float64) for f, p in net.paths.items()}
    state = State(fields, context)
    guided = Symmetric(Constant(net, fields), order)
    once = guided(state, 0.5).clean
    q = turns(order, once["positions"])
    for row, n in enumerate((4, 3)):
        x, r = (once[f][row, : n * order].unflatten(0, (order, n)) for f in net.paths)
        torch.testing.assert_close(x, torch.einsum("kab,jb->kja", q, x[0]))
        torch.testing.assert_close(r, torch.einsum("kab,jbc->kjac", q, r[0]))
        torch.testing.assert_close(x.mean((0, 1)), torch.zeros(3, dtype=torch.float64))
        torch.testing.assert_close(r @ r.mT, torch.eye(3, dtype=torch.float64).expand_as(r))
    assert float(once["positions"][1, 3 * order :].abs().sum()) == 0
    again = Symmetric(Constant(net, once), order)(state, 0.5).clean
    for f, x in once.items():
        torch.testing.assert_close(again[f], x)
    # Nearest: what was taken away stands at right angles to every symmetric state.
    other = Symmetric(Constant(net, {f: x.flip(1) for f, x in fields.items()}), order)
    y = other(state, 0.5).clean["positions"][0]
    assert abs(float(((fields["positions"] - once["positions"])[0] * y).sum())) < 1e-9


def test_the_energy_counts_contacts_and_clashes_of_one_interface() -> None:
    encoding = Encoding(("positions", "rotations"), 2.0)
    x = torch.zeros(2, 6, 3, dtype=torch.float64)
    # Three copies of two residues, 30 and 40 Å from the axis; two copies of two residues.
    for order, row, places in ((3, 0, (30.0, 40.0)), (2, 1, (2.0, 9.0))):
        for k, q in enumerate(turns(order, x)):
            for j, radius in enumerate(places):
                x[row, k * 2 + j] = q @ torch.tensor([radius, 0.0, 0.0]).double() / 2.0
    energy = InterfaceEnergy(encoding, 3, contacts=1.0, clash=2.0)
    d = torch.tensor(
        [[30 * 3**0.5, 37**0.5 * 0 + 1300**0.5 * 0 + 3700**0.5], [3700**0.5, 40 * 3**0.5]]
    )
    there = (1 / (1 + (d / 8) ** 6)).sum()
    first = State({"positions": x[:1]}, empty_context(torch.tensor([6]), {}))
    assert abs(float(energy(first)) + 1.5 * float(((1 - there) / 2) ** 2)) < 1e-6
    d = torch.tensor([4.0, 11.0, 11.0, 18.0])
    missing = (5 - (1 / (1 + (d / 8) ** 6)).sum()) / 2
    pair = State({"positions": x[1:, :4]}, empty_context(torch.tensor([4]), {}))
    wanted = -0.5 * (missing**2 + 2.0 * (1.0 / 0.5) ** 2)
    assert abs(float(replace(energy, order=2, contacts=5.0)(pair)) - float(wanted)) < 1e-6


def test_a_run_gives_equal_chains_with_letters_of_their_own(tmp_path: Path) -> None:
    frames = model("frames")
    out = frames.sample(3, {"length": (8, 12)}, 1, sampler=FAST, task={"symmetry": "C3"})
    assert out.settings["task"] == {"symmetry": "C3"} and min(out.columns["chains"]) == 3
    for chain in out.records:
        a, b, c = chain.parts()
        assert [p.chain_id for p in (a, b, c)] == ["A", "B", "C"]
        assert len(a) == len(b) == len(c) and 8 <= len(a) <= 12
        q = turns(3, torch.zeros((), dtype=torch.float64)).numpy()
        # The oxygen of a last residue is placed by what follows it in the row.
        for part, turn in ((b, q[1]), (c, q[2])):
            np.testing.assert_allclose(part.backbone[:, :3], a.backbone[:, :3] @ turn.T, atol=2e-3)
    alone = frames.sample(1, {"length": (8, 12)}, 1, first=2, sampler=FAST, task={"symmetry": "C3"})
    np.testing.assert_allclose(alone.records[0].ca, out.records[2].ca, atol=3e-2)
    frames.domain.write(out.records[:1], tmp_path)
    assert [c.chain_id for c in read_chains(tmp_path / "pdb" / "backbone-0000.pdb")] == list("ABC")
    (back,) = frames.domain.read(tmp_path / "backbones.pdb")
    assert len(back.parts()) == 3 and back.residue_ids == out.records[0].residue_ids


def test_contacts_are_made_where_the_model_leaves_chains_apart() -> None:
    net = model("frames").denoiser
    context = empty_context(torch.tensor([16]), {})
    clean = {f: p.prior(context, Draws(5, [0]), f, torch.float32) for f, p in net.paths.items()}
    far = clean["positions"] * 0.3
    far[:, :8, 0] += 2.5
    far[:, 8:, 0] -= 2.5
    clean["positions"] = far
    encoding = Encoding(("positions", "rotations"), 7.7)
    energy = InterfaceEnergy(encoding, 2)
    frames = model("frames")
    frames.denoiser = Constant(net, clean)
    ends = []
    for strength in (0.0, 1.0):
        wrap = frames.domain.guides()["symmetry"]
        settings = {**wrap.settings, "strength": strength}
        guided = wrap.wrap(frames, settings, frames.denoiser)
        end = Sampler(steps=10, method="ab1")(guided, context, Draws(0, [0])).state
        ends.append(float(energy(end)))
    assert ends[0] < ends[1] <= 0


def test_what_cannot_be_symmetric_is_refused() -> None:
    for text in ("D2", "C1", "C13", "3"):
        with pytest.raises(InputError, match="C2 to C12"):
            parse_symmetry(text)
    with pytest.raises(InputError, match="model of frames"):
        model("angles").sample(1, task={"symmetry": "C3"})
    with pytest.raises(InputError, match="--symmetry C3"):
        guided = model("frames").guided("symmetry", order=3)
        guided.sample(1, {"length": 20}, sampler=FAST)
    with pytest.raises(InputError, match="two tasks"):
        model("frames").sample(1, task={"symmetry": "C3", "redesign": "x.pdb"})
