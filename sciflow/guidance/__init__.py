"""Guidance: a denoiser made from a denoiser, so that any guidance runs under any sampler."""

from sciflow.guidance.black_box import Oracle, OracleReport, RecordOracle, StateOracle
from sciflow.guidance.classifier_free import ClassifierFree
from sciflow.guidance.editing import Encoded, encode, interpolate, noised, sdedit, spherical
from sciflow.guidance.epsilon_scaling import EpsilonScaling, fit_scale
from sciflow.guidance.initial_noise import NoiseReport, optimise_noise, refine_noise
from sciflow.guidance.inpainting import Known, Reconstruction, Replacement
from sciflow.guidance.low_pass import AveragePool, FourierLowPass, LowPassReference
from sciflow.guidance.measurements import MatrixMeasurement, Measurement, Observed
from sciflow.guidance.moment_matching import MomentMatching
from sciflow.guidance.oracle_guidance import OracleGuidance, numbered
from sciflow.guidance.particles import ParticleReport, sample_particles
from sciflow.guidance.zeroth_order import EnergyDescent, ForceNorm, LeastSquares, TwoPoint

__all__ = [
    "AveragePool",
    "ClassifierFree",
    "Encoded",
    "EnergyDescent",
    "EpsilonScaling",
    "ForceNorm",
    "FourierLowPass",
    "Known",
    "LeastSquares",
    "LowPassReference",
    "MatrixMeasurement",
    "Measurement",
    "MomentMatching",
    "NoiseReport",
    "Observed",
    "Oracle",
    "OracleGuidance",
    "OracleReport",
    "ParticleReport",
    "Reconstruction",
    "RecordOracle",
    "Replacement",
    "StateOracle",
    "TwoPoint",
    "encode",
    "fit_scale",
    "interpolate",
    "noised",
    "numbered",
    "optimise_noise",
    "refine_noise",
    "sample_particles",
    "sdedit",
    "spherical",
]
