"""Network presets, and the denoiser that a configuration describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from domains.timeseries.encoding import FIELD, feature_count
from sciflow.denoisers import NetworkDenoiser
from sciflow.networks.series import SERIES_NETWORKS
from sciflow.paths import GaussianPath
from sciflow.schedules import schedule_from_config
from sciflow.spaces import Euclidean

__all__ = ["PRESETS", "build_denoiser", "patch_of"]

PRESETS: dict[str, dict[str, Any]] = {
    "patches": {"kind": "patches", "dim": 96, "depth": 4, "heads": 4, "dropout": 0.1},
    "s4d": {"kind": "s4d", "dim": 48, "depth": 3, "states": 8},
    "mlp": {"kind": "mlp", "dim": 512, "depth": 4},
}
"""The default, which has the least CRPS a CPU second, first."""


def patch_of(season: int, horizon: int) -> int:
    """Steps of a token: whole seasons of 12 steps or more together, else a forecast, 8 to 24."""
    if 1 < season <= 48:
        return -(-12 // season) * season
    return min(max(horizon, 8), 24)


def build_denoiser(config: Mapping[str, Any]) -> NetworkDenoiser:
    """Network and path of a configuration, with fresh weights."""
    settings = dict(config["network"])
    network = SERIES_NETWORKS[settings.pop("kind")](
        FIELD,
        features=feature_count(config),
        longest=config["context"] + config["horizon"],
        channels=config["channels"],
        **settings,
    )
    path = config["path"]
    schedule = schedule_from_config(path["schedule"])
    return NetworkDenoiser(
        network, {FIELD: GaussianPath(Euclidean(), schedule, path["prediction"])}
    )
