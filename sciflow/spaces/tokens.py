"""Finite alphabets: atom types, bonds, residues, symbols."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.random import Draws
from sciflow.spaces.base import Space
from sciflow.state import Context

__all__ = ["Tokens"]


class Tokens(Space):
    """One of ``classes`` symbols an element, or an unordered pair of elements.

    Values are int64 in ``[0, classes)``; a path may add a symbol ``classes`` for "masked". Padding,
    and the diagonal of pairs, hold 0.

    Args:
        classes: size of the alphabet.
        pairs: the field is symmetric over pairs of elements, ``[B, N, N]``, not ``[B, N]``.
    """

    def __init__(self, classes: int, pairs: bool = False):
        self.classes, self.pairs = classes, pairs

    def mask(self, context: Context) -> Tensor:
        m = context.mask
        if not self.pairs:
            return m
        off = ~torch.eye(m.shape[1], dtype=torch.bool, device=m.device)
        return m[:, :, None] & m[:, None, :] & off

    def expand(self, t: Tensor, x: Tensor) -> Tensor:
        """See :meth:`Space.expand`; of times ``[B, N]`` a pair takes the later, the noisier end's.

        A mask ``[B, N]`` holds for a pair where it holds for both ends.
        """
        if self.pairs and t.ndim == 2:
            either = torch.logical_and if t.dtype == torch.bool else torch.maximum
            t = either(t[:, :, None], t[:, None, :])
        return super().expand(t, x)

    def noise(self, context: Context, draws: Draws, stream: str, step: int = 0,
              dtype: torch.dtype | None = None) -> Tensor:  # fmt: skip
        """Uniform symbols."""
        u = self.uniform(context, draws, stream, step)
        return self.project((u * self.classes).long().clamp(max=self.classes - 1), context)

    def uniform(self, context: Context, draws: Draws, stream: str, step: int = 0) -> Tensor:
        """Uniforms in (0, 1) ``[B, *elements]``, equal at (i, j) and (j, i) for pairs."""
        n = context.mask.shape[1:]
        u = draws.uniform((*n, *n) if self.pairs else n, stream, step, torch.float64,
                          context.mask.device)  # fmt: skip
        return self.symmetric(u)

    def sample(self, p: Tensor, u: Tensor) -> Tensor:
        """The symbol at which the cumulated probabilities ``p [..., K]`` pass ``u [...]``."""
        c = p.to(u.dtype).cumsum(-1)
        return (u[..., None] * c[..., -1:] > c[..., :-1]).sum(-1)

    def symmetric(self, x: Tensor) -> Tensor:
        """Pairs: the upper triangle mirrored, zero on the diagonal. Otherwise ``x``."""
        if not self.pairs:
            return x
        upper = x.triu(1)
        return upper + upper.transpose(1, 2)

    def project(self, x: Tensor, context: Context) -> Tensor:
        return self.symmetric(x) * self.mask(context)
