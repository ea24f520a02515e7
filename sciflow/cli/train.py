"""``sciflow train``: from a data set to a model's folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sciflow.cli.common import FILE, names, require_folder, require_properties
from sciflow.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["train"]


@click.command()
@click.argument("domain")
@click.option("--data", "source", required=True, metavar="NAME|FILE",
              help="A data set (see: sciflow list) or a file of the field.")  # fmt: skip
@click.option("--preset", help="Network preset; default the domain's first.")
@click.option("--start-from", "origin", metavar="MODEL",
              help="Fine-tune a trained model: its weights and properties; with --preset, by other "
                   "paths, where the network is the same.")  # fmt: skip
@click.option("--predict-for", metavar="MODEL",
              help="Train what can guide a model: a predictor of its properties.")  # fmt: skip
@click.option("--target-properties", callback=names, metavar="NAMES",
              help="What the model can later be asked for, e.g. gap,dipole.")  # fmt: skip
@click.option("--steps", type=click.IntRange(min=1), help="Default the domain's, or 20000.")
@click.option("--batch-size", type=click.IntRange(min=1),
              help="Samples a step, over all processes; default the domain's, or 64.")  # fmt: skip
@click.option("--lr", type=float, help="Peak learning rate; default the domain's, or 0.001.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("-o", "--out", type=FILE, required=True,
              help="Folder of the log, checkpoints and, at the end, model/.")  # fmt: skip
@click.option("--resume/--no-resume", default=True, show_default=True,
              help="Go on from the last checkpoint in the folder, or refuse to.")  # fmt: skip
@click.option("--devices", default="1", show_default=True, help="Number, list (0,1) or auto.")
@click.option("--num-nodes", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--strategy", default="auto", show_default=True, help="Lightning's, e.g. ddp.")
@click.option("--accelerator", default="auto", show_default=True, help="Lightning's, e.g. cpu.")
@click.option("--precision", type=click.Choice(["32-true", "bf16-mixed"]), default="32-true",
              show_default=True)  # fmt: skip
@click.option("--checkpoint-every", type=click.IntRange(min=1), default=500, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="Of torch, on the CPU, a process.")
def train(domain: str, source: str, preset: str | None, origin: str | None,
          predict_for: str | None, target_properties: list[str] | None, steps: int | None,
          batch_size: int | None, lr: float | None, seed: int, out: Path, resume: bool,
          devices: str, num_nodes: int, strategy: str, accelerator: str, precision: str,
          checkpoint_every: int, threads: int | None) -> None:  # fmt: skip
    """Train a model of DOMAIN; the same command again goes on from its last checkpoint.

    \b
    sciflow train molecules --data qm9-gfn2 --target-properties gap,dipole --out runs/a
    sciflow sample --model runs/a/model -n 100 --target gap=6

    Ends with a model folder that `sciflow sample --model` takes. Ctrl-C stops after the step under
    way, saves, and exits with 130.
    """
    from sciflow.domain import get_domain

    adapter = get_domain(domain)
    require_folder(out)
    conditions = target_properties or []
    require_properties(conditions, adapter.properties, domain)
    own = {"steps": 20_000, "batch_size": 64, "lr": 1e-3, **adapter.training}
    batch_size = batch_size or own["batch_size"]
    lr = own["lr"] if lr is None else lr
    if not lr > 0:
        raise InputError(f"--lr must be positive, not {lr}")

    import torch

    from sciflow.denoisers import NetworkDenoiser
    from sciflow.model import Model, load
    from sciflow.objectives import DenoisingObjective, PropertyObjective
    from sciflow.predictors import PropertyPredictor, save_predictor
    from sciflow.reports.card import training_card
    from sciflow.training.fit import fit

    dataset = adapter.dataset(source)
    if origin is not None and target_properties:
        raise InputError("--start-from keeps the model's own properties; give no "
                         "--target-properties with it")  # fmt: skip
    if predict_for is not None and (target_properties or preset or origin):
        raise InputError("--predict-for takes the properties and encoding of that model; give none "
                         "of --preset, --target-properties and --start-from with it")  # fmt: skip
    known = origin if predict_for is None else predict_for
    begin = None if known is None else load(known)
    like = None if begin is None else begin.config
    network = f"that of {origin}, started from its weights"
    if begin is None:
        network = preset = preset or adapter.presets()[0]
    elif preset is not None:
        # The data need not tell the properties.
        like = {**adapter.prepare(dataset, preset, [])[0],
                "conditions": begin.config["conditions"]}  # fmt: skip
        _require_same_network(adapter.denoiser(like), begin.denoiser, preset, str(origin))
        like["encoding"] = begin.config["encoding"]
        network = f"{preset}, started from the weights of {origin}"
    preset = preset or adapter.presets()[0]
    config, data, validation = adapter.prepare(dataset, preset, conditions, like)
    steps = steps or default_steps(own["steps"], len(data), batch_size)
    torch.manual_seed(seed)
    trainee: NetworkDenoiser | PropertyPredictor
    corruption = adapter.objective(config)
    objective: DenoisingObjective | PropertyObjective = corruption
    if predict_for is None:
        trainee = adapter.denoiser(config)
        if begin is not None:
            trainee.load_state_dict(begin.denoiser.state_dict())
    else:
        config = adapter.predictor_config(config)
        trainee, objective = adapter.predictor(config), PropertyObjective(corruption)
        network = f"the predictor's, for {predict_for}"
    result = fit(
        trainee, objective, data, out,
        steps=steps, batch_size=batch_size, seed=seed, lr=lr, precision=precision,  # type: ignore[arg-type]
        accelerator=accelerator, devices=_devices(devices), num_nodes=num_nodes, strategy=strategy,
        checkpoint_every=checkpoint_every, resume=resume, threads=threads,
        validation=validation if len(validation) else None,
    )  # fmt: skip
    if not result.main:
        return
    training = {
        "data": source, "samples": len(data), "held_out_for_validation": len(validation),
        "preset": network, "steps": result.step, "steps_planned": steps,
        "batch_size": batch_size,
        "lr": lr, "seed": seed, "precision": precision,
        "last_log_row": {name: float(value) for name, value in result.row.items()},
    }  # fmt: skip
    config = {**config, "training": training}
    card = training_card(adapter, config, result.denoiser)
    if isinstance(result.denoiser, PropertyPredictor):
        saved = save_predictor(out / "predictor", result.denoiser, config, card)
    else:
        model = Model(adapter, result.denoiser, config, adapter.reference(data), card)
        if result.finished and (fitted := adapter.calibrate(model, dataset)):
            model = Model(adapter, result.denoiser, {**config, **fitted}, model.reference, card)
        saved = model.save(out / "model")
    click.echo(str(saved))
    if result.stopped_by is not None:
        raise SystemExit(130 if result.stopped_by == "SIGINT" else 143)


def default_steps(own: int | tuple[int, int], samples: int, batch_size: int) -> int:
    """The domain's number of steps; of a pair (least, most): one pass over the samples, within."""
    if isinstance(own, int):
        return own
    least, most = own
    return min(max(-(-samples // batch_size), least), most)


def _require_same_network(
    network: torch.nn.Module, like: torch.nn.Module, preset: str, origin: str
) -> None:
    shapes, known = ({name: tuple(x.shape) for name, x in module.state_dict().items()}
                     for module in (network, like))  # fmt: skip
    for name in {**known, **shapes}:
        if shapes.get(name) != known.get(name):
            raise InputError(
                f"the network of preset {preset} is not that of {origin}: {name} is "
                f"{shapes.get(name, 'missing')} here and {known.get(name, 'missing')} there; name "
                "a preset of the same network, or leave --preset out"
            )


def _devices(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdigit() else text
