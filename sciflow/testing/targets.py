r"""Denoisers with an exact answer: what samplers and guidance are measured against.

For data that are a mixture Σ_k w_k N(m_k, C_k) the corrupted x_t = a x_0 + s ε is a mixture too,
with means a m_k and covariances a² C_k + s², and (Tweedie; Efron 2011)

    D(x_t) = Σ_k r_k(x_t) [ m_k + a C_k (a² C_k + s²)⁻¹ (x_t − a m_k) ],
    r_k(x_t) ∝ w_k N(x_t; a m_k, a² C_k + s²).

For tokens with a joint table p(x_0) the posterior of each is a sum over the whole table. Every
estimate takes the way of a trained network, through ``path.output`` and ``path.clean``, so that the
conversions of the path are measured too. Everything is computed in float64.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.paths import CategoricalPath, GaussianPath, Path
from sciflow.state import Context, State, Times, field_times

__all__ = [
    "DiagonalGaussian",
    "ExactDenoiser",
    "GaussianMixture",
    "NamedMixture",
    "TokenTable",
    "all_real",
]

_TINY = 1e-300
"""Probabilities below it count as zero; its logarithm keeps logits finite."""


def all_real(batch: int, elements: int = 1) -> Context:
    """The context of ``batch`` samples of ``elements`` elements without padding."""
    return Context(torch.ones(batch, elements, dtype=torch.bool))


class ExactDenoiser(Denoiser):
    """A denoiser whose clean estimate is known; counts its ``calls``."""

    def __init__(self, paths: Mapping[str, Path]):
        super().__init__()
        self.paths = dict(paths)
        self.calls = 0

    @abstractmethod
    def exact(self, state: State, times: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """E[x_0 | x_t] or log p(x_0 | x_t) of every field, float64."""

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        """The exact estimate, sent through the path's output and back."""
        self.calls += 1
        times = field_times(t, state)
        answers = self.exact(state, {name: u.double() for name, u in times.items()})
        clean = {}
        for name, path in self.paths.items():
            x, answer = state[name], answers[name]
            if isinstance(path, GaussianPath):
                answer = path.output(answer.to(x.dtype), x, times[name])
            clean[name] = path.clean(answer, x, times[name], state.context)
        return Prediction(clean)


class GaussianMixture(ExactDenoiser):
    """Each element an independent draw of Σ_k w_k N(m_k, C_k) in d dimensions.

    Args:
        path: of a field ``[B, N, d]`` with white noise.
        means: ``[K, d]``.
        covariances: ``[K, d, d]``.
        weights: ``[K]``, made to sum to one; default equal.
        field: its name.
    """

    def __init__(
        self,
        path: GaussianPath,
        means: Tensor,
        covariances: Tensor,
        weights: Tensor | Sequence[float] | None = None,
        field: str = "x",
    ):
        super().__init__({field: path})
        self.path, self.field = path, field
        self.means = means.double()
        self.values, self.vectors = torch.linalg.eigh(covariances.double())
        w = torch.ones(len(means)) if weights is None else torch.as_tensor(weights)
        self.log_weights = (w.double() / w.double().sum()).log()

    def components(self, x: Tensor, a: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """log w_k N(x; a m_k, a² C_k + s²) ``[..., K]`` and each one's mean ``[..., K, d]``.

        Args:
            x: ``[..., d]``.
            a: signal and noise, broadcastable to ``x[..., 0]``.
            s: see ``a``.
        """
        a, s = a[..., None, None], s[..., None, None]
        y = x.double()[..., None, :] - a * self.means
        z = torch.einsum("...kd,kde->...ke", y, self.vectors)
        variance = (a**2 * self.values + s**2).clamp(min=_TINY)
        log_p = -0.5 * (z**2 / variance + (2 * math.pi * variance).log()).sum(-1)
        shift = torch.einsum("...ke,kde->...kd", a * self.values / variance * z, self.vectors)
        return self.log_weights + log_p, self.means + shift

    def log_density(self, x: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """log p(x_t) of each element, ``[...]``; see :meth:`components`."""
        return self.components(x, a, s)[0].logsumexp(-1)

    def mean(self, x: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """E[x_0 | x_t], ``[..., d]``; see :meth:`components`."""
        log_r, means = self.components(x, a, s)
        return (log_r.softmax(-1)[..., None] * means).sum(-2)

    def exact(self, state: State, times: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See the formula of the module."""
        x = state[self.field]
        a, s = (_per_element(y, x.shape[:2]) for y in self.path.schedule(times[self.field]))
        return {self.field: self.mean(x, a, s)}

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """``n`` exact draws of the data, float64 ``[n, d]``."""
        g = torch.Generator().manual_seed(seed)
        k = torch.multinomial(self.log_weights.exp(), n, True, generator=g)
        z = torch.randn(n, self.means.shape[1], dtype=torch.float64, generator=g)
        root = self.values.clamp(min=0).sqrt()[k]
        return self.means[k] + torch.einsum("nde,ne->nd", self.vectors[k], root * z)


class DiagonalGaussian(ExactDenoiser):
    """Each element an independent draw of N(m, diag(v)): even its trajectories are known.

    Args:
        path: of a field ``[B, N, d]`` with white noise.
        mean: ``[d]``.
        variance: ``[d]``.
        field: its name.
    """

    def __init__(self, path: GaussianPath, mean: Tensor, variance: Tensor, field: str = "x"):
        super().__init__({field: path})
        self.path, self.field = path, field
        self.mean, self.variance = mean.double(), variance.double()

    def exact(self, state: State, times: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """m + a v (x − a m)/(a² v + s²)."""
        x = state[self.field].double()
        a, s = (_per_element(y, x.shape[:2])[..., None]
                for y in self.path.schedule(times[self.field]))  # fmt: skip
        v, m = self.variance, self.mean
        return {self.field: m + a * v / (a**2 * v + s**2).clamp(min=_TINY) * (x - a * m)}

    def flow(self, x: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """The probability-flow ODE's solution at time ``end`` through ``x`` at ``start``.

        x_s = a_s m + √((a_s² v + s_s²)/(a_t² v + s_t²)) (x_t − a_t m).
        """
        (a, s), (b, r) = self.path.schedule(start.double()), self.path.schedule(end.double())
        v, m = self.variance, self.mean
        return b * m + ((b**2 * v + r**2) / (a**2 * v + s**2)).sqrt() * (x - a * m)


class NamedMixture(ExactDenoiser):
    """A point of a mixture of round Gaussians, and a token that names its component, mostly.

    p(x, k) = Σ_c w_c N(x; m_c, v) p(k | c), p(k | c) = accuracy if k = c, else the rest shared.
    Both estimates come from the joint posterior given the noisy point and the noisy token.

    Args:
        path: of the point, ``[B, N, d]``.
        tokens: path of the token, ``[B, N]``, with K classes.
        means: ``[K, d]``.
        variance: v.
        weights: ``[K]``.
        accuracy: how often the token is right.
    """

    def __init__(self, path: GaussianPath, tokens: CategoricalPath, means: Tensor,
                 variance: float, weights: Sequence[float], accuracy: float = 0.85):  # fmt: skip
        super().__init__({"x": path, "token": tokens})
        k, d = means.shape
        covariances = (variance * torch.eye(d, dtype=torch.float64)).expand(k, d, d)
        self.mixture = GaussianMixture(path, means, covariances, weights)
        self.tokens = tokens
        names = torch.full((k, k), (1 - accuracy) / (k - 1), dtype=torch.float64)
        self.names = names.fill_diagonal_(accuracy)

    def joint(self) -> Tensor:
        """p(component, token) ``[K, K]``."""
        return self.mixture.log_weights.exp()[:, None] * self.names

    def component(self, x: Tensor) -> Tensor:
        """The most probable component of a clean point ``[..., d]``."""
        one = torch.ones((), dtype=torch.float64)
        return self.mixture.components(x, one, 0 * one)[0].argmax(-1)

    def exact(self, state: State, times: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The two marginals of p(component, token | x_t, token_t)."""
        x, token = state["x"], state["token"]
        a, s = (_per_element(y, x.shape[:2]) for y in self.mixture.path.schedule(times["x"]))
        log_c, means = self.mixture.components(x, a, s)
        seen = _log_likelihood(self.tokens.within(state.context), token, times["token"])
        joint = log_c[..., None] + self.names.log() + seen[..., None, :]
        r = joint.logsumexp(-1).softmax(-1)
        p = joint.logsumexp(-2).softmax(-1)
        return {"x": (r[..., None] * means).sum(-2), "token": p.clamp(min=_TINY).log()}


class TokenTable(ExactDenoiser):
    """L tokens with any joint distribution; the posterior is a sum over the whole table.

    Args:
        path: of the field ``[B, L]``, K classes.
        table: p(x_0), ``[K] * L``, made to sum to one.
        field: its name.
    """

    def __init__(self, path: CategoricalPath, table: Tensor, field: str = "token"):
        super().__init__({field: path})
        self.path, self.field = path, field
        self.table = table.double() / table.double().sum()

    def exact(self, state: State, times: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """log p(x_0^i | x_t) for each token i, by enumeration."""
        x = state[self.field]
        size, length = x.shape
        seen = _log_likelihood(self.path.within(state.context), x, times[self.field])
        joint = self.table.clamp(min=_TINY).log()[None]
        for j in range(length):
            joint = joint + seen[:, j].reshape(size, *(-1 if i == j else 1 for i in range(length)))
        joint = joint.flatten(1).softmax(-1).view(size, *self.table.shape)
        p = [joint.movedim(j + 1, 1).flatten(2).sum(2) if length > 1 else joint
             for j in range(length)]  # fmt: skip
        return {self.field: torch.stack(p, 1).clamp(min=_TINY).log()}

    def frequencies(self, x: Tensor) -> Tensor:
        """How often each row of the table occurs in ``x [B, L]``, shaped as the table."""
        strides = torch.tensor(self.table.stride())
        counts = torch.bincount((x * strides).sum(-1), minlength=self.table.numel())
        return counts.view(self.table.shape) / len(x)


def _per_element(y: Tensor, shape: torch.Size) -> Tensor:
    return (y if y.ndim == 2 else y[:, None]).expand(shape)


def _log_likelihood(path: CategoricalPath, x_t: Tensor, t: Tensor) -> Tensor:
    """log q(x_t | x_0 = k) for every k, ``[B, N, K]``."""
    alpha = _per_element(path.keep(t), x_t.shape)
    return path.likelihood(x_t, alpha, torch.float64).clamp(min=_TINY).log()
