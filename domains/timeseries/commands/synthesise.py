"""``sciflow synthesise``: series that were never observed, of the kind a model has learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from domains.timeseries.commands.options import forecaster
from domains.timeseries.commands.outputs import Clock, write_run
from sciflow.cli.common import FILE, require_folder

__all__ = ["synthesise"]


@click.command()
@click.option("--model", help="Bundled model by name, or a model's folder.")
@click.option("-n", "--number", type=click.IntRange(min=1), default=16, show_default=True,
              help="How many series.")  # fmt: skip
@click.option("--length", type=click.IntRange(min=1), required=True, help="Steps of each.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("-o", "--out", type=FILE, default="run", show_default=True, help="Output folder.")
@click.option("--format", "kind", type=click.Choice(["csv", "parquet"]), default="csv",
              show_default=True)  # fmt: skip
@click.option("--plot", type=click.Choice(["svg", "png", "none"]), default="svg", show_default=True)
def synthesise(number: int, length: int, seed: int, out: Path, **options: Any) -> None:
    """Make up series like those a model was trained on.

    \b
    sciflow synthesise -n 100 --length 336 --out run/

    Writes series.csv (unique_id, ds, y), a plot of the first and run.json. Series i depends on the
    seed and on i alone.
    """
    from domains.timeseries.writing import series_table, write_table

    require_folder(out)
    clock = Clock()
    series = forecaster(options["model"]).synthesise(number, length, seed)
    files = [write_table(series_table(series), out / f"series.{options['kind']}")]
    if options["plot"] != "none":
        from domains.timeseries.plots import plot_series, save_figure

        files.append(save_figure(plot_series(series), out / f"plot.{options['plot']}"))
    settings = {"number": number, "length": length, "seed": seed, "model": options["model"]}
    write_run(out, "synthesise", settings, [path.name for path in files], clock=clock)
