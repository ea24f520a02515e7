"""``sciflow report``: make the page of a run anew from its files."""

from __future__ import annotations

from pathlib import Path

import click

from sciflow.cli.common import FILE

__all__ = ["report"]


@click.command()
@click.argument("folder", type=FILE)
def report(folder: Path) -> None:
    """Rebuild report.html in FOLDER, a run of `sciflow sample`."""
    from sciflow.files import write_atomically
    from sciflow.reports.page import page
    from sciflow.reports.run import load_run

    run = load_run(folder)
    write_atomically(folder / "report.html", page(run))
    click.echo(str(folder / "report.html"))
