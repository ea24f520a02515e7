"""Chains on an alphabet: matrix exponentials, Chapman-Kolmogorov, balance, Bayes by enumeration."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from torch import Tensor

from sciflow.errors import InputError
from sciflow.paths import CategoricalPath
from sciflow.paths.transitions import Interpolating, Reversible, Transitions, reversible_rates
from sciflow.random import Draws
from sciflow.schedules import Cosine, Rectified
from sciflow.spaces import Tokens
from sciflow.state import Context
from sciflow.testing.targets import all_real

PI = [0.4, 0.3, 0.2, 0.1]
CHAINS: dict[str, Transitions] = {
    "absorbing": Interpolating(torch.tensor([0.0, 0.0, 0.0, 1.0])),
    "uniform": Interpolating(torch.full((4,), 0.25)),
    "marginal": Interpolating(torch.tensor(PI, dtype=torch.float64)),
    "neighbours": Reversible(reversible_rates(PI)),
    "gaussian": Reversible(reversible_rates(PI, 0.8)),
    "any": Reversible(torch.tensor([[0.0, 2.0, 3.0], [4.0, 0.0, 1.0], [6.0, 1.0, 0.0]])),
}
every = pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
every_reversible = pytest.mark.parametrize("chain", list(CHAINS.values())[3:], ids=[*CHAINS][3:])


def matrix(chain: Transitions, alpha: float) -> Tensor:
    """Q(α), rows: from."""
    n = len(chain.stationary)
    return chain.push(torch.eye(n, dtype=torch.float64), torch.tensor(alpha, dtype=torch.float64))


@every
@pytest.mark.parametrize("alpha", [1.0, 0.7, 0.2, 1e-3])
def test_kernel_is_the_matrix_exponential(chain: Transitions, alpha: float) -> None:
    exact = torch.matrix_exp(-math.log(alpha) * chain.rates)
    torch.testing.assert_close(matrix(chain, alpha), exact, rtol=1e-9, atol=1e-12)
    one = torch.eye(len(exact), dtype=torch.float64)
    columns = chain.pull(one, torch.tensor(alpha, dtype=torch.float64)).T
    torch.testing.assert_close(columns, exact, rtol=1e-9, atol=1e-12)


@every
def test_chapman_kolmogorov_and_the_ends(chain: Transitions) -> None:
    n = len(chain.stationary)
    for a, b in ((0.9, 0.5), (0.3, 0.02), (1.0, 0.4), (0.5, 0.0)):
        torch.testing.assert_close(
            matrix(chain, a) @ matrix(chain, b), matrix(chain, a * b), rtol=0, atol=1e-12
        )
    torch.testing.assert_close(matrix(chain, 1.0), torch.eye(n).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        matrix(chain, 0.0), chain.stationary.expand(n, n), rtol=0, atol=1e-12
    )
    q = matrix(chain, 0.37)
    torch.testing.assert_close(q.sum(1), torch.ones(n).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(chain.stationary @ q, chain.stationary, rtol=0, atol=1e-12)


@every_reversible
def test_balance_and_the_unit_of_time(chain: Transitions) -> None:
    """π_i Q_ij = π_j Q_ji, and what is left of the slowest mode is α."""
    q = matrix(chain, 0.3)
    flow = chain.stationary[:, None] * q
    torch.testing.assert_close(flow, flow.T, rtol=0, atol=1e-12)
    second = torch.linalg.eigvals(q).real.sort(descending=True).values[1]
    assert float(second) == pytest.approx(0.3, rel=1e-9)


@pytest.mark.parametrize("width", [None, 0.5, 3.0])
def test_wanted_stationary_law(width: float | None) -> None:
    rates = reversible_rates([4, 3, 2, 1], width)
    chain = Reversible(rates)
    torch.testing.assert_close(chain.stationary, torch.tensor(PI, dtype=torch.float64))
    near, far = chain.rates[0, 1] / chain.rates[1, 0], chain.rates[0, 3] / chain.rates[0, 1]
    assert float(near) == pytest.approx(3 / 4)
    gauss = 0.0 if width is None else math.exp(-8 / (2 * width**2)) * math.sqrt(1 / 3)
    assert float(far) == pytest.approx(gauss, abs=1e-12)


def test_rank_one_rates_as_a_matrix_are_the_marginal_kind() -> None:
    pi = torch.tensor(PI, dtype=torch.float64)
    chain = Reversible(pi.expand(4, 4))
    for alpha in (0.0, 0.2, 0.9, 1.0):
        torch.testing.assert_close(matrix(chain, alpha), matrix(Interpolating(pi), alpha))


def test_single_precision_keeps_rare_symbols() -> None:
    """A law in float32 is as good as its rounding, even where 1/√π is 1e4."""
    chain = Reversible(reversible_rates([1.0, 1e-8, 1.0]))
    w, alpha = torch.tensor([0.2, 0.3, 0.5]), torch.tensor(0.4)
    exact = chain.push(w.double(), alpha.double())
    assert chain.push(w, alpha).dtype == torch.float32
    torch.testing.assert_close(chain.push(w, alpha).double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("rates", "message"),
    [([[0.0, 1.0]], r"\[K, K\], not \[1, 2\]"),
     ([[0.0, -1.0], [1.0, 0.0]], "0 or more"),
     ([[0.0, math.inf], [1.0, 0.0]], "finite"),
     ([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]], "detailed balance"),
     ([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], "reachable"),
     ([[0.0, 0.0], [1.0, 0.0]], "reachable")],
    ids=["shape", "negative", "infinite", "cycle", "apart", "one-way"],
)  # fmt: skip
def test_rates_that_are_refused(rates: list[list[float]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Reversible(rates)


def test_laws_that_are_refused() -> None:
    with pytest.raises(InputError, match="above 0"):
        reversible_rates([0.5, 0.5, 0.0])
    with pytest.raises(InputError, match="width"):
        reversible_rates([0.5, 0.5], 0.0)
    with pytest.raises(InputError, match=r"rates \[3, 3\]"):
        CategoricalPath(Tokens(3), Rectified(), "matrix")


def ordinal(pairs: bool = False) -> CategoricalPath:
    return CategoricalPath(Tokens(4, pairs), Cosine(), "matrix", rates=reversible_rates(PI))


@pytest.mark.parametrize(("alpha_t", "alpha_s"), [(0.3, 0.6), (0.0, 0.2), (0.7, 1.0), (0.0, 1.0)])
def test_matrix_posterior_is_bayes_rule(alpha_t: float, alpha_s: float) -> None:
    """By enumeration of p(x_0) q(x_s | x_0) q(x_t | x_s)."""
    path = ordinal()
    to_s, s_to_t = (matrix(path.transitions, a) for a in (alpha_s, alpha_t / alpha_s))
    p0 = torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=torch.float64)
    for x_t in range(4):
        evidence = to_s @ s_to_t[:, x_t]
        expected = torch.zeros(4, dtype=torch.float64)
        for i, j in itertools.product(range(4), range(4)):
            expected[j] += p0[i] * to_s[i, j] * s_to_t[j, x_t] / evidence[i]
        found = path.posterior(p0, torch.tensor(x_t), *torch.tensor([alpha_t, alpha_s]).double())
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)


def test_posterior_takes_a_time_for_every_element() -> None:
    path = ordinal()
    p0 = torch.rand(2, 3, 4, dtype=torch.float64).softmax(-1)
    x, at = torch.randint(0, 4, (2, 3)), torch.linspace(0.1, 0.5, 6).double().view(2, 3)
    whole = path.posterior(p0, x, at, at + 0.3)
    for b, n in itertools.product(range(2), range(3)):
        one = path.posterior(p0[b, n], x[b, n], at[b, n], at[b, n] + 0.3)
        torch.testing.assert_close(whole[b, n], one)


@pytest.mark.parametrize("kind", ["absorbing", "uniform", "marginal", "matrix"])
def test_reversed_rates_are_the_derivative_of_the_posterior(kind: str) -> None:
    """p(x_s = y | x_t) = h λ(y) + O(h²)."""
    path = CategoricalPath(
        Tokens(4), Rectified(), kind, PI if kind == "marginal" else None,  # type: ignore[arg-type]
        reversible_rates(PI) if kind == "matrix" else None,
    )  # fmt: skip
    p0 = torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=torch.float64)
    for k, x in itertools.product((0.05, 0.4, 0.9), range(path.symbols)):
        h, at, here = 1e-6, torch.tensor(k, dtype=torch.float64), torch.tensor(x)
        sure = torch.nn.functional.one_hot(here.clamp(max=3), 4).double()
        p = sure if kind == "absorbing" and x < 4 else p0
        step = path.posterior(p, here, at, at + h) / h
        rates = path.reverse_rates(p, here, at)
        assert float(rates[x]) == 0.0
        step[x] = 0.0
        torch.testing.assert_close(rates, step, rtol=1e-3, atol=1e-3)


def test_matrix_corruption_has_its_law_and_forgets_slowly() -> None:
    n, path = 30_000, ordinal()
    context, draws = all_real(n), Draws(1, torch.arange(n))
    x0 = torch.zeros(n, 1, dtype=torch.int64)
    for t in (0.0, 0.2, 0.6, 1.0):
        u = torch.full((n,), t, dtype=torch.float64)
        x = path.corrupt(x0, u, context, draws, "noise", 2)
        p = matrix(path.transitions, float(path.keep(u)[0]))[0]
        counts = torch.bincount(x.flatten(), minlength=4)
        if t == 0.0:
            assert torch.equal(x, x0)
            continue
        chi2 = float(((counts - n * p) ** 2 / (n * p)).sum())
        assert chi2 < 3 + 4 * math.sqrt(6)
    early = path.corrupt(x0, torch.full((n,), 0.1), context, draws, "noise")
    assert int((early == 1).sum()) > 10 * int((early > 1).sum())


def test_noising_a_matrix_field_up_again_is_its_forward_process() -> None:
    n, path = 30_000, ordinal()
    context, draws = all_real(n), Draws(2, torch.arange(n))
    x0 = torch.full((n, 1), 3)
    xs = path.corrupt(x0, torch.full((n,), 0.3), context, draws, "s")
    xt = path.renoise(xs, 0.3, 0.6, context, draws, "t", 1)
    p = matrix(path.transitions, float(path.keep(torch.tensor(0.6, dtype=torch.float64))))[3]
    counts = torch.bincount(xt.flatten(), minlength=4)
    assert float(((counts - n * p) ** 2 / (n * p)).sum()) < 3 + 4 * math.sqrt(6)


def test_matrix_pairs_stay_pairs() -> None:
    path = ordinal(pairs=True)
    context = Context(torch.arange(6) < torch.tensor([6, 3])[:, None])
    draws = Draws(0, torch.arange(2))
    x0 = path.space.project(torch.randint(0, 4, (2, 6, 6)), context)
    for x in (path.corrupt(x0, torch.tensor([0.4, 0.9]), context, draws, "n"),
              path.renoise(x0, 0.2, 0.9, context, draws, "r"),
              path.prior(context, draws, "p", torch.float32)):  # fmt: skip
        assert torch.equal(x, x.transpose(1, 2)) and not torch.equal(x, x0)
        assert not bool(x[1, 3:].any()) and not bool(x.diagonal(dim1=1, dim2=2).any())


def test_a_matrix_path_is_plain_data_and_keeps_its_chain_under_another_schedule() -> None:
    path = ordinal()
    config = json.loads(json.dumps(path.config()))
    again = CategoricalPath(Tokens(config["classes"]), Cosine(), config["kind"],
                            config["marginal"], config["rates"])  # fmt: skip
    other = path.with_schedule(Rectified())
    for p in (again, other):
        torch.testing.assert_close(matrix(p.transitions, 0.4), matrix(path.transitions, 0.4))
    assert "rates" not in CategoricalPath(Tokens(3), Cosine()).config()
