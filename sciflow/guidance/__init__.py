"""Guidance: a denoiser made from a denoiser, so that any guidance runs under any sampler."""

from sciflow.guidance.editing.initial_noise import NoiseReport, optimise_noise, refine_noise
from sciflow.guidance.editing.inpainting import Known, Reconstruction, Replacement
from sciflow.guidance.editing.low_pass import AveragePool, FourierLowPass, LowPassReference
from sciflow.guidance.editing.start import Encoded, encode, interpolate, noised, sdedit, spherical
from sciflow.guidance.energy.classifier import ClassifierGuidance
from sciflow.guidance.energy.guidance_search import Trial, beam_search
from sciflow.guidance.energy.published import PUBLISHED, as_published
from sciflow.guidance.energy.strengths import Increments, increments
from sciflow.guidance.energy.training_free import TrainingFree
from sciflow.guidance.epsilon_scaling import EpsilonScaling, fit_scale
from sciflow.guidance.measured.annealing import DecoupledAnnealing
from sciflow.guidance.measured.measurements import (
    MatrixMeasurement,
    Measurement,
    NonlinearMeasurement,
    Observed,
)
from sciflow.guidance.measured.moment_matching import MomentMatching
from sciflow.guidance.measured.noise_level import NoiseLevel, fit_noise_level
from sciflow.guidance.measured.posterior import Posterior
from sciflow.guidance.measured.projection import Projected
from sciflow.guidance.oracles.black_box import Oracle, OracleReport, RecordOracle, StateOracle
from sciflow.guidance.oracles.oracle_guidance import OracleGuidance, numbered
from sciflow.guidance.oracles.zeroth_order import EnergyDescent, ForceNorm, LeastSquares, TwoPoint
from sciflow.guidance.particles.steering import ParticleReport, sample_particles
from sciflow.guidance.several.composition import Product, all_of, any_of
from sciflow.guidance.several.superposition import Superposed, Superposition
from sciflow.guidance.weak.away import MoveAway
from sciflow.guidance.weak.classifier_free import ClassifierFree
from sciflow.guidance.weak.estimates import IndependentCondition, Instead, PerturbedTime, Unasked
from sciflow.guidance.weak.perturbed import PerturbedAttention
from sciflow.guidance.weak.plus_plus import PlusPlus
from sciflow.guidance.weak.rules import (
    FrequencySplit,
    Orthogonal,
    Rescale,
    Rule,
    Tangential,
    ZeroStar,
)

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
