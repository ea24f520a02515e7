"""Training times: their laws, their way from law to law, and strata over a batch."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from sciflow.errors import InputError
from sciflow.objectives import DenoisingObjective
from sciflow.objectives.curriculum import Curriculum, TimeDistribution, stratified
from sciflow.random import Draws
from sciflow.schedules import Cosine, Rectified, Schedule, VarianceExploding, VPLinear

CPU = torch.device("cpu")
N = 20_000
UNIFORM = TimeDistribution()
HARD = TimeDistribution(low=0.5)


def uniforms(n: int = N) -> Tensor:
    return Draws(0, torch.arange(n)).uniform((), "u", dtype=torch.float64)


def distance(values: Tensor, cdf: object) -> float:
    """√n times Kolmogorov's distance, above 1.95 with probability 0.001."""
    return math.sqrt(len(values)) * stats.kstest(values.numpy(), cdf).statistic


@pytest.mark.parametrize(("alpha", "beta"), [(1, 1), (1, 3), (2.5, 1), (3, 3), (0.7, 1.9)])
def test_beta_times(alpha: float, beta: float) -> None:
    d = TimeDistribution(alpha=alpha, beta=beta)
    assert distance(d(uniforms()), stats.beta(alpha, beta).cdf) < 1.95
    q = torch.tensor([1e-6, 0.1, 0.5, 0.9, 1 - 1e-6], dtype=torch.float64)
    found = torch.from_numpy(stats.beta(alpha, beta).ppf(q.numpy()))
    torch.testing.assert_close(d(1 - q), found, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("schedule", [None, Cosine(), VPLinear(), VarianceExploding()], ids=str)
def test_logit_normal_times_are_normal_in_the_level(schedule: Schedule | None) -> None:
    d = TimeDistribution("logit-normal", mean=-0.4, std=0.8, schedule=schedule)
    level = -(schedule or Rectified()).logsnr(d(uniforms()))
    assert distance(level, stats.norm(-0.4, 0.8).cdf) < 1.95
    assert d(uniforms(9).float()).dtype == torch.float32


def test_a_range_shrinks_the_distribution() -> None:
    d = TimeDistribution(beta=2.0, low=0.2, high=0.6)
    assert distance((d(uniforms()) - 0.2) / 0.4, stats.beta(1, 2).cdf) < 1.95


@pytest.mark.parametrize("beta", [1.0, 1.5, 3.0])
def test_the_default_clock_keeps_its_bits(beta: float) -> None:
    draws, names = Draws(3, torch.arange(500)), ["x"]
    old = DenoisingObjective(beta=beta).times(names, draws, 5, CPU)
    u = draws.uniform((), "objective/time", 5)
    assert torch.equal(old["x"], (1 - u ** (1 / beta)).clamp(1e-3, 1.0))
    clock = DenoisingObjective(clock=TimeDistribution(beta=beta))
    assert torch.equal(old["x"], clock.times(names, draws, 5, CPU)["x"])


def test_a_curriculum_moves_quantiles() -> None:
    way = Curriculum([(100, HARD), (300, UNIFORM), (400, TimeDistribution(beta=4.0))])
    u = uniforms(200)
    for step, d in ((0, HARD), (100, HARD), (300, UNIFORM)):
        assert torch.equal(way(u, step), d(u))
    assert torch.equal(way(u, 10**9), way(u, 400))
    torch.testing.assert_close(way(u, 200), TimeDistribution(low=0.25)(u))
    torch.testing.assert_close(way(u, 350), (UNIFORM(u) + TimeDistribution(beta=4.0)(u)) / 2)
    assert Curriculum([(7, HARD)])(u, 0).equal(HARD(u))


def test_a_curriculum_is_a_function_of_the_step() -> None:
    def times(step: int) -> Tensor:
        clock = Curriculum([(0, HARD), (50, UNIFORM)])
        return DenoisingObjective(clock=clock).times(["x"], Draws(0, torch.arange(N)), step, CPU)[
            "x"
        ]

    late = times(25)
    times(49)
    assert torch.equal(times(25), late)
    assert distance(late.double(), stats.uniform(0.25, 0.75).cdf) < 1.95


def test_each_stratum_holds_one_time() -> None:
    n = 64
    draws = Draws(0, torch.arange(n))
    u = draws.uniform((), "u", 3)
    found = stratified(u, draws, "s", 3)
    assert (found * n).long().sort().values.tolist() == list(range(n))
    assert torch.equal(stratified(u, draws, "s", 3), found)
    rows = torch.arange(n).flip(0)
    assert torch.equal(stratified(u[rows], draws.rows(rows), "s", 3), found[rows])
    assert float(stratified(u[:1], draws.rows(slice(0, 1)), "s", 3)) == float(u[0])


def test_strata_keep_the_law_of_each_sample() -> None:
    """Uniform, independent of its place in the batch, and of its own other steps."""
    n, steps = 8, 2000
    draws = Draws(1, torch.arange(n))
    u = torch.stack([
        stratified(draws.uniform((), "u", k), draws, "s", k) for k in range(steps)
    ]).double()  # fmt: skip
    for i in (0, 3, 7):
        assert distance(u[:, i], stats.uniform.cdf) < 1.95
    lag = torch.corrcoef(torch.stack([u[:-1, 0], u[1:, 0]]))[0, 1]
    assert abs(float(lag)) < 4 / math.sqrt(steps)
    # Companions repel: the correlation of two of B strata is −1/(B − 1), nearly.
    pair = float(torch.corrcoef(u[:, :2].T)[0, 1])
    assert pair == pytest.approx(-1 / (n - 1) * (1 - 1 / n**2), abs=4 / math.sqrt(steps))


def test_strata_settle_the_mean_of_a_batch() -> None:
    """Var of the mean: 1/(12 B³), where independent times have 1/(12 B)."""
    steps = 600
    for n in (4, 16):
        draws = Draws(2, torch.arange(n))
        means = [torch.stack([f(k).double().mean() for k in range(steps)]) for f in (
            lambda k, d=draws: stratified(d.uniform((), "u", k), d, "s", k),
            lambda k, d=draws: d.uniform((), "u", k),
        )]  # fmt: skip
        for m, power in zip(means, (3, 1), strict=True):
            assert float(m.var()) * 12 * n**power == pytest.approx(1.0, abs=0.25)


def test_the_objective_stratifies_its_clock() -> None:
    draws = Draws(0, torch.arange(128))
    times = DenoisingObjective(clock=TimeDistribution(alpha=3, beta=3), stratify=True, t_min=0.0)
    t = times.times(["x"], draws, 2, CPU)["x"].double()
    share = torch.from_numpy(stats.beta(3, 3).cdf(t.numpy()))
    assert (share * 128).long().sort().values.tolist() == list(range(128))


def test_configurations_are_plain() -> None:
    way = Curriculum([(0, TimeDistribution("logit-normal", schedule=Cosine())), (9, UNIFORM)])
    config = DenoisingObjective(clock=way, stratify=True).config()
    assert config["stratify"] is True and config["clock"][0][1]["schedule"] == Cosine().config()
    assert config["clock"][1] == [9, UNIFORM.config()]
    assert "clock" not in DenoisingObjective().config()


def test_what_is_refused() -> None:
    with pytest.raises(InputError, match="unknown distribution of times 'normal'; known: beta"):
        TimeDistribution("normal")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="must be above 0"):
        TimeDistribution(alpha=0.0)
    with pytest.raises(InputError, match="0 <= low < high <= 1"):
        TimeDistribution(low=0.6, high=0.5)
    for stages in ([], [(5, UNIFORM), (5, HARD)], [(9, UNIFORM), (3, HARD)], [(-1, UNIFORM)]):
        with pytest.raises(InputError, match="stages at rising steps"):
            Curriculum(stages)
    with pytest.raises(InputError, match=r"beta=1.5 and a clock .* leave beta out"):
        DenoisingObjective(beta=1.5, clock=UNIFORM)
