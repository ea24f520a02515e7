"""Samplers integrate a denoiser from noise to data: a time grid and a stepper per kind of field."""

from sciflow.samplers.grids import GRIDS, time_grid
from sciflow.samplers.learned_grid import DecoupledTimes, LearnedGrid, learn_grid
from sciflow.samplers.methods import METHODS
from sciflow.samplers.plan import Plan
from sciflow.samplers.sampler import Sampler, SamplerReport
from sciflow.samplers.teleport import GaussianFit, fit_gaussian, skip_time, teleported

__all__ = [
    "GRIDS",
    "METHODS",
    "DecoupledTimes",
    "GaussianFit",
    "LearnedGrid",
    "Plan",
    "Sampler",
    "SamplerReport",
    "fit_gaussian",
    "learn_grid",
    "skip_time",
    "teleported",
    "time_grid",
]
