r"""Content of helix and strand told from a noisy sequence: the mean of states of single residues.

    p_i(S) = softmax( W h_i ),        m_S = mean_i p_i(S),        S = helix, strand, coil,

with features h_i of the whole sequence, masked residues included, and a log-variance from their
mean. The variance has a floor: chains without any strand would teach one of zero, for which the
next chain pays, and whose inverse is the strength of guidance. That contents are means of what
residues do is built in, so that a few thousand chains whose contents alone are known teach the
states of residues too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sciflow.denoisers import Network
from sciflow.networks.tokens import TokenTrunk
from sciflow.state import Context

__all__ = ["ContentNetwork"]

_LEAST_LOG_VARIANCE = -3.0
"""In units of the spread: an error of about six residues in a hundred."""

_STATES = ("helix", "strand", "coil")


class ContentNetwork(Network):
    """Mean and log-variance of each content, in units of its spread over the data.

    Args:
        tokens: ``(field, symbols)``: its name and input alphabet, a masked symbol included.
        statistics: ``{"helix": (mean, std), "strand": (mean, std)}``, or one of them.
        dim: width of the features; see :class:`~sciflow.networks.tokens.TokenTrunk`, like
            ``depth`` to ``dropout``.
    """

    def __init__(
        self,
        tokens: tuple[str, int],
        statistics: Mapping[str, Sequence[float]],
        dim: int = 64,
        depth: int = 2,
        heads: int = 4,
        window: int = 8,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.field, symbols = tokens
        self.statistics = {k: (float(m), float(s)) for k, (m, s) in statistics.items()}
        self.trunk = TokenTrunk(symbols, {}, dim, depth, heads, window, dropout)
        self.states = nn.Linear(dim, len(_STATES))
        self.spread = nn.Linear(dim, len(self.statistics))

    def probabilities(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """p_i(S) ``[B, N, 3]`` of symbols or weights of symbols, and the features they are of."""
        h = self.trunk(x, context.replace(conditions={}))
        return self.states(h).softmax(-1), h

    def forward(
        self,
        inputs: dict[str, Tensor],
        levels: dict[str, Tensor],
        context: Context,
        previous: dict[str, Tensor] | None,
    ) -> dict[str, Tensor]:
        """``{property: [B, 2]}``; see the module. Neither levels nor ``previous`` are read."""
        p, h = self.probabilities(inputs[self.field], context)
        real = context.mask[..., None].to(h)
        n = real.sum(1).clamp(min=1)
        content = (p * real).sum(1) / n
        log_v = self.spread((h * real).sum(1) / n).clamp(min=_LEAST_LOG_VARIANCE)
        answer = {}
        for k, (name, (mean, std)) in enumerate(self.statistics.items()):
            m = (content[:, _STATES.index(name)] - mean) / std
            answer[name] = torch.stack((m, log_v[:, k]), -1)
        return answer
