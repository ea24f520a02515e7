"""Long runs in parts: each is on disk when it is done, and the same command goes on from there.

A part is a few series. What a run was asked for is kept beside its parts, data included (as a
hash), so that a run goes on only with what it began with and then ends in the same bytes as if it
had never stopped.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sciflow.cli.common import progress_bar, require_folder
from sciflow.errors import InputError
from sciflow.files import write_json
from sciflow.reports.summary import plain

if TYPE_CHECKING:
    from domains.timeseries.series import Series

__all__ = ["Parts", "digest"]

Told = Callable[[int, int], None]
Work = Callable[[range, Told], Iterable[tuple[str, Callable[[Path], Any]]]]


class Parts:
    """The parts of a run in ``out/parts``.

    Args:
        out: folder of the run.
        settings: what was asked for; what the result depends on.
        count: series in all.
        size: series a part.
        resume: go on with what is there.

    Raises:
        InputError: an unfinished run is there and shall not be gone on with, or is another one.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], count: int, size: int, resume: bool):
        require_folder(out)
        self.folder = out / "parts"
        self.count, self.size = count, size
        asked = plain({**settings, "series": count, "chunk": size})
        state = self.folder / "asked.json"
        # A run that stopped before its first part was done left nothing to go on with.
        if state.exists() and any(self.folder.glob("*.done")):
            if not resume:
                raise InputError("holds an unfinished run; add --resume to go on with it, or give "
                                 "another --out", out)  # fmt: skip
            self._compare(json.loads(state.read_text()), asked, out)
        else:
            write_json(state, asked)

    @staticmethod
    def _compare(begun: dict[str, Any], asked: dict[str, Any], out: Path) -> None:
        for key, value in asked.items():
            if begun.get(key) != value:
                was = "" if key in ("data", "base") else f": {begun.get(key)} then, {value} now"
                raise InputError(
                    f"the unfinished run here has other {key}{was}; give what it began with, or "
                    "another --out", out)  # fmt: skip

    def path(self, part: int, suffix: str) -> Path:
        """File of a part."""
        return self.folder / f"{part:06d}{suffix}"

    def paths(self, suffix: str) -> list[Path]:
        """Files of all parts."""
        return [self.path(k, suffix) for k in range(-(-self.count // self.size))]

    def run(self, work: Work, what: str) -> None:
        """Do what is not done.

        Args:
            work: given the numbers of the series of a part and whom to tell of progress, what to
                write: suffixes and writers, the last of which makes the part done.
            what: the work, in words.
        """
        parts = range(-(-self.count // self.size))
        done = 0
        try:
            with progress_bar(what, "series") as tell:
                for k in parts:
                    rows = range(k * self.size, min((k + 1) * self.size, self.count))
                    if not self.path(k, ".done").exists():
                        self._one(k, rows, work, tell)
                    done += len(rows)
                    tell(done, self.count)
        except KeyboardInterrupt:
            click.echo(f"interrupted: {done} of {self.count} series are done and kept; the same "
                       "command with --resume goes on", err=True)  # fmt: skip
            raise SystemExit(130) from None

    def _one(self, k: int, rows: range, work: Any, tell: Told) -> None:
        def inside(done: int, total: int) -> None:
            tell(rows.start + len(rows) * done // max(total, 1), self.count)

        for suffix, write in work(rows, inside):
            write(self.path(k, suffix))
        self.path(k, ".done").touch()

    def discard(self) -> None:
        """Remove the parts, once the run is complete."""
        shutil.rmtree(self.folder)


def digest(series: Sequence[Series]) -> str:
    """A hash of names, times and numbers."""
    total = hashlib.sha256()
    for s in series:
        total.update(repr((s.name, str(s.start), s.freq, s.channels, s.values.shape,
                           s.covariate_names)).encode())  # fmt: skip
        total.update(s.values.tobytes())
        if s.covariates is not None:
            total.update(s.covariates.tobytes())
    return total.hexdigest()
