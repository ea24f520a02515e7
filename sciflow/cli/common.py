"""What several commands share: progress bars, lists of names, counts of what was dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from sciflow.errors import InputError

__all__ = [
    "FILE",
    "jobs",
    "jobs_option",
    "names",
    "progress_bar",
    "report_dropped",
    "require_folder",
    "require_properties",
]

FILE = click.Path(path_type=Path)
"""Not checked by click: readers say more precisely what is wrong."""

_Command = TypeVar("_Command", bound=Callable[..., Any])
_SHOWN = 20


def names(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> list[str] | None:
    """A comma-separated option as a list without repetitions."""
    if value is None:
        return None
    return list(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))


def jobs(context: click.Context, parameter: click.Parameter, value: int) -> int:
    """Worker processes: a number, or -1 for every core."""
    if value == -1 or value >= 1:
        return value
    raise click.BadParameter(f"{value}; give -1 for every core, or 1 or more")


def jobs_option(whose: str = "") -> Callable[[_Command], _Command]:
    """``--jobs``: how many worker processes.

    Args:
        whose: they are, for the help text.
    """
    text = f"Processes{whose}; -1 is every core."
    return click.option("--jobs", type=int, callback=jobs, default=-1, show_default=True, help=text)


def require_folder(folder: Path) -> None:
    """Raise an :class:`InputError` where a folder to write to is a file."""
    if folder.exists() and not folder.is_dir():
        raise InputError("this is a file; give a folder", folder)


def require_properties(wanted: Iterable[str], known: Mapping[str, object], domain: str) -> None:
    """Raise an :class:`InputError` that lists what there is."""
    for name in wanted:
        if name not in known:
            raise InputError(f"unknown property {name!r}; {domain} has: {', '.join(known)}")


@contextmanager
def progress_bar(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with rate on standard error; silent where that is not a terminal."""
    from tqdm import tqdm

    with tqdm(desc=what, unit=unit, disable=None, dynamic_ncols=True) as bar:

        def tell(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield tell


def report_dropped(kept: int, what: str, reasons: Mapping[str, int] | Iterable[str]) -> bool:
    """Say how many of how many were kept and why the others were not; whether any was dropped.

    Args:
        kept: how many are fine.
        what: they are, in words.
        reasons: of the others; those with the same text before a colon are counted together.
    """
    counts: Counter[str] = Counter()
    example: dict[str, str] = {}
    for reason, count in reasons.items() if isinstance(reasons, Mapping) else _ones(reasons):
        sort, _, detail = reason.partition(":")
        counts[sort] += count
        example.setdefault(sort, detail.strip())
    click.echo(f"{kept} of {kept + counts.total()} {what}", err=True)
    for sort, count in counts.most_common(_SHOWN):
        detail = f" (such as: {example[sort]})" if example[sort] else ""
        click.echo(f"  dropped {count}: {sort}{detail}", err=True)
    if len(counts) > _SHOWN:
        click.echo(f"  and {len(counts) - _SHOWN} other reasons", err=True)
    return bool(counts)


def _ones(reasons: Iterable[str]) -> Iterator[tuple[str, int]]:
    return ((reason, 1) for reason in reasons)
