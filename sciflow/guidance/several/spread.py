r"""What x_t leaves open of x_0 along some directions: V = ∂D/∂Ŷ = (s²/a) C Jᵀ of a model.

Traces and quadratic forms of it are what densities along smooth paths, and along paths whose noise
is taken out, need beside Itô's formula (:mod:`sciflow.guidance.several.superposition`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sciflow.denoisers import Prediction
from sciflow.guidance.several.path_density import (
    DEGENERATE,
    Seen,
    free_elements,
    gram_matrix,
    speed,
    spread_of_noise,
)
from sciflow.likelihood.divergence import Probes
from sciflow.paths import Path
from sciflow.random import Draws
from sciflow.spaces import Space
from sciflow.state import State

__all__ = ["curvature", "spread_without_noise", "trace"]


def trace(path: Path, name: str, state: State, part: Prediction, t: float, draws: Draws | None
          ) -> Tensor:  # fmt: skip
    """tr V of one model and field, ``[B]``; NaN in pure noise.

    Args:
        path: of the field.
        name: of the field.
        state: noisy, in the graph of ``part``.
        part: the model's estimate.
        t: the time.
        draws: of one Rademacher probe; ``None`` is the exact trace.
    """
    x = state[name]
    free = free_elements(path, name, state.context)
    a, s = (float(c) for c in path.schedule(torch.tensor(t, dtype=torch.float64)))
    if draws is None:
        probes = Probes(path.space, state.context, free, x)
    else:
        probes = Probes.draw(path.space, state.context, free, x, draws, "rademacher", 1,
                             f"{name}/superposition", round(t * 2**31), 16)  # fmt: skip
    found = probes.traces(part[name], x, differentiable=False).mean(1)
    # In pure noise nothing can be told from the Jacobian; the next call stands in.
    return found * (s**2 / a) if a > 1e-6 * s else torch.full_like(found, math.nan)


def curvature(
    paths: Mapping[str, Path], state: State, part: Prediction, along: Mapping[str, Tensor], t: float
) -> Tensor:
    """⟨n, V n⟩ of one model, V = ∂D/∂Ŷ, ``[B]``; 0 in pure noise, where none can be told.

    Args:
        paths: of the fields.
        state: noisy, in the graph of ``part``.
        part: the model's estimate.
        along: n of some fields.
        t: the time.
    """
    gain = {}
    for name in along:
        a, s = (float(c) for c in
                paths[name].schedule(torch.tensor(t, dtype=torch.float64)))  # fmt: skip
        gain[name] = s**2 / a if a > 1e-6 * s else 0.0
    names = list(along)
    n = [along[f].to(part[f]) for f in names]
    x, y = [state[f] for f in names], [part[f] for f in names]
    spaces = [paths[f].space for f in names]
    total = torch.zeros(state.batch_size, dtype=torch.float64, device=state.device)
    if not any(d.requires_grad for d in y):
        return total
    if all(type(space).inner is Space.inner for space in spaces):
        # Noise is white: one product from the left does.
        back = torch.autograd.grad(y, x, n, retain_graph=True, materialize_grads=True)
    else:
        probes = [torch.zeros_like(d, requires_grad=True) for d in y]
        left = torch.autograd.grad(y, x, probes, create_graph=True, materialize_grads=True)
        right = [gain[f] * v for f, v in zip(names, n, strict=True)]
        back = torch.autograd.grad(left, probes, right, retain_graph=True,
                                   materialize_grads=True)  # fmt: skip
        gain = dict.fromkeys(names, 1.0)
    for f, space, u, v in zip(names, spaces, back, n, strict=True):
        total = total + gain[f] * space.inner(u.detach(), v, state.context).double()
    return total


def spread_without_noise(
    paths: Mapping[str, Path],
    groups: Sequence[Sequence[str]],
    seen: Mapping[str, Seen],
    state: State,
    parts: Sequence[Prediction],
    t: float,
) -> dict[str, Tensor]:
    """Σ_k ⟨e_k, V_i e_k⟩ over the directions whose noise is taken out, ``[B, M + 1]`` a field.

    The last column is that of N(0, σ_d² C). A group's sum stands with its first field.

    Args:
        paths: of the fields.
        groups: fields that are followed together.
        seen: of the call.
        state: noisy, in the graph of ``parts``.
        parts: each model's estimate.
        t: the time.
    """
    answer: dict[str, Tensor] = {}
    for group in groups:
        # The clock of a group is that of its first field.
        rate = {n: speed(paths[n], t) / speed(paths[group[0]], t) for n in group}
        gram = torch.stack([rate[n] * gram_matrix(paths[n], state.context, seen[n].clean)
                            for n in group]).sum(0)  # fmt: skip
        values, vectors = torch.linalg.eigh(gram)
        used = values > DEGENERATE * values[:, -1:]
        scaled = vectors * torch.where(used, values, 1.0).rsqrt()[:, None] * used[:, None]
        total = torch.zeros(len(values), len(parts) + 1, dtype=torch.float64,
                            device=values.device)  # fmt: skip
        for k in range(1, len(parts)):
            n_k = {
                n: rate[n] * torch.einsum("bm,bm...->b...", scaled[:, :, k], seen[n].clean)
                for n in group
            }
            known = [
                spread_of_noise(paths[n], t) * paths[n].space.inner(v, v, state.context)
                for n, v in n_k.items()
            ]
            each = [curvature(paths, state, part, n_k, t) for part in parts]
            total = total + torch.stack([*each, torch.stack(known).sum(0)], 1)
        answer |= {n: total if n == group[0] else torch.zeros_like(total) for n in group}
    return answer
