"""Motifs and re-designs, from the options of a run to its files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from domains.proteins.adapter import Proteins
from domains.proteins.chain import Chain
from domains.proteins.contigs import parse_contig
from domains.proteins.encoding import Encoding
from domains.proteins.evaluators.superposition import motif_rmsd, rmsd, superimpose
from domains.proteins.ideal import helix_bundle
from domains.proteins.io import read_chains, write_pdb
from domains.proteins.motif_benchmark import is_clean, scaffold_benchmark, summary
from domains.proteins.motif_guidance import known_angles
from domains.proteins.motifs import MotifProblem, rfdiffusion_benchmark
from domains.proteins.networks import PRESETS
from domains.proteins.rebuild import internal_coordinates
from domains.proteins.scaffolding import scaffold_state
from domains.proteins.tasks import fixed_contig
from sciflow.cli import cli
from sciflow.data import shared_data
from sciflow.errors import InputError
from sciflow.model import Model
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.testing.probes import randomise

TWO, ONE = "3-9/A5-12/8-12/A30-36/2-6", "4-9/A5-16/4-9"
FAST = {"steps": 4, "method": "ab1"}


def model(preset: str = "angles") -> Model:
    fields = PRESETS[preset]["fields"]
    config = {
        **PRESETS[preset],
        "domain": "proteins",
        "encoding": Encoding(tuple(fields), 7.7).config(),
        "conditions": {"helix": [0.4, 0.2]},
        "network": {"dim": 16, "pair_dim": 8 * (preset != "angles"), "depth": 1, "heads": 2},
    }
    torch.manual_seed(0)
    domain = Proteins()
    reference = {"lengths": torch.tensor([30, 40]), "helix": torch.tensor([0.2, 0.6])}
    denoiser = domain.denoiser(config)
    randomise(denoiser, size=0.1)
    return Model(domain, denoiser, config, reference)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A structure of 48 residues away from the origin, as chain A."""
    x = helix_bundle(2).backbone + np.float32(30)
    return write_pdb(tmp_path / "native.pdb", Chain(x, "AC" * 24))


@pytest.mark.parametrize("preset", ["angles", "angles-in-space", "frames"])
@pytest.mark.parametrize("contig", [ONE, TWO])
def test_designs_carry_their_motif_where_its_file_has_it(
    preset: str, contig: str, file: Path
) -> None:
    task = {"motif": file, "contig": contig}
    out = model(preset).sample(4, seed=2, sampler=FAST, task=task)
    found = parse_contig(contig, read_chains(file).chains)
    layouts = found.sample(Draws(2, range(4)))
    assert len({len(d) for d in out.records}) > 1
    for design, layout, told in zip(out.records, layouts, out.columns["motif_rmsd"], strict=True):
        assert len(design) == len(layout) and design.name == str(layout)
        assert (np.flatnonzero(design.given) == layout.places).all()
        assert "".join(np.array(list(design.sequence))[layout.places]) == found.motif.sequence
        motif = found.motif.backbone
        assert told == design.properties["motif_rmsd"] < 0.15
        here = design.backbone[layout.places]
        if preset == "frames":
            assert (here == motif).all()
        else:
            assert abs(motif_rmsd(design, layout.places, motif) - told) < 1e-3
            assert float(np.sqrt(((here - motif)[:, :3] ** 2).sum(-1).mean())) < told + 1e-3
            assert design.unbroken
    alone = model(preset).sample(1, seed=2, first=3, sampler=FAST, task=task).records[0]
    np.testing.assert_allclose(alone.backbone, out.records[3].backbone, atol=2e-3)


def test_angles_of_pieces_are_the_motifs_to_the_bit(file: Path) -> None:
    found = parse_contig(TWO, read_chains(file).chains)
    guided = model().domain.task(model(), {"contig": found}, {})
    draws = Draws(0, range(3))
    begin = guided.begin(draws)
    run = model()
    denoiser = guided.guided(run, run.denoiser)
    end = Sampler(**FAST)(denoiser, begin.context, draws).state
    torsions, _ = internal_coordinates(begin.context.extras["motif"], begin.context.mask)
    of_torsions, of_bends = known_angles(begin.context)
    assert int(of_torsions.sum()) == 3 * 3 * (7 + 6) and int(of_bends.sum()) == 3 * (3 * 13 + 2)
    wrapped = run.denoiser.paths["torsions"].space.project(torsions.float(), begin.context)
    assert torch.equal(end["torsions"][of_torsions], wrapped[of_torsions])
    assert float((end["bends"][~of_bends]).abs().max()) > 0
    assert float((end["torsions"] - torsions)[~of_torsions].abs().max()) > 0.1


@pytest.mark.parametrize("preset", ["angles", "frames"])
def test_a_motif_elsewhere_is_the_same_design_elsewhere(
    preset: str, file: Path, tmp_path: Path
) -> None:
    """Of frames by a shift: their noise does not turn with the file."""
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    q *= np.sign(np.linalg.det(q))
    q = q if preset == "angles" else np.eye(3)
    native = read_chains(file).chains[0]
    moved = Chain((native.backbone @ q.T + [5.0, -20.0, 60.0]).astype(np.float32), native.sequence)
    other = write_pdb(tmp_path / "moved.pdb", moved)
    here, there = (
        model(preset).sample(2, sampler=FAST, task={"motif": f, "contig": ONE}).records
        for f in (file, other)
    )
    for a, b in zip(here, there, strict=True):
        back = a.backbone @ q.T + [5.0, -20.0, 60.0]
        # A file has three decimals.
        assert float(np.abs(back - b.backbone).max()) < 0.1


def test_what_is_fixed_stays_and_noise_says_how_much_of_the_rest(file: Path) -> None:
    native, moved = read_chains(file).chains[0], []
    for noise in (0.02, 0.3, 1.0):
        task = {"redesign": file, "fix": "A1-10,A25-33", "noise": str(noise)}
        out = model("frames").sample(2, sampler=FAST, task=task)
        for design in out.records:
            assert len(design) == 48 and design.given.sum() == 19
            assert (design.backbone[design.given] == native.backbone[design.given]).all()
        moved.append(np.mean(out.columns["moved"]))
    assert moved[0] < 0.6 < moved[1] < moved[2]
    contig, chain = fixed_contig("A5-9/A30", [native])
    (layout,) = contig.sample(Draws(0, [0]))
    assert str(layout) == "4/A5-9/20/A30/18" and len(layout) == len(chain)


def test_a_redesign_by_noise_alone_lies_over_its_structure(file: Path) -> None:
    native, task = read_chains(file).chains[0], {"redesign": file, "noise": 0.02}
    out = model("frames").sample(2, sampler=FAST, task=task)
    for design, told in zip(out.records, out.columns["moved"], strict=True):
        assert design.given is None and abs(rmsd(design.ca, native.ca) - told) < 1e-3
        rotation, shift = superimpose(design.backbone[:, :3].reshape(-1, 3),
                                      native.backbone[:, :3].reshape(-1, 3))  # fmt: skip
        np.testing.assert_allclose(rotation, np.eye(3), atol=1e-4)
        np.testing.assert_allclose(shift, 0, atol=1e-2)
    angles = model().sample(2, sampler=FAST, task={"redesign": file, "noise": 0.001})
    assert max(angles.columns["moved"]) < 1.0


def test_several_chains_are_numbered_apart_and_frames_alone_build_them(file: Path) -> None:
    found = parse_contig("3/A5-12/0 4/A30-36", read_chains(file).chains)
    design = model("frames").sample(1, sampler=FAST, task={"contig": found}).records[0]
    assert design.residue_ids[10:12] == ("11", "201") and design.joints[10]
    with pytest.raises(InputError, match="build one chain"):
        model().sample(1, sampler=FAST, task={"contig": found})
    # Neighbours in one chain are one step apart, chains are far apart.
    state = scaffold_state(Encoding(("positions", "rotations"), 7.7), found.sample(Draws(0, [0])))
    assert state.context.extras["index"][0, 9:12].tolist() == [9, 10, 11 + 64]


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    return result.exit_code, result.output


def test_the_command_writes_designs_and_their_deviation(file: Path, tmp_path: Path) -> None:
    folder, out = model().save(tmp_path / "model"), tmp_path / "run"
    code, text = run("sample", "proteins", "--model", folder, "--motif", file, "--contig", ONE,
                     "--length", "22..26", "-n", 3, "--steps", 4, "--out", out)  # fmt: skip
    assert code in (0, 1), text
    rows = list(csv.DictReader((out / "samples.csv").open()))
    assert [22 <= int(r["length"]) <= 26 for r in rows] == [True] * 3
    assert all(float(r["motif_rmsd"]) < 0.15 for r in rows)
    assert json.loads((out / "run.json").read_text())["task"] == {"motif": str(file), "contig": ONE}
    valid = [r for r in rows if r["valid"] == "1"]
    page = (out / "report.html").read_text()
    assert "motif rmsd" in page and ONE in page
    native = read_chains(file).chains[0]
    for k in range(len(valid)):
        (design,) = read_chains(out / "pdb" / f"backbone-{k:04d}.pdb").chains
        assert design.given is not None and design.given.sum() == 12
        away = design.ca[design.given] - native.ca[4:16]
        assert float(np.sqrt((away**2).sum(-1).mean())) < 0.15


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--motif", "FILE"], "needs --contig"),
        (["--contig", "10/A5-12"], "give --motif FILE too"),
        (["--fix", "A5-12"], "give --redesign FILE or --backbone FILE too"),
        (["--motif", "FILE", "--contig", "10/B5-12"], "no chain B; it has A (1 to 48)"),
        (["--motif", "FILE", "--contig", "10/A40-60"], "has no residue 60"),
        (["--motif", "FILE", "--contig", "10/A12-5"], "runs backwards"),
        (["--motif", "FILE", "--contig", "10/x"], "is not understood"),
        (["--motif", "FILE", "--contig", "10-20"], "keeps no residues"),
        (["--motif", "FILE", "--contig", "5/A5-12/5", "--length", "60"], "length asked for is 60"),
        (["--motif", "FILE", "--redesign", "FILE"], "two tasks"),
        (["--motif", "no.pdb", "--contig", "10/A5-12"], "no.pdb"),
        (["--redesign", "FILE", "--fix", "10/A5-12"], "no lengths"),
        (["--redesign", "FILE", "--fix", "A20-25,A5-12"], "order of the chain"),
        (["--redesign", "FILE", "--fix", "C1"], "no chain C"),
        (["--redesign", "FILE", "--noise", "0"], "above 0"),
        (["--redesign", "FILE", "--noise", "much"], "above 0"),
        (["--redesign", "FILE", "--length", "80"], "leave --length out"),
        (["--redesign", "GAPS"], "without gaps"),
        (["--motif", "GAPS", "--contig", "10/A18-30"], "are missing in the motif file"),
    ],
)
def test_what_makes_no_sense_is_one_clear_error(
    options: list[str], said: str, file: Path, tmp_path: Path
) -> None:
    native = read_chains(file).chains[0]
    gaps = write_pdb(tmp_path / "gaps.pdb", native.take(np.r_[0:20, 24:48]))
    folder, out = model().save(tmp_path / "model"), tmp_path / "run"
    paths = {"FILE": file, "GAPS": gaps}
    code, text = run("sample", "proteins", "--model", folder, "-n", 1, "--out", out,
                     *[paths.get(o, o) for o in options])  # fmt: skip
    assert code == 2 and text.startswith("error: ") and text.count("\n") == 1
    assert said in text and not out.exists()
    of_the_file = ("no chain", "has no residue", "are missing in", "without gaps", "no.pdb")
    if any(words in said for words in of_the_file):
        named = next((str(paths[o]) for o in options if o in paths), "no.pdb")
        assert text.startswith(f"error: {named}: ")


def test_the_guide_by_name_replaces_the_own_one_and_needs_a_motif(file: Path) -> None:
    task = {"motif": file, "contig": TWO}
    loose = model().guided("motif", iterations=0).sample(2, sampler=FAST, task=task)
    assert min(loose.columns["motif_rmsd"]) > 1.0
    assert loose.settings["guides"][0].startswith("motif:tolerance=0.2")
    with pytest.raises(InputError, match="needs a motif"):
        model().guided("motif").sample(1, sampler=FAST)
    with pytest.raises(InputError, match="given exactly"):
        model("frames").guided("motif").sample(1, sampler=FAST, task=task)
    with pytest.raises(InputError, match="above 0"):
        model().guided("motif", tolerance=0).sample(1, sampler=FAST, task=task)


def test_the_benchmark_counts_what_is_within_an_angstrom_and_clean(file: Path) -> None:
    chains = read_chains(file).chains
    problems = [
        MotifProblem("one", parse_contig(ONE, chains), file),
        MotifProblem("apart", parse_contig("A1-8/1/A40-48", chains), file),
        MotifProblem("pair", parse_contig("A1-8/0 A20-28", chains), file),
    ]
    table = scaffold_benchmark(model(), 3, seed=1, problems=problems, sampler=FAST)
    one, apart, pair = table
    assert one["within"] == 1 and one["motif_rmsd"] < 0.1 and one["pieces"] == 1
    assert apart["within"] == 0 and apart["motif_rmsd"] > 1 and apart["solved"] == 0
    assert "one chain" in pair["skipped"]
    total = summary(table)
    assert total["problems"] == 3 and total["skipped"] == 1
    assert abs(total["within"] - 1 / 3) < 1e-12
    assert abs(total["solved"] - one["solved"] / 3) < 1e-12
    assert is_clean(chains[0]) and not is_clean(chains[0].take(np.r_[0:20, 24:48]))
    stretched = chains[0].backbone * np.float32(1.05)
    assert not is_clean(chains[0].replace(backbone=stretched))


@pytest.mark.skipif(shared_data() is None, reason="needs the shared data (SCIFLOW_DATA)")
def test_a_published_motif_of_two_pieces_comes_within_an_angstrom() -> None:
    """Of a network that knows nothing of proteins: the bonds bring the pieces together."""
    problem = next(p for p in rfdiffusion_benchmark() if p.name == "5IUS")
    (row,) = scaffold_benchmark(model(), 2, problems=[problem], sampler={"steps": 6})
    assert row["pieces"] == 2 and row["motif_residues"] == 42 and row["within"] == 1
