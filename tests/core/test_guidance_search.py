"""Beam search of strengths: what is tried, in which order, and that it pays on a mixture."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from sciflow.errors import InputError
from sciflow.guidance.energy.guidance_search import Trial, beam_search
from sciflow.guidance.energy.training_free import TrainingFree
from sciflow.paths import GaussianPath
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.schedules import Rectified
from sciflow.spaces import Euclidean
from sciflow.state import State
from sciflow.testing.targets import GaussianMixture, all_real

OPTIMUM = {"rho": 2.0, "mu": 0.5, "gamma": 0.1}


def bowl(p: dict[str, float]) -> float:
    return sum((math.log(p[k]) - math.log(v)) ** 2 for k, v in OPTIMUM.items())


def test_the_optimum_of_a_bowl_is_found_and_all_results_are_kept_in_order() -> None:
    seen: list[dict[str, float]] = []

    def score(p: dict[str, float]) -> float:
        seen.append(p)
        return bowl(p)

    trials = beam_search(score)
    assert trials[0].parameters == pytest.approx(OPTIMUM)
    assert trials[0].score == pytest.approx(0, abs=1e-20)
    assert [t.score for t in trials] == sorted(t.score for t in trials)
    assert len(trials) == len(seen) <= 4 + 3 * 2 * 6
    # Duplicates are skipped.
    assert len({tuple(p.values()) for p in seen}) == len(seen)
    # First the start and its own variations.
    assert seen[0] == {"rho": 0.25, "mu": 0.25, "gamma": 0.001}
    assert [p["rho"] for p in seen[:4]] == [0.25, 0.5, 0.25, 0.25]


def test_higher_may_be_better() -> None:
    trials = beam_search(lambda p: -bowl(p), lower_is_better=False)
    assert trials[0].parameters == pytest.approx(OPTIMUM)
    assert [t.score for t in trials] == sorted((t.score for t in trials), reverse=True)


def test_strengths_stop_at_their_largest_value_and_zero_stays_zero() -> None:
    """A search of rho alone is that of DPS: everything else is 0 and is not tried twice."""
    trials = beam_search(lambda p: -p["rho"], {"rho": 0.3, "mu": 0.0, "gamma": 0.0}, sweeps=20)
    assert [t.parameters["rho"] for t in trials] == [8.0, 4.8, 2.4, 1.2, 0.6, 0.3]
    assert all(t.parameters["mu"] == t.parameters["gamma"] == 0 for t in trials)


def test_whether_a_strength_is_used_at_all_can_be_searched() -> None:
    """From no guidance on: rho is left out where it only costs, mu is found."""

    def score(p: dict[str, float]) -> float:
        return abs(p["mu"] - 1.0) + (0.5 if p["rho"] > 0 else 0.0)

    start = {"rho": 0.0, "mu": 0.0, "gamma": 0.0}
    trials = beam_search(score, start, first={"rho": 0.25, "mu": 0.25}, sweeps=10)
    assert trials[0].parameters == {"rho": 0.0, "mu": 1.0, "gamma": 0.0}
    assert trials[0].score == 0
    assert {t.parameters["rho"] for t in trials} >= {0.0, 0.25}
    assert all(t.parameters["gamma"] == 0 for t in trials)


def test_a_refinement_finds_what_lies_between_the_factors() -> None:
    """By square roots of the factors, downwards too: within half a step of the finest grid."""

    def score(p: dict[str, float]) -> float:
        return abs(math.log(p["rho"] / 0.7)) + abs(math.log(p["mu"] / 0.1))

    start, factors = {"rho": 0.25, "mu": 0.25}, {"rho": 4.0, "mu": 4.0}
    largest = {"rho": 8.0, "mu": 8.0}
    coarse = beam_search(score, start, factors, largest, sweeps=10)[0]
    fine = beam_search(score, start, factors, largest, sweeps=10, refinements=3)[0]
    assert coarse.parameters["mu"] == 0.25
    for name, wanted in (("rho", 0.7), ("mu", 0.1)):
        assert abs(math.log(fine.parameters[name] / wanted)) <= math.log(4.0) / 2**4 + 1e-9


def test_whole_numbers_stay_whole() -> None:
    trials = beam_search(lambda p: abs(p["n"] - 3), {"n": 1.0}, {"n": 1.6}, {"n": 5.0},
                         whole=("n",), sweeps=10, refinements=1)  # fmt: skip
    assert all(t.parameters["n"] == round(t.parameters["n"]) >= 1 for t in trials)
    assert trials[0].parameters["n"] == 3


@pytest.mark.parametrize("lower", [True, False])
def test_failures_are_the_worst_and_the_search_goes_on(lower: bool) -> None:
    def score(p: dict[str, float]) -> float:
        if p["mu"] > 0.25:
            raise RuntimeError("the sample blew up")
        if p["gamma"] > 0.001:
            return math.nan
        return abs(math.log(p["rho"])) * (1 if lower else -1)

    trials = beam_search(score, lower_is_better=lower)
    assert trials[0].parameters["rho"] == 1.0
    failed = [t for t in trials if t.failure]
    assert trials[-len(failed) :] == failed
    assert {t.failure for t in failed} == {"RuntimeError: the sample blew up", "score nan"}
    assert {t.score for t in failed} == {math.inf if lower else -math.inf}


def test_the_budget_is_respected_and_progress_told() -> None:
    for budget in (1, 3, 7):
        told: list[Trial] = []
        trials = beam_search(bowl, budget=budget, progress=told.append)
        assert len(trials) == len(told) == budget
    assert len(beam_search(bowl, sweeps=0)) == 4


def test_the_search_hands_out_copies() -> None:
    """A metric that changes what it is given changes nothing else."""

    def score(p: dict[str, float]) -> float:
        value = bowl(p)
        p.clear()
        return value

    assert beam_search(score)[0].parameters == pytest.approx(OPTIMUM)


def test_what_is_wrong_is_said() -> None:
    wrong: list[tuple[Callable[[], object], str]] = [
        (lambda: beam_search(bowl, {}), "at least one strength"),
        (lambda: beam_search(bowl, {"weight": 1.0}), "'weight' has a start, but no factor"),
        (lambda: beam_search(bowl, factors={"rho": 1.0, "mu": 2, "gamma": 2}), "factor above 1"),
        (lambda: beam_search(bowl, {"rho": 9.0}), "between 0 and its largest"),
        (lambda: beam_search(bowl, beam=0), "beam of at least 1"),
        (lambda: beam_search(bowl, budget=0), "budget of at least 1"),
    ]
    for call, message in wrong:
        with pytest.raises(InputError, match=message):
            call()


def test_training_free_guidance_after_its_search_beats_each_of_its_special_cases() -> None:
    """Moments of samples of a mixture's posterior, against the exact ones; and on other noise."""
    means = torch.tensor([[1.5, 0.5], [-1.0, -0.8], [0.3, -1.5]], dtype=torch.float64)
    cov = torch.tensor([[0.3, 0.1], [0.1, 0.2]], dtype=torch.float64).expand(3, 2, 2)
    row, y, noise = torch.tensor([1.0, -0.5], dtype=torch.float64), 0.6, 0.6
    weights = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)
    model = GaussianMixture(GaussianPath(Euclidean(2), Rectified(), data_std=1.2), means, cov,
                            weights)  # fmt: skip
    # Kalman's gain for each component, Bayes' rule for their weights.
    spread = cov[0] @ row @ row + noise**2
    gain = cov[0] @ row / spread
    each = means + gain * (y - means @ row)[:, None]
    left = cov[0] - torch.outer(gain, cov[0] @ row)
    r = (weights.log() - (y - means @ row) ** 2 / (2 * spread)).softmax(0)
    mean = r @ each
    covariance = left + (r[:, None, None] * (each - mean)[:, :, None] * (each - mean)[:, None]).sum(
        0
    )

    def log_f(clean: State) -> torch.Tensor:
        return -((clean["x"] @ row - y) ** 2).sum(1) / (2 * noise**2)

    def error(p: dict[str, float], seed: int = 0, n: int = 128) -> float:
        guided = TrainingFree(model, log_f, **p, copies=4, noise_limit=None)  # type: ignore[arg-type]
        report = Sampler(steps=8, method="ddim")(
            guided, all_real(n, 1), Draws(seed, torch.arange(n)), dtype=torch.float64
        )
        x = report.state["x"][:, 0]
        off = float((x.mean(0) - mean).norm() / covariance.trace().sqrt())
        return off + float((x.T.cov() - covariance).norm() / covariance.norm())

    def best(rho: float, mu: float, gamma: float) -> Trial:
        return beam_search(error, {"rho": rho, "mu": mu, "gamma": gamma},
                           {"rho": 2.0, "mu": 2.0, "gamma": 10**0.5})[0]  # fmt: skip

    whole = best(1 / 16, 1 / 16, 0.1)
    for name, start in (
        ("dps", (1 / 16, 0, 0)),
        ("lgd", (1 / 16, 0, 0.1)),
        ("mpgd", (0, 1 / 16, 0)),
    ):
        special = best(*start)
        assert whole.score < 0.95 * special.score, name
        assert error(whole.parameters, 1, 512) < 0.95 * error(special.parameters, 1, 512), name
    assert whole.score < 0.5 * error({"rho": 0.0, "mu": 0.0, "gamma": 0.0})
