"""Models of sequences: absorbing discrete diffusion of residues, and predictors that guide it.

    −log p(x) ≤ ∫ dt/t E Σ_{i masked} −log p(x_i | x_t)        each residue masked with chance t

(Sahoo et al. 2024, MDLM; DPLM of Wang et al. 2024 is the same chain on a protein language model.)
Training draws t evenly spread over a batch and above ``t_min``: near 0 the weight 1/t falls on few
residues, and would fill the gradient with their noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from domains.proteins.chain import ALPHABET
from domains.proteins.content_network import ContentNetwork
from domains.proteins.letters import FIELD
from sciflow.denoisers import NetworkDenoiser
from sciflow.errors import InputError
from sciflow.networks.tokens import TokenTransformer
from sciflow.objectives import DenoisingObjective, LossWeight
from sciflow.paths import CategoricalPath, Path
from sciflow.predictors import PropertyPredictor
from sciflow.schedules import schedule_from_config
from sciflow.spaces import Tokens

__all__ = [
    "SEQUENCE_PRESETS",
    "content_config",
    "content_predictor",
    "sequence_denoiser",
    "sequence_objective",
    "sequence_paths",
]

_CONTENT = {"dim": 64, "depth": 2, "heads": 4, "window": 8, "dropout": 0.1}

SEQUENCE_PRESETS: dict[str, dict[str, Any]] = {
    "sequences": {
        "paths": {FIELD: {"schedule": {"kind": "rectified"}}},
        "network": {"dim": 128, "depth": 4, "heads": 4, "window": 7, "dropout": 0.0},
        "lengths": [40, 256],
        "objective": {"t_min": 0.03},
        "sampler": {"steps": 100, "grid": "time", "greedy": False},
    },
}
"""Named starting points of a configuration; ``lengths`` are those of training sequences."""


def sequence_paths(config: Mapping[str, Any]) -> dict[str, Path]:
    """The one path of the residues."""
    schedule = schedule_from_config(config["paths"][FIELD]["schedule"])
    return {FIELD: CategoricalPath(Tokens(len(ALPHABET)), schedule, "absorbing")}


def sequence_denoiser(config: Mapping[str, Any]) -> NetworkDenoiser:
    """The denoiser that ``config`` describes, with fresh weights.

    ``config["informed"]`` names those of the conditions that the network reads; the others a
    predictor can guide towards.
    """
    paths = sequence_paths(config)
    read = {k: v for k, v in config["conditions"].items() if k in config["informed"]}
    size = len(ALPHABET)
    network = TokenTransformer((FIELD, size + 1, size), read, **config["network"])
    return NetworkDenoiser(network, paths)


def sequence_objective(config: Mapping[str, Any]) -> DenoisingObjective:
    """The bound on −log p a residue, less what lies below ``t_min``."""
    return DenoisingObjective(
        t_min=config["objective"]["t_min"],
        stratify=True,
        drop_all=0.3,
        drop_each=0.3,
        levels={FIELD: LossWeight("elbo")},
    )


def content_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a predictor of what the data of ``config`` know: helix and strand.

    Raises:
        InputError: the data know neither.
    """
    labels = config.get("labels") or {}
    if not labels:
        raise InputError(
            "a predictor learns from sequences whose secondary structure is known; train it with "
            "--data backbones, or on a folder of structures"
        )
    kept = ("domain", "dataset", "encoding", "paths", "objective")
    return {**{k: config[k] for k in kept}, "predicts": dict(labels), "network": dict(_CONTENT)}


def content_predictor(config: Mapping[str, Any]) -> PropertyPredictor:
    """The predictor that :func:`content_config` describes, with fresh weights."""
    network = ContentNetwork((FIELD, len(ALPHABET) + 1), config["predicts"], **config["network"])
    return PropertyPredictor(network, sequence_paths(config), config["predicts"])
