"""State spaces are their recurrence; every network of series keeps to what is real."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sciflow.denoisers import Network
from sciflow.networks.series import SERIES_NETWORKS
from sciflow.networks.series.s4d import StateSpace, convolve
from sciflow.paths.base import LEVEL_LIMIT
from sciflow.state import Context

LENGTH, CHANNELS, FEATURES = 30, 3, 2
OWN: dict[str, dict[str, int]] = {
    "patches": {"patch": 6, "dim": 16, "depth": 2, "heads": 2},
    "s4d": {"dim": 12, "depth": 2, "states": 4},
    "mlp": {"dim": 24, "depth": 2},
}


def build(kind: str, channels: int = CHANNELS, **changes: object) -> Network:
    """A small network in float64, no parameter of which is zero."""
    torch.manual_seed(0)
    settings = {**OWN[kind], "longest": LENGTH, **changes}
    network = SERIES_NETWORKS[kind]("y", features=FEATURES, channels=channels, **settings)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return network.double().eval()


class Batch:
    """Windows of unequal length and width, with a given element here and there."""

    def __init__(self, b: int = 4, length: int = LENGTH, channels: int = CHANNELS):
        g = torch.Generator().manual_seed(1)
        self.x = torch.randn(b, length, channels, generator=g, dtype=torch.float64)
        real = torch.ones(b, length, channels, dtype=torch.bool)
        real[1, length // 2 :] = False
        real[2, :, 1:] = False
        real[3, 5:9] = False
        self.real = real
        self.known = (torch.rand(b, length, channels, generator=g) < 0.4) & real
        shape = (b, length, channels, FEATURES)
        self.features = torch.randn(shape, generator=g, dtype=torch.float64)
        self.level = torch.randn(b, generator=g, dtype=torch.float64)

    def run(self, network: Network, given: bool = True) -> Tensor:
        level = self.level
        if given:
            level = torch.where(self.known, -LEVEL_LIMIT, level[:, None, None])
        context = Context(self.real, {}, {}, {"features": self.features})
        return network({"y": self.x}, {"y": level}, context, None)["y"]

    def cut(self, rows: slice, steps: int, channels: int) -> Batch:
        part = object.__new__(Batch)
        for name in ("x", "real", "known", "features"):
            setattr(part, name, getattr(self, name)[rows, :steps, :channels])
        part.level = self.level[rows]
        return part

    def padded(self, steps: int, channels: int) -> Batch:
        """The same with nonsense beyond what is real."""
        wide = object.__new__(Batch)
        for name in ("x", "real", "known", "features"):
            v = getattr(self, name)
            shape = (v.shape[0], v.shape[1] + steps, v.shape[2] + channels, *v.shape[3:])
            big = torch.zeros(shape, dtype=v.dtype)
            if v.dtype != torch.bool:
                big += 7.5
            big[:, : v.shape[1], : v.shape[2]] = v
            setattr(wide, name, big)
        wide.level = self.level
        return wide


# --- the state space ------------------------------------------------------------------------


@pytest.mark.parametrize("initial", ["lin", "inv"])
@pytest.mark.parametrize("causal", [True, False])
def test_a_state_space_is_its_recurrence(initial: str, causal: bool) -> None:
    """x_l = Ā x_{l−1} + B̄ u_l, y = 2 Re(C x) + D u, step by step; backwards for what follows."""
    torch.manual_seed(0)
    space = StateSpace(5, 3, causal, initial).double()  # type: ignore[arg-type]
    u = torch.randn(2, 40, 5, dtype=torch.float64)
    # Ā and B̄ of x' = A x + u for constant u, by the matrix exponential of the joint system.
    a = torch.complex(-space.log_decay.exp(), space.omega)
    step = space.log_step.exp()[:, None]
    joint = torch.zeros(5, 3, 2, 2, dtype=torch.complex128)
    joint[..., 0, 0], joint[..., 0, 1] = a * step, step
    joint = torch.linalg.matrix_exp(joint)
    moved, entered = joint[..., 0, 0], joint[..., 0, 1]
    c = torch.view_as_complex(space.c)
    wanted = space.d * u
    x = torch.zeros(2, 5, 3, dtype=torch.complex128)
    for i in range(40):
        x = moved * x + entered * u[:, i, :, None]
        wanted[:, i] += 2 * (c[0] * x).sum(-1).real
    if not causal:
        x = torch.zeros_like(x)
        for i in reversed(range(40)):
            wanted[:, i] += 2 * (c[1] * x).sum(-1).real
            x = moved * x + entered * u[:, i, :, None]
    assert torch.allclose(space(u), wanted, atol=1e-10, rtol=0)


def test_convolution_is_a_sum_over_lags() -> None:
    torch.manual_seed(0)
    u = torch.randn(2, 17, 3, dtype=torch.float64)
    k, back = (torch.randn(3, 17, dtype=torch.float64) for _ in range(2))
    both = torch.zeros_like(u)
    past = torch.zeros_like(u)
    for i in range(17):
        for s in range(17):
            if s <= i:
                past[:, i] += k[:, i - s] * u[:, s]
            else:
                both[:, i] += back[:, s - i - 1] * u[:, s]
    assert torch.allclose(convolve(u, k), past, atol=1e-10, rtol=0)
    assert torch.allclose(convolve(u, k, back), past + both, atol=1e-10, rtol=0)


def test_initial_frequencies() -> None:
    """S4D-Lin: A_n = −½ + iπn. S4D-Inv: Im A_n = (M/π)(M/(2n+1) − 1), M = 2N."""
    lin, inv = (StateSpace(2, 4, initial=kind) for kind in ("lin", "inv"))
    assert torch.allclose(lin.omega[0], torch.pi * torch.arange(4.0))
    wanted = torch.tensor([8 / torch.pi * (8 / (2 * n + 1) - 1) for n in range(4)])
    assert torch.allclose(inv.omega[1], wanted)
    assert torch.allclose(-lin.log_decay.exp(), torch.tensor(-0.5))


def test_a_kept_kernel_follows_the_weights() -> None:
    """Frozen weights: the kernel is kept a length. Changed or trained ones are seen."""
    torch.manual_seed(0)
    space = StateSpace(4, 3).eval()
    u = torch.randn(1, 20, 4)
    with torch.no_grad():
        first = space(u)
        kept = space._kernel(20)
        assert space._kernel(20) is kept
        assert torch.allclose(space(u[:, :11]), StateSpace.forward(space, u[:, :11]))
        assert torch.equal(space(u), first)
        space.c.mul_(2.0)
        assert torch.allclose(space(u) - space.d * u, 2 * (first - space.d * u), atol=1e-5)
        space.load_state_dict({k: 0 * v for k, v in space.state_dict().items()})
        assert torch.equal(space(u), torch.zeros_like(u))
    # Weights that can learn are never cut off, evaluation mode or not.
    space(u).sum().backward()
    assert space.c.grad is not None and bool(space.c.grad.abs().sum() > 0)


def test_a_causal_network_does_not_look_ahead() -> None:
    batch, changed = Batch(), Batch()
    changed.x[:, 20:] += 1.0
    for causal in (True, False):
        network = build("s4d", causal=causal)
        same = torch.allclose(batch.run(network)[:, :20], changed.run(network)[:, :20], atol=1e-10)
        assert same == causal


# --- every network --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SERIES_NETWORKS)
def test_padding_does_not_matter(kind: str) -> None:
    """Neither its amount nor what stands in it, at the end of time and of channels."""
    network, batch = build(kind), Batch()
    out = batch.run(network)
    for steps, channels in ((9, 0), (0, 2), (7, 1)):
        wide = batch.padded(steps, channels).run(network)[:, :LENGTH, :CHANNELS]
        assert torch.allclose(wide[batch.real], out[batch.real], atol=1e-10)
    # A shorter series alone is what it was beside longer ones.
    short = batch.cut(slice(1, 2), LENGTH // 2, CHANNELS).run(network)
    assert torch.allclose(short, out[1:2, : LENGTH // 2], atol=1e-10)
    narrow = batch.cut(slice(2, 3), LENGTH, 1).run(network)
    assert torch.allclose(narrow, out[2:3, :, :1], atol=1e-10)


@pytest.mark.parametrize("kind", SERIES_NETWORKS)
def test_a_sample_does_not_see_its_companions(kind: str) -> None:
    network, batch = build(kind), Batch()
    alone = torch.cat([batch.cut(slice(i, i + 1), LENGTH, CHANNELS).run(network) for i in range(4)])
    assert torch.allclose(batch.run(network), alone, atol=1e-10)


@pytest.mark.parametrize("kind", SERIES_NETWORKS)
def test_given_elements_are_told(kind: str) -> None:
    """Time 0 marks an element as given, and the others' level is theirs."""
    network, batch = build(kind), Batch()
    plain = batch.run(network, given=False)
    assert not torch.allclose(plain[0], batch.run(network)[0], atol=1e-3)
    # A level for each element that is the same for all says what one a sample says.
    batch.known[:] = False
    assert torch.allclose(batch.run(network), plain, atol=1e-12)


@pytest.mark.parametrize("kind", SERIES_NETWORKS)
def test_channels_and_distant_steps_meet(kind: str) -> None:
    network, batch = build(kind), Batch()
    out = batch.run(network)
    for place in ((0, 0, 2), (0, LENGTH - 1, 0), (0, 0, 0)):
        moved = Batch()
        moved.x[place] += 5.0
        assert (moved.run(network)[0, LENGTH // 2, 0] - out[0, LENGTH // 2, 0]).abs() > 1e-7


@pytest.mark.parametrize("kind", SERIES_NETWORKS)
def test_gradients_are_finite(kind: str) -> None:
    """Of every weight and of the noisy series, with samples of which nothing is real."""
    network, batch = build(kind).train(), Batch()
    batch.real[3] = False
    batch.x.requires_grad_()
    out = batch.run(network)
    (out * batch.real).square().sum().backward()
    assert batch.x.grad is not None and bool(batch.x.grad.isfinite().all())
    for name, p in network.named_parameters():
        assert p.grad is not None and bool(p.grad.isfinite().all()), name
        assert bool((p.grad != 0).any()), name


@pytest.mark.parametrize("kind", SERIES_NETWORKS)
def test_one_channel_has_nothing_to_mix(kind: str) -> None:
    network = build(kind, channels=1)
    assert not any("mixing" in name for name, _ in network.named_parameters())
    assert Batch(channels=1).run(network).shape == (4, LENGTH, 1)
