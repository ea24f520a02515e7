"""Rotations: exp and log to the last digit, IGSO(3) against a series in high precision, draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sciflow.random import Draws
from sciflow.spaces import SO3, igso3
from sciflow.spaces.so3 import hat, nearest_rotation, rotation, rotation_vector, vee
from sciflow.state import Context
from sciflow.testing.targets import all_real

PI = math.pi
SPACE = SO3()


def axes(n: int, seed: int = 0) -> Tensor:
    v = Draws(seed, torch.arange(n)).normal((3,), "axes", dtype=torch.float64)
    return v / torch.linalg.vector_norm(v, dim=-1, keepdim=True)


def uniform(n: int, stream: str = "uniform", dtype: torch.dtype = torch.float64) -> Tensor:
    return SPACE.noise(all_real(n), Draws(0, torch.arange(n)), stream, dtype=dtype)


ANGLES = [0.0, 1e-12, 1e-6, 1e-3, 0.0316, 0.0317, 0.3, 2.0, 3.0, 3.14, PI - 1e-6, PI - 1e-10]


@pytest.mark.parametrize("angle", ANGLES)
def test_exp_and_log(angle: float) -> None:
    v = (angle * axes(200)).requires_grad_(True)
    r = rotation(v)
    torch.testing.assert_close(r, torch.linalg.matrix_exp(hat(v)), rtol=0, atol=1e-14)
    torch.testing.assert_close(r @ r.mT, torch.eye(3).double().expand_as(r), rtol=0, atol=1e-14)
    back = rotation_vector(r)
    torch.testing.assert_close(back, v, rtol=1e-14, atol=4e-15)
    # The gradient of a round trip is that of the identity, at both ends too.
    weights = axes(200, 1)
    (g,) = torch.autograd.grad((back * weights).sum(), v)
    torch.testing.assert_close(g, weights, rtol=0, atol=1e-12)


@given(
    st.one_of(st.floats(0, PI), st.floats(-1e-6, 1e-6).map(lambda e: PI - abs(e))),
    st.integers(0, 10**6),
    st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=150, deadline=None)
def test_log_undoes_exp_up_to_half_a_turn(angle: float, seed: int, dtype: torch.dtype) -> None:
    """As rotations; as vectors too, but where rounding decides which way round half a turn is."""
    small = 2e-15 if dtype == torch.float64 else 1e-6
    v = (angle * axes(1, seed)).to(dtype).requires_grad_(True)
    r = rotation(v)
    back = rotation_vector(r)
    (g,) = torch.autograd.grad(back.sum(), v)
    assert bool(g.isfinite().all())
    assert float(torch.linalg.vector_norm(back.detach())) <= PI + 4 * small
    torch.testing.assert_close(rotation(back), r, rtol=0, atol=8 * small)
    if angle < PI - 10 * small:
        torch.testing.assert_close(back, v, rtol=0, atol=4 * small)


def test_log_at_half_a_turn_about_every_axis() -> None:
    v = torch.cat((PI * torch.eye(3).double(), PI * axes(50), -PI * axes(50)))
    for dtype, atol in ((torch.float64, 1e-14), (torch.float32, 2e-6)):
        r = rotation(v.to(dtype)).requires_grad_(True)
        back = rotation_vector(r)
        length = torch.linalg.vector_norm(back, dim=-1)
        torch.testing.assert_close(length, torch.full_like(length, PI), rtol=0, atol=atol)
        (g,) = torch.autograd.grad(back.sum(), r)
        assert bool(g.isfinite().all())
    assert not bool(rotation_vector(torch.eye(3)).any())


def test_hat_vee_and_tangents() -> None:
    v, w = axes(5), axes(5, 1)
    torch.testing.assert_close(
        (hat(v) @ w[..., None])[..., 0], torch.linalg.cross(v, w), rtol=0, atol=1e-15
    )
    torch.testing.assert_close(vee(hat(v)), v)
    # A gradient by the matrix, in tangent coordinates, is the gradient along exp.
    x = uniform(5)[:, 0].requires_grad_(True)
    goal = uniform(5, "goal")[:, 0]

    def f(y: Tensor) -> Tensor:
        return (y @ goal).diagonal(dim1=-2, dim2=-1).sum(-1).exp().sum()

    (g,) = torch.autograd.grad(f(x), x)
    step = torch.zeros(5, 3, dtype=torch.float64, requires_grad=True)
    (along,) = torch.autograd.grad(f(SPACE.exp(x.detach(), step)), step)
    torch.testing.assert_close(SPACE.tangent(x.detach(), g), along, rtol=1e-10, atol=1e-12)
    assert SPACE.tangent(x, step) is step


def test_distance_is_biinvariant() -> None:
    x, y, q = (uniform(50, s)[:, 0] for s in "xyq")
    d = SPACE.distance(x, y)
    cosine = ((x.mT @ y).diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    torch.testing.assert_close(d.cos(), cosine, rtol=0, atol=1e-13)
    for u, v in ((q @ x, q @ y), (x @ q, y @ q), (y, x)):
        torch.testing.assert_close(SPACE.distance(u, v), d, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(SPACE.log(q @ x, q @ y), SPACE.log(x, y), rtol=0, atol=1e-11)


def test_transport_is_parallel() -> None:
    """By the pole ladder, which is exact on symmetric spaces (Guigui & Pennec 2021)."""
    x = uniform(40)[:, 0]
    v, w = 1.3 * axes(40), 0.4 * axes(40, 1)
    end, middle = SPACE.exp(x, v), SPACE.exp(x, v / 2)
    mirrored = SPACE.exp(middle, -SPACE.log(middle, SPACE.exp(x, w)))
    ladder = -SPACE.log(end, mirrored)
    torch.testing.assert_close(SPACE.transport(x, v, w), ladder, rtol=0, atol=1e-12)
    torch.testing.assert_close(SPACE.transport(x, v, v), v, rtol=0, atol=1e-14)
    back = SPACE.transport(end, -v, SPACE.transport(x, v, w))
    torch.testing.assert_close(back, w, rtol=0, atol=1e-14)


def test_nearest_rotation() -> None:
    g = torch.Generator().manual_seed(0)
    m = torch.randn(300, 3, 3, generator=g, dtype=torch.float64)
    r = nearest_rotation(m)
    assert float(torch.linalg.det(m).min()) < 0 < float(torch.linalg.det(m).max())
    torch.testing.assert_close(torch.linalg.det(r), torch.ones(300).double())
    torch.testing.assert_close(nearest_rotation(r), r, rtol=0, atol=1e-13)
    best = (m - r).square().sum((-1, -2))
    for k in range(200):
        other = SPACE.exp(r, 10 ** -(3 * k / 200) * axes(300, k))
        assert bool(((m - other).square().sum((-1, -2)) >= best).all())


def test_nearest_rotation_has_gradients_even_at_a_rotation() -> None:
    g = torch.Generator().manual_seed(1)
    m = torch.randn(6, 3, 3, generator=g, dtype=torch.float64).requires_grad_(True)
    assert torch.autograd.gradcheck(nearest_rotation, (m,))
    x = uniform(6)[:, 0].requires_grad_(True)
    assert torch.autograd.gradcheck(nearest_rotation, (x,))


def test_projection_spares_the_good_and_fills_padding() -> None:
    mask = torch.tensor([[True, True], [True, False]])
    context = Context(mask)
    x = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    clean = SPACE.project(x, context)
    assert torch.equal(clean[1, 1], torch.eye(3))
    broken = x.clone()
    broken[0, 1, 2, 0], broken[1, 1] = torch.nan, torch.nan
    y = SPACE.project(broken, context)
    assert bool(y[0, 1].isnan().all())
    y[0, 1] = clean[0, 1]
    assert torch.equal(y, clean)
    assert SPACE.dimensions(x, context).tolist() == [6, 3]
    assert not bool(SPACE.color(torch.ones(2, 2, 3), context)[1, 1].any())


def characters(omega: float, sigma: float) -> tuple[float, float]:
    """log f and (log f)′/ω by a long series in 450 digits."""
    import mpmath as mp

    with mp.workdps(450):
        o, s = mp.mpf(omega), mp.mpf(sigma)
        half = mp.mpf(1) / 2
        top = slope = mp.mpf(0)
        for n in range(int(45 / sigma) + 30):
            w = (2 * n + 1) * mp.exp(-n * (n + 1) * s**2 / 2)
            top += w * mp.sin((n + half) * o)
            slope += w * (n + half) * mp.cos((n + half) * o)
        f = top / mp.sin(o / 2)
        return float(mp.log(f)), float((slope / top - mp.cot(o / 2) / 2) / o)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 1.7, 2.4999, 2.5, 3.2, 5.0])
def test_heat_kernel_is_the_long_series(sigma: float) -> None:
    for omega in (1e-4, 0.03, 0.4, 1.0, 2.0, 3.0, 3.13, PI):
        log_f, score = characters(omega, sigma)
        o, s = (torch.tensor(y, dtype=torch.float64) for y in (omega, sigma))
        assert float(igso3.log_density(o, s)) == pytest.approx(log_f, rel=1e-12, abs=1e-12)
        small = 1e-12 / sigma**2
        assert float(igso3.radial_score(o, s)) == pytest.approx(score, rel=1e-9, abs=small)


def test_small_spreads_have_the_published_form() -> None:
    """Leach et al. 2022, equation 7, in which ε² = σ²/2."""
    omega = torch.tensor([0.01, 0.1, 0.5, 1.0], dtype=torch.float64)
    for sigma in (0.15, 0.5):
        e = sigma / math.sqrt(2)
        far = math.exp(-((PI / e) ** 2)) * (
            (omega - 2 * PI) * (PI * omega / e**2).exp()
            + (omega + 2 * PI) * (-PI * omega / e**2).exp()
        )
        f = (
            math.sqrt(PI) * e**-3 * math.exp(e**2 / 4) * (-((omega / (2 * e)) ** 2)).exp()
            * (omega - far) / (2 * (omega / 2).sin())
        )  # fmt: skip
        s = torch.tensor(sigma, dtype=torch.float64)
        torch.testing.assert_close(igso3.log_density(omega, s), f.log(), rtol=1e-10, atol=1e-10)


def gauss(n: int, high: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights of n-point quadrature on [0, high], ``[..., n]``."""
    x, w = (torch.from_numpy(y) for y in np.polynomial.legendre.leggauss(n))
    return high[..., None] * (x + 1) / 2, high[..., None] * w / 2


@pytest.mark.parametrize("sigma", [0.02, 0.5, 1.5, 2.49, 2.51, 6.0])
def test_heat_kernel_has_mass_one_and_its_slope(sigma: float) -> None:
    s = torch.tensor(sigma, dtype=torch.float64)
    omega, w = gauss(120, torch.tensor(min(PI, 12 * sigma), dtype=torch.float64))
    assert float((igso3.angle_density(omega, s) * w).sum()) == pytest.approx(1, abs=1e-10)
    omega = omega.requires_grad_(True)
    (slope,) = torch.autograd.grad(igso3.log_density(omega, s).sum(), omega)
    score = igso3.radial_score(omega, s).detach()
    torch.testing.assert_close(slope, score * omega.detach(), rtol=1e-9, atol=1e-9)
    # So exp_x(σ² score) lies between x and the centre, and tells the score again.
    pull = -(sigma**2) * score
    assert bool((pull >= -1e-12).all() and (pull <= 1 + 1e-12).all())


def test_heat_kernel_extremes_are_finite() -> None:
    omega = torch.tensor([0.0, 1e-9, 1.0, PI], dtype=torch.float64, requires_grad=True)
    for sigma in (1e-3, 1e-2, 7.0, 50.0):
        s = torch.tensor(sigma, dtype=torch.float64, requires_grad=True)
        total = igso3.log_density(omega, s).sum() + igso3.radial_score(omega, s).sum()
        assert bool(total.isfinite())
        assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(total, (omega, s)))


@pytest.mark.parametrize("sigma", [0.01, 0.06, 0.5, 1.0, 1.4, 2.5, 5.0, 30.0])
def test_the_angle_of_a_draw_inverts_its_distribution(sigma: float) -> None:
    """F(ω) = χ₃(r) to 1e-5 from the centre to the far tail."""
    from scipy.stats import chi

    r = torch.linspace(0.01, 6, 300, dtype=torch.float64)
    s = torch.tensor(sigma, dtype=torch.float64)
    omega = igso3.heat_angle(r, s) * r
    assert bool((omega.diff() >= 0).all()) and float(omega[-1]) <= PI
    nodes, w = gauss(80, omega)
    below = (igso3.angle_density(nodes, s) * w).sum(-1)
    torch.testing.assert_close(below, torch.from_numpy(chi(3).cdf(r.numpy())), rtol=0, atol=1e-5)


def kolmogorov(omega: Tensor, sigma: float) -> float:
    """√n sup |F_n − F| of angles against IGSO(3); 1.95 has probability 1e-3."""
    grid = torch.linspace(0, PI, 4001, dtype=torch.float64)
    p = igso3.angle_density((grid[1:] + grid[:-1]) / 2, torch.tensor(sigma).double())
    cdf = torch.cat((torch.zeros(1), p.cumsum(0) * PI / 4000))
    x = omega.sort().values
    exact = torch.from_numpy(np.interp(x.numpy(), grid.numpy(), cdf.numpy()))
    n = len(x)
    return float((torch.arange(1, n + 1) / n - exact).abs().max() * math.sqrt(n))


def test_heat_adds_up_and_has_no_direction() -> None:
    """Draws of σ₁, then σ₂, then σ₃ are draws of √(σ₁² + σ₂² + σ₃²)."""
    n = 8000
    context, draws = all_real(n), Draws(0, torch.arange(n))
    start = rotation(torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)).expand(n, 1, 3, 3)
    x, total = start, 0.0
    for k, sigma in enumerate((0.3, 0.7, 1.2)):
        x = SPACE.diffuse(x, torch.full((n,), sigma), context, draws, "heat", k)
        total = math.hypot(total, sigma)
        v = SPACE.log(start, x)[:, 0]
        assert kolmogorov(torch.linalg.vector_norm(v, dim=-1), total) < 1.95
        direction = v / torch.linalg.vector_norm(v, dim=-1, keepdim=True)
        assert float(direction.mean(0).abs().max()) < 4 / math.sqrt(3 * n)
        second = direction.mT @ direction / n - torch.eye(3) / 3
        assert float(second.abs().max()) < 4 * 0.3 / math.sqrt(n)


def test_noise_is_uniform() -> None:
    """Angles from any rotation, and every harmonic of degree 1."""
    n = 8000
    x = uniform(n)[:, 0]
    q = rotation(torch.tensor([1.0, 0.5, -2.0], dtype=torch.float64))
    for y in (x, q @ x, x @ q):
        assert kolmogorov(torch.linalg.vector_norm(rotation_vector(y), dim=-1), 40.0) < 1.95
        assert float(y.mean(0).abs().max()) < 4 / math.sqrt(3 * n)


def test_score_is_the_gradient_of_the_density() -> None:
    x, m = uniform(20, "x"), uniform(20, "m")
    for sigma in (0.5, 1.5, 3.0):
        s = torch.full((20, 1), sigma, dtype=torch.float64)
        v = torch.zeros(20, 1, 3, dtype=torch.float64, requires_grad=True)
        (g,) = torch.autograd.grad(SPACE.log_density(SPACE.exp(x, v), m, s).sum(), v)
        torch.testing.assert_close(SPACE.score(x, m, s), g, rtol=1e-8, atol=1e-9)
        single = SPACE.score(x.float(), m.float(), s.float())
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), g, rtol=1e-4, atol=1e-4)


def test_a_rotation_depends_on_its_sample_and_place_alone() -> None:
    mask = torch.arange(4) < torch.tensor([4, 2, 3])[:, None]
    draws, context = Draws(5, [7, 8, 9]), Context(mask)
    longer = Context(torch.nn.functional.pad(mask, (0, 3)))
    sigma = torch.tensor([[0.0, 0.3, 1.0, 2.0]] * 3)
    for dtype in (torch.float32, torch.float64):
        one = torch.eye(3, dtype=dtype)
        x = SPACE.noise(context, draws, "x", dtype=dtype)
        padded = SPACE.noise(longer, draws, "x", dtype=dtype)
        assert torch.equal(padded[:, :4], x)
        for pad in (padded[:, 4:].flatten(0, 1), x[~mask]):
            assert torch.equal(pad, one.expand_as(pad))
        y = SPACE.diffuse(x, sigma, context, draws, "y")
        wide = torch.nn.functional.pad(sigma, (0, 3), value=1.0)
        assert torch.equal(SPACE.diffuse(padded, wide, longer, draws, "y")[:, :4], y)
        assert torch.equal(y[:, 0], x[:, 0]) and torch.equal(y[~mask], x[~mask])
        assert not torch.equal(y[0, 1], x[0, 1])
        row = slice(1, 2)
        alone = SPACE.diffuse(x[row], sigma[row], Context(mask[row]), draws.rows(row), "y")
        assert torch.equal(alone, y[row])
