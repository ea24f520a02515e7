"""Every command through click's runner; errors are one line and never a traceback."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from domains.molecules.adapter import Molecules
from domains.molecules.io import read_molecules, write_sdf
from sciflow.checkpoints import load_checkpoint
from sciflow.cli import cli

ETHANOL_LIKE = ("CCO", "C", "CO")


@pytest.fixture(autouse=True)
def no_shared_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The same on every machine: no reference data, an empty cache."""
    monkeypatch.setenv("SCIFLOW_DATA", str(tmp_path / "none"))
    monkeypatch.setenv("SCIFLOW_CACHE", str(tmp_path / "cache"))


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


@pytest.fixture(scope="module")
def sdf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten small molecules with a property ``gap``, and one record that is none."""
    path = tmp_path_factory.mktemp("sdf") / "ten.sdf"
    molecules = [m.with_properties(gap=5.0 + i) for i, m in enumerate(Molecules().examples(10))]
    write_sdf(path, molecules)
    path.write_text(path.read_text() + "junk\nthat\nis no\nrecord\n$$$$\n")
    return path


def test_list_names_what_there_is() -> None:
    result = run("list")
    assert result.exit_code == 0
    for text in ("molecules: 3-D", "gap ", "[eV]", "qm9-gfn2", "qm9-b3lyp-subset"):
        assert text in result.stdout


@pytest.mark.parametrize(
    ("card", "headline"),
    [
        (
            "# a/b\n\nOne that goes\nover two lines. Another.\n\nMore. text",
            "One that goes over two lines.",
        ),
        ("# a/b\n\nNo stop\n", "No stop"),
        ("# a/b\n\n## Next\n", ""),
        ("", ""),
        (None, "(its card cannot be read)"),
    ],
)
def test_the_first_sentence_of_a_card(tmp_path, card, headline):
    from sciflow.cli.list import _headline

    if card is not None:
        (tmp_path / "card.md").write_text(card)
    assert _headline(tmp_path) == headline


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["data"], ["sample", "--help"]])
def test_help(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 0 and result.stdout.startswith("Usage: ")


def test_version() -> None:
    import sciflow

    assert run("--version").stdout == f"sciflow, version {sciflow.__version__}\n"


def test_sample_writes_a_run_and_prints_its_folder_last(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    arguments = ["sample", "molecules", "--model", tiny_model_folder, "-n", 5, "-t", "gap=5",
                 "-t", "dipole=1..2", "--seed", 3, "--steps", 4, "--method", "ddim",
                 "--grid", "time", "--guidance", 0.5, "--set", "token_eta=0.5",
                 "--set", "greedy=false", "--batch-size", 2, "--first", 10, "--device", "cpu",
                 "--jobs", 1]  # fmt: skip
    result = run(*arguments, "--out", out)
    assert result.stdout.splitlines()[-1] == str(out)
    names = {p.name for p in out.iterdir()}
    assert names == {"molecules.sdf", "molecules.smi", "molecules.xyz", "samples.csv",
                     "metrics.json", "run.json", "report.html"}  # fmt: skip
    rows = rows_of(out / "samples.csv")
    assert [row["sample"] for row in rows] == ["10", "11", "12", "13", "14"]
    valid = sum(row["valid"] == "1" for row in rows)
    # Random weights make broken molecules: said, counted, and not in the files.
    assert result.exit_code == (0 if valid == 5 else 1)
    assert f"{valid} of 5 samples are valid" in result.stderr
    settings = json.loads((out / "run.json").read_text())
    assert settings["sampler"]["token_eta"] == 0.5 and settings["sampler"]["greedy"] is False
    assert settings["targets"] == {"gap": "5", "dipole": "1..2"} and settings["guidance"] == 0.5
    assert settings["seed"] == 3 and len(settings["model_sha256"]) == 64
    assert {"torch", "numpy", "rdkit", "tblite", "python", "sciflow"} <= set(settings["versions"])
    assert json.loads((out / "metrics.json").read_text())["cost"]["network_calls"] == 8

    again = tmp_path / "again"
    run(*arguments, "--out", again)
    for name in ("samples.csv", "molecules.sdf"):
        assert (out / name).read_bytes() == (again / name).read_bytes()


def test_sample_without_oracle_and_report(tiny_model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("of an earlier run")
    (tmp_path / "notes.txt").write_text("the user's own")
    run("sample", tiny_model_folder, "-n", 3, "-t", "gap=5", "--no-oracle", "--no-report",
        "--out", tmp_path)  # fmt: skip
    assert (tmp_path / "notes.txt").read_text() == "the user's own"
    assert not (tmp_path / "report.html").exists()
    assert "gap" not in rows_of(tmp_path / "samples.csv")[0]


def test_ctrl_c_while_sampling_saves_what_was_done(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sciflow.samplers import Sampler

    real, calls = Sampler.__call__, []

    def second_batch_is_interrupted(self: Any, *a: Any, **k: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, *a, **k)

    monkeypatch.setattr(Sampler, "__call__", second_batch_is_interrupted)
    result = run("sample", tiny_model_folder, "-n", 6, "--batch-size", 2, "-o", tmp_path / "run")
    assert result.exit_code == 130
    reasons = [row["reason"] for row in rows_of(tmp_path / "run" / "samples.csv")]
    assert reasons.count("interrupted") == 4
    assert "interrupted" in result.stderr and result.stdout.strip() == str(tmp_path / "run")


def test_ctrl_c_before_anything_was_done(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*a: Any, **k: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("sciflow.samplers.Sampler.__call__", interrupted)
    result = run("sample", tiny_model_folder, "-n", 6, "-o", tmp_path / "run")
    assert result.exit_code == 130 and "nothing was saved" in result.stderr
    assert not (tmp_path / "run").exists()


def test_ctrl_c_in_the_oracle_leaves_the_samples(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*a: Any, **k: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Molecules, "oracle", interrupted)
    result = run("sample", tiny_model_folder, "-n", 3, "-t", "gap=5", "-o", tmp_path / "run")
    assert result.exit_code == 130 and "interrupted" in result.stderr
    assert len(rows_of(tmp_path / "run" / "samples.csv")) == 3
    assert (tmp_path / "run" / "molecules.sdf").exists()


def test_evaluate_prints_a_table_and_counts_what_it_could_not_read(
    sdf: Path, tmp_path: Path
) -> None:
    result = run("evaluate", "molecules", sdf, "--out", tmp_path / "e")
    assert result.exit_code == 1
    assert "10 of 11 records read" in result.stderr and "not an SDF record" in result.stderr
    assert "no real data" in result.stderr
    validity = next(line for line in result.stdout.splitlines() if line.startswith("validity"))
    assert validity.split() == ["validity", "1"]
    assert result.stdout.splitlines()[-1] == str(tmp_path / "e")
    saved = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert saved["unreadable"] == 1 and saved["evaluation"]["ten.sdf"]["validity"] == 1


def test_oracle_measures_a_file(sdf: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.csv"
    result = run(
        "oracle", "molecules", sdf, "--properties", "gap, dipole,gap", "-o", out, "--jobs", 1
    )
    assert result.exit_code == 1 and "10 of 11 records measured" in result.stderr
    assert result.stdout.splitlines()[-1] == str(out)
    rows = rows_of(out)
    assert list(rows[0]) == ["record", "smiles", "formula", "atoms", "gap", "dipole", "failure",
                             "seconds"]  # fmt: skip
    methane = next(row for row in rows if row["smiles"] == "C")
    # No dipole by symmetry; the widest gap of the ten.
    assert float(methane["dipole"]) < 0.05
    assert max(rows, key=lambda row: float(row["gap"])) is methane


def test_data_build_and_train_and_sample(tmp_path: Path) -> None:
    """The whole road: SMILES, structures, model, molecules."""
    smiles = tmp_path / "list.smi"
    smiles.write_text(
        "\n".join(["C", "O", "CO", "N", "C1CC", "CC", "C#N", "C=O", "F", "CF"]) + "\n"
    )
    table = tmp_path / "mine.npz"
    built = run("data", "build", "molecules", smiles, "-o", table, "--jobs", 1)
    assert built.exit_code == 1 and "9 of 10 records built" in built.stderr, built.stderr
    assert built.stdout.splitlines()[-1] == str(table)

    train = ["train", "molecules", "--data", table, "--target-properties", "gap", "--batch-size", 4,
             "--out", tmp_path / "t", "--accelerator", "cpu", "--threads", 1]  # fmt: skip
    trained = run(*train, "--steps", 2)
    assert trained.exit_code == 0, trained.output
    model = tmp_path / "t" / "model"
    assert trained.stdout.splitlines()[-1] == str(model)
    card = (model / "card.md").read_text()
    assert "not evaluated" in card and "2 steps" in card and "gap: HOMO-LUMO gap" in card
    digest = (model / "manifest.json").read_bytes()
    # The same command again has nothing to do and gives the same weights.
    assert run(*train, "--steps", 2).exit_code == 0
    weights = json.loads((model / "manifest.json").read_text())["files"]["model.safetensors"]
    assert weights == json.loads(digest)["files"]["model.safetensors"]
    refused = run(*train, "--steps", 2, "--no-resume")
    assert refused.exit_code == 2 and "holds a training already" in refused.stderr

    sampled = run("sample", model, "-n", 2, "-t", "gap=8", "--steps", 2, "--jobs", 1,
                  "-o", tmp_path / "s")  # fmt: skip
    assert sampled.exit_code in (0, 1), sampled.output
    assert len(rows_of(tmp_path / "s" / "samples.csv")) == 2


@pytest.mark.parametrize(
    ("own", "samples", "steps"),
    [(20_000, 10**6, 20_000), ((10, 30), 64 * 20, 20), ((10, 30), 64 * 20 + 1, 21),
     ((10, 30), 1, 10), ((10, 30), 10**6, 30)],
)  # fmt: skip
def test_steps_of_a_pair_are_one_pass_over_the_data_within_bounds(own, samples, steps):
    from sciflow.cli.train import default_steps

    assert default_steps(own, samples, 64) == steps


def test_training_goes_on_from_a_model(tmp_path: Path, tiny_model_folder: Path, sdf: Path) -> None:
    """Fine-tuning keeps network, vocabulary and properties; a step of rate ~0 keeps the weights."""
    tuned = run("train", "molecules", "--data", sdf, "--start-from", tiny_model_folder,
                "--steps", 1, "--lr", 1e-12, "--batch-size", 4, "--out", tmp_path / "t",
                "--accelerator", "cpu", "--threads", 1)  # fmt: skip
    assert tuned.exit_code == 0, tuned.output
    before, after = (load_checkpoint(f) for f in (tiny_model_folder, tmp_path / "t" / "model"))
    for key in ("encoding", "conditions", "network", "paths"):
        assert after.config[key] == before.config[key]
    old, new = before.part("network"), after.part("network")
    assert set(old) == set(new)
    assert max(float((old[k] - new[k]).abs().max()) for k in old) < 1e-6
    both = run("train", "molecules", "--data", sdf, "--start-from", tiny_model_folder,
               "--preset", "small", "--out", tmp_path / "u")  # fmt: skip
    assert both.exit_code == 2 and "preset small is not that of" in both.stderr
    asked = run("train", "molecules", "--data", sdf, "--start-from", tiny_model_folder,
                "--target-properties", "gap", "--out", tmp_path / "u")  # fmt: skip
    assert asked.exit_code == 2 and "keeps the model's own properties" in asked.stderr


ERRORS: list[tuple[str, str]] = [
    ("sampel", "No such command 'sampel'"),
    ("sample", "say what to sample: a domain (molecules, "),
    ("sample molecule", "no model 'molecule'"),
    ("sample MODEL --model OTHER", "makes molecules, not MODEL"),
    ("sample MODEL -n 0", "0 is not in the range x>=1"),
    ("sample MODEL -n ten", "'ten' is not a valid integer"),
    ("sample MODEL --stepz 5", "No such option '--stepz'"),
    ("sample MODEL --steps 0", "0 is not in the range x>=1"),
    ("sample MODEL --guidance -1", "-1.0 is not in the range x>=0"),
    ("sample MODEL -t gap", "target 'gap': write NAME=VALUE"),
    ("sample MODEL -t gap=high", "target 'gap=high': write NAME=VALUE"),
    ("sample MODEL -t gap=6..5", "a rising range, not 6..5"),
    ("sample MODEL -t gap=5 -t gap=6", "target 'gap' is given twice"),
    ("sample MODEL -t alpha=5", "no property 'alpha'; it has: gap, dipole"),
    ("sample MODEL --method rk4", "unknown method 'rk4'; known: ab1"),
    ("sample MODEL --grid cosine", "unknown time grid 'cosine'; known: fine-u, uniform-u"),
    ("sample MODEL --set eta", "setting 'eta': write KEY=VALUE"),
    ("sample MODEL --set etta=1", "unknown sampler setting 'etta'; known: steps"),
    ("sample MODEL --set eta=much", "sampler setting eta: write a number, not 'much'"),
    ("sample MODEL --set steps=2.5", "write a whole number, not '2.5'"),
    ("sample MODEL --set greedy=maybe", "write true or false, not 'maybe'"),
    ("sample MODEL --device abacus", "device 'abacus' cannot be used"),
    ("sample MODEL --jobs 0", "give -1 for every core, or 1 or more"),
    ("sample MODEL --properties colour", "unknown property 'colour'; molecules has: gap"),
    ("sample MODEL --out FILE", "this is a file; give a folder"),
    ("sample FOLDER", "manifest.json: cannot be read"),
    ("evaluate molecule FILE", "unknown domain 'molecule'; known: molecules"),
    ("evaluate molecules nothing.sdf", "nothing.sdf: no such file"),
    ("evaluate molecules FILE", "unknown kind of file"),
    ("evaluate molecules FOLDER", "unknown kind of file"),
    ("evaluate molecules SDF --out FILE", "this is a file; give a folder"),
    ("oracle molecules SDF --properties colour", "unknown property 'colour'"),
    ("oracle molecules SDF --properties ,", "no property to measure"),
    ("oracle molecules SDF -o FOLDER", "this is a folder; give a file"),
    ("report nothing", "no such folder"),
    ("report FOLDER", "run.json: cannot be read"),
    ("report FILE", "no such folder"),
    ("data build molecules nothing.smi -o x.npz", "nothing.smi: no such file"),
    ("data build molecules FILE", "Missing option '-o' / '--out'"),
    ("train molecules --out x", "Missing option '--data'"),
    (
        "train molecules --data nothing --out x",
        "neither a file nor a data set; data sets: qm9-gfn2",
    ),
    ("train molecules --data SDF --out x --preset huge", "unknown preset 'huge'; known: small"),
    ("train molecules --data SDF --out x --target-properties colour", "unknown property 'colour'"),
    ("train molecules --data SDF --out x --target-properties alpha", "has no property alpha"),
    ("train molecules --data SDF --out x --lr 0", "--lr must be positive"),
    ("train molecules --data SDF --out x --precision 16", "'16' is not one of"),
    ("train molecules --data SDF --out FILE", "this is a file; give a folder"),
]


@pytest.mark.parametrize(("command", "said"), ERRORS, ids=[c for c, _ in ERRORS])
def test_what_cannot_be_used_is_one_line_and_exit_code_2(
    command: str, said: str, sdf: Path, tiny_model_folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").write_text("x")
    (tmp_path / "a_folder").mkdir()
    names = {"MODEL": tiny_model_folder, "OTHER": tiny_model_folder, "SDF": sdf, "FILE": "a_file",
             "FOLDER": "a_folder"}  # fmt: skip
    result = run(*(names.get(word, word) for word in command.split()))
    assert result.exit_code == 2, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    assert said.replace("MODEL", str(tiny_model_folder)) in lines[0]
    assert result.stdout == ""
    assert {p.name for p in tmp_path.iterdir()} <= {"a_file", "a_folder", "cache"}


def test_a_damaged_model_is_named(tiny_model_folder: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(tiny_model_folder, broken)
    weights = bytearray((broken / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (broken / "model.safetensors").write_bytes(weights)
    result = run("sample", broken, "-o", tmp_path / "run")
    assert result.exit_code == 2 and "model.safetensors: altered" in result.stderr


def test_an_unexpected_error_keeps_its_traceback(
    tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*a: Any, **k: Any) -> Any:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("sciflow.model.Model.sample", broken)
    result = run("sample", tiny_model_folder)
    assert isinstance(result.exception, ZeroDivisionError)


def test_a_read_only_place_is_an_error_of_one_line(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*a: Any, **k: Any) -> Any:
        raise OSError(28, "No space left on device", str(tmp_path / "samples.csv"))

    monkeypatch.setattr("sciflow.reports.run.write_csv", full)
    result = run("sample", tiny_model_folder, "-n", 1, "-o", tmp_path / "run")
    assert result.exit_code == 2
    assert (
        result.stderr.splitlines()[-1] == f"error: {tmp_path}/samples.csv: No space left on device"
    )


def test_reads_back_what_the_files_say(tiny_model_folder: Path, tmp_path: Path) -> None:
    """Only sound molecules are in the files, each with its number."""
    run("sample", tiny_model_folder, "-n", 12, "-o", tmp_path, "--seed", 5)
    valid = [row["sample"] for row in rows_of(tmp_path / "samples.csv") if row["valid"] == "1"]
    text = (tmp_path / "molecules.sdf").read_text()
    assert text.count("$$$$") == len(valid)
    if valid:
        found = read_molecules(tmp_path / "molecules.sdf")
        assert [str(int(m.properties["sample"])) for m in found] == valid
