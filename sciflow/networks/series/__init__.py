"""Networks for series ``[B, L, C]``: patches, state spaces, plain maps; one interface."""

from sciflow.denoisers import Network
from sciflow.networks.series.patches import PatchTransformer

__all__ = ["SERIES_NETWORKS", "PatchTransformer"]

SERIES_NETWORKS: dict[str, type[Network]] = {"patches": PatchTransformer}
"""By the name that configurations give them."""
