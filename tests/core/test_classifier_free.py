"""Classifier-free guidance: off is off, strength is linear, tokens stay distributions."""

from __future__ import annotations

import pytest
import torch

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.guidance import ClassifierFree
from sciflow.guidance.weak.rules import Orthogonal
from sciflow.paths import CategoricalPath, GaussianPath, GeodesicPath
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.schedules import Rectified
from sciflow.spaces import SO3, Euclidean, Tokens, Torus
from sciflow.state import Context, State, Times
from sciflow.testing.targets import NamedMixture, all_real


class Asked(Denoiser):
    """A mixture whose weights follow the condition; NaN asks for nothing."""

    def __init__(self) -> None:
        super().__init__()
        means = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [-1.0, -1.5]])
        self.paths = {
            "x": GaussianPath(Euclidean(2), Rectified()),
            "token": CategoricalPath(Tokens(3), Rectified()),
        }
        weights = ([1.0, 1.0, 1.0], [8.0, 1.0, 1.0])
        self.free, self.bound = (
            NamedMixture(self.paths["x"], self.paths["token"], means, 0.1, w)  # type: ignore[arg-type]
            for w in weights
        )
        self.calls = 0

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        self.calls += 1
        asked = ~state.context.conditions["c"].isnan()
        free, bound = self.free(state, t).clean, self.bound(state, t).clean
        rows = {f: asked.view(-1, *[1] * (x.ndim - 1)) for f, x in free.items()}
        return Prediction({f: torch.where(rows[f], bound[f], free[f]) for f in free})


def context(n: int = 6) -> Context:
    return all_real(n).replace(conditions={"c": torch.tensor([1.0, torch.nan] * (n // 2))})


def noisy(n: int = 6) -> State:
    draws = Draws(0, torch.arange(n))
    return State({"x": draws.normal((1, 2), "x", dtype=torch.float64),
                  "token": torch.full((n, 1), 3)}, context(n))  # fmt: skip


def test_weight_zero_is_no_guidance_at_one_call_a_step() -> None:
    plain, wrapped = Asked(), Asked()
    sampler, draws = Sampler(steps=8, token_eta=0.2), Draws(0, torch.arange(6))
    a = sampler(plain, context(), draws).state
    b = sampler(ClassifierFree(wrapped, 0.0), context(), draws).state
    assert plain.calls == wrapped.calls == 8
    assert torch.equal(a["x"], b["x"]) and torch.equal(a["token"], b["token"])
    doubled = Asked()
    sampler(ClassifierFree(doubled, 0.5), context(), draws)
    assert doubled.calls == 16


def test_linear_in_the_weight() -> None:
    d = {w: ClassifierFree(Asked(), w)(noisy(), 0.6) for w in (0.0, 0.5, 2.0)}
    pull = d[0.5]["x"] - d[0.0]["x"]
    assert float(pull[0].abs().max()) > 1e-3
    torch.testing.assert_close(d[2.0]["x"] - d[0.0]["x"], 4 * pull)
    logs = {w: p["token"].log_softmax(-1) for w, p in d.items()}
    odds = {w: y[..., 0] - y[..., 1] for w, y in logs.items()}
    torch.testing.assert_close(odds[2.0] - odds[0.0], 4 * (odds[0.5] - odds[0.0]))


def test_points_away_from_the_unconditional_estimate() -> None:
    state = noisy()
    model = Asked()
    c, u = model(state, 0.6), model(State(state.fields, state.context.unconditional()), 0.6)
    guided = ClassifierFree(model, 1.5)(state, 0.6)
    torch.testing.assert_close(guided["x"], c["x"] + 1.5 * (c["x"] - u["x"]))
    p = guided["token"].softmax(-1)[0, 0]
    q = c["token"].softmax(-1)[0, 0] ** 2.5 / u["token"].softmax(-1)[0, 0] ** 1.5
    torch.testing.assert_close(p, q / q.sum())


def test_a_rule_is_for_vectors_and_tokens_follow_the_formula() -> None:
    plain, ruled = (
        ClassifierFree(Asked(), 1.5, rule=r)(noisy(), 0.6) for r in (None, Orthogonal())
    )
    assert torch.equal(ruled["token"], plain["token"])
    assert float((ruled["x"] - plain["x"])[0].abs().max()) > 1e-3


def test_samples_without_a_condition_are_left_alone() -> None:
    guided, plain = ClassifierFree(Asked(), 3.0)(noisy(), 0.6), Asked()(noisy(), 0.6)
    torch.testing.assert_close(guided["x"][1::2], plain["x"][1::2], rtol=0, atol=0)
    torch.testing.assert_close(guided["token"][1::2].softmax(-1), plain["token"][1::2].softmax(-1))


def test_known_tokens_stay_known() -> None:
    state = noisy().replace(token=torch.full((6, 1), 2))
    p = ClassifierFree(Asked(), 50.0)(state, 0.6)["token"].softmax(-1)
    assert bool((p[..., 2] > 1 - 1e-12).all())


def test_acts_inside_its_interval_only() -> None:
    model = Asked()
    guided = ClassifierFree(model, 2.0, interval=(0.2, 0.7))
    inside, outside = guided(noisy(), 0.5), guided(noisy(), 0.9)
    assert model.calls == 3
    torch.testing.assert_close(outside["x"], Asked()(noisy(), 0.9)["x"], rtol=0, atol=0)
    assert not torch.equal(inside["x"], Asked()(noisy(), 0.5)["x"])


def test_more_weight_gives_more_of_what_is_asked() -> None:
    n = 400
    asked = all_real(n).replace(conditions={"c": torch.ones(n)})
    shares = []
    for w in (0.0, 2.0):
        model = Asked()
        state = Sampler(steps=15)(ClassifierFree(model, w), asked, Draws(0, torch.arange(n))).state
        shares.append(float((model.free.component(state["x"]) == 0).double().mean()))
    assert shares[0] == pytest.approx(0.8, abs=0.08) and shares[1] > 0.95


@pytest.mark.parametrize("weight", [-1.0, float("nan")])
def test_a_weight_below_zero_is_refused(weight: float) -> None:
    with pytest.raises(InputError, match=r"0 \(off\) or more"):
        ClassifierFree(Asked(), weight)


def test_angles_and_rotations_are_moved_in_their_tangent_space() -> None:
    """The geodesic ODE's step is linear in the weight; the estimate stays on the manifold."""
    draws, n = Draws(2, torch.arange(5)), 5
    for space in (Torus(), SO3()):
        path = GeodesicPath(space, Rectified())
        x, c, u = (space.noise(all_real(n, 3), draws, k, dtype=torch.float64) for k in "xcu")
        # Near x, where twice the difference does not wind round.
        c, u = (space.exp(x, 0.2 * space.log(x, y)) for y in (c, u))
        moved = path.extrapolate(x, c, u, 0.7)
        expected = 1.7 * space.log(x, c) - 0.7 * space.log(x, u)
        torch.testing.assert_close(space.log(x, moved), expected, rtol=0, atol=1e-9)
        torch.testing.assert_close(space.project(moved, all_real(n, 3)), moved, rtol=0, atol=1e-9)
        torch.testing.assert_close(path.extrapolate(x, c, u, 0.0), c, rtol=0, atol=1e-9)
