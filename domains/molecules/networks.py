"""From a model's configuration to its denoiser: paths and network of the molecule fields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from domains.molecules.encoding import BOND_CLASSES, Encoding
from sciflow.denoisers import Network, NetworkDenoiser
from sciflow.errors import InputError
from sciflow.paths import CategoricalPath, GaussianPath, Path
from sciflow.schedules import schedule_from_config
from sciflow.spaces import Tokens, ZeroCoM

if TYPE_CHECKING:
    from sciflow.predictors import PropertyPredictor

__all__ = ["PREDICTOR", "PRESETS", "build_denoiser", "build_predictor"]

_LINE = {"kind": "rectified"}
_PATHS: dict[str, Any] = {
    "coords": {"schedule": _LINE, "prediction": "edm", "coupling": "equivariant-ot"},
    "types": {"schedule": _LINE, "kind": "absorbing"},
    "charges": {"schedule": _LINE, "kind": "absorbing"},
    "bonds": {"schedule": _LINE, "kind": "absorbing"},
}

PRESETS: dict[str, dict[str, Any]] = {
    "small": {
        "paths": _PATHS,
        "network": {
            "kind": "equivariant-transformer",
            "dim": 128,
            "pair_dim": 32,
            "depth": 6,
            "heads": 8,
        },
        "self_conditioning": True,
    },
    "transformer": {
        "paths": _PATHS,
        "network": {
            "kind": "augmented-transformer",
            "dim": 192,
            "pair_dim": 32,
            "depth": 6,
            "heads": 8,
        },
        "self_conditioning": True,
    },
    "tensor-field": {
        "paths": _PATHS,
        "network": {
            "kind": "tensor-field",
            "dim": 128,
            "pair_dim": 32,
            "depth": 4,
            "heads": 4,
            "degree": 2,
        },
        "self_conditioning": True,
    },
    "sparse": {
        "paths": _PATHS,
        "network": {
            "kind": "sparse-message-passing",
            "dim": 128,
            "vectors": 32,
            "pair_dim": 32,
            "depth": 4,
            "cutoff": 4.0,
        },
        "self_conditioning": True,
    },
}
"""Named starting points of a configuration; the domain adds vocabulary and statistics."""

PREDICTOR: dict[str, Any] = {
    "paths": _PATHS,
    "network": {"dim": 96, "pair_dim": 24, "depth": 4, "heads": 6},
}
"""The same for a predictor of properties."""


def build_paths(config: dict[str, Any]) -> dict[str, Path]:
    """One path a field."""
    encoding = Encoding.from_config(config["encoding"])
    spaces = {
        "types": Tokens(len(encoding.elements)),
        "charges": Tokens(len(encoding.charges)),
        "bonds": Tokens(BOND_CLASSES, pairs=True),
    }
    c = config["paths"]
    paths: dict[str, Path] = {
        "coords": GaussianPath(
            ZeroCoM(3, "coords"),
            schedule_from_config(c["coords"]["schedule"]),
            c["coords"]["prediction"],
            coupling=c["coords"].get("coupling", "independent"),
        )
    }
    for name, space in spaces.items():
        p = c[name]
        paths[name] = CategoricalPath(
            space, schedule_from_config(p["schedule"]), p["kind"], p.get("marginal")
        )
    return paths


def build_denoiser(config: dict[str, Any]) -> NetworkDenoiser:
    """The denoiser that ``config`` describes, with fresh weights."""
    paths = build_paths(config)
    alphabets = _alphabets(paths)
    arguments = dict(config["network"])
    kind = arguments.pop("kind")
    arguments |= {
        "points": "coords",
        "tokens": {f: alphabets[f] for f in ("types", "charges")},
        "pairs": {"bonds": alphabets["bonds"]},
        "conditions": config["conditions"],
        "self_conditioning": config["self_conditioning"],
    }
    return NetworkDenoiser(_network(kind)(**arguments), paths, config["self_conditioning"])


def build_predictor(config: dict[str, Any]) -> PropertyPredictor:
    """The predictor of properties that ``config`` describes, with fresh weights."""
    from sciflow.networks.regressor import EquivariantRegressor
    from sciflow.predictors import PropertyPredictor

    paths = build_paths(config)
    alphabets = _alphabets(paths)
    network = EquivariantRegressor(
        "coords",
        {f: alphabets[f] for f in ("types", "charges")},
        {"bonds": alphabets["bonds"]},
        list(config["predicts"]),
        **config["network"],
    )
    return PropertyPredictor(network, paths, config["predicts"])


def _alphabets(paths: dict[str, Path]) -> dict[str, tuple[int, int]]:
    return {
        name: (path.symbols, path.classes)
        for name, path in paths.items()
        if isinstance(path, CategoricalPath)
    }


def _network(kind: str) -> type[Network]:
    """Imported on demand: e3nn and torch-geometric cost seconds."""
    if kind == "equivariant-transformer":
        from sciflow.networks.equivariant import EquivariantTransformer

        return EquivariantTransformer
    if kind == "augmented-transformer":
        from sciflow.networks.transformer import AugmentedTransformer

        return AugmentedTransformer
    if kind == "tensor-field":
        from sciflow.networks.tensor_field import TensorFieldNetwork

        return TensorFieldNetwork
    if kind == "sparse-message-passing":
        from sciflow.networks.sparse import SparseMessagePassing

        return SparseMessagePassing
    raise InputError(
        f"unknown network {kind!r}; known: equivariant-transformer, augmented-transformer, "
        "tensor-field, sparse-message-passing"
    )
