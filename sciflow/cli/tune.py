"""``sciflow tune-guidance``: a guide's settings by trial, on samples as they would be used."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sciflow.cli.common import FILE, jobs_option, progress_bar
from sciflow.errors import InputError

if TYPE_CHECKING:
    from sciflow.guidance import Trial
    from sciflow.guides import Guide
    from sciflow.model import Model, Samples

__all__ = ["mean_error", "parse_range", "tune_guidance", "valid_share"]


@click.command("tune-guidance")
@click.argument("what", metavar="DOMAIN|MODEL")
@click.option("--guide", "text", required=True, metavar="NAME[:KEY=VALUE,...]",
              help="The guide, with settings to keep; a wrong name lists them.")  # fmt: skip
@click.option("--over", "ranges", multiple=True, required=True, metavar="KEY=START:FACTOR:LARGEST",
              help="A setting, from START up by FACTOR to LARGEST; repeat for more.")  # fmt: skip
@click.option("-t", "--target", "targets", multiple=True, metavar="NAME=VALUE",
              help="A value (gap=6) or a range (dipole=2..3); repeat for several.")  # fmt: skip
@click.option("-n", "--number", type=click.IntRange(min=1), default=32, show_default=True,
              help="Samples an evaluation.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True,
              help="The same for all, so that they differ by the settings alone.")  # fmt: skip
@click.option("--budget", type=click.IntRange(min=1), default=12, show_default=True,
              help="Evaluations at most, and one without the guide.")  # fmt: skip
@click.option("--beam", type=click.IntRange(min=1), default=2, show_default=True,
              help="How many of the best are varied in turn.")  # fmt: skip
@click.option("--refine", type=click.IntRange(min=0), default=0, show_default=True,
              help="Where nothing more comes of it, go on with the square roots of the factors, so "
              "often.")  # fmt: skip
@click.option("--metric", type=click.Choice(["mae", "valid"]), default="mae", show_default=True,
              help="Mean absolute error by the oracle, or the share of valid samples.")  # fmt: skip
@click.option("-o", "--out", type=FILE, default="tune.csv", show_default=True,
              help="All trials, the best first.")  # fmt: skip
@click.option("--steps", type=click.IntRange(min=1), help="Network calls; default the model's own.")
@click.option("--batch-size", type=click.IntRange(min=1),
              help="Changes speed and memory only; default 32 on a CPU, else 256.")  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ...")
@jobs_option(" of the oracle")
def tune_guidance(what: str, text: str, ranges: tuple[str, ...], targets: tuple[str, ...],
                  number: int, seed: int, budget: int, beam: int, refine: int, metric: str,
                  out: Path, steps: int | None, batch_size: int | None, device: str,
                  jobs: int) -> None:  # fmt: skip
    """Search the settings of a guide by beam search, and print the best as text for --guide.

    \b
    sciflow tune-guidance molecules --guide training-free --target gap=6 \\
        --over mu=0.25:2:8 --over clip=0.3:2:3

    An invalid sample, or one that the oracle fails for, counts as far off as training samples of
    its size are on average, so that dropping samples does not pay. Every trial is on disk as soon
    as it is done; the row without settings is the model without the guide, at the same seed.
    """
    import sciflow
    from sciflow.cli.sample import torch_device
    from sciflow.guidance import Trial, beam_search
    from sciflow.guides import find_guide, parse_guide
    from sciflow.targets import parse_targets

    if out.is_dir():
        raise InputError("this is a folder; give a file for the table of trials", out)
    name, fixed = parse_guide(text)
    searched = dict(map(parse_range, ranges))
    if len(searched) < len(ranges):
        raise InputError("--over: each setting may be given once")
    wanted = parse_targets(targets)
    if metric == "mae" and not wanted:
        raise InputError(
            "the mean absolute error is from targets, and there are none; give --target NAME=VALUE "
            "or --metric valid"
        )
    model = sciflow.load(what)
    guide = find_guide(name, model.domain.guides())
    _check(name, guide, fixed, searched)
    whole = [key for key in searched if type(guide.settings[key]) is int]
    where = torch_device(device)
    trials: list[Trial] = []
    bare: list[Trial] = []
    shares: dict[tuple[float, ...], float] = {}
    refused: list[InputError] = []

    def measured(tried: Model, key: tuple[float, ...]) -> float:
        samples = tried.sample(
            number, wanted, seed, batch_size=batch_size, device=where,
            sampler={} if steps is None else {"steps": steps},
        )  # fmt: skip
        share = shares[key] = valid_share(samples)
        return -share if metric == "valid" else mean_error(samples, jobs)

    def score(settings: Mapping[str, float]) -> float:
        try:
            return measured(model.guided(name, **fixed, **settings), tuple(settings.values()))
        except InputError as error:
            refused.append(error)
            raise

    with progress_bar("tuning", "trial") as progress:

        def tell(trial: Trial) -> None:
            # What is refused at the start was wrong in the command; later, a setting is too large.
            if not trials and refused:
                raise refused[0]
            first = not trials
            trials.append(trial)
            _write(out, [*trials, *bare], shares, metric, list(searched))
            if first:
                bare.append(Trial({}, measured(model, ())))
                _write(out, [*trials, *bare], shares, metric, list(searched))
            progress(len(trials), budget)

        starts, factors, largest = (
            {key: triple[i] for key, triple in searched.items()} for i in range(3)
        )
        interrupted = False
        try:
            beam_search(score, starts, factors, largest, whole=whole, beam=beam,
                        refinements=refine, budget=budget, progress=tell)  # fmt: skip
        except KeyboardInterrupt:
            interrupted = True
    _finish(trials, bare, name, fixed, metric, out, interrupted)


def parse_range(text: str) -> tuple[str, tuple[float, float, float]]:
    """``KEY=START:FACTOR:LARGEST`` as (key, numbers).

    Raises:
        InputError: the text has another form, or does not go up from above 0.
    """
    key, equals, rest = (part.strip() for part in text.partition("="))
    try:
        start, factor, largest = map(float, rest.split(":"))
    except ValueError:
        equals = ""
    if not equals or not key:
        raise InputError(f"--over {text!r}: write KEY=START:FACTOR:LARGEST, e.g. mu=0.25:2:8")
    if not (0 < start <= largest < math.inf and 1 < factor < math.inf):
        raise InputError(
            f"--over {text!r}: the start must be above 0 and at most the largest value, and the "
            "factor above 1"
        )
    return key, (start, factor, largest)


def valid_share(samples: Samples) -> float:
    """The share of samples that the domain finds sound."""
    return len(_sound(samples)) / len(samples)


def mean_error(samples: Samples, jobs: int = -1) -> float:
    """Mean distance of the oracle's values from those asked for, over all samples.

    Samples without a value count with the size-only error (:attr:`Samples.same_size`). Of several
    properties it is the mean, each in units of its own size-only error.

    Raises:
        InputError: the size-only error is needed and not known.
    """
    sound = _sound(samples)
    names = list(samples.targets)
    answers = samples.domain.oracle([samples.records[i] for i in sound], names, jobs)
    errors = []
    for name in names:
        asked, scale = samples.targets[name], samples.same_size.get(name, math.nan)
        found = [
            abs(asked[i] - answer.values[name])
            for i, answer in zip(sound, answers, strict=True)
            if name in answer.values
        ]
        missing = len(samples) - len(found)
        if (missing or len(names) > 1) and not (math.isfinite(scale) and scale > 0):
            raise InputError(
                f"this model does not know how {name} is spread among training samples of a size, "
                "by which samples without a value count; use --metric valid"
            )
        error = math.fsum([*found, scale * missing if missing else 0.0]) / len(samples)
        errors.append(error / scale if len(names) > 1 else error)
    return math.fsum(errors) / len(errors)


def _sound(samples: Samples) -> list[int]:
    kept = [i for i, record in enumerate(samples.records) if record is not None]
    verdicts = samples.domain.verdicts([samples.records[i] for i in kept])
    return [i for i, why in zip(kept, verdicts, strict=True) if not why]


def _check(name: str, guide: Guide, fixed: Mapping[str, str],
           searched: Mapping[str, Sequence[float]]) -> None:  # fmt: skip
    if both := sorted(set(fixed) & set(searched)):
        raise InputError(f"{both[0]} is both fixed by --guide and searched by --over; give one")
    guide.complete(name, {**fixed, **{key: triple[0] for key, triple in searched.items()}})
    for key in searched:
        kind = type(guide.settings[key])
        if kind not in (int, float):
            numbers = [k for k, v in guide.settings.items() if type(v) in (int, float)]
            raise InputError(
                f"guide {name}: {key} is not a number to search; those are: {', '.join(numbers)}"
            )


def _score(trial: Trial, metric: str) -> float:
    return abs(trial.score) if metric == "valid" else trial.score


def _write(out: Path, trials: Sequence[Trial], shares: Mapping[tuple[float, ...], float],
           metric: str, names: Sequence[str]) -> None:  # fmt: skip
    from sciflow.files import write_csv

    rows = []
    for trial in sorted(trials, key=lambda x: x.score):
        row: dict[str, float | str] = dict(trial.parameters)
        row["valid"] = shares.get(tuple(trial.parameters.values()), "")
        if not trial.failure:
            row[metric] = _score(trial, metric)
        rows.append({**row, "failure": trial.failure})
    write_csv(out, rows, dict.fromkeys([*names, metric, "valid", "failure"]))


def _finish(trials: Sequence[Trial], bare: Sequence[Trial], name: str, fixed: Mapping[str, str],
            metric: str, out: Path, interrupted: bool) -> None:  # fmt: skip
    good = sorted((t for t in trials if not t.failure), key=lambda x: x.score)
    if failed := len(trials) - len(good):
        click.echo(f"{failed} of {len(trials)} trials failed; the reasons are in {out}", err=True)
    if good:
        best = good[0]
        without = f", without the guide {_score(bare[0], metric):.4g}" if bare else ""
        click.echo(f"{metric} {_score(best, metric):.4g}{without}; best of {len(trials)} trials, "
                   f"all in {out}", err=True)  # fmt: skip
        if bare and bare[0].score <= best.score:
            click.echo("no setting was better than leaving the guide out", err=True)
        settings = {**fixed, **{k: f"{v:.12g}" for k, v in best.parameters.items()}}
        click.echo(f"--guide {name}:" + ",".join(f"{k}={v}" for k, v in settings.items()))
    if interrupted:
        done = f"the trials done by then are in {out}" if trials else "no trial was done"
        click.echo(f"interrupted: {done}", err=True)
        raise SystemExit(130)
    if not good:
        raise SystemExit(1)
