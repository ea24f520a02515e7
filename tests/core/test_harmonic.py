"""Harmonic noise: its covariance is the pseudo-inverse of the Laplacian, and it is a polymer."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from sciflow.errors import InputError
from sciflow.paths import GaussianPath
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.schedules import Rectified
from sciflow.spaces import Harmonic, ZeroCoM
from sciflow.state import Context, State
from sciflow.testing.targets import ExactDenoiser, all_real

F64 = torch.float64
MASK = torch.arange(7) < torch.tensor([7, 4, 2, 1])[:, None]


def chain_laplacian(n: int) -> Tensor:
    a = torch.diag(torch.ones(n - 1, dtype=F64), 1)
    a = a + a.T
    return torch.diag(a.sum(1)) - a


def ring(n: int, batch: int = 1) -> Tensor:
    i = torch.arange(n)
    step = (i[:, None] - i[None]) % n
    return ((step == 1) | (step == n - 1)).double().expand(batch, n, n)


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=F64)


def test_color_is_the_pseudo_inverse_of_the_laplacian() -> None:
    """Of each chain's own length, and zero in padding."""
    space, g = Harmonic(3, bond=1.7), numbers(4, 7, 3)
    coloured = space.color(g, Context(MASK))
    for b, n in enumerate([7, 4, 2, 1]):
        expected = torch.linalg.pinv(chain_laplacian(n)) @ g[b, :n] * 1.7**2 / 3
        torch.testing.assert_close(coloured[b, :n], expected, rtol=0, atol=1e-12)
        assert not bool(coloured[b, n:].any())


def test_the_linear_map_of_the_noise_has_this_covariance() -> None:
    """Exactly: from the factor itself, in any number of dimensions and on any graph."""
    weights = ring(6) * torch.rand(6, 6, generator=torch.Generator().manual_seed(1), dtype=F64)
    weights = weights + weights.transpose(1, 2)
    context = all_real(1, 6).replace(extras={"bonds": weights})
    space = Harmonic(2, bond=0.5, edges="bonds")
    upper = space._factor(context)[0].T
    root = torch.linalg.inv(upper) / space.stiffness**0.5
    root = root - root.mean(0)
    laplacian = torch.diag(weights[0].sum(1)) - weights[0]
    expected = torch.linalg.pinv(laplacian) / space.stiffness
    torch.testing.assert_close(root @ root.T, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(space.laplacian(context)[0], laplacian)


def test_noise_has_the_covariance_and_the_bonds() -> None:
    n, batch = 6, 30_000
    context = all_real(batch, n)
    z = Harmonic(3, bond=2.0).noise(context, Draws(0, torch.arange(batch)), "n", dtype=F64)
    assert float(z.sum(1).abs().max()) < 1e-12
    found = torch.einsum("bic,bjd->icjd", z, z) / batch
    c = torch.linalg.pinv(chain_laplacian(n)) * 4 / 3
    expected = torch.einsum("ij,cd->icjd", c, torch.eye(3, dtype=F64))
    assert float((found - expected).abs().max()) < 6 * float(c.max()) / math.sqrt(batch)
    for k in (1, 3, 5):
        squared = (z[:, k:] - z[:, :-k]).square().sum(-1).mean()
        assert float(squared) == pytest.approx(4 * k, rel=0.02), "an ideal chain: k bonds² apart"


def test_noise_does_not_know_padding_and_companions() -> None:
    space, context = Harmonic(3), Context(MASK)
    z = space.noise(context, Draws(0, torch.arange(4)), "n")
    assert not bool(z[~MASK].any()) and z.dtype == torch.float32
    torch.testing.assert_close(space.project(z, context), z, rtol=0, atol=1e-6)
    longer = Context(torch.nn.functional.pad(MASK, (0, 5)))
    padded = space.noise(longer, Draws(0, torch.arange(4)), "n")
    torch.testing.assert_close(padded[:, :7], z, rtol=0, atol=1e-6)
    alone = space.noise(Context(MASK[1:2, :4]), Draws(0, [1]), "n")
    torch.testing.assert_close(alone[0], z[1, :4], rtol=0, atol=1e-6)


def test_whiten_inner_and_logdet() -> None:
    space, context = Harmonic(3, bond=1.3), Context(MASK)
    g = ZeroCoM(3).project(numbers(4, 7, 3), context)
    for back in (space.whiten(space.color(g, context), context),
                 space.color(space.whiten(g, context), context)):  # fmt: skip
        torch.testing.assert_close(back, g, rtol=0, atol=1e-12)
    inner, logdet = space.inner(g, g, context), space.logdet(context)
    for b, n in enumerate([7, 4, 2, 1]):
        laplacian = chain_laplacian(n) * 3 / 1.3**2
        expected = torch.einsum("ic,ij,jc->", g[b, :n], laplacian, g[b, :n])
        assert float(inner[b]) == pytest.approx(float(expected), abs=1e-9)
        values = torch.linalg.eigvalsh(laplacian)[1:]
        assert float(logdet[b]) == pytest.approx(-3 * float(values.log().sum()), abs=1e-9)


def test_given_points_hold_the_frame() -> None:
    given = torch.zeros(4, 7, dtype=torch.bool)
    given[0, 2] = True
    context = Context(MASK, given={"x": given})
    space = Harmonic(3, field="x")
    z = space.noise(context, Draws(0, torch.arange(4)), "n", dtype=F64)
    assert float(z[0].sum(0).abs().max()) > 0.1 and float(z[1:].sum(1).abs().max()) < 1e-12
    m = chain_laplacian(7) + 1 / 7
    g = numbers(4, 7, 3)
    expected = torch.linalg.inv(m) @ g[0] / space.stiffness
    torch.testing.assert_close(space.color(g, context)[0], expected, rtol=0, atol=1e-12)
    values = torch.linalg.eigvalsh(m).log().sum() + 7 * math.log(3)
    assert float(space.logdet(context)[0]) == pytest.approx(-3 * float(values))


def test_a_path_with_harmonic_noise_samples_a_polymer() -> None:
    """Data with the covariance of the noise itself, times v: D is a scalar in every mode."""

    class Polymer(ExactDenoiser):
        def exact(self, state: State, times: Mapping[str, Tensor]) -> dict[str, Tensor]:
            a, s = (y[:, None, None] for y in self.paths["x"].schedule(times["x"]))
            return {"x": a * 4 / (a**2 * 4 + s**2) * state["x"].double()}

    context, draws = Context(MASK), Draws(0, torch.arange(4))
    path = GaussianPath(Harmonic(3), Rectified(), "velocity")
    x = Sampler(steps=40, method="ab3")(Polymer({"x": path}), context, draws, dtype=F64).state["x"]
    start = path.prior(context, draws, "x/prior", F64)
    torch.testing.assert_close(x, 2 * start, rtol=0, atol=2e-3)


def test_what_is_refused() -> None:
    with pytest.raises(InputError, match="above 0"):
        Harmonic(3, bond=0.0)
    space, g = Harmonic(3, edges="bonds"), numbers(1, 4, 3)
    with pytest.raises(InputError, match="got nothing"):
        space.color(g, all_real(1, 4))
    pieces = torch.zeros(1, 4, 4)
    pieces[0, 0, 1] = pieces[0, 1, 0] = pieces[0, 2, 3] = pieces[0, 3, 2] = 1
    with pytest.raises(InputError, match=r"sample 0 .* in pieces"):
        space.color(g, all_real(1, 4).replace(extras={"bonds": pieces}))
    for bad in (ring(4).triu(), -ring(4)):
        with pytest.raises(InputError, match="symmetric and not negative"):
            space.color(g, all_real(1, 4).replace(extras={"bonds": bad}))
