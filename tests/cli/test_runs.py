"""A run on disk: what is written, what is not, and the page, from samples made by hand."""

from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from domains.molecules.adapter import Molecules
from domains.molecules.io import read_molecules
from sciflow.domain import OracleAnswer
from sciflow.errors import InputError
from sciflow.files import write_atomically
from sciflow.model import Samples
from sciflow.reports.page import page
from sciflow.reports.plots import histogram, scatter, ticks
from sciflow.reports.run import load_run, save_run
from sciflow.reports.summary import plain

ORACLE_FAILS = "CC#N"


class WithOracle(Molecules):
    """An oracle of arithmetic: gap = atoms / 2, dipole = 1; it fails on acetonitrile."""

    def oracle(self, records: Any, properties: Any, jobs: int = -1,
               progress: Any = None) -> list[OracleAnswer]:  # fmt: skip
        answers = []
        for identity, record in zip(self.describe(records), records, strict=True):
            if identity["smiles"] == ORACLE_FAILS:
                answers.append(OracleAnswer({}, "no field: not converged", 0.1))
                continue
            values = {"gap": len(record) / 2, "dipole": 1.0}
            answers.append(OracleAnswer({k: values[k] for k in properties}, "", 0.1))
        return answers


@pytest.fixture(autouse=True)
def no_shared_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SCIFLOW_DATA", str(tmp_path / "none"))


@pytest.fixture
def samples() -> Samples:
    """Ten molecules from number 100 on: three-bonded hydrogens in 101, 103 not finite."""
    records: list[Any] = list(Molecules().examples(10))
    records = [m.replace(name="", properties={}) for m in records]
    wrong = records[1]
    records[1] = wrong.replace(bonds=np.where(wrong.bonds > 0, 3, 0).astype(np.int8))
    records[3] = None
    settings = {"model": "hand", "seed": 0, "first": 100, "n": 10,
                "targets": {"gap": "4", "dipole": "0.5..2"}, "sampler": {"steps": 50}}  # fmt: skip
    return Samples(
        records, {"gap": [4.0] * 10, "dipole": np.linspace(0.5, 2, 10).tolist()},
        {103: "not finite: step 7"}, 50, 2.0, settings, WithOracle(), 3.0, {"gap": 2.5},
    )  # fmt: skip


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


def test_broken_samples_are_rows_with_reasons_and_nowhere_else(
    samples: Samples, tmp_path: Path
) -> None:
    samples.save(tmp_path)
    rows = rows_of(tmp_path / "samples.csv")
    assert [row["sample"] for row in rows] == [str(100 + i) for i in range(10)]
    assert [row["sample"] for row in rows if row["valid"] == "0"] == ["101", "103"]
    assert (
        rows[1]["reason"].startswith("sanitisation: ") and rows[3]["reason"] == "not finite: step 7"
    )
    assert rows[1]["smiles"] == rows[1]["gap"] == rows[3]["formula"] == ""
    written = read_molecules(tmp_path / "molecules.sdf").molecules
    kept = [100, 102, 104, 105, 106, 107, 108, 109]
    assert [m.properties["sample"] for m in written] == kept
    assert len((tmp_path / "molecules.smi").read_text().splitlines()) == 8


def test_the_files_carry_targets_and_oracle_values(samples: Samples, tmp_path: Path) -> None:
    samples.save(tmp_path)
    rows = {row["sample"]: row for row in rows_of(tmp_path / "samples.csv")}
    for m in read_molecules(tmp_path / "molecules.sdf"):
        row = rows[str(int(m.properties["sample"]))]
        assert m.properties["target_gap"] == 4
        assert m.properties["target_dipole"] == pytest.approx(float(row["target_dipole"]), abs=1e-5)
        if row["smiles"] == ORACLE_FAILS:
            assert "gap" not in m.properties and row["oracle_failure"] == "no field: not converged"
        else:
            assert m.properties["gap"] == len(m) / 2 == float(row["gap"])


def test_metrics_are_what_one_computes_by_hand(samples: Samples, tmp_path: Path) -> None:
    samples.save(tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["samples"] == {"requested": 10, "valid": 8, "valid_fraction": 0.8,
                                  "dropped": {"sanitisation": 1, "not finite": 1}}  # fmt: skip
    sizes = [len(r) for i, r in enumerate(samples.records) if i not in (1, 3) and r is not None]
    smiles = Molecules().describe([r for i, r in enumerate(samples.records) if i not in (1, 3)])
    measured = [n for n, s in zip(sizes, smiles, strict=True) if s["smiles"] != ORACLE_FAILS]
    gap = metrics["targets"]["gap"]
    assert gap["mean_absolute_error"] == pytest.approx(np.mean([abs(n / 2 - 4) for n in measured]))
    assert gap["measured"] == len(measured) == 8 - metrics["oracle"]["failed"].get("no field", 0)
    assert gap["same_size_training_samples_error"] == 2.5
    dipole = metrics["targets"]["dipole"]
    assert dipole["inside_range"] == 1 and dipole["mean_distance_to_range"] == 0
    assert dipole["same_size_training_samples_error"] is None
    assert metrics["cost"]["cpu_seconds_per_valid"] == pytest.approx(3 / 8)
    assert metrics["evaluation"]["n_molecules"] == 9  # All finite ones, the broken one included.
    assert metrics["evaluation"]["validity"] == pytest.approx(8 / 9)


def test_not_asked_for_and_not_measured_are_empty_cells(samples: Samples, tmp_path: Path) -> None:
    samples.targets["dipole"][2] = math.nan
    samples.save(tmp_path, oracle=[])
    rows = rows_of(tmp_path / "samples.csv")
    assert rows[2]["target_dipole"] == "" and "gap" not in rows[0]
    assert json.loads((tmp_path / "metrics.json").read_text())["targets"] == {}


def test_no_valid_sample_is_a_run_too(samples: Samples, tmp_path: Path) -> None:
    samples.records[:] = [None] * 10
    samples.dropped.update({100 + i: "not finite: step 0" for i in range(10)})
    samples.save(tmp_path)
    assert (tmp_path / "molecules.sdf").read_text() == ""
    assert "No sample is valid" in (tmp_path / "report.html").read_text()
    assert load_run(tmp_path).dropped == {"not finite": 10}


def test_unknown_property_or_a_file_in_the_way(samples: Samples, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown property 'colour'; molecules has: gap"):
        samples.save(tmp_path / "run", oracle=["colour"])
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="this is a file"):
        save_run(samples, tmp_path / "file")


def test_samples_are_on_disk_before_the_oracle_runs(samples: Samples, tmp_path: Path) -> None:
    class Stops(WithOracle):
        def oracle(self, *a: Any, **k: Any) -> list[OracleAnswer]:
            raise KeyboardInterrupt

    object.__setattr__(samples, "domain", Stops())
    with pytest.raises(KeyboardInterrupt):
        samples.save(tmp_path)
    assert len(read_molecules(tmp_path / "molecules.sdf")) == 8
    assert len(rows_of(tmp_path / "samples.csv")) == 10
    with pytest.raises(InputError, match="finished"):
        load_run(tmp_path)


def test_the_page_is_the_same_when_rebuilt_from_the_files(samples: Samples, tmp_path: Path) -> None:
    samples.save(tmp_path)
    run = load_run(tmp_path)
    assert [r["sample"] for r in run.rows if r["valid"]] == [
        int(m.properties["sample"]) for m in run.records
    ]
    assert page(run) == (tmp_path / "report.html").read_text()


def test_an_altered_run_is_refused(samples: Samples, tmp_path: Path) -> None:
    samples.save(tmp_path)
    sdf = tmp_path / "molecules.sdf"
    sdf.write_text(sdf.read_text().split("$$$$\n", 1)[1])
    with pytest.raises(InputError, match=r"holds 7 records where samples\.csv counts 8"):
        load_run(tmp_path)
    write_atomically(tmp_path / "run.json", "{}")
    with pytest.raises(InputError, match="not the folder of a run"):
        load_run(tmp_path)


class Balance(HTMLParser):
    """Whether every element that opens closes, and which addresses the page would ask for."""

    VOID = {"meta", "br", "img", "input", "link", "hr"}  # noqa: RUF012
    SVG_VOID = {"line", "rect", "circle", "path", "ellipse", "polygon"}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.asked: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.asked += [v or "" for k, v in attrs if k in ("src", "href", "data", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.asked += [v or "" for k, v in attrs if k in ("src", "href", "data", "action")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag


def test_the_page_is_whole_and_asks_the_network_for_nothing(
    samples: Samples, tmp_path: Path
) -> None:
    text = (samples.save(tmp_path) / "report.html").read_text()
    parser = Balance()
    parser.feed(text)
    assert parser.open == [] and parser.asked == []
    for call in ("@import", "url(", "fetch(", "XMLHttpRequest", "WebSocket", "import("):
        assert call not in text
    assert set(re.findall(r"https?://[^\"'\s<]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert "10 molecules asked for gap = 4 eV and dipole 0.5 to 2 D" in text
    assert "8 of 10" in text and "not finite: step 7" in text and text.count('class="card"') == 8
    assert text.count('<svg class="plot"') == 3  # A point, and a range twice.


def test_names_cannot_break_the_page(samples: Samples, tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    samples.settings["model"] = evil
    samples.records[0] = samples.records[0].replace(name=evil)
    text = (samples.save(tmp_path) / "report.html").read_text()
    assert evil not in text and "alert(1)</script>" not in text


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 10, 5) == [0, 2, 4, 6, 8, 10]
    assert ticks(-0.13, 0.31, 5) == [-0.1, 0, 0.1, 0.2, 0.3]
    assert ticks(3, 3) == [3]


def test_every_value_is_in_the_histogram() -> None:
    values = [1.0, 2.0, 2.1, 2.2, 7.0]
    svg = histogram(values, 2, 3, "gap [eV]")
    assert sum(int(n) for n in re.findall(r"<title>(\d+):", svg)) == len(values)
    assert "NaN" not in histogram(values, 2, math.inf, "x") and "inf" not in histogram(
        values, -math.inf, 3, "x"
    )
    assert len(re.findall("<circle", scatter([(1, 2), (2, 2.5)], "x"))) == 2
    assert "nan" not in histogram([4.0], 4, 4, "one value") + scatter([(4, 4)], "one value")


def test_plain_data_has_no_nan() -> None:
    given = {"a": math.nan, "b": [1, np.float64(2.5), math.inf], "c": (True, None, "x"), 3: {}}
    assert plain(given) == {"a": None, "b": [1, 2.5, None], "c": [True, None, "x"], "3": {}}


def test_relaxed_samples(samples: Samples, tmp_path: Path) -> None:
    """MMFF94 structures fall by little to GFN2-xTB's minimum; what was unsound stays dropped."""
    relaxed = samples.relaxed(jobs=1)
    relaxed.save(tmp_path, oracle=[], report=False)
    rows = rows_of(tmp_path / "samples.csv")
    assert [row["valid"] for row in rows] == [str(int(i not in (1, 3))) for i in range(10)]
    for i, row in enumerate(rows):
        if row["valid"] == "0":
            assert row["relax_rmsd"] == ""
            continue
        assert 0 < float(row["relax_rmsd"]) < 0.5 and 0 < float(row["relax_drop"]) < 60
        before, after = samples.records[i], relaxed.records[i]
        assert not np.allclose(before.positions, after.positions)
        assert np.array_equal(before.bonds, after.bonds)
    assert json.loads((tmp_path / "run.json").read_text())["relaxed"] is True
    # Already there, a second relaxation finds nothing to do.
    again = relaxed.relaxed(jobs=1)
    assert np.nanmax(again.columns["relax_drop"]) < 0.05


def test_a_sample_that_falls_apart_in_relaxation_is_dropped(samples: Samples) -> None:
    records = list(samples.records)
    torn = records[2].positions.copy()
    torn[0] += 4.0
    records[2] = records[2].replace(positions=torn)
    relaxed = replace(samples, records=records).relaxed(jobs=1)
    assert relaxed.records[2] is None
    assert "relax" in relaxed.dropped[102]
