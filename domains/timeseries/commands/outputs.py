"""What a run of forecasts leaves in its folder: table, paths, pictures, scores, settings."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sciflow.files import write_json, writing
from sciflow.reports.summary import plain, versions

if TYPE_CHECKING:
    from domains.timeseries.commands.parts import Parts
    from domains.timeseries.forecast import Forecast
    from domains.timeseries.series import Series
    from domains.timeseries.tables import TableReport
    from domains.timeseries.writing import ForecastLike

__all__ = ["Clock", "finish_forecasts", "write_run"]


class Clock:
    """Seconds since it was made, of the wall and of the processor."""

    def __init__(self) -> None:
        self._begin = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """Content of ``run.json``."""
        wall, cpu = self._begin
        return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}


def finish_forecasts(
    parts: Parts, out: Path, histories: Sequence[Series], truths: Sequence[Series] | None,
    options: Mapping[str, Any], levels: Sequence[float],
    beside: Mapping[str, Sequence[ForecastLike]] | None = None,
) -> list[str]:  # fmt: skip
    """Join the parts of a run of forecasts, plot the first series, score them; names of the files.

    Args:
        parts: all of them done, with ``.csv`` and ``.npz``.
        out: folder of the run.
        histories: the series, in the order of the forecasts.
        truths: of each, what came; ``None`` where that is not known.
        options: ``kind``, ``paths`` and ``plot`` of the command.
        levels: of intervals, in percent.
        beside: other forecasts to score too, by name.
    """
    from domains.timeseries.samples import join_samples, read_forecasts

    files = [_join_tables(parts, out, options["kind"])]
    joined = out / "samples.npz"
    if options["paths"] == "parquet":
        files.append(join_samples(parts.paths(".npz"), out / "samples.parquet").name)
    elif options["paths"] == "npz":
        files.append(join_samples(parts.paths(".npz"), joined).name)
    forecasts: list[Forecast] = []
    for part in parts.paths(".npz"):
        # Of series that are neither scored nor shown nothing is read.
        if truths is not None or len(forecasts) < _shown():
            forecasts += read_forecasts(part)
    if options["plot"] != "none":
        files += _plots(forecasts, histories, truths, out, options["plot"])
    if truths is not None:
        _score(forecasts, histories, truths, levels, out, beside or {})
        files.append("metrics.json")
    return files


def write_run(out: Path, task: str, settings: Mapping[str, Any], files: Sequence[str],
              report: TableReport | None = None, clock: Clock | None = None) -> None:  # fmt: skip
    """Write ``run.json``: what was asked, of which table, by what versions; last of all."""
    content = {
        "domain": "timeseries",
        "task": task,
        "files": list(files),
        **plain(settings),
        "table": plain(asdict(report)) if report is not None else None,
        **(clock.read() if clock else {}),
        "command": shlex.join(sys.argv),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(("pandas", "scipy")),
    }
    write_json(out / "run.json", content)
    click.echo(str(out))


def _shown() -> int:
    from domains.timeseries.plots import MOST

    return MOST


def _join_tables(parts: Parts, out: Path, kind: str) -> str:
    """The table of all parts, a part at a time."""
    target = out / f"forecast.{kind}"
    if kind == "csv":
        with writing(target) as f:
            for k, part in enumerate(parts.paths(".csv")):
                content = part.read_bytes()
                f.write(content if k == 0 else content[content.index(b"\n") + 1 :])
    else:
        import pandas as pd

        from domains.timeseries.writing import write_table

        tables = [pd.read_csv(p, parse_dates=["ds"]) for p in parts.paths(".csv")]
        write_table(pd.concat(tables, ignore_index=True), target)
    return target.name


def _plots(forecasts: Sequence[Forecast], histories: Sequence[Series],
           truths: Sequence[Series] | None, out: Path, kind: str) -> list[str]:  # fmt: skip
    from domains.timeseries.plots import plot_calibration, plot_forecasts, save_figure

    files = [save_figure(plot_forecasts(forecasts, histories, truths), out / f"plot.{kind}").name]
    if truths is not None:
        figure = plot_calibration(forecasts, truths)
        files.append(save_figure(figure, out / f"calibration.{kind}").name)
    return files


def _score(forecasts: Sequence[Forecast], histories: Sequence[Series],
           truths: Sequence[Series], levels: Sequence[float], out: Path,
           beside: Mapping[str, Sequence[ForecastLike]]) -> None:  # fmt: skip
    """Scores of the forecasts, with seasonal naive beside them, without which they say little."""
    from domains.timeseries.baselines.naive import SeasonalNaive
    from domains.timeseries.metrics import evaluate

    season = histories[0].season
    horizon, count = len(forecasts[0].index), len(forecasts[0].samples)
    naive = SeasonalNaive(season).predict(histories, horizon, count)
    judged: dict[str, Sequence[Any]] = {"forecast": forecasts, **beside, "seasonal naive": naive}
    scores = {
        name: evaluate(made, truths, histories, season, levels) for name, made in judged.items()
    }
    write_json(out / "metrics.json", plain({
        "series": len(forecasts), "samples": count, "horizon": horizon, "season": season, **scores,
    }))  # fmt: skip
    shown = ["crps", "mase", "msis", "smape", *(f"coverage_{p:g}" for p in levels)]
    width = max(map(len, scores))
    click.echo("  ".join([" " * width, *(f"{m:>11}" for m in shown)]), err=True)
    for name, values in scores.items():
        cells = (f"{values[m]:>11.4g}" for m in shown)
        click.echo("  ".join([f"{name:<{width}}", *cells]), err=True)
