"""Guidance: a denoiser made from a denoiser, so that any guidance runs under any sampler."""

from sciflow.guidance.classifier_free import ClassifierFree
from sciflow.guidance.editing import Encoded, encode, interpolate, noised, sdedit, spherical
from sciflow.guidance.epsilon_scaling import EpsilonScaling, fit_scale
from sciflow.guidance.inpainting import Known, Reconstruction, Replacement
from sciflow.guidance.low_pass import AveragePool, FourierLowPass, LowPassReference
from sciflow.guidance.measurements import MatrixMeasurement, Measurement, Observed
from sciflow.guidance.moment_matching import MomentMatching
from sciflow.guidance.particles import ParticleReport, sample_particles

__all__ = [
    "AveragePool",
    "ClassifierFree",
    "Encoded",
    "EpsilonScaling",
    "FourierLowPass",
    "Known",
    "LowPassReference",
    "MatrixMeasurement",
    "Measurement",
    "MomentMatching",
    "Observed",
    "ParticleReport",
    "Reconstruction",
    "Replacement",
    "encode",
    "fit_scale",
    "interpolate",
    "noised",
    "sample_particles",
    "sdedit",
    "spherical",
]
