"""The commands on a forecaster whose answers are known: what is written, scored and resumed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from domains.timeseries.forecast import Forecast, Imputation
from domains.timeseries.metrics import evaluate
from domains.timeseries.samples import read_forecasts, save_samples
from domains.timeseries.series import Series
from domains.timeseries.tables import read_table
from sciflow.cli import cli


class LastValue:
    """Path k of a series is its last value plus k − (S − 1)/2 plus the seed; gaps get its mean."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.stop_at: str | None = None

    def forecast(self, data: Sequence[Series], horizon: int, samples: int = 100, seed: int = 0, *,
                 method: str | None = None, steps: int | None = None, batch_size: int = 64,
                 progress: Callable[[int, int], None] | None = None) -> list[Forecast]:  # fmt: skip
        self._note(data, progress)
        k = np.arange(samples) - (samples - 1) / 2 + seed
        last = [s.values[np.isfinite(s.values).all(1)][-1] for s in data]
        return [
            Forecast(s.name, s.channels, s.future(horizon),
                     np.broadcast_to(y + k[:, None, None], (samples, horizon, len(y))).copy())
            for s, y in zip(data, last, strict=True)
        ]  # fmt: skip

    def impute(self, data: Sequence[Series], samples: int = 100, seed: int = 0,
               progress: Any = None, **_: Any) -> list[Imputation]:  # fmt: skip
        self._note(data, progress)
        k = np.arange(samples) - (samples - 1) / 2
        return [
            Imputation(s, np.where(s.observed, s.values,
                                   np.nanmean(s.values, 0) + k[:, None, None]))
            for s in data
        ]  # fmt: skip

    def refine(self, base: Sequence[Forecast], data: Sequence[Series], method: str = "langevin",
               samples: int = 100, seed: int = 0, progress: Any = None,
               **_: Any) -> list[Forecast]:  # fmt: skip
        self._note(data, progress)
        return [Forecast(f.series_name, f.channels, f.index, (f.samples + s.values[-1]) / 2)
                for f, s in zip(base, data, strict=True)]  # fmt: skip

    def synthesise(self, n: int, length: int, seed: int = 0) -> list[Series]:
        start = pd.Timestamp("2000-01-01")
        return [Series(f"s{i}", start, "h", np.full(length, float(i + seed))) for i in range(n)]

    def _note(self, data: Sequence[Series], progress: Any) -> None:
        names = [s.name for s in data]
        if self.stop_at in names:
            raise KeyboardInterrupt
        self.asked.append(names)
        progress(len(names), len(names))


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> LastValue:
    model = LastValue()
    module = ModuleType("domains.timeseries.forecaster")
    module.load_forecaster = lambda name="default": model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return model


def run(*args: Any, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, list(map(str, args)))
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result


def table(path: Path, series: int = 5, steps: int = 40) -> Path:
    """Series i is i + sin, hourly, with a gap at steps 7 and 8."""
    hours = pd.date_range("2024-01-01", periods=steps, freq="h")
    y = np.sin(np.arange(steps) / 4).round(6)
    frames = [
        pd.DataFrame({"unique_id": f"s{i}", "ds": hours, "y": i + y}).drop(index=[7, 8])
        for i in range(series)
    ]
    pd.concat(frames).to_csv(path, index=False)
    return path


def test_a_forecast_is_written_whole(model: LastValue, tmp_path: Path) -> None:
    data, out = table(tmp_path / "d.csv"), tmp_path / "run"
    said = run("forecast", data, "-H", 3, "-s", 101, "--levels", "80", "--quantiles", "0.25", "-o",
               out, "--plot", "png")  # fmt: skip
    assert "long table, 190 rows, 5 series, step h (inferred)" in said.stderr
    assert "10 steps without a row in 5 series" in said.stderr
    written = pd.read_csv(out / "forecast.csv", parse_dates=["ds"])
    assert list(written) == ["unique_id", "ds", "mean", "median", "lo-80", "hi-80", "q0.25"]
    series = read_table(data).series
    for i, s in enumerate(series):
        rows = written[3 * i : 3 * i + 3]
        assert set(rows["unique_id"]) == {s.name} and list(rows["ds"]) == list(s.future(3))
        last = s.values[-1, 0]
        expected = np.tile([last, last - 40, last + 40, last - 25], (3, 1))
        np.testing.assert_allclose(rows[["mean", "lo-80", "hi-80", "q0.25"]], expected)
    paths = read_forecasts(out / "samples.npz")
    assert [f.series_name for f in paths] == [s.name for s in series]
    assert paths[2].samples.shape == (101, 3, 1)
    settings = json.loads((out / "run.json").read_text())
    assert settings["files"] == ["forecast.csv", "samples.npz", "plot.png"]
    assert (settings["horizon"], settings["samples"], settings["seed"]) == (3, 101, 0)
    assert settings["table"]["freq"] == "h" and settings["versions"]["pandas"]
    assert sorted(p.name for p in out.iterdir()) == sorted([*settings["files"], "run.json"])


def test_holdout_is_scored_beside_seasonal_naive(model: LastValue, tmp_path: Path) -> None:
    data, out = table(tmp_path / "d.csv"), tmp_path / "run"
    said = run("forecast", data, "-H", 6, "-s", 20, "--holdout", "-o", out)
    whole = read_table(data).series
    histories, truths = [s.head(34) for s in whole], [s.tail(6) for s in whole]
    expected = evaluate(LastValue().forecast(histories, 6, 20, progress=lambda a, b: None), truths,
                        histories, 24, (50, 80, 95))  # fmt: skip
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["forecast"] == pytest.approx(expected)
    assert metrics["seasonal naive"]["crps"] != metrics["forecast"]["crps"]
    assert metrics["samples"] == 20 and metrics["season"] == 24
    assert "seasonal naive" in said.stderr and (out / "calibration.svg").exists()
    # The same scores from a history and the truth in files of their own.
    frame = pd.read_csv(data)
    early = frame["ds"] < str(whole[0].index[34])
    frame[early].to_csv(tmp_path / "past.csv", index=False)
    frame[~early].to_csv(tmp_path / "truth.csv", index=False)
    run("forecast", tmp_path / "past.csv", "-H", 6, "-s", 20, "--truth", tmp_path / "truth.csv",
        "--plot", "none", "-o", tmp_path / "two")  # fmt: skip
    assert json.loads((tmp_path / "two/metrics.json").read_text()) == metrics
    assert (tmp_path / "two/forecast.csv").read_bytes() == (out / "forecast.csv").read_bytes()


def test_the_columns_of_a_wide_table_are_forecast(model: LastValue, tmp_path: Path) -> None:
    data = tmp_path / "d.csv"
    data.write_text("date,A,B\n2024-01-01,1,5\n2024-01-02,2,6\n")
    run("forecast", data, "-H", 1, "-s", 5, "--plot", "none", "-o", tmp_path / "run")
    written = pd.read_csv(tmp_path / "run/forecast.csv")
    assert written[["unique_id", "ds", "median"]].values.tolist() == [
        ["A", "2024-01-03", 2], ["B", "2024-01-03", 6]]  # fmt: skip
    run("forecast", data, "-H", 1, "-s", 5, "--plot", "none", "-o", tmp_path / "two",
        "--multivariate")  # fmt: skip
    written = pd.read_csv(tmp_path / "two/forecast.csv")
    assert written[["unique_id", "channel", "median"]].values.tolist() == [
        ["d", "A", 2], ["d", "B", 6]]  # fmt: skip


def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(
    model: LastValue, tmp_path: Path
) -> None:
    data, out = table(tmp_path / "d.csv", 7), tmp_path / "run"
    command = ("forecast", data, "-H", 4, "--chunk", 2, "-s", 10, "--plot", "none", "--holdout")
    run(*command, "-o", tmp_path / "whole")
    assert model.asked == [["s0", "s1"], ["s2", "s3"], ["s4", "s5"], ["s6"]]
    model.asked.clear()
    model.stop_at = "s5"
    said = run(*command, "-o", out, code=130)
    assert "4 of 7 series are done and kept" in said.stderr and "--resume" in said.stderr
    assert not (out / "forecast.csv").exists()
    model.stop_at = None
    assert "unfinished run" in run(*command, "-o", out, code=2).stderr
    other = ("forecast", data, "-H", 5, "--chunk", 2, "-s", 10, "--holdout", "-o", out, "--resume")
    assert "horizon: 4 then, 5 now" in run(*other, code=2).stderr
    model.asked.clear()
    run(*command, "-o", out, "--resume")
    assert model.asked == [["s4", "s5"], ["s6"]]
    names = sorted(p.name for p in out.iterdir())
    assert names == sorted(p.name for p in (tmp_path / "whole").iterdir())
    for name in set(names) - {"run.json"}:
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_run_does_not_go_on_with_other_data(model: LastValue, tmp_path: Path) -> None:
    data = table(tmp_path / "d.csv", 3)
    model.stop_at = "s2"
    command = ("forecast", data, "-H", 2, "--chunk", 1, "-o", tmp_path / "run", "--plot", "none")
    run(*command, code=130)
    data.write_text(data.read_text().replace("s2,2024-01-01 00:00:00,2.0", "s2,2024-01-01,2.5"))
    assert "has other data" in run(*command, "--resume", code=2).stderr


def test_what_is_left_out_is_named_and_the_exit_code_is_one(
    model: LastValue, tmp_path: Path
) -> None:
    data = table(tmp_path / "d.csv", 2)
    with data.open("a") as f:
        f.write("short,2024-01-01 00:00:00,1\nshort,2024-01-01 01:00:00,1\nnone,2024-01-01,\n")
    said = run(
        "forecast", data, "-H", 3, "-o", tmp_path / "run", "--holdout", "--plot", "none", code=1
    )
    assert "series 'none': nothing was observed" in said.stderr
    assert "series 'short': 2 steps leave no value before the 3 held out" in said.stderr
    assert len(pd.read_csv(tmp_path / "run/forecast.csv")) == 6


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--truth", "{d}", "--holdout"], "not both"),
        (["--truth", "{d}"], "no value at a time that is forecast; those of series 's0'"),
        (["--levels", "120"], "level 120"),
        (["--freq", "D"], r"d.csv:3: series 's0'"),
        (["--future", "{d}"], "no covariates"),
        (["-o", "{d}"], "this is a file"),
    ],
)
def test_wrong_options_say_why(
    model: LastValue, tmp_path: Path, options: list[str], said: str
) -> None:
    data = table(tmp_path / "d.csv", 1)
    given = [o.format(d=data) for o in options]
    result = run("forecast", data, "-H", 3, "-o", tmp_path / "run", *given, code=2)
    assert said in result.stderr and not model.asked
    assert not (tmp_path / "run").exists()


def test_future_covariates_reach_the_model_or_are_missed(model: LastValue, tmp_path: Path) -> None:
    hours = pd.date_range("2024-01-01", periods=10, freq="h")
    frame = pd.DataFrame({"ds": hours, "y": np.arange(10.0), "temp": np.arange(10.0)})
    frame[:8].to_csv(tmp_path / "d.csv", index=False)
    frame[8:].drop(columns="y").to_csv(tmp_path / "f.csv", index=False)
    command = ("forecast", tmp_path / "d.csv", "--future", tmp_path / "f.csv", "--plot", "none")
    seen: list[Series] = []
    plain = model.forecast
    model.forecast = lambda data, *a, **k: seen.extend(data) or plain(data, *a, **k)  # type: ignore
    run(*command, "-H", 2, "-o", tmp_path / "run")
    assert seen[0].covariates is not None and seen[0].covariates[:, 0].tolist() == list(range(10))
    result = run(*command, "-H", 3, "-o", tmp_path / "other", code=2)
    assert "'temp' is known for 2 of the 3 steps" in result.stderr


def test_imputation_keeps_the_table_and_fills_its_gaps(model: LastValue, tmp_path: Path) -> None:
    data = tmp_path / "d.csv"
    data.write_text("date,A,B\n2024-01-01,1.50,2\n2024-01-02,,2\n2024-01-04,2.5,5\n")
    command = ("impute", data, "-s", 101, "--levels", "80", "--chunk", 1)
    run(*command, "-o", tmp_path / "run")
    assert (tmp_path / "run/imputed.csv").read_text() == (
        "date,A,B,A-imputed,A-lo-80,A-hi-80,B-imputed,B-lo-80,B-hi-80\n"
        "2024-01-01,1.50,2,0,,,0,,\n2024-01-02,2,2,1,-38,42,0,,\n"
        "2024-01-03,2,3,1,-38,42,1,-37,43\n2024-01-04,2.5,5,0,,,0,,\n"
    )
    with np.load(tmp_path / "run/samples.npz") as file:
        assert file["unique_id"].tolist() == ["A", "A", "B"] and file["samples"].shape == (101, 3)
        assert file["ds"].tolist()[:2] == ["2024-01-02T00:00:00", "2024-01-03T00:00:00"]
    assert json.loads((tmp_path / "run/run.json").read_text())["filled"] == 3
    model.stop_at = "B"
    run(*command, "-o", tmp_path / "again", code=130)
    model.stop_at = None
    run(*command, "-o", tmp_path / "again", "--resume")
    for name in ("imputed.csv", "samples.npz", "plot.svg"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    data.write_text("date,A\n2024-01-01,1\n2024-01-02,2\n")
    assert "nothing is missing" in run("impute", data, code=2).stderr


def test_refinement_of_anybodys_forecast(model: LastValue, tmp_path: Path) -> None:
    data = table(tmp_path / "d.csv", 2)
    whole = read_table(data).series
    base = tmp_path / "base.csv"
    stamps = [str(t) for t in whole[0].index[-3:]]
    base.write_text("unique_id,ds,lo-80,median,hi-80\n" + "".join(
        f"{s.name},{t},0,1,2\n" for s in whole for t in stamps))  # fmt: skip
    command = ("--data", data, "--truth", data, "-s", 100, "--levels", "80", "--plot", "none")
    run("refine", base, *command, "-o", tmp_path / "run")
    written = pd.read_csv(tmp_path / "run/forecast.csv")
    last = np.repeat([s.values[-4, 0] for s in whole], 3)
    np.testing.assert_allclose(written["median"], (1 + last) / 2, atol=1e-9)
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert {"forecast", "base", "seasonal naive"} <= set(metrics)
    # The paths of one run are the base of another.
    save_samples(read_forecasts(base), tmp_path / "base.npz")
    run("refine", tmp_path / "base.npz", *command, "-o", tmp_path / "two")
    for name in ("forecast.csv", "metrics.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    base.write_text("unique_id,ds,mean\ns0,2024-03-01,1\ns0,2024-03-02,1\n")
    late = run("refine", base, *command, "-o", tmp_path / "no", code=2)
    assert "does not follow the history" in late.stderr


def test_synthesis(model: LastValue, tmp_path: Path) -> None:
    run("synthesise", "-n", 3, "--length", 30, "--seed", 5, "--plot", "png", "-o", tmp_path / "run")
    series = read_table(tmp_path / "run/series.csv").series
    assert [s.values.tolist() for s in series] == [[[i + 5.0]] * 30 for i in range(3)]
    assert json.loads((tmp_path / "run/run.json").read_text())["task"] == "synthesise"


def test_memory_does_not_grow_with_the_number_of_series(model: LastValue, tmp_path: Path) -> None:
    """Of 40 series of a megabyte of paths each, only those of a part are in memory at a time."""
    import tracemalloc

    data = table(tmp_path / "d.csv", 40, 12)
    command = ("forecast", data, "-s", 1000, "--chunk", 2, "--levels", "80", "--plot", "none")
    run(*command, "-H", 1, "-o", tmp_path / "first")
    tracemalloc.start()
    run(*command, "-H", 128, "-o", tmp_path / "run")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    size = (tmp_path / "run/samples.npz").stat().st_size
    assert size > 40e6 and peak < 20e6, peak
