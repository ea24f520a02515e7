r"""Explicit Runge–Kutta steps for a batch in which every sample may be at its own place.

    k_i = f(u + c_i h, y + h Σ_j a_ij k_j),     y' = y + h Σ_i b_i k_i.

With an embedded error estimate (Dormand & Prince 1980, order 5 with 4) each sample chooses its own
steps by its own error, so that it never depends on its companions: one step size for a batch would
make every result a function of the whole batch. Errors are largest absolute values, not means,
which padding would dilute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sciflow.errors import InputError

__all__ = ["TABLEAUX", "Tableau", "solve_adaptive", "solve_fixed", "stage_places"]

Values = tuple[Tensor, ...]
"""What is integrated: tensors ``[B, ...]``."""
Slope = Callable[[Tensor, Values, int], Values]
"""``f(u, y, step)`` with u ``[]`` or ``[B]``; ``step`` counts the steps of a fixed grid."""


@dataclass(frozen=True)
class Tableau:
    """Coefficients: nodes c, rows of a below the diagonal, weights b and their order.

    ``low`` are the weights of the embedded method, over the stages and the slope at the step's end.
    """

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int
    low: tuple[float, ...] = ()


TABLEAUX: dict[str, Tableau] = {
    "heun": Tableau((0, 1), ((), (1,)), (1 / 2, 1 / 2), 2),
    "rk4": Tableau(
        (0, 1 / 2, 1 / 2, 1),
        ((), (1 / 2,), (0, 1 / 2), (0, 0, 1)),
        (1 / 6, 1 / 3, 1 / 3, 1 / 6),
        4,
    ),
    "dopri5": Tableau(
        (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1),
        (
            (),
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        ),
        (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        5,
        (5179 / 57600, 0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40),
    ),
}


def stage_places(nodes: Sequence[float], tableau: Tableau) -> Tensor:
    """Where a fixed grid evaluates its slope, float64 ``[steps, stages]``."""
    u = torch.tensor(nodes, dtype=torch.float64)
    return u[:-1, None] + torch.tensor(tableau.c, dtype=torch.float64) * u.diff()[:, None]


def solve_fixed(f: Slope, y: Values, nodes: Sequence[float], tableau: Tableau) -> Values:
    """y at the last of ``nodes``, one step between each two."""
    places, device = stage_places(nodes, tableau), y[0].device
    widths = torch.tensor(nodes, dtype=torch.float64, device=device).diff()
    for step, (u, h) in enumerate(zip(places.to(device), widths, strict=True)):
        slopes = _stages(f, u, h, y, tableau, step, f(u[0], y, step))
        y = _move(y, h, tableau.b, slopes)
    return y


def solve_adaptive(
    f: Slope, y: Values, start: float, end: float, tableau: Tableau, tolerance: float,
    limit: int = 10_000,
) -> Values:  # fmt: skip
    """y at ``end > start``; each sample's estimated error of a step is kept below ``tolerance``.

    The error is the largest over its values, relative to 1 + |y|. A sample that stops being finite
    ends there, as it is.

    Raises:
        InputError: some sample needs more than ``limit`` steps.
    """
    first = y[0]
    u = torch.full((len(first),), start, dtype=torch.float64, device=first.device)
    h = torch.full_like(u, (end - start) / 100)
    slope = f(u, y, 0)
    for _ in range(limit):
        # Exactly to the end: u + (end − u) may round to below it.
        last = h >= end - u
        h = torch.where(last, end - u, h)
        places = [u + c * h for c in tableau.c]
        slopes = _stages(f, places, h, y, tableau, 0, slope)
        new = _move(y, h, tableau.b, slopes)
        ahead = torch.where(last, torch.full_like(u, end), u + h)
        slope_ahead = f(ahead, new, 0)
        with torch.no_grad():
            low = _move(y, h, tableau.low, [*slopes, slope_ahead])
            error = torch.stack([_error(*x) for x in zip(new, low, y, strict=True)]).amax(0)
            error = error / tolerance
        # A comparison with NaN is false, so a broken sample ends instead of halving for ever.
        accept = ~(error > 1)
        y = tuple(torch.where(_like(accept, x), n, x) for n, x in zip(new, y, strict=True))
        slope = tuple(
            torch.where(_like(accept, x), n, x) for n, x in zip(slope_ahead, slope, strict=True)
        )
        u = torch.where(accept, torch.where(error.isnan(), end, ahead), u)
        if bool((u >= end).all()):
            return y
        factor = 0.9 * error.clamp(min=1e-10) ** (-1 / tableau.order)
        h = h * factor.clamp(0.2, 5.0).nan_to_num(1.0)
    raise InputError(
        f"a trajectory needs more than {limit} steps for tolerance {tolerance:g}; ask for a larger "
        "tolerance, or begin at a later time"
    )


def _stages(f: Slope, u: Sequence[Tensor] | Tensor, h: Tensor, y: Values, tableau: Tableau,
            step: int, first: Values) -> list[Values]:  # fmt: skip
    slopes = [first]
    for place, row in zip(u[1:], tableau.a[1:], strict=True):
        slopes.append(f(place, _move(y, h, row, slopes), step))
    return slopes


def _move(y: Values, h: Tensor, weights: Sequence[float], slopes: Sequence[Values]) -> Values:
    moved = []
    for i, x in enumerate(y):
        total = sum(w * k[i] for w, k in zip(weights, slopes, strict=True) if w)
        moved.append(x + _like(h, x).to(x.dtype) * total)
    return tuple(moved)


def _like(value: Tensor, x: Tensor) -> Tensor:
    return value.reshape(value.shape + (1,) * (x.ndim - value.ndim)) if value.ndim else value


def _error(new: Tensor, low: Tensor, old: Tensor) -> Tensor:
    scale = 1 + torch.maximum(new.abs(), old.abs())
    return ((new - low).abs() / scale).flatten(1).amax(1).double()
