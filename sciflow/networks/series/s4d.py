r"""Diagonal state spaces (S4D; Gu, Gupta, Goel & Ré 2022): each feature is a bank of damped waves.

    x' = A x + u,     y = 2 Re(C x) + D u,          A = −e^α + iω, diagonal, N states a feature

At steps of length Δ, with u held in between, this is the recurrence

    x_l = Ā x_{l−1} + B̄ u_l,     Ā = e^{ΔA},     B̄ = (Ā − 1)/A,

whose answer is the convolution of u with k_l = 2 Re(C B̄ Ā^l), done by FFT in O(L log L). A series
is denoised as a whole, so that the state runs in both directions, with a C for each; ``causal``
runs forwards alone. The frequencies begin as those of the Fourier basis (``lin``: ω_n = πn) or of
the HiPPO matrix (``inv``: ω_n = (M/π)(M/(2n + 1) − 1), M = 2N); memories 1/Δ from 10 to 1000 steps.

A block is a norm that the noise level shifts and scales, the state space, and a gate (Rasul et al.
2021 and Kollovieh et al. 2023 denoise series with stacks of them):

    h += gate · [W₁ g ⊙ sigmoid(W₂ g)],     g = gelu(S4D(norm(h) · scale + shift)).

While weights do not change, the transformed kernel of a length is kept.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sciflow.denoisers import Network
from sciflow.networks.embeddings import LevelEmbedding
from sciflow.networks.inputs import Modulation
from sciflow.networks.series.inputs import SeriesInputs, rows_of
from sciflow.networks.series.mixing import ChannelMixing
from sciflow.state import Context

__all__ = ["S4D", "StateSpace", "convolve"]

Initial = Literal["lin", "inv"]
_SHORTEST, _LONGEST = 1e-3, 1e-1
"""Steps Δ at the beginning, spread evenly in their logarithm."""


def convolve(u: Tensor, forward: Tensor, backward: Tensor | None = None) -> Tensor:
    """Σ_{s ≤ l} k_{l−s} u_s, and Σ_{s > l} k'_{s−l−1} u_s beside it, over axis 1.

    Args:
        u: ``[B, L, H]``.
        forward: k, ``[H, L]``.
        backward: k', ``[H, L]``.
    """
    return _convolve(u, _transformed(forward, backward))


def _transformed(forward: Tensor, backward: Tensor | None) -> Tensor:
    """FFT over 2L places, lags below zero at the far end; ``[L + 1, H]``."""
    length = forward.shape[1]
    k = F.pad(forward, (0, length))
    if backward is not None:
        k = k + F.pad(backward.flip(1), (length, 0))
    return torch.fft.rfft(k, dim=1).T


def _convolve(u: Tensor, transformed: Tensor) -> Tensor:
    length = u.shape[1]
    return torch.fft.irfft(torch.fft.rfft(u, 2 * length, 1) * transformed, 2 * length, 1)[
        :, :length
    ]


class StateSpace(nn.Module):
    """One state space a feature, ``[B, L, dim] → [B, L, dim]``.

    Args:
        dim: features.
        states: N, complex states of each.
        causal: forwards only.
        initial: see the module.
    """

    def __init__(self, dim: int, states: int = 8, causal: bool = False, initial: Initial = "lin"):
        super().__init__()
        if initial not in ("lin", "inv"):
            raise ValueError(f"initial is 'lin' or 'inv', not {initial!r}")
        n = torch.arange(states)
        m = 2 * states
        omega = math.pi * n if initial == "lin" else m / math.pi * (m / (2 * n + 1) - 1)
        step = torch.linspace(math.log(_SHORTEST), math.log(_LONGEST), dim)
        self.log_step = nn.Parameter(step)
        self.log_decay = nn.Parameter(torch.full((dim, states), math.log(0.5)))
        self.omega = nn.Parameter(omega.float().expand(dim, states).clone())
        directions = 1 if causal else 2
        # A pair of real numbers is a complex one: optimisers and files know only real ones.
        self.c = nn.Parameter(torch.empty(directions, dim, states, 2))
        nn.init.normal_(self.c, std=0.5**0.5)
        self.d = nn.Parameter(torch.ones(dim))
        self._kept: tuple[tuple[int, ...], Tensor] | None = None

    def discretised(self) -> tuple[Tensor, Tensor]:
        """Ā and B̄, complex ``[dim, N]``."""
        a = torch.complex(-self.log_decay.exp(), self.omega)
        moved = torch.exp(self.log_step.exp()[:, None] * a)
        return moved, (moved - 1) / a

    def kernels(self, length: int) -> Tensor:
        """k_l of each direction, ``[directions, dim, L]``."""
        a = torch.complex(-self.log_decay.exp(), self.omega)
        _, b = self.discretised()
        lags = torch.arange(length, device=a.device)
        powers = torch.exp((self.log_step.exp()[:, None] * a)[..., None] * lags)
        return 2 * torch.einsum("khn,hnl->khl", torch.view_as_complex(self.c) * b, powers).real

    def forward(self, u: Tensor) -> Tensor:
        """The answer to ``u [B, L, dim]``; zeros before and after."""
        if u.numel() == 0:
            return u
        y = _convolve(u.to(self.d.dtype), self._kernel(u.shape[1]))
        return y + self.d * u

    def _kernel(self, length: int) -> Tensor:
        weights = (self.log_step, self.log_decay, self.omega, self.c)
        if torch.is_grad_enabled() and any(w.requires_grad for w in weights):
            self._kept = None
            return _transformed(*self._pair(length))
        # A weight that is written to has a new version, one that moved a new place.
        state = (length, *(v for w in weights for v in (w._version, w.data_ptr())))
        if self.training or self._kept is None or self._kept[0] != state:
            self._kept = (state, _transformed(*self._pair(length)).contiguous())
        return self._kept[1]

    def _pair(self, length: int) -> tuple[Tensor, Tensor | None]:
        k = self.kernels(length)
        return k[0], k[1] if len(k) > 1 else None

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_kept": None}


class S4D(Network):
    """Denoises one field ``[B, L, C]`` of any length; channels meet by mixing maps.

    Args:
        field: its name.
        features: number of fixed numbers a time step and channel (``context.extras["features"]``).
        channels: the most channels a series can have.
        longest: the most time steps; a state space needs no bound and does not use it.
        dim: width; ``depth`` blocks of state spaces with ``states`` complex numbers a feature.
        states: see ``dim``.
        depth: see ``dim``.
        causal: a step is told of its past alone.
        initial: of the frequencies, ``lin`` or ``inv``.
        dropout: of a block's output, while training.
    """

    def __init__(
        self,
        field: str,
        features: int,
        channels: int = 1,
        longest: int = 512,
        dim: int = 48,
        depth: int = 3,
        states: int = 8,
        causal: bool = False,
        initial: Initial = "lin",
        dropout: float = 0.0,
    ):
        super().__init__()
        self.field = field
        self.inputs = SeriesInputs(field, features)
        self.embed = nn.Linear(self.inputs.width, dim)
        self.channel = nn.Parameter(torch.zeros(channels, dim))
        self.level = nn.Sequential(LevelEmbedding(32), nn.Linear(32, dim), nn.SiLU())
        self.blocks = nn.ModuleList(
            [_Block(dim, states, channels, causal, initial, dropout) for _ in range(depth)]
        )
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self,
        inputs: dict[str, Tensor],
        levels: dict[str, Tensor],
        context: Context,
        previous: dict[str, Tensor] | None,
    ) -> dict[str, Tensor]:
        """See :class:`~sciflow.denoisers.Network`."""
        x, level, real = self.inputs(inputs, levels, context)
        x, seen = x.transpose(1, 2), real.transpose(1, 2)[..., None]
        c = x.shape[1]
        channel = rows_of(self.channel, c)
        h = self.embed(x) + channel[:, None]
        signal = self.level(level)[:, None, None]
        for block in self.blocks:
            h = block(h, signal, seen)
        return {self.field: self.out(self.norm(h))[..., 0].transpose(1, 2)}


class _Block(nn.Module):
    def __init__(self, dim: int, states: int, channels: int, causal: bool, initial: Initial,
                 dropout: float):  # fmt: skip
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.modulation = Modulation(dim, 1)
        self.space = StateSpace(dim, states, causal, initial)
        self.mixing = ChannelMixing(channels)
        self.gated, self.drop = nn.Linear(dim, 2 * dim), nn.Dropout(dropout)

    def forward(self, h: Tensor, signal: Tensor, real: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(signal)
        # What is not real is silent, or it would be heard elsewhere.
        u = (self.norm(h) * scale + shift) * real
        y = F.gelu(self.space(u.flatten(0, 1)).view_as(u))
        return h + gate * self.drop(F.glu(self.gated(self.mixing(y, real)), -1))
