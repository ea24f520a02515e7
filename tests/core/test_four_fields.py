"""Points, symbols, angles and a function, learned and sampled by one loop, one field given.

The data: one of three components k with weights w names four elements. Each has a point near m_k, a
symbol that is k with probability 0.8, an angle near φ_k, and all are sites of a function on a line,
c_k plus a Gaussian process. Given the four symbols, Bayes' rule has the law of k in closed form,
and with it that of every other field; given k the fields are independent, so the joint denoiser is
exact too. It shows what the loop can do; a small network shows that training finds it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from sciflow.denoisers import Denoiser, Network, NetworkDenoiser
from sciflow.objectives import DenoisingObjective
from sciflow.objectives.given import GivenRule
from sciflow.paths import CategoricalPath, GaussianPath, GeodesicPath
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.schedules import Cosine, Rectified
from sciflow.spaces import Euclidean, Kernel, RandomField, Tokens, Torus
from sciflow.state import Context, State
from sciflow.testing.targets import ExactDenoiser

N, K = 4, 3
WEIGHTS = torch.tensor([0.5, 0.3, 0.2])
MEANS = torch.tensor([[1.5, 0.0], [-1.0, 1.2], [-0.5, -1.5]])
ANGLES = torch.tensor([-2.0, 0.2, 2.9])
LEVELS = torch.tensor([-1.0, 0.0, 1.3])
ACCURACY, SPREAD = 0.8, 0.25
KERNEL = Kernel("matern", 0.3, 1.5)
FIELD = RandomField((1.0,), KERNEL)
PATHS = {
    "points": GaussianPath(Euclidean(2), Rectified()),
    "symbols": CategoricalPath(Tokens(K), Rectified()),
    "angles": GeodesicPath(Torus(), Rectified()),
    "function": GaussianPath(FIELD, Cosine(), "v"),
}


class Mlp(Network):
    """Everything of a sample in, everything out."""

    def __init__(self, width: int = 128):
        super().__init__()
        self.sizes = {"points": 2 * N, "symbols": K * N, "angles": N, "function": N}
        inputs = 2 * N + (K + 1) * N + 2 * N + N + 4 * N
        self.body = nn.Sequential(
            nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(), nn.Linear(width, sum(self.sizes.values())),
        )  # fmt: skip

    def forward(self, inputs, levels, context, previous):  # type: ignore[no-untyped-def]
        """See :class:`Network`."""
        size = len(context.mask)
        symbols = nn.functional.one_hot(inputs["symbols"], K + 1)
        angles = inputs["angles"]
        parts = [inputs["points"], symbols, angles.sin(), angles.cos(), inputs["function"]]
        parts += [(x if x.ndim > 1 else x[:, None]).expand(size, N) / 4 for x in levels.values()]
        dtype = self.body[0].weight.dtype
        out = self.body(torch.cat([p.reshape(size, -1).to(dtype) for p in parts], -1))
        points, symbols, angles, function = out.split(list(self.sizes.values()), -1)
        return {"points": points.view(size, N, 2), "symbols": symbols.view(size, N, K),
                "angles": angles, "function": function}  # fmt: skip


def real(n: int) -> Context:
    return Context(torch.ones(n, N, dtype=torch.bool))


def data(n: int, seed: int) -> tuple[State, Tensor]:
    """Exact draws and their components."""
    draws, context = Draws(seed, torch.arange(n)), real(n)
    k = torch.multinomial(WEIGHTS, n, True, generator=torch.Generator().manual_seed(seed))
    right = draws.uniform((N,), "right") < ACCURACY
    other = (k[:, None] + 1 + (draws.uniform((N,), "other") * (K - 1)).long()) % K
    angles = ANGLES[k][:, None] + SPREAD * draws.normal((N,), "angles")
    fields = {
        "points": MEANS[k][:, None] + SPREAD * draws.normal((N, 2), "points"),
        "symbols": torch.where(right, k[:, None], other),
        "angles": PATHS["angles"].space.project(angles, context),
        "function": LEVELS[k][:, None] + SPREAD * FIELD.noise(context, draws, "function"),
    }
    return State(fields, context), k


def component(state: State) -> dict[str, Tensor]:
    """The component that each continuous field speaks of, ``[B]``."""
    angle = torch.atan2(state["angles"].sin().mean(1), state["angles"].cos().mean(1))
    turn = torch.remainder(angle[:, None] - ANGLES + math.pi, 2 * math.pi) - math.pi
    return {
        "points": (state["points"].mean(1)[:, None] - MEANS).norm(dim=-1).argmin(-1),
        "angles": turn.abs().argmin(-1),
        "function": (state["function"].mean(1)[:, None] - LEVELS).abs().argmin(-1),
    }


def posterior(symbols: Tensor) -> Tensor:
    """p(k | symbols) for one row of symbols."""
    right = (symbols[:, None] == torch.arange(K)).sum(0)
    likelihood = ACCURACY**right * ((1 - ACCURACY) / (K - 1)) ** (N - right)
    return WEIGHTS * likelihood / (WEIGHTS * likelihood).sum()


class Exact(ExactDenoiser):
    """E[· | all fields] = Σ_k r_k E[· | field, k], r_k ∝ w_k Π_fields p(field | k)."""

    def __init__(self) -> None:
        super().__init__(PATHS)

    def exact(self, state: State, times: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Given k a point is normal, and so is the function in the metric of its own noise."""
        log_r = WEIGHTS.double().log() + torch.zeros(state.batch_size, K, dtype=torch.float64)
        means: dict[str, Tensor] = {}
        for name, centre in (("points", MEANS[:, None]), ("function", LEVELS[:, None])):
            path, x = PATHS[name], state[name].double()
            a, s = (y.view(-1, *[1] * x.ndim) for y in path.schedule(times[name]))
            y = x[:, None] - a * centre
            v = a**2 * SPREAD**2 + s**2
            flat = y.flatten(0, 1)
            q = path.space.inner(flat, flat, real(len(flat))).view(-1, K)
            d = x[0].numel()
            v1 = v.flatten()[:, None]
            log_r = log_r - 0.5 * (q / v1 + d * v1.log())
            means[name] = centre + a * SPREAD**2 / v * y
        log_r = log_r + self._symbols(state["symbols"], times["symbols"])
        log_p, tangent = self._angles(state["angles"].double(), times["angles"])
        r = (log_r + log_p).softmax(-1)

        def mean(y: Tensor) -> Tensor:
            return (r.view(*r.shape, *[1] * (y.ndim - 2)) * y).sum(1)

        log_names = torch.full((K, K), math.log((1 - ACCURACY) / (K - 1)), dtype=torch.float64)
        log_names.fill_diagonal_(math.log(ACCURACY))
        # A masked symbol tells no more than k does.
        symbols = (r @ log_names.exp()).log()[:, None].expand(-1, N, -1)
        # The network of a geodesic path answers with a tangent vector of order one.
        kappa = PATHS["angles"].scale(times["angles"])[:, None]
        return {"points": mean(means["points"]), "function": mean(means["function"]),
                "angles": mean(tangent) / kappa, "symbols": symbols}  # fmt: skip

    def _symbols(self, x: Tensor, t: Tensor) -> Tensor:
        """log p(seen symbols | k): masked ones say nothing."""
        seen = x < K
        right = ((x[..., None] == torch.arange(K)) & seen[..., None]).sum(1).double()
        wrong = seen.sum(1)[:, None] - right
        return right * math.log(ACCURACY) + wrong * math.log((1 - ACCURACY) / (K - 1))

    def _angles(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x_t | k), up to a constant, and E[log_{x_t} x_0 | x_t, k], ``[B, K, N]``.

        x_t = x_0 + κ π u with u uniform on (−1, 1): x_0 is normal, cut off at distance κ π, summed
        over the turns of the circle.
        """
        kappa = PATHS["angles"].scale(t).view(-1, 1, 1, 1).clamp(min=1e-9)
        turns = 2 * math.pi * torch.arange(-2, 3, dtype=torch.float64)
        centre = ANGLES.double()[:, None, None] + turns - x[:, None, :, None]
        ends = [(sign * kappa * math.pi - centre) / SPREAD for sign in (-1.0, 1.0)]
        low, high = (torch.special.ndtr(e) for e in ends)
        mass = (high - low).clamp(min=1e-300)
        bell = [(-(e**2) / 2).exp() / math.sqrt(2 * math.pi) for e in ends]
        total = mass.sum(-1)
        offset = (centre * mass + SPREAD * (bell[0] - bell[1])).sum(-1) / total
        return total.log().sum(-1), offset


def train() -> NetworkDenoiser:
    """By the project's own objective; half of the samples have their symbols given."""
    torch.manual_seed(0)
    trained = NetworkDenoiser(Mlp(), PATHS)
    objective = DenoisingObjective(given={"symbols": GivenRule(("symbols",), "all", 0.5)})
    optimizer = torch.optim.Adam(trained.parameters(), 3e-3)
    steps, size = 900, 256
    batch, _ = data(30 * size, seed=1)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / steps)
        rows = torch.arange(size) + size * (step % 30)
        loss = objective(trained, batch.index(rows), Draws(0, rows), step).total.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return trained.eval()


@pytest.fixture(scope="module", params=["exact", "trained"])
def judged(request: pytest.FixtureRequest) -> tuple[Denoiser, float]:
    """A denoiser, and the total variation that it is allowed beyond the noise of sampling."""
    return (Exact(), 0.015) if request.param == "exact" else (train(), 0.09)


@pytest.mark.parametrize("symbols", [[0, 0, 1, 1], [0, 1, 2, 2]], ids=str)
@pytest.mark.parametrize("method", ["ab2", "heun"])
def test_given_symbols_condition_everything_else(
    judged: tuple[Denoiser, float], symbols: list[int], method: str
) -> None:
    denoiser, allowed = judged
    n = 3000
    given = {"symbols": torch.tensor(symbols).expand(n, N)}
    context = real(n).replace(given={"symbols": torch.ones(n, N, dtype=torch.bool)})
    sampler = Sampler(steps=31, method=method)
    state = sampler(denoiser, context, Draws(5, torch.arange(n)), given=given).state
    assert torch.equal(state["symbols"], given["symbols"])
    exact = posterior(torch.tensor(symbols))
    noise = float((2 / math.pi * exact * (1 - exact) / n).sqrt().sum() / 2)
    parts = component(state)
    for name, k in parts.items():
        found = torch.bincount(k, minlength=K) / n
        assert float((found - exact).abs().sum() / 2) < allowed + 2 * noise, (name, found, exact)
    # The fields agree on the component, as they do in the data.
    for name in ("angles", "function"):
        assert float((parts["points"] == parts[name]).float().mean()) > 1 - allowed


def test_all_four_fields_from_noise(judged: tuple[Denoiser, float]) -> None:
    """The joint law of (component, right symbols), and what the exact one knows beyond it."""
    denoiser, allowed = judged
    n = 4000
    sampler = Sampler(steps=40, greedy=False)
    state = sampler(denoiser, real(n), Draws(6, torch.arange(n))).state
    clean, _ = data(n, seed=9)

    def table(s: State) -> Tensor:
        k = component(s)["points"]
        right = (s["symbols"] == k[:, None]).sum(1)
        return torch.bincount(k * (N + 1) + right, minlength=K * (N + 1)) / n

    # Two exact sets of this size are 0.02 apart.
    assert float((table(state) - table(clean)).abs().sum() / 2) < allowed + 0.03
    if isinstance(denoiser, NetworkDenoiser):
        return  # Spread and correlation within a component take a longer training.
    points = state["points"] - MEANS[component(state)["points"]][:, None]
    assert float(points.std()) == pytest.approx(SPREAD, rel=0.03)
    f = state["function"] - LEVELS[component(state)["function"]][:, None]
    for j, lag in enumerate((0.25, 0.5, 0.75), start=1):
        found = float((f[:, 0] * f[:, j]).mean() / f.square().mean())
        expected = float(KERNEL.at([torch.tensor(lag)]))
        assert found == pytest.approx(expected, abs=0.06)
