"""Guidance: a denoiser made from a denoiser, so that any guidance runs under any sampler."""

from sciflow.guidance.annealing import DecoupledAnnealing
from sciflow.guidance.away import MoveAway
from sciflow.guidance.black_box import Oracle, OracleReport, RecordOracle, StateOracle
from sciflow.guidance.classifier import ClassifierGuidance
from sciflow.guidance.classifier_free import ClassifierFree
from sciflow.guidance.composition import Product, all_of, any_of
from sciflow.guidance.editing import Encoded, encode, interpolate, noised, sdedit, spherical
from sciflow.guidance.epsilon_scaling import EpsilonScaling, fit_scale
from sciflow.guidance.guidance_search import Trial, beam_search
from sciflow.guidance.initial_noise import NoiseReport, optimise_noise, refine_noise
from sciflow.guidance.inpainting import Known, Reconstruction, Replacement
from sciflow.guidance.low_pass import AveragePool, FourierLowPass, LowPassReference
from sciflow.guidance.measurements import (
    MatrixMeasurement,
    Measurement,
    NonlinearMeasurement,
    Observed,
)
from sciflow.guidance.moment_matching import MomentMatching
from sciflow.guidance.noise_level import NoiseLevel, fit_noise_level
from sciflow.guidance.oracle_guidance import OracleGuidance, numbered
from sciflow.guidance.particles import ParticleReport, sample_particles
from sciflow.guidance.perturbed import PerturbedAttention
from sciflow.guidance.plus_plus import PlusPlus
from sciflow.guidance.posterior import Posterior
from sciflow.guidance.projection import Projected
from sciflow.guidance.published import PUBLISHED, as_published
from sciflow.guidance.rules import FrequencySplit, Orthogonal, Rescale, Rule, Tangential, ZeroStar
from sciflow.guidance.strengths import Increments, increments
from sciflow.guidance.superposition import Superposed, Superposition
from sciflow.guidance.training_free import TrainingFree
from sciflow.guidance.weak import IndependentCondition, Instead, PerturbedTime, Unasked
from sciflow.guidance.zeroth_order import EnergyDescent, ForceNorm, LeastSquares, TwoPoint

__all__ = [
    "PUBLISHED",
    "AveragePool",
    "ClassifierFree",
    "ClassifierGuidance",
    "DecoupledAnnealing",
    "Encoded",
    "EnergyDescent",
    "EpsilonScaling",
    "ForceNorm",
    "FourierLowPass",
    "FrequencySplit",
    "Increments",
    "IndependentCondition",
    "Instead",
    "Known",
    "LeastSquares",
    "LowPassReference",
    "MatrixMeasurement",
    "Measurement",
    "MomentMatching",
    "MoveAway",
    "NoiseLevel",
    "NoiseReport",
    "NonlinearMeasurement",
    "Observed",
    "Oracle",
    "OracleGuidance",
    "OracleReport",
    "Orthogonal",
    "ParticleReport",
    "PerturbedAttention",
    "PerturbedTime",
    "PlusPlus",
    "Posterior",
    "Product",
    "Projected",
    "Reconstruction",
    "RecordOracle",
    "Replacement",
    "Rescale",
    "Rule",
    "StateOracle",
    "Superposed",
    "Superposition",
    "Tangential",
    "TrainingFree",
    "Trial",
    "TwoPoint",
    "Unasked",
    "ZeroStar",
    "all_of",
    "any_of",
    "as_published",
    "beam_search",
    "encode",
    "fit_noise_level",
    "fit_scale",
    "increments",
    "interpolate",
    "noised",
    "numbered",
    "optimise_noise",
    "refine_noise",
    "sample_particles",
    "sdedit",
    "spherical",
]
