"""Commands of domains and of installed packages: listed without an import, whole when they run."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from importlib.metadata import EntryPoint

import click
import pytest
from click.testing import CliRunner

from sciflow.cli import cli, lazy


@click.command()
@click.option("--times", default=1)
def greet(times: int) -> None:
    """Say hello."""
    click.echo("hello " * times)


def installed(monkeypatch: pytest.MonkeyPatch, **commands: str) -> None:
    found = [EntryPoint(name, value, "sciflow.commands") for name, value in commands.items()]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: found)


def test_help_lists_commands_of_domains_without_importing_one() -> None:
    code = (
        "import sys\nfrom sciflow.cli import cli\n"
        "try:\n    cli(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(*sorted(m for m in sys.modules if m.split('.')[0] in ('domains', 'numpy')))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *shown, modules = run.stdout.split("\n")[:-1]
    for name, (_, line) in lazy.COMMANDS.items():
        assert any(s.split()[:1] == [name] and line[:30] in s for s in shown)
    assert modules == ""


@pytest.mark.parametrize("name", lazy.COMMANDS)
def test_every_command_is_where_the_table_says(name: str) -> None:
    target, line = lazy.COMMANDS[name]
    command = lazy.LazyCommand(name, target, line).load()
    assert command.name == name and line.endswith(".")
    shown = CliRunner().invoke(cli, [name, "--help"])
    assert shown.exit_code == 0 and "Options:" in shown.output
    assert command.help and command.help.split("\n")[0][:40] in shown.output


@pytest.mark.parametrize("command", ["forecast", "impute", "refine", "synthesise"])
def test_help_of_a_command_imports_nothing_heavy(command: str) -> None:
    code = (
        f"import sys\nfrom sciflow.cli import cli\ntry:\n    cli(['{command}', '--help'])\n"
        "except SystemExit:\n    pass\n"
        "print(*sorted({'torch', 'numpy', 'pandas', 'matplotlib'} & set(sys.modules)))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split("\n")[-2] == ""


def test_commands_of_other_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, greet=f"{__name__}:greet", forecast="nowhere:x")
    runner = CliRunner()
    assert "greet" in runner.invoke(cli, ["--help"]).output
    assert runner.invoke(cli, ["greet", "--times", "2"]).output == "hello hello \n"
    assert "Say hello." in runner.invoke(cli, ["greet", "--help"]).output
    # A name of ours stays ours.
    assert "horizon" in runner.invoke(cli, ["forecast", "--help"]).output


@pytest.mark.parametrize(
    ("value", "said"),
    [("nowhere.at.all:x", "No module named 'nowhere'"), (f"{__name__}:absent", "absent"),
     (f"{__name__}:pytest", "is no click command")],
)  # fmt: skip
def test_a_broken_command_is_one_error_and_breaks_no_other(
    monkeypatch: pytest.MonkeyPatch, value: str, said: str
) -> None:
    installed(monkeypatch, broken=value)
    runner = CliRunner()
    assert runner.invoke(cli, ["--help"]).exit_code == 0
    result = runner.invoke(cli, ["broken"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: command 'broken'") and said in result.stderr
    assert result.stderr.count("\n") == 1
