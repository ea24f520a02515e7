"""Networks for series ``[B, L, C]``: patches, state spaces, plain maps; one interface."""

from sciflow.networks.series.patches import PatchTransformer

__all__ = ["PatchTransformer"]
