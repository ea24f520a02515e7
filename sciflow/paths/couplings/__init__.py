r"""Which noise meets which data in training.

A path draws noise for its data, and a coupling may exchange it for noise that lies nearer, so that
paths are short and straight. Only the noise is moved: the data, their conditions and every other
field keep their order. The couplings, and what each does to the law of the noise:

================  =====================================================  ======================
name              the noise of x_0                                       its law
================  =====================================================  ======================
independent       a fresh draw                                           N(0, C)
equivariant-ot    the draw, its points permuted and rotated towards x_0  N(0, C)
immiscible        another sample's draw: Σ |x_0 − ε| least in the batch  N(0, C) over the data
minibatch-ot      the same for Σ |x_0 − ε|²                              N(0, C) over the data
immiscible-knn    the nearest of k fresh draws                           biased towards x_0
================  =====================================================  ======================

The probability-flow ODE of the coupled process is what samplers then integrate. A denoiser tells
the score, which fresh noise on the way asks for, where the noise is independent alone: samplers
refuse it elsewhere (:func:`sciflow.samplers.methods.stepper_of`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sciflow.errors import InputError
from sciflow.paths.couplings.base import Coupling, NoiseDraw
from sciflow.paths.couplings.minibatch import Immiscible, MinibatchTransport
from sciflow.paths.couplings.single import (
    EquivariantTransport,
    Independent,
    NearestNoise,
    equivariant_transport,
)

__all__ = [
    "COUPLINGS",
    "Coupling",
    "EquivariantTransport",
    "Immiscible",
    "Independent",
    "MinibatchTransport",
    "NearestNoise",
    "NoiseDraw",
    "coupling_from_config",
    "equivariant_transport",
]

COUPLINGS: dict[str, type[Coupling]] = {
    c.kind: c
    for c in (Independent, EquivariantTransport, Immiscible, MinibatchTransport, NearestNoise)
}


def coupling_from_config(config: Coupling | str | Mapping[str, Any]) -> Coupling:
    """The coupling that ``config()`` described: ``"immiscible"``, or with its settings
    ``{"kind": "immiscible-knn", "candidates": 8}``.

    Raises:
        InputError: an unknown name or setting.
    """
    if isinstance(config, Coupling):
        return config
    values = {"kind": config} if isinstance(config, str) else dict(config)
    kind = values.pop("kind", None)
    if kind not in COUPLINGS:
        raise InputError(f"unknown coupling {kind!r}; known: {', '.join(COUPLINGS)}")
    known = list(COUPLINGS[kind]().settings())
    if unknown := sorted(set(values) - set(known)):
        raise InputError(
            f"coupling {kind!r} has no setting {unknown[0]!r}; it has: {', '.join(known) or 'none'}"
        )
    return COUPLINGS[kind](**values)
