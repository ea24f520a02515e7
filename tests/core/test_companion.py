"""Tokens whose stationary law depends on a companion field: Bayes and laws by enumeration."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.objectives import DenoisingObjective
from sciflow.paths import CategoricalPath
from sciflow.paths.companion import stationary_given
from sciflow.random import Draws
from sciflow.samplers import Plan, Sampler
from sciflow.samplers.discrete import MarkovJumps
from sciflow.schedules import Cosine, Rectified
from sciflow.spaces import Tokens
from sciflow.state import Context, State, Times
from sciflow.testing.targets import TokenTable, all_real

C, K = 2, 3
TABLE = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.2, 0.7]], dtype=torch.float64)
"""P(symbol | companion)."""


def path_of(pairs: bool = False, marginal: object = "law", cosine: bool = False) -> CategoricalPath:
    schedule = Cosine() if cosine else Rectified()
    return CategoricalPath(Tokens(K, pairs), schedule, "marginal", marginal)  # type: ignore[arg-type]


def around(companion: Tensor, pairs: bool = False, table: Tensor = TABLE) -> Context:
    """Every element real, with π from the table."""
    context = all_real(*companion.shape[:2])
    return context.replace(
        extras={"law": stationary_given(table, companion, Tokens(K, pairs), context)}
    )


def matrices(path: CategoricalPath, context: Context, alpha: float) -> Tensor:
    """Q(α) of every element, ``[B, N, K, K]``, rows: from."""
    chain = path.within(context).transitions
    a = torch.tensor(alpha, dtype=torch.float64)
    rows = [chain.push(row.expand(chain.stationary.shape), a) for row in torch.eye(K).double()]
    return torch.stack(rows, -2)


COMPANION = torch.tensor([[0, 1, 1], [1, 0, 1]])


def test_every_element_has_its_own_chain() -> None:
    """exp(−R log α), Chapman-Kolmogorov, and both ends."""
    path, context = path_of(), around(COMPANION)
    rates = path.within(context).transitions.rates
    for a, b in ((0.9, 0.5), (0.3, 0.02), (0.5, 0.0)):
        q = matrices(path, context, a)
        torch.testing.assert_close(q, torch.matrix_exp(-math.log(a) * rates))
        product = q @ matrices(path, context, b)
        torch.testing.assert_close(product, matrices(path, context, a * b), rtol=0, atol=1e-12)
    end = matrices(path, context, 0.0)
    torch.testing.assert_close(end, TABLE[COMPANION][..., None, :].expand(end.shape))


@pytest.mark.parametrize(("alpha_t", "alpha_s"), [(0.3, 0.6), (0.0, 0.2), (0.7, 1.0)])
def test_posterior_is_bayes_rule(alpha_t: float, alpha_s: float) -> None:
    path, context = path_of(), around(COMPANION)
    to_s, s_to_t = (matrices(path, context, a) for a in (alpha_s, alpha_t / alpha_s))
    g = torch.Generator().manual_seed(0)
    p0 = torch.rand(2, 3, K, generator=g, dtype=torch.float64).softmax(-1)
    for symbols in itertools.product(range(K), repeat=3):
        x = torch.tensor(symbols).expand(2, 3)
        arrive = s_to_t.gather(-1, x[..., None, None].expand(2, 3, K, 1))[..., 0]
        joint = to_s * arrive[..., None, :]
        expected = (p0[..., None] * joint / joint.sum(-1, keepdim=True)).sum(-2)
        at, as_ = torch.tensor([alpha_t, alpha_s], dtype=torch.float64)
        found = path.within(context).posterior(p0, x, at, as_)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_reversed_rates_are_the_derivative_of_the_posterior() -> None:
    path = path_of().within(around(COMPANION))
    g = torch.Generator().manual_seed(1)
    p0 = torch.rand(2, 3, K, generator=g, dtype=torch.float64).softmax(-1)
    at, h = torch.tensor(0.4, dtype=torch.float64), 1e-6
    for k in range(K):
        x = torch.full((2, 3), k)
        step = path.posterior(p0, x, at, at + h) / h
        step[..., k] = 0.0
        torch.testing.assert_close(path.reverse_rates(p0, x, at), step, rtol=1e-4, atol=1e-4)


def test_one_law_for_all_is_the_plain_kind_bit_for_bit() -> None:
    law, n = [0.5, 0.3, 0.2], 50
    plain, own = path_of(marginal=law), path_of()
    pi = torch.tensor(law, dtype=torch.float64).expand(n, 4, K)
    context, draws = all_real(n, 4).replace(extras={"law": pi}), Draws(3, torch.arange(n))
    x0 = draws.integers(n, "x").view(-1, 1).expand(n, 4) % K
    t = torch.linspace(0, 1, n, dtype=torch.float64)
    for a, b in (
        (plain.corrupt(x0, t, context, draws, "c"), own.corrupt(x0, t, context, draws, "c")),
        (plain.renoise(x0, 0.2, 0.7, context, draws, "r"),
         own.renoise(x0, 0.2, 0.7, context, draws, "r")),
        (plain.prior(context, draws, "p", torch.float32),
         own.prior(context, draws, "p", torch.float32)),
    ):  # fmt: skip
        assert torch.equal(a, b)


def test_noising_has_each_element_s_law() -> None:
    n, path = 30_000, path_of()
    companion = torch.arange(2).expand(n, 2)
    context, draws = around(companion), Draws(1, torch.arange(n))
    x0 = torch.tensor([2, 1]).expand(n, 2)
    t = torch.full((n,), 0.6, dtype=torch.float64)
    early = path.corrupt(x0, t / 2, context, draws, "s")
    for x, alpha in (
        (path.corrupt(x0, t, context, draws, "noise"), 0.4),
        (path.renoise(early, 0.3, 0.6, context, draws, "t", 1), 0.4),
        (path.prior(context, draws, "p", torch.float32), 0.0),
    ):
        q = matrices(path, context.apply(lambda a: a[:1]), alpha)[0]
        for j in range(2):
            p = q[j, int(x0[0, j])]
            counts = torch.bincount(x[:, j], minlength=K)
            assert float(((counts - n * p) ** 2 / (n * p)).sum()) < 2 + 4 * math.sqrt(4)


class GivenCompanion(Denoiser):
    """The exact posterior of a table p(x_0 | c) whose row is that of the sample's companion."""

    def __init__(self, path: CategoricalPath, tables: Tensor):
        super().__init__()
        self.paths = {"token": path}
        self.rows = [TokenTable(path, table) for table in tables]

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        which = state.context.extras["which"]
        logits = torch.zeros(*state["token"].shape, K, dtype=torch.float64)
        for c, row in enumerate(self.rows):
            here = which == c
            logits[here] = row(state.index(here), t)["token"]
        return Prediction({"token": logits})


def tables() -> Tensor:
    """p(x^1, x^2 | c) of companions (0, 1) and (1, 1); so even that ab2 clips nothing."""
    g = torch.Generator().manual_seed(5)
    p = torch.rand(2, K, K, generator=g, dtype=torch.float64) + 0.5
    return p / p.sum((1, 2), keepdim=True)


@pytest.mark.parametrize(("method", "steps"), [("ancestral", 30), ("ab2", 12)])
def test_joint_law_of_tokens_and_companion(method: str, steps: int) -> None:
    n, joint = 10_000, tables()
    which = (torch.arange(n) % 3 == 0).long()
    companion = torch.tensor([[0, 1], [1, 1]])[which]
    context = around(companion)
    context = context.replace(extras={**context.extras, "which": which})
    sampler = Sampler(steps=steps, token_method=method, greedy=False)  # type: ignore[arg-type]
    exact = GivenCompanion(path_of(), joint)
    x = sampler(exact, context, Draws(0, torch.arange(n))).state["token"]
    index = (which * K + x[:, 0]) * K + x[:, 1]
    found = torch.bincount(index, minlength=2 * K * K) / n
    expected = (torch.bincount(which)[:, None, None] / n * joint).flatten()
    # E |f − p|/2 summed over cells, of n independent draws.
    floor = float((expected * (1 - expected) / (2 * math.pi * n)).sqrt().sum())
    assert float((found - expected).abs().sum() / 2) < 1.5 * floor


@pytest.mark.parametrize(("method", "order"), [("ancestral", 1), ("tau-leaping", 1), ("ab2", 2)])
def test_order_without_sampling_noise(method: str, order: int) -> None:
    """The law of two tokens with different π, by enumeration of whole chains."""
    path, joint = path_of(), tables()[0]
    exact = TokenTable(path, joint)
    states = torch.tensor(list(itertools.product(range(K), repeat=2)))
    m = len(states)
    context = around(torch.tensor([[0, 1]]).expand(m, 2))
    twice = around(torch.tensor([[0, 1]]).expand(m * m, 2))

    def product(law: Tensor) -> Tensor:
        law = law / law.sum(-1, keepdim=True)
        return (law[:, 0, :, None] * law[:, 1, None, :]).flatten(1)

    def miss(n: int) -> float:
        plan = Plan.along(torch.linspace(1, 0, n + 1, dtype=torch.float64))
        stepper = MarkovJumps(path, plan, greedy=False, method=method)  # type: ignore[arg-type]
        stepper.chain = path.within(context)
        p0 = [exact(State({"token": states}, context), float(t))["token"].softmax(-1)
              for t in plan.start]  # fmt: skip
        start = TABLE[0][states[:, 0]] * TABLE[1][states[:, 1]]
        pairs = start[:, None] * product(stepper.law(0, states, p0[0]))
        stepper.chain = path.within(twice)
        before, now = states.repeat_interleave(m, 0), states.repeat(m, 1)
        for i in range(1, n):
            stepper.memory = None
            stepper.law(i - 1, before, p0[i - 1].repeat_interleave(m, 0))
            law = product(stepper.law(i, now, p0[i].repeat(m, 1, 1)))
            pairs = torch.einsum("ab,abc->bc", pairs, law.view(m, m, m))
        return float((pairs.sum(0) - joint.flatten()).abs().sum() / 2)

    assert math.log(miss(8) / miss(32), 4) == pytest.approx(order, abs=0.2)


def test_a_sample_knows_neither_its_batch_nor_padding() -> None:
    path, g = path_of(pairs=True, cosine=True), torch.Generator().manual_seed(0)
    table = torch.rand(C, C, K, generator=g, dtype=torch.float64) + 0.05
    companion = torch.randint(0, C, (3, 6), generator=g)
    mask = torch.arange(6) < torch.tensor([6, 4, 1])[:, None]

    def end(rows: slice, size: int) -> Tensor:
        context = Context(mask[rows, :size])
        law = stationary_given(table, companion[rows, :size], path.space, context)
        context = context.replace(extras={"law": law})
        draws = Draws(2, torch.arange(3)[rows])
        stepper = MarkovJumps(path, Plan.along(torch.tensor([1.0, 0.5, 0.2])), method="ab2")
        x = path.prior(context, draws, "p", torch.float32)
        for i in range(2):
            logits = torch.nn.functional.one_hot(x, K).double()
            x = stepper.step(i, x, logits, context, draws)
            assert torch.equal(x, x.transpose(1, 2))
            assert not bool((x * ~path.space.mask(context)).any())
        return x

    together = end(slice(None), 6)
    assert bool(together.any())
    assert torch.equal(together[1:2, :4, :4], end(slice(1, 2), 4))
    assert torch.equal(together[:1], end(slice(0, 1), 6))


def test_pairs_begin_with_the_law_of_their_ends() -> None:
    n, path = 20_000, path_of(pairs=True)
    g = torch.Generator().manual_seed(4)
    table = torch.rand(C, C, K, generator=g, dtype=torch.float64) + 0.1
    context = around(torch.tensor([[0, 1, 1]]).expand(n, 3), True, table)
    x = path.prior(context, Draws(0, torch.arange(n)), "p", torch.float32)
    rows = table / table.sum(-1, keepdim=True)
    for i, j, p in ((0, 1, (rows[0, 1] + rows[1, 0]) / 2), (1, 2, rows[1, 1])):
        counts = torch.bincount(x[:, i, j], minlength=K)
        assert float(((counts - n * p) ** 2 / (n * p)).sum()) < 2 + 4 * math.sqrt(4)


def test_laws_of_points_and_of_pairs_from_a_table() -> None:
    context = Context(torch.tensor([[True, True, True, False], [True, False, False, False]]))
    bonds = torch.zeros(2, 4, 4, dtype=torch.int64)
    bonds[0, 0, 1] = bonds[0, 1, 0] = 1
    bonds[0, :, 3] = bonds[0, 3, :] = 7  # Padding is not read.
    pi = stationary_given(TABLE, bonds, Tokens(K), context)
    torch.testing.assert_close(pi[0, :2], TABLE.mean(0).expand(2, K))
    torch.testing.assert_close(pi[0, 2], TABLE[0])
    torch.testing.assert_close(pi[1, 0], TABLE[0])
    bonds[0, :, 3] = bonds[0, 3, :] = 0
    torch.testing.assert_close(stationary_given(TABLE, bonds, Tokens(K, True), context),
                               TABLE[bonds])  # fmt: skip
    torch.testing.assert_close(pi.sum(-1), torch.ones(2, 4, dtype=torch.float64))


class Uniform(Denoiser):
    """Knows nothing; every symbol is as likely."""

    self_conditioning = False

    def __init__(self, path: CategoricalPath):
        super().__init__()
        self.paths = {"token": path}

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        return Prediction({"token": torch.zeros(*state["token"].shape, K)})


def test_the_objective_noises_by_the_companion() -> None:
    path, context = path_of(), around(COMPANION)
    state = State({"token": COMPANION}, context)
    losses = DenoisingObjective(t_min=1.0)(Uniform(path), state, Draws(0, [0, 1]), 0)  # type: ignore[arg-type]
    torch.testing.assert_close(losses.total, torch.full((2,), math.log(K)))


def test_what_is_refused() -> None:
    path, context, draws = path_of(), around(COMPANION), Draws(0, [0, 1])
    with pytest.raises(InputError, match=r"extras\['law'\], \[2, 3, 3\].*only \[\]"):
        path.prior(all_real(2, 3), draws, "p", torch.float32)
    with pytest.raises(InputError, match=r"one \[2, 3, 2\]"):
        path.within(context.replace(extras={"law": torch.ones(2, 3, 2)}))
    with pytest.raises(InputError, match="0 or more"):
        path.within(context.replace(extras={"law": -torch.ones(2, 3, 3)}))
    with pytest.raises(InputError, match=r"path\.within"):
        path.likelihood(COMPANION, torch.tensor(0.5), torch.float64)
    points, pairs = Tokens(K), Tokens(K, True)
    for table, companion, space, message in (
        (TABLE, COMPANION, pairs, r"\[C, C, 3\], not \[2, 3\]"),
        (TABLE, COMPANION[:, :2], points, r"not \[2, 2\]"),
        (TABLE * torch.tensor([[1.0], [0.0]]), COMPANION, points, "small count"),
        (TABLE, COMPANION + 1, points, "table's 0 to 1"),
    ):
        with pytest.raises(InputError, match=message):
            stationary_given(table, companion, space, context)


def test_a_path_is_plain_data_and_serves_every_batch() -> None:
    path = path_of()
    config = json.loads(json.dumps(path.config()))
    assert config["marginal"] == "law" and path.symbols == K
    assert path.with_schedule(Cosine()).marginal == "law"
    one, two = around(COMPANION), around(1 - COMPANION)
    for bound in (path.within(two), path.within(one).within(two)):
        torch.testing.assert_close(bound.stationary, TABLE[1 - COMPANION])
    plain = path_of(marginal=[1.0, 1.0, 2.0])
    assert plain.within(one) is plain
