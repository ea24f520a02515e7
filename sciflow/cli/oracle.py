"""``sciflow oracle``: measure the records of a file."""

from __future__ import annotations

from pathlib import Path

import click

from sciflow.cli.common import (
    FILE,
    jobs_option,
    names,
    progress_bar,
    report_dropped,
    require_properties,
)
from sciflow.errors import InputError

__all__ = ["oracle"]


@click.command()
@click.argument("domain")
@click.argument("file", type=FILE)
@click.option("--properties", callback=names, metavar="NAMES",
              help="Comma-separated; default all of the domain's.")  # fmt: skip
@click.option("-o", "--out", type=FILE, default="oracle.csv", show_default=True, help="CSV file.")
@jobs_option()
def oracle(domain: str, file: Path, properties: list[str] | None, out: Path, jobs: int) -> None:
    """Measure properties of the records of FILE, for molecules by GFN2-xTB.

    Exits with 1 if a record could not be read or measured; its reason is in the CSV.
    """
    from sciflow.domain import get_domain
    from sciflow.files import write_csv

    adapter = get_domain(domain)
    wanted = list(adapter.properties) if properties is None else properties
    require_properties(wanted, adapter.properties, domain)
    if not wanted:
        raise InputError(f"no property to measure; {domain} has: {', '.join(adapter.properties)}")
    if out.is_dir():
        raise InputError("this is a folder; give a file", out)
    unread: list[InputError] = []
    records = adapter.read(file, unread)
    with progress_bar("measuring", "record") as progress:
        answers = adapter.oracle(records, wanted, jobs, progress)
    rows = [
        {"record": i + 1, **identity, **answer.values, "failure": " ".join(answer.failure.split()),
         "seconds": f"{answer.seconds:.3g}"}
        for i, (identity, answer) in enumerate(
            zip(adapter.describe(records), answers, strict=True))
    ]  # fmt: skip
    identities = [key for row in rows for key in row if key not in (*wanted, "failure", "seconds")]
    columns = [*dict.fromkeys(identities), *wanted, "failure", "seconds"]
    told = ({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    write_csv(out, told, columns)
    failed = [answer.failure for answer in answers if answer.failure]
    lost = report_dropped(len(answers) - len(failed), "records measured",
                          [*(error.reason for error in unread), *failed])  # fmt: skip
    click.echo(str(out))
    if lost:
        raise SystemExit(1)
