"""What training minimises: corrupt a batch at random times, score the clean estimate."""

from sciflow.objectives.auxiliary import Auxiliary
from sciflow.objectives.contrast import Contrast, Uncontrasted
from sciflow.objectives.curriculum import Curriculum, TimeDistribution
from sciflow.objectives.denoising import DenoisingObjective, Losses
from sciflow.objectives.given import GivenRule
from sciflow.objectives.properties import PropertyObjective
from sciflow.objectives.uncertainty import Uncertainty
from sciflow.objectives.weights import LossWeight

__all__ = [
    "Auxiliary",
    "Contrast",
    "Curriculum",
    "DenoisingObjective",
    "GivenRule",
    "LossWeight",
    "Losses",
    "PropertyObjective",
    "TimeDistribution",
    "Uncertainty",
    "Uncontrasted",
]
