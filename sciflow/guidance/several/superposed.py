"""What a superposition answers with: the mixed estimate, and what its next call needs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sciflow.denoisers import Prediction
from sciflow.guidance.several.path_density import Seen

__all__ = ["Superposed"]


@dataclass(frozen=True)
class Superposed(Prediction):
    """A mixed estimate, with what the next call needs.

    Attributes:
        parts: each model's own estimate.
        kappa: weights of every field, ``{name: [B, M]}``.
        log_ratio: log q_i/q° of every field, ``{name: [B, M]}``.
        log_density: log q_i(x_t), nats, ``[B, M]`` (of continuous fields; of tokens and points
            relative to the corruption).
        reference: the same sums for N(0, σ_d²), whose density is known, ``{name: [B, 1]}``.
        seen: the call itself.
        symbols: of token fields (symbols, α, probabilities of each model).
        points: of fields on a manifold (points, vectors to each model's estimate, σ).
    """

    parts: tuple[Prediction, ...]
    kappa: dict[str, Tensor]
    log_ratio: dict[str, Tensor]
    log_density: Tensor
    reference: dict[str, Tensor]
    seen: dict[str, Seen]
    symbols: dict[str, tuple[Tensor, float, tuple[Tensor, ...]]]
    points: dict[str, tuple[Tensor, Tensor, float]]

    def index(self, rows: Tensor) -> Superposed:
        def each(x: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: y[rows] for name, y in x.items()}

        seen = {
            name: Seen(z.y[rows], z.ratio, z.clean[rows],
                       None if z.spread is None else z.spread[rows],
                       None if z.known is None else z.known[rows])
            for name, z in self.seen.items()
        }  # fmt: skip
        symbols = {name: (x[rows], alpha, tuple(q[rows] for q in p))
                   for name, (x, alpha, p) in self.symbols.items()}  # fmt: skip
        points = {name: (x[rows], u[rows], sigma)
                  for name, (x, u, sigma) in self.points.items()}  # fmt: skip
        return Superposed(each(self.clean), tuple(p.index(rows) for p in self.parts),
                          each(self.kappa), each(self.log_ratio), self.log_density[rows],
                          each(self.reference), seen, symbols, points)  # fmt: skip
