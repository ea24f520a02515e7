"""From a model's configuration to its denoiser: paths and network of the backbone's fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from domains.proteins.encoding import Encoding
from domains.proteins.letters import FIELD
from domains.proteins.losses import StructureLoss
from domains.proteins.network import BackboneNetwork
from domains.proteins.sequence_encoding import is_sequence_model
from domains.proteins.sequence_networks import (
    SEQUENCE_PRESETS,
    sequence_denoiser,
    sequence_objective,
    sequence_paths,
)
from sciflow.denoisers import NetworkDenoiser
from sciflow.objectives import DenoisingObjective, GivenRule
from sciflow.paths import GaussianPath, GeodesicPath, Path
from sciflow.schedules import schedule_from_config
from sciflow.spaces import SO3, Euclidean, Torus, ZeroCoM

__all__ = ["PRESETS", "build_denoiser", "build_objective", "build_paths"]

_LINE = {"kind": "rectified"}
_PIECES = {"lengths": [40, 128], "crops": 2.0, "rg_ratio": 1.25, "coil": 0.6}
# The network measures distances in its input: only a schedule that keeps the variance shows given
# and noisy residues on one scale.
_ROUND = {"kind": "cosine"}

# σ = 4^t − 1: heat then hides about as much of an angle at every time as the flow does
# (exp(−σ²/2) beside sin(πt)/(πt)), while s/a of a line spends half its times where nothing is left.
_HEAT = {"kind": "ve", "sigma_min": 0.75, "sigma_max": 3.0}

_ANGLES = {
    "torsions": {"schedule": _LINE, "prediction": "bounded"},
    "bends": {"schedule": _LINE, "prediction": "edm"},
}
_HEATED = {**_ANGLES, "torsions": {**_ANGLES["torsions"], "schedule": _HEAT, "kind": "diffusion"}}
_FRAMES = {
    "positions": {"schedule": _ROUND, "prediction": "edm"},
    "rotations": {"schedule": _LINE, "prediction": "tangent"},
}
_ALONG_THE_CHAIN = {
    "fields": [*_ANGLES],
    "network": {"dim": 128, "pair_dim": 0, "depth": 5, "heads": 4},
    "self_conditioning": False,
    "pieces": _PIECES,
    "objective": {"structure": 0.0, "scaffolds": False},
}
_IN_SPACE = {
    "network": {"dim": 128, "pair_dim": 24, "depth": 4, "heads": 8, "reach": 4},
    "self_conditioning": True,
    "pieces": _PIECES,
}

PRESETS: dict[str, dict[str, Any]] = {
    "angles": {**_ALONG_THE_CHAIN, "paths": _ANGLES},
    "angles-by-heat": {**_ALONG_THE_CHAIN, "paths": _HEATED},
    "angles-in-space": {
        **_ALONG_THE_CHAIN,
        "paths": _ANGLES,
        "self_conditioning": True,
        "objective": {"structure": 0.5, "scaffolds": True},
    },
    "frames": {
        "fields": [*_FRAMES],
        "paths": _FRAMES,
        **_IN_SPACE,
        "objective": {"structure": 1.0, "scaffolds": True},
    },
    "codesign": {
        "fields": [*_FRAMES, FIELD],
        "paths": {**_FRAMES, FIELD: {"schedule": _LINE}},
        **_IN_SPACE,
        "objective": {"structure": 1.0, "scaffolds": True, "folds": 0.4},
    },
    **SEQUENCE_PRESETS,
}
"""Named starting points of a configuration; the domain adds scale and statistics.

``angles`` is a plain transformer along the chain, which costs a third of the others a step, and
``angles-by-heat`` the same with torsions that diffuse, so that superposition knows their density;
``angles-in-space`` sees the chain that its last estimate builds. ``codesign`` makes frames and the
residues that they carry, or finds residues for frames that are given.
"""


def build_paths(config: Mapping[str, Any]) -> dict[str, Path]:
    """One path a field."""
    paths: dict[str, Path] = {}
    for name in config["encoding"]["fields"]:
        c = config["paths"][name]
        schedule, prediction = schedule_from_config(c["schedule"]), c.get("prediction")
        match name:
            case "positions":
                paths[name] = GaussianPath(ZeroCoM(3, name), schedule, prediction)
            case "rotations":
                paths[name] = GeodesicPath(SO3(), schedule, "flow", prediction)
            case "torsions":
                kind = c.get("kind", "flow")
                paths[name] = GeodesicPath(Torus(3), schedule, kind, prediction)
            case "bends":
                paths[name] = GaussianPath(Euclidean(3), schedule, prediction)
            case "residues":
                paths |= sequence_paths(config)
    return paths


def build_denoiser(config: Mapping[str, Any]) -> NetworkDenoiser:
    """The denoiser that ``config`` describes, with fresh weights."""
    if is_sequence_model(config):
        return sequence_denoiser(config)
    encoding = Encoding.from_config(config["encoding"])
    network = BackboneNetwork(
        encoding.fields, config["conditions"], encoding.scale,
        self_conditioning=config["self_conditioning"],
        **config["network"],
    )  # fmt: skip
    return NetworkDenoiser(network, build_paths(config), config["self_conditioning"])


def build_objective(config: Mapping[str, Any]) -> DenoisingObjective:
    """How that denoiser is trained.

    ``config["objective"]`` has ``structure``, the weight of the loss of the chain in space (0
    leaves it out), ``scaffolds``, whether one in four samples has residues given: a motif is a
    run of them, or several, or all but one gap; and ``folds``, the share of samples of which the
    structure is given and the residues are asked for.
    """
    if is_sequence_model(config):
        return sequence_objective(config)
    encoding, settings = Encoding.from_config(config["encoding"]), config["objective"]
    weight, fields = settings["structure"], encoding.fields
    given = {}
    if settings["scaffolds"]:
        given["motif"] = GivenRule(fields, "random", 0.15, (0.1, 0.5), run=10)
        given["gap"] = GivenRule(fields, "infill", 0.1, (0.5, 0.9))
    if encoding.sequence:
        given["fold"] = GivenRule(encoding.structure, "all", settings["folds"])
    return DenoisingObjective(
        weights={"bends": 0.5, "structure": weight},
        beta=1.3,
        drop_all=0.3,
        drop_each=0.3,
        given=given,
        auxiliary={"structure": StructureLoss(encoding)} if weight else {},
    )
