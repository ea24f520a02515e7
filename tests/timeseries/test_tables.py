"""Tables in: what is written is what is read, bit for bit; what is wrong is named with its line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domains.timeseries.future import require_future
from domains.timeseries.series import Series
from domains.timeseries.tables import read_table
from sciflow.errors import InputError

LONG = (
    "unique_id,ds,y\na,2024-01-01,1\na,2024-01-02,2\na,2024-01-04,4\n"
    "b,2024-01-02,5\nb,2024-01-03,6\n"
)
DAYS = "ds,y\n2024-01-01,1\n2024-01-02,2\n2024-01-03,3\n"
HOURS = "ds,y\n2024-01-01 00:00,1\n2024-01-01 01:00,2\n2024-01-01 02:00,3\n"


@pytest.fixture
def table(tmp_path: Path) -> Any:
    def read(content: str | bytes, name: str = "t.csv", **options: Any) -> Any:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_table(path, **options)

    return read


def values(series: Series) -> list[float]:
    return series.values[:, 0].tolist()


def same(a: Any, b: Any) -> bool:
    return bool(np.array_equal(np.asarray(a, float), np.asarray(b, float), equal_nan=True))


finite = st.floats(allow_nan=False, allow_infinity=False)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    columns=st.lists(st.lists(st.one_of(finite, st.none()), min_size=3, max_size=9), min_size=1,
                     max_size=4).filter(lambda c: all(any(v is not None for v in x) for x in c)),
    freq=st.sampled_from(["h", "15min", "D", "W-TUE", "MS", "QE-DEC"]),
    separator=st.sampled_from([",", ";", "\t"]),
    packed=st.booleans(), shuffle=st.randoms(use_true_random=False),
)  # fmt: skip
def test_long_csv_round_trip(table: Any, columns: Any, freq: str, separator: str, packed: bool,
                             shuffle: Any) -> None:  # fmt: skip
    """Any float64 in any order of rows, through a file and back, bit for bit."""
    rows = [
        (f"s{i}", t, v)
        for i, column in enumerate(columns)
        for t, v in zip(
            pd.date_range("2020-01-03", periods=len(column), freq=freq), column, strict=True
        )
    ]
    shuffle.shuffle(rows)
    written = [("unique_id", "ds", "y")]
    written += [(a, str(t), "" if v is None else repr(v)) for a, t, v in rows]
    text = "".join(separator.join(row) + "\n" for row in written)
    data = gzip.compress(text.encode()) if packed else text.encode()
    read = table(data, "t.csv.gz" if packed else "t.csv")
    assert read.report.freq == freq and read.report.layout == "long"
    assert sorted(s.name for s in read.series) == [f"s{i}" for i in range(len(columns))]
    for s in read.series:
        column = [np.nan if v is None else v for v in columns[int(s.name[1:])]]
        assert np.asarray(column).tobytes() == s.values[:, 0].tobytes() or same(column, values(s))
        assert s.start == pd.date_range("2020-01-03", periods=1, freq=freq)[0]


@pytest.mark.parametrize("scale", [1e9, 1e-9, 1.0])
def test_scales_are_exact(table: Any, scale: float) -> None:
    y = [scale * (1 + k / 3) for k in range(20)]
    index = pd.date_range("2024-01-01", periods=20, freq="h")
    frame = pd.DataFrame({"ds": index, "y": y})
    read = table(frame.to_csv(index=False))
    assert values(read.series[0]) == y == values(read_table(frame).series[0])


def test_parquet_and_frames_give_the_same_series(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    index = pd.date_range("2024-01-01", periods=30, freq="h", tz="Europe/Paris")
    frame = pd.DataFrame(
        {
            "unique_id": ["a"] * 20 + ["b"] * 10,
            "ds": index[[*range(20), *range(10)]],
            "y": np.linspace(0, 1, 30),
            "temp": np.arange(30),
        }
    )
    frame.loc[[3, 25], "y"] = np.nan
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_csv(tmp_path / "t.csv", index=False)
    tables = [read_table(x) for x in (tmp_path / "t.parquet", tmp_path / "t.csv", frame)]
    for read in tables:
        assert [s.name for s in read.series] == ["a", "b"]
        for got, wanted in zip(read.series, tables[0].series, strict=True):
            assert same(got.values, wanted.values) and same(got.covariates, wanted.covariates)
            assert got.start == index[0] and got.freq == "h" and str(got.start.tz) == "UTC"


def test_gaps_become_nan_and_are_reported(table: Any) -> None:
    read = table(LONG)
    assert [values(s) for s in read.series][1] == [5, 6]
    assert same(values(read.series[0]), [1, 2, np.nan, 4])
    assert read.report.gaps == {"a": 1} and read.report.missing == 1
    assert "1 steps without a row in 1 series" in str(read.report)
    assert read.rows[0].tolist() == [0, 1, -1, 2]


def test_layouts(table: Any) -> None:
    wide = "date,A,B\n2024-01-01,1,2\n2024-01-02,,3\n2024-01-03,4,5\n"
    read = table(wide)
    assert read.report.layout == "wide" and [s.name for s in read.series] == ["A", "B"]
    assert same(values(read.series[0]), [1, np.nan, 4])
    (both,) = table(wide, multivariate=True).series
    assert both.channels == ("A", "B") and both.values.shape == (3, 2) and both.name == "t"
    assert [s.name for s in table(wide, target_columns=["B"]).series] == ["t"]
    assert table(wide, target_columns=["B"]).series[0].covariate_names == ("A",)
    assert table(wide, target_columns=["B"], covariates=()).series[0].covariates is None
    named = table(
        "when;shop;sold\n2024-01-01;x;1\n2024-01-02;x;2\n2024-01-01;y;3\n2024-01-02;y;4\n"
    )
    assert [s.name for s in named.series] == ["x", "y"] and named.layout.id == "shop"
    two = "id,ds,u,v\na,2024-01-01,1,3\na,2024-01-02,2,4\n"
    assert [s.name for s in table(two, target_columns=["u", "v"]).series] == ["a/u", "a/v"]
    with pytest.raises(InputError, match="which column is the target"):
        table(two)
    with pytest.raises(InputError, match="no column 'z'; the columns are: id, ds, u, v"):
        table(two, target_columns=["z"])


def test_json_lines(table: Any) -> None:
    entry = {"start": "2024-01-01", "target": [1, None, "NaN", 4.5], "item_id": "x",
             "feat_dynamic_real": [[1, 2, 3, 4, 5, 6]], "feat_static_cat": [0]}  # fmt: skip
    text = (
        json.dumps(entry) + "\n" + json.dumps({"start": "2024-01-01", "target": [[1, 2], [3, 4]]})
    )
    read = table(text, "t.json", freq="H")
    x, other = read.series
    assert (
        same(values(x), [1, np.nan, np.nan, 4.5]) and x.freq == "h" and x.covariates.shape == (6, 1)
    )
    assert other.values.tolist() == [[1, 3], [2, 4]] and other.channels == ("y0", "y1")
    assert read.report.notes == ["not used: feat_static_cat"]
    with pytest.raises(InputError, match=r"t\.json:1: .*--freq h"):
        table(text, "t.json")
    with pytest.raises(InputError, match=r"t\.json:2: not a JSON object"):
        table(json.dumps(entry) + "\n{'a'", "t.json", freq="h")


def test_known_future(table: Any, tmp_path: Path) -> None:
    rows = "ds,y,temp\n2024-01-01,1,10\n2024-01-02,2,20\n2024-01-03,,30\n2024-01-04,,40\n"
    (s,) = table(rows).series
    assert values(s) == [1, 2] and s.covariates[:, 0].tolist() == [10, 20, 30, 40]
    (s,) = table(rows, trailing="missing").series
    assert len(s) == 4
    past = tmp_path / "past.csv"
    past.write_text("ds,y,temp\n2024-01-01,1,10\n2024-01-02,2,20\n")
    future = pd.DataFrame({"ds": ["2024-01-03", "2024-01-04"], "temp": [30.0, 40.0]})
    (s,) = read_table(past, future=future).series
    assert s.covariates[:, 0].tolist() == [10, 20, 30, 40]
    require_future([s], 2)
    with pytest.raises(InputError, match=r"'temp' is known for 2 of the 3 steps.*2024-01-05"):
        require_future([s], 3)
    with pytest.raises(InputError, match="missing here: temp"):
        read_table(past, future=future.rename(columns={"temp": "tmp"}))
    with pytest.raises(InputError, match=r"row 2: .*not on the grid of D"):
        read_table(past, future=future.assign(ds=["2024-01-03", "2024-01-04 07:00"]))


@pytest.mark.parametrize(
    ("content", "options", "where"),
    [
        (DAYS.replace("2024-01-03,3", "2024-01-01,3"), {},
         r"t\.csv:4: .*also on line 2.*--duplicates"),
        (DAYS.replace(",2\n", ",abc\n"), {}, r"t\.csv:3: y is 'abc', which is not a number"),
        (DAYS.replace(",2\n", ",1_000\n"), {}, r"t\.csv:3: y is '1_000'"),
        (DAYS.replace(",2\n", ',"1,000"\n'), {}, r"t\.csv:3: y is '1,000'.*thousands"),
        (DAYS.replace(",2\n", ",inf\n"), {}, r"t\.csv:3: y is 'inf', which is not finite"),
        (DAYS.replace(",2\n", ",1e999\n"), {}, r"t\.csv:3: y is '1e999', which is not finite"),
        (DAYS.replace(",2\n", "\n"), {}, r"t\.csv:3: 1 cells under 2 headings"),
        (DAYS.replace("2024-01-02", "02/01/2024"), {}, r"t\.csv:3: ds: '02/01/2024' is no time"),
        (DAYS.replace("2024-01-02", ""), {}, r"t\.csv:3: ds: no time stamp"),
        (DAYS.replace("2024-01-02", "2024-01-02 05:00"), {}, r"t\.csv:2: .*irregular"),
        ("ds,y\n2024-01-01,1\n", {}, r"t\.csv: one row .* give the frequency"),
        (DAYS.replace(",1", ",").replace(",2\n", ",NA\n").replace(",3", ",null"), {},
         r"t\.csv: no value was observed: y is empty"),
        (HOURS, {"freq": "D"}, r"t\.csv:3: .*not on the grid of the frequency D; .*say h"),
        (HOURS, {"freq": "min"}, r"t\.csv: the frequency 'min' is too fine"),
        ("a,b\n1,2\n3,4\n", {}, r"t\.csv: no column of time stamps among: a, b"),
        (b"", {}, r"t\.csv: the file is empty"),
        ("\n \n", {}, r"t\.csv: the file is empty"),
        ("ds,y\n", {}, r"t\.csv: a header and no rows"),
        ("<!DOCTYPE html>\n<html>404</html>", {}, r"t\.csv: an HTML or XML page"),
        (bytes(range(256)), {}, r"t\.csv:1: a binary file"),
        (b"PK\x03\x04rest", {}, r"t\.csv: an Excel or zip file"),
        (b"\x1f\x8bjunk", {}, r"t\.csv: not a whole gzip file"),
        (b"PAR1junk", {}, r"t\.csv: (not a whole parquet|parquet needs pyarrow)"),
        ("[1, 2]", {}, r"t\.csv: a JSON array"),
        ("ds y\n2024-01-01 1\n", {}, r"t\.csv:1: one column only, 'ds y'; separate"),
        ("ds,y,y\n2024-01-01,1,2\n", {}, r"t\.csv:1: columns of one name: y"),
        ("2024-01-01,1\n2024-01-02,2\n", {}, r"t\.csv:1: the first line looks like data"),
        ("unique_id,ds,y\na,2024-01-01,1\n,2024-01-02,2\n", {}, r"t\.csv:3: no name of the series"),
        ("ds,y\n01/02/2024,1\n02/02/2024,1\n", {}, r"t\.csv:2: ds: .*day or the month first"),
        ("ds,y\n2000-01-01 00:00:00,1\n2000-01-01 00:00:01,2\n2024-01-01 00:00:00,3\n",
         {"freq": "s"},         r"t\.csv: from .* steps of s, and only 3 rows"),
    ],
)  # fmt: skip
def test_bad_tables(table: Any, content: str | bytes, options: dict[str, Any], where: str) -> None:
    with pytest.raises(InputError, match=where) as e:
        table(content, **options)
    assert "\n" not in str(e.value)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(InputError, match="this is a folder"):
        read_table(tmp_path)


@pytest.mark.parametrize(
    ("content", "note"),
    [
        ("ds,y\n2024-01-03,3\n2024-01-01,1\n2024-01-02,2\n", "rows sorted by time"),
        (b"\xef\xbb\xbf" + DAYS.encode(), ""),
        (DAYS.encode("utf-16"), "text read as UTF-16"),
        ("# made by hand\n\n" + DAYS, "2 lines before the header skipped"),
        (DAYS.replace("\n", "\r\n"), ""),
        ("Datum;Größe\n01.01.2024;1,0\n02.01.2024;2,0\n13.01.2024;\n".encode("latin-1"),
         "decimal comma"),
        (DAYS.replace(",2\n", ",2\n\n,\n"), ""),
        (",ds,y\n0,2024-01-01,1\n1,2024-01-02,2\n2,2024-01-03,3\n", "counts the rows, left out"),
    ],
)  # fmt: skip
def test_odd_tables_are_read_and_what_was_done_is_said(table: Any, content: Any, note: str) -> None:
    read = table(content)
    assert values(read.series[0])[:2] == [1, 2] and note in str(read.report)


def test_blank_lines_do_not_shift_the_lines_of_errors(table: Any) -> None:
    with pytest.raises(InputError, match=r"t\.csv:6: y is 'x'"):
        table("# note\nds,y\n2024-01-01,1\n\n2024-01-02,2\n2024-01-03,x\n")
    with pytest.raises(InputError, match=r"t\.csv:5: y is 'x'"):
        table('ds,y,note\n2024-01-01,1,"two\nlines"\n2024-01-02,2,\n2024-01-03,x,\n')
    read = table(DAYS.replace(",2\n", ",2\n\n,\n"))
    assert read.report.dropped == ["2 blank lines (first: 4)"]


def test_repeated_stamps(table: Any) -> None:
    text = "ds,y\n2024-01-01,1\n2024-01-02,2\n2024-01-01,4\n2024-01-03,3\n2024-01-01,\n"
    mean = table(text, duplicates="mean")
    assert values(mean.series[0]) == [2.5, 2, 3] and not mean.exact
    last = table(text, duplicates="last")
    assert same(values(last.series[0]), [np.nan, 2, 3])
    assert "2 rows repeat a time stamp" in str(last.report)


def test_local_hours_of_a_long_night_are_refused_with_advice(table: Any) -> None:
    night = pd.date_range("2024-10-27", periods=8, freq="h", tz="Europe/Berlin")
    local = "".join(f"{t.tz_localize(None)},{i}\n" for i, t in enumerate(night))
    with pytest.raises(InputError, match=r"t\.csv:5: .*also on line 4.*offset from UTC"):
        table("ds,y\n" + local)
    zoned = "".join(f"{t.isoformat()},{i}\n" for i, t in enumerate(night))
    (s,) = table("ds,y\n" + zoned).series
    assert values(s) == list(range(8)) and s.start == night[0]


def test_resampling(table: Any) -> None:
    rows = "ds,y\n2024-01-01 00:05,1\n2024-01-01 00:50,3\n2024-01-01 01:10,5\n2024-01-01 03:00,7\n"
    with pytest.raises(InputError, match=r"irregular.*--resample h"):
        table(rows)
    (s,) = table(rows, resample="h").series
    assert same(values(s), [2, 5, np.nan, 7]) and s.freq == "h"
    (s,) = table(rows, resample="D").series
    assert values(s) == [4] and s.freq == "D"


def test_a_series_without_a_value_is_left_out_and_named(table: Any) -> None:
    read = table(LONG + "c,2024-01-01,\nc,2024-01-02,NaN\n")
    assert [s.name for s in read.series] == ["a", "b"]
    assert read.report.dropped == ["series 'c': nothing was observed"]


def test_huge_integers_are_the_nearest_float64(table: Any) -> None:
    read = table("unique_id,ds,y\n9007199254740993,2024-01-01,9007199254740993\n"
                 "9007199254740993,2024-01-02,123456789012345678901234567890\n")  # fmt: skip
    assert read.series[0].name == "9007199254740993"
    assert values(read.series[0]) == [9007199254740992.0, float(123456789012345678901234567890)]
