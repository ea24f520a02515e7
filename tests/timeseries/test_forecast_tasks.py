"""Tasks: what may be learned ends before what is asked, and downloads are what they should be."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import json
import tarfile
import threading
import zipfile
from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest

from domains.timeseries.datasets import TASKS, read_series
from domains.timeseries.downloads import DOWNLOADS, Download
from domains.timeseries.series import Series
from domains.timeseries.task import ForecastTask, rolling_task
from sciflow.data import shared_data
from sciflow.errors import InputError

needs_data = pytest.mark.skipif(shared_data() is None, reason="no shared data on this machine")
LOCAL = [name for name in TASKS if name not in DOWNLOADS]
# Series, test windows a series, horizon, context.
PROTOCOLS = {
    "exchange_rate_nips": (8, 5, 30, 360),
    "m4_hourly": (414, 1, 48, 336),
    "m4_weekly": (359, 1, 13, 104),
    "ETTh1": (7, 7, 24, 336),
    "beijing_pm25": (12, 7, 48, 312),
    "gefcom_solar": (1, 7, 24, 336),
    "weather_jena": (21, 20, 48, 432),
    "los_loop": (207, 7, 12, 576),
    "epf": (4, 7, 24, 336),
    "ili": (7, 7, 24, 156),
    "stock": (6, 7, 24, 120),
}


@cache
def task(name: str) -> ForecastTask:
    return TASKS[name]()


@needs_data
@pytest.mark.parametrize("name", LOCAL)
def test_protocol(name):
    t, (series, windows, horizon, context) = task(name), PROTOCOLS[name]
    assert (len(t.series), len(t.windows)) == (series, series * windows)
    assert (t.horizon, t.context) == (horizon, context)
    assert all(truth.values.shape == (horizon, 1) for _, truth in t.windows)


@needs_data
@pytest.mark.parametrize("name", LOCAL)
def test_nothing_of_the_test_is_in_training(name):
    t = task(name)
    length = {s.name: len(s) for s in t.series}
    seen = {s.name: s.values for s in t.series}
    step = pd.tseries.frequencies.to_offset(t.series[0].freq)
    for history, truth in t.windows:
        assert length[history.name] <= len(history)
        np.testing.assert_array_equal(seen[history.name], history.values[: length[history.name]])
        assert truth.start == history.start + len(history) * step
        if history.covariates is not None:
            ahead = t.horizon if t.known_future else 0
            assert len(history.covariates) == len(history) + ahead
    assert all(s.covariates is None or len(s.covariates) == len(s) for s in t.series)


@needs_data
@pytest.mark.parametrize("name", LOCAL)
def test_validation_is_made_of_training_data_behind_what_is_fitted(name):
    t = task(name)
    whole = {s.name: s.values for s in t.series}
    fitted = {s.name: s.values for s in t.training_series(before_validation=True)}
    windows = t.validation_windows()
    assert len(windows) == t.validation * len(t.series)
    for history, truth in windows:
        joined = np.concatenate((history.values, truth.values))
        np.testing.assert_array_equal(joined, whole[history.name][: len(joined)])
        assert len(fitted[history.name]) <= len(history)
    last = [h for h, _ in t.validation_windows(1)]
    assert [len(h) for h in last] == [len(s) - t.horizon for s in t.series]
    with pytest.raises(InputError, match="validation windows"):
        t.validation_windows(t.validation + 1)


@needs_data
def test_the_protocols_of_the_literature_to_the_row():
    lengths = [len(h) for h, _ in task("exchange_rate_nips").windows[::8]]
    assert lengths == [6071, 6101, 6131, 6161, 6191]
    assert {len(s) for s in task("m4_hourly").series} == {700, 960}
    assert {len(s) for s in task("ETTh1").series} == {14232}
    assert len(task("ETTh1").windows[-1][0]) + 24 == 14400


@needs_data
def test_sentinels_and_gaps_are_nan():
    weather = read_series("weather_jena2020")
    t = task("weather_jena")
    sentinels = sum(
        int((s.values[: len(u)] == -9999).sum()) for s, u in zip(weather, t.series, strict=True)
    )
    assert sentinels == sum(int(np.isnan(s.values).sum()) for s in t.series) > 0
    gaps = np.mean([np.isnan(s.values).mean() for s in task("beijing_pm25").series])
    assert 0.01 < gaps < 0.03


@needs_data
def test_joint_view_holds_the_same_values_side_by_side():
    t = task("ETTh1")
    joint = t.joint()
    assert joint.series[0].channels == ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")
    assert len(joint.windows) == 7
    for j, (history, truth) in enumerate(joint.windows):
        for c in range(7):
            np.testing.assert_array_equal(history.values[:, [c]], t.windows[7 * j + c][0].values)
            np.testing.assert_array_equal(truth.values[:, [c]], t.windows[7 * j + c][1].values)
    with pytest.raises(InputError, match="do not share"):
        task("m4_hourly").joint()
    with_covariates = task("beijing_pm25").subset(2).joint().series[0]
    assert with_covariates.covariates.shape == (34728, 20)


@needs_data
def test_subset_keeps_whole_series():
    few = task("m4_hourly").subset(10)
    assert len(few.series) == len(few.windows) == 10
    assert {h.name for h, _ in few.windows} == {s.name for s in few.series}


def test_known_future_covariates_reach_over_the_horizon_and_not_further():
    s = Series("a", pd.Timestamp("2020-01-01"), "h", np.arange(100.0),
               covariates=np.arange(100.0)[:, None], covariate_names=("x",))  # fmt: skip
    t = rolling_task("t", [s], horizon=10, context=20, windows=3, known_future=True)
    assert [len(h.covariates) for h, _ in t.windows] == [80, 90, 100]
    assert len(t.series[0].covariates) == 70


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.npz"):
        read_series("nothing", tmp_path)
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(InputError, match="not a prepared data set"):
        read_series("broken", tmp_path)


# --- downloads -------------------------------------------------------------------------------


class Server:
    """Files of a dictionary over HTTP on this machine."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        files = self.files

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                body = files.get(self.path.strip("/"))
                self.send_response(404 if body is None else 200)
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def publish(self, name: str, body: bytes) -> str:
        self.files[name] = body
        return f"http://127.0.0.1:{self.http.server_address[1]}/{name}"


@pytest.fixture
def server():
    s = Server()
    yield s
    s.http.shutdown()
    s.http.server_close()


def tarball(parts: dict[str, list[dict]], packed: bool) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for part, rows in parts.items():
            body = "\n".join(json.dumps(r) for r in rows).encode()
            body = gzip.compress(body) if packed else body
            names = [f"set/{part}/data.json" + (".gz" if packed else ""), f"set/{part}/._data.json"]
            for name, content in zip(names, (body, b"\0"), strict=True):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def zipped(name: str, text: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        z.writestr(name, text)
        z.writestr(f"__MACOSX/._{name}", "\0")
    return out.getvalue()


@pytest.mark.parametrize("packed", [False, True])
def test_gluonts_archive_with_rolling_windows(server, tmp_path, packed):
    y = np.arange(60.0).reshape(2, 30) % 7
    row = {"start": "2006-01-01 00:00:00", "feat_static_cat": [0]}
    # The training rows hold the first test window, as those of wiki2000 do.
    parts = {
        "train": [row | {"target": v[:24].tolist()} for v in y],
        "test": [row | {"target": v[: 24 + 3 * k].tolist()} for k in range(3) for v in y],
    }
    url = server.publish("roll.tar.gz", tarball(parts, packed))
    t = Download(url, 2, 3, 3, 10).task("roll", tmp_path)
    assert [len(s) for s in t.series] == [21, 21]
    assert [len(h) for h, _ in t.windows] == [21, 21, 24, 24, 27, 27]
    np.testing.assert_array_equal(t.windows[3][1].values[:, 0], y[1, 24:27])
    assert t.windows[3][1].start == pd.Timestamp("2006-01-02 00:00:00")
    assert t.windows[3][0].name == t.series[1].name
    with pytest.raises(InputError, match="2 series and 6 test windows found; roll has 3 and 9"):
        Download(url, 3, 3, 3, 10).task("roll", tmp_path)


def test_monash_archive(server, tmp_path):
    text = (
        "# comment\n@relation x\n@attribute series_name string\n@attribute city string\n"
        "@attribute start_timestamp date\n@frequency hourly\n@missing true\n@data\n"
        "T1:Beijing:2017-01-01 14-00-00:1,2,?,4,5,6\n"
        "T2:London:2017-01-01 14-00-00:1,1,1,1\n"
    )
    url = server.publish("x.zip", zipped("x.tsf", text))
    t = Download(url, 2, 1, 2, 4).task("x", tmp_path)
    np.testing.assert_array_equal(t.series[0].values[:, 0], [1, 2, np.nan, 4])
    assert t.windows[1][1].start == pd.Timestamp("2017-01-01 16:00")


def test_uber_counts_pick_ups_by_the_hour(server, tmp_path):
    text = ("Dispatching_base_num,Pickup_date,Affiliated_base_num,locationID\n"
            "B1,2015-05-17 09:47:00,B1,141\nB1,2015-05-17 11:05:00,B1,141\n"
            "B1,2015-05-17 09:01:00,B1,141\nB1,2015-05-17 12:59:59,B1,141\n")  # fmt: skip
    url = server.publish("uber.csv.zip", zipped("uber.csv", text))
    t = Download(url, 1, 1, 1, 2).task("uber", tmp_path)
    assert t.series[0].start == pd.Timestamp("2015-05-17 09:00")
    np.testing.assert_array_equal(t.series[0].values[:, 0], [2, 0, 1])
    np.testing.assert_array_equal(t.windows[0][1].values, [[1]])


def test_a_published_checksum_is_held_to(server, tmp_path):
    body = zipped("x.tsf", "@attribute series_name string\n@data\n")
    wrong = Download(server.publish("x.zip", body), 1, 1, 1, 1, sha256="0" * 64)
    with pytest.raises(InputError, match="nothing was kept"):
        wrong.task("x", tmp_path)
    assert not (tmp_path / "x.zip").exists()
    right = replace(wrong, sha256=hashlib.sha256(body).hexdigest())
    with pytest.raises(InputError, match="no series"):
        right.task("x", tmp_path)


def test_the_first_download_fixes_the_checksum_where_none_is_published(server, tmp_path):
    line = "@attribute series_name string\n@attribute start_timestamp date\n@data\n"
    row = line + "T1:2017-01-01 00-00-00:1,2,3\n"
    source = Download(server.publish("x.zip", zipped("x.tsf", row)), 1, 1, 1, 1)
    source.task("x", tmp_path)
    digest = hashlib.sha256(server.files["x.zip"]).hexdigest()
    assert (tmp_path / "checksums.txt").read_text() == f"{digest}  x.zip\n"
    (tmp_path / "x.zip").unlink()
    server.publish("x.zip", zipped("x.tsf", row.replace("1,2,3", "1,2,4")))
    with pytest.raises(InputError, match=digest):
        source.task("x", tmp_path)


def test_no_connection_says_where_the_file_belongs(tmp_path):
    source = Download("http://127.0.0.1:9/solar.tar.gz", 1, 1, 1, 1)
    with pytest.raises(InputError, match=r"put it at .*solar\.tar\.gz"):
        source.task("solar", tmp_path)


def test_garbage_is_refused_by_name(server, tmp_path):
    for name in ("a.tar.gz", "a.zip", "a.csv.zip"):
        source = Download(server.publish(name, b"<html>404</html>"), 1, 1, 1, 1)
        with pytest.raises(InputError, match="not the archive expected"):
            source.task("a", tmp_path)
