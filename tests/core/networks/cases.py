"""The networks under test with every parameter random, and batches of a little of everything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sciflow.denoisers import Network
from sciflow.networks.equivariant import EquivariantTransformer
from sciflow.networks.sparse import SparseMessagePassing
from sciflow.networks.tensor_field import TensorFieldNetwork
from sciflow.networks.transformer import AugmentedTransformer
from sciflow.state import Context

TOKENS = {"types": (6, 5), "charges": (4, 3)}
PAIRS = {"bonds": (6, 5)}
CONDITIONS = {"gap": (5.0, 2.0), "dipole": (3.0, 1.5)}
CLASSES = {"types": 5, "charges": 3, "bonds": 5}
SIZES = [7, 4, 1, 2]

_SMALL: dict[type[Network], dict[str, float]] = {
    EquivariantTransformer: {"dim": 32, "pair_dim": 16, "depth": 2, "heads": 4, "radial": 12},
    AugmentedTransformer: {"dim": 32, "pair_dim": 16, "depth": 2, "heads": 4, "radial": 12},
    TensorFieldNetwork: {"dim": 32, "pair_dim": 16, "depth": 2, "heads": 4, "radial": 12},
    SparseMessagePassing: {"dim": 32, "vectors": 8, "pair_dim": 16, "depth": 2, "cutoff": 2.0},
}
NETWORKS = list(_SMALL)
EQUIVARIANT = [n for n in NETWORKS if n is not AugmentedTransformer]


def build(kind: type[Network], seed: int = 0, **changes: object) -> Network:
    """A small network in float64 and evaluation mode, no parameter of which is zero."""
    arguments: dict[str, object] = {
        "points": "coords", "tokens": TOKENS, "pairs": PAIRS, "conditions": CONDITIONS,
        **_SMALL[kind], **changes,
    }  # fmt: skip
    torch.manual_seed(seed)
    network = kind(**arguments).double().eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for p in network.parameters():
            if p.ndim >= 2:
                p.normal_().div_(p.shape[-1] ** 0.5)
            else:
                p.add_(0.3 * torch.randn_like(p))
    return network


@dataclass
class Case:
    """The arguments of a network."""

    inputs: dict[str, Tensor]
    levels: dict[str, Tensor]
    context: Context
    previous: dict[str, Tensor] | None

    def run(self, network: Network) -> dict[str, Tensor]:
        with torch.no_grad():
            return network(self.inputs, self.levels, self.context, self.previous)

    def map(self, f: Callable[[str, Tensor], Tensor]) -> Case:
        """Change fields, levels (names ``level/...``) and previous estimates."""
        previous = self.previous
        return Case(
            {k: f(k, v) for k, v in self.inputs.items()},
            {k: f(f"level/{k}", v) for k, v in self.levels.items()},
            self.context,
            None if previous is None else {k: f(k, v) for k, v in previous.items()},
        )

    def move(self, f: Callable[[Tensor], Tensor]) -> Case:
        """Change coordinates, here and in the previous estimate; padding stays zero."""
        real = self.context.mask[..., None]
        return self.map(lambda k, x: f(x) * real if k == "coords" else x)

    def row(self, i: int) -> Case:
        """Sample ``i`` on its own, without padding."""
        n = int(self.context.lengths[i])

        def cut(name: str, x: Tensor) -> Tensor:
            x = x[i : i + 1]
            for axis in range(1, 1 + _axes(name, x)):
                x = x.narrow(axis, 0, n)
            return x

        case = self.map(cut)
        case.context = Context(
            self.context.mask[i : i + 1, :n],
            {k: v[i : i + 1] for k, v in self.context.conditions.items()},
        )
        return case


def _axes(name: str, x: Tensor) -> int:
    """Element axes of a field (or of a level, by its shape)."""
    if name.startswith("level/"):
        return x.ndim - 1
    return 2 if name in PAIRS else 1


def make(sizes: list[int] | None = None, seed: int = 1, pad: int = 0, levels: str = "sample",
         previous: bool = True, dtype: torch.dtype = torch.float64) -> Case:  # fmt: skip
    """A random batch; ``pad`` further rows of padding hold nonsense that must not matter."""
    sizes = SIZES if sizes is None else sizes
    g = torch.Generator().manual_seed(seed)
    b, n = len(sizes), max(sizes, default=0)
    mask = torch.arange(n) < torch.tensor(sizes, dtype=torch.int64)[:, None]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    def symbols(k: int, *shape: int) -> Tensor:
        return torch.randint(k, shape, generator=g)

    pairs = mask[:, :, None] & mask[:, None]
    bonds = symbols(6, b, n, n).triu(1) * (torch.rand(b, n, n, generator=g) < 0.4)
    inputs = {
        "coords": normal(b, n, 3) * mask[..., None],
        "types": symbols(6, b, n) * mask,
        "charges": symbols(4, b, n) * mask,
        "bonds": (bonds + bonds.mT) * pairs,
    }
    back = normal(b, n, n, 5)
    feedback = {
        "coords": normal(b, n, 3) * mask[..., None],
        "types": normal(b, n, 5).softmax(-1),
        "charges": normal(b, n, 3).softmax(-1),
        "bonds": (back + back.transpose(1, 2)).softmax(-1),
    }
    level = {"coords": normal(b), "types": normal(b), "charges": normal(b), "bonds": normal(b)}
    if levels == "element":
        symmetric = normal(b, n, n)
        level |= {
            "coords": normal(b, n), "types": normal(b, n), "bonds": symmetric + symmetric.mT,
        }  # fmt: skip
    row = torch.arange(b)
    conditions = {
        "gap": torch.where(row % 2 == 0, 5 + 2 * normal(b), torch.nan),
        "dipole": torch.where(row != 2, 3 + normal(b), torch.nan),
    }
    case = Case(inputs, level, Context(mask, conditions), feedback if previous else None)
    return _padded(case, pad, g) if pad else case


def _padded(case: Case, pad: int, g: torch.Generator) -> Case:
    mask = case.context.mask

    def grow(name: str, x: Tensor) -> Tensor:
        axes = _axes(name, x)
        shape = list(x.shape)
        real = mask
        if axes == 2:
            real = mask[:, :, None] & mask[:, None]
        for axis in range(1, 1 + axes):
            shape[axis] += pad
        if x.is_floating_point():
            big = 3 * torch.randn(shape, generator=g, dtype=x.dtype)
        else:
            big = torch.randint(3, shape, generator=g)
        if axes == 0:
            return x
        wide = real if x.ndim == real.ndim else real[..., None]
        window = (slice(None), *(slice(0, s) for s in mask.shape[1:] * axes))
        big[window] = torch.where(wide, x, big[window])
        return big

    result = case.map(grow)
    wider = torch.cat((mask, torch.zeros(len(mask), pad, dtype=torch.bool)), 1)
    result.context = Context(wider, case.context.conditions)
    return result


def difference(a: dict[str, Tensor], b: dict[str, Tensor], mask: Tensor) -> float:
    """Largest relative difference over real elements; ``b`` may be padded further than ``mask``."""
    assert a.keys() == b.keys()
    worst, n = 0.0, mask.shape[1]
    for name, x in a.items():
        y = b[name][:, :n, :n] if name in PAIRS else b[name][:, :n]
        real = mask
        if name in PAIRS:
            off = ~torch.eye(n, dtype=torch.bool)
            real = mask[:, :, None] & mask[:, None] & off
        x, y = x[real].detach().double(), y[real].detach().double()
        if x.numel():
            worst = max(worst, float((x - y).abs().max() / x.abs().max().clamp(min=1.0)))
    return worst
