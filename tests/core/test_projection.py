"""Hard constraints: what must hold holds at the end, under any sampler, row by row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.guidance.measured.measurements import MatrixMeasurement, NonlinearMeasurement, Observed
from sciflow.guidance.measured.posterior import Posterior
from sciflow.guidance.measured.projection import Affine, Projected
from sciflow.paths import CategoricalPath, GaussianPath
from sciflow.random import Draws
from sciflow.samplers import METHODS, Sampler
from sciflow.samplers.hooks import Step
from sciflow.schedules import Rectified
from sciflow.spaces import Euclidean, Tokens, ZeroCoM
from sciflow.state import Context, State, Times, field_times
from sciflow.testing.targets import GaussianMixture, NamedMixture, all_real

ROWS = MatrixMeasurement(
    torch.tensor([[1.0, -2.0, 0.5, 1.0], [0.0, 1.0, 1.0, 0.0]]).double(), 0.0, (2, 2)
)
MEANS = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [-1.0, -1.5]])
SETTINGS: list[dict[str, Any]] = [
    *({"method": m} for m in METHODS), {"method": "ab3", "extrapolate": True},
    {"method": "heun", "churn": 3.0}, {"restarts": 1},
]  # fmt: skip


def normals(n: int, *shape: int, stream: str = "x") -> Tensor:
    return Draws(2, torch.arange(n)).normal(shape, stream, dtype=torch.float64)


def points() -> GaussianMixture:
    path = GaussianPath(Euclidean(2), Rectified())
    return GaussianMixture(path, MEANS, 0.1 * torch.eye(2).expand(3, 2, 2))


def draw(model: Denoiser, n: int, dtype: torch.dtype = torch.float64, **settings: Any) -> Tensor:
    sampler = Sampler(**{"steps": 7, **settings})
    return sampler(model, all_real(n, 2), Draws(0, torch.arange(n)), dtype=dtype).state["x"]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_linear_constraint_holds_exactly_at_the_end(settings: dict[str, Any]) -> None:
    """Also where the last step is not the estimate itself, and noise is drawn."""
    y = normals(4, 2, stream="y")
    x = draw(Projected.linear(points(), "x", y, ROWS), 4, **settings)
    torch.testing.assert_close(ROWS.apply(x), y, rtol=0, atol=1e-12)
    free = draw(points(), 4, **settings)
    assert float((ROWS.apply(free) - y).abs().min()) > 1e-3


def test_in_single_precision_it_holds_to_rounding() -> None:
    y = normals(4, 2, stream="y").float()
    x = draw(Projected.linear(points(), "x", y, ROWS), 4, torch.float32)
    torch.testing.assert_close(ROWS.apply(x), y, rtol=0, atol=2e-6)


def test_the_projection_is_the_nearest_point() -> None:
    """x − Aᵀ(A Aᵀ)⁻¹(A x − y) by dense algebra; repeated rows of A do no harm."""
    x, y = normals(5, 2, 2), normals(5, 2, stream="y")
    a = ROWS.matrix
    gap = (a @ x.flatten(1)[..., None])[..., 0] - y
    exact = x.flatten(1) - (a.mT @ torch.linalg.inv(a @ a.mT) @ gap[..., None])[..., 0]
    state = State({"x": x}, all_real(5, 2))
    found = Affine("x", y, ROWS, Euclidean(2))(state)["x"]
    torch.testing.assert_close(found.flatten(1), exact, rtol=0, atol=1e-12)
    twice = MatrixMeasurement(torch.cat((a, a)), 0.0, (2, 2))
    found = Affine("x", torch.cat((y, y), 1), twice, Euclidean(2))(state)["x"]
    torch.testing.assert_close(found.flatten(1), exact, rtol=0, atol=1e-10)


def test_it_is_what_posterior_sampling_becomes_without_noise() -> None:
    y, state = normals(4, 2, stream="y"), State({"x": normals(4, 2, 2)}, all_real(4, 2))
    hard = Projected.linear(points(), "x", y, ROWS)(state, 0.4)["x"]
    soft = Posterior(points(), "x", y, MatrixMeasurement(ROWS.matrix, 1e-12, (2, 2)), "pigdm",
                     through="estimate")(state, 0.4)["x"]  # fmt: skip
    torch.testing.assert_close(soft, hard, rtol=0, atol=1e-9)


class Centred(Denoiser):
    """Centred points of a standard normal, with padding."""

    def __init__(self) -> None:
        super().__init__()
        self.paths = {"x": GaussianPath(ZeroCoM(3, "x"), Rectified())}

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        space = self.paths["x"].space
        a, s = (space.expand(c, state["x"]).to(state["x"].dtype)
                for c in self.paths["x"].schedule(field_times(t, state)["x"]))  # fmt: skip
        return Prediction({"x": a / (a**2 + s**2) * space.project(state["x"], state.context)})


def test_centred_points_stay_centred_and_padding_stays_empty() -> None:
    """MoCo moves padded rows with the centre of mass; a naive Aᵀ here would move the centre."""
    runs = []
    for width in (3, 5):
        mask = torch.arange(width) < torch.tensor([3, 2])[:, None]
        seen = torch.zeros(2, width, 3, dtype=torch.bool)
        seen[:, 0] = True
        y = torch.zeros(2, width, 3, dtype=torch.float64)
        y[:, 0] = torch.tensor([0.5, 1.0, -1.0])
        model = Projected.linear(Centred(), "x", y, Observed(seen, 0.0))
        x = Sampler(steps=6)(model, Context(mask), Draws(0, torch.arange(2)),
                             dtype=torch.float64).state["x"]  # fmt: skip
        torch.testing.assert_close(x[:, 0], y[:, 0], rtol=0, atol=1e-12)
        assert float(x.sum(1).abs().max()) < 1e-12 and not bool(x[~mask].any())
        runs.append(x[:, :3])
    torch.testing.assert_close(runs[0], runs[1], rtol=0, atol=1e-12)


def test_a_sample_does_not_depend_on_its_companions() -> None:
    y, draws, rows = normals(6, 2, stream="y"), Draws(0, torch.arange(6)), torch.tensor([4, 1])
    sampler = Sampler(steps=6)
    whole = sampler(Projected.linear(points(), "x", y, ROWS), all_real(6, 2), draws,
                    dtype=torch.float64).state["x"]  # fmt: skip
    part = sampler(Projected.linear(points(), "x", y[rows], ROWS), all_real(2, 2),
                   draws.rows(rows), dtype=torch.float64).state["x"]  # fmt: skip
    torch.testing.assert_close(part, whole[rows], rtol=0, atol=1e-12)


def test_weight_nought_is_no_constraint_bit_for_bit() -> None:
    y = normals(4, 2, stream="y")
    plain = draw(points(), 4)
    assert torch.equal(draw(Projected.linear(points(), "x", y, ROWS, weight=0.0), 4), plain)
    state = State({"x": normals(4, 2, 2)}, all_real(4, 2))
    part = Projected.linear(points(), "x", y, ROWS, weight=0.25)(state, 0.4)["x"]
    whole = Projected.linear(points(), "x", y, ROWS)(state, 0.4)["x"]
    clean = points()(state, 0.4)["x"]
    torch.testing.assert_close(part, 0.75 * clean + 0.25 * whole)
    late = Projected(points(), Affine("x", y, ROWS, Euclidean(2)), interval=(0.0, 0.3))
    assert torch.equal(late(state, 0.4)["x"], clean)


def test_a_curved_constraint_is_solved_by_newton() -> None:
    """|x| = r for each pair of points, r its own."""
    r = 1 + normals(4, 1, stream="r") ** 2
    length = NonlinearMeasurement(lambda x: x.flatten(1).norm(dim=1, keepdim=True), 0.0)
    x = draw(Projected.linear(points(), "x", r, length, rounds=6), 4)
    torch.testing.assert_close(length.apply(x), r, rtol=0, atol=1e-12)


def test_any_function_may_project_every_field() -> None:
    """A point is kept in the right half plane and a token is never of class 1, in law and draw."""
    paths = GaussianPath(Euclidean(2), Rectified()), CategoricalPath(Tokens(3), Rectified())
    model = NamedMixture(*paths, MEANS, 0.1, [1.0] * 3)

    def allowed(clean: State) -> dict[str, Tensor]:
        moved = {"x": clean["x"].clamp(min=0)}
        if clean["token"].is_floating_point():
            p = clean["token"] * torch.tensor([1.0, 0.0, 1.0], dtype=clean["token"].dtype)
            moved["token"] = p / p.sum(-1, keepdim=True)
        return moved

    def run(denoiser: Denoiser) -> State:
        return Sampler(steps=12)(denoiser, all_real(60), Draws(0, torch.arange(60)),
                                 dtype=torch.float64).state  # fmt: skip

    free, bound = run(model), run(Projected(model, allowed))
    assert bool((free["token"] == 1).any()) and not bool((bound["token"] == 1).any())
    assert bool((free["x"] < -0.5).any()) and bool((bound["x"] >= 0).all())
    assert set(bound["token"].unique().tolist()) == {0, 2}


def test_hooks_of_the_model_inside_still_run() -> None:
    class Marked(GaussianMixture):
        ends: list[float]

        def after_step(self, step: Step) -> State:
            self.ends.append(step.end)
            return step.state

    path = GaussianPath(Euclidean(2), Rectified())
    model = Marked(path, MEANS, 0.1 * torch.eye(2).expand(3, 2, 2))
    model.ends = []
    draw(Projected.linear(model, "x", normals(4, 2, stream="y"), ROWS), 4)
    assert len(model.ends) == 7 and model.ends[-1] == 0


def test_what_cannot_be() -> None:
    y, state = normals(4, 2, stream="y"), State({"x": normals(3, 2, 2)}, all_real(3, 2))
    with pytest.raises(InputError, match="4 constraints for a batch of 3"):
        Projected.linear(points(), "x", y, ROWS)(state, 0.5)
    with pytest.raises(InputError, match="share from 0 to 1"):
        Projected.linear(points(), "x", y, ROWS, weight=1.5)
    with pytest.raises(InputError, match="this model has: x"):
        Projected.linear(points(), "z", y, ROWS)
    with pytest.raises(InputError, match="moves 'z'; this model has: x"):
        Projected(points(), lambda clean: {"z": clean["x"]})(state, 0.5)
    with pytest.raises(InputError, match="first <= last"):
        Projected(points(), lambda clean: {}, interval=(0.5, 0.2))
