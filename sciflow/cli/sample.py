"""``sciflow sample``: from a model and targets to a folder of files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sciflow.cli.common import (
    FILE,
    jobs_option,
    names,
    progress_bar,
    report_dropped,
    require_folder,
    require_properties,
)
from sciflow.cli.task_options import TaskCommand, task_options
from sciflow.errors import InputError

if TYPE_CHECKING:
    from sciflow.model import Model, Samples

__all__ = ["sample", "torch_device"]


@click.command(cls=TaskCommand)
@click.argument("what", metavar="DOMAIN|MODEL", required=False)
@click.option("--model", help="Bundled model by name, or a model's folder.")
@click.option("-n", "--number", type=click.IntRange(min=1), default=16, show_default=True,
              help="How many samples.")  # fmt: skip
@click.option("-t", "--target", "targets", multiple=True, metavar="NAME=VALUE",
              help="A value (gap=6) or a range (dipole=2..3); repeat for several.")  # fmt: skip
@click.option("--length", metavar="N|LOW..HIGH",
              help="Size of each sample, where one can be wanted: --target length=N.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("-o", "--out", type=FILE, default="run", show_default=True, help="Output folder.")
@click.option("--steps", type=click.IntRange(min=1), help="Network calls; default the model's own.")
@click.option("--method", help="Solver, e.g. ab2, heun, unipc3 or ddpm; a wrong name lists them.")
@click.option("--grid", help="Spacing of the calls, e.g. uniform-u; a wrong name lists them.")
@click.option("--guidance", type=click.FloatRange(min=0), metavar="W",
              help="Weight of classifier-free guidance; 0 is none.")  # fmt: skip
@click.option("--guide", "guides", multiple=True, metavar="NAME:KEY=VALUE,...",
              help="Guide by an oracle, e.g. classifier:weight=1; a wrong name lists them; repeat "
              "for several.")  # fmt: skip
@click.option("--best-of", type=click.IntRange(min=1), default=1, show_default=True, metavar="K",
              help="Draw K candidates a sample; keep the sound one whose properties are predicted "
              "nearest to the targets.")  # fmt: skip
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
              help="Another setting of the sampler, e.g. token_eta=0.1.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1),
              help="Changes speed and memory only; default 32 on a CPU, else 256.")  # fmt: skip
@click.option("--first", type=click.IntRange(min=0), default=0, show_default=True,
              help="Number of the first sample, to share a large run out.")  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ...")
@jobs_option(" of the oracle")
@click.option("--properties", callback=names, metavar="NAMES",
              help="Let the oracle measure these too, e.g. gap,alpha.")  # fmt: skip
@click.option(
    "--relax", is_flag=True, help="Move each sound sample to the nearest minimum of the energy."
)
@click.option("--no-oracle", is_flag=True, help="Do not measure the samples.")
@click.option("--no-report", is_flag=True, help="Do not write report.html.")
def sample(what: str | None, model: str | None, number: int, targets: tuple[str, ...],
           length: str | None, seed: int, out: Path, steps: int | None, method: str | None,
           grid: str | None, guidance: float | None, guides: tuple[str, ...], best_of: int,
           settings: tuple[str, ...], batch_size: int | None, first: int,
           device: str, jobs: int, properties: list[str] | None, relax: bool, no_oracle: bool,
           no_report: bool, **of_tasks: str | None) -> None:  # fmt: skip
    """Draw samples with the properties asked for, measure them, and write a report.

    \b
    sciflow sample molecules -n 100 --target gap=6 --target dipole=2..3 --out run/

    Exits with 1 if any sample was dropped; the counts are on standard error.
    """
    from sciflow.guides import parse_guide
    from sciflow.model import SamplingInterrupted
    from sciflow.targets import parse_targets

    require_folder(out)
    wanted = parse_targets([*targets, *([] if length is None else [f"length={length}"])])
    chosen = _sampler(steps, method, grid, settings)
    loaded = _load(what, model)
    for text in guides:
        name, given = parse_guide(text)
        loaded = loaded.guided(name, **given)
    measured = list(dict.fromkeys([*wanted, *(properties or [])]))
    require_properties(properties or [], loaded.domain.properties, loaded.domain.name)
    interrupted = False
    with progress_bar("sampling", "sample") as progress:
        try:
            samples = loaded.sample(
                number, wanted, seed, guidance=guidance, first=first, batch_size=batch_size,
                sampler=chosen, device=torch_device(device), best_of=best_of,
                task=task_options(of_tasks), progress=progress,
            )  # fmt: skip
        except SamplingInterrupted as stop:
            samples, interrupted = stop.samples, True
    if interrupted:
        measured, no_report = [], True
        if not samples.kept:
            click.echo("interrupted before the first batch was done; nothing was saved", err=True)
            raise SystemExit(130)
    try:
        if relax and not interrupted:
            with progress_bar("relaxing", "sample") as progress:
                samples = samples.relaxed(jobs, progress)
        with progress_bar("measuring", "sample") as progress:
            samples.save(out, [] if no_oracle else measured, not no_report, progress, jobs)
    except KeyboardInterrupt:
        where = f"; samples.csv and the samples' files are in {out}" if out.is_dir() else ""
        click.echo(f"interrupted{where}", err=True)
        raise SystemExit(130) from None
    _finish(samples, out, interrupted)


def _finish(samples: Samples, out: Path, interrupted: bool) -> None:
    import json

    metrics = json.loads((out / "metrics.json").read_text())
    counts = metrics["samples"]
    dropped = report_dropped(counts["valid"], "samples are valid", counts["dropped"])
    for name, errors in metrics["targets"].items():
        if errors["mean_absolute_error"] is not None:
            click.echo(
                f"{name}: mean absolute error {errors['mean_absolute_error']:.3g} {errors['unit']} "
                f"by the oracle, {errors['measured']} measured",
                err=True,
            )
    for reason, count in metrics["oracle"]["failed"].items():
        click.echo(f"  oracle failed for {count}: {reason}", err=True)
    click.echo(str(out))
    if interrupted:
        click.echo("interrupted: the samples done by then were saved, not measured", err=True)
        raise SystemExit(130)
    if dropped or metrics["oracle"]["failed"]:
        raise SystemExit(1)


def _load(what: str | None, model: str | None) -> Model:
    import sciflow
    from sciflow.domain import names as domains

    if what is None and model is None:
        raise InputError(
            f"say what to sample: a domain ({', '.join(sorted(domains()))}), a model or its folder"
        )
    loaded = sciflow.load(model if model is not None else str(what))
    if model is not None and what is not None and loaded.domain.name != what:
        raise InputError(f"model {model!r} makes {loaded.domain.name}, not {what}")
    return loaded


def torch_device(name: str) -> str:
    """The device by name, "auto" resolved; an :class:`InputError` where it cannot be used."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {name!r} cannot be used: {reason}; try --device cpu") from error
    return name


def _sampler(
    steps: int | None, method: str | None, grid: str | None, settings: tuple[str, ...]
) -> dict[str, Any]:
    """Settings of the sampler that were given, each of the type of its default."""
    from dataclasses import fields

    from sciflow.guides import as_setting
    from sciflow.samplers import Sampler

    defaults = {f.name: f.default for f in fields(Sampler)}
    given: dict[str, Any] = {"steps": steps, "method": method, "grid": grid}
    given = {name: value for name, value in given.items() if value is not None}
    for text in settings:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            raise InputError(f"setting {text!r}: write KEY=VALUE")
        if name not in defaults:
            raise InputError(f"unknown sampler setting {name!r}; known: {', '.join(defaults)}")
        # The one setting without a number by default is a bound.
        kind = float if defaults[name] is None else type(defaults[name])
        given[name] = as_setting(kind, f"sampler setting {name}", value)
    return given
