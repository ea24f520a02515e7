"""The command ``sciflow``. Modules here import click alone: ``--help`` must not wait for torch.

Exit codes: 0 all went well; 1 some samples or records were dropped, with their counts by reason
(or training broke down); 2 something given cannot be used, in one line; 130 interrupted, with what
was saved.
"""

from __future__ import annotations

import errno
import sys
from typing import Any

import click

from sciflow import __version__
from sciflow.cli.data import data
from sciflow.cli.evaluate import evaluate
from sciflow.cli.lazy import DomainGroup
from sciflow.cli.list import list_
from sciflow.cli.oracle import oracle
from sciflow.cli.report import report
from sciflow.cli.sample import sample
from sciflow.cli.train import train
from sciflow.cli.tune import tune_guidance
from sciflow.errors import CheckpointError, InputError, SciflowError

__all__ = ["cli", "main"]

_OUTSIDE = {errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOSPC,
            errno.EROFS, errno.EDQUOT}  # fmt: skip
"""What the file system may refuse through no fault of the program."""


class _Group(DomainGroup):
    """A group whose errors are one line on standard error."""

    def main(self, args: Any = None, prog_name: str | None = None, complete_var: str | None = None,
             standalone_mode: bool = True, **extra: Any) -> Any:  # fmt: skip
        """Run; never returns in standalone mode."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, **extra)
        try:
            code = super().main(args, prog_name, complete_var, False, **extra)
        except click.UsageError as error:
            hint = f" (see: {error.ctx.command_path} --help)" if error.ctx else ""
            code = _complain(" ".join(error.format_message().split()) + hint, 2)
        except click.ClickException as error:
            code = _complain(error.format_message(), error.exit_code)
        except click.Abort:
            code = _complain("interrupted", 130)
        except (InputError, CheckpointError) as error:
            code = _complain(str(error), 2)
        except SciflowError as error:
            code = _complain(str(error), 1)
        except OSError as error:
            if error.errno not in _OUTSIDE:
                raise
            code = _complain(f"{error.filename or 'writing'}: {error.strerror}", 2)
        sys.exit(code if isinstance(code, int) else 0)


def _complain(message: str, code: int) -> int:
    click.echo(f"error: {message}", err=True)
    return code


@click.group(
    cls=_Group,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="sciflow")
@click.pass_context
def cli(context: click.Context) -> None:
    """Generate molecules and other scientific data with the properties you ask for.

    \b
    sciflow list
    sciflow sample molecules -n 100 --target gap=6 --target dipole=2..3 --out run/
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for _command in (list_, sample, evaluate, oracle, report, train, data,
                 tune_guidance):  # fmt: skip
    cli.add_command(_command)


def main() -> None:
    """Entry point of the console script."""
    cli(prog_name="sciflow")
