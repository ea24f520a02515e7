"""Forecasts out: columns are the quantiles they are called after; what is written is read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from domains.timeseries.forecast import Forecast
from domains.timeseries.imputed import write_imputed
from domains.timeseries.plots import (
    MOST,
    plot_calibration,
    plot_forecast,
    plot_forecasts,
    plot_imputation,
    save_figure,
)
from domains.timeseries.samples import join_samples, read_forecasts, save_samples
from domains.timeseries.series import Series
from domains.timeseries.tables import Table, read_table
from domains.timeseries.writing import forecast_table, write_table
from sciflow.errors import InputError


def forecast(name: str = "a", channels: tuple[str, ...] = ("y",), freq: str = "h", steps: int = 3,
             scale: float = 1.0, zone: str | None = None) -> Forecast:  # fmt: skip
    """Sample s of step h and channel c is scale · (s + 1000 h + 10⁵ c), s = 0 … 100."""
    index = pd.date_range("2024-03-01", periods=steps, freq=freq, tz=zone)
    s, h, c = np.ogrid[:101, :steps, : len(channels)]
    return Forecast(name, channels, index, scale * (s + 1000.0 * h + 1e5 * c))


class Filled:
    """Gaps hold 0, 1, …, 100 in the samples, and 50 in between."""

    def __init__(self, series: Series):
        self.series = series
        s = np.arange(101.0)[:, None, None]
        self.samples = np.where(series.observed, series.values, s)

    def filled(self) -> Series:
        return self.series.replace(values=np.where(self.series.observed, self.series.values, 50.0))


def test_columns_are_the_quantiles_they_are_called_after() -> None:
    table = forecast_table([forecast(), forecast("b")], (50, 95, 80), (0.1,))
    assert list(table) == ["unique_id", "ds", "mean", "median", "lo-95", "lo-80", "lo-50", "hi-50",
                           "hi-80", "hi-95", "q0.1"]  # fmt: skip
    expected = {"mean": 50, "median": 50, "lo-95": 2.5, "lo-80": 10, "lo-50": 25, "hi-50": 75,
                "hi-80": 90, "hi-95": 97.5, "q0.1": 10}  # fmt: skip
    for step in range(3):
        row = table.iloc[3 + step]
        assert row["unique_id"] == "b" and row["ds"] == pd.Timestamp(
            "2024-03-01"
        ) + step * pd.Timedelta("1h")
        np.testing.assert_allclose(
            [row[k] - 1000 * step for k in expected], list(expected.values())
        )


def test_channels_are_rows() -> None:
    table = forecast_table([forecast(channels=("u", "v"))], (80,))
    assert table["channel"].tolist() == ["u", "v"] * 3
    np.testing.assert_allclose(table["median"], [50, 100050, 1050, 101050, 2050, 102050])


@pytest.mark.parametrize(
    ("levels", "quantiles", "said"),
    [((0,), (), "level 0"), ((100,), (), "level 100"), ((80,), (1.5,), "quantile 1.5")],
)
def test_levels_out_of_range(levels: Any, quantiles: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        forecast_table([forecast()], levels, quantiles)


@pytest.mark.parametrize("scale", [1e9 / 3, 1e-9 / 3])
@pytest.mark.parametrize("zone", [None, "UTC"])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_forecast_table_is_read_back(tmp_path: Path, kind: str, scale: float, zone: Any) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    f = forecast(scale=scale, zone=zone)
    path = write_table(forecast_table([f], (50, 80)), tmp_path / f"f.{kind}")
    (read,) = read_table(path, target_columns=["median"], covariates=()).series
    np.testing.assert_allclose(read.values, f.quantile(0.5), rtol=1e-9)
    assert list(read.index) == list(f.index)
    assert [p.name for p in tmp_path.iterdir()] == [f"f.{kind}"]


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_samples_are_read_back_bit_for_bit(tmp_path: Path, kind: str) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    forecasts = [
        forecast(f"s{i}", freq=q, scale=np.pi * 10.0**i) for i, q in enumerate(("h", "W-TUE", "MS"))
    ]
    for read, f in zip(read_forecasts(save_samples(forecasts, tmp_path / f"s.{kind}")), forecasts,
                       strict=True):  # fmt: skip
        assert read.series_name == f.series_name and list(read.index) == list(f.index)
        np.testing.assert_array_equal(read.samples, f.samples)


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_joined_parts_are_one_file_whatever_the_parts(tmp_path: Path, kind: str) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    # Columns of a wide table are series with channels of their own names.
    forecasts = [forecast(f"s{i}", ("u", f"v{i}"), scale=i + 0.1) for i in range(5)]
    parts = [
        save_samples(forecasts[a:b], tmp_path / f"{a}.npz") for a, b in ((0, 2), (2, 4), (4, 5))
    ]
    joined = join_samples(parts, tmp_path / f"all.{kind}")
    if kind == "npz":
        for read, f in zip(read_forecasts(joined), forecasts, strict=True):
            assert (read.series_name, read.channels) == (f.series_name, f.channels)
            np.testing.assert_array_equal(read.samples, f.samples)
        assert join_samples(parts, tmp_path / "again.npz").read_bytes() == joined.read_bytes()
    else:
        table = pd.read_parquet(joined)
        assert len(table) == 5 * 101 * 3 * 2
        np.testing.assert_array_equal(
            table["y"], np.concatenate([f.samples.ravel() for f in forecasts])
        )


@pytest.mark.parametrize(
    "header", ["lo-80,median,hi-80", "Model-lo-80,q0.5,Model-hi-80", "0.1,0.5,0.9"])  # fmt: skip
def test_quantiles_of_other_tools_become_samples(tmp_path: Path, header: str) -> None:
    path = tmp_path / "f.csv"
    path.write_text(f"unique_id,ds,{header}\na,2024-01-02,2,4,6\na,2024-01-01,1,2,3\n")
    (f,) = read_forecasts(path, samples=201)
    assert list(f.index) == list(pd.date_range("2024-01-01", periods=2))
    for q, (first, second) in {0.1: (1, 2), 0.5: (2, 4), 0.9: (3, 6)}.items():
        np.testing.assert_allclose(f.quantile(q).ravel(), [first, second], atol=0.02)
    # One level all along: the samples keep their order.
    assert (np.diff(f.samples, axis=0) > 0).all()


@pytest.mark.parametrize(
    ("text", "said"),
    [("unique_id,ds,x\na,2024-01-01,1\n", "no forecast: give columns"),
     ("unique_id,ds,median\na,2024-01-01,1\na,2024-01-01,1\n", "time stamp twice"),
     ("unique_id,ds,median\na,2024-01-01,\n", "missing values"),
     ("unique_id,when,median\na,2024-01-01,1\n", "no column of time stamps"),
     ("unique_id,ds,sample,y\na,2024-01-01,0,1\na,2024-01-02,0,1\na,2024-01-01,1,1\n",
      "3 rows are not 2 samples")],
)  # fmt: skip
def test_forecasts_that_cannot_be_read(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "f.csv").write_text(text)
    with pytest.raises(InputError, match=said):
        read_forecasts(tmp_path / "f.csv")
    (tmp_path / "f.npz").write_bytes(b"junk")
    with pytest.raises(InputError, match="not a file of sample paths"):
        read_forecasts(tmp_path / "f.npz")


def filled(tmp_path: Path, text: str, name: str = "t.csv", **options: Any) -> tuple[Table, str]:
    (tmp_path / name).write_text(text)
    table = read_table(tmp_path / name, trailing="missing", **options)
    out = write_imputed(table, [Filled(s) for s in table.series], tmp_path / "out.csv", (80,))
    return table, out.read_text()


def test_a_filled_long_table_keeps_every_observed_number_as_written(tmp_path: Path) -> None:
    text = (
        "unique_id,ds,y,note\nb,2024-01-01,1e-9,x\nb,2024-01-02,,y\n"
        "a,2024-01-03,0.30000000000000004,\na,2024-01-01,01.50,z\nc,2024-01-01,,kept\n"
    )
    _, written = filled(tmp_path, text)
    assert written == (
        "unique_id,ds,y,note,imputed,lo-80,hi-80\n"
        "b,2024-01-01,1e-9,x,0,,\nb,2024-01-02,50,y,1,10,90\n"
        "a,2024-01-01,01.50,z,0,,\na,2024-01-02,50,,1,10,90\na,2024-01-03,0.30000000000000004,,0,,\n"
        "c,2024-01-01,,kept,0,,\n"
    )


def test_a_filled_wide_table_keeps_separator_and_decimals(tmp_path: Path) -> None:
    text = "Datum;A;B\n01.03.2024;1,50;2\n03.03.2024;;4,25\n17.03.2024;5;6\n18.03.2024;5;6\n"
    _, written = filled(tmp_path, text, freq="D")
    lines = written.splitlines()
    assert lines[0] == "Datum;A;B;A-imputed;A-lo-80;A-hi-80;B-imputed;B-lo-80;B-hi-80"
    assert lines[1] == "01.03.2024;1,50;2;0;;;0;;"
    assert lines[2] == "02.03.2024;50;50;1;10;90;1;10;90"
    assert lines[3] == "03.03.2024;50;4,25;1;10;90;0;;"
    assert len(lines) == 19
    assert filled(tmp_path, text, freq="D", multivariate=True)[1] == written


def test_filled_parquet_has_numbers(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame({"ds": pd.date_range("2024-01-01", periods=3), "y": [0.1, np.nan, 0.3]})
    table = read_table(frame)
    path = write_imputed(table, [Filled(table.series[0])], tmp_path / "out.parquet", (80,))
    back = pd.read_parquet(path)
    assert back["y"].tolist() == [0.1, 50, 0.3] and back["imputed"].tolist() == [0, 1, 0]
    assert list(back["ds"]) == list(frame["ds"])
    np.testing.assert_allclose(back.loc[1, ["lo-80", "hi-80"]].astype(float), [10, 90])


def test_pictures(tmp_path: Path) -> None:
    """Lines are where they belong; the same picture twice is the same file."""
    history = Series("a", pd.Timestamp("2024-02-25"), "h", np.sin(np.arange(120.0)))
    f = forecast()
    truth = Series("a", f.index[0], "h", np.array([50.0, 1050, 2050]))
    figure = plot_forecast(f, history, truth)
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    np.testing.assert_allclose(lines["median"], [50, 1050, 2050])
    np.testing.assert_allclose(lines["truth"], truth.values[:, 0])
    np.testing.assert_allclose(lines["history"], history.values[-60:, 0])
    for kind in ("png", "svg"):
        first = save_figure(figure, tmp_path / f"one.{kind}").read_bytes()
        again = save_figure(plot_forecast(f, history, truth), tmp_path / f"two.{kind}").read_bytes()
        assert first == again and len(first) > 5000
    with pytest.raises(InputError, match="ending"):
        save_figure(figure, tmp_path / "one.jpeg")
    many = plot_forecasts([forecast(f"s{i}", ("u", "v")) for i in range(9)])
    assert sum(bool(ax.lines) for ax in many.axes) == MOST
    gaps = history.replace(
        values=np.where(np.arange(120)[:, None] % 50 < 3, np.nan, history.values)
    )
    lines = {x.get_label(): x.get_ydata() for x in plot_imputation(Filled(gaps)).axes[0].lines}
    np.testing.assert_array_equal(np.isnan(lines["observed"]), ~gaps.observed[:, 0])
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(lines["filled in"]))[:8],
                                  [0, 1, 2, 3, 49, 50, 51, 52])  # fmt: skip


def test_calibration_shows_coverage_less_the_level() -> None:
    """Truths at the quantiles .005, .015, … of the forecast are covered as often as promised."""
    n = 100
    forecasts = [forecast(f"s{i}", steps=1) for i in range(n)]
    truths = [
        Series("s", f.index[0], "h", np.array([100 * (i + 0.5) / n]))
        for i, f in enumerate(forecasts)
    ]
    (ax,) = plot_calibration(forecasts, truths).axes
    line = next(x for x in ax.lines if x.get_label() == "100 values")
    assert np.abs(line.get_ydata()).max() < 1.01
    narrow = [Forecast(f.series_name, f.channels, f.index, 25 + f.samples / 2) for f in forecasts]
    (ax,) = plot_calibration(narrow, truths).axes
    line = next(x for x in ax.lines if x.get_label() == "100 values")
    np.testing.assert_allclose(line.get_ydata(), -line.get_xdata() / 2, atol=1.01)
