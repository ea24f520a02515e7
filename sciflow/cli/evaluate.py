"""``sciflow evaluate``: judge a file of samples, with real data beside it."""

from __future__ import annotations

import math
from pathlib import Path

import click

from sciflow.cli.common import FILE, report_dropped, require_folder
from sciflow.errors import InputError

__all__ = ["evaluate"]

_DATA_ROWS = 1000


@click.command()
@click.argument("domain")
@click.argument("file", type=FILE)
@click.option("--thorough", is_flag=True, help="Also the slow evaluators.")
@click.option("--data/--no-data", "with_data", default=True, show_default=True,
              help="Judge held-out real data too, where this machine has any.")  # fmt: skip
@click.option("-o", "--out", type=FILE, help="Write metrics.json into this folder.")
def evaluate(domain: str, file: Path, thorough: bool, with_data: bool, out: Path | None) -> None:
    """Judge the records of FILE by the metrics of their field.

    A rate means something only beside the rate of real data under the same rule, so that column is
    printed too. Exits with 1 if a record could not be read.
    """
    from sciflow.domain import get_domain

    adapter = get_domain(domain)
    if out is not None:
        require_folder(out)
    dropped: list[InputError] = []
    records = adapter.read(file, dropped)
    columns = {file.name: adapter.evaluate(records, thorough)}
    if with_data:
        real = adapter.held_out(min(len(records), _DATA_ROWS))
        if real:
            columns["real data"] = adapter.evaluate(real, thorough)
        else:
            click.echo("no real data on this machine to compare with", err=True)
    click.echo(_table(columns))
    lost = report_dropped(len(records), "records read", [error.reason for error in dropped])
    if out is not None:
        from sciflow.files import write_json
        from sciflow.reports.summary import plain

        write_json(out / "metrics.json", plain({"file": str(file), "unreadable": len(dropped),
                                                "evaluation": columns}))  # fmt: skip
        click.echo(str(out))
    if lost:
        raise SystemExit(1)


def _table(columns: dict[str, dict[str, float]]) -> str:
    """One line a metric, one column a set of records."""
    metrics = list(dict.fromkeys(name for values in columns.values() for name in values))
    width = max(map(len, metrics), default=0)
    wide = {name: max(len(name), 10) for name in columns}
    lines = ["  ".join([" " * width, *(f"{name:>{wide[name]}}" for name in columns)])]
    for metric in metrics:
        cells = [f"{_number(values.get(metric)):>{wide[n]}}" for n, values in columns.items()]
        lines.append("  ".join([f"{metric:<{width}}", *cells]))
    return "\n".join(lines)


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.0f}" if value.is_integer() and abs(value) >= 10 else f"{value:.4g}"
