"""Superposition of models of angles and rotations, against heat kernels known exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.guidance.several.superposition import Superposition
from sciflow.paths import GaussianPath, GeodesicPath, Path
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.schedules import Rectified
from sciflow.spaces import SO3, Euclidean, Torus
from sciflow.spaces.so3 import rotation
from sciflow.state import State, Times
from sciflow.testing.targets import all_real


class Heat(Denoiser):
    """q = Σ w_k K(x; μ_k, ρ) with heat kernels K: q_t has K(x; μ_k, √(ρ² + σ²)).

    Args:
        space: angles or rotations.
        means: μ_k, ``[K, ...]``.
        weights: w_k.
        width: ρ.
    """

    def __init__(self, space: Torus | SO3, means: Tensor, weights: Sequence[float],
                 width: float = 0.2):  # fmt: skip
        super().__init__()
        self.path = GeodesicPath(space, Rectified(), "diffusion")
        self.paths: dict[str, Path] = {"x": self.path}
        self.means, self.width = means, width
        self.log_w = torch.tensor(weights, dtype=torch.float64).log()

    def logs(self, x: Tensor, t: float) -> tuple[Tensor, Tensor, Tensor]:
        """log w_k K_k and its gradient, ``[B, K]`` and ``[B, 1, K, d]``, and σ."""
        sigma = self.path.scale(torch.tensor(t, dtype=torch.float64))
        wide = (self.width**2 + sigma**2).sqrt().expand(len(x))
        space, each = self.path.space, []
        for mean in self.means:
            log_k = space.log_density(x, mean.expand_as(x), wide)
            each.append((log_k.reshape(len(x), -1).sum(1), space.score(x, mean.expand_as(x), wide)))
        log_k, score = (torch.stack(v, 1) for v in zip(*each, strict=True))
        return self.log_w + log_k, score, sigma

    def log_density(self, x: Tensor, t: float) -> Tensor:
        return self.logs(x, t)[0].logsumexp(1)

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        assert isinstance(t, float)
        log_k, score, sigma = self.logs(state["x"], t)
        mean = (log_k.softmax(1)[:, :, None, None] * score).sum(1)
        return Prediction({"x": self.path.space.exp(state["x"], sigma**2 * mean)})


def angles(width: float = 0.2) -> list[Heat]:
    means = torch.tensor([[0.5, 2.8], [-2.5, 0.0], [1.5, -1.5], [-1.0, -3.0]], dtype=torch.float64)
    space = Torus(2)
    return [Heat(space, means[:2], [0.7, 0.3], width), Heat(space, means[2:], [0.2, 0.8], width)]


def rotations(width: float = 0.2) -> list[Heat]:
    vectors = [[0.5, 0.0, 0.0], [0.0, 2.0, 0.0], [-1.0, 0.0, 1.5], [0.0, -1.0, -2.0]]
    means = rotation(torch.tensor(vectors, dtype=torch.float64))
    return [Heat(SO3(), means[:2], [0.7, 0.3], width), Heat(SO3(), means[2:], [0.2, 0.8], width)]


class Watched(Superposition):
    """Keeps the state of its calls."""

    last: tuple[Tensor, float]

    def forward(self, state: State, t: Times | float, previous: Prediction | None = None):  # type: ignore[no-untyped-def]
        assert isinstance(t, float)
        self.last = (state["x"], t)
        return super().forward(state, t, previous)


def run(model: Denoiser, n: int, steps: int, method: str = "ddpm") -> Tensor:
    draws = Draws(3, torch.arange(n))
    state = Sampler(steps, method=method)(model, all_real(n), draws, dtype=torch.float64).state
    return state["x"]


@pytest.mark.parametrize("models", [angles, rotations])
def test_densities_along_the_way_are_the_exact_ones(models) -> None:  # type: ignore[no-untyped-def]
    """log q_i − log q_j at the last call; noise alone is the same for all models."""
    errors = []
    for steps in (20, 80):
        model = Watched(models(0.6), "or")
        run(model, 24, steps)
        x, t = model.last
        exact = torch.stack([m.log_density(x, t) for m in models(0.6)], 1)
        assert model.latest is not None
        found = model.latest.log_density
        errors.append(float((found - exact).diff(dim=1).abs().mean()))
    assert errors[1] < 1.0 and errors[1] < errors[0] / 2.5


@pytest.mark.parametrize(("models", "n"), [(angles, 800), (rotations, 150)])
def test_or_samples_the_mixture(models, n: int) -> None:  # type: ignore[no-untyped-def]
    pair, weights = models(), [0.4, 0.6]
    space, means = pair[0].path.space, torch.cat([m.means for m in pair])
    exact = torch.cat([w * m.log_w.exp() for w, m in zip(weights, pair, strict=True)])
    offsets = [math.log(w) for w in weights]
    off = {}
    for rule in ("or", "average"):
        x = run(Superposition(pair, rule, offsets=offsets), n, 40)  # type: ignore[arg-type]
        far = torch.stack(
            [space.log(m.expand_as(x), x).reshape(n, -1).norm(dim=1) for m in means], 1
        )
        share = torch.bincount(far.argmin(1), minlength=4) / n
        off[rule] = float(((share - exact) / (exact * (1 - exact) / n).sqrt()).abs().max())
        if rule == "or":
            assert float((far.amin(1) < 5 * 0.2).double().mean()) > 0.99
    assert off["or"] < 4.5
    assert off["average"] > 2 * off["or"]


class Certain(Denoiser):
    """One angle for sure by a flow, and a Gaussian number beside it."""

    def __init__(self, angle: float, mean: float | None = None, width: float = 0.2):
        super().__init__()
        self.angle, self.mean, self.width = angle, mean, width
        self.paths: dict[str, Path] = {"x": GeodesicPath(Torus(), Rectified(), "flow")}
        if mean is not None:
            self.paths["y"] = GaussianPath(Euclidean(1), Rectified())

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        clean = {"x": torch.full_like(state["x"], self.angle)}
        if self.mean is not None:
            a, s, v = 1 - t, t, self.width**2
            y = state["y"]
            clean["y"] = self.mean + a * v / (a**2 * v + s**2) * (y - a * self.mean)
        return Prediction(clean)


def test_averaged_angles_lie_between_or_opposite() -> None:
    """Where the short ways to both angles go round different sides, half of each leads away from
    both: from an arc as long as they are apart."""
    n, a, b = 4000, 0.4, 2.0
    x = run(Superposition([Certain(a), Certain(b)], "average"), n, 20, "ab1")[:, 0]
    between = (x - (a + b) / 2).abs() < 1e-6
    opposite = ((a + b) / 2 - math.pi - x).abs() < 1e-6
    assert bool((between | opposite).all())
    exact = (b - a) / (2 * math.pi)
    assert abs(float(opposite.double().mean()) - exact) < 4 * math.sqrt(exact * (1 - exact) / n)


def test_a_flow_follows_the_density_of_the_other_fields() -> None:
    """Joint samples of one model or the other: no angle of one with the number of the other."""
    n, pair = 1000, [Certain(0.4, -1.5), Certain(2.0, 1.5)]
    draws = Draws(4, torch.arange(n))
    sampler = Sampler(60, method="ddpm")
    state = sampler(Superposition(pair, "or"), all_real(n), draws, dtype=torch.float64).state
    x, y = state["x"][:, 0], state["y"][:, 0, 0]
    first = y < 0
    assert abs(float(first.double().mean()) - 0.5) < 4 * 0.5 / math.sqrt(n)
    assert bool(((y.abs() - 1.5).abs() < 1).all())
    torch.testing.assert_close(x, torch.where(first, 0.4, 2.0).double(), atol=1e-3, rtol=0)


def test_what_tells_no_density_is_refused() -> None:
    with pytest.raises(InputError, match="a geodesic flow tells no density of field 'x'"):
        Superposition([Certain(0.4), Certain(2.0)], "or")
    with pytest.raises(InputError, match="along the reverse process alone"):
        Superposition(angles(), "or", form="ode")
    with pytest.raises(InputError, match="moves continuous fields"):
        Superposition(angles(), "and")


def test_a_sample_depends_on_its_number_alone() -> None:
    few, many = (run(Superposition(angles(), "or"), n, 20) for n in (3, 8))
    torch.testing.assert_close(few, many[:3], atol=1e-12, rtol=0)
