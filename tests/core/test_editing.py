"""Edits of samples: exact laws at t0, round trips to the noise and back, ways between samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sciflow.errors import InputError
from sciflow.guidance.editing.inpainting import Known, Replacement
from sciflow.guidance.editing.start import encode, interpolate, noised, sdedit, spherical
from sciflow.paths import CategoricalPath, GaussianPath
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.schedules import Cosine, Rectified, Schedule, VarianceExploding, VPLinear
from sciflow.spaces import Euclidean, Tokens, ZeroCoM
from sciflow.state import Context, State
from sciflow.testing.targets import DiagonalGaussian, GaussianMixture, NamedMixture, all_real
from sciflow.training.gaussian_fit import GaussianDenoiser

MEANS = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [-1.0, -1.5]], dtype=torch.float64)
every_schedule = pytest.mark.parametrize(
    "schedule", [Rectified(), Cosine(), VPLinear(), VarianceExploding()], ids=str
)


def draws(n: int, seed: int = 0) -> Draws:
    return Draws(seed, torch.arange(n))


def normals(n: int, *shape: int, stream: str = "x") -> Tensor:
    return draws(n, 3).normal(shape, stream, dtype=torch.float64)


def mixture(schedule: Schedule | None = None) -> GaussianMixture:
    path = GaussianPath(Euclidean(2), schedule or Rectified())
    spread = torch.tensor([[0.3, 0.1], [0.1, 0.2]]).expand(3, 2, 2)
    return GaussianMixture(path, MEANS, spread, [0.5, 0.3, 0.2])


def mixed() -> NamedMixture:
    paths = GaussianPath(Euclidean(2), Rectified()), CategoricalPath(Tokens(3), Rectified())
    return NamedMixture(*paths, MEANS, 0.1, [1.0] * 3)


@every_schedule
def test_the_law_at_t0_is_exact(schedule: Schedule) -> None:
    """Mean and covariance of x_t0 are a m and a² C + s², those of the mixture."""
    n, t0, target = 4000, 0.4, mixture(schedule)
    x0 = target.sample(n)
    x = noised(target.paths, State({"x": x0[:, None]}, all_real(n)), t0, draws(n))["x"][:, 0]
    a, s = (float(c) for c in schedule(torch.tensor(t0, dtype=torch.float64)))
    noise = (x - a * x0) / s
    torch.testing.assert_close(noise.mean(0), torch.zeros(2).double(), rtol=0, atol=0.06)
    torch.testing.assert_close(noise.T.cov(), torch.eye(2).double(), rtol=0, atol=0.09)
    one = torch.tensor(t0, dtype=torch.float64)
    # Noise that knew of x_0 would give another density: mean log p against 4000 other draws.
    other = a * target.sample(n, seed=1) + s * normals(n, 2)
    found, expected = (float(target.log_density(y, *schedule(one)).mean()) for y in (x, other))
    assert found == pytest.approx(expected, abs=0.08)


@pytest.mark.parametrize("method", ["ab3", "ddpm"])
def test_data_stay_data(method: str) -> None:
    """What comes down has the data's law, whatever t0; near data stay near, all noise forgets."""
    n, target = 1500, mixture()
    state = State({"x": target.sample(n)[:, None]}, all_real(n))
    exact = target.sample(40000, seed=2)
    correlations = []
    for t0 in (0.1, 0.6, 1.0):
        x = sdedit(Sampler(steps=30, method=method), target, state, t0, draws(n)).state["x"]
        torch.testing.assert_close(x[:, 0].mean(0), exact.mean(0), rtol=0, atol=0.15)
        torch.testing.assert_close(x[:, 0].T.cov(), exact.T.cov(), rtol=0, atol=0.25)
        both = torch.stack((x[:, 0, 0], state["x"][:, 0, 0]))
        correlations.append(float(both.corrcoef()[0, 1]))
    assert correlations[0] > 0.98 and correlations[0] > correlations[1] > 0.3
    assert abs(correlations[2]) < 0.1


def test_tokens_are_edited_too_and_given_elements_are_not() -> None:
    n, model = 300, mixed()
    token = draws(n).integers(3, "token")[:, None].expand(n, 2)
    x = MEANS[token] + 0.3 * normals(n, 2, 2)
    given = torch.tensor([[True, False]]).expand(n, 2)
    context = all_real(n, 2).replace(given={"x": given, "token": given})
    report = sdedit(Sampler(steps=12), model, State({"x": x, "token": token}, context), 0.5,
                    draws(n))  # fmt: skip
    edited = report.state
    assert report.calls == 12 and edited["x"].dtype == torch.float64
    assert torch.equal(edited["x"][:, 0], x[:, 0])
    assert torch.equal(edited["token"][:, 0], token[:, 0])
    changed = (edited["token"][:, 1] != token[:, 1]).double().mean()
    assert 0.02 < float(changed) < 0.6 and not torch.equal(edited["x"][:, 1], x[:, 1])


def test_known_parts_stay_in_an_edit() -> None:
    n, model = 5, mixed()
    state = State({"x": normals(n, 2, 2), "token": torch.ones(n, 2, dtype=torch.int64)},
                  all_real(n, 2))  # fmt: skip
    mask = torch.tensor([[True, False]]).expand(n, 2)
    known = Known({"x": state["x"]}, {"x": mask})
    edited = sdedit(Sampler(steps=8), Replacement(model, known), state, 0.7, draws(n)).state
    torch.testing.assert_close(edited["x"][:, 0], state["x"][:, 0], rtol=0, atol=1e-12)
    assert float((edited["x"][:, 1] - state["x"][:, 1]).abs().min()) > 1e-3


def test_an_edit_depends_on_its_own_sample() -> None:
    mask = torch.arange(3) < torch.tensor([3, 2, 2])[:, None]
    x = normals(3, 3, 2).masked_fill(~mask[..., None], torch.nan)
    token = torch.ones(3, 3, dtype=torch.int64)
    sampler, rows = Sampler(steps=6, method="ddpm"), torch.tensor([2])
    whole = sdedit(sampler, mixed(), State({"x": x, "token": token}, Context(mask)), 0.6,
                   draws(3)).state  # fmt: skip
    short = State({"x": x[2:, :2], "token": token[2:, :2]}, Context(mask[2:, :2]))
    part = sdedit(sampler, mixed(), short, 0.6, draws(3).rows(rows)).state
    torch.testing.assert_close(part["x"], whole["x"][2:, :2], rtol=0, atol=1e-11)
    assert torch.equal(part["token"], whole["token"][2:, :2])
    assert not bool(whole["x"][~mask].any())


@every_schedule
def test_the_noise_of_gaussian_data_is_known(schedule: Schedule) -> None:
    """The flow of N(m, v) upwards is a line; ``rk4`` finds it, and of order 4.

    What is left is the noise-free start, of order s(t_b)².
    """
    path = GaussianPath(Euclidean(2), schedule)
    target = DiagonalGaussian(path, torch.tensor([1.0, -0.5]), torch.tensor([0.5, 2.0]))
    x = normals(6, 1, 2)
    exact = target.flow(x, torch.tensor(0.0), torch.tensor(1.0))
    begin = 1e-3 if isinstance(schedule, VarianceExploding) else 1e-5
    errors = []
    for steps in (8, 16):
        found = encode(target, State({"x": x}, all_real(6)), steps, begin=begin)
        assert found.calls == 4 * steps
        error = (found.state["x"] - exact) / schedule(torch.tensor(1.0))[1]
        errors.append(float(error.abs().max()))
    assert errors[1] < errors[0] / 6 and errors[1] < 5e-3


def test_there_and_back_is_the_sample() -> None:
    """Data to noise to data: the error falls with the steps of both ways, to 0.01 at 40."""
    target = mixture()
    state = State({"x": target.sample(8)[:, None]}, all_real(8))
    errors = []
    for steps in (10, 20, 40):
        noise = encode(target, state, steps).state
        sampler = Sampler(steps=2 * steps, method="ab3", extrapolate=True)
        back = sampler(target, state.context, draws(8), start=noise.fields)
        errors.append(float((back.state["x"] - state["x"]).norm(dim=-1).mean()))
    assert errors[0] > 2 * errors[1] > 4 * errors[2] and errors[2] < 0.01, errors


def test_the_noise_of_data_is_noise() -> None:
    """Standard normal, whatever the mixture looks like."""
    n, target = 1500, mixture()
    noise = encode(target, State({"x": target.sample(n)[:, None]}, all_real(n)), 12).state["x"]
    torch.testing.assert_close(noise[:, 0].mean(0), torch.zeros(2).double(), rtol=0, atol=0.12)
    torch.testing.assert_close(noise[:, 0].T.cov(), torch.eye(2).double(), rtol=0, atol=0.15)


def test_given_tokens_and_elements_stay_and_the_rest_comes_back() -> None:
    """Of a mixed state the tokens are given; of the points the first."""
    n, model = 4, mixed()
    token = torch.tensor([[0, 1]]).expand(n, 2)
    given = torch.tensor([[True, False]]).expand(n, 2)
    everything = torch.ones(n, 2, dtype=torch.bool)
    context = all_real(n, 2).replace(given={"x": given, "token": everything})
    state = State({"x": MEANS[token] + 0.3 * normals(n, 2, 2), "token": token}, context)
    noise = encode(model, state, 25).state
    assert torch.equal(noise["x"][:, 0], state["x"][:, 0]) and torch.equal(noise["token"], token)
    back = Sampler(steps=50, extrapolate=True)(
        model, context, draws(n), given=dict(state.fields), start=noise.fields
    ).state  # fmt: skip
    torch.testing.assert_close(back["x"], state["x"], rtol=0, atol=0.02)
    assert float((noise["x"] - state["x"])[:, 1].abs().min()) > 1e-3


def test_centred_points_are_encoded_where_they_live() -> None:
    path = GaussianPath(ZeroCoM(1, "x"), Rectified())
    model = GaussianDenoiser(path, torch.zeros(3, 1), 2 * (torch.eye(3) - 1 / 3))
    x = normals(2, 3, 1) + 9
    found = encode(model, State({"x": x}, all_real(2, 3)), 20).state["x"]
    centred = x - x.mean(1, keepdim=True)
    torch.testing.assert_close(found, centred / 2**0.5, rtol=0, atol=2e-3)


def test_the_sphere_between_two_noises() -> None:
    """Ends are exact, norms of equal ends are kept, and what lies between noises is noise."""
    path, context = GaussianPath(Euclidean(3), Rectified()), all_real(400, 20)
    x, y = normals(400, 20, 3), normals(400, 20, 3, stream="y")
    torch.testing.assert_close(spherical(path, x, y, 0.0, context), x)
    torch.testing.assert_close(spherical(path, x, y, torch.ones(400), context), y)
    middle = spherical(path, x, y, 0.3, context)
    assert float(middle.std()) == pytest.approx(1, abs=0.02)
    assert float((0.7 * x + 0.3 * y).std()) < 0.8
    size = x.flatten(1).norm(dim=1)
    y = y / y.flatten(1).norm(dim=1)[:, None, None] * size[:, None, None]
    middle = spherical(path, x, y, torch.linspace(0, 1, 400), context)
    torch.testing.assert_close(middle.flatten(1).norm(dim=1), size)
    # Nothing between a point and itself; padding does not turn the sphere.
    assert torch.isfinite(spherical(path, x, x, 0.5, context)).all()
    torch.testing.assert_close(spherical(path, x, x.clone(), 0.5, context), x)


def test_between_two_samples() -> None:
    """The ends come back; in between, gradually, one turns into the other."""
    target = mixture()
    context = all_real(3, 4)
    first = State({"x": (MEANS[0] + 0.2 * normals(3, 4, 2))}, context)
    second = State({"x": (MEANS[1] + 0.2 * normals(3, 4, 2, stream="y"))}, context)
    weights = [0.0, 0.25, 0.5, 0.75, 1.0]
    reports = interpolate(Sampler(steps=40, extrapolate=True), target, first, second, weights,
                          draws(3), steps=20)  # fmt: skip
    x = [r.state["x"] for r in reports]
    torch.testing.assert_close(x[0], first["x"], rtol=0, atol=0.02)
    torch.testing.assert_close(x[-1], second["x"], rtol=0, atol=0.02)
    away = [float((y - first["x"]).norm(dim=-1).mean()) for y in x]
    assert away == sorted(away)


@pytest.mark.parametrize(("settings", "match"), [
    ({"method": "euler"}, "heun, rk4"), ({"steps": 0}, "steps >= 1"), ({"begin": 0.0}, "begin"),
])  # fmt: skip
def test_what_cannot_be(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        encode(mixture(), State({"x": normals(2, 1, 2)}, all_real(2)), **settings)


def test_states_that_cannot_be() -> None:
    state = State({"x": normals(2, 1, 2), "token": torch.zeros(2, 1, dtype=torch.int64)},
                  all_real(2))  # fmt: skip
    with pytest.raises(InputError, match="tokens jump"):
        encode(mixed(), state)
    for t0 in (0.0, 1.5):
        with pytest.raises(InputError, match="begins at a time above 0"):
            sdedit(Sampler(steps=3), mixed(), state, t0, draws(2))
    one, other = (State({"x": normals(2, 1, 2)}, Context(torch.tensor([[True], [b]])))
                  for b in (True, False))  # fmt: skip
    with pytest.raises(InputError, match="masks"):
        interpolate(Sampler(steps=3), mixture(), one, other, [0.5], draws(2))
