r"""The trace of a denoiser's Jacobian: over all dimensions, or by random probes.

    tr J = Σ_i ⟨g_i, Jᵀ g_i⟩,  g_i the basis projected onto legal values   (exact, any shape)
    tr J = E ⟨g, Jᵀ g⟩,        g = a projected Rademacher or normal draw   (Hutchinson 1990)

Both are the same sum of vector-Jacobian products, with weight 1 or as a mean over the probes. Since
sample i of a denoiser's answer depends on sample i alone, one product serves the whole batch.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sciflow.random import Draws
from sciflow.spaces import Space
from sciflow.state import Context

__all__ = ["Probe", "Probes"]

Probe = Literal["rademacher", "normal"]
_KEPT = 2**24
"""Most numbers of all directions together that are kept in memory."""


class Probes:
    """Directions along which the Jacobian of one field is measured.

    Args:
        space: of the field.
        context: masks of the batch.
        free: bool ``[B, *elements]``; directions are zero elsewhere.
        like: a tensor shaped as the field.
        random: values ``[k, B, ...]`` of random probes; ``None`` for the whole basis.
        chunk: how many products are taken at once.
    """

    def __init__(self, space: Space, context: Context, free: Tensor, like: Tensor,
                 random: Tensor | None = None, chunk: int = 16):  # fmt: skip
        self.space, self.context, self.free = space, context, free
        self.shape, self.size = like.shape, like[0].numel()
        self.random, self.chunk = random, chunk
        self.dtype, self.device = like.dtype, like.device
        self.total = self.size if random is None else len(random)
        self._kept: dict[int, Tensor] = {}

    @classmethod
    def draw(cls, space: Space, context: Context, free: Tensor, like: Tensor, draws: Draws,
             kind: Probe, count: int, stream: str, step: int, chunk: int) -> Probes:  # fmt: skip
        """``count`` random probes; those of sample i depend on (seed, i, ``step``) alone."""
        event = tuple(like.shape[1:])
        values = []
        for k in range(count):
            name = f"{stream}/probe{k}"
            if kind == "normal":
                values.append(draws.normal(event, name, step, like.dtype, like.device))
            else:
                u = draws.uniform(event, name, step, like.dtype, like.device)
                values.append(torch.where(u < 0.5, -1.0, 1.0).to(like.dtype))
        return cls(space, context, free, like, torch.stack(values), chunk)

    @property
    def columns(self) -> int:
        """How many estimates of the trace there are: 1 if exact."""
        return 1 if self.random is None else len(self.random)

    def traces(self, output: Tensor, x: Tensor, differentiable: bool) -> Tensor:
        """tr ∂output/∂x on the space of legal values, ``[B, columns]``, float64."""
        if not output.requires_grad:
            return torch.zeros(len(x), self.columns, dtype=torch.float64, device=x.device)
        parts: list[Tensor] = []
        for first in range(0, self.total, self.chunk):
            g = self._directions(first)
            back = self._products(output, x, g, differentiable)
            parts.extend(
                self.space.sum(u * v, self.context).double() for u, v in zip(g, back, strict=True)
            )
        traces = torch.stack(parts, -1)
        return traces.sum(-1, keepdim=True) if self.random is None else traces

    def _directions(self, first: int) -> Tensor:
        """Projected directions ``[k, B, ...]``, kept from call to call where they are few."""
        if first in self._kept:
            return self._kept[first]
        last = min(first + self.chunk, self.total)
        if self.random is None:
            basis = torch.zeros(last - first, self.size, dtype=self.dtype, device=self.device)
            basis[torch.arange(last - first), torch.arange(first, last)] = 1
            g = basis.view(-1, 1, *self.shape[1:]).expand(-1, *self.shape)
        else:
            g = self.random[first:last]
        free = self.space.expand(self.free, g[0])
        g = torch.stack([
            self.space.project(v.masked_fill(~free, 0), self.context).masked_fill(~free, 0)
            for v in g
        ])  # fmt: skip
        if self.total * self.shape.numel() <= _KEPT:
            self._kept[first] = g
        return g

    def _products(self, output: Tensor, x: Tensor, g: Tensor, differentiable: bool) -> Tensor:
        options = {"retain_graph": True, "create_graph": differentiable, "materialize_grads": True}
        if len(g) == 1:
            # Also serves operations that torch cannot batch.
            return torch.autograd.grad(output, x, g[0], **options)[0][None]  # type: ignore[arg-type]
        return torch.autograd.grad(output, x, g, is_grads_batched=True, **options)[0]  # type: ignore[arg-type]
