"""Samplers integrate a denoiser from noise to data: a time grid and a stepper per kind of field."""

from sciflow.samplers.grids import GRIDS, time_grid
from sciflow.samplers.sampler import Sampler, SamplerReport

__all__ = ["GRIDS", "Sampler", "SamplerReport", "time_grid"]
