"""The geometry of one field: what noise is in it, what is a legal value, how to sum over it."""

from sciflow.spaces.base import Space
from sciflow.spaces.euclidean import Euclidean
from sciflow.spaces.tokens import Tokens
from sciflow.spaces.zero_com import ZeroCoM

__all__ = ["Euclidean", "Space", "Tokens", "ZeroCoM"]
