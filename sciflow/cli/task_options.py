"""Options of ``sciflow sample`` that domains declare: the parts of their tasks.

The command is built without knowing any science. When it runs, or its help is asked for, it looks
through the known domains and takes their options (:attr:`sciflow.domain.Domain.options`) in. One
name may be several domains' own.
"""

from __future__ import annotations

from typing import Any

import click

from sciflow.domain import Option, get_domain, names
from sciflow.errors import InputError

__all__ = ["TaskCommand", "task_options"]

_PREFIX = "task_"
"""Begins the Python name of such an option."""


class TaskCommand(click.Command):
    """A command that also has the options of every domain's tasks."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        own = super().get_params(ctx)
        taken = {flag for parameter in own for flag in parameter.opts}
        found = {
            name: click.Option([f"--{name}", _PREFIX + name], metavar=option.metavar, hidden=True)
            for options in _declared().values()
            for name, option in options.items()
            if f"--{name}" not in taken
        }
        return [*own, *found.values()]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The command's own options, then those of each domain."""
        super().format_options(ctx, formatter)
        for domain, options in _declared().items():
            if options:
                with formatter.section(f"Options for {domain}"):
                    formatter.write_dl(
                        [(f"--{k} {o.metavar}", o.summary) for k, o in options.items()]
                    )


def task_options(values: dict[str, Any]) -> dict[str, str]:
    """Of the parameters that a :class:`TaskCommand` was called with, the tasks' that were given."""
    return {k.removeprefix(_PREFIX): v for k, v in values.items() if v is not None}


def _declared() -> dict[str, dict[str, Option]]:
    """Options by domain; a domain that cannot be loaded has none, and says why when it is used."""
    found: dict[str, dict[str, Option]] = {}
    for name in sorted(names()):
        try:
            found[name] = dict(get_domain(name).options)
        except InputError:
            continue
    return found
