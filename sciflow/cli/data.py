"""``sciflow data``: make data sets."""

from __future__ import annotations

from pathlib import Path

import click

from sciflow.cli.common import FILE, jobs_option, report_dropped

__all__ = ["data"]


@click.group(invoke_without_command=True)
@click.pass_context
def data(context: click.Context) -> None:
    """Make data sets to train on."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@data.command()
@click.argument("domain")
@click.argument("file", type=FILE)
@click.option("-o", "--out", type=FILE, required=True, help="File to write (molecules: .npz).")
@jobs_option()
@click.option("--seed", type=int, default=7, show_default=True)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many records.")
def build(domain: str, file: Path, out: Path, jobs: int, seed: int, limit: int | None) -> None:
    """Build a data set from FILE, for molecules a list of SMILES.

    Molecules: conformer by ETKDG and MMFF94, minimum and properties by GFN2-xTB, about 0.2 CPU
    seconds each. The same command goes on where an interrupted one stopped. Exits with 1 if a
    record was left out.

    \b
    sciflow data build molecules list.smi --out mine.npz
    sciflow train molecules --data mine.npz --out runs/mine
    """
    from sciflow.domain import get_domain
    from sciflow.errors import InputError

    if not file.is_file():
        raise InputError("no such file", file)
    adapter = get_domain(domain)
    try:
        dropped = adapter.build_dataset(file, out, jobs=jobs, seed=seed, limit=limit)
    except KeyboardInterrupt:
        click.echo("interrupted; the same command again goes on from there", err=True)
        raise SystemExit(130) from None
    built = len(adapter.dataset(out))
    lost = report_dropped(built, "records built", [error.reason for error in dropped])
    click.echo(str(out))
    if lost:
        raise SystemExit(1)
