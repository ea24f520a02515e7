"""Low-pass references: filters are linear projections, and samples have exactly Φ(y)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sciflow.errors import InputError
from sciflow.guidance.editing.low_pass import AveragePool, FourierLowPass, LowPass, LowPassReference
from sciflow.paths import CategoricalPath, GaussianPath
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.schedules import Rectified, VPLinear
from sciflow.spaces import Euclidean, Tokens, ZeroCoM
from sciflow.state import Context, State
from sciflow.testing.targets import DiagonalGaussian, NamedMixture, all_real
from sciflow.training.gaussian_fit import GaussianDenoiser

LENGTH = 7
FILTERS: list[LowPass] = [AveragePool(3), AveragePool(1), FourierLowPass(0), FourierLowPass(2)]


def draws(n: int, seed: int = 0) -> Draws:
    return Draws(seed, torch.arange(n))


def normals(n: int, *shape: int, stream: str = "x") -> Tensor:
    return draws(n, 3).normal(shape, stream, dtype=torch.float64)


def series() -> GaussianDenoiser:
    """A walk: neighbours are alike."""
    steps = torch.arange(1.0, LENGTH + 1).double()
    path = GaussianPath(Euclidean(1), Rectified())
    return GaussianDenoiser(path, torch.zeros(LENGTH, 1), torch.minimum(steps[:, None], steps) / 3)


@pytest.mark.parametrize("low_pass", FILTERS, ids=str)
def test_filters_are_linear_projections(low_pass: LowPass) -> None:
    x, y = normals(3, LENGTH, 2), normals(3, LENGTH, 2, stream="y")
    real = torch.ones(3, LENGTH, 1, dtype=torch.bool)
    once = low_pass(x, real)
    torch.testing.assert_close(low_pass(once, real), once)
    torch.testing.assert_close(low_pass(2 * x - y, real), 2 * once - low_pass(y, real))
    # Symmetric: what is left is at right angles to what is kept.
    torch.testing.assert_close((once * (x - once)).sum((1, 2)), torch.zeros(3).double())


def test_filters_by_hand() -> None:
    x = torch.tensor([[1.0, 2.0, 6.0, 5.0, 7.0]], dtype=torch.float64)
    real = torch.ones(1, 5, dtype=torch.bool)
    assert AveragePool(3)(x, real).tolist() == [[3.0, 3.0, 3.0, 6.0, 6.0]]
    real[0, 4] = False
    assert AveragePool(3)(x, real).tolist() == [[3.0, 3.0, 3.0, 5.0, 0.0]]
    grid = torch.arange(16.0).view(1, 4, 4).double()
    real = torch.ones(1, 4, 4, dtype=torch.bool)
    blocks = AveragePool(2, (1, 2))(grid, real)
    assert blocks[0, ::2, ::2].tolist() == [[2.5, 4.5], [10.5, 12.5]]
    angle = torch.arange(8.0).double() * torch.pi / 4
    waves = 3 + angle.sin() + (2 * angle).cos() + (3 * angle).sin()
    field = waves[None, :, None].expand(1, 8, 4)
    real = torch.ones(1, 8, 4, dtype=torch.bool)
    kept = (3 + angle.sin() + (2 * angle).cos())[None, :, None].expand(1, 8, 4)
    torch.testing.assert_close(FourierLowPass(2, (1, 2))(field, real), kept)


@pytest.mark.parametrize("method", ["ab3", "heun", "ddpm", "dpmpp2m"])
@pytest.mark.parametrize("low_pass", FILTERS, ids=str)
def test_samples_have_the_reference_s_low_frequencies_exactly(low_pass: LowPass,
                                                              method: str) -> None:  # fmt: skip
    n, y = 4, 3 + normals(4, LENGTH, 1)
    real = torch.ones(n, LENGTH, 1, dtype=torch.bool)
    model = LowPassReference(series(), {"x": y}, low_pass)
    x = Sampler(steps=8, method=method)(model, all_real(n, LENGTH), draws(n),
                                        dtype=torch.float64).state["x"]  # fmt: skip
    torch.testing.assert_close(low_pass(x, real), low_pass(y, real), rtol=0, atol=1e-10)
    if low_pass != AveragePool(1):
        assert float((x - y).abs().mean()) > 0.05


def test_what_the_filter_does_not_see_stays_as_it_was_where_it_is_independent() -> None:
    """White data: high frequencies know nothing of low ones, and keep law and bits of the run."""
    target = DiagonalGaussian(GaussianPath(Euclidean(1), VPLinear()), torch.ones(1),
                              torch.full((1,), 0.3))  # fmt: skip
    n, pool = 4, AveragePool(2)
    y, real = normals(4, 6, 1), torch.ones(4, 6, 1, dtype=torch.bool)
    x, plain = (Sampler(steps=8)(m, all_real(n, 6), draws(n), dtype=torch.float64).state["x"]
                for m in (LowPassReference(target, {"x": y}, pool), target))  # fmt: skip
    torch.testing.assert_close(x - pool(x, real), plain - pool(plain, real), rtol=0, atol=1e-10)


def test_a_filter_that_is_no_projection_leaves_what_the_module_says() -> None:
    """(Φ − Φ²)(y − D) is lacking, for Φ a blur."""

    def blur(x: Tensor, real: Tensor) -> Tensor:
        return (x + x.roll(1, 1)) / 2

    y, x = normals(3, LENGTH, 1), normals(3, LENGTH, 1, stream="y")
    state = State({"x": x}, all_real(3, LENGTH))
    real = torch.ones(3, LENGTH, 1, dtype=torch.bool)
    d, found = series()(state, 0.4)["x"], LowPassReference(series(), {"x": y}, blur)(state, 0.4)
    lacking = blur(y, real) - blur(found["x"], real)
    expected = blur(y - d, real) - blur(blur(y - d, real), real)
    torch.testing.assert_close(lacking, expected)


def test_off_is_the_bare_model_bit_for_bit() -> None:
    n, y = 4, normals(4, LENGTH, 1).float()
    sampler = Sampler(steps=8)
    plain = sampler(series(), all_real(n, LENGTH), draws(n)).state["x"]
    for settings in ({"weight": 0.0}, {"interval": (0.0, 1e-6)}):
        model = LowPassReference(series(), {"x": y}, AveragePool(2), **settings)  # type: ignore[arg-type]
        assert torch.equal(sampler(model, all_real(n, LENGTH), draws(n)).state["x"], plain)


def test_weights_and_intervals_act_in_between() -> None:
    """The estimate is linear in the weight, and early guidance alone already moves the mean."""
    state = State({"x": normals(3, LENGTH, 1)}, all_real(3, LENGTH))
    y = 4 + normals(3, LENGTH, 1)
    d = [LowPassReference(series(), {"x": y}, AveragePool(LENGTH), w)(state, 0.5)["x"]
         for w in (0.0, 0.5, 1.0)]  # fmt: skip
    torch.testing.assert_close(d[1], (d[0] + d[2]) / 2)
    means = []
    for interval in ((0.0, 1.0), (0.4, 1.0)):
        model = LowPassReference(series(), {"x": y}, AveragePool(LENGTH), 1.0, interval)
        x = Sampler(steps=20)(model, all_real(3, LENGTH), draws(3),
                              dtype=torch.float64).state["x"]  # fmt: skip
        means.append(float(x.mean()))
    assert means[0] == pytest.approx(float(y.mean())) and 1.0 < means[1] < means[0] - 0.05


def test_neither_companions_nor_padding_matter() -> None:
    means = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [-1.0, -1.5]])
    paths = GaussianPath(Euclidean(2), Rectified()), CategoricalPath(Tokens(3), Rectified())
    target = NamedMixture(*paths, means, 0.1, [1.0] * 3)
    mask = torch.arange(5) < torch.tensor([5, 3, 4])[:, None]
    y = means[0].double() + torch.zeros(3, 5, 2).masked_fill(~mask[..., None], torch.nan)

    def run(y: Tensor, mask: Tensor, d: Draws) -> State:
        model = LowPassReference(target, {"x": y}, AveragePool(2))
        return Sampler(steps=10)(model, Context(mask), d, dtype=torch.float64).state

    whole = run(y, mask, draws(3))
    part = run(y[1:2, :4], mask[1:2, :4], draws(3).rows(torch.tensor([1])))
    torch.testing.assert_close(part["x"], whole["x"][1:2, :4], rtol=0, atol=1e-11)
    assert torch.equal(part["token"], whole["token"][1:2, :4])
    assert not bool(whole["x"][~mask].any())


def test_centred_points_stay_centred() -> None:
    path = GaussianPath(ZeroCoM(1, "x"), Rectified())
    model = GaussianDenoiser(path, torch.zeros(4, 1), torch.eye(4) - 0.25)
    y = normals(2, 4, 1) + 5
    x = Sampler(steps=8)(LowPassReference(model, {"x": y}, AveragePool(2)), all_real(2, 4),
                         draws(2), dtype=torch.float64).state["x"]  # fmt: skip
    torch.testing.assert_close(x.sum(1), torch.zeros(2, 1).double(), rtol=0, atol=1e-10)
    real = torch.ones(2, 4, 1, dtype=torch.bool)
    centred = y - y.mean(1, keepdim=True)
    torch.testing.assert_close(AveragePool(2)(x, real), AveragePool(2)(centred, real))


@pytest.mark.parametrize(("change", "match"), [
    ({"weight": 1.5}, "in 0"), ({"interval": (0.5, 0.2)}, "first <= last"),
    ({"low_pass": {}}, "no low pass"), ({"reference": {"z": torch.zeros(1, 1)}}, "has: x"),
])  # fmt: skip
def test_what_cannot_be(change: dict[str, Any], match: str) -> None:
    settings = {"reference": {"x": torch.zeros(1, LENGTH, 1)}, "low_pass": AveragePool(2)}
    with pytest.raises(InputError, match=match):
        LowPassReference(series(), **{**settings, **change})


def test_shapes_and_padding_that_cannot_be() -> None:
    state = State({"x": normals(1, LENGTH, 1)}, all_real(1, LENGTH))
    with pytest.raises(InputError, match="the reference of 'x'"):
        LowPassReference(series(), {"x": torch.zeros(1, 1)}, AveragePool(2))(state, 0.5)
    with pytest.raises(InputError, match="padding"):
        FourierLowPass(1)(torch.zeros(1, 3), torch.tensor([[True, True, False]]))
    with pytest.raises(InputError, match="1 element or more"):
        AveragePool(0)
