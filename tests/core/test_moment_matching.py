"""Posterior denoising from measurements: exact on Gaussians, under any sampler, row by row."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.guidance.measured.measurements import MatrixMeasurement, Measurement, Observed, dense
from sciflow.guidance.measured.moment_matching import MomentMatching, conjugate_gradients
from sciflow.likelihood import FlowLikelihood
from sciflow.paths import CategoricalPath, GaussianPath
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.schedules import Cosine, Rectified, Schedule, VarianceExploding, VPLinear
from sciflow.spaces import Euclidean, Tokens, ZeroCoM
from sciflow.state import Context, State, Times, field_times
from sciflow.testing.targets import GaussianMixture, NamedMixture, all_real
from sciflow.training.gaussian_fit import GaussianDenoiser

SHAPE = (2, 2)
MEAN = torch.tensor([[1.0, -0.5], [0.2, 0.7]], dtype=torch.float64)
ROOT = torch.tensor(
    [[1.0, 0, 0, 0], [0.6, 0.5, 0, 0], [-0.3, 0.4, 0.7, 0], [0.2, -0.6, 0.1, 0.4]],
    dtype=torch.float64,
)
COVARIANCE = ROOT @ ROOT.T


def normals(n: int, *shape: int, stream: str = "x") -> Tensor:
    return Draws(2, torch.arange(n)).normal(shape, stream, dtype=torch.float64)


def prior(schedule: Schedule | None = None) -> GaussianDenoiser:
    path = GaussianPath(Euclidean(2), schedule or Rectified())
    return GaussianDenoiser(path, MEAN, COVARIANCE)


def instruments(n: int) -> dict[str, Measurement]:
    """One row, three rows each sample's own with correlated noise, half of the numbers."""
    a, noise = normals(n, 3, 4, stream="matrix"), normals(n, 3, 3, stream="noise")
    seen = normals(n, *SHAPE, stream="seen") > 0
    return {
        "row": MatrixMeasurement(torch.tensor([[1.0, -2.0, 0.5, 1.0]]).double(), 0.05, SHAPE),
        "own": MatrixMeasurement(a, noise @ noise.mT + 0.01 * torch.eye(3), SHAPE),
        "diagonal": MatrixMeasurement(a[0], torch.tensor([0.1, 0.2, 1e-3]), SHAPE),
        "observed": Observed(seen, 0.02),
        "uneven": Observed(seen, 0.01 + normals(n, *SHAPE, stream="variance") ** 2),
    }


every = pytest.mark.parametrize("kind", instruments(1))


def posterior(
    a: Tensor, noise: Tensor, y: Tensor, m: Tensor = MEAN, c: Tensor = COVARIANCE
) -> tuple[Tensor, Tensor]:
    """Mean ``[B, n]`` and covariance ``[B, n, n]`` of N(m, c) given y = A x + η, by Kalman's gain.

    With the information of the noisy x_t as further measurements, that of x_0 given x_t too.
    """
    gain = c @ a.mT @ torch.linalg.inv(a @ c @ a.mT + noise)
    mean = m.flatten() + (gain @ (y - a @ m.flatten())[..., None])[..., 0]
    return mean, c - gain @ a @ c


def with_noisy(a: Tensor, noise: Tensor, y: Tensor, x: Tensor, signal: float,
               s: float) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """y and x_t = a x_0 + s ε as one measurement."""
    n = x[0].numel()
    eye = torch.eye(n, dtype=torch.float64).expand(len(x), n, n)
    both = torch.zeros(len(x), a.shape[1] + n, a.shape[1] + n, dtype=torch.float64)
    both[:, : a.shape[1], : a.shape[1]] = noise
    both[:, a.shape[1] :, a.shape[1] :] = s**2 * eye
    return torch.cat((a, signal * eye), 1), both, torch.cat((y.flatten(1), x.flatten(1)), 1)


@every
def test_adjoints_and_matrices_agree(kind: str) -> None:
    """⟨A x, y⟩ = ⟨x, Aᵀ y⟩, and the matrices of an instrument are those of its rows."""
    instrument, x = instruments(4)[kind], normals(4, *SHAPE)
    assert isinstance(instrument, Measurement)
    ax = instrument.apply(x)
    y = normals(4, *ax.shape[1:], stream="y")
    torch.testing.assert_close((ax * y).flatten(1).sum(1),
                               (x * instrument.adjoint(y)).flatten(1).sum(1))  # fmt: skip
    a, noise = dense(instrument, x)
    torch.testing.assert_close((a @ x.flatten(1)[..., None])[..., 0], ax.flatten(1))
    torch.testing.assert_close((noise @ y.flatten(1)[..., None])[..., 0],
                               instrument.covariance(y).flatten(1))  # fmt: skip
    torch.testing.assert_close(noise, noise.mT)
    rows = torch.tensor([2, 0])
    torch.testing.assert_close(instrument.rows(rows).apply(x[rows]), ax[rows])
    torch.testing.assert_close(instrument.rows(rows).covariance(y[rows]),
                               instrument.covariance(y)[rows])  # fmt: skip


@every
@pytest.mark.parametrize("schedule", [Rectified(), Cosine(), VPLinear(), VarianceExploding()],
                         ids=str)  # fmt: skip
def test_the_estimate_is_the_exact_posterior_mean_on_a_gaussian(
    kind: str, schedule: Schedule
) -> None:
    """E[x_0 | x_t, y] by linear algebra on (y, x_t) together; to 1e-8."""
    instrument, x = instruments(6)[kind], normals(6, *SHAPE)
    a, sigma = dense(instrument, x)
    y = instrument.apply(MEAN + normals(6, *SHAPE, stream="truth"))
    for noise in (0.05, 0.7, 4.5):
        target = torch.tensor(noise, dtype=torch.float64)
        t = float(schedule.invert(lambda a, s: s / a, target))
        signal, s = (float(c) for c in schedule(torch.tensor(t, dtype=torch.float64)))
        x_t = signal * MEAN + (signal + s) * x
        model = MomentMatching(prior(schedule), "x", y, instrument, iterations=12)
        found = model(State({"x": x_t}, all_real(6, 2)), t)["x"].detach().flatten(1)
        exact, _ = posterior(*with_noisy(a, sigma, y, x_t, signal, s))
        torch.testing.assert_close(found, exact, rtol=1e-8, atol=1e-8)


def test_few_iterations_come_near() -> None:
    """Conjugate gradients: the error falls, and one iteration already helps."""
    instrument = instruments(50)["own"]
    x = MEAN + normals(50, *SHAPE)
    y = instrument.apply(MEAN + normals(50, *SHAPE, stream="truth"))
    a, noise = dense(instrument, x)
    exact, _ = posterior(*with_noisy(a, noise, y, x, 0.5, 0.5))
    errors = []
    for k in (1, 2, 3):
        model = MomentMatching(prior(), "x", y, instrument, iterations=k)
        found = model(State({"x": x}, all_real(50, 2)), 0.5)["x"].detach().flatten(1)
        errors.append(float((found - exact).norm()))
    plain = prior()(State({"x": x}, all_real(50, 2)), 0.5)["x"].flatten(1)
    assert errors[2] < 1e-8 and errors[2] < errors[1] < errors[0] < float((plain - exact).norm())


@pytest.mark.parametrize("settings", [
    {"method": "ab3", "steps": 60}, {"method": "ddpm", "steps": 300, "grid": "uniform-logsnr"},
], ids=str)  # fmt: skip
def test_samples_have_the_posterior_s_mean_and_covariance(settings: dict[str, Any]) -> None:
    """One y, many samples: within four standard errors of Kalman's answer."""
    n = 4000
    one = MatrixMeasurement(torch.tensor([[1.0, -2.0, 0.5, 1.0], [0.0, 1.0, 1.0, 0.0]]).double(),
                            torch.tensor([0.05, 0.3]), SHAPE)  # fmt: skip
    y = torch.tensor([[5.5, -2.0]], dtype=torch.float64)
    a, noise = dense(one, MEAN[None])
    mean, covariance = posterior(a, noise, y)
    model = MomentMatching(prior(), "x", y.expand(n, 2), one, iterations=2)
    report = Sampler(**settings)(model, all_real(n, 2), Draws(0, torch.arange(n)),
                                 dtype=torch.float64)  # fmt: skip
    x = report.state["x"].flatten(1)
    sd = covariance[0].diagonal().sqrt()
    assert float(((x.mean(0) - mean[0]) / sd).abs().max()) < 4 / n**0.5 + 0.005
    # Var of an entry of the sample covariance is (c_ii c_jj + c_ij²)/n.
    spread = ((sd[:, None] * sd) ** 2 + covariance[0] ** 2).sqrt() / n**0.5
    assert float(((x.T.cov() - covariance[0]) / spread).abs().max()) < 4.5
    assert float((mean[0] - MEAN.flatten()).abs().max()) > 0.5


def test_nothing_measured_is_no_guidance_bit_for_bit() -> None:
    """An instrument that sees nothing, at the very sampler's bits."""
    nothing = Observed(torch.zeros(5, *SHAPE, dtype=torch.bool), 0.1)
    model = MomentMatching(prior(), "x", torch.zeros(5, *SHAPE), nothing)
    sampler, draws = Sampler(steps=8), Draws(0, torch.arange(5))
    for dtype in (torch.float32, torch.float64):
        runs = [sampler(m, all_real(5, 2), draws, dtype=dtype, begin=0.9,
                        start={"x": normals(5, *SHAPE).to(dtype)}).state["x"]
                for m in (prior(), model)]  # fmt: skip
        assert torch.equal(runs[0], runs[1]) and runs[0].dtype == dtype


@every
def test_a_sample_does_not_depend_on_its_companions(kind: str) -> None:
    """Conjugate gradients with one step length for the batch would mix them."""
    instrument = instruments(6)[kind]
    y = 3 * instrument.apply(normals(6, *SHAPE, stream="truth"))
    sampler, draws, rows = Sampler(steps=6), Draws(0, torch.arange(6)), torch.tensor([4, 1])
    whole = sampler(MomentMatching(prior(), "x", y, instrument, 2), all_real(6, 2), draws,
                    dtype=torch.float64).state["x"]  # fmt: skip
    part = sampler(MomentMatching(prior(), "x", y[rows], instrument.rows(rows), 2),
                   all_real(2, 2), draws.rows(rows), dtype=torch.float64).state["x"]  # fmt: skip
    torch.testing.assert_close(part, whole[rows], rtol=0, atol=1e-11)


class Centred(Denoiser):
    """Centred points of a standard normal, with padding."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.path = GaussianPath(ZeroCoM(3, "x"), Rectified())
        self.paths, self.scale = {"x": self.path}, scale

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        x = state["x"]
        a, s = (self.path.space.expand(c, x).to(x.dtype)
                for c in self.path.schedule(field_times(t, state)["x"]))  # fmt: skip
        v = self.scale**2
        gain = a * v / (a**2 * v + s**2)
        return Prediction({"x": gain * self.path.space.project(x, state.context)})


def test_centred_points_stay_centred_and_ignore_padding() -> None:
    """The posterior of one point's place: the others make room, and padding stays empty."""
    mask = torch.arange(4) < torch.tensor([3, 2])[:, None]
    seen = torch.zeros(2, 4, 3, dtype=torch.bool)
    seen[:, 0] = True
    y = torch.zeros(2, 4, 3, dtype=torch.float64)
    y[:, 0] = torch.tensor([0.5, 1.0, -1.0])
    context, x = Context(mask), normals(2, 4, 3) * mask[..., None]
    x = ZeroCoM(3).project(x, context)
    found = MomentMatching(Centred(0.8), "x", y, Observed(seen, 0.1), 5)(
        State({"x": x}, context), 0.4
    )["x"].detach()  # fmt: skip
    v = 0.4**2 * 0.64 / (0.6**2 * 0.64 + 0.4**2)
    for b, n in enumerate((3, 2)):
        # V = v (1 − 1/n 11ᵀ): the first point's variance is v (1 − 1/n).
        clean = Centred(0.8)(State({"x": x}, context), 0.4)["x"][b, :n]
        pull = (y[b, 0] - clean[0]) * v / (0.1 + v * (1 - 1 / n))
        row = torch.full((n,), -1 / n, dtype=torch.float64)
        row[0] += 1
        torch.testing.assert_close(found[b, :n], clean + row[:, None] * pull, rtol=1e-9, atol=1e-9)
        assert not bool(found[b, n:].any())


def test_given_elements_stay_and_inform() -> None:
    """The first point is given: it has no spread, so y moves only the second."""

    class Pair(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.path = GaussianPath(Euclidean(), Rectified())
            self.paths = {"x": self.path}

        def forward(
            self, state: State, t: Times | float, previous: Prediction | None = None
        ) -> Prediction:
            x = state["x"]
            c = torch.tensor([[1.0, 0.8], [0.8, 1.5]], dtype=torch.float64)
            a, s = self.path.schedule(field_times(t, state)["x"])
            a, s = (v if v.ndim == 2 else v[:, None].expand(x.shape) for v in (a, s))
            noisy = a[:, :, None] * c * a[:, None] + torch.diag_embed(s**2)
            gain = torch.linalg.solve(noisy, a[:, :, None] * c).mT
            return Prediction({"x": (gain @ x[..., None])[..., 0]})

    x = normals(3, 2)
    context = all_real(3, 2).replace(given={"x": torch.tensor([[True, False]]).expand(3, 2)})
    total = MatrixMeasurement(torch.ones(1, 2, dtype=torch.float64), 0.2, (2,))
    y = torch.ones(3, 1, dtype=torch.float64)
    found = MomentMatching(Pair(), "x", y, total, 2)(State({"x": x}, context), 0.5)["x"].detach()
    torch.testing.assert_close(found[:, 0], x[:, 0])
    # Given x_1: x_2 ~ N(.8 x_1, .86), its noisy value, and y − x_1 = x_2 + η.
    precision = 1 / 0.86 + 0.25 / 0.25 + 1 / 0.2
    mean = (0.8 * x[:, 0] / 0.86 + 0.5 * x[:, 1] / 0.25 + (1 - x[:, 0]) / 0.2) / precision
    torch.testing.assert_close(found[:, 1], mean, rtol=1e-9, atol=1e-9)


def test_other_fields_are_left_alone() -> None:
    means = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [-1.0, -1.5]])
    paths = GaussianPath(Euclidean(2), Rectified()), CategoricalPath(Tokens(3), Rectified())
    target = NamedMixture(*paths, means, 0.1, [1.0] * 3)
    noisy = State({"x": normals(4, 1, 2), "token": torch.tensor([[3], [0], [1], [3]])}, all_real(4))
    y = torch.tensor([[1.0]] * 4, dtype=torch.float64)
    row = MatrixMeasurement(torch.tensor([[1.0, 0.0]], dtype=torch.float64), 0.01, (1, 2))
    plain = target(noisy, 0.5)
    for t in (0.5, {"x": torch.tensor(0.5), "token": torch.tensor(0.5)}, torch.full((4,), 0.5)):
        guided = MomentMatching(target, "x", y, row)(noisy, t).detach()
        torch.testing.assert_close(guided["token"], plain["token"])
        assert float((guided["x"] - plain["x"]).abs().max()) > 0.01
    with pytest.raises(InputError, match="this model has: x"):
        MomentMatching(target, "token", y, row)


def test_the_posterior_has_a_density() -> None:
    """A guided model is a model: its own likelihood, through the products, is the posterior's."""
    one = MatrixMeasurement(torch.tensor([[1.0, -2.0, 0.5, 1.0]]).double(), 0.5, SHAPE)
    y, x = torch.tensor([[2.5]] * 3, dtype=torch.float64), MEAN + normals(3, *SHAPE)
    mean, covariance = posterior(*dense(one, x), y)
    exact = torch.distributions.MultivariateNormal(mean, covariance).log_prob(x.flatten(1))
    model = MomentMatching(prior(), "x", y, one, iterations=1, noise_limit=3e3)
    found = FlowLikelihood(begin=0.0, steps=14)(model, State({"x": x}, all_real(3, 2)))
    torch.testing.assert_close(found.log_density, exact, rtol=0, atol=1e-4)


def test_a_mixture_is_drawn_to_what_was_measured() -> None:
    """Not exact there, but the right component wins and y is fitted within its noise."""
    path = GaussianPath(Euclidean(2), Rectified())
    target = GaussianMixture(path, torch.tensor([[2.0, 0.0], [-2.0, 0.0]]),
                             0.05 * torch.eye(2).expand(2, 2, 2))  # fmt: skip
    row = MatrixMeasurement(torch.tensor([[1.0, 0.0]], dtype=torch.float64), 0.01, (1, 2))
    y = torch.full((200, 1), -2.2, dtype=torch.float64)
    model = MomentMatching(target, "x", y, row, 1)
    x = Sampler(steps=40)(model, all_real(200), Draws(0, torch.arange(200))).state["x"][:, 0]
    # Kalman on the left component: mean −2 − .2·.05/.06, variance .05·.01/.06 along the row.
    assert float(x[:, 0].mean()) == pytest.approx(-2 - 0.2 / 1.2, abs=0.03)
    assert float(x[:, 0].std()) == pytest.approx(math.sqrt(0.05 / 6), rel=0.25)
    assert float(x[:, 1].std()) == pytest.approx(math.sqrt(0.05), rel=0.25)


def test_a_network_s_negative_spread_cannot_pull_without_bound() -> None:
    """V = −0.999 Σ in one direction: solving would pull a thousand times; the sample stops."""

    class Wrong(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.paths = {"x": GaussianPath(Euclidean(2), Rectified())}

        def forward(
            self, state: State, t: Times | float, previous: Prediction | None = None
        ) -> Prediction:
            # (s²/a) J at t = 1/2 is half of this slope.
            slope = torch.tensor([[-2 * 0.0999, 1.0], [1.0, 0.8]], dtype=torch.float64)
            return Prediction({"x": state["x"] @ slope})

    row = MatrixMeasurement(torch.tensor([[1.0, 0.0]], dtype=torch.float64), 0.1, (1, 2))
    noisy, y = State({"x": normals(3, 1, 2)}, all_real(3)), torch.ones(3, 1).double()
    plain = Wrong()(noisy, 0.5)["x"]
    found = MomentMatching(Wrong(), "x", y, row)(noisy, 0.5)["x"].detach()
    assert torch.equal(found, plain)


def test_far_in_the_noise_the_spread_is_that_of_the_limit() -> None:
    """At t = 1 the derivative is 0/0; D itself stays, and V is within (1/limit)² of the data's."""
    one = MatrixMeasurement(torch.tensor([[1.0, -2.0, 0.5, 1.0]]).double(), 0.5, SHAPE)
    y, x = torch.tensor([[2.5]] * 3, dtype=torch.float64), normals(3, *SHAPE)
    mean, _ = posterior(*dense(one, x), y)
    errors = []
    for limit in (5.0, 20.0):
        model = MomentMatching(prior(), "x", y, one, 1, limit)
        for t in (1.0, torch.ones(3), {"x": torch.ones(3)}):
            found = model(State({"x": x}, all_real(3, 2)), t)["x"].detach().flatten(1)
            errors.append(float((found - mean).abs().max()))
    assert errors[0] == pytest.approx(errors[1]) == pytest.approx(errors[2])
    assert errors[3] < errors[0] / 8 and errors[0] < 0.05


def test_conjugate_gradients_stop_each_sample_on_its_own() -> None:
    """Solved at once, solved in two, and indefinite: nobody is disturbed, nothing is NaN."""
    a = torch.stack((torch.eye(2), torch.tensor([[2.0, 1.0], [1.0, 3.0]]), -torch.eye(2))).double()
    b = torch.tensor([[1.0, 2.0], [1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)
    v = conjugate_gradients(lambda x: (a @ x[..., None])[..., 0], b, 20)
    torch.testing.assert_close(v[:2], torch.linalg.solve(a[:2], b[:2]))
    assert not bool(v[2].any())
    zero = conjugate_gradients(lambda x: (a @ x[..., None])[..., 0], 0 * b, 20)
    assert not bool(zero.any())


def test_what_cannot_be() -> None:
    row = MatrixMeasurement(torch.ones(1, 4), 0.1, SHAPE)
    y = torch.ones(3, 1)
    with pytest.raises(InputError, match="iterations"):
        MomentMatching(prior(), "x", y, row, 0)
    with pytest.raises(InputError, match="finite"):
        MomentMatching(prior(), "x", torch.full((3, 1), math.nan), row)
    with pytest.raises(InputError, match="one a sample"):
        MomentMatching(prior(), "x", y, row)(State({"x": normals(2, *SHAPE)}, all_real(2, 2)), 0.5)
    with pytest.raises(InputError, match=r"\[m, 4\]"):
        MatrixMeasurement(torch.ones(1, 3), 0.1, SHAPE)
    padded = Context(torch.tensor([[True, False]]))
    with pytest.raises(InputError, match="padding"):
        prior()(State({"x": normals(1, *SHAPE)}, padded), 0.5)
