"""Samplers integrate a denoiser from noise to data: a time grid and a stepper per kind of field."""

from sciflow.samplers.grids import GRIDS, time_grid
from sciflow.samplers.methods import METHODS
from sciflow.samplers.plan import Plan
from sciflow.samplers.sampler import Sampler, SamplerReport

__all__ = ["GRIDS", "METHODS", "Plan", "Sampler", "SamplerReport", "time_grid"]
