"""Commands that live in a science's own package, found by name and imported when they run.

``sciflow --help`` shows them from the table below without importing a domain, as domains themselves
are found (:mod:`sciflow.domain`). Packages of third parties add theirs by the entry-point group
``sciflow.commands``; a name of ours is not theirs to take.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from sciflow.errors import InputError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["COMMANDS", "DomainGroup", "LazyCommand"]

COMMANDS: dict[str, tuple[str, str]] = {
    "forecast": (
        "domains.timeseries.commands.forecast:forecast",
        "Forecast the series of a table, with intervals.",
    ),
    "impute": (
        "domains.timeseries.commands.impute:impute",
        "Fill the gaps of the series of a table.",
    ),
    "refine": (
        "domains.timeseries.commands.refine:refine",
        "Improve the forecasts of another forecaster.",
    ),
    "synthesise": (
        "domains.timeseries.commands.synthesise:synthesise",
        "Make up series like those a model was trained on.",
    ),
}
"""Name: where the command is, and its line in ``sciflow --help``."""


class LazyCommand(click.Command):
    """Stands for a command until it is run or its own help is asked for.

    Args:
        name: of the command.
        target: ``"module:attribute"`` of the :class:`click.Command`.
        line: its line in the list of commands.
    """

    def __init__(self, name: str, target: str, line: str):
        super().__init__(name, short_help=line)
        self.target = target

    def load(self) -> click.Command:
        """The command itself.

        Raises:
            InputError: its package cannot be imported, or holds no such command.
        """
        module, _, attribute = self.target.partition(":")
        try:
            command = getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise InputError(f"command {self.name!r} cannot be loaded: {error}") from error
        if not isinstance(command, click.Command):
            raise InputError(f"command {self.name!r}: {self.target} is no click command")
        return command

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """The context of the command itself, which is what then runs."""
        return self.load().make_context(info_name, args, parent, **extra)


class DomainGroup(click.Group):
    """A group that also has the commands of domains and of installed packages."""

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted({*super().list_commands(context), *COMMANDS, *_installed()})

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        own = super().get_command(context, name)
        if own is not None:
            return own
        if name in COMMANDS:
            return LazyCommand(name, *COMMANDS[name])
        entry = _installed().get(name)
        if entry is None:
            return None
        package = entry.dist.name if entry.dist else entry.module
        return LazyCommand(name, entry.value, f"(from the package {package})")


def _installed() -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points

    return {entry.name: entry for entry in entry_points(group="sciflow.commands")}
