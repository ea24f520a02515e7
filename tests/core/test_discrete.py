"""Token jumps on joint tables whose posterior is known by enumeration."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sciflow.paths import CategoricalPath
from sciflow.random import Draws
from sciflow.samplers import Plan, Sampler
from sciflow.samplers.discrete import MarkovJumps
from sciflow.schedules import Cosine, Rectified
from sciflow.spaces import Tokens
from sciflow.state import Context, State, field_times
from sciflow.testing.targets import TokenTable, all_real

KINDS = ["absorbing", "uniform", "marginal"]
every_kind = pytest.mark.parametrize("kind", KINDS)


def table() -> Tensor:
    """Three tokens of three symbols, far from independent."""
    g = torch.Generator().manual_seed(2)
    p = torch.rand(3, 3, 3, generator=g, dtype=torch.float64) ** 4
    p[1, 1] = 0.0
    return p / p.sum()


def target(kind: str, joint: Tensor | None = None, power: float = 1.0) -> TokenTable:
    joint = table() if joint is None else joint
    marginal = [0.5, 0.3, 0.2] if kind == "marginal" else None
    path = CategoricalPath(Tokens(joint.shape[0]), Rectified(power), kind, marginal)  # type: ignore[arg-type]
    return TokenTable(path, joint)


def total_variation(x: Tensor, exact: TokenTable) -> float:
    return float((exact.frequencies(x) - exact.table).abs().sum() / 2)


@every_kind
def test_the_exact_posterior_is_bayes_rule(kind: str) -> None:
    """Against the frequencies among corrupted draws of the table."""
    n, exact = 100_000, target(kind)
    draws, context = Draws(0, torch.arange(n)), all_real(n, 3)
    u = draws.uniform((1,), "data", dtype=torch.float64)
    flat = Tokens(27).sample(exact.table.flatten().expand(n, 1, 27), u)[:, 0]
    x0 = torch.stack((flat // 9, flat // 3 % 3, flat % 3), 1)
    t = torch.full((n,), 0.5)
    x = exact.path.corrupt(x0, t, context, draws, "noise")
    seen = x[0].clone()
    rows = (x == seen).all(1)
    p = exact.exact(State({"token": seen[None]}, all_real(1, 3)),
                    {"token": torch.tensor([0.5], dtype=torch.float64)})["token"].exp()  # fmt: skip
    for i in range(3):
        frequency = torch.bincount(x0[rows, i], minlength=3) / rows.sum()
        assert float((frequency - p[0, i]).abs().max()) < 4 * 0.5 / math.sqrt(int(rows.sum()))


@pytest.mark.parametrize(
    ("kind", "eta", "bound"),
    [("absorbing", 0.0, 0.03), ("absorbing", 0.5, 0.05), ("uniform", 0.0, 0.03),
     ("marginal", 0.0, 0.03)],
)  # fmt: skip
def test_the_joint_law_is_the_table(kind: str, eta: float, bound: float) -> None:
    """Jumps of one step are independent of each other: an error that falls with the steps.

    Two independent sets of exact draws are 0.02 apart; remasking (η > 0) converges as 1/√steps.
    """
    n, exact = 10_000, target(kind)
    draws, context = Draws(0, torch.arange(n)), all_real(n, 3)
    tv = {}
    for steps in (4, 64):
        sampler = Sampler(steps=steps, token_eta=eta, greedy=False, logsnr_last=12.0)
        tv[steps] = total_variation(sampler(exact, context, draws).state["token"], exact)
    assert tv[64] < bound and tv[64] < 0.5 * tv[4]


def test_an_independent_table_is_exact_in_one_step() -> None:
    n = 20_000
    a, b = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.1, 0.1, 0.8])
    exact = target("absorbing", a[:, None] * b)
    x = Sampler(steps=1, greedy=False)(exact, all_real(n, 2), Draws(0, torch.arange(n))).state[
        "token"
    ]
    expected = n * exact.table
    chi2 = float(((n * exact.frequencies(x) - expected) ** 2 / expected).sum())
    assert chi2 < 8 + 4 * 4


@every_kind
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_one_step_keeps_the_marginals(kind: str, eta: float) -> None:
    """From exact x_t with an exact posterior each token's x_s has its law at s, for every η."""
    n, t, s = 60_000, 0.7, 0.4
    p = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    exact = target(kind, p)
    path, draws, context = exact.path, Draws(1, torch.arange(n)), all_real(n)
    x0 = Tokens(3).sample(p.expand(n, 1, 3), draws.uniform((1,), "data", dtype=torch.float64))
    x = path.corrupt(x0, torch.full((n,), t), context, draws, "noise")
    stepper = MarkovJumps(path, Plan.along(torch.tensor([t, s, 0.0])), eta, greedy=False)
    logits = exact(State({"token": x}, context), t)["token"]
    y = stepper.step(0, x, logits, context, draws)
    law = torch.nn.functional.pad(p * (1 - s), (0, path.symbols - 3)) + s * path.stationary
    counts = torch.bincount(y.flatten(), minlength=path.symbols)
    assert float(((counts - n * law) ** 2 / (n * law)).sum()) < len(law) - 1 + 4 * math.sqrt(
        2 * len(law)
    )
    if kind == "absorbing":
        back = float(((x < 3) & (y == 3)).double().sum() / (x < 3).sum())
        limit = min(1.0, s / (1 - t))
        assert back == pytest.approx(eta * limit, abs=0.01)


@every_kind
def test_everything_ends_unmasked(kind: str) -> None:
    for greedy in (True, False):
        for steps in (1, 2, 9):
            sampler = Sampler(steps=steps, greedy=greedy, token_eta=0.5)
            x = sampler(target(kind), all_real(500, 3), Draws(0, torch.arange(500))).state["token"]
            assert int(x.min()) >= 0 and int(x.max()) < 3


def test_a_draw_at_the_edge_is_unmasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest uniform rounds to 1 in float32."""
    edge = 1 - 0.5 / 2**32
    exact = target("absorbing")
    monkeypatch.setattr(
        Tokens, "uniform",
        lambda self, context, *_: torch.full(context.mask.shape, edge, dtype=torch.float64),
    )  # fmt: skip
    stepper = MarkovJumps(exact.path, Plan.along(torch.tensor([1.0, 0.0])), greedy=False)
    x = torch.full((1, 3), 3)
    y = stepper.step(0, x, torch.zeros(1, 3, 3, dtype=torch.float32), all_real(1, 3), Draws(0, [0]))
    assert y.tolist() == [[2, 2, 2]]


def test_seen_tokens_stay_without_remasking() -> None:
    seen: list[Tensor] = []

    class Watched(TokenTable):
        def exact(self, state: State, times: object) -> dict[str, Tensor]:  # type: ignore[override]
            seen.append(state["token"])
            return super().exact(state, times)  # type: ignore[arg-type]

    exact = Watched(target("absorbing").path, table())
    args = (exact, all_real(300, 3), Draws(0, torch.arange(300)))
    Sampler(steps=12, greedy=False)(*args)
    for before, after in pairwise(seen):
        assert torch.equal(after[before < 3], before[before < 3])
    assert bool((seen[0] == 3).all()) and bool((seen[-1] < 3).any())
    seen.clear()
    Sampler(steps=12, greedy=False, token_eta=1.0)(*args)
    assert any(bool(((b < 3) & (a == 3)).any()) for b, a in pairwise(seen))


def test_greedy_ends_and_temperature_sharpen() -> None:
    n, p = 4000, torch.tensor([0.55, 0.3, 0.15], dtype=torch.float64)
    exact, draws = target("absorbing", p), Draws(0, torch.arange(4000))

    def shares(**settings: float) -> Tensor:
        x = Sampler(steps=1, **settings)(exact, all_real(n), draws).state["token"]  # type: ignore[arg-type]
        return torch.bincount(x.flatten(), minlength=3) / n

    assert shares(greedy=True)[0] == 1.0
    for temperature in (0.5, 2.0):
        q = p ** (1 / temperature)
        found = shares(greedy=False, temperature=temperature)
        assert float((found - q / q.sum()).abs().max()) < 4 * 0.5 / math.sqrt(n)


def test_pairs_stay_symmetric() -> None:
    path = CategoricalPath(Tokens(4, pairs=True), Cosine())
    context = Context(torch.arange(5) < torch.tensor([5, 3])[:, None])
    draws = Draws(0, [0, 1])
    stepper = MarkovJumps(path, Plan.along(torch.tensor([1.0, 0.6, 0.3, 0.0])), 0.5, greedy=False)
    x = path.prior(context, draws, "p", torch.float32)
    for i in range(3):
        # Logits that differ between (i, j) and (j, i), as those of a careless network might.
        x = stepper.step(i, x, torch.randn(2, 5, 5, 4), context, draws)
        assert torch.equal(x, x.transpose(1, 2))
        assert not bool(x[1, 3:].any()) and not bool(x.diagonal(dim1=1, dim2=2).any())
    assert int(x.max()) < 4


def test_two_clocks() -> None:
    """A field on a later schedule (its noise stays longer) has seen fewer tokens at any time."""
    t = torch.tensor([0.5], dtype=torch.float64)
    early, late = (target("absorbing", power=p).path.keep(t) for p in (2.0, 0.5))
    assert float(early) == 0.75 > 0.5 > float(late)


def test_element_times_reach_the_posterior() -> None:
    exact = target("absorbing")
    given = torch.tensor([[True, False, False]])
    context = all_real(1, 3).replace(given={"token": given})
    state = State({"token": torch.tensor([[2, 3, 3]])}, context)
    assert field_times(0.9, state)["token"].tolist() == [[0.0, 0.9, 0.9]]
    p = exact(state, 0.9)["token"].softmax(-1)[0]
    conditional = exact.table[2] / exact.table[2].sum()
    torch.testing.assert_close(p[1], conditional.sum(1))
    torch.testing.assert_close(p[2], conditional.sum(0))
    assert float(p[0, 2]) == pytest.approx(1.0)
