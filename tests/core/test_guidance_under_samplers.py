"""The table: every guidance under every method, on a state of points and tokens.

A row runs where its cell holds the calls of the model that were promised, and is refused, with a
reason, where :data:`REFUSED` says so. A new guidance without a row fails.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from sciflow import guidance
from sciflow.denoisers import Denoiser, Network
from sciflow.errors import InputError
from sciflow.guidance import (
    AveragePool,
    ClassifierFree,
    ClassifierGuidance,
    DecoupledAnnealing,
    EnergyDescent,
    EpsilonScaling,
    FrequencySplit,
    IndependentCondition,
    Instead,
    Known,
    LowPassReference,
    MatrixMeasurement,
    MomentMatching,
    MoveAway,
    OracleGuidance,
    Orthogonal,
    PerturbedAttention,
    PerturbedTime,
    PlusPlus,
    Posterior,
    Product,
    Projected,
    Reconstruction,
    Replacement,
    Rescale,
    StateOracle,
    Superposition,
    Tangential,
    TrainingFree,
    TwoPoint,
    Unasked,
    ZeroStar,
    numbered,
)
from sciflow.guidance.measured.posterior import PosteriorMethod
from sciflow.paths import CategoricalPath, GaussianPath
from sciflow.predictors import PropertyPredictor
from sciflow.random import Draws
from sciflow.samplers import Plan, Sampler
from sciflow.samplers.methods import METHODS
from sciflow.schedules import Cosine, Rectified
from sciflow.spaces import Euclidean, Tokens
from sciflow.state import Context, State, Times
from sciflow.testing.targets import NamedMixture, all_real

BATCH, ELEMENTS, KINDS, STEPS = 2, 3, 3, 4
LIMIT = 5.0
"""The default noise limit: beyond it the network is asked twice."""
POINTS = GaussianPath(Euclidean(2), Rectified())
TOKENS = CategoricalPath(Tokens(KINDS), Cosine(), "absorbing")
MEANS = torch.tensor([[1.5, 0.0], [-1.0, 1.0], [-0.5, -1.5]], dtype=torch.float64)
DRAWS = Draws(0, range(BATCH))
Y = torch.tensor([[0.5], [-0.4]], dtype=torch.float64)
ROW = torch.tensor([[1.0, 0.5, -1.0, 0.0, 0.3, 0.2]], dtype=torch.float64)
MEASUREMENT = MatrixMeasurement(ROW, 0.1, (ELEMENTS, 2))


class Attending(NamedMixture):
    """The exact model with an answer to a condition and a little attention, so that all apply."""

    def __init__(self, weights: Sequence[float]):
        super().__init__(POINTS, TOKENS, MEANS, 0.15, weights)
        self.qkv, self.out = nn.Linear(2, 6).double(), nn.Linear(2, 2).double()
        numbers = torch.linspace(-0.4, 0.5, 12, dtype=torch.float64).view(6, 2)
        for layer in (self.qkv, self.out):
            layer.weight.data = numbers[: layer.out_features].clone()
            layer.bias.data.zero_()

    def exact(self, state: State, times: Mapping[str, Tensor]) -> dict[str, Tensor]:
        answer = super().exact(state, times)
        q, k, v = self.qkv(state["x"]).chunk(3, -1)
        more = self.out((q @ k.transpose(1, 2)).softmax(-1) @ v)
        asked = state.context.conditions["c"].nan_to_num()[:, None, None]
        return {**answer, "x": answer["x"] + 0.05 * more + 0.1 * asked}


class Silent(Network):
    def forward(self, inputs, levels, context, previous):  # type: ignore[no-untyped-def]
        return {}


class Sum(PropertyPredictor):
    """c is about the sum of all coordinates and how many tokens are the first symbol."""

    def log_prob(self, state: State, t: Times | float, wanted: Mapping[str, Tensor]) -> Tensor:
        value = state["x"].flatten(1).sum(1) + state["token"][..., 0].sum(1)
        return -0.5 * (wanted["c"] - value) ** 2


def log_f(clean: State) -> Tensor:
    return -((clean["x"] - 0.5) ** 2).flatten(1).sum(1) + clean["token"][..., 0].sum(1)


@dataclass(frozen=True)
class Case:
    """One run: the models it may use, the plan, and what it is expected to cost."""

    model: Attending
    other: Attending
    sampler: Sampler
    plan: Plan
    beyond: int

    @property
    def n(self) -> int:
        return len(self.plan)


@dataclass(frozen=True)
class Row:
    """A guidance: how it is made of a case, and the calls of models it promises."""

    made: Callable[[Case], Denoiser]
    calls: Callable[[Case], int]
    costs: str


def once(made: Callable[[Case], Denoiser]) -> Row:
    return Row(made, lambda c: c.n, "n")


def twice(made: Callable[[Case], Denoiser]) -> Row:
    return Row(made, lambda c: 2 * c.n, "2n")


def limited(made: Callable[[Case], Denoiser]) -> Row:
    return Row(made, lambda c: c.n + c.beyond, "n + k")


def by_rule(rule: Any) -> Row:
    return twice(lambda c: MoveAway(c.model, c.other, 0.5, rule=rule))


def posterior(method: Any, through: Any = "network") -> Row:
    def made(c: Case) -> Denoiser:
        return Posterior(c.model, "x", Y, MEASUREMENT, method, through=through, steps=STEPS)

    return once(made) if method == "dps" or through == "estimate" else limited(made)


def oracle(c: Case, ascent: Any, **settings: Any) -> Denoiser:
    if isinstance(ascent, EnergyDescent):
        function: Callable[[State], Tensor] = lambda s: 0.3 - s["x"]  # noqa: E731
    else:
        function = lambda s: (s["x"] ** 2).flatten(1).sum(1)  # noqa: E731
    return OracleGuidance(c.model, StateOracle(function), ascent, "x", 0.1, **settings)


def known() -> Known:
    values = {"x": torch.zeros(BATCH, ELEMENTS, 2, dtype=torch.float64),
              "token": torch.zeros(BATCH, ELEMENTS, dtype=torch.int64)}  # fmt: skip
    mask = torch.tensor([[True, False, False]]).expand(BATCH, -1)
    return Known(values, {"x": mask, "token": mask})


ROWS: dict[str, Row] = {
    "none": once(lambda c: c.model),
    "ClassifierFree": twice(lambda c: ClassifierFree(c.model, 1.5)),
    "ClassifierFree, weight 0": once(lambda c: ClassifierFree(c.model, 0.0)),
    "MoveAway": twice(lambda c: MoveAway(c.model, c.other, 1.0)),
    "MoveAway, two": Row(
        lambda c: MoveAway(c.model, [c.other, Unasked(c.model)], 0.5), lambda c: 3 * c.n, "3n"
    ),
    "MoveAway by Tangential": by_rule(Tangential()),
    "MoveAway by ZeroStar": by_rule(ZeroStar()),
    "MoveAway by Rescale": by_rule(Rescale()),
    "MoveAway by Orthogonal": by_rule(Orthogonal()),
    "MoveAway by FrequencySplit": by_rule(FrequencySplit()),
    "MoveAway by PlusPlus": twice(lambda c: MoveAway(
        c.model, c.other, 0.5, rule=PlusPlus(c.plan))),
    "MoveAway by PlusPlus of another plan": twice(lambda c: MoveAway(
        c.model, c.other, 0.5, rule=PlusPlus(another_plan()))),
    "Unasked": once(lambda c: Unasked(c.model)),
    "Instead": once(lambda c: Instead(c.model, {"c": 2.0})),
    "MoveAway from IndependentCondition": twice(lambda c: MoveAway(
        c.model, IndependentCondition(c.model, {"c": torch.tensor([-1.0, 2.0])}), 0.5)),
    "MoveAway from PerturbedTime": twice(lambda c: MoveAway(
        c.model, PerturbedTime(c.model, 0.2), 0.5)),
    "MoveAway from PerturbedAttention": Row(
        lambda c: MoveAway(c.model, PerturbedAttention(c.model), 0.5),
        lambda c: 2 * c.n + 1, "2n + 1"),
    "ClassifierGuidance": once(lambda c: ClassifierGuidance(
        c.model, Sum(Silent(), c.model.paths, {"c": (0.0, 1.0)}))),
    "TrainingFree, rho": limited(lambda c: TrainingFree(c.model, log_f, rho=0.2)),
    "TrainingFree, mu": once(lambda c: TrainingFree(c.model, log_f, mu=0.2)),
    "TrainingFree, rho and mu": limited(lambda c: TrainingFree(
        c.model, log_f, rho=0.2, mu=0.2, gamma=0.1, iterations=2, copies=2, clip=1.0)),
    **{f"Posterior, {m}": posterior(m) for m in get_args(PosteriorMethod)},
    "Posterior, pigdm, estimate": posterior("pigdm", "estimate"),
    "Posterior, dps-scaled, estimate": posterior("dps-scaled", "estimate"),
    "MomentMatching": limited(lambda c: MomentMatching(c.model, "x", Y, MEASUREMENT)),
    "DecoupledAnnealing": once(lambda c: DecoupledAnnealing(
        c.model, "x", Y, MEASUREMENT, DRAWS, langevin=2)),
    "DecoupledAnnealing, inner": Row(
        lambda c: DecoupledAnnealing(
            c.model, "x", Y, MEASUREMENT, DRAWS, inner=Sampler(steps=2, method="ab1")),
        lambda c: 3 * c.n, "3n"),
    "Projected": once(lambda c: Projected.linear(c.model, "x", Y, MEASUREMENT)),
    "OracleGuidance, EnergyDescent": once(lambda c: oracle(c, EnergyDescent())),
    "OracleGuidance, TwoPoint": once(lambda c: oracle(c, TwoPoint(), form="posterior", budget=8)),
    "Replacement": once(lambda c: Replacement(c.model, known())),
    "Replacement, level": once(lambda c: Replacement(c.model, known(), "level", DRAWS)),
    "Reconstruction": once(lambda c: Reconstruction(c.model, known())),
    "LowPassReference": once(lambda c: LowPassReference(
        c.model, {"x": torch.ones(BATCH, ELEMENTS, 2, dtype=torch.float64)}, AveragePool(3))),
    **{f"Superposition, {rule}, {form}": twice(
        lambda c, rule=rule, form=form: Superposition(  # type: ignore[misc]
            [c.model, c.other], rule, form=form, draws=DRAWS if form == "ode" else None))
       for rule in ("or", "and", "average") for form in ("sde", "ode")},
    "Product": twice(lambda c: Product([c.model, c.other], [0.7, 0.3])),
    "Product, not to 1": twice(lambda c: Product([c.model, c.other])),
    "Product, normal": twice(lambda c: Product([c.model, c.other], rule="normal")),
    "EpsilonScaling": once(lambda c: EpsilonScaling(c.model, 1.02, 0.01)),
    "Projected, ClassifierFree": twice(lambda c: Projected.linear(
        ClassifierFree(c.model, 1.0), "x", Y, MEASUREMENT)),
}  # fmt: skip

FEW = ("ab3", "unipc3", "heun", "ddpm")
VARIANTS = {
    "ClassifierFree, weight 0", "MoveAway, two", "MoveAway by Tangential", "MoveAway by ZeroStar",
    "MoveAway by Rescale", "MoveAway by Orthogonal", "MoveAway by FrequencySplit",
    "TrainingFree, rho and mu", "Posterior, pigdm, estimate", "Posterior, dps-scaled, estimate",
    "DecoupledAnnealing, inner", "OracleGuidance, TwoPoint", "Replacement, level",
    "Superposition, or, ode", "Superposition, and, ode", "Superposition, average, sde",
    "Superposition, average, ode", "Product, normal", "Product, not to 1",
    "Projected, ClassifierFree",
}  # fmt: skip
"""Settings of a guidance that has a row under every method; under a few, for the time it takes."""
CELLS = [(n, m) for m in METHODS for n in ROWS if m in FEW or n not in VARIANTS]

REFUSED: dict[tuple[str, str], str] = {
    ("MoveAway by PlusPlus of another plan", method): "make the rule with the plan of the sampler"
    for method in METHODS
}
"""(row, method) to a part of the reason."""


@cache
def planned(method: str) -> tuple[Sampler, Plan, int]:
    """The sampler, its plan, and how many of its calls lie beyond the noise limit."""
    sampler = Sampler(steps=STEPS, method=method)
    plan = sampler.plan(Attending([1, 1, 1]))
    a, s = POINTS.schedule(torch.tensor([t for t, _ in plan], dtype=torch.float64))
    return sampler, plan, int((s > LIMIT * POINTS.data_std * a).sum())


@cache
def another_plan() -> Plan:
    return Sampler(steps=11).plan(Attending([1, 1, 1]))


@cache
def models() -> tuple[Attending, Attending]:
    return Attending([0.5, 0.3, 0.2]), Attending([0.2, 0.3, 0.5])


def case(method: str) -> Case:
    for model in models():
        model.calls = 0
    return Case(*models(), *planned(method))


@pytest.mark.parametrize("method", METHODS)
def test_every_guidance_under_every_method(method: str) -> None:
    for name in (n for n, m in CELLS if m == method):
        try:
            check(name, method)
        except BaseException as error:
            # A test of its own for each would take longer than what it tests.
            error.add_note(f"guidance {name!r}, method {method!r}")
            raise


def check(name: str, method: str) -> None:
    """One cell of the table."""
    row, c = ROWS[name], case(method)
    context: Context = numbered(
        all_real(BATCH, ELEMENTS).replace(conditions={"c": torch.tensor([1.0, -1.0]).double()}),
        DRAWS,
    )
    if (name, method) in REFUSED:
        with pytest.raises(InputError, match=REFUSED[name, method]):
            c.sampler(row.made(c), context, DRAWS, dtype=torch.float64)
        return
    guided = row.made(c)
    report = c.sampler(guided, context, DRAWS, dtype=torch.float64)
    x, token = report.state["x"], report.state["token"]
    assert not bool(report.broken.any()), report.where
    assert x.shape == (BATCH, ELEMENTS, 2) and x.dtype == torch.float64
    assert bool(x.isfinite().all()) and float(x.abs().max()) < 100
    assert token.shape == (BATCH, ELEMENTS) and token.dtype == torch.int64
    assert int(token.min()) >= 0 and int(token.max()) < KINDS
    assert not x.requires_grad
    assert report.calls == c.n
    assert c.model.calls + c.other.calls == row.calls(c)
    if isinstance(getattr(guided, "calls", None), int):
        assert guided.calls == row.calls(c)


def table() -> str:
    """Markdown: calls of models of each guidance, n those of the sampler, k beyond the limit."""

    def cell(name: str, method: str) -> str:
        if (name, method) in REFUSED:
            return f"refused: {REFUSED[name, method]}"
        return ROWS[name].costs if (name, method) in CELLS else "not run"

    lines = ["| guidance | " + " | ".join(METHODS) + " |", "|---" * (len(METHODS) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(cell(name, m) for m in METHODS) + " |" for name in ROWS]
    return "\n".join(lines)


def test_the_table_has_every_guidance_and_every_method() -> None:
    text = table()
    public = {name: getattr(guidance, name) for name in guidance.__all__}
    for name, value in public.items():
        rule = isinstance(value, type) and issubclass(value, guidance.Rule)
        guide = isinstance(value, type) and issubclass(value, Denoiser)
        if guide or (rule and value is not guidance.Rule):
            assert name in {word.strip(",") for row in ROWS for word in row.split()}, name
            assert name in text
    lines = text.splitlines()
    assert len(lines) == len(ROWS) + 2
    assert {line.count("|") for line in lines} == {len(METHODS) + 2}
    assert lines[0].strip("| ").split(" | ") == ["guidance", *METHODS]


def test_refusals_and_variants_are_of_rows_and_methods() -> None:
    assert set(REFUSED) <= set(CELLS) and set(ROWS) >= VARIANTS and set(METHODS) >= set(FEW)
    full = {name.partition(",")[0].split()[0] for name in set(ROWS) - VARIANTS}
    assert {name.partition(",")[0].split()[0] for name in VARIANTS} <= full


def test_a_network_without_attention_is_refused() -> None:
    plain = NamedMixture(POINTS, TOKENS, MEANS, 0.15, [1, 1, 1])
    with pytest.raises(InputError, match="no block of attention"):
        PerturbedAttention(plain)
