r"""Refinement against a Gaussian model, N(m, V) at each step: what two forecasts tell together.

A base of error R leaves N(m + w (b − m), (1 − w) V) with w = V/(V + R).
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from domains.timeseries.encoding import FIELD
from domains.timeseries.refining import Refinement, RefineMethod, base_weight
from sciflow.errors import InputError
from sciflow.paths import GaussianPath
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.schedules import schedule_from_config
from sciflow.spaces import Euclidean
from sciflow.state import Context, State
from sciflow.testing.targets import ExactDenoiser

ROWS, LENGTH, HISTORY = 4000, 3, 1
MEAN, V, BASE, R = 1.0, 0.5, 3.0, 1.5
W = V / (V + R)


class Gaussian(ExactDenoiser):
    """D(x_t) = m + a V/(a² V + s²) (x_t − a m)."""

    def __init__(self) -> None:
        path = GaussianPath(Euclidean(), schedule_from_config({"kind": "rectified"}), "edm")
        super().__init__({FIELD: path})
        self.path = path

    def exact(self, state: State, times: Mapping[str, Tensor]) -> dict[str, Tensor]:
        a, s = (v.reshape(len(v), -1, 1) for v in self.path.schedule(times[FIELD]))
        return {FIELD: MEAN + a * V / (a**2 * V + s**2) * (state[FIELD].double() - a * MEAN)}


def normal(mean: float, variance: float, seed: int) -> Tensor:
    z = torch.randn(ROWS, LENGTH, 1, generator=torch.Generator().manual_seed(seed))
    return mean + variance**0.5 * z


def refined(method: RefineMethod, own: Tensor, base: Tensor, **settings: float) -> Tensor:
    """What is not given of the rows."""
    given = (torch.arange(LENGTH) < HISTORY)[None, :, None].expand(ROWS, -1, -1)
    context = Context(torch.ones_like(given), {}, {FIELD: given}, {})
    how = Refinement(method, **settings)  # type: ignore[arg-type]
    x = how(Gaussian(), Sampler(method="ab2", steps=8), State({FIELD: base}, context), own,
            W, V, Draws(0, torch.arange(ROWS)))  # fmt: skip
    assert torch.equal(x[:, :HISTORY].float(), base[:, :HISTORY])
    return x[:, HISTORY:].double()


@pytest.mark.parametrize("settings", [{"iterations": 0}, {"level": 0.1}])
def test_langevin_draws_the_law_given_both_forecasts(settings: dict[str, float]) -> None:
    x = refined("langevin", normal(MEAN, V, 0), normal(BASE, R, 1), **settings)
    assert float(x.mean()) == pytest.approx(MEAN + W * (BASE - MEAN), abs=0.03)
    assert float(x.var()) == pytest.approx((1 - W) * V, rel=0.06)


def test_likely_paths_lie_nearer_to_the_middle() -> None:
    """Each move and D shrink what is left of a path's distance to m + w (b_i − m), by so much."""
    own, base = normal(MEAN, V, 0), normal(BASE, R, 1)
    x = refined("most-likely", own, base, level=0.5, iterations=3)
    part = slice(HISTORY, None)
    middle = MEAN + W * (base[:, part] - MEAN)
    start = own[:, part] + W * (base[:, part] - own[:, part]) - middle
    left = (1 - 0.5 * 0.25 / 1.25) ** 3
    # D(x) = m + (x − m) V/(V + σ²), σ² = V/4.
    expected = MEAN + (middle + left * start - MEAN) / 1.25
    assert torch.allclose(x, expected.double(), atol=1e-4)


def test_the_weight_is_that_of_the_errors() -> None:
    own, base = normal(MEAN, V, 0), normal(MEAN, R, 1)
    asked = torch.ones(LENGTH, 1, dtype=torch.bool)
    weight, variance = base_weight(own, base, asked)
    assert variance == pytest.approx(V, rel=0.05) and weight == pytest.approx(W, rel=0.05)
    # A base that is sure of what the model holds for unlikely errs by its distance.
    weight, _ = base_weight(own, normal(MEAN + 4.0, 0.01, 1), asked)
    assert weight == pytest.approx(V / 16.0, rel=0.05)
    # One without a spread is as good as the naive forecast.
    weight, _ = base_weight(own, torch.full_like(own, MEAN), asked)
    assert weight == pytest.approx(V / (V + 1), rel=0.05)


def test_all_trust_keeps_the_base_and_none_forgets_it() -> None:
    own, base = normal(MEAN, V, 0), normal(BASE, R, 1)
    given = torch.zeros(ROWS, LENGTH, 1, dtype=torch.bool)
    batch = State({FIELD: base}, Context(~given, {}, {FIELD: given}, {}))
    tools = (Gaussian(), Sampler(method="ab2", steps=8))
    draws = Draws(0, torch.arange(ROWS))
    kept = Refinement()(*tools, batch, own, 1.0, V, draws)
    assert torch.equal(kept, own + (base - own))
    other = State({FIELD: base + 7.0}, batch.context)
    a, b = (Refinement()(*tools, x, own, 0.0, V, draws) for x in (batch, other))
    assert torch.equal(a, b)
    with pytest.raises(InputError, match="weight of the base"):
        Refinement(trust=2.0)
