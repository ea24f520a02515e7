"""How one field is corrupted on the shared clock, and how a network's output becomes clean data."""

from sciflow.paths.base import Path
from sciflow.paths.categorical import CategoricalPath
from sciflow.paths.companion import stationary_given
from sciflow.paths.gaussian import GaussianPath, coupled_fields
from sciflow.paths.geodesic import GeodesicPath

__all__ = [
    "CategoricalPath",
    "GaussianPath",
    "GeodesicPath",
    "Path",
    "coupled_fields",
    "stationary_given",
]
