"""Models that ship with the adapters; found without importing torch."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from sciflow.domain import names

__all__ = ["bundled_models"]


def bundled_models() -> dict[str, Path]:
    """``{"domain/name": folder}`` of every model that ships with an installed adapter."""
    found = {}
    for domain, target in names().items():
        package = target.partition(":")[0].rpartition(".")[0]
        spec = find_spec(package) if package else None
        for root in (spec.submodule_search_locations or []) if spec else []:
            for manifest in sorted(Path(root).glob("models/*/manifest.json")):
                found[f"{domain}/{manifest.parent.name}"] = manifest.parent
    return found
