"""The card of a model that ``sciflow train`` made: what is known of it, and what is not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sciflow.denoisers import NetworkDenoiser
from sciflow.domain import Domain
from sciflow.predictors import PropertyPredictor
from sciflow.reports.summary import versions

__all__ = ["training_card"]


def training_card(
    domain: Domain, config: Mapping[str, Any], trained: NetworkDenoiser | PropertyPredictor
) -> str:
    """Markdown; its first line below the title is what ``sciflow list`` shows."""
    training = config["training"]
    parameters = sum(p.numel() for p in trained.network.parameters())
    unfinished = training["steps"] < training["steps_planned"]
    row = training["last_log_row"]
    lines = [
        f"# {domain.name}, trained on {training['data']}",
        "",
        f"{parameters:,} parameters, {training['steps']:,} steps"
        + (f" of {training['steps_planned']:,} (stopped early)" if unfinished else "")
        + f" on {training['samples']:,} samples of {training['data']}; not evaluated.",
        "",
        "## Trained on",
        f"* data: {training['data']}, {training['samples']:,} samples for training and "
        f"{training['held_out_for_validation']:,} held out for the validation loss",
        f"* network: preset {training['preset']}, {parameters:,} parameters, exponentially "
        "averaged weights",
        f"* {training['steps']:,} steps of {training['batch_size']} samples, peak learning rate "
        f"{training['lr']:g}, {training['precision']}, seed {training['seed']}",
    ]
    if "seconds" in row:
        hours, seconds = divmod(round(row["seconds"]), 3600)
        lines.append(f"* {hours} h {seconds // 60} min {seconds % 60} s of wall-clock time")
    lines += [f"* {name}: {value:.4g} (last row of the log)"
              for name, value in row.items() if name in ("loss", "validation")]  # fmt: skip
    predicts = "predicts" in config
    lines += ["", "## Predicts" if predicts else "## Can be asked for"]
    lines += [
        f"* {name}: {domain.properties[name].summary}, training data {mean:.4g} ± {std:.2g} "
        f"{domain.properties[name].unit}"
        for name, (mean, std) in config.get("predicts" if predicts else "conditions", {}).items()
    ] or ["* nothing: it was trained without properties"]
    lines += [
        "",
        "## Not known",
        "* How well a model follows it: nothing was guided when this card was written. Find out "
        "with `sciflow sample --guide classifier:predictor=FOLDER`."
        if predicts
        else "* How good its samples are: none was drawn when this card was written. Find out with "
        f"`sciflow sample --model FOLDER` and `sciflow evaluate {domain.name}`.",
        "* Anything outside the range of its training data: targets far from the values above, "
        "sizes and kinds that the data lack.",
        "",
        "## Made with",
        f"* {datetime.now(UTC).date()}",
        *(f"* {name} {v}" for name, v in versions(domain.packages).items()),
        "",
        "## Configuration",
        "```json",
        json.dumps({k: v for k, v in config.items() if k != "training"}, indent=1),
        "```",
        "",
    ]
    return "\n".join(lines)
