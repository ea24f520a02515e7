"""Known parts for models that were not trained with them, against exact conditional laws."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.guidance import MomentMatching, Observed
from sciflow.guidance.editing.inpainting import Known, KnownNoise, Reconstruction, Replacement
from sciflow.paths import CategoricalPath, GaussianPath
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.samplers.methods import METHODS
from sciflow.schedules import Rectified, VPLinear
from sciflow.spaces import Euclidean, Tokens, ZeroCoM
from sciflow.state import Context, State, Times, field_times
from sciflow.testing.targets import NamedMixture, TokenTable, all_real
from sciflow.training.gaussian_fit import GaussianDenoiser

MEAN = torch.tensor([[0.5], [-1.0], [0.3]], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.0, 0.8, 0.3], [0.8, 1.0, 0.6], [0.3, 0.6, 1.0]], dtype=torch.float64)
Y = 1.7
# Of the last two numbers given the first, Kalman's answer.
GAIN = COVARIANCE[1:, 0] / COVARIANCE[0, 0]
EXACT_MEAN = MEAN[1:, 0] + GAIN * (Y - MEAN[0, 0])
EXACT_COVARIANCE = COVARIANCE[1:, 1:] - GAIN[:, None] * COVARIANCE[0, 1:]
MEANS = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [-1.0, -1.5]], dtype=torch.float64)


def draws(n: int, seed: int = 0) -> Draws:
    return Draws(seed, torch.arange(n))


def prior() -> GaussianDenoiser:
    return GaussianDenoiser(GaussianPath(Euclidean(1), Rectified()), MEAN, COVARIANCE)


def first(n: int) -> Known:
    values = torch.full((n, 3, 1), torch.nan, dtype=torch.float64)
    values[:, 0] = Y
    return Known({"x": values}, {"x": torch.tensor([True, False, False]).expand(n, 3)})


def mixed() -> NamedMixture:
    paths = GaussianPath(Euclidean(2), Rectified()), CategoricalPath(Tokens(3), Rectified())
    return NamedMixture(*paths, MEANS, 0.1, [1.0] * 3)


def everything(n: int, elements: int = 2) -> Known:
    token = draws(n).integers(3, "token")[:, None].expand(n, elements)
    x = draws(n).normal((elements, 2), "y", dtype=torch.float64)
    mask = torch.ones(n, elements, dtype=torch.bool)
    return Known({"x": x, "token": token}, {"x": mask, "token": mask})


def affine(model: Any, n: int = 4, **settings: Any) -> tuple[Tensor, Tensor]:
    """Exact mean and covariance of a deterministic sampler's output for a linear denoiser."""
    start = torch.cat((torch.zeros(1, 3), torch.eye(3))).double()[..., None]
    report = Sampler(**settings)(model, all_real(n, 3), draws(n), start={"x": start})
    x = report.state["x"][..., 0]
    torch.testing.assert_close(x[:, 0], torch.full((4,), Y, dtype=torch.float64), rtol=0,
                               atol=1e-5)  # fmt: skip
    return x[0, 1:], (x[1:] - x[0])[:, 1:].T @ (x[1:] - x[0])[:, 1:]


class Watched(Denoiser):
    """Keeps what it is asked."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser, self.paths = denoiser, denoiser.paths
        self.asked: list[tuple[float, State]] = []

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        assert isinstance(t, float)
        self.asked.append((t, state))
        return self.denoiser(state, t, previous)


@pytest.mark.parametrize("method", ["ab3", "dpm3", "dpmpp2m", "unipc2", "heun", "ddim"])
def test_the_ode_keeps_one_noise_of_what_is_known(method: str) -> None:
    """x_t = a y + s ε with the ε it began with, at every call of every solver."""
    watched = Watched(prior())
    Sampler(steps=9, method=method)(Replacement(watched, first(5)), all_real(5, 3), draws(5),
                                    dtype=torch.float64)  # fmt: skip
    noise = torch.stack([(x["x"][:, 0, 0] - (1 - t) * Y) / t for t, x in watched.asked])
    torch.testing.assert_close(noise, noise[:1].expand_as(noise), rtol=0, atol=1e-9)


def test_the_sde_renews_the_noise_as_the_forward_process_does() -> None:
    """ε of K is standard normal at every level, with correlation a_t s_s/(a_s s_t) of two levels.

    Drawn anew at every level (``level``) it has the same law at each, and no memory.
    """
    n = 2000
    for kind in ("trajectory", "level"):
        watched = Watched(prior())
        model = Replacement(watched, first(n), kind, draws(n, 1))  # type: ignore[arg-type]
        Sampler(steps=5, method="ddpm")(model, all_real(n, 3), draws(n), dtype=torch.float64)
        times = torch.tensor([t for t, _ in watched.asked]).double()
        noise = torch.stack([(x["x"][:, 0, 0] - (1 - t) * Y) / t for t, x in watched.asked])
        odds = (1 - times) / times
        exact = torch.minimum(odds[:, None], odds) / torch.maximum(odds[:, None], odds)
        exact = torch.eye(5).double() if kind == "level" else exact.nan_to_num(1.0)
        torch.testing.assert_close(noise @ noise.T / n, exact, rtol=0, atol=5 / math.sqrt(n))


def test_errors_of_each_way_on_a_gaussian() -> None:
    """Largest error of the conditional mean (of variances 0.36, 0.91: covariance) at 40 calls, ODE:

    nothing 0.96 (0.64), replacement 0.53 (0.29), reconstruction w = 1 0.40 (0.15), w = 2 0.28
    (0.06), w = 5 0.13 (0.05), moment matching of an exact measurement below 0.005.
    """
    n = 4
    ways = {
        "replacement": Replacement(prior(), first(n)),
        "w1": Reconstruction(prior(), first(n), 1.0),
        "w2": Reconstruction(prior(), first(n), 2.0),
        "w5": Reconstruction(prior(), first(n), 5.0),
    }
    figures = {"replacement": (0.53, 0.29), "w1": (0.40, 0.15), "w2": (0.28, 0.06),
               "w5": (0.13, 0.05)}  # fmt: skip
    for name, model in ways.items():
        mean, covariance = affine(model, steps=40)
        found = (float((mean - EXACT_MEAN).abs().max()),
                 float((covariance - EXACT_COVARIANCE).abs().max()))  # fmt: skip
        assert found == pytest.approx(figures[name], abs=0.015), name
    known = first(n)
    y = torch.where(known.mask["x"][..., None], known.values["x"], 0)
    seen = Observed(known.mask["x"][..., None], 1e-8)
    mean, covariance = affine(MomentMatching(prior(), "x", y, seen, 1), steps=40)
    assert float((mean - EXACT_MEAN).abs().max()) < 5e-3
    assert float((covariance - EXACT_COVARIANCE).abs().max()) < 5e-3


def test_repaint_s_rounds_bring_the_conditional_mean() -> None:
    """Mean error 0.36 in one round of 20 ancestral steps, 0.08 in eight (n = 500: ± 0.04)."""
    n = 500
    errors = []
    for rounds in (1, 8):
        sampler = Sampler(steps=20, method="ddpm", recurrence=rounds)
        x = sampler(Replacement(prior(), first(n)), all_real(n, 3), draws(n),
                    dtype=torch.float64).state["x"][:, 1:, 0]  # fmt: skip
        errors.append(float((x.mean(0) - EXACT_MEAN).abs().max()))
    assert errors[0] == pytest.approx(0.37, abs=0.08) and errors[1] < 0.16


def test_reconstruction_is_its_formula() -> None:
    """D_U + w a J_UK (y − D_K) for Gaussian data, whose J is known; y itself on K."""
    x, t, w = draws(4).normal((3, 1), "x", dtype=torch.float64), 0.3, 1.5
    state = State({"x": x}, all_real(4, 3))
    a, s = 1 - t, t
    jacobian = a * COVARIANCE @ torch.linalg.inv(a**2 * COVARIANCE + s**2 * torch.eye(3))
    d = prior()(state, t)["x"][..., 0]
    found = Reconstruction(prior(), first(4), w)(state, t)["x"].detach()[..., 0]
    torch.testing.assert_close(found[:, 1:], d[:, 1:] + w * a * jacobian[1:, 0] * (Y - d[:, :1]))
    assert torch.equal(found[:, 0], torch.full((4,), Y, dtype=torch.float64))


@pytest.mark.parametrize("method", METHODS)
def test_all_known_is_what_comes_out(method: str) -> None:
    known, n = everything(3), 3
    for model in (Replacement(mixed(), known), Reconstruction(mixed(), known, 1.0),
                  Replacement(mixed(), known, "level", draws(n, 1))):  # fmt: skip
        state = Sampler(steps=6, method=method, greedy=False)(
            model, all_real(n, 2), draws(n), dtype=torch.float64
        ).state
        torch.testing.assert_close(state["x"], known.values["x"], rtol=0, atol=1e-12)
        assert torch.equal(state["token"], known.values["token"])


@pytest.mark.parametrize("schedule", [Rectified(), VPLinear()], ids=str)
def test_nothing_known_is_the_bare_model_bit_for_bit(schedule: Any) -> None:
    paths = GaussianPath(Euclidean(2), schedule), CategoricalPath(Tokens(3), schedule)
    bare = NamedMixture(*paths, MEANS, 0.1, [1.0] * 3)
    full = everything(4)
    nothing = Known(full.values, {f: torch.zeros_like(m) for f, m in full.mask.items()})
    sampler = Sampler(steps=7, method="ddpm", token_eta=0.3)
    plain = sampler(bare, all_real(4, 2), draws(4)).state
    for model in (Replacement(bare, nothing), Reconstruction(bare, nothing, 2.0),
                  Replacement(bare, nothing, "level", draws(4, 1))):  # fmt: skip
        state = sampler(model, all_real(4, 2), draws(4)).state
        assert all(torch.equal(plain[f], state[f]) for f in plain)


def test_weight_zero_is_replacement_bit_for_bit_at_one_call() -> None:
    n, bare = 4, mixed()
    full = everything(n)
    part = Known({"token": full.values["token"]}, {"token": full.mask["token"]})
    sampler = Sampler(steps=7)
    a = sampler(Replacement(bare, part), all_real(n, 2), draws(n)).state
    b = sampler(Reconstruction(bare, part, 0.0), all_real(n, 2), draws(n)).state
    assert torch.equal(a["x"], b["x"]) and bare.calls == 14
    c = sampler(Reconstruction(bare, part, 1.0), all_real(n, 2), draws(n)).state
    assert not torch.equal(a["x"], c["x"]) and bare.calls == 21


@pytest.mark.parametrize("noise", ["trajectory", "level"])
def test_neither_companions_nor_padding_matter(noise: KnownNoise) -> None:
    """DPS and its kin divide by the norm of the whole batch's error: half as strong for four."""
    n, rows = 6, torch.tensor([4, 1])
    full = everything(n, 3)
    mask = torch.arange(3) < torch.tensor([2, 1, 2, 2, 1, 2])[:, None]
    some = torch.tensor([True, False, True])
    known = Known({"x": full.values["x"].masked_fill(~mask[..., None], torch.nan),
                   "token": full.values["token"]},
                  {"x": some & mask, "token": ~some & mask})  # fmt: skip
    sampler = Sampler(steps=6, method="ddpm")

    def run(known: Known, context: Context, d: Draws) -> State:
        model = Reconstruction(mixed(), known, 2.0, noise, Draws(1, d.samples))
        return sampler(model, context, d, dtype=torch.float64).state

    whole = run(known, Context(mask), draws(n))
    short = Known({f: y[:, :2] for f, y in known.values.items()},
                  {f: m[:, :2] for f, m in known.mask.items()})  # fmt: skip
    for part in (run(known.rows(rows), Context(mask[rows]), draws(n).rows(rows)),
                 run(short.rows(rows), Context(mask[rows, :2]), draws(n).rows(rows))):  # fmt: skip
        torch.testing.assert_close(part["x"][:, :2], whole["x"][rows, :2], rtol=0, atol=1e-11)
        assert torch.equal(part["token"][:, :2], whole["token"][rows, :2])
    assert not bool(whole["x"][~mask].any()) and not bool(whole["token"][~mask].any())


def test_a_level_given_sample_by_sample_has_the_same_noise() -> None:
    n = 3
    known, x = everything(n), draws(n).normal((2, 2), "x", dtype=torch.float64)
    state = State({"x": x, "token": torch.full((n, 2), 3)}, all_real(n, 2))
    model = Replacement(mixed(), known, "level", draws(n, 1))
    times = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    together = model._presented(state, times)
    for i, t in enumerate(times.tolist()):
        alone = model._presented(state, t)
        assert all(torch.equal(together[f][i], alone[f][i]) for f in state)


def test_a_known_token_brings_its_points() -> None:
    """Reconstruction through log p of the token: 0.85 of the points are in its component.

    Replacement alone has 0.50 there, from 1/3 without: until the token shows, a point may be
    anywhere.
    """
    n = 400
    known = Known({"token": torch.zeros(n, 1, dtype=torch.int64)},
                  {"token": torch.ones(n, 1, dtype=torch.bool)})  # fmt: skip
    for weight, share in ((0.0, 0.50), (1.0, 0.85)):
        model = mixed()
        x = Sampler(steps=20)(Reconstruction(model, known, weight), all_real(n), draws(n),
                              dtype=torch.float64).state["x"][:, 0]  # fmt: skip
        found = float((model.component(x) == 0).double().mean())
        assert found == pytest.approx(share, abs=0.08), weight


def test_a_known_point_brings_its_token() -> None:
    """p(token | point) is 0.85: 0.66 in one round, and in six 0.84."""
    n = 250
    known = Known({"x": MEANS[:1].expand(n, 1, 2)}, {"x": torch.ones(n, 1, dtype=torch.bool)})
    for rounds, share in ((1, 0.66), (6, 0.84)):
        sampler = Sampler(steps=12, method="ddpm", greedy=False, recurrence=rounds)
        token = sampler(Replacement(mixed(), known), all_real(n), draws(n),
                        dtype=torch.float64).state["token"]  # fmt: skip
        found = float((token == 0).double().mean())
        assert found == pytest.approx(share, abs=0.08), rounds


def test_known_tokens_of_a_chain_go_the_forward_way() -> None:
    """At every level a known token still has its value with probability α, and never another."""
    n = 1500
    table = torch.tensor([[0.3, 0.1, 0.1], [0.05, 0.05, 0.1], [0.1, 0.1, 0.1]])
    watched = Watched(TokenTable(CategoricalPath(Tokens(3), Rectified()), table))
    known = Known({"token": torch.tensor([[1, -7]]).expand(n, 2)},
                  {"token": torch.tensor([[True, False]]).expand(n, 2)})  # fmt: skip
    Sampler(steps=6)(Replacement(watched, known), all_real(n, 2), draws(n))
    for t, state in watched.asked:
        x = state["token"][:, 0]
        assert bool(((x == 1) | (x == 3)).all())
        assert float((x == 1).double().mean()) == pytest.approx(1 - t, abs=0.05)


class Cloud(Denoiser):
    """Centred points of a standard normal."""

    def __init__(self) -> None:
        super().__init__()
        self.path = GaussianPath(ZeroCoM(3, "x"), Rectified())
        self.paths = {"x": self.path}

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        x = state["x"]
        a, s = (self.path.space.expand(c, x).to(x.dtype)
                for c in self.path.schedule(field_times(t, state)["x"]))  # fmt: skip
        return Prediction({"x": a / (a**2 + s**2) * self.path.space.project(x, state.context)})


@pytest.mark.parametrize("noise", ["trajectory", "level"])
def test_centred_points_keep_their_centre_and_y_its_shape(noise: KnownNoise) -> None:
    """The frame in which y is written does not matter; padding stays empty.

    A peer subtracts the centre of known points from padded rows.
    """
    mask = torch.arange(5) < torch.tensor([5, 4, 3])[:, None]
    where = torch.tensor([True, True, False, False, False]).expand(3, 5)
    y = draws(3).normal((5, 3), "y", dtype=torch.float64)
    runs = []
    for shift in (0.0, 40.0):
        model = Reconstruction(Cloud(), Known({"x": y + shift}, {"x": where}), 1.0, noise,
                               draws(3, 1))  # fmt: skip
        x = Sampler(steps=8)(model, Context(mask), draws(3), dtype=torch.float64).state["x"]
        torch.testing.assert_close(x[:, 1] - x[:, 0], y[:, 1] - y[:, 0], rtol=0, atol=1e-10)
        torch.testing.assert_close(x.sum(1), torch.zeros(3, 3).double(), rtol=0, atol=1e-10)
        assert not bool(x[~mask].any())
        runs.append(x)
    torch.testing.assert_close(*runs, rtol=0, atol=1e-10)


def test_pairs_and_single_numbers_can_be_known() -> None:
    """A pair is known where both its ends are; of a point one coordinate may be."""
    path = CategoricalPath(Tokens(2, pairs=True), Rectified())

    class Flat(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.paths = {"bond": path, "x": GaussianPath(Euclidean(2), Rectified())}

        def forward(
            self, state: State, t: Times | float, previous: Prediction | None = None
        ) -> Prediction:
            logits = state["x"].new_tensor([1.0, -1.0]).expand(*state["bond"].shape, 2)
            return Prediction({"bond": logits, "x": torch.full_like(state["x"], 0.5)})

    bond = torch.ones(2, 3, 3, dtype=torch.int64)
    single = torch.zeros(2, 3, 2, dtype=torch.bool)
    single[:, 0, 1] = True
    ends = torch.tensor([True, False, True]).expand(2, 3)
    x = torch.full((2, 3, 2), 7.0, dtype=torch.float64)
    known = Known({"bond": bond, "x": x}, {"bond": ends, "x": single})
    state = Sampler(steps=4)(Replacement(Flat(), known), all_real(2, 3), draws(2),
                             dtype=torch.float64).state  # fmt: skip
    assert state["bond"][0].tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]
    assert bool((state["x"][single] == 7).all()) and bool((state["x"][~single] == 0.5).all())


def test_what_cannot_be() -> None:
    mask = torch.ones(2, 3, dtype=torch.bool)
    x = torch.zeros(2, 3, 1)
    for values, masks, match in (
        ({"x": x}, {}, "same fields"),
        ({"x": x}, {"x": mask.long()}, "must be bool"),
        ({"z": x}, {"z": mask}, "fields: x"),
        ({"x": x * math.nan}, {"x": mask}, "must be finite"),
        ({"x": x}, {"x": mask[:, :, None, None]}, "one entry an element"),
    ):
        with pytest.raises(InputError, match=match):
            Replacement(prior(), Known(values, masks))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="0 to 2"):
        Replacement(mixed(), Known({"token": torch.full((1, 1), 3)}, {"token": mask[:1, :1]}))
    known = Known({"x": x}, {"x": mask})
    with pytest.raises(InputError, match="draws"):
        Replacement(prior(), known, "level")
    with pytest.raises(InputError, match="noise must be"):
        Replacement(prior(), known, "none")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"0 \(off\) or more"):
        Reconstruction(prior(), known, -1.0)
    with pytest.raises(InputError, match="batch has 4"):
        Replacement(prior(), known)(State({"x": torch.zeros(4, 3, 1)}, all_real(4, 3)), 0.5)
