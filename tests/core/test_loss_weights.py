"""Loss weights: the table, what bounds they integrate to, and the learned ones' minimum."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sciflow.denoisers import Network, NetworkDenoiser
from sciflow.errors import InputError
from sciflow.objectives import DenoisingObjective
from sciflow.objectives.uncertainty import Uncertainty
from sciflow.objectives.weights import LossWeight
from sciflow.paths import CategoricalPath, GaussianPath
from sciflow.random import Draws
from sciflow.schedules import Cosine, Rectified, Schedule, SubVP, VarianceExploding, VPLinear
from sciflow.spaces import Euclidean, Tokens
from sciflow.state import Context, State
from sciflow.testing.targets import TokenTable, all_real

PREDICTIONS = ["x0", "eps", "v", "score", "velocity", "edm"]
SCHEDULES = [Rectified(), Cosine(), VPLinear(), SubVP(), VarianceExploding()]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
SD = 1.7


def gaussian(schedule: Schedule, prediction: str = "edm", sd: float = SD) -> GaussianPath:
    return GaussianPath(Euclidean(3), schedule, prediction, sd)  # type: ignore[arg-type]


def times(n: int = 60) -> Tensor:
    return torch.linspace(0.02, 0.98, n, dtype=torch.float64)


@every_schedule
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_weight_is_on_the_clean_error_whatever_is_predicted(
    schedule: Schedule, prediction: str
) -> None:
    path, t, gamma = gaussian(schedule, prediction), times(5), 3.0
    g = torch.Generator().manual_seed(0)
    x0, d, x = torch.randn(3, 5, 4, 3, generator=g, dtype=torch.float64)
    loss, error = path.loss(d, x0, x, t, all_real(5, 4)), (d - x0).square().mean((1, 2))
    a, s = schedule(t)
    snr, sigma = (a / s) ** 2, s / a
    table = {
        "x0": torch.ones(5, dtype=torch.float64),
        "snr": snr,
        "edm": (sigma**2 + SD**2) / (sigma * SD) ** 2,
        "min-snr": torch.minimum(snr, torch.tensor(gamma)),
        # Kingma & Gao: sigmoid(b − log SNR) on the error of the noise, b = log γ.
        "sigmoid": snr * torch.sigmoid(math.log(gamma) - snr.log()),
    }
    for kind, w in table.items():
        factor = LossWeight(kind, gamma).factor(path, t)  # type: ignore[arg-type]
        torch.testing.assert_close(loss * factor, w * error, rtol=1e-6, atol=1e-9)
    assert torch.equal(LossWeight().factor(path, t), torch.ones_like(t))


@every_schedule
def test_some_weights_are_the_loss_of_a_prediction_type(schedule: Schedule) -> None:
    one = torch.ones(60, dtype=torch.float64)
    for kind, prediction in (("x0", "x0"), ("edm", "edm"), ("snr", "eps")):
        found = LossWeight(kind).factor(gaussian(schedule, prediction), times())  # type: ignore[arg-type]
        torch.testing.assert_close(found, one, rtol=1e-9, atol=1e-9)


@every_schedule
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("kind", ["x0", "snr", "edm", "min-snr", "sigmoid", "elbo"])
def test_weights_are_finite_on_all_of_the_clock(
    schedule: Schedule, prediction: str, kind: str
) -> None:
    w = LossWeight(kind).factor(gaussian(schedule, prediction), torch.tensor([1e-3, 0.5, 1.0]))  # type: ignore[arg-type]
    assert w.dtype == torch.float32 and bool(w.isfinite().all()) and bool((w >= 0).all())


@every_schedule
def test_the_gaussian_bound_is_the_information_in_the_data(schedule: Schedule) -> None:
    """I-MMSE (Guo et al. 2005): −½ ∫ SNR' mmse dt = ½ log(1 + SNR) for unit Gaussian data.

    Under EDM's preconditioning F = 0 is optimal and its loss is 1 at every time.
    """
    log_t = torch.linspace(math.log(0.01), 0.0, 20_001, dtype=torch.float64)
    t = log_t.exp()
    w = LossWeight("elbo").factor(gaussian(schedule, "edm", 1.0), t)
    a, s = schedule(t[[0, -1]])
    nats = 0.5 * torch.log1p((a / s) ** 2)
    assert float(torch.trapezoid(w * t, log_t)) == pytest.approx(float(nats[0] - nats[1]), rel=1e-4)


@pytest.mark.parametrize("schedule", [Rectified(), Rectified(2.0), Cosine()], ids=str)
def test_the_bound_of_tokens_is_the_entropy_of_the_data(schedule: Schedule) -> None:
    """With the exact posterior, on an enumerable chain (Sahoo et al. 2024; Shi et al. 2024)."""
    n = 40_000
    g = torch.Generator().manual_seed(1)
    table = torch.rand(3, 3, 3, generator=g, dtype=torch.float64) ** 3
    exact = TokenTable(CategoricalPath(Tokens(3), schedule), table)
    exact.self_conditioning = False  # type: ignore[assignment]
    p = exact.table.flatten()
    draws = Draws(2, torch.arange(n))
    row = torch.searchsorted(
        p.cumsum(0), draws.uniform((), "data", dtype=torch.float64).contiguous()
    )
    x0 = torch.stack([row // 9, row // 3 % 3, row % 3], 1)
    objective = DenoisingObjective(t_min=1e-4, stratify=True, levels={"token": LossWeight("elbo")})
    loss = 3 * objective(exact, State({"token": x0}, all_real(n, 3)), draws, 0).total  # type: ignore[arg-type]
    entropy = -float((p * p.log()).sum())
    assert float(loss.mean()) == pytest.approx(entropy, abs=4 * float(loss.std()) / math.sqrt(n))
    assert float(loss.std()) / math.sqrt(n) < 0.02 * entropy


class Silent(Network):
    """F = 0."""

    def forward(self, inputs: dict[str, Tensor], levels: dict[str, Tensor], context: Context,
                previous: dict[str, Tensor] | None) -> dict[str, Tensor]:  # fmt: skip
        return {name: torch.zeros_like(x) for name, x in inputs.items()}


def test_the_learned_weight_is_the_logarithm_of_the_mean_loss() -> None:
    """F = 0 on data N(0, σ²) with EDM's scales for 1 costs E F² = (s²σ² + a²)/(s² + a²)."""
    n, sigma = 6000, 3.0
    draws = Draws(0, torch.arange(n))
    x0 = sigma * draws.normal((1, 8), "data", dtype=torch.float64)
    learned = Uncertainty(("x",), 12).double()
    objective = DenoisingObjective(stratify=True, uncertainty=learned)
    model = NetworkDenoiser(Silent(), {"x": GaussianPath(Euclidean(8), Rectified())})
    optimizer = torch.optim.LBFGS(learned.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective(model, State({"x": x0}, all_real(n)), draws, 0).total.mean()
        loss.backward()
        return loss

    before = objective(model, State({"x": x0}, all_real(n)), draws, 0)
    assert torch.equal(before.total.detach(), before.fields["x"])  # It starts at no weight.
    optimizer.step(closure)
    level = torch.linspace(-2.5, 2.5, 41, dtype=torch.float64)
    expected = torch.log((level.mul(2).exp() * sigma**2 + 1) / (level.mul(2).exp() + 1))
    found = learned("x", level).detach()
    assert float((found - expected).abs().max()) < 0.1
    assert float(expected.max() - expected.min()) > 1.8
    after = objective(model, State({"x": x0}, all_real(n)), draws, 0)
    u = learned("x", model.paths["x"].level(after.t))
    assert float(((-u).exp() * after.fields["x"]).mean().detach()) == pytest.approx(1.0, abs=1e-3)


def test_field_weights_multiply_what_levels_weigh() -> None:
    n = 64
    draws = Draws(0, torch.arange(n))
    model = NetworkDenoiser(Silent(), {"x": GaussianPath(Euclidean(2), Rectified())})
    state = State({"x": draws.normal((3, 2), "data")}, all_real(n, 3))
    plain = DenoisingObjective()(model, state, draws, 4)
    levels = {"x": LossWeight("min-snr", 2.0)}
    found = DenoisingObjective(weights={"x": 3.0}, levels=levels)(model, state, draws, 4)
    factor = levels["x"].factor(model.paths["x"], plain.t)
    torch.testing.assert_close(found.total, 3 * factor * plain.total)
    torch.testing.assert_close(found.fields["x"], factor * plain.fields["x"])


def test_settings_of_later_versions_stay_out_of_the_record_of_a_run() -> None:
    """Or no run that began before them could be resumed."""
    first = {"weights", "beta", "t_min", "drift", "groups", "drop_all", "drop_each", "feedback"}
    assert set(DenoisingObjective(beta=1.5).config()) == first
    used = DenoisingObjective(levels={"x": LossWeight("snr")}, uncertainty=Uncertainty(("x",)))
    assert used.config()["levels"] == {"x": {"kind": "snr", "gamma": 5.0}}
    assert used.config()["uncertainty"] == {"fields": ["x"], "features": 16}
    assert set(used.config()) == first | {"levels", "uncertainty"}


def test_what_is_refused() -> None:
    with pytest.raises(InputError, match="unknown loss weight 'snr5'; known: output, x0, snr"):
        LossWeight("snr5")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="gamma must be above 0"):
        LossWeight("min-snr", 0.0)
    tokens = CategoricalPath(Tokens(3), Rectified())
    with pytest.raises(InputError, match="'snr' does not apply to a CategoricalPath"):
        LossWeight("snr").factor(tokens, times())
    with pytest.raises(InputError, match="'elbo' does not apply"):
        LossWeight("elbo").factor(CategoricalPath(Tokens(3), Rectified(), "uniform"), times())
    with pytest.raises(InputError, match="even number"):
        Uncertainty(("x",), 3)
    model = NetworkDenoiser(Silent(), {"x": GaussianPath(Euclidean(2), Rectified())})
    state, draws = State({"x": torch.zeros(2, 1, 2)}, all_real(2)), Draws(0, [0, 1])
    for objective in (DenoisingObjective(levels={"y": LossWeight()}),
                      DenoisingObjective(uncertainty=Uncertainty(("y",)))):  # fmt: skip
        with pytest.raises(InputError, match="there is no field 'y'; fields: x"):
            objective(model, state, draws, 0)
