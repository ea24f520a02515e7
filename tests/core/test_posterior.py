"""Posterior sampling: each method exact where its covariance is, strengths that mean the noise."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.guidance.measured.annealing import DecoupledAnnealing
from sciflow.guidance.measured.measurements import (
    MatrixMeasurement,
    Measurement,
    NonlinearMeasurement,
    Observed,
    dense,
    linearized,
)
from sciflow.guidance.measured.moment_matching import MomentMatching
from sciflow.guidance.measured.noise_level import Rescaled, fit_noise_level
from sciflow.guidance.measured.posterior import Posterior
from sciflow.paths import GaussianPath
from sciflow.random import Draws
from sciflow.samplers import Plan, Sampler
from sciflow.samplers.ancestral import Ancestral
from sciflow.schedules import Cosine, Rectified, Schedule, VarianceExploding, VPLinear
from sciflow.spaces import Euclidean, Kernel, RandomField, ZeroCoM
from sciflow.state import Context, State, Times, field_times
from sciflow.testing.targets import all_real
from sciflow.training.gaussian_fit import GaussianDenoiser

SHAPE = (2, 2)
MEAN = torch.tensor([[1.0, -0.5], [0.2, 0.7]], dtype=torch.float64)
ROOT = torch.tensor(
    [[1.0, 0, 0, 0], [0.6, 0.5, 0, 0], [-0.3, 0.4, 0.7, 0], [0.2, -0.6, 0.1, 0.4]],
    dtype=torch.float64,
)
EYE = torch.eye(4, dtype=torch.float64)
ROUND, UNEVEN, FULL = 0.49 * EYE, torch.diag(torch.tensor([0.2, 1.5, 0.6, 3.0])), ROOT @ ROOT.T
ROWS = MatrixMeasurement(
    torch.tensor([[1.0, -2.0, 0.5, 1.0], [0.0, 1.0, 1.0, 0.0]]).double(),
    torch.tensor([[0.3, 0.1], [0.1, 0.2]]),
    SHAPE,
)
ONE = MatrixMeasurement(torch.tensor([[1.0, -2.0, 0.5, 1.0]]).double(), 0.05, SHAPE)
SCHEDULES = [Rectified(), Cosine(), VPLinear(), VarianceExploding()]
METHODS: dict[str, dict[str, Any]] = {
    "dps": {"method": "dps", "steps": 20},
    "dps-scaled": {"method": "dps-scaled"},
    "dps-scaled, estimate": {"method": "dps-scaled", "through": "estimate"},
    "pigdm": {"method": "pigdm"},
    "pigdm, estimate": {"method": "pigdm", "through": "estimate"},
    "tmpd": {"method": "tmpd"},
    "tmpd, diagonal": {"method": "tmpd", "diagonal": "exact"},
    "mmps": {"method": "mmps", "iterations": 6},
    "daps": {},
    "daps, langevin": {"langevin": 3},
}
every_method = pytest.mark.parametrize("name", METHODS)


def normals(n: int, *shape: int, stream: str = "x") -> Tensor:
    return Draws(2, torch.arange(n)).normal(shape, stream, dtype=torch.float64)


def prior(covariance: Tensor = FULL, schedule: Schedule | None = None) -> GaussianDenoiser:
    path = GaussianPath(Euclidean(2), schedule or Rectified(), data_std=0.7)
    return GaussianDenoiser(path, MEAN, covariance)


def guided(name: str, model: Denoiser, y: Tensor, instrument: Any, draws: Draws | None = None,
           **more: Any) -> Denoiser:  # fmt: skip
    """A method of the table on field x."""
    settings = {**METHODS[name], **more}
    if name.startswith("daps"):
        draws = draws or Draws(0, torch.arange(len(y)))
        return DecoupledAnnealing(model, "x", y, instrument, draws, **settings)
    return Posterior(model, "x", y, instrument, **settings)


def kalman(a: Tensor, noise: Tensor, y: Tensor, m: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of N(m, c) given y = A x + η."""
    gain = c @ a.mT @ torch.linalg.inv(a @ c @ a.mT + noise)
    return m + (gain @ (y - (a @ m[..., None])[..., 0])[..., None])[..., 0], c - gain @ a @ c


def exact_mean(
    instrument: Measurement, y: Tensor, x: Tensor, signal: float, s: float, covariance: Tensor,
    mean: Tensor = MEAN, color: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """E[x_0 | x_t, y], x_t as one more measurement, flat."""
    a, noise = dense(instrument, x)
    n, m = a.shape[2], a.shape[1]
    both = torch.zeros(len(x), m + n, m + n, dtype=torch.float64)
    both[:, :m, :m] = noise
    both[:, m:, m:] = s**2 * (torch.eye(n, dtype=torch.float64) if color is None else color)
    every = torch.cat((a, signal * torch.eye(n, dtype=torch.float64).expand(len(x), n, n)), 1)
    return kalman(every, both, torch.cat((y.flatten(1), x.flatten(1)), 1), mean.flatten(),
                  covariance.double())[0]  # fmt: skip


def at_noise(schedule: Schedule, level: float) -> tuple[float, float, float]:
    """t, a, s at s/a = level."""
    t = schedule.invert(lambda a, s: s / a, torch.tensor(level, dtype=torch.float64))
    a, s = schedule(t)
    return float(t), float(a), float(s)


def error(name: str, covariance: Tensor, instrument: Measurement, level: float = 0.7,
          schedule: Schedule | None = None, **more: Any) -> float:  # fmt: skip
    """The worst distance to E[x_0 | x_t, y] at one noise level."""
    schedule = schedule or Rectified()
    t, a, s = at_noise(schedule, level)
    x = a * MEAN + (a + s) * normals(5, *SHAPE)
    y = instrument.apply(MEAN + normals(5, *SHAPE, stream="truth"))
    model = guided(name, prior(covariance, schedule), y, instrument, **more)
    found = model(State({"x": x}, all_real(5, 2)), t)["x"].detach().flatten(1)
    return float((found - exact_mean(instrument, y, x, a, s, covariance)).abs().max())


SEEN = Observed(normals(5, *SHAPE, stream="seen") > 0, 0.02)
EXACT: dict[str, tuple[str, Tensor, Measurement, dict[str, Any]]] = {
    "pigdm, isotropic": ("pigdm", ROUND, ROWS, {}),
    "pigdm without the network's gradient": ("pigdm, estimate", ROUND, ROWS, {}),
    "tmpd, diagonal and observed": ("tmpd", UNEVEN, SEEN, {}),
    "tmpd, one number measured": ("tmpd", FULL, ONE, {}),
    "tmpd, diagonal by products": ("tmpd, diagonal", UNEVEN, SEEN, {}),
    "mmps, any Gaussian": ("mmps", FULL, ROWS, {}),
    "mmps, one number measured, one iteration": ("mmps", FULL, ONE, {"iterations": 1}),
    "most probable draw, isotropic": ("daps", ROUND, ROWS, {"temperature": 0.0}),
}


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("case", EXACT)
def test_a_method_is_exact_where_its_covariance_is(case: str, schedule: Schedule) -> None:
    """E[x_0 | x_t, y] to 1e-8 at three noise levels."""
    name, covariance, instrument, more = EXACT[case]
    for level in (0.05, 0.7, 3.0):
        assert error(name, covariance, instrument, level, schedule, **more) < 1e-8


@pytest.mark.parametrize("name", ["dps", "dps-scaled", "pigdm", "tmpd", "tmpd, diagonal"])
def test_and_only_there(name: str) -> None:
    """On correlated data with correlated instruments all of these are approximations."""
    assert error(name, FULL, ROWS) > 1e-2
    assert error("mmps", FULL, ROWS) < 1e-8


@pytest.mark.parametrize("covariance", [FULL, UNEVEN], ids=["full", "uneven"])
def test_moment_matching_gives_the_exact_posterior_on_a_gaussian(covariance: Tensor) -> None:
    """The map from noise to samples is affine there: its image of N(0, 1) is known without draws.

    Mean and covariance of the posterior to 1e-4.
    """
    y = torch.tensor([[3.0, -1.0]], dtype=torch.float64)
    start = torch.cat((torch.zeros(1, 4, dtype=torch.float64), EYE)).view(5, *SHAPE)
    model = MomentMatching(prior(covariance), "x", y.expand(5, 2), ROWS, 2, noise_limit=1e4)
    sampler = Sampler(steps=120, method="ab3", logsnr_last=7.0)
    image = sampler(model, all_real(5, 2), Draws(0, torch.arange(5)), dtype=torch.float64,
                    start={"x": start}).state["x"].flatten(1)  # fmt: skip
    mean, exact = kalman(*(v[0] for v in dense(ROWS, MEAN[None])), y[0], MEAN.flatten(),
                         covariance.double())  # fmt: skip
    slope = (image[1:] - image[0]).mT
    torch.testing.assert_close(image[0], mean, rtol=0, atol=1e-4)
    torch.testing.assert_close(slope @ slope.mT, exact, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("iterations", "products"), [(1, 1), (2, 3)])
def test_one_iteration_of_moment_matching_takes_one_product(iterations: int, products: int) -> None:
    """Its direction is the residual, whose product moves the estimate as well."""
    y, x = normals(3, 2, stream="y"), normals(3, *SHAPE)
    model = Posterior(prior(), "x", y, ROWS, "mmps", iterations=iterations)
    found = model(State({"x": x}, all_real(3, 2)), 0.4)["x"].flatten(1)
    assert model.products == products
    a, noise = (v[0] for v in dense(ROWS, MEAN[None]))
    plain = prior()(State({"x": x}, all_real(3, 2)), 0.4)["x"].flatten(1)
    v = torch.linalg.inv(torch.linalg.inv(FULL) + EYE * (0.6 / 0.4) ** 2)
    r, system = y - plain @ a.mT, noise + a @ v @ a.mT
    step = (r * r).sum(1, keepdim=True) / (r * (r @ system)).sum(1, keepdim=True)
    if iterations == 1:
        torch.testing.assert_close(found, plain + step * (r @ a @ v), rtol=0, atol=1e-9)


def test_scaled_dps_is_right_where_the_noise_is_large() -> None:
    """Its S is Σ_y + r² for Σ_y + A V Aᵀ: of the pull, a part like 1/σ_y² is wrong."""
    wrong = []
    x = 0.6 * MEAN + normals(5, *SHAPE)
    y = ROWS.apply(MEAN + normals(5, *SHAPE, stream="truth"))
    state = State({"x": x}, all_real(5, 2))
    plain = prior()(state, 0.4)["x"].flatten(1)
    for sigma in (10.0, 100.0, 1000.0):
        instrument = MatrixMeasurement(ROWS.matrix, sigma**2, SHAPE)
        exact = exact_mean(instrument, y, x, 0.6, 0.4, FULL) - plain
        found = guided("dps-scaled", prior(), y, instrument)(state, 0.4)["x"].detach()
        found = found.flatten(1) - plain
        wrong.append(float((found - exact).norm() / exact.norm()))
    assert wrong[0] < 0.1
    assert wrong[1] == pytest.approx(wrong[0] / 100, rel=0.1)
    assert wrong[2] == pytest.approx(wrong[1] / 100, rel=0.1)


@pytest.mark.parametrize("zeta", [1.0, 0.3])
def test_dps_is_the_published_update(zeta: float) -> None:
    """x_{t−1} moves by −ζ ∇|y − A D| in each ancestral step on the published grid of N betas.

    A denoiser's move reaches the state through the step's own coefficient; the two agree to O(1/N).
    """
    schedule = VPLinear()
    x, y = normals(3, *SHAPE), normals(3, 2, stream="y")
    context, worst = all_real(3, 2), []
    for n in (250, 1000, 4000):
        times = torch.linspace(1, 0, n + 1, dtype=torch.float64)
        stepper = Ancestral(prior(FULL, schedule).path, Plan.along(times), 1.0)
        off = []
        for i in (n // 5, n // 2, int(0.9 * n)):
            t = float(times[i])
            model = guided("dps", prior(FULL, schedule), y, ROWS, steps=n, weight=zeta)
            plain = prior(FULL, schedule)
            state = State({"x": x}, context)
            leaf = x.clone().requires_grad_(True)
            residual = y - ROWS.apply(plain(State({"x": leaf}, context), t)["x"])
            (slope,) = torch.autograd.grad(residual.norm(dim=1).sum(), leaf)
            move = model(state, t)["x"].detach() - plain(state, t)["x"]
            off.append(float((stepper.from_clean[i] * move + zeta * slope).norm() / slope.norm()))
        worst.append(max(off) / zeta)
    assert worst[0] < 0.1
    assert worst[1] == pytest.approx(worst[0] / 4, rel=0.2)
    assert worst[2] == pytest.approx(worst[1] / 4, rel=0.2)


@every_method
def test_the_norm_is_each_sample_s_own(name: str) -> None:
    """azula and DPS as released take the norm of the residual over the batch: strength ~ 1/√B."""
    n, draws = 6, Draws(0, torch.arange(6))
    y, rows = 3 * normals(n, 2, stream="y"), torch.tensor([4, 1])
    sampler = Sampler(steps=6)
    runs = [
        sampler(guided(name, prior(), y[r], ROWS, draws.rows(r)), all_real(len(r), 2),
                draws.rows(r), dtype=torch.float64).state["x"]
        for r in (torch.arange(n), rows)
    ]  # fmt: skip
    torch.testing.assert_close(runs[1], runs[0][rows], rtol=0, atol=1e-10)
    plain = sampler(prior(), all_real(n, 2), draws, dtype=torch.float64).state["x"]
    assert bool(((runs[0] - plain).flatten(1).norm(dim=1) > 1e-3).all())


class Centred(Denoiser):
    """Centred points, coupled so that D is not linear in each alone; padding is empty."""

    def __init__(self) -> None:
        super().__init__()
        self.path = GaussianPath(ZeroCoM(3, "x"), Rectified())
        self.paths = {"x": self.path}

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        x = self.path.space.project(state["x"], state.context)
        a, s = (self.path.space.expand(c, x).to(x.dtype)
                for c in self.path.schedule(field_times(t, state)["x"]))  # fmt: skip
        size = self.path.space.sum(x**2, state.context).view(-1, 1, 1)
        return Prediction({"x": a / (a**2 + s**2) * x / (1 + 0.05 * size).sqrt()})


@every_method
def test_padding_carries_no_pull_and_no_centre_of_mass(name: str) -> None:
    """MoCo centres over padded rows; a sample padded further must be the same, and padding 0."""
    runs = []
    for width in (3, 6):
        mask = torch.arange(width) < torch.tensor([3, 2])[:, None]
        seen = torch.zeros(2, width, 3, dtype=torch.bool)
        seen[:, 0] = True
        y = torch.zeros(2, width, 3, dtype=torch.float64)
        y[:, 0] = torch.tensor([0.5, 1.0, -1.0])
        draws = Draws(0, torch.arange(2))
        model = guided(name, Centred(), y, Observed(seen, 0.1), draws)
        x = Sampler(steps=5)(model, Context(mask), draws, dtype=torch.float64).state["x"]
        assert not bool(x[~mask].any())
        assert float((x.sum(1)).abs().max()) < 1e-9
        runs.append(x[:, :3])
    torch.testing.assert_close(runs[0], runs[1], rtol=0, atol=1e-9)


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_no_information_is_no_guidance_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    """Weight 0 at one call a step, infinite noise, and an instrument that sees nothing."""
    sampler, draws, y = Sampler(steps=6), Draws(0, torch.arange(4)), normals(4, 2, stream="y")
    context = all_real(4, 2)
    plain = sampler(prior(), context, draws, dtype=dtype).state["x"]
    off = guided(name, prior(), y, ROWS, weight=0.0)
    assert torch.equal(sampler(off, context, draws, dtype=dtype).state["x"], plain)
    assert off.calls == 6
    if name == "dps" or name.startswith("daps"):
        return  # One knows no noise level, the other draws.
    endless = MatrixMeasurement(ROWS.matrix, math.inf, SHAPE)
    blind = Observed(torch.zeros(4, *SHAPE, dtype=torch.bool), 0.1)
    for seen, instrument in ((y, endless), (torch.zeros(4, *SHAPE), blind)):
        found = sampler(guided(name, prior(), seen, instrument), context, draws, dtype=dtype)
        assert torch.equal(found.state["x"], plain)


def test_outside_its_interval_guidance_is_off() -> None:
    state, y = State({"x": normals(3, *SHAPE)}, all_real(3, 2)), normals(3, 2, stream="y")
    model = guided("pigdm", prior(), y, ROWS, interval=(0.2, 0.6))
    for t in (0.1, 0.7):
        assert torch.equal(model(state, t)["x"], prior()(state, t)["x"])
    assert not torch.allclose(model(state, 0.4)["x"], prior()(state, 0.4)["x"])


@pytest.mark.parametrize("name", ["pigdm", "tmpd, diagonal", "mmps", "daps"])
def test_strength_is_information_not_a_count_of_sensors(name: str) -> None:
    """The same number read k times at k times the variance says the same as once.

    A mean over sensors, or a weight of 10⁴ (FunDPS), has no such unit. ("tmpd" forgets that the
    readings are of one quantity: it is the exception that its S predicts.)
    """
    k = 5
    y = normals(3, 1, stream="y")
    many = MatrixMeasurement(ONE.matrix.expand(k, 4), 0.05 * k, SHAPE)
    state, cold = State({"x": normals(3, *SHAPE)}, all_real(3, 2)), {}
    if name == "daps":
        cold["temperature"] = 0.0
    once = guided(name, prior(), y, ONE, **cold)(state, 0.4)["x"].detach()
    often = guided(name, prior(), y.expand(3, k), many, **cold)(state, 0.4)["x"].detach()
    same = float((often - once).abs().max()) < 1e-8
    assert same == (name != "tmpd, diagonal")


def test_data_need_not_lie_between_minus_one_and_one() -> None:
    """diffusers clips the clean estimate: posteriors of data at 30 would end at 1."""
    path = GaussianPath(Euclidean(2), Rectified(), data_std=0.7)
    model = GaussianDenoiser(path, MEAN + 30, FULL)
    y = ROWS.apply(MEAN[None] + 31).expand(4, 2)
    x = Sampler(steps=40)(guided("mmps", model, y, ROWS), all_real(4, 2),
                          Draws(0, torch.arange(4)), dtype=torch.float64).state["x"]  # fmt: skip
    left = (ROWS.apply(x) - y).abs()
    assert float(left.max()) < 3 and float(x.mean()) > 29


def test_coloured_noise_colours_the_pull() -> None:
    """FunDPS leaves C out, so its gradient is white where its noise is not (Hilbert-space form)."""
    n = 6
    space = RandomField((1.0,), Kernel("matern", 0.3), points="where")
    where = torch.linspace(0, 1, n, dtype=torch.float64)[None, :, None].expand(3, n, 1)
    context = all_real(3, n).replace(extras={"where": where})
    basis = torch.eye(n, dtype=torch.float64)
    c = space.color(basis, all_real(n, n).replace(extras={"where": where[:1].expand(n, n, 1)}))

    class Field(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.paths = {"x": GaussianPath(space, Rectified(), data_std=1.5)}

        def forward(
            self, state: State, t: Times | float, previous: Prediction | None = None
        ) -> Prediction:
            a, s = (v[:, None] for v in self.paths["x"].schedule(field_times(t, state)["x"]))
            return Prediction({"x": a * 2.25 / (a**2 * 2.25 + s**2) * state["x"]})

    seen = MatrixMeasurement(torch.eye(n, dtype=torch.float64)[[1, 4]], 0.01, (n,))
    y, x = normals(3, 2, stream="y"), normals(3, n)
    exact = exact_mean(seen, y, x, 0.6, 0.4, 2.25 * c, torch.zeros(n).double(), c)
    assert float((c - torch.eye(n)).abs().max()) > 0.3
    for name in ("pigdm", "pigdm, estimate", "mmps"):
        found = guided(name, Field(), y, seen)(State({"x": x}, context), 0.4)["x"].detach()
        torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)


class TwoFields(Denoiser):
    """Jointly Gaussian fields x and z, both ``[B, 2]``, with clocks of their own."""

    covariance = ROOT @ ROOT.T

    def __init__(self) -> None:
        super().__init__()
        self.paths = {"x": GaussianPath(Euclidean(), Rectified()),
                      "z": GaussianPath(Euclidean(), Cosine())}  # fmt: skip

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        times, flat, signal, noise = field_times(t, state), [], [], []
        for f, path in self.paths.items():
            a, s = path.schedule(times[f])
            flat.append(state[f])
            signal.append(a[:, None].expand(-1, 2))
            noise.append(s[:, None].expand(-1, 2))
        a, s, x = torch.cat(signal, 1), torch.cat(noise, 1), torch.cat(flat, 1)
        noisy = a[:, :, None] * self.covariance * a[:, None] + torch.diag_embed(s**2)
        gain = torch.linalg.solve(noisy, a[:, :, None] * self.covariance).mT
        clean = (gain @ x[..., None])[..., 0]
        return Prediction({"x": clean[:, :2], "z": clean[:, 2:]})


def test_a_measured_field_informs_the_others_through_the_network() -> None:
    """Both estimates are exact where only x is measured; pulling x alone would leave z behind."""
    model, x, z = TwoFields(), normals(4, 2), normals(4, 2, stream="z")
    y = 2 * normals(4, 1, stream="y")
    row = MatrixMeasurement(torch.tensor([[1.0, -0.5]]).double(), 0.1, (2,))
    t = {"x": torch.tensor(0.4).double(), "z": torch.tensor(0.55).double()}
    a, s = zip(*(model.paths[f].schedule(t[f]) for f in "xz"), strict=True)
    every = torch.zeros(5, 4, dtype=torch.float64)
    every[0, :2] = row.matrix
    every[1:] = torch.diag(torch.stack(a).repeat_interleave(2))
    noise = torch.diag(torch.cat((torch.tensor([0.1]), torch.stack(s).repeat_interleave(2) ** 2)))
    seen = torch.cat((y, x, z), 1)
    exact, _ = kalman(every, noise, seen, torch.zeros(4).double(), TwoFields.covariance)
    found = Posterior(model, "x", y, row)(State({"x": x, "z": z}, all_real(4, 2)), t).detach()
    torch.testing.assert_close(found["x"], exact[:, :2], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found["z"], exact[:, 2:], rtol=1e-8, atol=1e-8)
    alone = model(State({"x": x, "z": z}, all_real(4, 2)), t)["z"]
    assert float((alone - exact[:, 2:]).abs().max()) > 0.1


def test_costs_are_counted() -> None:
    """Calls of the network and products of its gradient, one step below the noise limit."""
    expected = {"dps": (1, 1), "dps-scaled": (1, 1), "dps-scaled, estimate": (1, 0),
                "pigdm": (1, 1), "pigdm, estimate": (1, 0), "tmpd": (1, 2),
                "tmpd, diagonal": (1, 3), "mmps": (1, 3)}  # fmt: skip
    state, y = State({"x": normals(3, *SHAPE)}, all_real(3, 2)), normals(3, 2, stream="y")
    for name, cost in expected.items():
        model = guided(name, prior(), y, ROWS, **({"iterations": 2} if name == "mmps" else {}))
        model(state, 0.5)
        assert (model.calls, model.products) == cost, name
        model(state, 1.0)
        # The published update divides by nothing; the others ask again where V is taken.
        again = 2 if cost[1] and name != "dps" else 1
        assert model.calls == 1 + again, name
    inner = guided("daps", prior(), y, ROWS, inner=Sampler(steps=4))
    inner(state, 0.5)
    assert inner.calls == 5


def radius(x: Tensor, scale: Tensor) -> Tensor:
    return (scale * x.flatten(1) ** 2).sum(1, keepdim=True).sqrt()


def test_a_linear_function_is_a_linear_measurement() -> None:
    y, state = normals(5, 2, stream="y"), State({"x": normals(5, *SHAPE)}, all_real(5, 2))
    written = NonlinearMeasurement(lambda x: x.flatten(1) @ ROWS.matrix.mT, 0.2)
    matrix = MatrixMeasurement(ROWS.matrix, 0.2, SHAPE)
    for name in METHODS:
        pair = [guided(name, prior(), y, h)(state, 0.4)["x"].detach() for h in (matrix, written)]
        torch.testing.assert_close(pair[1], pair[0], rtol=1e-9, atol=1e-9)


def test_a_tangent_is_the_jacobian_each_row_s_own() -> None:
    scale = 1 + normals(4, 4, stream="scale") ** 2
    curved, x = NonlinearMeasurement(radius, 0.1, (scale,)), normals(4, *SHAPE)
    a, noise = dense(linearized(curved, x), x)
    exact = (scale * x.flatten(1) / radius(x, scale))[:, None]
    torch.testing.assert_close(a, exact)
    torch.testing.assert_close(noise, torch.full((4, 1, 1), 0.1, dtype=torch.float64))
    rows = torch.tensor([2, 0])
    torch.testing.assert_close(curved.rows(rows).apply(x[rows]), curved.apply(x)[rows])
    back = linearized(curved, x).adjoint(torch.ones(4, 1, dtype=torch.float64))
    torch.testing.assert_close(back.flatten(1), exact[:, 0])
    with pytest.raises(InputError, match="differentiable"):
        NonlinearMeasurement(lambda x: torch.ones_like(x[:, 0]), 1.0).at(x)


def test_a_non_linear_measurement_pulls_as_its_tangent_does() -> None:
    """MMPS: D + V Aᵀ(Σ + A V Aᵀ)⁻¹(y − H(D)), A at D; V from the covariances of the prior."""
    scale = torch.ones(1, 4, dtype=torch.float64)
    curved, y = NonlinearMeasurement(radius, 0.1, (scale.expand(5, 4),)), 1 + normals(5, 1) ** 2
    x = normals(5, *SHAPE)
    state = State({"x": x}, all_real(5, 2))
    clean = prior()(state, 0.4)["x"]
    v = FULL - 0.6 * FULL @ torch.linalg.inv(0.36 * FULL + 0.16 * EYE) @ FULL * 0.6
    a = (clean.flatten(1) / radius(clean, scale))[:, None]
    gain = v @ a.mT / (0.1 + a @ v @ a.mT)
    exact = clean.flatten(1) + (gain @ (y - radius(clean, scale))[..., None])[..., 0]
    found = guided("mmps", prior(), y, curved)(state, 0.4)["x"].detach().flatten(1)
    torch.testing.assert_close(found, exact, rtol=1e-8, atol=1e-8)


STEPS = [{"method": "ddim", "eta": 0.0}, {"method": "ddpm"}, {"method": "ddim", "eta": 1e9},
         {"method": "sde"}]  # fmt: skip


@pytest.mark.parametrize("settings", STEPS, ids=str)
def test_decoupled_draws_are_the_posterior_s_whatever_noise_is_drawn_anew(
    settings: dict[str, Any],
) -> None:
    """Isotropic data, where r² C is the spread: moments within four standard errors, 8 steps."""
    n = 4000
    y = torch.tensor([[3.0, -1.0]], dtype=torch.float64)
    draws = Draws(0, torch.arange(n))
    model = guided("daps", prior(ROUND), y.expand(n, 2), ROWS, draws)
    sampler = Sampler(steps=8, logsnr_last=3.0, **settings)
    x = sampler(model, all_real(n, 2), draws, dtype=torch.float64).state["x"].flatten(1)
    assert_moments(x, *kalman(*(v[0] for v in dense(ROWS, MEAN[None])), y[0], MEAN.flatten(),
                              ROUND))  # fmt: skip


def assert_moments(x: Tensor, mean: Tensor, covariance: Tensor, slack: float = 0.0) -> None:
    """Mean and covariance of samples within four standard errors, and ``slack`` of the variance."""
    sd, n = covariance.diagonal().sqrt(), len(x)
    assert float(((x.mean(0) - mean) / sd).abs().max()) < 4 / n**0.5
    spread = ((sd[:, None] * sd) ** 2 + covariance**2).sqrt() * 4 / n**0.5
    assert bool(((x.mT.cov() - covariance).abs() < spread + slack * sd[:, None] * sd).all())


def test_the_published_langevin_draws_come_to_the_same() -> None:
    """At one time, D and r² known: p(x_0 | x_t, y) by Kalman, against 60 steps of rate 0.1."""
    n = 4000
    x = MEAN.expand(n, *SHAPE) * 0.6 + 0.3
    y = torch.tensor([[3.0, -1.0]], dtype=torch.float64)
    model = guided("daps, langevin", prior(ROUND), y.expand(n, 2), ROWS, langevin=60, rate=0.1)
    found = model(State({"x": x}, all_real(n, 2)), 0.4)["x"].flatten(1)
    v = 0.49 * 0.16 / (0.36 * 0.49 + 0.16)
    clean = prior(ROUND)(State({"x": x[:1]}, all_real(1, 2)), 0.4)["x"].flatten()
    matrices = (m[0] for m in dense(ROWS, MEAN[None]))
    assert_moments(found, *kalman(*matrices, y[0], clean, v * EYE), slack=0.05)


def test_langevin_finds_both_sides_of_a_curved_likelihood() -> None:
    """y = x², the tangent at D only a start: mean and variance against a sum over a grid."""
    n = 3000
    path = GaussianPath(Euclidean(), Rectified())
    model = GaussianDenoiser(path, torch.tensor([0.6]), torch.tensor([[1.0]]))
    square = NonlinearMeasurement(lambda x: x**2, 0.5)
    y, x = torch.full((n, 1), 1.0).double(), torch.full((n, 1), 0.2).double()
    found = DecoupledAnnealing(model, "x", y, square, Draws(0, torch.arange(n)), langevin=150,
                               rate=0.05)(State({"x": x}, all_real(n)), 0.5)["x"]  # fmt: skip
    clean = float(model(State({"x": x[:1]}, all_real(1)), 0.5)["x"])
    grid = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    p = (-((grid - clean) ** 2) / (2 * 0.5) - (1 - grid**2) ** 2 / (2 * 0.5)).softmax(0)
    mean = float((p * grid).sum())
    sd = float((p * (grid - mean) ** 2).sum().sqrt())
    assert float(found.mean()) == pytest.approx(mean, abs=0.08 * sd)
    assert float(found.std()) == pytest.approx(sd, rel=0.05)
    assert float((found < 0).double().mean()) == pytest.approx(float(p[grid < 0].sum()), abs=0.03)


def test_a_draw_is_a_function_of_the_sample_and_the_time() -> None:
    """One time for all and the same as a tensor agree; rows at other times draw for themselves."""
    draws = Draws(0, torch.arange(3))
    y, x = normals(3, 2, stream="y"), normals(3, *SHAPE)
    model, state = guided("daps", prior(), y, ROWS, draws), State({"x": x}, all_real(3, 2))
    one = model(state, 0.4)["x"]
    assert torch.equal(one, model(state, torch.full((3,), 0.4, dtype=torch.float64))["x"])
    mixed = model(state, torch.tensor([0.4, 0.7, 0.4], dtype=torch.float64))["x"]
    torch.testing.assert_close(mixed[[0, 2]], one[[0, 2]])
    torch.testing.assert_close(mixed[1], model(state, 0.7)["x"][1])


def test_an_inner_flow_gives_the_centre() -> None:
    """At temperature 0 and without information, the answer is where the inner flow ends."""
    blind = Observed(torch.zeros(3, *SHAPE, dtype=torch.bool), 0.1)
    draws, inner = Draws(0, torch.arange(3)), Sampler(steps=5)
    state = State({"x": normals(3, *SHAPE)}, all_real(3, 2))
    model = DecoupledAnnealing(prior(), "x", torch.zeros(3, *SHAPE), blind, draws, inner=inner,
                               temperature=0.0)  # fmt: skip
    end = inner(prior(), all_real(3, 2), draws, start=state.fields, begin=0.6,
                dtype=torch.float64).state["x"]  # fmt: skip
    torch.testing.assert_close(model(state, 0.6)["x"], end)
    with pytest.raises(InputError, match="one time for all"):
        model(state, torch.full((3,), 0.6))


@pytest.mark.parametrize("kind", ["rows", "observed"])
def test_an_unknown_noise_level_is_recovered(kind: str) -> None:
    """Expectation–maximisation on linear-Gaussian data, within 5 %, from twice too much.

    A third of the numbers of "observed" are unseen: they count neither as misfit nor as data.
    """
    n, rounds = (400, 9) if kind == "rows" else (1200, 14)
    x = MEAN + (normals(n, 4) @ ROOT.mT).view(n, *SHAPE)
    sigma, m = (0.15, 4) if kind == "rows" else (0.8, 3)
    if kind == "rows":
        matrix = torch.cat((ROWS.matrix, -ROWS.matrix, torch.eye(4), 2 * torch.eye(4)))
        instrument: Measurement = MatrixMeasurement(matrix, 1.0, SHAPE)
    else:
        instrument = Observed(normals(n, *SHAPE, stream="seen") > -0.4, 1.0)
    clean = instrument.apply(x)
    y = clean + sigma * instrument.root(normals(n, *clean.shape[1:], stream="noise"))
    found = fit_noise_level(
        lambda i: Posterior(prior(), "x", y, i, iterations=m), "x", y, instrument, all_real(n, 2),
        Sampler(steps=12, method="dpmpp2m", grid="uniform-logsnr"), rounds, 4 * sigma**2,
        dtype=torch.float64,
    )  # fmt: skip
    assert math.sqrt(found.factor) == pytest.approx(sigma, rel=0.05)
    assert found.measurement.factor == found.factor and len(found.history) == rounds


def test_a_rescaled_instrument_is_the_same_with_other_noise() -> None:
    y, x = normals(4, 2, stream="y"), normals(4, *SHAPE)
    louder = Rescaled(ROWS, 9.0)
    torch.testing.assert_close(louder.covariance(y), 9 * ROWS.covariance(y))
    torch.testing.assert_close(louder.precision(louder.covariance(y)), y)
    torch.testing.assert_close(louder.root(y), 3 * ROWS.root(y))
    torch.testing.assert_close(ROWS.root(ROWS.root(y)), ROWS.covariance(y))
    a, noise = dense(linearized(louder, x), x)
    torch.testing.assert_close(a, dense(ROWS, x)[0])
    torch.testing.assert_close(noise, 9 * dense(ROWS, x)[1])
    curved = Rescaled(NonlinearMeasurement(lambda x: x.flatten(1) ** 2, 0.1), 2.0)
    torch.testing.assert_close(curved.at(x).apply(x).view_as(x), 2 * x**2)
    with pytest.raises(TypeError, match="at a point"):
        curved.adjoint(y)


def test_what_cannot_be() -> None:
    y, model = torch.ones(3, 2), prior()
    state = State({"x": normals(2, *SHAPE)}, all_real(2, 2))
    for more, message in (
        ({"method": "best"}, "dps-scaled, pigdm"), ({"weight": -1.0}, "0 \\(off\\)"),
        ({"method": "mmps", "through": "estimate"}, "dps-scaled and pigdm"),
        ({"through": "elsewhere"}, "'network' or 'estimate'"),
        ({"noise_limit": 0.0}, "noise_limit"),
        ({"diagonal": "some"}, "'rows' or 'exact'"), ({"steps": 0}, "steps"),
        ({"interval": (0.5, 0.2)}, "first <= last"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            Posterior(model, "x", y, ROWS, **more)  # type: ignore[arg-type]
    draws = Draws(0, torch.arange(3))
    for more, message in (
        ({"rate": 2.0}, "blow up"), ({"langevin": -1}, "langevin"), ({"weight": -1.0}, "weight"),
        ({"temperature": -1.0}, "temperature"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            DecoupledAnnealing(model, "x", y, ROWS, draws, **more)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="2 rows of random numbers"):
        DecoupledAnnealing(model, "x", y, ROWS, draws.rows(slice(2)))
    for name in ("pigdm", "daps"):
        with pytest.raises(InputError, match="one a sample"):
            guided(name, model, y, ROWS)(state, 0.5)
    with pytest.raises(InputError, match="from a level above 0"):
        fit_noise_level(lambda m: model, "x", y, ROWS, all_real(3, 2), rounds=0)
