"""``sciflow tune-guidance``: the search, its table, what dropping samples costs, bad input."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from domains.molecules.adapter import Molecules
from sciflow.cli import cli
from sciflow.cli.tune import mean_error, parse_range, valid_share
from sciflow.denoisers import Denoiser
from sciflow.domain import OracleAnswer
from sciflow.errors import InputError
from sciflow.guidance import EpsilonScaling
from sciflow.guides import GUIDES, Guide
from sciflow.model import Model, Samples

SETTINGS: dict[str, Any] = {"scale": 1.0, "slope": 0.0, "loud": False}


def wrap(model: Model, settings: dict[str, Any], denoiser: Denoiser) -> Denoiser:
    return EpsilonScaling(denoiser, settings["scale"], settings["slope"])


@pytest.fixture(autouse=True)
def toy_guide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GUIDES, "toy", Guide("a test", SETTINGS, wrap))
    monkeypatch.setitem(GUIDES, "counted", Guide("a test", {"every": 1}, lambda m, s, d: d))


class Fake(Molecules):
    """Answers from a list; a record is sound where it is not "broken"."""

    answers: list[OracleAnswer]

    def verdicts(self, records: Sequence[Any]) -> list[str]:
        return ["broken" if r == "broken" else "" for r in records]

    def oracle(self, records: Sequence[Any], properties: Sequence[str], jobs: int = -1,
               progress: Any = None) -> list[OracleAnswer]:  # fmt: skip
        assert len(records) == len(self.answers)
        return self.answers


def drawn(records: list[Any], targets: dict[str, list[float]], answers: list[dict[str, float]],
          same_size: dict[str, float]) -> Samples:  # fmt: skip
    domain = Fake()
    domain.answers = [OracleAnswer(a, "" if a else "failed") for a in answers]
    return Samples(records, targets, {}, 1, 0.0, {}, domain, same_size=same_size)


def tune(model: Path, out: Path, *more: Any) -> Result:
    arguments = ["tune-guidance", model, "-n", 2, "--steps", 2, "--device", "cpu", "-o", out, *more]
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


def scored(monkeypatch: pytest.MonkeyPatch, score: Any, bare: float = 50.0) -> None:
    """The oracle's error replaced by a function of the guide's settings; ``bare`` without it."""

    def by_settings(samples: Samples, jobs: int = -1) -> float:
        if not samples.settings["guides"]:
            return bare
        (label,) = samples.settings["guides"]
        given = dict(part.split("=") for part in label.partition(":")[2].split(","))
        return float(score({k: float(given[k]) for k in ("scale", "slope")}))

    monkeypatch.setattr("sciflow.cli.tune.mean_error", by_settings)


def test_the_best_is_found_and_can_be_given_to_sample(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(monkeypatch, lambda s: abs(s["scale"] - 4.0) + 10 * abs(s["slope"] - 0.2))
    out = tmp_path / "tune.csv"
    result = tune(tiny_model_folder, out, "--guide", "toy:loud=no", "-t", "gap=5",
                  "--over", "scale=1:2:8", "--over", "slope=0.1:2:0.3", "--budget", 9)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stdout == "--guide toy:loud=no,scale=4,slope=0.2\n"
    assert "mae 0, without the guide 50; best of" in result.stderr
    rows = rows_of(out)
    errors = [float(row["mae"]) for row in rows]
    assert errors == sorted(errors) and errors[0] == 0 and 5 <= len(rows) <= 10
    # One more row: the model without the guide.
    assert [row["scale"] + row["slope"] for row in rows].count("") == 1
    assert list(rows[0]) == ["scale", "slope", "mae", "valid", "failure"]
    assert len({(row["scale"], row["slope"]) for row in rows}) == len(rows)
    assert all(0 <= float(row["valid"]) <= 1 for row in rows)


def test_the_share_of_valid_samples_needs_no_oracle(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Molecules, "oracle", lambda *a, **k: pytest.fail("asked"))

    # The sound share falls with the setting, so that the start is best and the largest last.
    def share(samples: Samples) -> float:
        (label,) = samples.settings["guides"] or ["scale=8"]
        return 1 / float(label.partition("scale=")[2].partition(",")[0])

    monkeypatch.setattr("sciflow.cli.tune.valid_share", share)
    out = tmp_path / "t.csv"
    result = tune(tiny_model_folder, out, "--guide", "toy", "--over", "scale=1:2:4",
                  "--metric", "valid")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stdout == "--guide toy:scale=1\n"
    assert [float(row["valid"]) for row in rows_of(out)] == [1, 0.5, 0.25, 0.125]
    assert list(rows_of(out)[0]) == ["scale", "valid", "failure"]


def test_a_failed_trial_is_a_row_with_its_reason(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(settings: dict[str, float]) -> float:
        if settings["scale"] > 3:
            raise InputError("too much")
        return 1.0

    scored(monkeypatch, score)
    out = tmp_path / "t.csv"
    result = tune(tiny_model_folder, out, "--guide", "toy", "-t", "gap=5", "--over", "scale=1:2:4")
    assert result.exit_code == 0 and "1 of 3 trials failed" in result.stderr
    last = rows_of(out)[-1]
    assert last["scale"] == "4.0" and last["mae"] == "" and "too much" in last["failure"]


def test_a_guide_that_does_not_help_is_told(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(monkeypatch, lambda s: s["scale"], bare=0.5)
    out = tmp_path / "t.csv"
    result = tune(tiny_model_folder, out, "--guide", "toy", "-t", "gap=5", "--over", "scale=1:2:4")
    assert result.exit_code == 0
    assert "no setting was better than leaving the guide out" in result.stderr
    assert rows_of(out)[0]["scale"] == "" and rows_of(out)[0]["mae"] == "0.5"


def test_whole_numbers_stay_whole_and_steps_are_refined(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(monkeypatch, lambda s: abs(s["scale"] - 3.0))
    out = tmp_path / "t.csv"
    result = tune(tiny_model_folder, out, "--guide", "toy", "-t", "gap=5", "--over",
                  "scale=1:4:8", "--refine", 1, "--budget", 9)  # fmt: skip
    assert result.exit_code == 0, result.output
    # 1, 4, 8, then by factors of 2: 2, 0.5 and so on.
    assert {"1.0", "2.0", "4.0", "8.0"} <= {row["scale"] for row in rows_of(out)}
    result = tune(tiny_model_folder, out, "--guide", "counted", "--metric", "valid", "--over",
                  "every=1:1.5:4", "--budget", 4)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert {row["every"] for row in rows_of(out) if row["every"]} <= {"1", "1.0", "2", "3", "4"}


def test_an_interruption_leaves_the_trials_that_were_done(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(settings: dict[str, float]) -> float:
        if settings["scale"] > 3:
            raise KeyboardInterrupt
        return settings["scale"]

    scored(monkeypatch, score)
    out = tmp_path / "t.csv"
    result = tune(tiny_model_folder, out, "--guide", "toy", "-t", "gap=5", "--over", "scale=1:2:4")
    assert result.exit_code == 130 and "interrupted" in result.stderr
    assert [row["scale"] for row in rows_of(out)] == ["1.0", "2.0", ""]
    assert result.stdout == "--guide toy:scale=1\n"


def test_dropping_a_sample_does_not_pay() -> None:
    targets = {"gap": [5.0, 5.0, 5.0, 5.0]}
    good = {"gap": 5.5}
    all_kept = drawn(["a", "b", "c", "d"], targets, [good] * 4, {"gap": 2.0})
    assert mean_error(all_kept) == pytest.approx(0.5)
    # One never came, one is not sound, and the oracle fails for one: each counts 2.
    lost = drawn([None, "broken", "c", "d"], targets, [{}, good], {"gap": 2.0})
    assert mean_error(lost) == pytest.approx((0.5 + 3 * 2.0) / 4)
    assert valid_share(all_kept) == 1 and valid_share(lost) == 0.5
    with pytest.raises(InputError, match="--metric valid"):
        mean_error(drawn([None], {"gap": [5.0]}, [], {"gap": math.nan}))


def test_several_properties_count_in_units_of_their_own_spread() -> None:
    answers = [{"gap": 6.0, "dipole": 1.2}, {"gap": 6.0, "dipole": 1.2}]
    samples = drawn(["a", "b"], {"gap": [5.0, 5.0], "dipole": [1.0, 1.0]}, answers,
                    {"gap": 2.0, "dipole": 0.1})  # fmt: skip
    assert mean_error(samples) == pytest.approx((1 / 2.0 + 0.2 / 0.1) / 2)


def test_a_range_is_read() -> None:
    assert parse_range(" mu = 0.25:2:8 ") == ("mu", (0.25, 2.0, 8.0))


@pytest.mark.parametrize("text", ["mu", "mu=1", "mu=1:2", "mu=1:2:3:4", "=1:2:3", "mu=a:2:3",
                                  "mu=1:1:3", "mu=4:2:3", "mu=0:2:3", "mu=nan:2:3",
                                  "mu=1:2:inf"])  # fmt: skip
def test_another_range_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--over"):
        parse_range(text)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--guide", "toi", "--over", "scale=1:2:4"], "unknown guide 'toi'"),
        (["--guide", "toy", "--over", "mu=1:2:4"], "guide toy has no setting 'mu'"),
        (["--guide", "toy", "--over", "loud=1:2:4"], "loud is not a number"),
        (["--guide", "toy:scale=1", "--over", "scale=1:2:4"], "both fixed"),
        (["--guide", "toy", "--over", "scale=1:2:4", "--over", "scale=1:2:8"], "given once"),
        (["--guide", "toy", "--over", "scale=1:2:4", "-t", "mass=1"], "no property 'mass'"),
        (["--guide", "toy", "--over", "scale=1:2:4", "--device", "abacus"], "cannot be used"),
        (["--guide", "toy", "--over", "scale=1:2"], "START:FACTOR:LARGEST"),
    ],
)
def test_bad_input_is_one_line(
    tiny_model_folder: Path, tmp_path: Path, more: list[str], message: str
) -> None:
    out = tmp_path / "t.csv"
    result = tune(tiny_model_folder, out, "--metric", "valid", *more)
    assert result.exit_code == 2 and not out.exists()
    assert message in result.stderr and result.stderr.startswith("error: ")
    assert "Traceback" not in result.output


def test_an_error_needs_a_target(tiny_model_folder: Path, tmp_path: Path) -> None:
    result = tune(tiny_model_folder, tmp_path / "t.csv", "--guide", "toy", "--over", "scale=1:2:4")
    assert result.exit_code == 2 and "give --target" in result.stderr


def test_a_folder_is_no_table(tiny_model_folder: Path, tmp_path: Path) -> None:
    result = tune(tiny_model_folder, tmp_path, "--guide", "toy", "--over", "scale=1:2:4",
                  "--metric", "valid")  # fmt: skip
    assert result.exit_code == 2 and "give a file" in result.stderr
