"""The training objective: its times, what it drops, and that it is minimised by the truth."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sciflow.denoisers import Network, NetworkDenoiser
from sciflow.objectives import DenoisingObjective
from sciflow.paths import CategoricalPath, GaussianPath
from sciflow.random import Draws
from sciflow.schedules import Rectified
from sciflow.spaces import Euclidean, Tokens
from sciflow.state import Context, State

CPU = torch.device("cpu")
N = 20_000


class Linear(Network):
    """F_x = weight·x̂ (+ token logits of zero), which can be optimal for Gaussian data."""

    def __init__(self, weight: float = 0.0) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))
        self.calls: list[bool] = []

    def forward(
        self,
        inputs: dict[str, Tensor],
        levels: dict[str, Tensor],
        context: Context,
        previous: dict[str, Tensor] | None,
    ) -> dict[str, Tensor]:
        self.calls.append(previous is not None)
        token = self.weight * 0 + torch.zeros(*inputs["token"].shape, 3)
        return {"x": self.weight * inputs["x"], "token": token}


def denoiser(weight: float = 0.0, **settings: object) -> NetworkDenoiser:
    paths = {"x": GaussianPath(Euclidean(2), Rectified()),
             "token": CategoricalPath(Tokens(3), Rectified())}  # fmt: skip
    return NetworkDenoiser(Linear(weight), paths, **settings)  # type: ignore[arg-type]


def batch(n: int = 512, elements: int = 3) -> tuple[State, Draws]:
    draws = Draws(5, torch.arange(n))
    x = draws.normal((elements, 2), "data")
    token = (3 * draws.uniform((elements,), "token")).long().clamp(max=2)
    mask = torch.arange(elements) < 1 + torch.arange(n)[:, None] % elements
    return State({"x": x * mask[..., None], "token": token * mask}, Context(mask)), draws


@pytest.mark.parametrize("beta", [1.0, 1.5, 3.0])
def test_times_are_beta_distributed(beta: float) -> None:
    t = DenoisingObjective(beta=beta, t_min=0.0).times(["x"], Draws(0, torch.arange(N)), 7, CPU)[
        "x"
    ]
    u = (1 - (1 - t) ** beta).sort().values
    # Kolmogorov: √n sup|F_n − F| < 1.95 with probability 0.999.
    assert float((u - torch.arange(N) / N).abs().max()) < 1.95 / math.sqrt(N)
    shortest = DenoisingObjective(beta=beta).times(["x"], Draws(0, torch.arange(N)), 7, CPU)["x"]
    assert float(shortest.min()) >= 1e-3 and float(shortest.max()) <= 1.0


def test_groups_drift_together_and_the_others_keep_the_clock() -> None:
    objective = DenoisingObjective(drift=0.5, groups=(("a", "b"),))
    t = objective.times(["x", "a", "b"], Draws(0, torch.arange(N)), 0, CPU)
    assert torch.equal(t["x"], t[""]) and torch.equal(t["a"], t["b"])
    inner = (t["a"] > 1e-3) & (t["a"] < 1) & (t[""] > 1e-3)
    z = (t["a"][inner].log() / t[""][inner].log()).log() / 0.5
    assert abs(float(z.mean())) < 0.05 and float(z.std()) == pytest.approx(1.0, abs=0.05)
    none = DenoisingObjective(groups=(("a",),)).times(["x", "a"], Draws(0, torch.arange(9)), 0, CPU)
    torch.testing.assert_close(none["a"], none["x"])


def test_conditions_are_dropped_as_often_as_asked() -> None:
    context = Context(torch.ones(N, 1, dtype=torch.bool),
                      {"gap": torch.zeros(N), "dipole": torch.zeros(N, 2)})  # fmt: skip
    objective = DenoisingObjective(drop_all=0.2, drop_each=0.5)
    out = objective.drop_conditions(context, Draws(0, torch.arange(N)), 3).conditions
    gap, dipole = out["gap"].isnan(), out["dipole"].isnan()
    assert torch.equal(dipole[:, 0], dipole[:, 1])
    both = gap & dipole[:, 0]
    for rate, wanted in ((gap, 0.6), (dipole[:, 0], 0.6), (both, 0.2 + 0.8 * 0.25)):
        assert float(rate.double().mean()) == pytest.approx(wanted, abs=4 * 0.5 / math.sqrt(N))
    bare = Context(torch.ones(2, 1, dtype=torch.bool))
    assert objective.drop_conditions(bare, Draws(0, [0, 1]), 0) is bare


def test_unknown_values_stay_unknown() -> None:
    context = Context(torch.ones(2, 1, dtype=torch.bool), {"gap": torch.tensor([1.0, math.nan])})
    kept = DenoisingObjective(drop_all=0, drop_each=0).drop_conditions(context, Draws(0, [0, 1]), 0)
    assert kept.conditions["gap"].isnan().tolist() == [False, True]


def test_a_step_is_a_function_of_seed_sample_and_step() -> None:
    state, draws = batch()
    objective, model = DenoisingObjective(beta=1.5, drift=0.3, groups=(("token",),)), denoiser(0.2)
    a, b = objective(model, state, draws, 11), objective(model, state, draws, 11)
    assert torch.equal(a.total, b.total)
    rows = torch.tensor([300, 7, 42])
    part = objective(model, state.index(rows), draws.rows(rows), 11)
    torch.testing.assert_close(part.total, a.total[rows])
    assert not torch.equal(objective(model, state, draws, 12).total, a.total)
    torch.testing.assert_close(part.t, a.t[rows])


def test_padding_costs_nothing() -> None:
    state, draws = batch()
    objective, model = DenoisingObjective(), denoiser(0.2)
    longer = State(
        {"x": torch.nn.functional.pad(state["x"], (0, 0, 0, 5)),
         "token": torch.nn.functional.pad(state["token"], (0, 5))},
        Context(torch.nn.functional.pad(state.context.mask, (0, 5))),
    )  # fmt: skip
    a, b = objective(model, state, draws, 0), objective(model, longer, draws, 0)
    torch.testing.assert_close(a.total, b.total)


def test_weights_sum_the_fields() -> None:
    state, draws = batch()
    losses = DenoisingObjective(weights={"x": 3.0})(denoiser(), state, draws, 0)
    torch.testing.assert_close(losses.total, 3 * losses.fields["x"] + losses.fields["token"])
    assert set(losses.fields) == {"x", "token"} and losses.total.shape == losses.t.shape == (512,)


def test_the_optimum_is_the_exact_denoiser() -> None:
    """For x_0 ~ N(0, 1) D = a x/(a² + s²), which is F = 0 in EDM's preconditioning."""
    state, draws = batch(4000, 1)
    objective = DenoisingObjective()
    loss = {w: float(objective(denoiser(w), state, draws, 0).fields["x"].mean().detach())
            for w in (-0.05, 0.0, 0.05)}  # fmt: skip
    assert loss[0.0] < min(loss[-0.05], loss[0.05])
    assert loss[0.0] == pytest.approx(1.0, abs=0.05)  # Var F: the error of the best estimate.


def test_uninformed_tokens_cost_their_entropy() -> None:
    """−E log p over masked tokens, which are a share E[t] = 1/2 of all."""
    state, draws = batch(4000)
    loss = DenoisingObjective()(denoiser(), state, draws, 0).fields["token"]
    assert float(loss.detach().mean()) == pytest.approx(math.log(3) / 2, rel=0.05)


def test_feedback_is_one_coin_a_step() -> None:
    state, draws = batch(4)
    model = denoiser(self_conditioning=True)
    calls = model.network.calls  # type: ignore[union-attr]
    objective = DenoisingObjective(feedback=0.5)
    second = []
    for step in range(100):
        calls.clear()
        losses = objective(model, state, draws, step)
        assert calls in ([False], [False, True])
        second.append(len(calls) == 2)
        assert losses.total.requires_grad
    assert sum(second) == pytest.approx(50, abs=4 * 100**0.5 / 2)
    model = denoiser(self_conditioning=True)
    for step in range(20):
        DenoisingObjective(feedback=0.0)(model, state, draws, step)
    assert model.network.calls == [False] * 20  # type: ignore[union-attr]
