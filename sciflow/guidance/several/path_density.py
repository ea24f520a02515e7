r"""Log-densities of several models along one path, in the clock of the signal-to-noise ratio.

With Ŷ = a x/s², Λ = a²/s² and q° the noise alone (see
:mod:`sciflow.guidance.several.superposition`)

    d log q_i/q° = ⟨D_i, dŶ⟩ − ½ (|D_i|² + tr_P V_i) dΛ,     ⟨u, v⟩ = uᵀ C⁻¹ v,

where P are the directions in which the path has no noise: none for the reverse SDE, all for an ODE.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sciflow.paths import GaussianPath, Path
from sciflow.state import Context

__all__ = [
    "DEGENERATE",
    "Form",
    "Seen",
    "free_elements",
    "gram_matrix",
    "log_gain",
    "shrink",
    "solve",
]

Form = Literal["sde", "ode"]
DEGENERATE = 1e-6
"""Directions in which models differ less than this share of the widest are left alone."""


@dataclass(frozen=True)
class Seen:
    """What was known of a continuous field at a call."""

    y: Tensor  # Ŷ, [B, ...]
    ratio: float  # Λ
    clean: Tensor  # D_i, [B, M, ...]
    spread: Tensor | None  # tr V_i over directions without noise, [B, M]
    known: Tensor | None  # the same of N(0, σ_d² C), [B, 1]


def shrink(path: GaussianPath, ratio: float) -> float:
    """D = this · Ŷ, and V = this · C, for data N(0, σ_d² C)."""
    return path.data_std**2 / (1 + ratio * path.data_std**2)


def free_elements(path: Path, name: str, context: Context) -> Tensor:
    """Bool ``[B, *elements]``: real elements of a field that are not given."""
    mask = path.space.mask(context)
    given = context.given.get(name)
    return mask if given is None else mask & ~path.space.expand(given, mask)


def inner(path: Path, context: Context, u: Tensor, v: Tensor) -> Tensor:
    """⟨u_i, v_i⟩ of every model, ``[B, M]``; ``v`` may be one for all."""
    others = v.unbind(1) if v.ndim == u.ndim else [v] * u.shape[1]
    return torch.stack([path.space.inner(x, y, context)
                        for x, y in zip(u.unbind(1), others, strict=True)], 1)  # fmt: skip


def log_gain(path: Path, context: Context, old: Seen, new: Seen,
          form: Form | None = None) -> Tensor:  # fmt: skip
    """The change of log q_i/q° between two places, ``[B, M]``.

    Args:
        path: of the field.
        context: of the batch.
        old: at the last call.
        new: where x is now.
        form: if the models were asked at ``new`` too.
    """

    def at(place: Seen, other: Seen) -> Tensor:
        value = inner(path, context, place.clean, new.y - old.y)
        square = inner(path, context, place.clean, place.clean)
        if place.spread is not None and other.spread is not None:
            known = place.spread.where(place.spread.isfinite(), other.spread)
            square = square + known.nan_to_num(0.0)
        return value - 0.5 * (new.ratio - old.ratio) * square

    if form == "ode":
        return 0.5 * (at(old, new) + at(new, old))
    # Itô's integral takes the estimate of the noisier end.
    return at(new, old) if form == "sde" and new.ratio < old.ratio else at(old, new)


def gram_matrix(path: Path, context: Context, clean: Tensor) -> Tensor:
    """⟨D_i − D̄, D_j − D̄⟩, ``[B, M, M]``."""
    e = clean - clean.mean(1, keepdim=True)
    return torch.stack([inner(path, context, e, x) for x in e.unbind(1)], 2)


def solve(gram: Tensor, wanted: Tensor) -> Tensor:
    """w of least norm with Σ w = 0 and G w = ``wanted`` up to a constant, ``[B, M]``."""
    centred = wanted - wanted.mean(1, keepdim=True)
    inverse = torch.linalg.pinv(gram, rtol=DEGENERATE, hermitian=True)
    w = (inverse @ centred[..., None])[..., 0]
    return w - w.mean(1, keepdim=True)
