r"""Markov chains on a finite alphabet, as functions of one number α.

A token that is being corrupted jumps at rates R (off-diagonal ≥ 0, rows sum to 0) on the clock
−log α, from itself (α = 1) to the stationary law π (α = 0):

    Q(α) = exp(−R log α),    Q(1) = 1,    Q(0) = 1πᵀ,    Q(α) Q(β) = Q(αβ).

So Q_{t|s} = Q(α_t/α_s). Two families:

* :class:`Interpolating`: R = 1πᵀ − 1, so Q(α) = α 1 + (1 − α) 1πᵀ: a value is kept or drawn anew;
* :class:`Reversible`: any rates in detailed balance, π_i R_ij = π_j R_ji. Then Π^½ R Π^{−½} is
  symmetric, = −V Λ Vᵀ, and one eigendecomposition serves every time,

      Q(α) = Π^{−½} V α^Λ Vᵀ Π^½.

  Rates are scaled so that the slowest mode has Λ = 1: α is what is left of it, as above. This holds
  transitions between neighbours and discretised Gaussians (Austin et al. 2021, D3PM, appendix A)
  for ordered symbols such as charges or counts: see :func:`reversible_rates`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from sciflow.errors import InputError

__all__ = ["Interpolating", "Reversible", "Transitions", "reversible_rates"]

_BALANCE = 1e-8
"""Largest relative violation of detailed balance that counts as rounding."""
_TINY = 1e-300


class Transitions(ABC):
    """Q(α) on S symbols.

    Attributes:
        stationary: π, float64 ``[S]``; or ``[..., S]``, where every element has a chain of its own.
    """

    stationary: Tensor

    @property
    @abstractmethod
    def rates(self) -> Tensor:
        """R, float64 ``[S, S]`` or ``[..., S, S]``, from row to column."""

    @abstractmethod
    def push(self, w: Tensor, alpha: Tensor) -> Tensor:
        """The law w Q(α) after the jumps, ``[..., S]``.

        Args:
            w: weights before, ``[..., S]``.
            alpha: ``[...]``.
        """

    @abstractmethod
    def pull(self, f: Tensor, alpha: Tensor) -> Tensor:
        """The expectations Q(α) f; for f = δ_y the probabilities to arrive at y from each symbol.

        Args:
            f: function of the symbol afterwards, ``[..., S]``.
            alpha: ``[...]``.
        """

    def inward(self, x: Tensor) -> Tensor:
        """R(y → x) from every other symbol y, and 0 for y = x; ``[..., S]``.

        Args:
            x: symbols, ``[...]``.
        """
        return self.rates.T.to(x.device)[x].scatter(-1, x[..., None], 0.0)


class Interpolating(Transitions):
    """Each symbol is kept with probability α and else drawn from π ``[S]``, or ``[..., S]``."""

    def __init__(self, stationary: Tensor):
        self.stationary = stationary.double()

    @property
    def rates(self) -> Tensor:
        one = torch.eye(self.stationary.shape[-1], device=self.stationary.device)
        return self.stationary[..., None, :] - one

    def push(self, w: Tensor, alpha: Tensor) -> Tensor:
        alpha = alpha[..., None]
        return alpha * w + (1 - alpha) * self.stationary.to(w) * w.sum(-1, keepdim=True)

    def pull(self, f: Tensor, alpha: Tensor) -> Tensor:
        alpha = alpha[..., None]
        return alpha * f + (1 - alpha) * (self.stationary.to(f) * f).sum(-1, keepdim=True)

    def inward(self, x: Tensor) -> Tensor:
        pi = self.stationary.to(x.device).expand(*x.shape, -1)
        return pi.gather(-1, x[..., None]).expand(pi.shape).scatter(-1, x[..., None], 0.0)


class Reversible(Transitions):
    """Jumps at given rates in detailed balance.

    Args:
        rates: ``[S, S]``, from row to column; the diagonal and the unit of time are ignored.
    """

    def __init__(self, rates: Tensor | Sequence[Sequence[float]]):
        r = torch.as_tensor(rates, dtype=torch.float64).clone()
        if r.ndim != 2 or r.shape[0] != r.shape[1] or len(r) < 2:
            raise InputError(
                f"rates between K >= 2 symbols are a table [K, K], not {list(r.shape)}"
            )
        r.fill_diagonal_(0.0)
        if not bool(((r >= 0) & r.isfinite()).all()):
            raise InputError("rates between different symbols must be finite and 0 or more")
        r.diagonal().copy_(-r.sum(1))
        pi = _stationary(r)
        flow = pi[:, None] * r
        if float((flow - flow.T).abs().max()) > _BALANCE * float(flow.abs().max()):
            raise InputError(
                "rates must be in detailed balance, pi_i R_ij = pi_j R_ji, with their stationary "
                f"law pi = {[round(p, 6) for p in pi.tolist()]}; reversible_rates makes such rates"
            )
        root = pi.sqrt()
        values, vectors = torch.linalg.eigh(-root[:, None] * r / root)
        self.stationary, self._rates = pi, r / values[1]
        self.speeds = (values / values[1]).clamp(min=1.0)
        self.speeds[0] = 0.0
        self.left, self.right = vectors / root[:, None], vectors.T * root

    @property
    def rates(self) -> Tensor:
        return self._rates

    def push(self, w: Tensor, alpha: Tensor) -> Tensor:
        return self._apply(w, alpha, self.left, self.right)

    def pull(self, f: Tensor, alpha: Tensor) -> Tensor:
        return self._apply(f, alpha, self.right.T, self.left.T)

    def _apply(self, w: Tensor, alpha: Tensor, first: Tensor, second: Tensor) -> Tensor:
        # Rare symbols have large 1/√π: in float64, whatever the type of the caller.
        modes = w.double() @ first.to(w.device)
        decay = alpha.double()[..., None] ** self.speeds.to(w.device)
        return ((modes * decay) @ second.to(w.device)).clamp(min=0).to(w.dtype)


def _stationary(rates: Tensor) -> Tensor:
    """π with πR = 0; refuses rates between which some symbols are never reached."""
    n = len(rates)
    reach = (rates > 0).double() + torch.eye(n)
    for _ in range(n.bit_length()):
        reach = (reach @ reach > 0).double()
    if not bool(reach.all()):
        raise InputError("every symbol must be reachable from every other by rates above 0")
    system = torch.cat((rates.T / rates.abs().max(), torch.ones(1, n, dtype=torch.float64)))
    right = torch.zeros(n + 1, 1, dtype=torch.float64)
    right[-1] = 1.0
    pi = torch.linalg.lstsq(system, right).solution[:, 0].clamp(min=_TINY)
    return pi / pi.sum()


def reversible_rates(stationary: Sequence[float], width: float | None = None) -> list[list[float]]:
    """Rates between ordered symbols with a wanted stationary law, as plain data.

    R_ij = W_ij √(π_j/π_i) with a symmetric W is in detailed balance for every π > 0.

    Args:
        stationary: π, K numbers above 0, made to sum to one.
        width: W_ij = exp(−(i − j)²/(2 width²)), a discretised Gaussian; default: neighbours only.

    Returns:
        ``[K, K]``, from row to column.
    """
    pi = torch.as_tensor(stationary, dtype=torch.float64)
    if pi.ndim != 1 or len(pi) < 2 or not bool(((pi > 0) & pi.isfinite()).all()):
        raise InputError(f"a stationary law is K >= 2 numbers above 0, not {list(stationary)}")
    if width is not None and not width > 0:
        raise InputError(f"the width of a discretised Gaussian must be above 0, not {width}")
    steps = torch.arange(len(pi), dtype=torch.float64)
    distance = (steps[:, None] - steps).abs()
    w = (distance == 1).double() if width is None else (-((distance / width) ** 2) / 2).exp()
    r = w * (pi / pi[:, None]).sqrt()
    r.fill_diagonal_(0.0)
    r.diagonal().copy_(-r.sum(1))
    return r.tolist()
