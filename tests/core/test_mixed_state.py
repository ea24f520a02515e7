"""Coordinates and tokens in one loop, against a joint denoiser that is exact."""

from __future__ import annotations

import math

import pytest
import torch

from sciflow.paths import CategoricalPath, GaussianPath
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.schedules import Cosine, Rectified, Schedule
from sciflow.spaces import Euclidean, Tokens
from sciflow.state import State, field_times
from sciflow.testing.targets import NamedMixture, all_real


def toy(kind: str = "absorbing", schedule: Schedule | None = None) -> NamedMixture:
    """Five Gaussians on a ring (sd 0.25); a token names its component with probability 0.85."""
    angle = torch.arange(5) * 2 * math.pi / 5
    schedule = schedule or Rectified()
    return NamedMixture(
        GaussianPath(Euclidean(2), schedule),
        CategoricalPath(Tokens(5), schedule, kind),  # type: ignore[arg-type]
        2 * torch.stack((angle.cos(), angle.sin()), -1),
        0.25**2,
        [0.1, 0.3, 0.2, 0.25, 0.15],
    )


def distance(target: NamedMixture, n: int = 4000, **settings: object) -> float:
    """Total variation of the joint law of (component, token), over n samples."""
    sampler = Sampler(greedy=False, **settings)  # type: ignore[arg-type]
    state = sampler(target, all_real(n), Draws(0, torch.arange(n))).state
    pair = target.component(state["x"][:, 0]) * 5 + state["token"][:, 0]
    found = torch.bincount(pair, minlength=25).view(5, 5) / n
    return float((found - target.joint()).abs().sum() / 2)


@pytest.mark.parametrize("method", ["ab1", "ab2"])
def test_joint_law_converges(method: str) -> None:
    tv = {steps: distance(toy(), 20_000, steps=steps, method=method) for steps in (4, 20)}
    assert tv[20] < 0.03
    assert tv[20] < 0.5 * tv[4]


@pytest.mark.parametrize(
    "settings",
    [{"method": "ddpm", "steps": 60}, {"method": "heun", "steps": 41},
     {"method": "ab3", "steps": 20}, {"method": "ab2", "steps": 20, "token_eta": 0.3}],
    ids=str,
)  # fmt: skip
def test_every_method_finds_it(settings: dict[str, object]) -> None:
    assert distance(toy(), **settings) < 0.045


@pytest.mark.parametrize("kind", ["uniform", "absorbing"])
def test_other_corruptions_and_schedules_find_it(kind: str) -> None:
    assert distance(toy(kind, Cosine()), steps=30) < 0.045


def test_a_given_token_conditions_the_point() -> None:
    """Fields at different times, one of them 0: sampling becomes conditioning, by Bayes' rule."""
    target, n = toy(), 5000
    token = torch.full((n, 1), 3)
    context = all_real(n).replace(given={"token": torch.ones(n, 1, dtype=torch.bool)})
    report = Sampler(steps=20)(target, context, Draws(0, torch.arange(n)), given={"token": token})
    assert torch.equal(report.state["token"], token)
    found = torch.bincount(target.component(report.state["x"][:, 0]), minlength=5) / n
    expected = target.joint()[:, 3] / target.joint()[:, 3].sum()
    assert float((found - expected).abs().sum() / 2) < 0.02


def test_each_field_reads_its_own_time() -> None:
    target = toy()
    state = State({"x": torch.ones(2, 1, 2), "token": torch.tensor([[5], [5]])}, all_real(2))
    times = {"x": torch.tensor([0.2, 0.9]), "token": torch.tensor(1.0)}
    joint = target(state, times)
    alone = target(state.index(slice(1, 2)), {"x": torch.tensor(0.9), "token": torch.tensor(1.0)})
    torch.testing.assert_close(joint["x"][1:], alone["x"])
    assert float(field_times(times, state)["x"][0]) == pytest.approx(0.2)
