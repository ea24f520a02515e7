"""Densities of a trained model: exact by an ODE, a bound for tokens, an estimate along samples."""

from sciflow.likelihood.flow import FlowDensity, FlowLikelihood
from sciflow.likelihood.ito import ItoDensity
from sciflow.likelihood.tokens import TokenBound, TokenLikelihood

__all__ = ["FlowDensity", "FlowLikelihood", "ItoDensity", "TokenBound", "TokenLikelihood"]
