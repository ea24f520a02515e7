"""Guidance: a denoiser made from a denoiser, so that any guidance runs under any sampler."""

from sciflow.guidance.classifier_free import ClassifierFree
from sciflow.guidance.epsilon_scaling import EpsilonScaling, fit_scale
from sciflow.guidance.measurements import MatrixMeasurement, Measurement, Observed
from sciflow.guidance.moment_matching import MomentMatching

__all__ = [
    "ClassifierFree",
    "EpsilonScaling",
    "MatrixMeasurement",
    "Measurement",
    "MomentMatching",
    "Observed",
    "fit_scale",
]
