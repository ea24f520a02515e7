"""Sequences for backbones: what is given stays, what is found is the model's p(sequence | fold)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from domains.proteins.chain import ALPHABET, Chain
from domains.proteins.contigs import parse_contig
from domains.proteins.encoding import Encoding
from domains.proteins.ideal import helix_bundle
from domains.proteins.inverse_folding import folded_state
from domains.proteins.io import read_chains, write_pdb
from domains.proteins.letters import FIELD, MASKED, codes, letters_of
from domains.proteins.networks import PRESETS
from domains.proteins.perplexity import folded_perplexity
from domains.proteins.table import ChainTable
from domains.proteins.tasks import make_task
from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.model import Model
from sciflow.paths import Path as Path_
from sciflow.random import Draws
from sciflow.state import State
from tests.proteins.test_protein_tasks import FAST, model

SEQUENCE = "ACDEFGHIKLMNPQRSTVWY" * 2 + "ACDEFGHI"
ENCODING = Encoding(("positions", "rotations", FIELD), 7.7)


def bundle(sequence: str = SEQUENCE) -> Chain:
    return Chain(helix_bundle(2).backbone + np.float32(30), sequence)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_pdb(tmp_path / "native.pdb", bundle())


@pytest.fixture(scope="module")
def codesign() -> Model:
    return model("codesign")


def test_letters_there_and_back() -> None:
    assert letters_of(codes(ALPHABET)) == ALPHABET
    assert codes("AXB", unknown=True).tolist() == [0, MASKED, MASKED]
    with pytest.raises(InputError, match="'B' is none of the twenty"):
        codes("AB")


def test_a_chain_with_its_sequence_there_and_back() -> None:
    state = ENCODING.encode([bundle(), bundle("W" * 48)])
    back = ENCODING.decode(state)
    assert [c.sequence for c in back] == [SEQUENCE, "W" * 48]
    x = bundle().backbone
    assert np.abs(back[0].backbone - (x - x[:, 1].mean(0)))[:, :3].max() < 0.05
    with pytest.raises(InputError, match="none of the twenty"):
        ENCODING.encode([bundle("X" * 48)])


def test_sequences_are_found_for_the_very_backbone(codesign: Model, file: Path) -> None:
    out = codesign.sample(3, seed=1, sampler=FAST, task={"backbone": file})
    native = read_chains(file).chains[0]
    assert len({c.sequence for c in out.records}) == 3
    for chain, recovery in zip(out.records, out.columns["recovery"], strict=True):
        assert len(chain) == 48 and set(chain.sequence) <= set(ALPHABET)
        assert np.array_equal(chain.backbone, native.backbone)
        same = np.mean([a == b for a, b in zip(chain.sequence, SEQUENCE, strict=True)])
        assert recovery == pytest.approx(same)


def test_kept_residues_keep_their_letter(codesign: Model, file: Path) -> None:
    task = {"backbone": file, "fix": "A1-10,A40-48"}
    for chain in codesign.sample(2, seed=3, sampler=FAST, task=task).records:
        assert chain.sequence[:10] == SEQUENCE[:10] and chain.sequence[39:] == SEQUENCE[39:]
        assert chain.sequence[10:39] != SEQUENCE[10:39]
        assert chain.given is not None and chain.given.sum() == 19


def test_the_law_of_a_sequence_does_not_see_where_the_backbone_lies(codesign: Model) -> None:
    """Turned and moved: the same logits. Mirrored: others, for a mirrored protein is none."""
    turn = Rotation.from_rotvec([0.3, -1.1, 2.0]).as_matrix()
    x = bundle().backbone.astype(np.float64)
    chains = [bundle(), Chain((x @ turn.T + 5).astype(np.float32), SEQUENCE),
              Chain((x * [1, 1, -1]).astype(np.float32), SEQUENCE)]  # fmt: skip
    state = folded_state(ENCODING, chains)
    state = state.replace(**{FIELD: torch.full_like(state[FIELD], MASKED)})
    with torch.no_grad():
        a, b, c = codesign.denoiser(state, {f: torch.ones(3) for f in state})[FIELD]
    assert torch.allclose(a, b, atol=1e-4)
    assert float((a - c).abs().max()) > 1e-2


def test_padding_and_companions_change_no_sequence(codesign: Model) -> None:
    short, long = bundle().take(slice(0, 20)), bundle()
    alone, both = folded_state(ENCODING, [short]), folded_state(ENCODING, [long, short])
    for name in (*ENCODING.structure, FIELD):
        assert torch.equal(both[name][1, :20], alone[name][0])
    with torch.no_grad():
        one = codesign.denoiser(alone, {f: torch.ones(1) for f in alone})[FIELD]
        two = codesign.denoiser(both, {f: torch.ones(2) for f in both})[FIELD]
    assert torch.allclose(two[1, :20], one[0], atol=1e-5)


def test_a_gap_is_far_along_the_chain() -> None:
    broken = bundle().take([*range(20), *range(25, 48)])
    index = folded_state(ENCODING, [broken]).context.extras["index"][0]
    steps = index.diff()
    assert int(steps[19]) > 32 and bool((steps[:19] == 1).all() and (steps[20:] == 1).all())


def test_training_asks_sequences_of_folds(codesign: Model) -> None:
    """Where the structure is given, residues alone owe a loss."""
    config = {**codesign.config, "objective": {**codesign.config["objective"], "folds": 1.0}}
    objective = codesign.domain.objective(config)
    batch = ENCODING.encode([bundle()] * 8)
    losses = objective(codesign.denoiser, batch, Draws(0, range(8)), 0)
    assert float(losses.fields["positions"].detach().abs().max()) == 0
    assert float(losses.fields["rotations"].detach().abs().max()) == 0
    assert float(losses.fields[FIELD].detach().mean()) > 0.1


def test_a_motif_keeps_its_known_letters(codesign: Model, tmp_path: Path) -> None:
    sequence = SEQUENCE[:6] + "X" + SEQUENCE[7:]
    file = write_pdb(tmp_path / "motif.pdb", bundle(sequence))
    task = {"motif": file, "contig": "4/A5-16/4"}
    for design in codesign.sample(3, seed=2, sampler=FAST, task=task).records:
        assert design.sequence[4:6] == sequence[4:6] and design.sequence[7:16] == sequence[7:16]
        assert set(design.sequence) <= set(ALPHABET)


def test_pieces_without_a_known_sequence_are_left_out(codesign: Model) -> None:
    table = ChainTable.from_chains([bundle(), bundle("X" * 48)], name="two")
    settings = {**PRESETS["codesign"], "pieces": {"lengths": [40, 128], "crops": 0.0,
                                                  "rg_ratio": 9.0, "coil": 1.0}}  # fmt: skip
    like = {**settings, "encoding": ENCODING.config(), "conditions": {}}
    _, data, held_out = codesign.domain.prepare(table, "codesign", [], like)
    assert len(data) + len(held_out) == 1
    assert letters_of((data if len(data) else held_out).fields[FIELD][0].numpy()) == SEQUENCE


@pytest.mark.parametrize(
    ("preset", "options", "message"),
    [
        ("frames", {}, "needs a model of frames and residues"),
        ("codesign", {"length": 30}, "as long as its backbone"),
        ("codesign", {"fix": "A1-99"}, "A1-99|99"),
        ("codesign", {"template": "MK??"}, "two tasks"),
    ],
)
def test_bad_requests(preset: str, options: dict[str, object], message: str, file: Path) -> None:
    target = {"length": options.pop("length")} if "length" in options else {}
    with pytest.raises(InputError, match=message):
        model(preset).sample(1, target, task={"backbone": file, **options})  # type: ignore[arg-type]


def test_missing_atoms_are_named(tmp_path: Path) -> None:
    x = bundle().backbone.copy()
    x[7, 2] = math.nan
    with pytest.raises(InputError, match=r"1 residues lack backbone atoms \(8\)"):
        folded_state(ENCODING, [Chain(x, SEQUENCE)])


def test_the_bound_of_a_model_that_knows_nothing_of_the_fold() -> None:
    """It is the entropy of its composition, whatever the backbone."""

    class Uniform(Denoiser):
        def __init__(self, paths: Mapping[str, Path_]):
            super().__init__()
            self.paths = dict(paths)

        def forward(self, state: State, t: object, previous: object = None) -> Prediction:
            logits = torch.zeros(*state[FIELD].shape, 20)
            return Prediction({**{f: state[f] for f in ENCODING.structure}, FIELD: logits})

    uniform = Uniform(model("codesign").denoiser.paths)
    found = folded_perplexity(uniform, ENCODING, [bundle(), bundle().take(slice(0, 30))])
    assert found.value == pytest.approx(20, rel=1e-6) and found.residues == 78
    with pytest.raises(InputError, match="none of the twenty"):
        folded_perplexity(uniform, ENCODING, [bundle("X" * 48)])


def test_one_chain_of_several_is_chosen(codesign: Model, tmp_path: Path) -> None:
    other = bundle("G" * 48).take(slice(0, 30)).replace(chain_id="B")
    file = write_pdb(tmp_path / "two.pdb", [bundle(), other])
    out = codesign.sample(1, sampler=FAST, task={"backbone": file, "chain": "B"})
    assert len(out.records[0]) == 30 and out.records[0].chain_id == "B"
    # All of it glycine: nothing to recover.
    assert "recovery" not in out.columns
    with pytest.raises(InputError, match="chains A, B, and one is re-designed: say which, --chain"):
        codesign.sample(1, sampler=FAST, task={"backbone": file})
    with pytest.raises(InputError, match="--chain C: the file has A, B"):
        codesign.sample(1, sampler=FAST, task={"backbone": file, "chain": "C"})
    with pytest.raises(InputError, match="--chain B and --fix 'A1-2' mean two chains"):
        codesign.sample(1, sampler=FAST, task={"backbone": file, "chain": "B", "fix": "A1-2"})


def test_a_backbone_with_gaps_is_no_broken_design(codesign: Model, tmp_path: Path) -> None:
    native = bundle().take([*range(20), *range(25, 48)])
    file = write_pdb(tmp_path / "gaps.pdb", native)
    out = codesign.sample(2, sampler=FAST, task={"backbone": file})
    assert codesign.domain.verdicts(out.records) == ["", ""]
    assert out.columns["gaps"] == [1, 1] and [len(c) for c in out.kept] == [43, 43]
    # Neither when it was written and read; a design that is broken elsewhere still is one.
    write_pdb(tmp_path / "design.pdb", out.records[0])
    back = codesign.domain.read(tmp_path / "design.pdb")[0]
    assert codesign.domain.verdicts([back]) == [""]
    worse = back.take([*range(30), *range(33, 43)])
    assert "broken at 2 places" in codesign.domain.verdicts([worse])[0]


def test_a_model_of_sequences_names_what_it_cannot_do() -> None:
    """Also where a contig was found beforehand, and no option asks for a task."""
    sequences: Any = SimpleNamespace(config={"encoding": {"fields": [FIELD]}})
    found = parse_contig("4/A5-16/4", [bundle()])
    for options, name in (({"contig": found}, "contig"), ({"backbone": "x.pdb"}, "backbone")):
        with pytest.raises(InputError, match=f"makes sequences; --{name} needs one of backbones"):
            make_task(sequences, options, {})
