"""The preconditioned network: what it sees, and what its outputs become."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sciflow.denoisers import Network, NetworkDenoiser, Prediction
from sciflow.paths import CategoricalPath, GaussianPath
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.schedules import Cosine, Rectified, VarianceExploding
from sciflow.spaces import Euclidean, Tokens
from sciflow.state import Context, State
from sciflow.testing.targets import all_real


class Recorder(Network):
    """A small trainable map that keeps what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.3))
        self.seen: list[dict[str, object]] = []

    def forward(
        self,
        inputs: dict[str, Tensor],
        levels: dict[str, Tensor],
        context: Context,
        previous: dict[str, Tensor] | None,
    ) -> dict[str, Tensor]:
        self.seen.append({"inputs": inputs, "levels": levels, "previous": previous})
        level = levels["x"].reshape(levels["x"].shape + (1,) * (3 - levels["x"].ndim))
        x = self.scale * inputs["x"] + 0.1 * torch.tanh(level)
        one_hot = torch.nn.functional.one_hot(inputs["token"], 4)[..., :3].to(x.dtype)
        return {"x": x, "token": one_hot + x.mean(-1, keepdim=True)}


def build(**settings: object) -> NetworkDenoiser:
    paths = {
        "x": GaussianPath(Euclidean(2), Rectified(), "edm", data_std=2.0),
        "token": CategoricalPath(Tokens(3), Rectified(2.0)),
    }
    return NetworkDenoiser(Recorder(), paths, **settings)  # type: ignore[arg-type]


def noisy(dtype: torch.dtype = torch.float32) -> State:
    x = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return State({"x": x.to(dtype), "token": torch.tensor([[0, 1, 2, 3]] * 3)}, all_real(3, 4))


def test_the_network_sees_unit_variance_and_the_noise_level() -> None:
    denoiser, state = build(), noisy()
    denoiser(state, 0.25)
    seen = denoiser.network.seen[-1]  # type: ignore[union-attr]
    scale = ((0.75 * 2.0) ** 2 + 0.25**2) ** 0.5
    torch.testing.assert_close(seen["inputs"]["x"], state["x"] / scale)
    assert torch.equal(seen["inputs"]["token"], state["token"])
    assert seen["levels"]["x"].tolist() == pytest.approx([float(torch.tensor(1 / 3).log())] * 3)
    assert seen["levels"]["token"].tolist() == pytest.approx(
        [float(torch.tensor(1 / 15).log())] * 3
    )


@pytest.mark.parametrize("t", [0.0, 1e-8, 0.5, 1.0])
def test_levels_are_finite_at_both_ends(t: float) -> None:
    for schedule in (Rectified(), Cosine(), VarianceExploding()):
        denoiser = build().reschedule({"x": schedule, "token": schedule})
        p = denoiser(noisy(), t)
        levels = denoiser.network.seen[-1]["levels"]  # type: ignore[union-attr]
        assert all(bool((v.abs() <= 8).all()) for v in levels.values())
        assert all(bool(v.isfinite().all()) for v in p.clean.values())


def test_time_zero_returns_the_state() -> None:
    denoiser, state = build(), noisy()
    p = denoiser(state, 0.0)
    assert torch.equal(p["x"], state["x"])
    t = torch.tensor([[0.0, 0.5, 0.5, 0.0]] * 3)
    p = denoiser(state, {"x": t, "token": 0.4})
    assert torch.equal(p["x"][:, [0, 3]], state["x"][:, [0, 3]])
    assert not torch.equal(p["x"][:, 1], state["x"][:, 1])
    assert denoiser.network.seen[-1]["levels"]["x"].shape == (3, 4)  # type: ignore[union-attr]


def test_seen_tokens_are_certain() -> None:
    p = build()(noisy(), 0.5)["token"].softmax(-1)
    torch.testing.assert_close(p[:, :3], torch.eye(3).expand(3, 3, 3))
    assert bool((p[:, 3] < 1).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_type_of_numbers(dtype: torch.dtype) -> None:
    denoiser = build().to(dtype)
    p = denoiser(noisy(dtype), 1 / 3)
    assert p["x"].dtype == p["token"].dtype == dtype
    # A float64 state is given a float64 time: 1/3 rounded to float32 would be off by 1e-8.
    level = denoiser.network.seen[-1]["levels"]["x"]  # type: ignore[union-attr]
    assert level.dtype == dtype
    exact = float(torch.tensor(0.5, dtype=torch.float64).log())
    assert float(level[0]) == pytest.approx(exact, abs=1e-15 if dtype == torch.float64 else 1e-6)


def test_reschedule_shares_weights_and_gives_the_same_estimate_at_equal_levels() -> None:
    denoiser = build()
    other = denoiser.reschedule({"x": Cosine(), "token": Cosine()})
    assert other.network is denoiser.network and isinstance(denoiser.paths["x"].schedule, Rectified)
    state, context = noisy(torch.float64), all_real(3, 4)
    lam = torch.tensor(-0.7, dtype=torch.float64)
    clean = []
    for d in (denoiser.reschedule({"token": Rectified()}), other):
        schedule = d.paths["x"].schedule
        t = schedule.invert(lambda a, s: s.log() - a.log(), -lam)
        a, s = schedule(t)
        clean.append(
            d.double()(State({**state.fields, "x": (a + s) * state["x"]}, context), float(t))
        )
    torch.testing.assert_close(clean[0]["x"], clean[1]["x"], rtol=1e-7, atol=1e-7)
    with pytest.raises(ValueError, match=r"no field \['y'\]; fields: x, token"):
        denoiser.reschedule({"y": Cosine()})


def test_reschedule_keeps_the_mode() -> None:
    assert not build().eval().reschedule({}).training and build().reschedule({}).training


def test_self_conditioning_sees_scaled_means_and_probabilities() -> None:
    denoiser, state = build(self_conditioning=True), noisy()
    first = denoiser(state, 0.5)
    assert denoiser.network.seen[-1]["previous"] is None  # type: ignore[union-attr]
    denoiser(state, 0.4, first)
    previous = denoiser.network.seen[-1]["previous"]  # type: ignore[union-attr]
    torch.testing.assert_close(previous["x"], first["x"] / 2.0)
    torch.testing.assert_close(previous["token"], first["token"].softmax(-1))
    plain = build()
    plain(state, 0.4, first)
    assert plain.network.seen[-1]["previous"] is None  # type: ignore[union-attr]


def test_a_sampler_hands_the_last_estimate_on() -> None:
    denoiser = build(self_conditioning=True)
    Sampler(steps=3)(denoiser, all_real(2, 4), Draws(0, [0, 1]))
    seen = [s["previous"] is None for s in denoiser.network.seen]  # type: ignore[union-attr]
    assert seen == [True, False, False]


def test_detach_cuts_the_graph() -> None:
    p = build()(noisy(), 0.5)
    assert p["x"].requires_grad and not p.detach()["x"].requires_grad
    assert isinstance(p.detach(), Prediction) and torch.equal(p.detach()["x"], p["x"])
