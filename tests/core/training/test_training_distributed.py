"""Two processes on the CPU (gloo) against one."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from two_processes import curve

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


def in_two_processes(out: Path, case: str) -> list[str]:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{HERE}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(HERE / "two_processes.py"), str(out), case],
        capture_output=True, text=True, timeout=240, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return sorted(done.stdout.splitlines())


def test_two_processes_give_the_loss_curve_of_one(tmp_path) -> None:
    curve(tmp_path / "one", devices=1)
    assert in_two_processes(tmp_path / "two", "curve") == ["main:10", "other:10"]
    curves = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        with (folder / "log.csv").open() as f:
            curves.append([{k: float(v) for k, v in r.items() if v} for r in csv.DictReader(f)])
    one, two = curves
    assert [r["step"] for r in two] == list(range(1, 11))
    assert [r["step"] for r in two if "validation" in r] == [5, 10]
    for a, b in zip(one, two, strict=True):
        for column in a.keys() - {"seconds"}:
            assert b[column] == pytest.approx(a[column], rel=1e-5), column


@pytest.mark.slow
def test_nan_in_one_process_stops_both_and_both_name_the_sample(tmp_path) -> None:
    told = in_two_processes(tmp_path, "nan")
    assert len(told) == 2
    assert all("the loss of field coords is nan for sample 11" in line for line in told)
