"""Models that ship with the adapters; found without importing torch."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from sciflow.domain import names

__all__ = ["bundled_models", "bundled_predictors"]


def bundled_models() -> dict[str, Path]:
    """``{"domain/name": folder}`` of every model that ships with an installed adapter."""
    return _shipped("models")


def bundled_predictors() -> dict[str, Path]:
    """The same for predictors of properties, by the name of the model that each can guide."""
    return _shipped("predictors")


def _shipped(kind: str) -> dict[str, Path]:
    found = {}
    for domain, target in names().items():
        package = target.partition(":")[0].rpartition(".")[0]
        spec = find_spec(package) if package else None
        for root in (spec.submodule_search_locations or []) if spec else []:
            for manifest in sorted(Path(root).glob(f"{kind}/*/manifest.json")):
                found[f"{domain}/{manifest.parent.name}"] = manifest.parent
    return found
