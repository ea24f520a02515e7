r"""Random numbers that are a pure function of (seed, sample, stream, step, element).

A sample must not depend on its companions in the batch, on padding, on the device or on how work
was sharded. A sequential generator cannot promise that; a counter-based one does by construction.
We use Philox4x32 (Salmon et al., *Parallel random numbers: as easy as 1, 2, 3*, SC 2011): four
32-bit words are a bijective, keyed function of four counter words,

    (w_0, ..., w_3) = Philox_key(c_0, ..., c_3),   key = (hash(seed, stream), sample),

with the counter made of the element's own indices and the step. Normals come by Box–Muller.
Words are held in int64, whose products wrap exactly as unsigned 64-bit ones do.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Draws", "philox"]

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = 0xFFFFFFFF
_ROUNDS = 7


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor],
    key: tuple[Tensor, Tensor],
    rounds: int = _ROUNDS,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32: 32-bit words in int64 tensors of any (broadcastable) shape.

    Args:
        counter: four tensors with values in [0, 2³²).
        key: two tensors with values in [0, 2³²).
        rounds: 7 is the fewest that passes BigCrush and our default, 10 the published one.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        p0, p1 = c0 * _M0, c2 * _M1
        # The arithmetic shift drags the sign bit along; the mask removes it again.
        h0, h1 = (p0 >> 32) & _LOW, (p1 >> 32) & _LOW
        c0, c1, c2, c3 = h1 ^ c1 ^ k0, p1 & _LOW, h0 ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return c0, c1, c2, c3


class Draws:
    """The random numbers of a batch of samples.

    Args:
        seed: any integer.
        samples: int64 ``[B]``, the number that each row of the batch has in the whole run; row i
            of any draw depends on ``samples[i]`` and on nothing else of the batch.
    """

    def __init__(self, seed: int, samples: Tensor | Sequence[int]):
        self.seed = int(seed)
        self.samples = torch.as_tensor(samples, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.samples)

    def rows(self, index: Tensor | slice) -> Draws:
        """The draws of some rows of the batch."""
        return Draws(self.seed, self.samples[index])

    def uniform(
        self,
        shape: Sequence[int],
        stream: str,
        step: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Uniforms in (0, 1), shape ``[B, *shape]`` with at most three axes beside the batch.

        Element ``(i, j, k)`` has the same value whatever the sizes of the axes are.
        """
        w = self._words(shape, stream, step, device)
        u = (torch.stack(w, -1).to(torch.float64) + 0.5) / 2**32
        return self._trim(u, shape).to(dtype)

    def normal(
        self,
        shape: Sequence[int],
        stream: str,
        step: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Standard normals, shape ``[B, *shape]``; see :meth:`uniform`."""
        u = torch.stack(self._words(shape, stream, step, device), -1).to(torch.float64)
        u = (u + 0.5) / 2**32
        radius = (-2 * u[..., 0::2].log()).sqrt()
        angle = 2 * math.pi * u[..., 1::2]
        z = torch.stack((radius * angle.cos(), radius * angle.sin()), -1).flatten(-2)
        return self._trim(z, shape).to(dtype)

    def integers(self, high: Tensor | int, stream: str, step: int = 0) -> Tensor:
        """One integer in ``[0, high)`` a sample, int64 ``[B]``."""
        u = self.uniform((), stream, step, torch.float64)
        return (u * high).long().clamp(max=torch.as_tensor(high) - 1)

    def _words(
        self, shape: Sequence[int], stream: str, step: int, device: torch.device | str | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if len(shape) > 3:
            raise ValueError(f"at most three axes beside the batch can be drawn, not {len(shape)}")
        digest = hashlib.sha256(f"{self.seed}/{stream}".encode()).digest()
        sizes = (1,) * (3 - len(shape)) + tuple(shape)
        blocks = (sizes[0], sizes[1], (sizes[2] + 3) // 4)
        samples = self.samples.to(device)
        lead = (len(samples), 1, 1, 1)
        axes = [
            torch.arange(n, device=device).view([n if a == b else 1 for b in range(4)])
            for a, n in enumerate(blocks, start=1)
        ]
        time = torch.full((1, 1, 1, 1), step & _LOW, device=device)
        k0 = torch.full((1, 1, 1, 1), int.from_bytes(digest[:4], "little"), device=device)
        k1 = (samples & _LOW) ^ int.from_bytes(digest[4:8], "little")
        full = torch.zeros((len(samples), *blocks), dtype=torch.int64, device=device)
        return philox((axes[2] + full, axes[1] + full, axes[0] + full, time + full),
                      (k0, k1.view(lead)))  # fmt: skip

    def _trim(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        x = x.flatten(-2)
        x = x[..., : shape[-1]] if shape else x[..., :1]
        return x.reshape(len(self), *shape)
