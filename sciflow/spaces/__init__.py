"""The geometry of one field: what noise is in it, what is a legal value, how to sum over it."""

from sciflow.spaces.base import Space
from sciflow.spaces.euclidean import Euclidean
from sciflow.spaces.harmonic import Harmonic
from sciflow.spaces.kernels import Kernel
from sciflow.spaces.random_field import RandomField
from sciflow.spaces.so3 import SO3
from sciflow.spaces.tokens import Tokens
from sciflow.spaces.torus import Torus
from sciflow.spaces.zero_com import ZeroCoM

__all__ = [
    "SO3",
    "Euclidean",
    "Harmonic",
    "Kernel",
    "RandomField",
    "Space",
    "Tokens",
    "Torus",
    "ZeroCoM",
]
