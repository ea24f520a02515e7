"""Options that the commands share: how a table is read, what is drawn, what is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sciflow.cli.common import FILE, names

if TYPE_CHECKING:
    from domains.timeseries.tables import Table

__all__ = ["draw_options", "forecaster", "numbers", "out_options", "read", "table_options"]

F = TypeVar("F", bound=Callable[..., Any])


def numbers(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[float, ...]:
    """A comma-separated option as numbers."""
    try:
        return tuple(dict.fromkeys(float(v) for v in (value or "").split(",") if v.strip()))
    except ValueError:
        raise click.BadParameter(f"{value!r}; give numbers with commas between them") from None


_TABLE = (
    click.option("--id", "id_column", metavar="NAME", help="Column with the names of the series."),
    click.option("--time", "time_column", metavar="NAME", help="Column of time stamps."),
    click.option("--target", "target_columns", callback=names, metavar="NAMES",
                 help="Columns to forecast, e.g. y or load,wind."),
    click.option("--covariates", callback=names, metavar="NAMES",
                 help="Columns to forecast from; default all other numbers, '' for none."),
    click.option("--freq", metavar="STEP",
                 help="Step of time, e.g. h, D, B, W, M, 15min; default by the time stamps."),
    click.option("--multivariate", is_flag=True,
                 help="Several targets are channels of one series, not series of their own."),
    click.option("--duplicates", type=click.Choice(["error", "mean", "last"]), default="error",
                 show_default=True, help="What becomes of time stamps that are there twice."),
    click.option("--resample", metavar="STEP", help="First take means over steps, e.g. h."),
    click.option("--time-format", metavar="FORMAT", help="Of the time stamps, e.g. %d/%m/%Y."),
)  # fmt: skip
_DRAW = (
    click.option("--model", help="Bundled model by name, or a model's folder."),
    click.option("-s", "--samples", type=click.IntRange(min=1), default=100, show_default=True,
                 help="Paths for each series."),
    click.option("--seed", type=int, default=0, show_default=True),
    click.option("--steps", type=click.IntRange(min=1),
                 help="Network calls; default the model's own."),
    click.option("--batch-size", type=click.IntRange(min=1), help="Changes speed and memory only."),
    click.option("--chunk", type=click.IntRange(min=1), default=32, show_default=True,
                 help="Series worked on, and kept, at a time."),
)  # fmt: skip
_OUT = (
    click.option("-o", "--out", type=FILE, default="run", show_default=True, help="Output folder."),
    click.option("--levels", callback=numbers, default="50,80,95", show_default=True,
                 help="Central intervals, in percent."),
    click.option("--format", "kind", type=click.Choice(["csv", "parquet"]), default="csv",
                 show_default=True, help="Of the table."),
    click.option("--paths", type=click.Choice(["npz", "parquet", "none"]), default="npz",
                 show_default=True, help="Sample paths: a file of what kind, if any."),
    click.option("--plot", type=click.Choice(["svg", "png", "none"]), default="svg",
                 show_default=True),
    click.option("--resume", is_flag=True, help="Go on with an interrupted run in that folder."),
)  # fmt: skip


def _all(options: tuple[Any, ...]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


table_options = _all(_TABLE)
"""How a table is read; the arguments of :func:`read` behind the first."""
draw_options = _all(_DRAW)
"""Which model, how many paths, with what seed."""
out_options = _all(_OUT)
"""What is written where."""

READING = ("id_column", "time_column", "target_columns", "covariates", "freq", "multivariate",
           "duplicates", "resample", "time_format")  # fmt: skip
"""Names of the arguments that :func:`table_options` gives."""


def read(source: Path, given: dict[str, Any], **more: Any) -> Table:
    """Read a table by the options, and say what it was taken for on standard error."""
    from domains.timeseries.tables import read_table

    table = read_table(source, **{k: given[k] for k in READING}, **more)
    click.echo(f"{source}: {table.report}", err=True)
    return table


def forecaster(model: str | None) -> Any:
    """The forecaster of a model, or of the default one."""
    from domains.timeseries.forecaster import load_forecaster

    return load_forecaster() if model is None else load_forecaster(model)
