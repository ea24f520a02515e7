"""The sparse network: exact neighbours, linear cost, what reaches whom."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sciflow.networks.neighbours import neighbours
from sciflow.networks.sparse import SparseMessagePassing
from sciflow.state import Context

from .cases import build, make


def brute_force(x: Tensor, sample: Tensor, cutoff: float) -> Tensor:
    d = (x[:, None] - x).square().sum(-1).sqrt()
    near = (d <= cutoff) & (sample[:, None] == sample)
    return near.triu(1).nonzero().T


def uniform(n: int, seed: int = 0) -> Tensor:
    """Points at density 1 in a cube."""
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, generator=g, dtype=torch.float64) * n ** (1 / 3)


@pytest.mark.parametrize("cutoff", [0.5, 1.5, 100.0])
def test_neighbours_are_exact(cutoff: float) -> None:
    x, sample = uniform(120), torch.arange(120) % 3
    x[7] = x[4]
    assert torch.equal(neighbours(x, sample, cutoff), brute_force(x, sample, cutoff))


def test_neighbours_survive_far_and_broken_points() -> None:
    x, sample = uniform(30), torch.zeros(30, dtype=torch.int64)
    x[3], x[4, 1], x[5] = 1e30, torch.nan, torch.inf
    keep = [i for i in range(30) if i not in (3, 4, 5)]
    got = neighbours(x, sample, 1.5)
    want = torch.tensor(keep)[brute_force(x[keep], sample[keep], 1.5)]
    assert torch.equal(got, want)


@pytest.mark.parametrize("n", [0, 1])
def test_few_points_have_no_neighbours(n: int) -> None:
    for limit in (None, 4):
        got = neighbours(torch.zeros(n, 3), torch.zeros(n, dtype=torch.int64), 1.0, limit)
        assert got.shape == (2, 0)


def test_a_limit_keeps_the_nearest_within_the_cutoff() -> None:
    x, sample, k = uniform(150), torch.arange(150) % 2, 5
    near = (x[:, None] - x).square().sum(-1).sqrt()
    near[(sample[:, None] != sample) | (near > 1.8)] = torch.inf
    near.fill_diagonal_(torch.inf)
    d, partner = near.topk(k, largest=False)
    chosen = torch.zeros(150, 150, dtype=torch.bool)
    chosen[torch.arange(150)[:, None].expand(-1, k)[d < torch.inf], partner[d < torch.inf]] = True
    want = (chosen | chosen.T).triu(1).nonzero().T
    assert torch.equal(neighbours(x, sample, 1.8, k), want)


def test_a_limit_bounds_noise_however_dense() -> None:
    """Noise of unit variance becomes denser with every point: the cutoff alone is quadratic."""
    g = torch.Generator().manual_seed(0)
    for n in (400, 1600):
        x, sample = torch.randn(n, 3, generator=g), torch.zeros(n, dtype=torch.int64)
        free, capped = (neighbours(x, sample, 2.0, k).shape[1] for k in (None, 16))
        assert capped <= 16 * n
        assert free > 0.1 * n * n


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, Tensor):
                # Storage, so that an expanded view does not count as if it were memory.
                self.elements = max(self.elements, x.untyped_storage().nbytes() // x.element_size())
        return out


def test_cost_is_linear_from_200_to_3200_points() -> None:
    network = build(SparseMessagePassing, pairs={}, dim=16, vectors=4, pair_dim=8, depth=1,
                    radial=6, cutoff=1.5, self_conditioning=False).float()  # fmt: skip
    edges, largest = [], []
    for n in (200, 800, 3200):
        inputs = {
            "coords": uniform(n).float()[None],
            "types": torch.ones(1, n, dtype=torch.int64),
            "charges": torch.ones(1, n, dtype=torch.int64),
        }
        context = Context(torch.ones(1, n, dtype=torch.bool))
        levels = {k: torch.zeros(1) for k in inputs}
        graph, _ = network.graph(inputs, context.mask)
        with torch.no_grad(), LargestTensor() as seen:
            out = network(inputs, levels, context, None)
        assert bool(out["coords"].isfinite().all())
        edges.append(graph.shape[1] / n)
        largest.append(seen.elements / n)
    # 4/3 π 1.5³ / 2 = 7.07 pairs a point in the bulk, fewer at the surface of a small cube.
    assert edges[0] < edges[1] < edges[2] < 7.07
    assert edges[2] / edges[0] < 1.5
    assert edges[2] / edges[1] < 1.2
    # Elements a point of the largest tensor grow as edges a point do; all pairs would be 3200.
    assert largest[2] / largest[0] < 1.5
    assert largest[2] < 1000


def test_points_out_of_reach_do_not_matter_unless_bonded() -> None:
    """Two clusters ten cutoffs apart."""
    network = build(SparseMessagePassing)
    case = make([6], previous=False)
    x = case.inputs["coords"]
    x[:, :3] *= 0.3
    x[:, 3:] = 0.3 * x[:, 3:] + 20.0
    case.inputs["bonds"].zero_()

    def first_half(end: float, symbol: int) -> Tensor:
        case.inputs["coords"] = x.clone()
        case.inputs["coords"][:, 4] += end
        case.inputs["bonds"][:, 0, 3] = case.inputs["bonds"][:, 3, 0] = symbol
        return case.run(network)["types"][:, :3]

    assert torch.equal(first_half(0.0, 0), first_half(0.2, 0))
    assert float((first_half(0.0, 2) - first_half(0.2, 2)).abs().max()) > 1e-4
    # A masked pair is not a bond: it makes no edge.
    degree_only = (first_half(0.0, 5) - first_half(0.2, 5)).abs().max()
    assert float(degree_only) == 0


def test_pairs_outside_the_graph_are_none_and_the_cutoff_is_continuous() -> None:
    network = build(SparseMessagePassing)
    case = make([5], previous=False)
    case.inputs["bonds"].zero_()
    x = 0.2 * case.inputs["coords"]

    def at(distance: float) -> dict[str, Tensor]:
        moved = x.clone()
        moved[0, 4] = moved[0, :4].mean(0) + torch.tensor([distance, 0.0, 0.0])
        case.inputs["coords"] = moved
        return case.run(network)

    far = at(9.0)["bonds"][0, 0, 4].softmax(-1)
    assert float(far[0]) > 1 - 1e-6
    d = float((x[0, 0] - x[0, :4].mean(0))[0])
    edge = 2.0 + d
    inside, outside = at(edge - 1e-5), at(edge + 1e-5)
    for name, value in inside.items():
        assert float((value - outside[name]).abs().max()) < 1e-2, name
    assert float((at(edge - 0.5)["bonds"] - outside["bonds"]).abs().max()) > 0.1


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="cutoff must be positive"):
        build(SparseMessagePassing, cutoff=0.0)
    with pytest.raises(ValueError, match="limit must be at least 1"):
        build(SparseMessagePassing, limit=0)
