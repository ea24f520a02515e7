"""``sciflow refine``: forecasts of another forecaster, made more plausible by the model."""

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
from domains.timeseries.commands.outputs import Clock, finish_forecasts, write_run
from domains.timeseries.commands.parts import Parts, digest
from sciflow.cli.common import FILE
from sciflow.errors import InputError

if TYPE_CHECKING:
    from domains.timeseries.forecast import Forecast
    from domains.timeseries.series import Series

__all__ = ["refine"]


@click.command()
@click.argument("base", type=FILE)
@click.option("--data", type=FILE, required=True, help="Table with the history of the series.")
@click.option(
    "--method",
    type=click.Choice(["langevin", "most-likely"]),
    default="langevin",
    show_default=True,
    help="Samples of the refined law, or its likeliest paths.",
)
@click.option("--truth", type=FILE, help="Table with what came, to score both forecasts.")
@table_options
@draw_options
@out_options
def refine(base: Path, data: Path, method: str, truth: Path | None, **options: Any) -> None:
    """Improve the forecasts in BASE, made by any forecaster for the series of --data.

    \b
    sciflow refine base.csv --data history.csv --out run/

    BASE is samples.npz of `sciflow forecast`, or a table with unique_id, ds and either sample and
    y, or quantiles (lo-80, hi-80; q0.1; 0.1), or a mean. Its steps must follow the history; later
    rows of --data are not looked at. Writes what `sciflow forecast` writes.
    """
    from domains.timeseries.commands.forecast import truths
    from domains.timeseries.samples import read_forecasts, save_samples
    from domains.timeseries.writing import csv_text, forecast_table, interval_quantiles

    levels = options["levels"]
    interval_quantiles(levels)
    clock = Clock()
    bases = read_forecasts(base, options["samples"])
    horizon = len(bases[0].index)
    table = read(data, options)
    histories = [_history(f, table.series, base) for f in bases]
    ahead = truths(truth, histories, horizon, options) if truth else None
    settings = {
        "method": method, "levels": levels,
        **{k: options[k] for k in ("model", "samples", "seed", "steps")},
        "base": digest([_as_series(f) for f in bases]), "data": digest(histories),
    }  # fmt: skip
    parts = Parts(options["out"], settings, len(bases), options["chunk"], options["resume"])
    model = forecaster(options["model"])
    more = {k: options[k] for k in ("steps", "batch_size") if options[k] is not None}

    def work(rows: range, tell: Any) -> Any:
        made = model.refine([bases[i] for i in rows], [histories[i] for i in rows], method,
                            options["samples"], options["seed"], progress=tell, **more)  # fmt: skip
        rows_text = csv_text(forecast_table(made, levels))
        yield ".csv", lambda path: path.write_text(rows_text)
        yield ".npz", lambda path: save_samples(made, path)

    parts.run(work, "refining")
    files = finish_forecasts(parts, options["out"], histories, ahead, options, levels,
                             {"base": bases})  # fmt: skip
    write_run(options["out"], "refine", settings | {"source": str(base)}, files, table.report,
              clock)  # fmt: skip
    parts.discard()


def _history(f: Forecast, series: Sequence[Series], path: Path) -> Series:
    """The series of a forecast up to its first step."""
    import pandas as pd

    found = [s for s in series if s.name == f.series_name]
    if not found and len(series) == 1 and not f.series_name:
        found = list(series)
    if not found:
        raise InputError(f"series {f.series_name!r} is not in the data; that has: "
                         f"{', '.join(s.name for s in series[:10])}", path)  # fmt: skip
    s = found[0]
    if (f.index.tz is None) != (s.start.tz is None):
        raise InputError("its time stamps have a zone and those of the data have none, or the "
                         "other way round; write both alike", path)  # fmt: skip
    before = int((s.index < f.index[0]).sum())
    history = s.head(before)
    expected = history.future(len(f.index)) if before else pd.DatetimeIndex([])
    if list(expected) != list(f.index):
        raise InputError(
            f"the forecast of series {f.series_name!r} begins at {f.index[0]} and does not follow "
            f"the history, whose next step is {s.future(1)[0]}", path)  # fmt: skip
    return history


def _as_series(f: Forecast) -> Series:
    from domains.timeseries.series import Series

    flat = f.samples.reshape(len(f.samples), -1).T
    return Series(f.series_name, f.index[0], "D", flat, tuple(map(str, range(len(f.samples)))))
