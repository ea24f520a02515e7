"""``sciflow forecast``: from a table of series to forecasts with intervals, paths and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from domains.timeseries.commands.options import (
    draw_options,
    forecaster,
    numbers,
    out_options,
    read,
    table_options,
)
from domains.timeseries.commands.outputs import Clock, finish_forecasts, write_run
from domains.timeseries.commands.parts import Parts, digest
from sciflow.cli.common import FILE
from sciflow.errors import InputError

if TYPE_CHECKING:
    from domains.timeseries.series import Series

__all__ = ["forecast", "truths"]


@click.command()
@click.argument("data", type=FILE)
@click.option("-H", "--horizon", type=click.IntRange(min=1), required=True,
              help="Steps to forecast.")  # fmt: skip
@click.option("--quantiles", callback=numbers, metavar="NUMBERS",
              help="Further quantiles, e.g. 0.1,0.9, as columns q0.1 and q0.9.")  # fmt: skip
@click.option("--method", help="How the model is asked; a wrong name lists the ways.")
@click.option("--future", type=FILE, help="Table of covariates after the end of the series.")
@click.option("--truth", type=FILE, help="Table with what came, to score the forecasts.")
@click.option("--holdout", is_flag=True,
              help="Forecast the last steps of the table, and score that.")  # fmt: skip
@table_options
@draw_options
@out_options
def forecast(
    data: Path,
    horizon: int,
    quantiles: tuple[float, ...],
    method: str | None,
    future: Path | None,
    truth: Path | None,
    holdout: bool,
    **options: Any,
) -> None:
    """Forecast the series of DATA: CSV, parquet or JSON lines, in long or wide layout.

    \b
    sciflow forecast data.csv --horizon 24 --levels 50,80,95 --out run/

    Gaps in time and empty cells count as not observed. Rows at the end that have covariates and no
    target are the known future. Writes forecast.csv, samples.npz, a plot and run.json; with --truth
    or --holdout also metrics.json, seasonal naive beside the model. Interrupted, it keeps what is
    done, and goes on with --resume.

    Exits with 1 if a series was left out; the reasons are on standard error.
    """
    from domains.timeseries.future import require_future
    from domains.timeseries.writing import csv_text, forecast_table, interval_quantiles

    if truth and holdout:
        raise InputError("give --truth or --holdout, not both")
    levels = options["levels"]
    interval_quantiles(levels, quantiles)
    clock = Clock()
    table = read(data, options, future=future)
    histories, dropped = table.series, list(table.report.dropped)
    if holdout:
        histories = _enough(histories, horizon, dropped, data)
    ahead: list[Series] | None = [s.tail(horizon) for s in histories] if holdout else None
    histories = [s.head(len(s) - horizon) for s in histories] if holdout else histories
    if truth:
        ahead = truths(truth, histories, horizon, options)
    require_future(histories, horizon)
    settings = {
        "horizon": horizon, "levels": levels, "quantiles": quantiles,
        "method": method, **{k: options[k] for k in ("model", "samples", "seed", "steps")},
        "data": digest(histories),
    }  # fmt: skip
    parts = Parts(options["out"], settings, len(histories), options["chunk"], options["resume"])
    model = forecaster(options["model"])
    more = {} if options["batch_size"] is None else {"batch_size": options["batch_size"]}

    def work(rows: range, tell: Any) -> Any:
        from domains.timeseries.samples import save_samples

        made = model.forecast(
            [histories[i] for i in rows], horizon, options["samples"], options["seed"],
            method=method, steps=options["steps"], progress=tell, **more,
        )  # fmt: skip
        rows_text = csv_text(forecast_table(made, levels, quantiles))
        yield ".csv", lambda path: path.write_text(rows_text)
        yield ".npz", lambda path: save_samples(made, path)

    parts.run(work, "forecasting")
    files = finish_forecasts(parts, options["out"], histories, ahead, options, levels)
    write_run(options["out"], "forecast", settings | {"source": str(data)}, files, table.report,
              clock)  # fmt: skip
    parts.discard()
    for reason in dropped[len(table.report.dropped) :]:
        click.echo(f"left out: {reason}", err=True)
    if any(reason.startswith("series") for reason in dropped):
        raise SystemExit(1)


def _enough(series: Sequence[Series], horizon: int, dropped: list[str], path: Path) -> list[Series]:
    """Series that are longer than what is held out."""
    long = [s for s in series if s.observed[: len(s) - horizon].any() and len(s) > horizon]
    kept = {s.name for s in long}
    dropped += [
        f"series {s.name!r}: {len(s)} steps leave no value before the {horizon} held out"
        for s in series if s.name not in kept
    ]  # fmt: skip
    if not long:
        raise InputError(f"no series is longer than the {horizon} steps to hold out", path)
    return long


def truths(path: Path, series: Sequence[Series], horizon: int,
            options: dict[str, Any]) -> list[Series]:  # fmt: skip
    """What came, at the stamps of the forecasts; NaN where the table says nothing."""
    import numpy as np

    given = {**options, "covariates": []}
    found = read(path, given, trailing="missing").series
    by_name = {s.name: s for s in found}
    result, seen = [], 0
    for s in series:
        # One series in each file needs no name.
        other = found[0] if len(found) == len(series) == 1 else by_name.get(s.name)
        index = s.future(horizon)
        values = np.full((horizon, len(s.channels)), np.nan)
        if other is not None and (other.start.tz is None) == (s.start.tz is None):
            if len(other.channels) != len(s.channels):
                raise InputError(
                    f"series {s.name!r} has {len(other.channels)} channels here and "
                    f"{len(s.channels)} in the data", path)  # fmt: skip
            at = other.index.get_indexer(index)
            values[at >= 0] = other.values[at[at >= 0]]
        seen += int(np.isfinite(values).sum())
        result.append(s.replace(values=values, start=index[0], covariates=None,
                                covariate_names=()))  # fmt: skip
    if not seen:
        first = series[0]
        raise InputError(
            f"no value at a time that is forecast; those of series {first.name!r} are "
            f"{first.future(horizon)[0]} to {first.future(horizon)[-1]}", path)  # fmt: skip
    return result
