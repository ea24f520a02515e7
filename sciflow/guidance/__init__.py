"""Guidance: a denoiser made from a denoiser, so that any guidance runs under any sampler."""

from sciflow.guidance.classifier_free import ClassifierFree
from sciflow.guidance.epsilon_scaling import EpsilonScaling, fit_scale
from sciflow.guidance.measurements import MatrixMeasurement, Measurement, Observed
from sciflow.guidance.moment_matching import MomentMatching
from sciflow.guidance.particles import ParticleReport, sample_particles

__all__ = [
    "ClassifierFree",
    "EpsilonScaling",
    "MatrixMeasurement",
    "Measurement",
    "MomentMatching",
    "Observed",
    "ParticleReport",
    "fit_scale",
    "sample_particles",
]
