"""The rotation read off a noisy point cloud: proper, uniform, indifferent to order and padding."""

from __future__ import annotations

import pytest
import torch

from sciflow.networks.rotations import rotation_from_points


def clouds(m: int, n: int, noise: float, seed: int = 0) -> torch.Tensor:
    """One cloud seen ``m`` times under fresh noise of the given size."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(1, n, 3, generator=g) + noise * torch.randn(m, n, 3, generator=g)
    return x - x.mean(1, keepdim=True)


def test_rotations_are_proper() -> None:
    x = clouds(50, 9, 1.0)
    r = rotation_from_points(x, torch.ones(50, 9, dtype=torch.bool)).double()
    torch.testing.assert_close(r @ r.mT, torch.eye(3, dtype=torch.double).expand(50, 3, 3),
                               atol=1e-6, rtol=0)  # fmt: skip
    assert bool((r.det() > 0.999).all())


@pytest.mark.parametrize("noise", [1.0, 0.03])
def test_rotations_are_uniform(noise: float) -> None:
    """Moments of the Haar measure: E R = 0, E R² = 1/3, E tr R = 0, E tr² R = 1 (±5 σ)."""
    m = 20000
    x = clouds(m, 18, noise)
    r = rotation_from_points(x, torch.ones(m, 18, dtype=torch.bool)).double()
    trace = r.diagonal(dim1=1, dim2=2).sum(1)
    assert float(r.mean(0).abs().max()) < 5 * (1 / 3 / m) ** 0.5
    assert float((r.square().mean(0) - 1 / 3).abs().max()) < 5 * (4 / 45 / m) ** 0.5
    assert abs(float(trace.mean())) < 5 / m**0.5
    assert abs(float(trace.square().mean()) - 1) < 5 * (2 / m) ** 0.5


def test_rotations_ignore_order_padding_and_companions() -> None:
    x = clouds(4, 7, 1.0)
    r = rotation_from_points(x, torch.ones(4, 7, dtype=torch.bool))
    padded = torch.cat((x.flip(1), torch.full((4, 3, 3), 9.0)), 1)
    mask = torch.arange(10).expand(4, 10) < 7
    torch.testing.assert_close(rotation_from_points(padded, mask)[1:2], r[1:2], atol=1e-6, rtol=0)


def test_rounding_is_not_amplified() -> None:
    """Two ranks may pad, hence round, differently; their rotations must still agree."""
    x = clouds(200, 18, 1.0)
    near = x + 6e-8 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(200, 18, dtype=torch.bool)
    change = (rotation_from_points(x, mask) - rotation_from_points(near, mask)).abs()
    assert float(change.median()) < 1e-3
    assert float(change.max()) < 2e-2


def test_no_points_and_one_point() -> None:
    for n in (0, 1):
        r = rotation_from_points(torch.zeros(2, n, 3), torch.ones(2, n, dtype=torch.bool))
        assert bool(r.isfinite().all())
