"""What moves the state after a step does so wherever it stands in a chain of guidance."""

from __future__ import annotations

import pytest
import torch

from sciflow.errors import InputError
from sciflow.guidance import TrainingFree
from sciflow.guidance.measured.measurements import MatrixMeasurement
from sciflow.guidance.measured.projection import Projected
from sciflow.guidance.particles.twisting import transition_ratio
from sciflow.paths import GaussianPath
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.samplers.hooks import Step, after_inner, hook_of
from sciflow.schedules import Rectified
from sciflow.spaces import Euclidean
from sciflow.state import State
from sciflow.testing.targets import GaussianMixture, all_real

MEANS = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [-1.0, -1.5]])
ROW = MatrixMeasurement(torch.tensor([[1.0, -2.0, 0.5, 1.0]]).double(), 0.0, (2, 2))


def points() -> GaussianMixture:
    path = GaussianPath(Euclidean(2), Rectified())
    return GaussianMixture(path, MEANS, 0.1 * torch.eye(2).expand(3, 2, 2))


def near_one(clean: State) -> torch.Tensor:
    return -0.5 * (clean["x"] - 1).square().flatten(1).sum(1)


def test_a_hook_is_called_through_the_guidance_around_it() -> None:
    y = torch.linspace(-1, 1, 4, dtype=torch.float64)[:, None]
    projected = Projected.linear(points(), "x", y, ROW)
    guided = TrainingFree(projected, near_one, mu=0.5)
    assert hook_of(guided) == projected.after_step and hook_of(points()) is None
    x = Sampler(steps=6)(guided, all_real(4, 2), Draws(0, torch.arange(4)), dtype=torch.float64)
    torch.testing.assert_close(ROW.apply(x.state["x"]), y, rtol=0, atol=1e-12)
    free = Sampler(steps=6)(TrainingFree(points(), near_one, mu=0.5), all_real(4, 2),
                            Draws(0, torch.arange(4)), dtype=torch.float64)  # fmt: skip
    assert float((ROW.apply(free.state["x"]) - y).abs().min()) > 1e-3


def test_a_guide_outside_acts_on_what_the_hook_left() -> None:
    y = torch.zeros(2, 1, dtype=torch.float64)
    guided = TrainingFree(Projected.linear(points(), "x", y, ROW), near_one, mu=0.5)
    context = all_real(2, 2)
    state = State({"x": torch.ones(2, 2, 2, dtype=torch.float64)}, context)
    step = Step(5, 0.1, 0.0, state, guided(state, torch.tensor(0.1)), state)
    torch.testing.assert_close(
        ROW.apply(after_inner(guided, step).state["x"]), y, rtol=0, atol=1e-12
    )


def test_twisting_refuses_a_hook_behind_a_guide() -> None:
    y = torch.zeros(2, 1, dtype=torch.float64)
    guided = TrainingFree(Projected.linear(points(), "x", y, ROW), near_one, mu=0.5)
    with pytest.raises(InputError, match="moves the state after a step"):
        transition_ratio(Sampler(steps=4, method="ddpm"), guided)
