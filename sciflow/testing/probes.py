"""What a contract test needs: moved states and noise, longer padding, comparisons that explain."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sciflow.denoisers import NetworkDenoiser, Prediction
from sciflow.model import Model
from sciflow.paths import Path
from sciflow.random import Draws
from sciflow.spaces import Tokens
from sciflow.state import Context, State

__all__ = [
    "PRECISION",
    "Move",
    "MovedDraws",
    "assert_close",
    "assert_same",
    "corrupted",
    "denoise",
    "denoise_twice",
    "double",
    "element_axes",
    "even",
    "merged",
    "one_element",
    "padded",
    "randomise",
]

PRECISION = {torch.float64: 1e-10, torch.float32: 1e-4}


def randomise(denoiser: NetworkDenoiser, seed: int = 0, size: float = 0.5) -> NetworkDenoiser:
    """Add to every parameter normal noise of ``size``/√(fan in): no layer stays zero."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in denoiser.parameters():
            fan_in = p[0].numel() if p.ndim > 1 else 4
            p.add_(torch.randn(p.shape, generator=g) * size / math.sqrt(fan_in))
    return denoiser.eval()


class Move:
    """A symmetry operation: an orthogonal matrix on vectors, an order of the elements of each row.

    Args:
        matrix: ``[d, d]`` or ``None``.
        order: int64 ``[B, N]``, a permutation a row, or ``None``.
    """

    def __init__(self, matrix: Tensor | None = None, order: Tensor | None = None):
        self.matrix, self.order = matrix, order

    def elements(self, x: Tensor, axes: int) -> Tensor:
        """Reorder the first ``axes`` axes behind the batch."""
        if self.order is None or not axes:
            return x
        row = torch.arange(len(x))[:, None]
        for axis in range(1, axes + 1):
            x = x.transpose(1, axis)
            x = x[row, self.order].transpose(1, axis)
        return x

    def vectors(self, x: Tensor) -> Tensor:
        """Turn vectors in the last axis."""
        return x if self.matrix is None else x @ self.matrix.T.to(x.dtype)

    def field(self, name: str, x: Tensor, axes: int, vectors: Sequence[str]) -> Tensor:
        """One field, or its logits."""
        return self.elements(self.vectors(x) if name in vectors else x, axes)


class MovedDraws(Draws):
    """Random numbers moved as the state is, so that noise and given state stay side by side."""

    def __init__(self, draws: Draws, move: Move, paths: Mapping[str, Path],
                 context: Context, vectors: Sequence[str]):  # fmt: skip
        super().__init__(draws.seed, draws.samples)
        self.spaces = {f: p.space for f, p in paths.items()}
        self.move, self.vectors = move, vectors
        self.axes = element_axes(paths, context)

    def normal(self, shape: Sequence[int], stream: str, *rest: Any, **more: Any) -> Tensor:
        """See :class:`Draws`; a stream is named after its field."""
        name = stream.partition("/")[0]
        x = super().normal(shape, stream, *rest, **more)
        return self.move.field(name, x, self.axes[name], self.vectors)

    def uniform(self, shape: Sequence[int], stream: str, *rest: Any, **more: Any) -> Tensor:
        """See :class:`Draws`; a pair's number is the one of its upper triangle."""
        name = stream.partition("/")[0]
        x = super().uniform(shape, stream, *rest, **more)
        space = self.spaces[name]
        x = space.symmetric(x) if isinstance(space, Tokens) else x
        return self.move.field(name, x, self.axes[name], self.vectors)


def element_axes(paths: Mapping[str, Path], context: Context) -> dict[str, int]:
    """How many axes of each field padding can lengthen."""
    return {f: p.space.mask(context).ndim - 1 for f, p in paths.items()}


def assert_close(found: Tensor, expected: Tensor, precision: float, what: str) -> None:
    """Equal to ``precision`` times the size of what is compared; symbols exactly."""
    if not expected.is_floating_point():
        assert torch.equal(found, expected), f"{what}: symbols differ"
        return
    size = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    error = float((found - expected).abs().max()) if expected.numel() else 0.0
    assert error <= precision * size, f"{what}: off by {error:.3g}, allowed {precision * size:.3g}"


def merged(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with changes, which may be nested, in it."""
    out = dict(config)
    for key, value in changes.items():
        nested = isinstance(out.get(key), Mapping) and isinstance(value, Mapping)
        out[key] = merged(out[key], value) if nested else value
    return out


def double(model: Model) -> NetworkDenoiser:
    """A copy of the model's denoiser in float64."""
    assert isinstance(model.denoiser, NetworkDenoiser)
    return copy.deepcopy(model.denoiser).double()


def denoise(
    model: Model, state: State, t: Any = None, previous: Prediction | None = None
) -> dict[str, Tensor]:
    """The clean estimate at ``t`` (0.5), in the state's own floating type."""
    # Tokens have no type of their own; what they are asked for has.
    numbers = (*state.values(), *state.context.conditions.values())
    floating = next(x.dtype for x in numbers if x.is_floating_point())
    denoiser = double(model) if floating == torch.float64 else model.denoiser
    with torch.no_grad():
        return denoiser(state, 0.5 if t is None else t, previous).clean


def denoise_twice(model: Model, state: State) -> dict[str, Tensor]:
    """The estimate with a first one as feedback, for denoisers that are self-conditioned."""
    return denoise(model, state, previous=Prediction(denoise(model, state)))


def corrupted(model: Model, clean: State) -> State:
    """Every field at t = 0.5."""
    draws = Draws(0, torch.arange(clean.batch_size))
    t = torch.full((clean.batch_size,), 0.5, dtype=torch.float64)
    fields = {
        f: path.corrupt(clean[f], t, clean.context, draws, f)
        for f, path in model.denoiser.paths.items()
    }
    return State(fields, clean.context)


def padded(model: Model, state: State, more: int) -> State:
    """The same state with ``more`` elements that are not real at the end of every axis."""
    axes = element_axes(model.denoiser.paths, state.context)

    def longer(x: Tensor, k: int) -> Tensor:
        sides = [0, 0] * (x.ndim - 1 - k) + [0, more] * k
        return torch.nn.functional.pad(x, sides)

    mask = state.context.mask
    given = {f: longer(m, m.ndim - 1) for f, m in state.context.given.items()}
    extras = {
        name: longer(x, mask.ndim - 1) if x.shape[: mask.ndim] == mask.shape else x
        for name, x in state.context.extras.items()
    }
    return State(
        {f: longer(x, axes[f]) for f, x in state.fields.items()},
        state.context.replace(mask=longer(mask, mask.ndim - 1), given=given, extras=extras),
    )


def assert_same(model: Model, like: State, found: Any, expected: Any, precision: float) -> None:
    """Over the real elements of ``like``; the two may be padded differently."""
    for f, path in model.denoiser.paths.items():
        mask = path.space.mask(like.context)
        parts = []
        for x in (found[f], expected[f]):
            for axis in range(1, mask.ndim):
                x = x.narrow(axis, 0, min(x.shape[axis], mask.shape[axis]))
            parts.append(x[mask])
        assert_close(parts[0], parts[1], precision, f)


def one_element(model: Model) -> Context:
    """The context of one sample of one element that asks for nothing."""
    draws = Draws(0, torch.zeros(1, dtype=torch.int64))
    context = model.domain.context(model.config, model.reference, draws, {})
    shape = context.mask.shape

    def first(x: Tensor) -> Tensor:
        return (
            x[(slice(None), *(slice(1) for _ in shape[1:]))]
            if x.shape[: len(shape)] == shape
            else x
        )

    return context.apply(first).replace(mask=torch.ones((1,) * len(shape), dtype=torch.bool))


def even(mask: Tensor) -> Tensor:
    """True for elements, or pairs of elements, whose numbers are even."""
    even = torch.ones_like(mask)
    for axis in range(1, mask.ndim):
        shape = [1] * mask.ndim
        shape[axis] = -1
        even = even & (torch.arange(mask.shape[axis]) % 2 == 0).view(shape)
    return even
