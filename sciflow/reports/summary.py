"""The numbers of a run: how many are sound, how near to the targets, at what cost."""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import sciflow
from sciflow.domain import OracleAnswer
from sciflow.targets import Target, parse_targets

if TYPE_CHECKING:
    from sciflow.samples import Samples

__all__ = ["kind", "plain", "summarise", "versions"]


def summarise(
    samples: Samples,
    rows: Sequence[Mapping[str, Any]],
    sound: Sequence[Any],
    measured: Sequence[str],
    answers: Sequence[OracleAnswer],
) -> dict[str, Any]:
    """Content of ``metrics.json``.

    Rates are over all samples asked for. Errors are over sound samples that the oracle could
    measure, between its value and the value asked of that sample, in the property's unit.
    """
    valid = len(sound)
    result: dict[str, Any] = {
        "samples": {
            "requested": len(rows),
            "valid": valid,
            "valid_fraction": valid / len(rows),
            "dropped": dict(Counter(kind(row["reason"]) for row in rows if not row["valid"])),
        },
        "targets": {
            name: _errors(name, samples, rows) for name in samples.targets if name in measured
        },
        "oracle": {
            "properties": list(measured),
            "measured": sum(not answer.failure for answer in answers),
            "failed": dict(Counter(kind(answer.failure) for answer in answers if answer.failure)),
            "seconds": sum(answer.seconds for answer in answers),
        },
        "cost": {
            "network_calls": samples.calls,
            "seconds": samples.seconds,
            "cpu_seconds": samples.cpu_seconds,
            "cpu_seconds_per_valid": samples.cpu_seconds / valid if valid else math.nan,
        },
        # All finite samples, not the sound ones: a rate over those would be 1 by construction.
        "evaluation": samples.domain.evaluate(samples.kept) if samples.kept else {},
    }
    return result


def _errors(name: str, samples: Samples, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    asked: Target | None = None
    text = samples.settings.get("targets", {}).get(name)
    if text is not None:
        (value,) = parse_targets([f"{name}={text}"]).values()
        asked = value if isinstance(value, Target) else None
    pairs = [
        (row[f"target_{name}"], row[name])
        for row in rows
        if row["valid"] and row.get(name) is not None
    ]
    distances = [abs(wanted - got) for wanted, got in pairs]
    result: dict[str, Any] = {
        "asked": text,
        "unit": samples.domain.properties[name].unit,
        "measured": len(pairs),
        "mean_absolute_error": _mean(distances),
        "median_absolute_error": _median(distances),
        "mean_oracle_value": _mean([got for _, got in pairs]),
        "same_size_training_samples_error": samples.same_size.get(name, math.nan),
    }
    if asked is not None and not asked.is_point:
        result["inside_range"] = _mean([float(asked.distance(got) == 0) for _, got in pairs])
        result["mean_distance_to_range"] = _mean([asked.distance(got) for _, got in pairs])
    return result


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _median(values: Sequence[float]) -> float:
    s, n = sorted(values), len(values)
    return (s[(n - 1) // 2] + s[n // 2]) / 2 if n else math.nan


def kind(reason: str) -> str:
    """What reasons are counted by: the text before a colon, where details follow it."""
    return reason.partition(":")[0]


def versions(packages: Iterable[str] = ()) -> dict[str, str]:
    """Of this project, Python, the machine, and installed distributions."""
    found = {
        "sciflow": sciflow.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    for name in ("torch", "numpy", *packages):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def plain(value: Any) -> Any:
    """JSON types only; numbers that are not finite become ``None``."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    number = float(value)
    return number if math.isfinite(number) else None
