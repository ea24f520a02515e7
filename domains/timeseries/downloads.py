"""Sets of TSDiff and gluonts that are not in the shared data: fetched once, checked, then kept.

Three kinds of archive, as their authors publish them: gluonts' (JSON lines of train and test in a
tarball), Monash's (``.tsf`` in a zip; Godahewa et al., 2021) and the table of Uber's pick-ups
(FiveThirtyEight). They are read in place, never unpacked.

A download is held to its published SHA-256, else to that of the first download
(:mod:`sciflow.downloads`); the protocol's counts (series, windows) are checked in any case.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from domains.timeseries.series import Series
from domains.timeseries.task import ForecastTask, cut, rolling_task, window
from sciflow.data import cache_folder
from sciflow.downloads import Downloads
from sciflow.errors import InputError

__all__ = ["DOWNLOADS", "Download"]

_NIPS = "https://github.com/mbohlkeschneider/gluon-ts/raw/mv_release/datasets/"
_WIKI = ("https://github.com/awslabs/gluonts/raw/b89f203595183340651411a41eeb0ee60570a4d9/datasets/"
         "wiki2000_nips.tar.gz")  # fmt: skip
_KDD = "https://zenodo.org/record/4656756/files/kdd_cup_2018_dataset_without_missing_values.zip"
_KDD_SHA256 = "2ababea948fb1179eb3c5e0bed63611251278f5e8dca30dd8e8d658652720b01"
_UBER = ("https://raw.githubusercontent.com/fivethirtyeight/uber-tlc-foil-response/master/"
         "uber-trip-data/uber-raw-data-janjune-15.csv.zip")  # fmt: skip
_ARCHIVE_ERRORS = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, EOFError, KeyError,
                   ValueError)  # fmt: skip


@dataclass(frozen=True)
class Download:
    """Where a set is published, and its protocol.

    Attributes:
        url: of the archive.
        series: how many there must be.
        windows: test windows a series.
        horizon: steps of a forecast.
        context: TSDiff's, or a fortnight of hours.
        lags: TSDiff's.
        freq: pandas' name of the step.
        sha256: as published, if it was.
    """

    url: str
    series: int
    windows: int
    horizon: int
    context: int
    lags: tuple[int, ...] = ()
    freq: str = "h"
    sha256: str = ""

    def task(self, name: str, folder: str | Path | None = None) -> ForecastTask:
        """Fetch, check and read.

        Args:
            name: of the task.
            folder: keeps the archive; default the cache.

        Raises:
            InputError: no connection, a wrong checksum, a broken archive or another protocol.
        """
        home = Path(folder) if folder is not None else cache_folder() / "timeseries"
        path = Downloads(home).fetch(self.url, self.url.rsplit("/", 1)[-1], self.sha256)
        try:
            if path.name.endswith(".tar.gz"):
                task = self._rolled(name, path)
            else:
                read = _uber if path.name.endswith(".csv.zip") else _tsf
                full = read(path, self.freq)
                task = rolling_task(name, full, horizon=self.horizon, context=self.context,
                                    lags=self.lags)  # fmt: skip
        except _ARCHIVE_ERRORS as error:
            raise InputError(f"not the archive expected ({error!r})", path) from error
        found = (len(task.series), len(task.windows))
        if found != (self.series, self.series * self.windows):
            raise InputError(f"{found[0]} series and {found[1]} test windows found; {name} has "
                             f"{self.series} and {self.series * self.windows}", path)  # fmt: skip
        return task

    def _rolled(self, name: str, path: Path) -> ForecastTask:
        """gluonts' archive: a test row is the history of one origin with its truth."""
        train, test = (list(_json_rows(path, part, self.freq)) for part in ("train", "test"))
        n = len(train)
        if len(test) % max(n, 1):
            raise InputError(f"{len(test)} test rows are no multiple of {n} series", path)
        # Rows go origin by origin; ids of rows repeat or are missing.
        test = [s.replace(name=f"T{i % n}") for i, s in enumerate(test)]
        windows = [window(s, len(s) - self.horizon, self.horizon, False) for s in test]
        # wiki2000 trains on 792 days and asks for its last 30 of them first: what is asked for is
        # left out of the training part.
        series = [
            cut(s, min(len(s), *(len(w[0]) for w in windows[i::n]))).replace(name=f"T{i}")
            for i, s in enumerate(train)
        ]
        return ForecastTask(name, series, windows, self.horizon, self.context, series[0].season,
                            self.lags, validation=self.windows)  # fmt: skip


_DAYS = (*range(24, 169, 24), 336, 504, 672)
_MONTHS = tuple(range(30, 361, 30))
DOWNLOADS: dict[str, Download] = {
    "solar_nips": Download(_NIPS + "solar_nips.tar.gz", 137, 7, 24, 336, _DAYS),
    "electricity_nips": Download(_NIPS + "electricity_nips.tar.gz", 370, 7, 24, 336, _DAYS),
    "traffic_nips": Download(_NIPS + "traffic_nips.tar.gz", 963, 7, 24, 336, _DAYS),
    "wiki2000_nips": Download(_WIKI, 2000, 5, 30, 360, _MONTHS, "D"),
    "taxi_30min": Download(_NIPS + "taxi_30min.tar.gz", 1214, 56, 24, 336, (), "30min"),
    "uber_tlc_hourly": Download(_UBER, 262, 1, 24, 336, _DAYS),
    "kdd_cup_2018": Download(_KDD, 270, 1, 48, 312, _DAYS, sha256=_KDD_SHA256),
}


def _json_rows(path: Path, part: str, freq: str) -> Iterator[Series]:
    """Every series of ``.../train/*.json[.gz]`` or ``.../test/*.json[.gz]`` in a tarball."""
    with tarfile.open(path, "r:gz") as tar:
        for member in tar:
            where = Path(member.name)
            wanted = member.isfile() and part in where.parts and not where.name.startswith("._")
            if not wanted or not where.name.endswith((".json", ".json.gz", ".jsonl")):
                continue
            raw = tar.extractfile(member)
            assert raw is not None
            lines = gzip.GzipFile(fileobj=raw) if where.suffix == ".gz" else raw
            for i, line in enumerate(lines):
                row: dict[str, Any] = json.loads(line)
                values = np.array(row["target"], np.float64)
                yield Series(str(row.get("item_id", i)), pd.Timestamp(row["start"]), freq, values)


def _tsf(path: Path, freq: str) -> list[Series]:
    """Monash's text: ``name:attribute:...:start:v,v,?,v`` after a line ``@data``."""
    attributes: list[str] = []
    result = []
    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".tsf"))
        with archive.open(name) as file:
            lines = iter(io.TextIOWrapper(file, "cp1252"))
            for line in lines:
                if line.startswith("@attribute"):
                    attributes.append(line.split()[1])
                elif line.startswith("@data"):
                    break
            for line in filter(str.strip, lines):
                *head, values = line.rstrip().split(":")
                told = dict(zip(attributes, head, strict=True))
                start = pd.to_datetime(told["start_timestamp"], format="%Y-%m-%d %H-%M-%S")
                numbers = [np.nan if v == "?" else float(v) for v in values.split(",")]
                result.append(Series(told["series_name"], start, freq, np.array(numbers)))
    return result


def _uber(path: Path, freq: str) -> list[Series]:
    """Pick-ups an hour at each taxi zone, from its first pick-up to its last."""
    columns = ["Pickup_date", "locationID"]
    with zipfile.ZipFile(path) as archive:
        # The zip also holds macOS's resource forks.
        name = next(n for n in archive.namelist()
                    if n.endswith(".csv") and not n.startswith("__MACOSX"))  # fmt: skip
        with archive.open(name) as file:
            table = pd.read_csv(file, usecols=columns, parse_dates=["Pickup_date"])
    result = []
    for zone, rows in table.groupby("locationID"):
        counts = rows.set_index("Pickup_date").resample(freq).size()
        result.append(Series(str(zone), counts.index[0], freq, counts.to_numpy(np.float64)))
    return result
