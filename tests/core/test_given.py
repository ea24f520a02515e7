"""Given elements in training: which they are, that they are left alone, what is learned of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sciflow.denoisers import Network, NetworkDenoiser
from sciflow.errors import InputError
from sciflow.objectives import DenoisingObjective
from sciflow.objectives.curriculum import TimeDistribution
from sciflow.objectives.given import GivenRule
from sciflow.objectives.uncertainty import Uncertainty
from sciflow.paths import CategoricalPath, GaussianPath
from sciflow.random import Draws
from sciflow.schedules import Cosine, Rectified
from sciflow.spaces import Euclidean, Tokens, ZeroCoM
from sciflow.state import Context, State
from sciflow.testing.targets import all_real

N = 4000


def marks(rule: GivenRule, lengths: Tensor | None = None, width: int = 12) -> Tensor:
    mask = torch.ones(N, width, dtype=torch.bool)
    if lengths is not None:
        mask = torch.arange(width) < lengths[:, None]
    return rule(mask, Draws(0, torch.arange(N)), "given", 5)


def lengths() -> Tensor:
    return 3 + torch.arange(N) % 8


def share(given: Tensor) -> float:
    return float(given.double().mean())


def test_random_elements_are_given_as_often_as_asked() -> None:
    found = marks(GivenRule(("x",), probability=1.0, share=(0.3, 0.3)))
    assert share(found) == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / (12 * N)))
    both = share(found[:, 0] & found[:, 1])
    assert both == pytest.approx(0.09, abs=4 * math.sqrt(0.09 / N))
    # r uniform on [0, 1]: the number of given ones is uniform on 0 ... 12.
    counts = torch.bincount(marks(GivenRule(("x",), probability=1.0)).sum(1), minlength=13)
    assert float((counts / N - 1 / 13).abs().max()) < 4 * math.sqrt(1 / 13 / N)
    half = marks(GivenRule(("x",), probability=0.25, share=(1.0, 1.0))).any(1)
    assert share(half) == pytest.approx(0.25, abs=4 * math.sqrt(0.19 / N))


def test_runs_are_given_together() -> None:
    found = marks(GivenRule(("x",), probability=1.0, share=(0.5, 0.5), run=4))
    assert share(found) == pytest.approx(0.5, abs=0.02)
    change = (found[:, 1:] != found[:, :-1]).double().mean(0)
    # A border between runs lies at each place with probability 1/4 and shows half of the time.
    assert float((change - 1 / 8).abs().max()) < 4 * math.sqrt(0.11 / N)
    inner = (found[:, 1:-1] != found[:, :-2]) & (found[:, 1:-1] != found[:, 2:])
    assert not bool(inner.any())


def test_a_prefix_is_given_to_forecast_the_rest() -> None:
    n = lengths()
    found = marks(GivenRule(("x",), "prefix", 1.0, (0.2, 0.8)), n)
    k = found.sum(1)
    assert torch.equal(found, torch.arange(12) < k[:, None])
    assert bool((k <= 0.8 * n).all() & (k >= (0.2 * n).floor()).all()) and len(k.unique()) > 5


def test_all_but_one_run_is_given_to_infill() -> None:
    n = lengths()
    found = marks(GivenRule(("x",), "infill", 1.0, (0.4, 0.4)), n)
    hole = ~found & (torch.arange(12) < n[:, None])
    assert torch.equal(hole.sum(1), n - (0.4 * n.double()).floor().long())
    first = hole.long().argmax(1)
    assert torch.equal(hole, (torch.arange(12) >= first[:, None])
                       & (torch.arange(12) < (first + hole.sum(1))[:, None]))  # fmt: skip
    starts = torch.bincount(first[n == 10], minlength=5) / int((n == 10).sum())
    assert float((starts - 1 / 5).abs().max()) < 0.08


@pytest.mark.parametrize("kind", ["random", "prefix", "infill", "all"])
def test_marks_depend_neither_on_padding_nor_on_companions(kind: str) -> None:
    n = lengths()
    rule = GivenRule(("x",), kind, 0.7, run=2)  # type: ignore[arg-type]
    found, mask = marks(rule, n), torch.arange(12) < n[:, None]
    assert not bool((found & ~mask).any())
    longer = marks(rule, n, 20)
    assert torch.equal(longer[:, :12], found) and not bool(longer[:, 12:].any())
    rows = torch.tensor([7, 3, 99])
    assert torch.equal(rule(mask[rows], Draws(0, rows), "given", 5), found[rows])
    assert torch.equal(marks(GivenRule(("x",), "all", 1.0), n), mask)


class Spy(Network):
    """F = bias; keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(()))

    def forward(self, inputs: dict[str, Tensor], levels: dict[str, Tensor], context: Context,
                previous: dict[str, Tensor] | None) -> dict[str, Tensor]:  # fmt: skip
        self.inputs, self.levels, self.context = inputs, levels, context
        # The one parameter acts where an element is given, and must have no effect there.
        return {
            n: self.bias * context.given[n][..., None] + torch.zeros_like(x)
            if x.is_floating_point()
            else torch.zeros(*x.shape, 3) + self.bias
            for n, x in inputs.items()
        }


def test_given_elements_are_shown_as_they_are_and_owe_nothing() -> None:
    n = 300
    draws = Draws(0, torch.arange(n))
    context = Context(torch.arange(5) < 2 + torch.arange(n)[:, None] % 4)
    x0 = draws.normal((5, 2), "data") * context.mask[..., None]
    token = (3 * draws.uniform((5,), "token")).long().clamp(max=2) * context.mask
    model = NetworkDenoiser(Spy(), {"x": GaussianPath(Euclidean(2), Rectified(), data_std=2.0),
                                    "token": CategoricalPath(Tokens(3), Cosine())})  # fmt: skip
    spy = model.network
    objective = DenoisingObjective(given={"scaffold": GivenRule(("x", "token"))})
    losses = objective(model, State({"x": x0, "token": token}, context), draws, 3)
    given = spy.context.given["x"]
    assert torch.equal(given, spy.context.given["token"])
    assert 0.15 < share(given[context.mask]) < 0.35
    torch.testing.assert_close(spy.inputs["x"][given], x0[given] / 2)
    assert torch.equal(spy.inputs["token"][given], token[given])
    unknown = context.mask & ~given
    assert not bool(torch.isclose(spy.inputs["x"], x0 / 2)[unknown].all(-1).any())
    for name in ("x", "token"):
        assert bool((spy.levels[name][given] == -8).all())
        assert bool((spy.levels[name][unknown] > -8).all())
    losses.fields["x"].sum().backward()
    assert float(spy.bias.grad) == 0.0
    free = ~unknown.any(1)
    assert bool(free.any()) and not bool(losses.total[free].any())
    assert bool((losses.fields["x"][~free] > 0).all())


def test_a_batch_that_brings_given_elements_keeps_them() -> None:
    draws = Draws(0, torch.arange(50))
    mine = torch.zeros(50, 4, dtype=torch.bool)
    mine[:, 2] = True
    context = all_real(50, 4).replace(given={"x": mine})
    rule = {"more": GivenRule(("x",), "prefix", 1.0, (0.25, 0.25))}
    found = DenoisingObjective(given=rule).give(context, draws, 0).given["x"]
    assert torch.equal(found, mine | (torch.arange(4) < 1))
    model = NetworkDenoiser(Spy(), {"x": GaussianPath(Euclidean(1), Rectified())})
    x0 = draws.normal((4, 1), "data")
    DenoisingObjective()(model, State({"x": x0}, context), draws, 0)
    torch.testing.assert_close(model.network.inputs["x"][:, 2], x0[:, 2])


def test_points_are_shown_in_the_frame_of_the_given_ones() -> None:
    n = 40
    draws = Draws(0, torch.arange(n))
    context = Context(torch.arange(6) < 3 + torch.arange(n)[:, None] % 4)
    path = GaussianPath(ZeroCoM(3, "x"), Rectified())
    x0 = path.space.project(draws.normal((6, 3), "data", dtype=torch.float64), context)
    model = NetworkDenoiser(Spy(), {"x": path})
    rule = {"part": GivenRule(("x",), probability=0.7, share=(0.4, 0.4))}
    DenoisingObjective(given=rule)(model, State({"x": x0}, context), draws, 0)
    given, shown = model.network.context.given["x"][..., None], model.network.inputs["x"]
    some = given.any(1)[:, 0]
    assert 0 < int(some.sum()) < n
    torch.testing.assert_close((shown * given).sum(1), torch.zeros(n, 3, dtype=torch.float64))
    shift = ((shown - x0) * given).sum(1) / given.sum(1).clamp(min=1)
    assert float(((shown - x0 - shift[:, None]) * given).abs().max()) < 1e-12
    assert not bool(shown[~context.mask].any())
    part = some & (context.mask[..., None] & ~given).any(1)[:, 0]
    whole = shown.sum(1).norm(dim=1)
    assert float(whole[~some].max()) < 1e-9 < float(whole[part].min())


def test_pairs_are_given_where_both_ends_are() -> None:
    n = 60
    draws, context = Draws(0, torch.arange(n)), all_real(n, 5)
    path = CategoricalPath(Tokens(3, pairs=True), Rectified())
    u = draws.uniform((5, 5), "data")
    x0 = path.space.project((3 * u).long().clamp(max=2), context)
    model = NetworkDenoiser(Spy(), {"bonds": path})
    rule = {"part": GivenRule(("bonds",), "prefix", 1.0, (0.6, 0.6))}
    DenoisingObjective(given=rule, t_min=0.9)(model, State({"bonds": x0}, context), draws, 0)
    shown = model.network.inputs["bonds"]
    assert torch.equal(shown[:, :3, :3], x0[:, :3, :3])
    assert share(shown[:, 3:, :3] == 3) > 0.8


class Affine(Network):
    """F of the second of two elements, affine in both inputs, apart for whether the first is given.

    The first element's own output is kept apart too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(2, 2, 3, dtype=torch.float64))

    def forward(self, inputs: dict[str, Tensor], levels: dict[str, Tensor], context: Context,
                previous: dict[str, Tensor] | None) -> dict[str, Tensor]:  # fmt: skip
        x = inputs["x"][..., 0]
        w = self.w[context.given["x"][:, 0].long()]
        features = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        return {"x": (w @ features[..., None])}


def test_the_exact_conditional_law_is_learned() -> None:
    """Two numbers with correlation 0.8: one network generates both and infers one from the other.

    At one noise level the optimum is affine; with x_1 given it is E[x_2 | x_1, x_2t], else
    E[x_0 | x_t], both by Gaussian conditioning.
    """
    n, t, rho = 20_000, 0.5, 0.8
    draws, context = Draws(0, torch.arange(n)), all_real(n, 2)
    z = draws.normal((2,), "data", dtype=torch.float64)
    mean = torch.tensor([1.0, -0.5], dtype=torch.float64)
    x0 = mean + torch.stack([z[:, 0], rho * z[:, 0] + math.sqrt(1 - rho**2) * z[:, 1]], 1)
    model = NetworkDenoiser(Affine(), {"x": GaussianPath(Euclidean(1), Rectified())})
    objective = DenoisingObjective(
        clock=TimeDistribution(low=t, high=t + 1e-9),
        given={"first": GivenRule(("x",), "prefix", 0.5, (0.5, 0.5))},
    )
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=60, tolerance_grad=1e-10,
                                  line_search_fn="strong_wolfe")  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective(model, State({"x": x0[..., None]}, context), draws, 0).total.mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    cov = torch.tensor([[1, rho], [rho, 1]], dtype=torch.float64)
    x = torch.tensor([[0.3, 0.6], [1.5, -1.0], [-1.0, 0.2]], dtype=torch.float64)
    for first in (False, True):
        given = torch.tensor([[first, False]] * 3)
        noise = t**2 * torch.diag(torch.tensor([0.0 if first else 1.0, 1.0])).double()
        a = torch.diag(torch.tensor([1.0 if first else 1 - t, 1 - t])).double()
        gain = cov @ a @ torch.linalg.inv(a @ cov @ a + noise)
        expected = mean + (x - mean @ a) @ gain.T
        state = State({"x": x[..., None]}, all_real(3, 2).replace(given={"x": given}))
        with torch.no_grad():
            found = model(state, torch.tensor(t, dtype=torch.float64))["x"][..., 0]
        torch.testing.assert_close(found, expected, atol=0.03, rtol=0)
        if first:
            assert torch.equal(found[:, 0], x[:, 0])


def test_a_sample_that_is_given_altogether_has_no_say_in_learned_weights() -> None:
    draws = Draws(0, torch.arange(200))
    model = NetworkDenoiser(Spy(), {"x": GaussianPath(Euclidean(1), Rectified())})
    learned = Uncertainty(("x",))
    with torch.no_grad():
        learned.weight += 0.3
    objective = DenoisingObjective(uncertainty=learned, given={"x": GivenRule(("x",), "all")})
    losses = objective(
        model, State({"x": draws.normal((2, 1), "data")}, all_real(200, 2)), draws, 0
    )
    none = model.network.context.given["x"].all(1)
    assert 50 < int(none.sum()) < 150
    assert not bool(losses.total[none].any()) and bool(losses.total[~none].all())


def test_what_is_refused() -> None:
    with pytest.raises(InputError, match=r"a tuple of names, \('x',\)"):
        GivenRule("x")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="unknown rule 'suffix' of given elements; known: random"):
        GivenRule(("x",), "suffix")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"probability must lie in \[0, 1\]"):
        GivenRule(("x",), probability=1.5)
    with pytest.raises(InputError, match="share must be"):
        GivenRule(("x",), share=(0.8, 0.2))
    with pytest.raises(InputError, match="run must be 1"):
        GivenRule(("x",), run=0)
    model = NetworkDenoiser(Spy(), {"x": GaussianPath(Euclidean(1), Rectified())})
    with pytest.raises(InputError, match="given: there is no field 'y'; fields: x"):
        DenoisingObjective(given={"a": GivenRule(("y",))})(
            model, State({"x": torch.zeros(1, 1, 1)}, all_real(1)), Draws(0, [0]), 0
        )
