"""A run on disk: the field's own files, ``samples.csv``, ``metrics.json``, ``run.json``, the page.

Only sound samples reach the files of the field. A broken one (not finite, or refused by the
domain's rules) is a row of ``samples.csv`` with its reason, and is counted; nothing else of it is
written. Everything appears whole or not at all, and the samples are on disk before the oracle runs:
an interrupted oracle costs its numbers, not the samples.
"""

from __future__ import annotations

import csv
import json
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sciflow.domain import Domain, OracleAnswer, Progress, get_domain
from sciflow.errors import InputError
from sciflow.files import write_atomically, write_csv, write_json
from sciflow.reports.summary import kind, plain, summarise, versions

if TYPE_CHECKING:
    from sciflow.samples import Samples

__all__ = ["Run", "load_run", "save_run"]


@dataclass(frozen=True)
class Run:
    """The content of a run's folder.

    Attributes:
        domain: the adapter.
        settings: content of ``run.json``.
        rows: content of ``samples.csv``: one dictionary a sample, ``None`` where a cell is empty.
        metrics: content of ``metrics.json``.
        records: the sound samples, in the order of their rows.
    """

    domain: Domain
    settings: dict[str, Any]
    rows: list[dict[str, Any]]
    metrics: dict[str, Any] = field(default_factory=dict)
    records: list[Any] = field(default_factory=list)

    @property
    def dropped(self) -> dict[str, int]:
        """How many samples were dropped, by kind of reason."""
        return dict(Counter(kind(row["reason"]) for row in self.rows if not row["valid"]))


def save_run(
    samples: Samples,
    folder: Path,
    oracle: Sequence[str] | None = None,
    report: bool = True,
    progress: Progress | None = None,
    jobs: int = -1,
) -> Path:
    """Write a run; see :meth:`sciflow.model.Samples.save`.

    Raises:
        InputError: ``folder`` is a file, or a property that the domain does not know.
    """
    domain = samples.domain
    if folder.exists() and not folder.is_dir():
        raise InputError("this is a file; give a folder", folder)
    measured = list(dict.fromkeys(samples.targets if oracle is None else oracle))
    unknown = [name for name in measured if name not in domain.properties]
    if unknown:
        raise InputError(
            f"unknown property {unknown[0]!r}; {domain.name} has: {', '.join(domain.properties)}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    # A page of an earlier run must not stand beside the numbers of this one.
    (folder / "report.html").unlink(missing_ok=True)

    rows, sound = _rows(samples)
    _write(domain, folder, rows, sound)
    settings = {
        "domain": domain.name,
        "files": [],
        **plain(samples.settings),
        "command": shlex.join(sys.argv),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(domain.packages),
    }
    answers: list[OracleAnswer] = []
    if measured:
        write_json(folder / "run.json", settings)
        answers = domain.oracle(sound, measured, jobs, progress)
        for row, answer in zip((r for r in rows if r["valid"]), answers, strict=True):
            row.update({name: answer.values.get(name) for name in measured})
            row["oracle_failure"] = answer.failure
    settings["files"] = _write(domain, folder, rows, sound)
    write_json(folder / "run.json", settings)
    metrics = summarise(samples, rows, sound, measured, answers)
    write_json(folder / "metrics.json", plain(metrics))
    if report:
        from sciflow.reports.page import page

        # From the files, so that the page shows what they say and `sciflow report` gives it again.
        write_atomically(folder / "report.html", page(load_run(folder, domain)))
    return folder


def load_run(folder: str | Path, domain: Domain | None = None) -> Run:
    """Read back what :func:`save_run` wrote.

    Args:
        folder: of the run.
        domain: its adapter; default the one of that name.

    Raises:
        InputError: not the folder of a run, or one of its files cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError("no such folder; give one that `sciflow sample` wrote", folder)
    try:
        settings = json.loads((folder / "run.json").read_text())
        metrics = json.loads((folder / "metrics.json").read_text())
        with (folder / "samples.csv").open(newline="") as f:
            rows = [{k: _cell(k, v) for k, v in row.items()} for row in csv.DictReader(f)]
        domain = domain or get_domain(settings["domain"])
        main = settings["files"][0]
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror}); give a folder that `sciflow sample` finished",
            error.filename or folder,
        ) from error
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(f"not the folder of a run: {error!r}", folder) from error
    valid = sum(bool(row.get("valid")) for row in rows)
    records = domain.read(folder / main) if valid else []
    if len(records) != valid:
        raise InputError(
            f"holds {len(records)} records where samples.csv counts {valid}; one was altered",
            folder / main,
        )
    return Run(domain, settings, rows, metrics, records)


def _rows(samples: Samples) -> tuple[list[dict[str, Any]], list[Any]]:
    """A row for every sample, and the sound records."""
    domain = samples.domain
    kept = [(i, record) for i, record in enumerate(samples.records) if record is not None]
    verdicts = domain.verdicts([record for _, record in kept])
    identities = domain.describe([record for _, record in kept])
    known = {
        i: (why, identity) for (i, _), why, identity in zip(kept, verdicts, identities, strict=True)
    }
    columns = list(dict.fromkeys(key for identity in identities for key in identity))
    first = int(samples.settings.get("first", 0))
    rows, sound = [], []
    for i, record in enumerate(samples.records):
        why, identity = known.get(i, (samples.dropped.get(first + i, "dropped"), {}))
        row: dict[str, Any] = {"sample": first + i, "valid": not why, "reason": why}
        row |= {f"target_{name}": values[i] for name, values in samples.targets.items()}
        row |= {key: identity.get(key) for key in columns}
        row |= {name: values[i] for name, values in samples.columns.items()}
        rows.append(row)
        if not why:
            sound.append(record)
    return rows, sound


def _write(domain: Domain, folder: Path, rows: list[dict[str, Any]], sound: list[Any]) -> list[str]:
    """The field's files and ``samples.csv``; the names of the former."""
    annotated = []
    for row, record in zip((r for r in rows if r["valid"]), sound, strict=True):
        numbers = {"sample": float(row["sample"])}
        numbers |= {k: v for k, v in row.items() if _is_measure(domain, k) and _known(v)}
        annotated.append(domain.annotate(record, f"sample {row['sample']}", numbers))
    files = domain.write(annotated, folder)
    write_csv(folder / "samples.csv", ({k: _text(v) for k, v in row.items()} for row in rows))
    return [path.name for path in files]


def _is_measure(domain: Domain, column: str) -> bool:
    return column.removeprefix("target_") in domain.properties


def _known(value: Any) -> bool:
    return isinstance(value, int | float) and value == value


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if value is None or value != value:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else " ".join(str(value).split())


def _cell(column: str, text: str | None) -> Any:
    """A cell as it was before it was written."""
    if column == "valid":
        return text == "1"
    if column in ("reason", "oracle_failure"):
        return text or ""
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        return text
    return int(text) if text.lstrip("-").isdigit() else number
