"""Methods for tokens: laws by enumeration of whole chains, orders without sampling noise."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.paths import CategoricalPath, GaussianPath
from sciflow.paths.transitions import reversible_rates
from sciflow.random import Draws
from sciflow.samplers import Plan, Sampler
from sciflow.samplers.discrete import MarkovJumps
from sciflow.schedules import Cosine, Rectified, Schedule
from sciflow.spaces import Euclidean, Tokens
from sciflow.state import Context, State, Times
from sciflow.testing.targets import NamedMixture, TokenTable, all_real

KINDS = ["absorbing", "uniform", "marginal", "matrix"]
METHODS = ["ancestral", "euler", "tau-leaping", "ab2"]
every_kind = pytest.mark.parametrize("kind", KINDS)
every_method = pytest.mark.parametrize("method", METHODS)
LAW = [0.5, 0.3, 0.2]


def path_of(
    kind: str, k: int, pairs: bool = False, schedule: Schedule | None = None
) -> CategoricalPath:
    return CategoricalPath(
        Tokens(k, pairs), schedule or Rectified(), kind,  # type: ignore[arg-type]
        LAW[:k] if kind == "marginal" else None,
        reversible_rates(LAW[:k]) if kind == "matrix" else None,
    )  # fmt: skip


def table(*shape: int, power: float = 1.0, least: float = 0.5) -> Tensor:
    """Dependent tokens: a large ``power`` and a small ``least`` make them strongly so."""
    g = torch.Generator().manual_seed(2)
    return torch.rand(*shape, generator=g, dtype=torch.float64) ** power + least


def target(kind: str, joint: Tensor) -> TokenTable:
    return TokenTable(path_of(kind, joint.shape[0]), joint)


def equal_steps(n: int) -> Tensor:
    return torch.linspace(1, 0, n + 1, dtype=torch.float64)


class Chain:
    """The exact law of what a method samples: every state of the chain, every transition."""

    def __init__(self, exact: TokenTable, method: str, times: Tensor, eta: float = 0.0):
        self.exact, self.method = exact, method
        symbols, length = exact.path.symbols, exact.table.ndim
        self.states = torch.tensor(list(itertools.product(range(symbols), repeat=length)))
        self.plan = Plan.along(times)
        self.stepper = MarkovJumps(exact.path, self.plan, eta, greedy=False, method=method)  # type: ignore[arg-type]

    def estimate(self, i: int) -> Tensor:
        """p(x_0 | x_t) of every state at the start of interval i."""
        state = State({"token": self.states}, all_real(*self.states.shape))
        return self.exact(state, float(self.plan.start[i]))["token"].softmax(-1)

    def transition(self, law: Tensor) -> Tensor:
        """From laws of the elements ``[..., L, S]`` to that of the state ``[..., S^L]``."""
        law = law / law.sum(-1, keepdim=True)
        joint = law[..., 0, :]
        for j in range(1, law.shape[-2]):
            joint = (joint[..., :, None] * law[..., j, None, :]).flatten(-2)
        return joint

    def end(self) -> Tensor:
        """The law of the sample over all states."""
        p = self.exact.path.stationary[self.states].prod(-1)
        m, n = len(self.states), len(self.plan)
        first = self.transition(self.stepper.law(0, self.states, self.estimate(0)))
        if self.method != "ab2":
            p = p @ first
            for i in range(1, n):
                p = p @ self.transition(self.stepper.law(i, self.states, self.estimate(i)))
            return p
        # The step after depends on the state before as well: a chain of pairs.
        pairs = p[:, None] * first
        before, now = self.states.repeat_interleave(m, 0), self.states.repeat(m, 1)
        for i in range(1, n):
            self.stepper.memory = None
            self.stepper.law(i - 1, before, self.estimate(i - 1).repeat_interleave(m, 0))
            law = self.stepper.law(i, now, self.estimate(i).repeat(m, 1, 1))
            pairs = torch.einsum("ab,abc->bc", pairs, self.transition(law).view(m, m, m))
        return pairs.sum(0)

    def table(self) -> Tensor:
        """The target's law over all states; none is masked at the end."""
        clean = (self.states < self.exact.path.classes).all(1)
        p = torch.zeros(len(self.states), dtype=torch.float64)
        p[clean] = self.exact.table.flatten()
        return p


def miss(exact: TokenTable, method: str, times: Tensor, eta: float = 0.0) -> float:
    """Total variation between what a method samples and the table."""
    chain = Chain(exact, method, times, eta)
    return float((chain.end() - chain.table()).abs().sum() / 2)


@every_kind
@pytest.mark.parametrize(
    ("method", "order"), [("ancestral", 1), ("euler", 1), ("tau-leaping", 1), ("ab2", 2)]
)
def test_order(kind: str, method: str, order: int) -> None:
    exact = target(kind, table(2, 2, 2))
    errors = [miss(exact, method, equal_steps(n)) for n in (8, 32)]
    assert math.log(errors[0] / errors[1], 4) == pytest.approx(order, abs=0.17)


@every_kind
def test_order_two_on_uneven_steps(kind: str) -> None:
    """The weight is h/(2h′): its inverse, or 1/2, loses the order where steps alternate."""
    exact = target(kind, table(2, 2, 2))
    errors = []
    for n in (8, 32):
        widths = torch.tensor([1.0, 2.0] * (n // 2), dtype=torch.float64)
        times = 1 - torch.cat((torch.zeros(1), (widths / widths.sum()).cumsum(0)))
        errors.append(miss(exact, "ab2", times.clamp(min=0)))
    assert math.log(errors[0] / errors[1], 4) == pytest.approx(2, abs=0.2)


@every_kind
def test_second_order_wins_even_where_it_must_be_clipped(kind: str) -> None:
    for joint, gain in ((table(2, 2, 2), 3.0), (table(2, 2, 2, power=3.0, least=0.005), 1.4)):
        exact = target(kind, joint)
        old, new = (miss(exact, m, equal_steps(8)) for m in ("ancestral", "ab2"))
        assert new < old / gain


@every_kind
@pytest.mark.parametrize("method", ["ancestral", "ab2"])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_one_element_is_exact_at_any_step(kind: str, method: str, n: int) -> None:
    """Nothing else may move it: also the extrapolation must not count its own jumps."""
    assert miss(target(kind, table(3)), method, equal_steps(n)) < 1e-12


@every_kind
def test_independent_elements_are_exact_in_one_step(kind: str) -> None:
    a, b = torch.tensor([0.6, 0.3, 0.1]).double(), torch.tensor([0.1, 0.1, 0.8]).double()
    for method in METHODS:
        assert miss(target(kind, a[:, None] * b), method, equal_steps(1)) < 1e-12


def test_euler_is_ancestral_for_absorbing_noise() -> None:
    exact = target("absorbing", table(3, 3))
    ends = [Chain(exact, m, equal_steps(6)).end() for m in ("euler", "ancestral", "tau-leaping")]
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-14)
    assert float((ends[2] - ends[1]).abs().max()) > 1e-4


@every_kind
@every_method
def test_laws_are_laws(kind: str, method: str) -> None:
    """Also where steps are so long that Euler's probabilities pass 1."""
    exact = target(kind, table(3, 3, power=4.0, least=0.0))
    chain = Chain(exact, method, torch.tensor([1.0, 0.98, 0.3, 0.0], dtype=torch.float64))
    for i in range(3):
        law = chain.stepper.law(i, chain.states, chain.estimate(i))
        total = law.sum(-1)
        assert bool((law >= 0).all()) and bool((total > 0.999).all())
        if method != "ab2":
            torch.testing.assert_close(total, torch.ones_like(total))
    assert float(law[..., exact.path.classes :].sum()) == 0.0


def floor_of(p: Tensor, n: int) -> float:
    """Expected total variation between p and n exact draws of it."""
    return float((2 * p * (1 - p) / (math.pi * n)).sqrt().sum() / 2)


@every_kind
@every_method
def test_samples_follow_the_law_of_the_chain(kind: str, method: str) -> None:
    """At the sampling floor, for a few steps that are far from the table."""
    n, steps = 20_000, 3
    exact = target(kind, table(3, 3, power=2.0, least=0.05))
    sampler = Sampler(steps=steps, token_method=method, greedy=False, logsnr_last=20.0)  # type: ignore[arg-type]
    report = sampler(exact, all_real(n, 2), Draws(3, torch.arange(n)), dtype=torch.float64)
    chain = Chain(exact, method, equal_steps(steps))
    clean = (chain.states < 3).all(1)
    law = chain.end()[clean].view(3, 3)
    found = exact.frequencies(report.state["token"])
    floor = floor_of(law, n)
    assert report.calls == steps
    assert float((found - law).abs().sum() / 2) < 1.6 * floor
    assert float((law - exact.table).abs().sum() / 2) > 2 * floor


@every_kind
@pytest.mark.parametrize(("method", "steps"), [("ancestral", 100), ("ab2", 25)])
def test_joint_law_is_the_table(kind: str, method: str, steps: int) -> None:
    """Total variation at the floor of an exact sample of the same size."""
    n = 5000
    exact = target(kind, table(3, 3, power=2.0, least=0.05))
    sampler = Sampler(steps=steps, token_method=method, greedy=False, logsnr_last=20.0)  # type: ignore[arg-type]
    report = sampler(exact, all_real(n, 2), Draws(3, torch.arange(n)), dtype=torch.float64)
    distance = float((exact.frequencies(report.state["token"]) - exact.table).abs().sum() / 2)
    floor = floor_of(exact.table, n)
    assert 0.3 * floor < distance < 1.6 * floor + miss(exact, method, equal_steps(steps))
    assert miss(exact, method, equal_steps(steps)) < 1.2 * floor


def test_the_floor_is_that_of_exact_draws() -> None:
    n, p = 10_000, (table(3, 3) / table(3, 3).sum()).flatten()
    u = torch.rand(40, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    counts = [torch.bincount(Tokens(9).sample(p.expand(n, 9), v), minlength=9) for v in u]
    found = (torch.stack(counts) / n - p).abs().sum(1).mean() / 2
    assert float(found) == pytest.approx(floor_of(p, n), rel=0.15)


@every_method
@every_kind
def test_a_sample_depends_on_its_number_alone(kind: str, method: str) -> None:
    exact = target(kind, table(3, 3, 3, power=3.0))

    class Padded(TokenTable):
        """The table for the real tokens; what padding holds is anything."""

        def exact(self, state: State, times: object) -> dict[str, Tensor]:  # type: ignore[override]
            x = state["token"]
            t = times["token"]  # type: ignore[index]
            real = super().exact(State({"token": x[:, :3]}, state.context), {"token": t})["token"]
            junk = torch.full((len(x), x.shape[1] - 3, 3), 7.0, dtype=torch.float64)
            return {"token": torch.cat((real, junk), 1)}

    sampler = Sampler(steps=5, token_method=method, greedy=False)  # type: ignore[arg-type]
    draws = Draws(4, [10, 11, 12])
    whole = sampler(exact, all_real(3, 3), draws).state["token"]
    for row in range(3):
        alone = sampler(exact, all_real(1, 3), draws.rows(slice(row, row + 1))).state["token"]
        assert torch.equal(alone[0], whole[row])
    mask = torch.arange(5).expand(3, 5) < 3
    padded = sampler(Padded(exact.path, exact.table), Context(mask), draws).state["token"]
    assert torch.equal(padded[:, :3], whole) and not bool(padded[:, 3:].any())


@every_method
@every_kind
def test_pairs_stay_symmetric(kind: str, method: str) -> None:
    path = path_of(kind, 3, pairs=True, schedule=Cosine())
    context = Context(torch.arange(5) < torch.tensor([5, 3])[:, None])
    draws = Draws(0, [0, 1])
    plan = Plan.along(torch.tensor([1.0, 0.6, 0.3, 0.0]))
    stepper = MarkovJumps(path, plan, greedy=False, method=method)  # type: ignore[arg-type]
    x = path.prior(context, draws, "p", torch.float32)
    g = torch.Generator().manual_seed(0)
    for i in range(3):
        # Logits that differ between (i, j) and (j, i), as those of a careless network might.
        clean = path.clean(
            torch.randn(2, 5, 5, 3, generator=g), x, plan.start[i].expand(2), context
        )
        x = stepper.step(i, x, clean, context, draws)
        assert torch.equal(x, x.transpose(1, 2))
        assert not bool(x[1, 3:].any()) and not bool(x.diagonal(dim1=1, dim2=2).any())
    assert int(x.max()) < 3


def test_single_precision_logits_give_the_same_laws() -> None:
    for kind, method in itertools.product(KINDS, METHODS):
        single, double = (Chain(target(kind, table(3, 3)), method, equal_steps(6)) for _ in "ab")
        for i in range(6):
            a = single.stepper.law(i, single.states, single.estimate(i).float())
            b = double.stepper.law(i, double.states, double.estimate(i))
            assert a.dtype == torch.float32
            torch.testing.assert_close(a.double(), b, rtol=0, atol=3e-5)


def test_remasking_keeps_the_marginals_of_both_methods_that_know_it() -> None:
    for method in ("ancestral", "ab2"):
        assert miss(target("absorbing", table(3)), method, equal_steps(5), eta=0.7) < 1e-12
        exact = target("absorbing", table(2, 2))
        few, many = (miss(exact, method, equal_steps(n), eta=0.3) for n in (4, 32))
        assert many < 0.5 * few
    for method in ("euler", "tau-leaping"):
        with pytest.raises(InputError, match="ancestral and ab2 only"):
            Chain(exact, method, equal_steps(3), eta=0.3)
        Chain(target("uniform", table(2)), method, equal_steps(3), eta=0.3)


def test_a_restart_forgets_the_estimate_before_it() -> None:
    exact = target("uniform", table(3, 3))
    plan = Plan.along(equal_steps(4)).then(Plan.along(torch.tensor([0.5, 0.2, 0.0])))
    fresh = Chain(exact, "ancestral", equal_steps(4))
    steppers = [MarkovJumps(exact.path, plan, greedy=False, method=m) for m in ("ancestral", "ab2")]  # type: ignore[arg-type]
    same = []
    for i in range(len(plan)):
        fresh.plan = plan
        p0 = fresh.estimate(i)
        a, b = (s.law(i, fresh.states.flip(0), p0) for s in steppers)
        same.append(bool(torch.allclose(a, b, rtol=0, atol=1e-12)))
    assert same == [True, False, False, False, True, False]


def test_points_and_tokens_gain_together() -> None:
    """The toy of a mixed state: at ten calls second order for tokens is at the floor."""
    angle, n = torch.arange(5) * 2 * math.pi / 5, 20_000
    exact = NamedMixture(
        GaussianPath(Euclidean(2), Rectified()), CategoricalPath(Tokens(5), Rectified()),
        2 * torch.stack((angle.cos(), angle.sin()), -1), 0.25**2, [0.1, 0.3, 0.2, 0.25, 0.15],
    )  # fmt: skip

    def distance(**settings: object) -> float:
        sampler = Sampler(greedy=False, **settings)  # type: ignore[arg-type]
        state = sampler(exact, all_real(n), Draws(0, torch.arange(n))).state
        pair = exact.component(state["x"][:, 0]) * 5 + state["token"][:, 0]
        found = torch.bincount(pair, minlength=25).view(5, 5) / n
        return float((found - exact.joint()).abs().sum() / 2)

    first, second = (distance(steps=10, token_method=m) for m in ("ancestral", "ab2"))
    floor = floor_of(exact.joint(), n)
    assert second < 1.6 * floor and second < 0.6 * first
    # A method of two calls a step visits every time twice; tokens move at the second visit only.
    assert distance(steps=19, method="heun", token_method="ab2") < 1.8 * floor


class Timeless(Denoiser):
    """Logits of the table given what is seen, by counting: no time enters."""

    def __init__(self, joint: Tensor, kind: str = "absorbing", self_conditioning: bool = False):
        super().__init__()
        self.paths = {"token": path_of(kind, joint.shape[0])}
        self.joint, self.calls, self.self_conditioning = joint, 0, self_conditioning

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        self.calls += 1
        x, k = state["token"], self.joint.shape[0]
        p = self.joint.expand(len(x), *self.joint.shape)
        for j in range(x.shape[1]):
            fits = (x[:, j, None] == torch.arange(k)) | (x[:, j, None] == k)
            p = p * fits.view(len(x), *(k if i == j else 1 for i in range(x.shape[1])))
        parts = [p.movedim(j + 1, 1).flatten(2).sum(2) for j in range(x.shape[1])]
        return Prediction({"token": torch.stack(parts, 1).clamp(min=1e-30).log()})


@every_method
@pytest.mark.parametrize("batch", [1, 3])
def test_cache_gives_the_same_samples_from_fewer_calls(method: str, batch: int) -> None:
    args = (all_real(batch, 4), Draws(0, torch.arange(batch)))
    plain, kept = (Timeless(table(3, 3, 3, 3, power=3.0)) for _ in "ab")
    settings = {"steps": 50, "token_method": method, "greedy": False}
    a = Sampler(**settings)(plain, *args)  # type: ignore[arg-type]
    b = Sampler(**settings, cache=True)(kept, *args)  # type: ignore[arg-type]
    assert torch.equal(a.state["token"], b.state["token"])
    assert a.calls == plain.calls == 50
    # A call for the start, and one at most for each of the 4 tokens that a sample unmasks.
    assert 1 < b.calls == kept.calls <= 1 + 4 * batch


def test_cache_with_restarts_and_remasking() -> None:
    args = (all_real(2, 4), Draws(0, [0, 1]))
    settings = {"steps": 60, "token_eta": 0.2, "restarts": 1, "restart_time": 0.6}
    plain, kept = (Timeless(table(3, 3, 3, 3)) for _ in "ab")
    a = Sampler(**settings)(plain, *args)  # type: ignore[arg-type]
    b = Sampler(**settings, cache=True)(kept, *args)  # type: ignore[arg-type]
    assert torch.equal(a.state["token"], b.state["token"])
    assert a.calls == 60 > b.calls == kept.calls


def test_cache_is_refused_where_estimates_change_by_themselves() -> None:
    sampler, draws = Sampler(steps=3, cache=True), Draws(0, [0])
    with pytest.raises(InputError, match="'token' is something else"):
        sampler(Timeless(table(2, 2), "uniform"), all_real(1, 2), draws)
    with pytest.raises(InputError, match="self-conditioned"):
        sampler(Timeless(table(2, 2), self_conditioning=True), all_real(1, 2), draws)


def test_settings() -> None:
    sampler = Sampler(token_method="ab2", cache=True)
    assert Sampler(**json.loads(json.dumps(sampler.config()))) == sampler
    with pytest.raises(InputError, match=r"'gillespie'; known: ancestral, euler, tau-leaping, ab2"):
        Sampler(token_method="gillespie")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="known: ancestral"):
        Chain(target("uniform", table(2)), "gillespie", equal_steps(2))
