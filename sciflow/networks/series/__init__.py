"""Networks for series ``[B, L, C]``: patches, state spaces, plain maps; one interface."""

from sciflow.denoisers import Network
from sciflow.networks.series.mlp import SeriesMLP
from sciflow.networks.series.patches import PatchTransformer
from sciflow.networks.series.s4d import S4D

__all__ = ["S4D", "SERIES_NETWORKS", "PatchTransformer", "SeriesMLP"]

SERIES_NETWORKS: dict[str, type[Network]] = {
    "patches": PatchTransformer,
    "s4d": S4D,
    "mlp": SeriesMLP,
}
"""By the name that configurations give them."""
