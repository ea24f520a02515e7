"""Options of tasks come from the domains: shown by name, refused where they are another's."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner

import sciflow.cli.task_options as task_options
from sciflow.cli import cli
from sciflow.domain import Option, get_domain, names
from sciflow.errors import InputError


def test_help_lists_every_domains_options_under_its_name() -> None:
    text = CliRunner().invoke(cli, ["sample", "--help"]).output
    for name in names():
        options = get_domain(name).options
        assert (f"Options for {name}:" in text) == bool(options)
        for option in options:
            assert f"--{option} " in text
    assert text.index("--no-report") < text.index("Options for proteins:") < text.index("--contig")


def test_an_option_of_another_domain_is_refused_in_one_line() -> None:
    command = ["sample", "molecules", "-n", "1", "--contig", "10"]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 2 and result.output.count("\n") == 1
    assert "molecules cannot be asked for 'contig'; it has: no tasks" in result.output
    result = CliRunner().invoke(cli, ["sample", "molecules", "--contigs", "10"])
    assert result.exit_code == 2 and "No such option" in result.output


def test_names_are_shared_and_the_commands_own_options_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = {"part": Option("FILE", "Of one."), "seed": Option("N", "Taken already.")}
    two = {"part": Option("TEXT", "Of two.")}

    def load(name: str) -> object:
        if name == "broken":
            raise InputError("cannot be loaded")
        return SimpleNamespace(options={"one": one, "two": two}[name])

    monkeypatch.setattr(task_options, "names", lambda: dict.fromkeys(["broken", "two", "one"], ""))
    monkeypatch.setattr(task_options, "get_domain", load)
    seen = {}

    @click.command(cls=task_options.TaskCommand)
    @click.option("--seed", type=int, default=3)
    def command(seed: int, **of_tasks: str | None) -> None:
        seen.update(seed=seed, tasks=task_options.task_options(of_tasks))

    assert CliRunner().invoke(command, ["--part", "x", "--seed", "4"]).exit_code == 0
    assert seen == {"seed": 4, "tasks": {"part": "x"}}
    assert CliRunner().invoke(command, []).exit_code == 0 and seen["tasks"] == {}
    text = CliRunner().invoke(command, ["--help"]).output
    assert "Options for one:" in text and "--part FILE" in text and "--part TEXT" in text


def test_the_help_of_sample_imports_no_torch() -> None:
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom sciflow.cli import cli\n"
        "assert '--contig' in CliRunner().invoke(cli, ['sample', '--help']).output\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
