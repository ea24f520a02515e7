"""``sciflow impute``: the gaps of a table, filled, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from domains.timeseries.commands.options import (
    draw_options,
    forecaster,
    out_options,
    read,
    table_options,
)
from domains.timeseries.commands.outputs import Clock, write_run
from domains.timeseries.commands.parts import Parts, digest
from sciflow.cli.common import FILE
from sciflow.errors import InputError

if TYPE_CHECKING:
    from domains.timeseries.gaps import Gaps
    from domains.timeseries.tables import Table

__all__ = ["impute"]


@click.command()
@click.argument("data", type=FILE)
@table_options
@draw_options
@out_options
def impute(data: Path, **options: Any) -> None:
    """Fill the gaps of the series of DATA: empty cells, and steps of time that have no row.

    \b
    sciflow impute data.csv --levels 80 --out run/

    Writes imputed.csv in the layout of DATA, every observed number as it stands there, with a flag
    and intervals where a value was filled in; samples.npz with the paths of the gaps; a plot of the
    series with most of them; run.json. Interrupted, it keeps what is done, and goes on with
    --resume.
    """
    from domains.timeseries.gaps import load_gaps, save_gaps
    from domains.timeseries.imputed import write_imputed
    from domains.timeseries.writing import interval_quantiles

    interval_quantiles(options["levels"])
    clock = Clock()
    table = read(data, options, trailing="missing")
    gaps = sum(int((~s.observed).sum()) for s in table.series)
    if not gaps:
        raise InputError("nothing is missing: every step has its value", data)
    settings = {
        "levels": options["levels"],
        **{k: options[k] for k in ("model", "samples", "seed", "steps")},
        "data": digest(table.series),
    }  # fmt: skip
    parts = Parts(options["out"], settings, len(table.series), options["chunk"], options["resume"])
    model = forecaster(options["model"])
    more = {k: options[k] for k in ("steps", "batch_size") if options[k] is not None}

    def work(rows: range, tell: Any) -> Any:
        made = model.impute([table.series[i] for i in rows], options["samples"], options["seed"],
                            progress=tell, **more)  # fmt: skip
        yield ".npz", lambda path: save_gaps(made, path)

    parts.run(work, "imputing")
    filled: list[Gaps] = []
    for path in parts.paths(".npz"):
        filled += load_gaps(table.series[len(filled) : len(filled) + options["chunk"]], path)
    out = options["out"]
    files = [write_imputed(table, filled, out / f"imputed.{options['kind']}", options["levels"])]
    if options["paths"] != "none":
        files.append(_write_paths(table, filled, out / f"samples.{options['paths']}"))
    if options["plot"] != "none":
        from domains.timeseries.plots import plot_imputation, save_figure

        worst = max(filled, key=lambda g: len(g.values))
        figure = plot_imputation(worst, max(options["levels"]))
        files.append(save_figure(figure, out / f"plot.{options['plot']}"))
    click.echo(f"{gaps} values filled in {len(filled)} series", err=True)
    write_run(out, "impute", settings | {"source": str(data), "filled": gaps},
              [path.name for path in files], table.report, clock)  # fmt: skip
    parts.discard()


def _write_paths(table: Table, filled: Sequence[Gaps], path: Path) -> Path:
    """Samples ``[S, M]`` of all gaps, with the series, time and channel of each."""
    import numpy as np
    import pandas as pd

    from domains.timeseries.writing import write_table
    from sciflow.files import writing

    where = [
        (s.name, s.index[t].isoformat(), s.channels[c])
        for s in table.series for t, c in np.argwhere(~s.observed)
    ]  # fmt: skip
    samples = np.concatenate([g.paths for g in filled], 1)
    columns: dict[str, Any] = dict(
        zip(("unique_id", "ds", "channel"), map(np.array, zip(*where, strict=True)), strict=True)
    )
    if path.suffix == ".parquet":
        count = len(samples)
        frame = pd.DataFrame({k: np.tile(v, count) for k, v in columns.items()})
        frame["ds"] = pd.to_datetime(frame["ds"])
        frame["sample"] = np.repeat(np.arange(count), samples.shape[1])
        return write_table(frame.assign(y=samples.ravel()), path)
    with writing(path) as f:
        np.savez(f, samples=samples, **columns)
    return path
