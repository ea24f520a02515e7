"""What a run is, so that resuming another run's checkpoint is refused by name.

Step k is a function of data, batch size, seed, network, paths and objective: these must match.
Learning rate, its schedule, the number of steps, precision and processes may be changed on purpose;
the change is then said aloud, because the run no longer equals an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from sciflow.errors import InputError
from sciflow.training.data import TrainingData
from sciflow.training.module import AnyObjective, Trainee

__all__ = ["changes", "fingerprint", "require_same"]


def fingerprint(
    denoiser: Trainee,
    objective: AnyObjective,
    data: TrainingData,
    batch_size: int,
    seed: int,
) -> dict[str, Any]:
    """Plain data, one entry for each thing that must not change."""
    shapes = {name: list(p.shape) for name, p in denoiser.network.named_parameters()}
    return _plain({
        "data": {"samples": len(data), "sha256": data.digest()[:16]},
        "batch size": batch_size,
        "seed": seed,
        "network": {
            "parameters": sum(p.numel() for p in denoiser.network.parameters()),
            "sha256": hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:16],
        },
        "paths": {name: _config(path) for name, path in denoiser.paths.items()},
        "self-conditioning": denoiser.self_conditioning,
        "objective": objective.config(),
    })  # fmt: skip


def require_same(saved: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    """Raise an :class:`InputError` that names the first thing that differs from the checkpoint."""
    for name in now:
        if saved.get(name) != now[name]:
            was, given = _difference(saved.get(name), now[name])
            raise InputError(
                f"cannot resume: {name} differs: the checkpoint was made with {was}, this run asks "
                f"for {given}; use the former, or start anew in another folder",
                path,
            )


def changes(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """``"lr 0.001 -> 0.0005"`` for each setting that differs."""
    return [f"{k} {saved.get(k)} -> {v}" for k, v in now.items() if saved.get(k) != v]


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _config(path: Any) -> Any:
    try:
        return path.config()
    except ValueError:  # A schedule of free functions has no plain-data form.
        return {"kind": type(path).__name__, "schedule": type(path.schedule).__name__}


def _difference(saved: Any, now: Any) -> tuple[str, str]:
    """The parts that differ, where both are dictionaries with the same keys."""
    if isinstance(saved, dict) and isinstance(now, dict) and saved.keys() == now.keys():
        keys = [k for k in now if saved[k] != now[k]]
        return tuple(", ".join(f"{k} {x[k]}" for k in keys) for x in (saved, now))  # type: ignore[return-value]
    return str(saved), str(now)
