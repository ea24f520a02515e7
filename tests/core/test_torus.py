"""Angles: wrapping, the wrapped normal against long series, its draws, padding."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sciflow.random import Draws
from sciflow.spaces import Torus
from sciflow.spaces.torus import wrap, wrapped_log_density, wrapped_score
from sciflow.state import Context
from sciflow.testing.targets import all_real

PI = math.pi
SIGMAS = [1e-3, 0.03, 0.3, 1.0, 2.0, 2.499, 2.5, 2.6, 4.0, 9.0]


def angles(n: int = 41) -> Tensor:
    """Both ends of the circle and its middle among them."""
    return torch.linspace(-PI, PI, n, dtype=torch.float64)


def long_images(d: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """log p and its slope by 121 images."""
    z = d[:, None] + 2 * PI * torch.arange(-60, 61, dtype=torch.float64)
    log_w = -0.5 * (z / sigma) ** 2
    w = log_w.softmax(-1)
    return (
        log_w.logsumexp(-1) - math.log(sigma * math.sqrt(2 * PI)),
        -(w * z).sum(-1) / sigma**2,
    )


def long_waves(d: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """The same by 400 waves."""
    n = torch.arange(1, 401, dtype=torch.float64)
    q = torch.exp(-0.5 * (n * sigma) ** 2)
    angle = n * d[:, None]
    p = (1 + 2 * (q * angle.cos()).sum(-1)) / (2 * PI)
    return p.log(), -(n * q * angle.sin()).sum(-1) / (PI * p)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_wrapped_normal_is_the_long_series(sigma: float) -> None:
    d, s = angles(), torch.tensor(sigma, dtype=torch.float64)
    log_p, score = long_images(d, sigma)
    torch.testing.assert_close(wrapped_log_density(d, s), log_p, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(wrapped_score(d, s), score, rtol=1e-12, atol=1e-12)
    if sigma >= 1:
        log_p, score = long_waves(d, sigma)
        torch.testing.assert_close(wrapped_log_density(d, s), log_p, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(wrapped_score(d, s), score, rtol=1e-12, atol=1e-12)


def test_many_widths_at_once_whole_turns_and_float32() -> None:
    d, sigma = angles(), torch.tensor(SIGMAS, dtype=torch.float64)
    score = wrapped_score(d[:, None], sigma)
    log_p = wrapped_log_density(d[:, None], sigma)
    for k, s in enumerate(sigma):
        assert torch.equal(score[:, k], wrapped_score(d, s))
        assert torch.equal(log_p[:, k], wrapped_log_density(d, s))
    wide = sigma[2:]
    turned = wrapped_score(d[:, None] + 6 * PI, wide)
    inner = d.abs() < 3.14
    torch.testing.assert_close(turned[inner], score[inner][:, 2:], rtol=1e-9, atol=1e-9)
    single = wrapped_score(d.float()[:, None], wide.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double()[inner], score[inner][:, 2:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_score_is_the_gradient_and_gradients_are_finite(sigma: float) -> None:
    d = angles(24).requires_grad_(True)
    s = torch.full((24,), sigma, dtype=torch.float64, requires_grad=True)
    slope, by_sigma = torch.autograd.grad(wrapped_log_density(d, s).sum(), (d, s))
    torch.testing.assert_close(slope, wrapped_score(d, s).detach(), rtol=1e-10, atol=1e-10)
    assert bool(by_sigma.isfinite().all())
    # The heat equation, ∂p/∂σ = σ p″, in terms of log p.
    (bend,) = torch.autograd.grad(wrapped_score(d, s).sum(), d)
    torch.testing.assert_close(by_sigma, sigma * (bend + slope**2), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("sigma", [0.2, 1.0, 2.4, 2.6, 5.0])
def test_wrapped_normal_has_mass_one(sigma: float) -> None:
    d = angles(2001)[:-1]
    p = wrapped_log_density(d, torch.tensor(sigma, dtype=torch.float64)).exp()
    assert float(p.mean() * 2 * PI) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_score_never_points_past_the_centre(sigma: float) -> None:
    """|σ² score| ≤ |x − μ|: so exp_x(σ² score) tells the score again."""
    d = angles(201)
    pull = sigma**2 * wrapped_score(d, torch.tensor(sigma, dtype=torch.float64))
    assert bool((pull.abs() <= d.abs() * (1 + 1e-12) + 1e-12).all())
    assert bool((pull * d <= 1e-12).all())


@given(st.floats(-1e4, 1e4), st.sampled_from([torch.float32, torch.float64]))
@settings(deadline=None)
def test_wrapping(x: float, dtype: torch.dtype) -> None:
    value = torch.tensor([x, -x, PI, -PI, 3 * PI, 0.0, 1e-9], dtype=dtype)
    y = wrap(value)
    limit = torch.tensor(PI, dtype=dtype)
    assert bool((y >= -limit).all() and (y < limit).all())
    assert torch.equal(wrap(y), y)
    turns = (value - y).double() / (2 * PI)
    error = 1e-7 * abs(x) + 1e-6
    assert float((turns - turns.round()).abs().max()) < error
    inside = value.abs() < 3
    assert torch.equal(y[inside], value[inside])


@given(st.floats(-PI, 3.14159), st.floats(-3.14159, 3.14159))
@settings(deadline=None)
def test_log_undoes_exp(x: float, v: float) -> None:
    space = Torus()
    start, step = (torch.tensor(y, dtype=torch.float64) for y in (x, v))
    assert float(space.log(start, space.exp(start, step))) == pytest.approx(v, abs=1e-12)
    there = space.log(start, step)
    assert float(space.exp(start, there)) == pytest.approx(float(wrap(step)), abs=1e-12)
    assert float(space.transport(start, step, there)) == float(there)


def chi_square(counts: Tensor, p: Tensor) -> float:
    """In standard deviations above its mean."""
    expected = counts.sum() * p
    excess = ((counts - expected) ** 2 / expected).sum() - len(p) + 1
    return float(excess / math.sqrt(2 * len(p) - 2))


def shares(density: Tensor, bins: int) -> Tensor:
    return density.view(bins, -1).mean(1) * 2 * PI / bins


@pytest.mark.parametrize("sigma", [0.4, 1.5, 3.0])
def test_draws_have_their_law(sigma: float) -> None:
    n, space, bins = 20_000, Torus(2), 30
    context, draws = all_real(n), Draws(0, torch.arange(n))
    mean = torch.tensor([3.0, -1.0], dtype=torch.float64).expand(n, 1, 2)
    x = space.diffuse(mean, torch.full((n,), sigma), context, draws, "x")
    mid = angles(bins * 50 + 1)
    mid = (mid[1:] + mid[:-1]) / 2
    for k in range(2):
        p = space.log_density(mid, mean[0, 0, k], torch.tensor(sigma)).exp()
        counts = torch.histc(x[..., k], bins, -PI, PI)
        assert abs(chi_square(counts, shares(p, bins))) < 4
    noise = space.noise(context, draws, "noise", dtype=torch.float64)
    uniform = torch.full((bins,), 1 / bins, dtype=torch.float64)
    assert abs(chi_square(torch.histc(noise[..., 0], bins, -PI, PI), uniform)) < 4
    assert abs(float((noise[..., 0] - noise[..., 1]).cos().mean())) < 4 / math.sqrt(2 * n)


def test_no_spread_is_no_change_element_by_element() -> None:
    space, context = Torus(2), all_real(3, 4)
    draws = Draws(0, torch.arange(3))
    x = space.noise(context, draws, "x")
    sigma = torch.tensor([0.0, 1.0, 0.0, 2.0]).expand(3, 4)
    y = space.diffuse(x, sigma, context, draws, "y")
    assert torch.equal(y[:, ::2], x[:, ::2]) and not bool((y[:, 1::2] == x[:, 1::2]).any())


def test_an_angle_depends_on_its_sample_and_place_alone() -> None:
    space = Torus(2)
    mask = torch.arange(4) < torch.tensor([4, 2, 3])[:, None]
    draws = Draws(5, [7, 8, 9])
    context = Context(mask)
    longer = Context(torch.nn.functional.pad(mask, (0, 3)))
    x = space.noise(context, draws, "x")
    padded = space.noise(longer, draws, "x")
    assert torch.equal(padded[:, :4], x) and not bool(padded[:, 4:].any())
    assert not bool(x[1, 2:].any())
    one = slice(1, 2)
    assert torch.equal(space.noise(Context(mask[one]), draws.rows(one), "x"), x[one])
    sigma = torch.tensor([0.3, 1.0, 2.0])
    y = space.diffuse(x, sigma, context, draws, "y")
    assert not bool(y[1, 2:].any())
    assert torch.equal(space.diffuse(padded, sigma, longer, draws, "y")[:, :4], y)
    dirty = x.masked_fill(~mask[..., None], torch.nan)
    assert torch.equal(space.project(dirty, context), x)
    assert torch.equal(space.color(5 * x, context), 5 * x)
