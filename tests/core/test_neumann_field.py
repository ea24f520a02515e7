"""Random fields with Neumann walls: cosines, mirror images and the law of Darcy data agree."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn
from torch import Tensor

from sciflow.errors import InputError
from sciflow.random import Draws
from sciflow.spaces import Kernel, RandomField
from sciflow.spaces.cosine_covariance import CosineCovariance
from sciflow.state import Context

F64 = torch.float64
ROUGH = Kernel("matern", 0.2, 0.5)
SMOOTH = Kernel("matern", 0.15, 2.5)
SQUARED = Kernel("squared-exponential", 0.08)
DARCY = Kernel("matern", math.sqrt(2) / 3, 1.0)
some_kernels = pytest.mark.parametrize("kernel", [ROUGH, SMOOTH, DARCY, SQUARED], ids=str)
both_placements = pytest.mark.parametrize("placement", ["cells", "nodes"])
DOMAINS: list[tuple[tuple[float, ...], tuple[int, ...]]] = [
    ((1.5,), (20,)),
    ((1.0, 0.6), (7, 6)),
    ((0.4, 0.5, 0.3), (3, 4, 2)),
]
every_domain = pytest.mark.parametrize(("size", "shape"), DOMAINS, ids=["1d", "2d", "3d"])
GRIDS = [(32, 32), (64, 64), (128, 128), (48, 80)]
CHANNELS = [[2.0, 0.6], [0.6, 0.5]]


def walled(
    size: tuple[float, ...],
    kernel: Kernel,
    placement: Literal["cells", "nodes"] = "cells",
    channels: int | None = None,
    mixing: list[list[float]] | None = None,
) -> RandomField:
    return RandomField(size, kernel, channels, "neumann", placement, mixing)


def grid(*shape: int, batch: int = 1) -> Context:
    return Context(torch.ones(batch, *shape, dtype=torch.bool))


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def cosine(space: RandomField, *shape: int) -> CosineCovariance:
    covariance = space.covariance(grid(*shape))
    assert isinstance(covariance, CosineCovariance)
    return covariance


def linear_map(space: RandomField, *shape: int) -> Tensor:
    """The fields of single modes, ``[*modes, *points]``."""
    n = math.prod(shape)
    unit = torch.eye(n, dtype=F64).view(n, *shape)
    return cosine(space, *shape).root(unit).view(*shape, *shape)


def sampled_covariance(space: RandomField, *shape: int) -> Tensor:
    rows = linear_map(space, *shape).reshape(math.prod(shape), -1)
    return rows.T @ rows


def images(space: RandomField, x: Tensor, y: Tensor) -> Tensor:
    """The closed form between points ``[n, d]`` and ``[m, d]``."""
    rows, columns = ([p[:, i] for i in range(len(space.size))] for p in (x, y))
    return space.kernel.mirrored([a[:, None] for a in rows], [b[None] for b in columns], space.size)


def exact_covariance(space: RandomField, *shape: int) -> Tensor:
    x = space.coordinates(shape).flatten(0, -2)
    return images(space, x, x)


def density(kernel: Kernel, *omega: Tensor) -> Tensor:
    """Spectral density up to a factor, at wave numbers by axis."""
    square = torch.stack(torch.broadcast_tensors(*(w**2 for w in omega))).sum(0)
    length = kernel.lengths(1)[0]
    if kernel.kind == "squared-exponential":
        return (-square * length**2 / 2).exp()
    return (1 + square * length**2 / (2 * kernel.nu)) ** (-kernel.nu - len(omega) / 2)


@pytest.mark.parametrize("kernel", [SMOOTH, SQUARED], ids=str)
@both_placements
def test_the_covariance_is_its_series_of_cosines(kernel: Kernel, placement: str) -> None:
    """Σ λ_k φ_k(x) φ_k(y), λ_k = S(πk/L)/Σ S: all modes of the function, at points of a grid."""
    length, n, modes = 0.7, 14, 6000
    space = walled((length,), kernel, placement)  # type: ignore[arg-type]
    k = torch.arange(modes, dtype=F64)
    power = density(kernel, math.pi * k / length)
    power = power / power.sum()
    x = space.coordinates((n,))[:, 0]
    waves = (math.pi / length * k[:, None] * x).cos() * (1.0 + (k > 0).double()).sqrt()[:, None]
    series = waves.T @ (power[:, None] * waves)
    torch.testing.assert_close(sampled_covariance(space, n), series, rtol=0, atol=1e-10)


@both_placements
def test_single_modes_are_cosines_of_the_root_of_the_density(placement: str) -> None:
    """ε = Σ λ_k^{1/2} ξ_k φ_k on a rectangle, mode by mode, where no finer mode adds anything."""
    length, height, shape = 1.0, 0.6, (14, 10)
    kernel = Kernel("squared-exponential", 0.2)
    space = walled((length, height), kernel, placement)  # type: ignore[arg-type]
    wide = torch.arange(60, dtype=F64)
    total = density(kernel, math.pi * wide[:, None] / length, math.pi * wide / height).sum()
    found, points = linear_map(space, *shape), space.coordinates(shape)
    for i, j in [(0, 0), (1, 0), (0, 2), (3, 1), (4, 4)]:
        wave = (math.pi * i * points[..., 0] / length).cos() * (
            math.pi * j * points[..., 1] / height
        ).cos()
        omega = [torch.tensor(math.pi * i / length), torch.tensor(math.pi * j / height)]
        power = density(kernel, *(w.double() for w in omega)) / total
        amplitude = float((power * 2 ** ((i > 0) + (j > 0))).sqrt())
        torch.testing.assert_close(found[i, j], amplitude * wave, rtol=0, atol=1e-7)


def test_the_law_of_darcy_data_is_a_member() -> None:
    """(−Δ + 9)^{−2} on the unit square: λ_k ∝ (π²|k|² + 9)^{−2}, but for mode 0 and the scale.

    The generator of Li et al. 2021 has coef = τ^{α−1} (π²|k|² + τ²)^{−α/2} with α = 2, τ = 3, times
    the numbers of an orthonormal DCT-II.
    """
    n = 128
    k = torch.arange(2000, dtype=F64)
    power = (math.pi**2 * (k[:, None] ** 2 + k**2) + 9) ** -2
    r = cosine(walled((1.0, 1.0), DARCY), n, n).exact
    low = slice(0, 6)
    found, expected = r[low, low] / n**2, power[low, low] / power.sum()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    coef = 3 * (math.pi**2 * (k[low, None] ** 2 + k[low] ** 2) + 9) ** -1
    ratio = (n * coef) ** 2 / r[low, low]
    torch.testing.assert_close(ratio, ratio[0, 0].expand(6, 6), rtol=1e-5, atol=0)


@some_kernels
@both_placements
@every_domain
def test_the_linear_map_of_the_noise_has_the_kernel_and_its_images(
    kernel: Kernel, placement: str, size: tuple[float, ...], shape: tuple[int, ...]
) -> None:
    space = walled(size, kernel, placement)  # type: ignore[arg-type]
    found = sampled_covariance(space, *shape)
    torch.testing.assert_close(found, exact_covariance(space, *shape), rtol=0, atol=1e-12)
    assert float(found.std()) > 0.01


@pytest.mark.parametrize(
    ("kernel", "shape"),
    [(kernel, shape) for kernel in (SMOOTH, SQUARED) for shape in GRIDS]
    + [(ROUGH, (32, 32)), (ROUGH, (48, 80))],
    ids=str,
)
def test_two_point_function_on_every_grid(kernel: Kernel, shape: tuple[int, int]) -> None:
    """Rows of the linear map, by its own derivative, against the closed form of the function.

    At points of one place on every grid, 1/32 from a wall, and at one in a corner: no tolerance
    for the resolution, even of a kernel whose tail a coarse grid would lose.
    """
    space = walled((1.0, 1.0), kernel, "nodes")
    nodes = (shape[0] + 1, shape[1] + 1)
    covariance = cosine(space, *nodes)
    z = torch.zeros(1, *nodes, dtype=F64, requires_grad=True)
    field, places = covariance.root(z), [(0, 0), (0, 8), (1, 4), (8, 8), (9, 12)]
    rows, points = [], []
    for i, j in places:
        at = (i * shape[0] // 16, j * shape[1] // 16)
        (row,) = torch.autograd.grad(field[0, *at], z, retain_graph=True)
        rows.append(row.flatten())
        points.append(space.coordinates(nodes)[at])
    a, x = torch.stack(rows), torch.stack(points)
    torch.testing.assert_close(x, torch.tensor(places, dtype=F64) / 16, rtol=0, atol=1e-12)
    torch.testing.assert_close(a @ a.T, images(space, x, x), rtol=0, atol=1e-11)
    cells = walled((1.0, 1.0), kernel)
    unit = torch.zeros(1, *shape, dtype=F64)
    unit[0, 3, 5] = 1
    y = cells.coordinates(shape)
    expected = images(cells, y[3, 5][None], y.flatten(0, 1)).view(1, *shape)
    torch.testing.assert_close(cells.color(unit, grid(*shape)), expected, rtol=0, atol=1e-11)


def test_samples_have_the_two_point_function() -> None:
    n, space = 2000, walled((1.0,), SMOOTH)
    x = space.noise(grid(16, batch=n), Draws(0, torch.arange(n)), "n", dtype=F64)
    exact = exact_covariance(space, 16)
    own = exact.diagonal()
    error = ((own[:, None] * own + exact**2) / n).sqrt()
    assert float(((x.T @ x / n - exact) / error).abs().max()) < 4.5


@some_kernels
def test_the_mean_variance_is_one_and_rises_at_a_wall(kernel: Kernel) -> None:
    space = walled((1.0, 0.6), kernel)
    r = cosine(space, 96, 64).exact
    # trace C/n: the midpoint rule of the variance, which is rough as the kernel is.
    assert float(r.mean()) == pytest.approx(1, abs=1e-2 if kernel == ROUGH else 2e-4)
    x = torch.tensor([[0.5, 0.3], [0.0, 0.3], [0.0, 0.0]], dtype=F64)
    inside, wall, corner = images(space, x, x).diagonal().tolist()
    if kernel == SQUARED:
        assert wall / inside == pytest.approx(2, abs=1e-3)
        assert corner / inside == pytest.approx(4, abs=1e-3)
    assert inside < 1 < wall < corner


def test_the_normal_derivative_vanishes_at_a_wall() -> None:
    """(ε(h) − ε(0))/h falls as h, because ε is even about the wall; inside it tends to ε'."""
    slopes = {}
    for n in (33, 65, 129):
        space = walled((1.0,), SQUARED, "nodes")
        c, h = sampled_covariance(space, n), space.steps((n,))[0]
        for name, i in (("wall", 0), ("inside", n // 2)):
            variance = c[i, i] + c[i + 1, i + 1] - 2 * c[i, i + 1]
            slopes[name, n] = float(variance.clamp(min=0).sqrt()) / h
    assert slopes["wall", 33] / slopes["wall", 65] == pytest.approx(2, rel=0.05)
    assert slopes["wall", 65] / slopes["wall", 129] == pytest.approx(2, rel=0.02)
    assert slopes["inside", 65] / slopes["inside", 129] == pytest.approx(1, rel=0.01)
    assert slopes["wall", 129] < 0.15 * slopes["inside", 129]


@pytest.mark.parametrize("shape", [(9,), (6, 7), (4, 3, 5)], ids=str)
@both_placements
def test_the_product_is_made_of_dcts_of_scipy(placement: str, shape: tuple[int, ...]) -> None:
    """Orthonormal DCT-II of cells; DCT-I of nodes, with halves at the ends."""
    space = walled((1.0,) * len(shape), SMOOTH, placement)  # type: ignore[arg-type]
    r, x = cosine(space, *shape).exact.numpy(), numbers(1, *shape)
    y = x[0].numpy()
    if placement == "cells":
        expected = idctn(r * dctn(y, type=2, norm="ortho"), type=2, norm="ortho")
    else:
        for axis, n in enumerate(shape):
            halves = np.ones(n)
            halves[[0, -1]] = 0.5
            y = y / halves.reshape([n if axis == b else 1 for b in range(len(shape))])
        expected = idctn(r * dctn(y, type=1), type=1)
    torch.testing.assert_close(
        space.color(x, grid(*shape))[0], torch.from_numpy(expected), rtol=0, atol=1e-12
    )


@both_placements
@every_domain
def test_color_is_the_covariance_and_whiten_its_inverse(
    placement: str, size: tuple[float, ...], shape: tuple[int, ...]
) -> None:
    space = walled(size, ROUGH, placement, 2, CHANNELS)  # type: ignore[arg-type]
    context = grid(*shape, batch=3)
    g, y = numbers(3, *shape, 2), numbers(3, *shape, 2, seed=1)
    dense = torch.kron(exact_covariance(space, *shape), torch.tensor(CHANNELS, dtype=F64))
    inverse = torch.linalg.inv(dense)
    coloured, white = space.color(g, context), space.whiten(g, context)
    torch.testing.assert_close(coloured.flatten(1), g.flatten(1) @ dense, rtol=0, atol=1e-11)
    torch.testing.assert_close(white.flatten(1), g.flatten(1) @ inverse, rtol=1e-9, atol=1e-9)
    expected = torch.einsum("bi,ij,bj->b", g.flatten(1), inverse, y.flatten(1))
    torch.testing.assert_close(space.inner(g, y, context), expected, rtol=1e-9, atol=1e-9)
    expected = torch.linalg.slogdet(dense).logabsdet.expand(3)
    torch.testing.assert_close(space.logdet(context), expected, rtol=1e-10, atol=1e-10)
    x = g.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(space.inner(x, x, context).sum() / 2, x)
    torch.testing.assert_close(gradient, white, rtol=1e-9, atol=1e-9)


@both_placements
def test_a_large_grid_has_an_inverse(placement: str) -> None:
    space = walled((1.0, 0.8), ROUGH, placement)  # type: ignore[arg-type]
    g = numbers(1, 120, 96)
    back = space.whiten(space.color(g, grid(120, 96)), grid(120, 96))
    torch.testing.assert_close(back, g, rtol=0, atol=1e-9)


def test_one_seed_is_one_field_at_every_resolution() -> None:
    """A number belongs to its mode: the coarse field is the fine one at its nodes."""
    space = walled((1.0, 1.0), SQUARED, "nodes")
    coarse, fine = (
        space.noise(grid(n + 1, n + 1), Draws(1, [7]), "n", dtype=F64)[0] for n in (40, 80)
    )
    torch.testing.assert_close(fine[::2, ::2], coarse, rtol=0, atol=1e-6)
    other = space.noise(grid(41, 41), Draws(1, [8]), "n", dtype=F64)[0]
    assert float((other - coarse).std()) > 0.5


def test_a_sample_does_not_know_its_companions_holes_or_the_type() -> None:
    space = walled((1.0, 0.5), SMOOTH, channels=2)
    context = grid(12, 8, batch=5)
    whole = space.noise(context, Draws(4, torch.arange(5)), "n", 3, F64)
    alone = space.noise(grid(12, 8), Draws(4, [3]), "n", 3, F64)
    torch.testing.assert_close(alone[0], whole[3], rtol=0, atol=1e-13)
    single = space.noise(grid(12, 8), Draws(4, [3]), "n", 3, torch.float32)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), alone, rtol=0, atol=1e-5)
    mask = context.mask.clone()
    mask[1, 3:6, 2:7] = False
    holed = space.noise(context.replace(mask=mask), Draws(4, torch.arange(5)), "n", 3, F64)
    torch.testing.assert_close(holed, whole * mask[..., None], rtol=0, atol=1e-13)


@some_kernels
def test_scattered_points_have_the_law_of_the_grid(kernel: Kernel) -> None:
    on_grid = walled((1.0, 0.5), kernel, "nodes")
    space = RandomField((1.0, 0.5), kernel, boundary="neumann", points="sensors")
    x = on_grid.coordinates((4, 3)).flatten(0, 1)
    context = Context(torch.ones(1, 12, dtype=torch.bool), extras={"sensors": x[None]})
    g, expected = numbers(1, 12), sampled_covariance(on_grid, 4, 3)
    torch.testing.assert_close(space.color(g, context)[0], expected @ g[0], rtol=0, atol=1e-7)


@both_placements
def test_white_noise_has_no_walls(placement: str) -> None:
    space = walled((1.0, 1.0), Kernel("white"), placement)  # type: ignore[arg-type]
    context, g = grid(9, 7), numbers(1, 9, 7)
    torch.testing.assert_close(space.color(g, context), g, rtol=0, atol=1e-12)
    torch.testing.assert_close(space.inner(g, g, context), (g**2).sum()[None])
    assert float(space.logdet(context)) == pytest.approx(0, abs=1e-12)


def test_what_is_refused() -> None:
    smooth = walled((1.0,), Kernel("squared-exponential", 0.3))
    with pytest.raises(InputError, match="singular"):
        smooth.whiten(numbers(1, 64), grid(64))
    with pytest.raises(InputError, match="at least 2 points"):
        walled((1.0,), SMOOTH, "nodes").noise(grid(1), Draws(0, [0]), "n")
    with pytest.raises(InputError, match="holes"):
        walled((1.0, 1.0), SMOOTH).whiten(numbers(1, 8, 8), Context(torch.rand(1, 8, 8) > 0.5))
