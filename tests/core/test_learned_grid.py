"""Learned grids: the known optimum of a Gaussian, gains on noise not learned from, told times."""

from __future__ import annotations

import json
import math

import pytest
import torch

from sciflow.denoisers import Prediction
from sciflow.errors import InputError
from sciflow.paths import CategoricalPath, GaussianPath
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.samplers.learned_grid import DecoupledTimes, learn_grid
from sciflow.schedules import Cosine, Rectified, Schedule, VPLinear
from sciflow.spaces import Euclidean, Tokens
from sciflow.state import Context, State, Times
from sciflow.testing.targets import DiagonalGaussian, GaussianMixture, TokenTable, all_real

N = 48
LEARN, CHOOSE = Draws(0, torch.arange(N)), Draws(1, torch.arange(N))
EXACT = Sampler(steps=100, method="reab1", logsnr_last=9.0)
"""On a Gaussian of variance data_std², but for the final denoising."""


def gaussian(schedule: Schedule, std: float = 1.0) -> DiagonalGaussian:
    path = GaussianPath(Euclidean(2), schedule, data_std=std)
    return DiagonalGaussian(path, torch.zeros(2), torch.full((2,), std**2))


def mixture() -> GaussianMixture:
    angle = torch.arange(5) * 2 * math.pi / 5
    means = torch.stack((angle.cos(), angle.sin()), -1)
    covariances = torch.eye(2).expand(5, 2, 2) * 0.02
    path = GaussianPath(Euclidean(2), VPLinear(), data_std=0.72)
    return GaussianMixture(path, means, covariances, [0.1, 0.3, 0.2, 0.25, 0.15])


@pytest.mark.parametrize(
    ("schedule", "std"), [(Rectified(), 1.0), (Cosine(), 0.4), (Rectified(2.0), 3.0)]
)
def test_best_ddim_grid_of_a_gaussian_has_equal_angles(schedule: Schedule, std: float) -> None:
    """With θ = atan(s/(σ a)) a step of DDIM multiplies x/√(a²σ² + s²) by cos Δθ; their product is
    largest for equal steps."""
    target = gaussian(schedule, std)
    sampler = Sampler(steps=4, method="ab1", grid="uniform-u")
    learned = learn_grid(target, all_real(N), sampler, LEARN, CHOOSE,
                         teacher=EXACT)  # fmt: skip
    a, s = schedule(torch.tensor(learned.times, dtype=torch.float64))
    angles = torch.atan2(s, std * a)
    expected = float(angles[0]) * torch.tensor([1, 3 / 4, 1 / 2, 1 / 4], dtype=torch.float64)
    torch.testing.assert_close(angles, expected, rtol=0, atol=2e-2)
    kept = float(torch.cat((angles, torch.zeros(1))).diff().cos().prod())
    assert kept == pytest.approx(math.cos(float(angles[0]) / 4) ** 4, rel=1e-3)


def test_learned_grid_wins_on_noise_not_learned_from() -> None:
    target = mixture()
    teacher = Sampler(steps=60)
    goal = teacher(target, all_real(200), Draws(2, torch.arange(200)), dtype=torch.float64)

    def error(sampler: Sampler) -> float:
        found = sampler(target, all_real(200), Draws(2, torch.arange(200)), dtype=torch.float64)
        return float((found.state["x"] - goal.state["x"]).square().mean().sqrt())

    sampler = Sampler(steps=5, method="ab2")
    learned = learn_grid(target, all_real(N), sampler, LEARN, CHOOSE, teacher, iterations=8)
    assert learned.after < 0.75 * learned.before
    hand_made = [error(Sampler(steps=5, method="ab2", grid=g))
                 for g in ("power-u", "uniform-u", "uniform-logsnr", "karras", "time")]  # fmt: skip
    found = error(Sampler(steps=5, method="ab2", grid=learned.times))
    assert found < 0.8 * min(hand_made)
    # Plain data.
    assert json.loads(json.dumps(learned.times)) == learned.times


def test_the_grid_to_start_from_is_kept_where_nothing_is_better() -> None:
    """The best grid is left as it is, and no noise tempts away from it."""
    a_quarter = [math.tan(k * math.pi / 8) for k in (3, 2, 1)]
    times = [1.0, *(x / (1 + x) for x in a_quarter)]
    sampler = Sampler(steps=4, method="ab1", grid=times)
    learned = learn_grid(gaussian(Rectified()), all_real(N), sampler, LEARN, CHOOSE, EXACT)
    assert learned.times == pytest.approx(times, abs=1e-3)
    assert learned.after <= learned.before


def test_padding_is_not_learned_from() -> None:
    sampler = Sampler(steps=3, method="ab1", grid="time")
    mask = torch.ones(N, 2, dtype=torch.bool)
    mask[::2, 1] = False
    padded = torch.nn.functional.pad(mask, (0, 3))
    grids = [learn_grid(gaussian(Rectified()), Context(m), sampler, LEARN, CHOOSE, iterations=4)
             for m in (mask, padded)]  # fmt: skip
    assert grids[0].times == pytest.approx(grids[1].times, abs=1e-12)


def test_methods_of_two_calls_learn_their_steps() -> None:
    sampler = Sampler(steps=5, method="heun", grid="time")
    learned = learn_grid(mixture(), all_real(N), sampler, LEARN, CHOOSE, iterations=4)
    assert len(learned.times) == 3 and learned.after < learned.before
    Sampler(steps=5, method="heun", grid=learned.times).plan(mixture())


def test_told_times_mend_what_is_left() -> None:
    target = gaussian(Rectified())
    sampler = Sampler(steps=3, method="ab1")
    args = (target, all_real(N), sampler, LEARN, CHOOSE, EXACT)
    plain, decoupled = learn_grid(*args), learn_grid(*args, decoupled=True)
    assert plain.told is None and decoupled.told is not None
    assert decoupled.after < 0.6 * plain.after
    assert decoupled.told[0] == decoupled.times[0] == 1.0
    model = DecoupledTimes(target, decoupled.times, decoupled.told)
    prior = Draws(5, torch.arange(N)).normal((1, 2), "x/prior", dtype=torch.float64)
    error = []
    for times, denoiser in ((plain.times, target), (decoupled.times, model)):
        listed = Sampler(steps=3, method="ab1", grid=times)
        found = listed(denoiser, all_real(N), Draws(5, torch.arange(N)), dtype=torch.float64)
        error.append(float((found.state["x"] - prior).square().mean().sqrt()))
    assert error[1] < 0.6 * error[0]


def test_told_changes_the_times_of_the_grid_and_no_other() -> None:
    seen = []

    class Watched(DiagonalGaussian):
        def forward(self, state: State, t: Times | float,
                    previous: Prediction | None = None) -> Prediction:  # fmt: skip
            seen.append(t)
            return super().forward(state, t, previous)

    g = gaussian(Cosine())
    model = DecoupledTimes(Watched(g.path, g.mean, g.variance), [1.0, 0.5, 0.2], [1.0, 0.45, 0.21])
    Sampler(steps=3, grid=[1.0, 0.5, 0.2])(model, all_real(1), Draws(0, [0]))
    model(State({"x": torch.zeros(1, 1, 2)}, all_real(1)), 0.3)
    assert seen == [1.0, 0.45, 0.21, 0.3]
    with pytest.raises(InputError, match="2 told times"):
        DecoupledTimes(g, [1.0, 0.5, 0.2], [1.0, 0.4])


def test_what_cannot_be_learned() -> None:
    tokens = TokenTable(CategoricalPath(Tokens(2), Rectified()), torch.ones(2, 2))
    with pytest.raises(InputError, match="continuous fields"):
        learn_grid(tokens, all_real(2, 2), Sampler(steps=3), Draws(0, [0, 1]), Draws(1, [0, 1]))

    class Broken(DiagonalGaussian):
        def exact(self, state: State, times: object) -> dict[str, torch.Tensor]:  # type: ignore[override]
            return {"x": torch.full_like(state["x"], torch.nan, dtype=torch.float64)}

    g = gaussian(Cosine())
    with pytest.raises(InputError, match="samples of the teacher break"):
        learn_grid(Broken(g.path, g.mean, g.variance), all_real(2), Sampler(steps=3),
                   Draws(0, [0, 1]), Draws(1, [0, 1]))  # fmt: skip
