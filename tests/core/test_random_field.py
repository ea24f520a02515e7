"""Random fields: kernels against closed forms, and one law on every grid."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from sciflow.errors import InputError
from sciflow.likelihood import FlowLikelihood
from sciflow.paths import GaussianPath
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.schedules import Cosine, Rectified, Schedule
from sciflow.spaces import Kernel, RandomField
from sciflow.spaces.covariances import GridCovariance
from sciflow.state import Context, State
from sciflow.testing.targets import ExactDenoiser

F64 = torch.float64
ROUGH = Kernel("matern", 0.1, 0.5)
MATERN = Kernel("matern", 0.1, 1.5)
SMOOTH = Kernel("matern", 0.15, 2.5)
ODD = Kernel("matern", 0.1, 0.8)
SQUARED = Kernel("squared-exponential", 0.08)
every_kernel = pytest.mark.parametrize("kernel", [ROUGH, MATERN, SMOOTH, ODD, SQUARED], ids=str)
some_kernels = pytest.mark.parametrize("kernel", [MATERN, ODD, SQUARED], ids=str)
every_boundary = pytest.mark.parametrize("boundary", ["open", "periodic"])
DOMAINS: list[tuple[tuple[float, ...], tuple[int, ...]]] = [
    ((1.5,), (40,)),
    ((1.0, 0.6), (10, 9)),
    ((0.4, 0.5, 0.3), (4, 5, 3)),
]


def grid(*shape: int, batch: int = 1) -> Context:
    return Context(torch.ones(batch, *shape, dtype=torch.bool))


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def sampled_covariance(space: RandomField, *shape: int) -> Tensor:
    """A Aᵀ of the linear map A by which the space makes its noise, ``[n, n]``."""
    covariance = space.covariance(grid(*shape))
    n = math.prod(covariance.latent)
    rows = covariance.root(torch.eye(n, dtype=F64).view(n, *covariance.latent))
    return torch.einsum("zi,zj->ij", rows.flatten(1), rows.flatten(1))


def lags_of(space: RandomField, *shape: int) -> list[Tensor]:
    x = space.coordinates(shape).flatten(0, -2)
    return [y[:, None] - y[None] for y in x.unbind(-1)]


def exact_covariance(space: RandomField, *shape: int) -> Tensor:
    lags = lags_of(space, *shape)
    if space.boundary == "periodic":
        return space.kernel.periodic(lags, space.size)
    return space.kernel.at(lags)


@pytest.mark.parametrize("nu", [0.3, 0.5, 1.0, 1.5, 2.5, 3.2, 30.0])
def test_a_matern_kernel_is_a_mixture_of_gaussians(nu: float) -> None:
    """The closed forms, Bessel functions and the quadrature of the torus are one function."""
    r = torch.linspace(0, 3, 60, dtype=F64)
    kernel = Kernel("matern", 0.4, nu)
    torch.testing.assert_close(kernel.periodic([r], [50.0]), kernel.at([r]), rtol=0, atol=2e-13)
    assert float(kernel.at([r])[0]) == 1.0
    beyond = kernel.reach(1e-6) * 0.4
    assert float(kernel.at([torch.tensor(beyond, dtype=F64)])) == pytest.approx(1e-6)


def test_smooth_matern_kernels_tend_to_the_squared_exponential() -> None:
    r = torch.linspace(0, 2, 60, dtype=F64)
    limit = Kernel("squared-exponential", 0.4).at([r])
    gaps = [float((Kernel("matern", 0.4, nu).at([r]) - limit).abs().max()) for nu in (10, 20, 40)]
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.1)
    assert gaps[1] / gaps[2] == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("length", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("kind", ["matern", "squared-exponential"])
def test_the_kernel_of_the_torus_is_the_sum_over_images(kind: str, length: float) -> None:
    kernel = Kernel(kind, (length, 0.7 * length), 1.5)  # type: ignore[arg-type]
    x, y = torch.linspace(0, 1, 9, dtype=F64)[:, None], torch.linspace(0, 0.7, 8, dtype=F64)
    far = math.ceil(25 * length) + 1
    images = sum(
        kernel.at([x + i, y + 0.7 * j]) for i in range(-far, far + 1) for j in range(-far, far + 1)
    )
    assert isinstance(images, Tensor)
    found = kernel.periodic([x, y], [1.0, 0.7])
    torch.testing.assert_close(found, images / images[0, 0], rtol=0, atol=1e-12)


def test_the_squared_exponential_has_its_square() -> None:
    """FunDPS names exp(−d/(2 s²)), s = 0.05, RBF: a Matérn ½ of length 0.005, nearly white.

    Neighbours correlate by 0.044 at 64² and 0.21 at 128² then; a squared exponential of length s
    has −log k that grows as d², and neighbours whose difference falls as h².
    """
    s = 0.05
    d = torch.tensor([0.5 * s, s, 2 * s], dtype=F64)
    exponent = -Kernel("squared-exponential", s).at([d]).log()
    torch.testing.assert_close(exponent, torch.tensor([0.125, 0.5, 2.0], dtype=F64))
    unsquared = Kernel("matern", 2 * s**2, 0.5)
    torch.testing.assert_close(unsquared.at([d]), (-d / (2 * s**2)).exp())
    neighbours = {}
    for n in (64, 128):
        for name, kernel in (("rbf", Kernel("squared-exponential", s)), ("fundps", unsquared)):
            space = RandomField((1.0,), kernel)
            unit = torch.zeros(1, n, dtype=F64)
            unit[0, n // 2] = 1
            column = space.color(unit, grid(n))[0]
            neighbours[name, n] = float(column[n // 2 + 1] / column[n // 2])
    assert neighbours["fundps", 64] == pytest.approx(0.044, abs=0.001)
    assert neighbours["fundps", 128] == pytest.approx(0.21, abs=0.001)
    assert neighbours["rbf", 64] > 0.95
    ratio = (1 - neighbours["rbf", 64]) / (1 - neighbours["rbf", 128])
    assert ratio == pytest.approx(4, rel=0.05)


@every_kernel
@every_boundary
@pytest.mark.parametrize(("size", "shape"), DOMAINS, ids=["1d", "2d", "3d"])
def test_the_linear_map_of_the_noise_has_the_kernel_as_covariance(
    kernel: Kernel, boundary: str, size: tuple[float, ...], shape: tuple[int, ...]
) -> None:
    if len(shape) == 3 and boundary == "open":
        # A smaller torus: its unit matrix has to fit.
        kernel = Kernel(kernel.kind, 0.03, max(kernel.nu, 1.5))
    space = RandomField(size, kernel, boundary=boundary)  # type: ignore[arg-type]
    found = sampled_covariance(space, *shape)
    expected = exact_covariance(space, *shape)
    # An open box has a seam of correlation 1e-8; a torus has none.
    atol = 3e-8 if boundary == "open" else 1e-12
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)
    assert float((found.diagonal() - 1).abs().max()) < 1e-12


@some_kernels
@every_boundary
def test_common_points_of_two_grids_have_one_law(kernel: Kernel, boundary: str) -> None:
    """Cells in thirds keep their centres, nodes halved keep their places; rectangles, not squares.

    Two covariance matrices of the sampler's own linear maps, not estimates.
    """
    cells = RandomField((0.6, 0.4), kernel, boundary=boundary)  # type: ignore[arg-type]
    # Grids of an open box share one torus where their cells can be cut in quarters.
    n, m = (4, 4) if boundary == "open" else (4, 5)
    coarse, fine = sampled_covariance(cells, n, m), sampled_covariance(cells, 3 * n, 3 * m)
    kept = torch.arange(9 * n * m).view(3 * n, 3 * m)[1::3, 1::3].flatten()
    torch.testing.assert_close(coarse, fine[kept][:, kept], rtol=0, atol=1e-10)
    assert coarse.fill_diagonal_(0).abs().max() > 0.05

    nodes = RandomField((0.6,), kernel, boundary=boundary, placement="nodes")  # type: ignore[arg-type]
    less = 1 if boundary == "open" else 0
    coarse, fine = sampled_covariance(nodes, 8 + less), sampled_covariance(nodes, 16 + less)
    torch.testing.assert_close(coarse, fine[::2, ::2], rtol=0, atol=1e-10)
    assert nodes.steps((8 + less,)) == pytest.approx((0.6 / 8,))


def test_opposite_edges_meet_on_a_torus_only() -> None:
    n = 32
    across = {}
    for boundary in ("open", "periodic"):
        space = RandomField((1.0, 1.0), MATERN, boundary=boundary)  # type: ignore[arg-type]
        unit = torch.zeros(1, n, n, dtype=F64)
        unit[0, 0, 5] = 1
        across[boundary] = float(space.color(unit, grid(n, n))[0, -1, 5])
    neighbour = float(MATERN.at([torch.tensor(1 / n, dtype=F64)]))
    assert across["periodic"] == pytest.approx(neighbour, rel=1e-3)
    assert 0 <= across["open"] - float(MATERN.at([torch.tensor(1 - 1 / n, dtype=F64)])) < 1e-8


@pytest.mark.parametrize("shape", [(32, 32), (64, 64), (128, 128), (48, 80)], ids=str)
def test_two_point_function_of_samples_on_every_grid(shape: tuple[int, int]) -> None:
    """At the same physical lags, averaged over samples and translations, within 0.02."""
    length, batch, rounds = 0.04, 50, 12
    kernel = Kernel("matern", length, 1.5)
    space = RandomField((1.0, 1.0), kernel, boundary="periodic")
    opened = RandomField((1.0, 1.0), kernel)
    context = grid(*shape, batch=batch)
    total, across = torch.zeros(shape), torch.zeros(())
    for k in range(rounds):
        draws = Draws(3, torch.arange(k * batch, (k + 1) * batch))
        power = torch.fft.fftn(space.noise(context, draws, "n"), dim=(1, 2)).abs() ** 2
        total += torch.fft.ifftn(power, dim=(1, 2)).real.mean(0) / math.prod(shape) / rounds
        if k < 6:
            x = opened.noise(context, draws, "n")
            across += (x[:, 0] * x[:, -1]).mean() / 6
    for i, j in [(0, 0), (1, 0), (0, 1), (1, 1), (2, 0), (0, 3), (8, 8)]:
        lag = torch.tensor(math.hypot(i, j) / 16, dtype=F64)
        found = float(total[i * shape[0] // 16, j * shape[1] // 16])
        assert found == pytest.approx(float(kernel.at([lag])), abs=0.02), (i, j)
    assert abs(float(across)) < 4 / math.sqrt(6 * batch * 8)


@every_boundary
def test_one_seed_is_one_field_at_every_resolution(boundary: str) -> None:
    """Numbers belong to waves: refinement adds detail and moves nothing else."""
    space = RandomField((1.0, 1.0), SQUARED, boundary=boundary, placement="nodes")  # type: ignore[arg-type]
    less = 1 if boundary == "open" else 0
    coarse, fine = (
        space.noise(grid(n + less, n + less), Draws(1, [7]), "n", dtype=F64)[0] for n in (40, 80)
    )
    torch.testing.assert_close(fine[::2, ::2], coarse, rtol=0, atol=1e-6)
    other = space.noise(grid(40 + less, 40 + less), Draws(1, [8]), "n", dtype=F64)[0]
    assert float((other - coarse).std()) > 0.5


def test_a_sample_does_not_know_its_companions_or_the_type() -> None:
    space = RandomField((1.0, 0.5), MATERN, channels=2)
    whole = space.noise(grid(12, 8, batch=5), Draws(4, torch.arange(5)), "n", 3, F64)
    alone = space.noise(grid(12, 8), Draws(4, [3]), "n", 3, F64)
    torch.testing.assert_close(alone[0], whole[3], rtol=0, atol=1e-13)
    single = space.noise(grid(12, 8), Draws(4, [3]), "n", 3, torch.float32)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), alone, rtol=0, atol=1e-5)
    half = space.noise(grid(12, 8), Draws(4, [3]), "n", 3, torch.bfloat16)
    assert half.dtype == torch.bfloat16 and bool(half.isfinite().all())
    assert not torch.equal(whole[3, ..., 0], whole[3, ..., 1])
    later = space.noise(grid(12, 8), Draws(4, [3]), "n", 4, F64)
    assert float((later - alone).std()) > 0.5


def test_holes_are_empty_and_the_rest_does_not_move() -> None:
    space = RandomField((1.0, 1.0), MATERN, channels=1)
    context = grid(10, 10, batch=2)
    mask = context.mask.clone()
    mask[1, 3:6, 2:8] = False
    holed = context.replace(mask=mask)
    x, y = (space.noise(c, Draws(0, [0, 1]), "n") for c in (context, holed))
    assert torch.equal(y, x * mask[..., None])
    assert space.count(holed).tolist() == [100, 82]
    t = torch.rand(2, 10, 10)
    assert torch.equal(space.expand(t, x) * torch.ones_like(x), t[..., None])


CHANNELS = [[2.0, 0.6], [0.6, 0.5]]


@every_boundary
@pytest.mark.parametrize(("size", "shape"), DOMAINS, ids=["1d", "2d", "3d"])
def test_color_is_the_covariance_and_whiten_its_inverse(
    boundary: str, size: tuple[float, ...], shape: tuple[int, ...]
) -> None:
    space = RandomField(size, ROUGH, 2, boundary, channel_covariance=CHANNELS)  # type: ignore[arg-type]
    context, n = grid(*shape, batch=3), math.prod(shape)
    g, y = numbers(3, *shape, 2), numbers(3, *shape, 2, seed=1)
    dense = torch.kron(exact_covariance(space, *shape), torch.tensor(CHANNELS, dtype=F64))
    coloured = space.color(g, context)
    torch.testing.assert_close(coloured.flatten(1), g.flatten(1) @ dense, rtol=0, atol=2e-6)
    torch.testing.assert_close(space.whiten(coloured, context), g, rtol=0, atol=1e-6)
    torch.testing.assert_close(space.color(space.whiten(g, context), context), g, atol=1e-6, rtol=0)
    expected = torch.einsum("bi,ij,bj->b", g.flatten(1), torch.linalg.inv(dense), y.flatten(1))
    torch.testing.assert_close(space.inner(g, y, context), expected, rtol=1e-7, atol=1e-7)
    expected = torch.linalg.slogdet(dense).logabsdet.expand(3)
    torch.testing.assert_close(space.logdet(context), expected, rtol=1e-8, atol=0)
    assert dense.shape == (2 * n, 2 * n)


def test_color_with_holes_is_a_block_of_the_covariance() -> None:
    space = RandomField((1.0, 0.7), MATERN)
    mask = torch.rand(1, 8, 7, generator=torch.Generator().manual_seed(0)) > 0.3
    context, real = Context(mask), mask.flatten()
    g = numbers(1, 8, 7)
    g[~mask] = torch.nan
    block = exact_covariance(space, 8, 7)[real][:, real]
    coloured = space.color(g, context)
    torch.testing.assert_close(coloured[mask], block @ g[mask], rtol=0, atol=1e-7)
    assert not bool(coloured[~mask].any())


def test_noise_of_correlated_channels() -> None:
    n = 2000
    space = RandomField((1.0,), Kernel("white"), 2, "periodic", channel_covariance=CHANNELS)
    z = space.noise(grid(8, batch=n), Draws(0, torch.arange(n)), "n", dtype=F64)
    found = torch.einsum("bic,bid->cd", z, z) / (8 * n)
    torch.testing.assert_close(found, torch.tensor(CHANNELS, dtype=F64), rtol=0, atol=0.05)
    white = z @ torch.linalg.inv(torch.linalg.cholesky(torch.tensor(CHANNELS, dtype=F64)).T)
    assert float((white[:, 1:] * white[:, :-1]).mean().abs()) < 5 / math.sqrt(14 * n)


@every_boundary
def test_the_white_limit(boundary: str) -> None:
    """Short lengths end in white noise, which is its own covariance, gradient and likelihood."""
    context, g = grid(9, 7), numbers(1, 9, 7)
    white = RandomField((1.0, 1.0), Kernel("white"), boundary=boundary, placement="nodes")  # type: ignore[arg-type]
    short = RandomField((1.0, 1.0), Kernel("squared-exponential", 0.01), boundary=boundary)  # type: ignore[arg-type]
    for space in (white, short):
        torch.testing.assert_close(space.color(g, context), g, rtol=0, atol=1e-12)
        torch.testing.assert_close(space.inner(g, g, context), (g**2).sum()[None])
        assert float(space.logdet(context)) == pytest.approx(0, abs=1e-9)


@some_kernels
@every_boundary
def test_scattered_points_have_the_law_of_the_grid(kernel: Kernel, boundary: str) -> None:
    on_grid = RandomField((1.0, 0.5), kernel, boundary=boundary)  # type: ignore[arg-type]
    space = RandomField((1.0, 0.5), kernel, boundary=boundary, points="sensors")  # type: ignore[arg-type]
    x = on_grid.coordinates((4, 3)).flatten(0, 1)
    context = Context(torch.ones(1, 12, dtype=torch.bool), extras={"sensors": x[None]})
    covariance = space.covariance(context)
    rows = covariance.root(torch.eye(12, dtype=F64)[:, None])[:, 0]
    expected = sampled_covariance(on_grid, 4, 3)
    torch.testing.assert_close(rows.T @ rows, expected, rtol=0, atol=3e-8)
    g = numbers(1, 12)
    torch.testing.assert_close(space.color(g, context)[0], expected @ g[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(space.whiten(space.color(g, context), context), g, rtol=0, atol=1e-5)


def test_scattered_points_do_not_know_padding_and_companions() -> None:
    space = RandomField((1.0, 1.0), SQUARED, channels=2, points="sensors")
    x = torch.rand(3, 20, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    x[0, 1] = x[0, 0]  # Two sensors in one place say the same.
    mask = torch.arange(20) < torch.tensor([20, 12, 5])[:, None]
    x[~mask] = torch.nan
    context = Context(mask, extras={"sensors": x})
    z = space.noise(context, Draws(0, [5, 6, 7]), "n", dtype=F64)
    assert bool(z.isfinite().all()) and not bool(z[~mask].any())
    torch.testing.assert_close(z[0, 1], z[0, 0], rtol=0, atol=1e-3)
    alone = context.apply(lambda y: y[1:2, :12])
    torch.testing.assert_close(
        space.noise(alone, Draws(0, [6]), "n", dtype=F64)[0], z[1, :12], rtol=0, atol=1e-9
    )
    expected = RandomField((1.0, 1.0), SQUARED, points="sensors").logdet(alone) * 2
    torch.testing.assert_close(space.logdet(context)[1:2], expected)


class FieldTarget(ExactDenoiser):
    """Data that are a random field themselves: D is diagonal in the Fourier basis.

    D_k = a λ_k/(a² λ_k + s² μ_k) x_k, with λ the spectrum of the data and μ that of the noise.
    """

    def __init__(self, path: GaussianPath, data: RandomField, variance: float):
        super().__init__({"u": path})
        self.path, self.data, self.variance = path, data, variance

    def spectra(self, context: Context) -> tuple[Tensor, Tensor]:
        assert isinstance(self.path.space, RandomField)
        data, noise = (f.covariance(context) for f in (self.data, self.path.space))
        assert isinstance(data, GridCovariance) and isinstance(noise, GridCovariance)
        return self.variance * data.exact, noise.exact

    def exact(self, state: State, times: Mapping[str, Tensor]) -> dict[str, Tensor]:
        data, noise = self.spectra(state.context)
        a, s = (y[:, None, None] for y in self.path.schedule(times["u"]))
        gain = a * data / (a**2 * data + s**2 * noise)
        return {"u": torch.fft.ifft2(gain * torch.fft.fft2(state["u"].double())).real}


@pytest.mark.parametrize("schedule", [Rectified(), Cosine()], ids=str)
def test_a_field_of_another_kernel_is_sampled(schedule: Schedule) -> None:
    """The sampler ends where the flow of every wave ends, x_0 = √(λ/μ) ε, on two grids."""
    noise = RandomField((1.0, 0.6), Kernel("matern", 0.05, 1.5), boundary="periodic")
    data = RandomField((1.0, 0.6), Kernel("matern", 0.15, 2.5), boundary="periodic")
    target = FieldTarget(GaussianPath(noise, schedule, "v"), data, 2.0)
    sampler = Sampler(steps=60, method="ab3")
    for shape in ((16, 12), (32, 24)):
        context, draws = grid(*shape, batch=3), Draws(0, torch.arange(3))
        start = target.path.prior(context, draws, "u/prior", F64)
        x = sampler(target, context, draws, dtype=F64).state["u"]
        data_power, noise_power = target.spectra(context)
        exact = torch.fft.ifft2((data_power / noise_power).sqrt() * torch.fft.fft2(start)).real
        assert float((x - exact).square().mean().sqrt()) < 3e-3


@pytest.mark.parametrize("method", ["ab2", "ddpm"])
def test_samples_have_the_two_point_function_of_the_data(method: str) -> None:
    """Also where fresh noise enters at every step: it has to be the noise of the space."""
    kernel, n, shape = Kernel("matern", 0.08, 2.5), 300, (12, 8)
    noise = RandomField((1.0, 0.6), Kernel("matern", 0.04, 1.5), boundary="periodic")
    data = RandomField((1.0, 0.6), kernel, boundary="periodic")
    target = FieldTarget(GaussianPath(noise, Cosine(), "edm"), data, 2.0)
    sampler = Sampler(steps=160 if method == "ddpm" else 20, method=method)
    context, draws = grid(*shape, batch=n), Draws(1, torch.arange(n))
    x = sampler(target, context, draws, dtype=torch.float32).state["u"]
    power = torch.fft.fft2(x.double()).abs() ** 2
    found = torch.fft.ifft2(power).real.mean(0) / math.prod(shape)
    expected = 2 * exact_covariance(data, *shape)[0].view(shape)
    assert float((found - expected).abs().max()) < 0.06


def test_the_density_of_a_field_is_that_of_its_gaussian() -> None:
    """Along the flow the prior is measured with C⁻¹ and log det C, not as if it were white."""
    shape = (6, 5)
    noise = RandomField((1.0, 0.6), ROUGH, boundary="periodic")
    data = RandomField((1.0, 0.6), Kernel("matern", 0.2, 0.5), boundary="periodic")
    target = FieldTarget(GaussianPath(noise, Cosine(), "edm"), data, 2.0)
    context = grid(*shape, batch=2)
    x = math.sqrt(2) * data.noise(context, Draws(0, [0, 1]), "data", dtype=F64)
    law = torch.distributions.MultivariateNormal(
        torch.zeros(30, dtype=F64), 2 * exact_covariance(data, *shape)
    )
    found = FlowLikelihood(begin=0.0, steps=12)(target, State({"u": x}, context)).log_density
    torch.testing.assert_close(found, law.log_prob(x.flatten(1)), rtol=0, atol=1e-4)


def test_a_coloured_gradient_guides_to_the_posterior_mean() -> None:
    """D + (s²/a) C ∇log p(y | x_t) = E[x_0 | x_t, y] for a sensor y = hᵀx_0 + noise, by kriging.

    With data covariance A and noise covariance C the posterior of x_0 given x_t has covariance
    V = A − a² A (a² A + s² C)⁻¹ A; a gradient that is not coloured misses by far.
    """
    shape, t, error, y = (8, 6), torch.tensor([0.4], dtype=F64), 0.1, 1.7
    noise = RandomField((1.0, 0.6), Kernel("matern", 0.1, 1.5), boundary="periodic")
    data = RandomField((1.0, 0.6), Kernel("matern", 0.2, 2.5), boundary="periodic")
    target = FieldTarget(GaussianPath(noise, Cosine(), "edm"), data, 2.0)
    context, h = grid(*shape), torch.zeros(shape, dtype=F64)
    h[2, 3], h[2, 4] = 0.5, 0.5
    a, s = (float(c) for c in target.path.schedule(t))
    big_a, c = 2 * exact_covariance(data, *shape), exact_covariance(noise, *shape)
    gain = a * big_a @ torch.linalg.inv(a**2 * big_a + s**2 * c)
    v = big_a - a * gain @ big_a
    x = numbers(1, *shape).requires_grad_()
    d = target(State({"u": x}, context), t)["u"]
    torch.testing.assert_close(d.flatten(), gain @ x.flatten(), rtol=0, atol=1e-9)
    spread = h.flatten() @ v @ h.flatten() + error**2
    misfit = y - (h * d[0]).sum()
    (gradient,) = torch.autograd.grad(-0.5 * misfit**2 / spread, x)
    step = s**2 / a * noise.color(gradient, context)
    kriged = (v @ h.flatten() * misfit / spread).view(shape).detach()
    torch.testing.assert_close(step[0], kriged, rtol=0, atol=1e-9)
    assert float((s**2 / a * gradient[0] - kriged).abs().max()) > 0.3 * float(kriged.abs().max())


def test_what_is_refused() -> None:
    with pytest.raises(InputError, match="squared-exponential"):
        Kernel("rbf")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="white"):
        Kernel("matern", 0.0)
    with pytest.raises(InputError, match="above 0"):
        Kernel("matern", 0.1, 0.0)
    with pytest.raises(InputError, match="one to three axes"):
        RandomField((1.0, 0.0), MATERN)
    with pytest.raises(InputError, match="open, periodic"):
        RandomField((1.0,), MATERN, boundary="dirichlet")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="2 length scales for a domain of 1 axes"):
        RandomField((1.0,), Kernel("matern", (0.1, 0.2)))
    with pytest.raises(InputError, match="positive definite"):
        RandomField((1.0,), MATERN, 2, channel_covariance=[[1.0, 2.0], [2.0, 1.0]])
    with pytest.raises(InputError, match="positive definite"):
        RandomField((1.0,), MATERN, channel_covariance=[[1.0]])
    with pytest.raises(InputError, match=r"mask \[B, \*points\]"):
        RandomField((1.0, 1.0), MATERN).noise(grid(8), Draws(0, [0]), "n")
    with pytest.raises(InputError, match="at least 2 points"):
        RandomField((1.0,), MATERN, placement="nodes").noise(grid(1), Draws(0, [0]), "n")
    long = RandomField((1.0,) * 3, Kernel("matern", 5.0, 0.5))
    with pytest.raises(InputError, match="torus"):
        long.noise(grid(64, 64, 64), Draws(0, [0]), "n")
    with pytest.raises(InputError, match=r"extras\['sensors'\]"):
        RandomField((1.0,), MATERN, points="sensors").noise(grid(4), Draws(0, [0]), "n")


def test_where_a_likelihood_is_not_defined() -> None:
    smooth = RandomField((1.0,), Kernel("squared-exponential", 0.3), boundary="periodic")
    with pytest.raises(InputError, match="singular"):
        smooth.whiten(numbers(1, 32), grid(32))
    with pytest.raises(InputError, match="singular"):
        RandomField((1.0,), Kernel("squared-exponential", 0.3)).logdet(grid(64))
    space = RandomField((1.0, 1.0), MATERN)
    with pytest.raises(InputError, match="at most 4096"):
        space.whiten(numbers(1, 65, 64), grid(65, 64))
    holed = Context(torch.rand(1, 8, 8) > 0.5)
    with pytest.raises(InputError, match="holes"):
        space.whiten(numbers(1, 8, 8), holed)
