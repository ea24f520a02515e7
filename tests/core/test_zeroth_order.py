"""Black-box oracles: estimates with known laws, exact shortcuts, failures, budgets, any sampler."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sciflow.errors import InputError
from sciflow.guidance.oracles.black_box import Ledger, RecordOracle, StateOracle
from sciflow.guidance.oracles.oracle_guidance import SAMPLE, OracleGuidance, numbered
from sciflow.guidance.oracles.zeroth_order import EnergyDescent, ForceNorm, LeastSquares, TwoPoint
from sciflow.paths import GaussianPath
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.samplers.methods import METHODS
from sciflow.schedules import Cosine, Rectified
from sciflow.spaces import Euclidean, ZeroCoM
from sciflow.state import Context, State
from sciflow.testing.targets import DiagonalGaussian, all_real

ATOMS, D = 13, 36
SPACE = ZeroCoM(3)


def cluster() -> Tensor:
    """An icosahedron about an atom, in units of σ, shaken off its minimum: ``[13, 3]``."""
    g = (1 + math.sqrt(5)) / 2
    shell = [(0.0, s, q * g) for s in (-1.0, 1.0) for q in (-1.0, 1.0)]
    corners = [(0.0, 0.0, 0.0)] + [p[k:] + p[:k] for p in shell for k in range(3)]
    x = torch.tensor(corners, dtype=torch.float64)
    x = 1.1 * x / x[1].norm()
    x = x + 0.05 * Draws(3, [0]).normal((ATOMS, 3), "shake", dtype=torch.float64)[0]
    return x - x.mean(0)


ONE, TWO = torch.triu_indices(ATOMS, ATOMS, 1)


def energy(x: Tensor) -> Tensor:
    """Lennard-Jones, ``[..., 13, 3]`` -> ``[...]``."""
    r6 = ((x[..., ONE, :] - x[..., TWO, :]) ** 2).sum(-1) ** -3
    return (4 * (r6**2 - r6)).sum(-1)


def forces(x: Tensor) -> Tensor:
    """Minus its gradient, written out, ``[..., 13, 3]``."""
    apart = x[..., ONE, :] - x[..., TWO, :]
    r2 = (apart**2).sum(-1)
    r6 = r2**-3
    push = (24 * (2 * r6**2 - r6) / r2)[..., None] * apart
    return torch.zeros_like(x).index_add(-2, ONE, push).index_add(-2, TWO, -push)


def clean(batch: int, first: int = 0) -> tuple[State, Draws]:
    draws = Draws(5, torch.arange(first, first + batch))
    return State({"x": cluster().expand(batch, -1, -1)}, all_real(batch, ATOMS)), draws


def gradient_of_square() -> Tensor:
    """∇½|F|² by autograd."""
    x = cluster().requires_grad_(True)
    (grad,) = torch.autograd.grad(0.5 * (forces(x) ** 2).sum(), x)
    return grad


def cosines(direction: Tensor, true: Tensor) -> Tensor:
    return torch.cosine_similarity(direction.flatten(1), true.flatten()[None])


FORCES = StateOracle(lambda s: forces(s["x"]))
ENERGY = StateOracle(lambda s: energy(s["x"]))
NOTHING = math.nan


def failing(oracle: StateOracle, fails: Callable[[Tensor], Tensor]) -> StateOracle:
    """The oracle with NaN in the rows where ``fails(x)``."""

    def answer(state: State) -> Tensor:
        value = oracle.function(state)
        bad = fails(state["x"])
        return value.masked_fill(bad.reshape(-1, *(1,) * (value.ndim - 1)), NOTHING)

    return StateOracle(answer)


# --- estimates ----------------------------------------------------------------------------------


def test_forces_are_minus_the_gradient():
    x = cluster().requires_grad_(True)
    (grad,) = torch.autograd.grad(energy(x), x)
    torch.testing.assert_close(forces(x), -grad, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize(("q", "draws"), [(1, 1000), (16, 120), (128, 24)])
@pytest.mark.parametrize("kind", ["value", "vector"])
def test_cosine_follows_its_law(kind: str, q: int, draws: int):
    """cos² of a q-direction estimate is Beta(q/2, (d − 1)/2): its mean is q/(q + d − 1)."""
    state, numbers = clean(draws)
    if kind == "value":
        found = TwoPoint(q, 1e-4)(ENERGY, state, "x", SPACE, numbers)
        cos = cosines(found.direction, -forces(cluster()) @ torch.eye(3).double())
    else:
        found = LeastSquares(q, 1e-4, per_element=False)(FORCES, state, "x", SPACE, numbers)
        cos = cosines(found.direction, -gradient_of_square())
    a, b = q / 2, (D - 1) / 2
    mean, deviation = a / (a + b), math.sqrt(a * b / ((a + b) ** 2 * (a + b + 1)))
    squares = cos**2
    assert abs(float(squares.mean()) - mean) < 4 * deviation / math.sqrt(draws)
    # The rule of thumb, root mean square.
    slack = 4 * deviation / math.sqrt(draws) / mean
    assert float(squares.mean().sqrt()) == pytest.approx(math.sqrt(q / (q + D)), rel=slack + 0.03)
    if kind == "vector":
        assert (cos > 0).all()


@pytest.mark.parametrize("q", [1, 4, 16])
def test_per_atom_is_better_at_few_directions(q: int):
    state, draws = clean(40)
    full, blocks = (
        cosines(LeastSquares(q, 1e-4, e)(FORCES, state, "x", SPACE, draws).direction,
                -gradient_of_square()).mean()
        for e in (False, True)
    )  # fmt: skip
    assert blocks > full + 0.05


def test_what_remains_per_atom_is_the_diagonal_blocks_of_the_jacobian():
    state, draws = clean(1)
    jacobian = torch.autograd.functional.jacobian(forces, cluster())
    own = torch.stack([jacobian[i, :, i] for i in range(ATOMS)])
    kept = -torch.einsum("nij,ni->nj", own, forces(cluster()))
    kept, true = kept - kept.mean(0), -gradient_of_square()
    found = LeastSquares(512, 1e-4)(FORCES, state, "x", SPACE, draws).direction[0]
    near = torch.cosine_similarity(found.flatten(), kept.flatten(), 0)
    bias = torch.cosine_similarity(true.flatten(), kept.flatten(), 0)
    # The gradient itself is further away than what is left of its noise.
    assert near > bias + 0.003 and 0.9 < bias < 0.985


def test_two_calls_along_the_force_are_the_hessian_times_it():
    state, _ = clean(2)
    found = ForceNorm(1e-4)(FORCES, state, "x", SPACE)
    x = cluster()
    hessian = torch.autograd.functional.hessian(energy, x).reshape(39, 39)
    exact = (hessian @ forces(x).flatten()).reshape(ATOMS, 3)
    for row in found.direction:
        assert float((row - exact).norm() / exact.norm()) < 1e-6
    assert found.calls.tolist() == [3, 3]
    torch.testing.assert_close(exact, -gradient_of_square(), rtol=1e-9, atol=1e-7)


def test_force_norm_reaches_for_a_target():
    state, _ = clean(1)
    target = 0.3 * forces(cluster()) + 2 * SPACE.noise(state.context, Draws(1, [0]), "f", 0,
                                                       torch.float64)  # fmt: skip
    wanted = State(state.fields, state.context.replace(extras={"wanted": target}))
    x = cluster().requires_grad_(True)
    (grad,) = torch.autograd.grad(0.5 * ((forces(x) - target[0]) ** 2).sum(), x)
    exact = ForceNorm(1e-4, "wanted")(FORCES, wanted, "x", SPACE).direction[0]
    torch.testing.assert_close(exact, -grad, rtol=1e-6, atol=1e-6 * float(grad.abs().max()))
    rough = LeastSquares(512, 1e-4, False, "wanted")(FORCES, wanted, "x", SPACE, Draws(0, [0]))
    assert torch.cosine_similarity(rough.direction.flatten(), -grad.flatten(), 0) > 0.93
    with pytest.raises(InputError, match="missing"):
        ForceNorm(1e-4, "other")(FORCES, wanted, "x", SPACE)


def test_units_are_those_of_the_oracle():
    """Half the number in units of two ångström: the same gradient per ångström."""
    state, draws = clean(1)
    half = State({"x": state["x"] / 2}, state.context)
    in_two = StateOracle(lambda s: forces(2 * s["x"]), unit=2.0)
    for ascent in (EnergyDescent(), ForceNorm(1e-4), LeastSquares(3, 1e-4)):
        torch.testing.assert_close(
            ascent(in_two, half, "x", SPACE, draws).direction,
            ascent(FORCES, state, "x", SPACE, draws).direction, rtol=1e-7, atol=1e-6,
        )  # fmt: skip


# --- failures -----------------------------------------------------------------------------------


def far(limit: float, sign: float) -> Callable[[Tensor], Tensor]:
    """Rows displaced from the cluster towards one side of a direction."""
    axis = forces(cluster()) / forces(cluster()).norm()
    return lambda x: sign * ((x - cluster()) * axis).sum((1, 2)) > limit


def test_a_side_that_fails_is_replaced_by_the_centre():
    state, draws = clean(64)
    for sign in (1.0, -1.0):
        oracle = failing(ENERGY, far(1e-9, sign))
        found = TwoPoint(1, 1e-6)(oracle, state, "x", SPACE, draws)
        whole = TwoPoint(1, 1e-6)(ENERGY, state, "x", SPACE, draws)
        # One side of every direction failed; what is left agrees to the order of the step.
        assert (found.failures == 1).all() and (whole.failures == 0).all()
        scale = whole.direction.abs().amax()
        assert float((found.direction - whole.direction).abs().max() / scale) < 1e-3
        exact = ForceNorm(1e-5)(failing(FORCES, far(1e-9, sign)), state, "x", SPACE)
        assert (exact.failures == 1).all()
        true = -gradient_of_square()
        assert float((exact.direction - true).norm() / true.norm() / 8) < 1e-3


def test_a_centre_that_fails_gives_zero_and_spares_its_companions():
    state, draws = clean(3)
    sick = state["x"].clone()
    sick[1] *= 4
    state = State({"x": sick}, state.context)
    for ascent in (EnergyDescent(), ForceNorm(), LeastSquares(2), TwoPoint(2)):
        base = ENERGY if isinstance(ascent, TwoPoint) else FORCES
        found = ascent(failing(base, lambda x: x.norm(dim=(1, 2)) > 6), state, "x", SPACE, draws)
        whole = ascent(base, state, "x", SPACE, draws)
        assert (found.direction[1] == 0).all() and int(found.failures[1]) >= 1
        assert torch.equal(found.direction[[0, 2]], whole.direction[[0, 2]])
        assert found.failures[[0, 2]].tolist() == [0, 0]
    # What has failed at the centre is not asked again.
    assert ForceNorm()(failing(FORCES, lambda x: x.norm(dim=(1, 2)) > 6), state, "x",
                       SPACE).calls.tolist() == [3, 1, 3]  # fmt: skip


def test_directions_whose_both_sides_fail_are_left_out():
    """The mean is over the directions that are known, so failures do not shrink it."""
    state, draws = clean(1)
    u = torch.stack([SPACE.noise(state.context, draws, "x/zeroth-order", j, torch.float64)
                     for j in range(3)])[:, 0]  # fmt: skip
    dead = u[1]

    def fails(x: Tensor) -> Tensor:
        along = ((x - cluster()) * dead).sum((1, 2)).abs()
        return along > 0.99e-4 * float((dead**2).sum())

    found = TwoPoint(3, 1e-4)(failing(ENERGY, fails), state, "x", SPACE, draws)
    slopes = [(energy(cluster() + 1e-4 * v) - energy(cluster() - 1e-4 * v)) / 2e-4 for v in u]
    expected = (slopes[0] * u[0] + slopes[2] * u[2]) / 2
    assert found.failures.tolist() == [2]
    torch.testing.assert_close(found.direction[0], expected, rtol=1e-9, atol=1e-9)


def _number(record: float) -> float:
    if record < 0:
        raise ValueError("negative")
    if record == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    if record == 14:
        time.sleep(600)
    return math.inf if record == 7 else 2 * record


def records(state: State) -> list[float]:
    return state["x"][:, 0, 0].tolist()


def test_records_that_fail_are_masked_with_their_reasons():
    values = torch.tensor([1.0, -1.0, 7.0, 2.5])
    state = State({"x": values.view(4, 1, 1)}, all_real(4))
    oracle = RecordOracle(_number, records)
    answer = oracle(state)
    assert answer[[0, 3]].tolist() == [2.0, 5.0] and answer[[1, 2]].isnan().all()
    assert dict(oracle.reasons) == {"ValueError: negative": 1, "not finite": 1}


@pytest.mark.slow
def test_a_worker_that_dies_or_hangs_takes_no_other_with_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sciflow.guidance.oracles.black_box._START", 5.0)
    state = State({"x": torch.tensor([1.0, 13.0, 14.0, 2.0]).view(4, 1, 1)}, all_real(4))
    oracle = RecordOracle(_number, records, jobs=2, timeout=5.0)
    answer = oracle(state)
    assert answer[[0, 3]].tolist() == [2.0, 4.0] and answer[1:3].isnan().all()
    assert set(oracle.reasons) == {"its worker died", "no answer within 5 s"}


def test_arrays_are_padded_and_wrong_shapes_refused():
    mask = torch.tensor([[True, True, True], [True, True, False]])
    state = State({"x": torch.randn(2, 3, 2).double()}, Context(mask))

    def decode(s: State) -> list[Any]:
        return [x[m].numpy() for x, m in zip(s["x"], s.context.mask, strict=True)]

    answer = RecordOracle(lambda r: -r, decode, "x")(state)
    assert torch.equal(answer, -state["x"] * mask[..., None])
    with pytest.raises(InputError, match=r"\[2\] for a sample whose x has shape \[3, 2\]"):
        RecordOracle(lambda r: np.zeros(2), decode, "x")(state)


def test_wrong_kinds_of_answers_are_refused():
    state, draws = clean(1)
    with pytest.raises(InputError, match="LeastSquares"):
        TwoPoint()(FORCES, state, "x", SPACE, draws)
    with pytest.raises(InputError, match="draws"):
        TwoPoint()(ENERGY, state, "x", SPACE)
    with pytest.raises(InputError, match="1 or more directions"):
        TwoPoint(0)


# --- what ChemGuide's release got wrong ---------------------------------------------------------


def rounded(digits: int, resolution: float) -> StateOracle:
    """Forces of coordinates that went through a text file."""
    return StateOracle(lambda s: forces(s["x"].round(decimals=digits)), resolution=resolution)


def test_perturbation_below_the_rounding_of_a_text_file():
    state, draws = clean(8)
    honest = rounded(5, 1e-5)
    with pytest.raises(InputError, match=r"1e-06 cannot be resolved.*1e-05.*0\.001 or more"):
        LeastSquares(64, 1e-6, False)(honest, state, "x", SPACE, draws)
    with pytest.raises(InputError, match="cannot be resolved"):
        ForceNorm(1e-6)(honest, state, "x", SPACE)
    true, exact = -gradient_of_square(), LeastSquares(64, 1e-4, False)
    reference = cosines(exact(FORCES, state, "x", SPACE, draws).direction, true).mean()
    sane = LeastSquares(64, 1e-3, False)(honest, state, "x", SPACE, draws)
    assert float(cosines(sane.direction, true).mean()) > reference - 0.02
    # An oracle that conceals its rounding shows what the refusal prevents.
    hidden = LeastSquares(64, 1e-6, False)(rounded(5, 0.0), state, "x", SPACE, draws)
    assert float(cosines(hidden.direction, true).mean()) < reference - 0.2


def test_perturbation_below_the_rounding_of_float32():
    state, draws = clean(1)
    single = StateOracle(FORCES.function, dtype=torch.float32)
    with pytest.raises(InputError, match="cannot be resolved"):
        LeastSquares(4, 1e-6)(single, state, "x", SPACE, draws)
    LeastSquares(4, 1e-3)(single, state, "x", SPACE, draws)
    with pytest.raises(InputError, match="cannot be resolved"):
        LeastSquares(4, 1e-6)(FORCES, state.to(torch.float32), "x", SPACE, draws)


def test_fresh_noise_in_each_decode_drowns_the_difference_and_common_noise_does_not():
    state, draws = clean(8)
    extras = {"sample": draws.samples}
    state, calls = State(state.fields, state.context.replace(extras=extras)), count()

    def decoder(fresh: bool) -> StateOracle:
        def answer(s: State) -> Tensor:
            numbers = s.context.extras["sample"]
            if fresh:
                numbers = 1000 * (1 + next(calls)) + torch.arange(s.batch_size)
            return forces(
                s["x"] + 3e-3 * Draws(9, numbers).normal((ATOMS, 3), "decode", dtype=torch.float64)
            )

        return StateOracle(answer)

    how, true = LeastSquares(64, 1e-4, False), -gradient_of_square()
    clear, common, fresh = (
        float(cosines(how(o, state, "x", SPACE, draws).direction, true).mean())
        for o in (FORCES, decoder(False), decoder(True))
    )
    assert common > clear - 0.1 and fresh < clear / 2


def test_directions_are_not_shared_by_the_batch():
    state, draws = clean(2)
    g = TwoPoint(1, 1e-4)(ENERGY, state, "x", SPACE, draws).direction
    assert abs(float(torch.cosine_similarity(g[0].flatten(), g[1].flatten(), 0))) < 0.9


@pytest.mark.parametrize("ascent", [TwoPoint(2, 1e-4), LeastSquares(2, 1e-4), ForceNorm(1e-4)])
def test_an_estimate_depends_on_its_own_sample_alone(ascent: Any):
    oracle = ENERGY if isinstance(ascent, TwoPoint) else FORCES
    many, one = (ascent(oracle, *(s := clean(n, first))[:1], "x", SPACE, s[1]).direction
                 for n, first in ((3, 4), (1, 5)))  # fmt: skip
    assert torch.equal(many[1:2], one)


# --- guidance -----------------------------------------------------------------------------------

CENTRES = torch.tensor([0.8, -0.4, 0.3], dtype=torch.float64)


def model(path: GaussianPath | None = None) -> DiagonalGaussian:
    path = path or GaussianPath(Euclidean(3), Rectified())
    variance = torch.tensor([1.0, 0.5, 0.2])
    return DiagonalGaussian(path, torch.zeros(3), variance)


def spring(state: State) -> Tensor:
    """Forces towards a point, zero in padding."""
    return (CENTRES - state["x"]) * state.context.mask[..., None]


class Counting(StateOracle):
    """Forces of a spring, with the number of times that each sample was asked for."""

    def __init__(self, function: Callable[[State], Tensor] = spring, **more: Any):
        super().__init__(function, **more)
        self.asked = torch.zeros(64, dtype=torch.int64)

    def __call__(self, state: State) -> Tensor:
        numbers = state.context.extras[SAMPLE]
        self.asked += torch.bincount(numbers, minlength=64)
        return super().__call__(state)


def context(n: int = 6, elements: int = 2, first: int = 0) -> tuple[Context, Draws]:
    draws = Draws(1, torch.arange(first, first + n))
    return numbered(all_real(n, elements), draws), draws


def run(guided: Any, where: tuple[Context, Draws], **settings: Any) -> Tensor:
    sampler = Sampler(**{"steps": 12, **settings})
    return sampler(guided, *where, dtype=torch.float64).state["x"]


def test_strength_zero_is_the_bare_model_bit_for_bit_without_a_call():
    oracle = Counting()
    guided = OracleGuidance(model(), oracle, EnergyDescent(), "x", 0.0)
    assert torch.equal(run(guided, context()), run(model(), context()))
    assert int(oracle.asked.sum()) == 0 and not len(guided.report.calls)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_sampler_follows_the_oracle(method: str):
    """Full steps at every call end at the minimum; half steps go the larger part of the way."""
    where, centre = context(), CENTRES
    bare = run(model(), where, method=method)
    oracle = Counting()
    full = OracleGuidance(model(), oracle, EnergyDescent(), "x", 1.0, cap=10.0)
    torch.testing.assert_close(run(full, where, method=method), centre.expand_as(bare))
    half = OracleGuidance(model(), oracle, EnergyDescent(), "x", 0.5, cap=10.0)
    after = run(half, where, method=method)
    distance = (after - centre).norm(dim=(1, 2)) / (bare - centre).norm(dim=(1, 2))
    assert float(distance.max()) < 0.6


@pytest.mark.parametrize("budget", [0, 1, 5, 8, None])
@pytest.mark.parametrize("ascent", [EnergyDescent(), ForceNorm(), LeastSquares(2)])
def test_the_budget_is_respected_and_reported(ascent: Any, budget: int | None):
    oracle = Counting()
    guided = OracleGuidance(model(), oracle, ascent, "x", 0.5, budget=budget)
    first = run(guided, context())
    report = guided.report
    assert torch.equal(report.calls, oracle.asked[:6])
    expected = 12 if budget is None else min(12, budget // ascent.cost)
    assert (report.calls == expected * ascent.cost).all() and int(report.failures.sum()) == 0
    # Another run has the whole budget again and does not know of the first.
    assert torch.equal(run(guided, context()), first)
    assert len(guided.report.calls) == 12
    assert str(guided.report).startswith(f"{expected * ascent.cost:.1f} oracle calls a sample")
    guided.reset()
    assert not len(guided.report.calls)


def test_failures_leave_a_sample_unguided_and_are_counted():
    oracle = Counting(lambda s: spring(s).masked_fill(
        (s.context.extras[SAMPLE] % 2 == 1)[:, None, None], math.nan))  # fmt: skip
    guided = OracleGuidance(model(), oracle, EnergyDescent(), "x", 0.5)
    x, whole = (
        run(guided, context()),
        OracleGuidance(model(), Counting(), EnergyDescent(), "x", 0.5),
    )
    assert torch.equal(x[1::2], run(model(), context())[1::2])
    assert torch.equal(x[0::2], run(whole, context())[0::2])
    assert guided.report.failures.tolist() == [0, 12, 0, 12, 0, 12]


def test_interval_every_and_iterations_set_the_calls():
    times = Sampler(steps=12).plan(model()).start
    inside = int(((times >= 0.1) & (times <= 0.6)).sum())
    for every, iterations in ((1, 1), (2, 1), (3, 2)):
        guided = OracleGuidance(
            model(), Counting(), EnergyDescent(), "x", 0.5,
            interval=(0.1, 0.6), every=every, iterations=iterations,
        )  # fmt: skip
        run(guided, context())
        assert (guided.report.calls == -(-inside // every) * iterations).all()


def test_between_calls_the_last_displacement_is_kept():
    state = State({"x": torch.ones(2, 2, 3).double()}, context(2)[0])
    bare = model()(state, 0.5)
    guided = OracleGuidance(model(), Counting(), EnergyDescent(), "x", 0.5, every=2, cap=9.0)
    first = guided(state, 0.5)
    moved = first["x"] - bare["x"]
    torch.testing.assert_close(moved, 0.5 * (CENTRES - bare["x"]))
    second = guided(state, 0.3, first)
    torch.testing.assert_close(second["x"] - model()(state, 0.3)["x"], moved)
    third = guided(state, 0.3, second)
    assert not torch.allclose(third["x"], second["x"])


@pytest.mark.parametrize("unit", [1.0, 2.5])
def test_a_step_is_capped_for_each_sample_as_a_whole(unit: float):
    """The furthest element moves by the cap in the oracle's units; the direction is kept."""
    push = torch.tensor([[3.0, 0, 0], [0, -4.0, 0]], dtype=torch.float64)
    sizes = torch.tensor([1.0, 1e-3]).double().view(2, 1, 1)
    oracle = StateOracle(lambda s: push * sizes[: s.batch_size], unit=unit)
    state = State({"x": torch.zeros(2, 2, 3).double()}, context(2)[0])
    guided = OracleGuidance(model(), oracle, EnergyDescent(), "x", 1.0, cap=0.1)
    moved = (guided(state, 0.2)["x"] - model()(state, 0.2)["x"]) * unit
    torch.testing.assert_close(moved[0], push * 0.1 / 4)
    torch.testing.assert_close(moved[1], push * 1e-3)


def test_posterior_form_is_s2_over_a_times_the_force():
    path = GaussianPath(Euclidean(3), Cosine())
    state = State({"x": torch.ones(2, 2, 3).double()}, context(2)[0])
    oracle = StateOracle(lambda s: spring(State({"x": 2 * s["x"]}, s.context)), unit=2.0)
    guided = OracleGuidance(model(path), oracle, EnergyDescent(), "x", 0.7, form="posterior",
                            cap=1e9)  # fmt: skip
    bare = model(path)(state, 0.4)["x"]
    a, s = path.schedule(torch.tensor(0.4, dtype=torch.float64))
    # ∂/∂D of −E(unit D) is unit times the force.
    expected = bare + 0.7 * s**2 / a * 2.0 * (CENTRES - 2 * bare)
    torch.testing.assert_close(guided(state, 0.4)["x"], expected)


def test_a_preconditioner_turns_forces_into_steps():
    stiff = torch.tensor([1.0, 40.0, 0.1]).double()
    oracle = Counting(lambda s: stiff * spring(s))
    guided = OracleGuidance(model(), oracle, EnergyDescent(), "x", 1.0, cap=10.0,
                            precondition=lambda clean, g: g / stiff)  # fmt: skip
    x = run(guided, context())
    torch.testing.assert_close(x, CENTRES.expand_as(x))


@pytest.mark.parametrize("ascent", [EnergyDescent(), ForceNorm(), LeastSquares(2)])
def test_a_guided_sample_depends_on_neither_batch_nor_padding(ascent: Any):
    path = GaussianPath(ZeroCoM(3), Rectified())
    lengths = torch.tensor([2, 4, 3])
    mask = torch.arange(4) < lengths[:, None]
    draws = Draws(1, torch.arange(3))

    def pull(state: State) -> Tensor:
        return -state["x"] * torch.tensor([1.0, 2.0, 0.5]).double()

    def sampled(rows: list[int], padded: int) -> Tensor:
        where = numbered(Context(mask[rows][:, :padded]), draws.rows(torch.tensor(rows)))
        guided = OracleGuidance(model(path), StateOracle(pull), ascent, "x", 0.3, cap=0.5)
        return run(guided, (where, draws.rows(torch.tensor(rows))))

    together = sampled([0, 1, 2], 4)
    assert float(together.sum(1).abs().max()) < 1e-12 and (together[0, 2:] == 0).all()
    torch.testing.assert_close(sampled([0], 2)[0], together[0, :2], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sampled([2, 1], 4)[0], together[2], rtol=1e-12, atol=1e-12)


def test_given_elements_stay():
    where, draws = context(2, 3)
    given = {"x": torch.tensor([[True, False, False]] * 2)}
    values = {"x": torch.full((2, 3, 3), 1.5, dtype=torch.float64)}
    guided = OracleGuidance(model(), StateOracle(spring), EnergyDescent(), "x", 1.0, cap=9.0)
    x = Sampler(steps=6)(guided, where.replace(given=given), draws, given=values,
                         dtype=torch.float64).state["x"]  # fmt: skip
    assert (x[:, 0] == 1.5).all()
    torch.testing.assert_close(x[:, 1:], CENTRES.expand(2, 2, 3))


def test_random_guidance_needs_numbers_and_settings_are_checked():
    guided = OracleGuidance(model(), StateOracle(spring), LeastSquares(1), "x")
    with pytest.raises(InputError, match="numbered"):
        guided(State({"x": torch.zeros(1, 2, 3).double()}, all_real(1, 2)), 0.5)
    make: Callable[..., Any] = lambda **k: OracleGuidance(  # noqa: E731
        model(), StateOracle(spring), EnergyDescent(), **{"field": "x", **k}
    )
    for bad in ({"field": "y"}, {"strength": -1.0}, {"form": "other"}, {"interval": (0.5, 0.2)},
                {"every": 0}, {"cap": 0.0}, {"budget": -1},
                {"form": "posterior", "precondition": lambda c, g: g}):  # fmt: skip
        with pytest.raises(InputError):
            make(**bad)


def test_a_ledger_affords_what_is_left():
    ledger = Ledger(3, 5)
    ledger.charge(torch.tensor([0, 2]), torch.tensor([3, 5]), torch.tensor([0, 1]))
    assert ledger.affords(3).tolist() == [False, True, False]
    assert ledger.affords(2).tolist() == [True, True, False]
    assert ledger.failures.tolist() == [0, 0, 1]
