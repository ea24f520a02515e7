"""Faults that shipped in well-known packages: each test would fail if ours had the same one.

Those of couplings, likelihoods, random fields and solvers stand in the tests of these.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.guidance import ClassifierFree
from sciflow.paths import CategoricalPath, GaussianPath, Path
from sciflow.random import Draws
from sciflow.samplers import GRIDS, METHODS, Plan, Sampler
from sciflow.samplers.ancestral import Ancestral
from sciflow.samplers.discrete import MarkovJumps
from sciflow.schedules import Cosine, Rectified, Schedule, Tabulated, VarianceExploding, VPLinear
from sciflow.spaces import Euclidean, Tokens, ZeroCoM
from sciflow.state import Context, State, Times
from sciflow.testing.targets import DiagonalGaussian, TokenTable, all_real

SCHEDULES = [Rectified(), Cosine(), VPLinear(), VarianceExploding()]
PREDICTIONS = ["x0", "eps", "v", "score", "velocity", "edm"]
STRAIGHT = [m for m in ("ab1", "ab2", "ab3", "ddim", "heun", "dpm2", "dpmpp2m", "unipc2")
            if m in METHODS]  # fmt: skip
"""Methods that are exact where the clean estimate is the same all the way."""
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
every_method = pytest.mark.parametrize("method", METHODS)


def gaussian(
    schedule: Schedule,
    mean: Sequence[float] = (1.0, -2.0),
    variance: Sequence[float] = (0.3, 2.0),
    **path: object,
) -> DiagonalGaussian:
    space = Euclidean(len(mean))
    return DiagonalGaussian(GaussianPath(space, schedule, **path), torch.tensor(mean),  # type: ignore[arg-type]
                            torch.tensor(variance))  # fmt: skip


class Recorded(Denoiser):
    """Keeps the times and states that a denoiser was asked about."""

    def __init__(self, denoiser: Denoiser):
        super().__init__()
        self.denoiser, self.paths = denoiser, denoiser.paths
        self.seen: list[tuple[float, State]] = []

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        assert isinstance(t, float)
        self.seen.append((t, state))
        return self.denoiser(state, t, previous)


class Certain(Denoiser):
    """The clean estimate is one and the same at every time."""

    def __init__(self, path: Path, clean: Tensor):
        super().__init__()
        self.paths, self.clean = {"x": path}, clean

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        return Prediction({"x": self.clean})


class Silent(Draws):
    """Random numbers that nobody may ask for."""

    def _words(self, *_: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        raise AssertionError("a random number was drawn")


@pytest.mark.parametrize("grid", GRIDS)
@every_schedule
@pytest.mark.parametrize("steps", [30, 1000])
def test_no_time_is_met_twice(schedule: Schedule, grid: str, steps: int) -> None:
    """diffusers #12771: a cosine schedule on Karras' grid rounded to the same integer timestep
    twice, the step counter drifted and ended in an IndexError."""
    plan = Sampler(steps=steps, grid=grid).plan(gaussian(schedule))
    assert len(plan) == steps
    assert bool((plan.start.diff() < 0).all()) and torch.equal(plan.start[1:], plan.end[:-1])
    assert len(set(plan.start.tolist())) == steps


@pytest.mark.parametrize("grid", GRIDS)
@every_schedule
def test_calls_are_those_asked_for_and_the_last_step_moves(schedule: Schedule, grid: str) -> None:
    """diffusers #4122: 100 requested steps ran as 95; PR #6477: the last noise level stood twice,
    so that the last step changed nothing."""
    for steps in (7, 95, 100):
        model = Recorded(gaussian(schedule))
        report = Sampler(steps=steps, grid=grid)(model, all_real(2), Draws(0, [0, 1]))
        assert report.calls == len(model.seen) == steps
        last, state = model.seen[-1]
        assert last > 0
        assert float((report.state["x"] - state["x"]).abs().min()) > 1e-7


@every_method
@every_schedule
def test_few_steps_of_every_order_are_finite(schedule: Schedule, method: str) -> None:
    """diffusers #14411: one step gave NaN; #9007: third order did where the last level is 0;
    #10266: UniPC read beyond its levels."""
    target = gaussian(schedule)
    for steps in (1, 2, 3, 5):
        report = Sampler(steps=steps, method=method)(target, all_real(4), Draws(0, range(4)))
        x = report.state["x"]
        assert bool(x.isfinite().all()) and not bool(report.broken.any())
        assert float((x[:, 0] - target.mean).abs().max()) < 12


class Textbook(DiagonalGaussian):
    """A network whose output is what the name of its prediction type says, by its own formula."""

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        x, u = state["x"], torch.full((state.batch_size,), float(t), dtype=torch.float64)  # type: ignore[arg-type]
        d = self.exact(state, {"x": u})["x"]
        (a, s), (da, ds) = (
            (p[:, None, None], q[:, None, None])
            for p, q in (self.path.schedule(u), self.path.schedule.derivatives(u))
        )
        eps = (x - a * d) / s
        scale = (a**2 + s**2).sqrt()
        mix = (d - a / scale**2 * x) * scale / s
        outputs = {"x0": d, "eps": eps, "v": a * eps - s * d, "score": -eps / s,
                   "velocity": da * d + ds * eps, "edm": mix}  # fmt: skip
        return Prediction(
            {"x": self.path.clean(outputs[self.path.prediction], x, u, state.context)}
        )


@pytest.mark.parametrize("prediction", PREDICTIONS)
@every_schedule
def test_ddim_knows_every_prediction_type(schedule: Schedule, prediction: str) -> None:
    """diffusers #1486: DDIM took prediction_type="sample" for noise; with one conversion, in the
    path, the update is a_s D + s_s (x − a_t D)/s_t for all of them."""
    path = GaussianPath(Euclidean(2), schedule, prediction)  # type: ignore[arg-type]
    target = Textbook(path, torch.tensor([1.0, -2.0]), torch.tensor([0.3, 2.0]))
    model, start = Recorded(target), {"x": torch.tensor([[[0.5, -1.0]]], dtype=torch.float64)}
    Sampler(steps=4, method="ddim")(
        model, all_real(1), Draws(0, [0]), dtype=torch.float64, start=start, begin=0.9
    )
    v, m = target.variance, target.mean
    for (t, x), (u, y) in pairwise(model.seen):
        (a, s), (b, r) = (schedule(torch.tensor(w, dtype=torch.float64)) for w in (t, u))
        d = m + a * v / (a**2 * v + s**2) * (x["x"] - a * m)
        expected = b * d + r * (x["x"] - a * d) / s
        torch.testing.assert_close(y["x"], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", STRAIGHT)
@every_schedule
def test_signal_and_noise_are_those_of_the_end_of_a_step(schedule: Schedule, method: str) -> None:
    """lucidrains PR #83: DDIM read the signal of the neighbouring step; azula's REABSampler scaled
    the end of a step with the noise of its start, which cost an order. With D = x_0 all the way
    every state on the way is a x_0 + s ε."""
    x0 = torch.tensor([[[1.5, -0.5]]], dtype=torch.float64)
    eps = torch.tensor([[[0.3, 1.1]]], dtype=torch.float64)
    begin = 0.9
    a, s = schedule(torch.tensor(begin, dtype=torch.float64))
    model = Recorded(Certain(GaussianPath(Euclidean(2), schedule), x0))
    sampler = Sampler(steps=9, method=method, grid="uniform-u")
    sampler(model, all_real(1), Draws(0, [0]), dtype=torch.float64, begin=begin,
            start={"x": a * x0 + s * eps})  # fmt: skip
    assert len(model.seen) == 9
    for t, state in model.seen:
        b, r = schedule(torch.tensor(t, dtype=torch.float64))
        torch.testing.assert_close(state["x"], b * x0 + r * eps, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["ddim", "ab1", "heun"])
def test_no_noise_is_drawn_where_it_would_be_multiplied_by_zero(method: str) -> None:
    """azula DDIMSampler(eta=0), k-diffusion sample_euler: a randn a step for nothing, three times
    slower, and the random state of the user moves on."""
    start = {"x": torch.ones(2, 1, 2)}
    report = Sampler(steps=6, method=method)(
        gaussian(Rectified()), all_real(2), Silent(0, [0, 1]), start=start
    )
    assert bool(report.state["x"].isfinite().all())


@every_method
def test_nothing_is_assumed_of_the_range_of_data(method: str) -> None:
    """diffusers DDIM clips to [−1, 1] by default: data at 3 came out as 1; deepinv's
    minus_one_one=True and lucidrains' auto_normalize rescale what is no image."""
    n, mean, variance = 400, (3.0, -40.0), (0.04, 9.0)
    target = gaussian(Rectified(), mean, variance, data_std=3.0)
    x = Sampler(steps=80, method=method)(
        target, all_real(n), Draws(0, torch.arange(n)), dtype=torch.float64
    ).state["x"][:, 0]
    for i, (m, v) in enumerate(zip(mean, variance, strict=True)):
        assert float(x[:, i].mean()) == pytest.approx(m, abs=0.25 * v**0.5 + 0.01)
        assert float(x[:, i].std()) == pytest.approx(v**0.5, rel=0.25)


def test_derivatives_of_a_variance_preserving_schedule() -> None:
    """deepinv PR #1343: a factor 2 was missing in σ′ of the VP schedule, and "sampling never
    converges". In closed form a′ = −β a/2, s′ = β a²/(2 s), so that g² = 2 s² d/dt log(s/a) = β."""
    t = torch.linspace(0.05, 1, 20, dtype=torch.float64)
    schedule = VPLinear(0.1, 20.0)
    beta = 0.1 + 19.9 * t
    (a, s), (da, ds) = schedule(t), schedule.derivatives(t)
    torch.testing.assert_close(da, -beta * a / 2)
    torch.testing.assert_close(ds, beta * a**2 / (2 * s))
    torch.testing.assert_close(2 * s**2 * (ds / s - da / a), beta)


def test_signal_that_a_schedule_keeps_is_in_the_prior() -> None:
    """sbi PR #1825: two packages' VP schedules end at a(1) = 0.001 and 0.082; a model trained with
    the second starts at the variance a² σ² + s², not s²."""
    n, std = 20_000, 8.0
    a = 0.082
    t = torch.linspace(0.01, 1, 100, dtype=torch.float64)
    signal = 1 - (1 - a) * t
    table = Tabulated(t.tolist(), signal.tolist(), (1 - signal**2).sqrt().tolist())
    target = gaussian(table, (0.0,), (std**2,), data_std=std)
    prior = target.path.prior(all_real(n), Draws(0, torch.arange(n)), "p", torch.float64)
    wanted = math.sqrt((a * std) ** 2 + 1 - a**2)
    assert float(prior.std()) == pytest.approx(wanted, rel=0.02)
    x = Sampler(steps=60, method="ab3")(target, all_real(n), Draws(0, torch.arange(n))).state["x"]
    assert float(x.std()) == pytest.approx(std, rel=0.03)


def test_copies_of_a_sample_take_everything_along() -> None:
    """TFG #10: more than one Monte-Carlo copy crashed for molecules, since masks and conditions
    were not repeated with the positions."""
    context = Context(
        torch.tensor([[True, True], [True, False]]), {"c": torch.tensor([1.0, 2.0])},
        {"x": torch.tensor([[True, False], [False, False]])}, {"e": torch.arange(4).view(2, 2)},
    )  # fmt: skip
    fields = {"x": torch.arange(4.0).view(2, 2, 1), "k": torch.tensor([[0, 1], [2, 0]])}
    state = State(fields, context)
    copies = state.repeat(3)
    assert copies.batch_size == 6
    for i in range(6):
        one, source = copies.index(slice(i, i + 1)), state.index(slice(i // 3, i // 3 + 1))
        assert all(torch.equal(one[f], source[f]) for f in state)
        assert torch.equal(one.context.mask, source.context.mask)
        for part in ("conditions", "given", "extras"):
            found, expected = getattr(one.context, part), getattr(source.context, part)
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[k], expected[k]) for k in expected)


class Pulled(Denoiser):
    """Estimates that a condition moves by a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.paths = {"x": GaussianPath(Euclidean(2), Rectified())}

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        c = state.context.conditions["c"].nan_to_num(0.0)
        return Prediction({"x": 0.5 * state["x"] + c[:, None, None]})


def test_guidance_does_not_fade_with_the_size_of_the_batch() -> None:
    """azula DPS (and the original): the norm of the error was taken over the whole batch, so that
    guidance fell as 1/√B (0.688 alone, 0.084 among 64)."""
    pulls = []
    for batch in (1, 64):
        context = all_real(batch).replace(conditions={"c": torch.ones(batch)})
        args = (context, Draws(0, torch.arange(batch)))
        guided, plain = (
            Sampler(steps=8)(d, *args, dtype=torch.float64).state["x"][0]
            for d in (ClassifierFree(Pulled(), 2.0), Pulled())
        )
        pulls.append(guided - plain)
    assert float(pulls[0].abs().min()) > 0.5
    assert torch.equal(pulls[0], pulls[1])


def test_padded_rows_stay_zero_when_a_cloud_is_centred() -> None:
    """MoCo clean_mask_center: the centre of mass was subtracted after masking, so that every padded
    row became −CoM."""
    context = Context(torch.arange(5) < torch.tensor([5, 2])[:, None])
    x = 7 + torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    centred = ZeroCoM(3).project(x, context)
    assert not bool(centred[1, 2:].any())
    assert float(centred.sum(1).abs().max()) < 1e-4


def test_the_centre_of_a_cloud_does_not_know_how_it_is_padded() -> None:
    """MiDi PlaceHolder.mask: the mean was taken over the padded length, so that a molecule's frame
    depended on the largest one of its batch."""
    x = 7 + torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for pad in (0, 1, 40):
        longer = torch.nn.functional.pad(x, (0, 0, 0, pad), value=3.0)
        context = Context((torch.arange(4 + pad) < 4)[None])
        found = ZeroCoM(3).project(longer, context)[:, :4]
        torch.testing.assert_close(found, x - x.mean(1, keepdim=True), rtol=0, atol=1e-12)


def test_each_field_is_masked_by_its_own_symbol() -> None:
    """SemlaFlow's Integrator compared bonds with the mask index of atom types, and chose the
    strategy of bonds by that of types. Symbol 3 is "masked" among 3 classes, and data among 5."""
    context, draws = all_real(4, 6), Draws(0, range(4))
    for classes in (3, 5):
        path = CategoricalPath(Tokens(classes), Rectified())
        stepper = MarkovJumps(path, Plan.along(torch.tensor([0.5, 0.4, 0.0])), greedy=False)
        x = torch.full((4, 6), 3)
        y = stepper.step(1, x, torch.zeros(4, 6, classes), context, draws)
        assert bool((y < classes).all())
        # At the end of a run what is masked is drawn anew, and what was seen stays.
        assert bool((y != 3).all() if classes == 3 else (y == 3).all())


class Apart(Denoiser):
    """Independent fields, each with the exact posterior of its own table."""

    def __init__(self, *tables: TokenTable):
        super().__init__()
        self.tables = tables
        self.paths = {table.field: table.path for table in tables}

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        return Prediction({table.field: table(state, t)[table.field] for table in self.tables})


def test_each_field_is_noised_in_its_own_way() -> None:
    """SemlaFlow's Integrator chose the strategy of bonds by that of types: uniform bonds that are
    treated like masked ones are all taken for known, and stay what the prior drew."""
    n, law = 8000, torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    kinds = {"types": "absorbing", "bonds": "uniform"}
    for names in (["types", "bonds"], ["bonds", "types"]):
        model = Apart(*(
            TokenTable(CategoricalPath(Tokens(3), Rectified(), kinds[f]), law, f)  # type: ignore[arg-type]
            for f in names
        ))  # fmt: skip
        end = Sampler(steps=4, greedy=False)(model, all_real(n), Draws(0, torch.arange(n))).state
        for x in end.values():
            counts = torch.bincount(x.flatten(), minlength=3)
            assert float(((counts - n * law) ** 2 / (n * law)).sum()) < 2 + 4 * math.sqrt(4)


@pytest.mark.parametrize("eta", [0.5, 1.0])
@every_schedule
def test_noise_of_many_small_steps_adds_up_to_that_of_one(schedule: Schedule, eta: float) -> None:
    """SemlaFlow added noise to the velocity, which a step then multiplied by dt, not √dt: it
    vanished as steps grew. With D = 0 every x_s is s_s z, whatever the number of steps."""
    n, path = 40_000, GaussianPath(Euclidean(1), schedule)
    context, draws = all_real(n), Draws(0, torch.arange(n))
    _, first = schedule(torch.tensor(0.9, dtype=torch.float64))
    _, last = schedule(torch.tensor(0.3, dtype=torch.float64))
    start = float(first) * draws.normal((1, 1), "start", dtype=torch.float64)
    correlations = []
    for steps in (1, 20):
        times = torch.linspace(0.9, 0.3, steps + 1, dtype=torch.float64)
        stepper, x = Ancestral(path, Plan.along(times), eta), start
        for i in range(steps):
            x = stepper.step(i, x, torch.zeros_like(x), context, draws)
        assert float(x.std()) == pytest.approx(float(last), rel=4 / math.sqrt(2 * n))
        correlations.append(float((x * start).mean() / (x.std() * start.std())))
    # More small steps forget the start at least as well as one large step.
    assert correlations[1] < correlations[0] + 0.02


@pytest.mark.parametrize("event", [(), (2,), (2, 3)])
def test_fields_of_every_rank_have_a_time_for_each_sample(event: tuple[int, ...]) -> None:
    """score_sde and many after it write σ[:, None, None, None]: images only, and for other ranks
    a silent broadcast over the wrong axis."""
    n = b = 6  # Equal, so that the wrong axis would be taken in silence.
    path = GaussianPath(Euclidean(*event), Cosine())
    draws, context = Draws(0, range(b)), all_real(b, n)
    x0 = torch.full((b, n, *event), 2.0, dtype=torch.float64)
    t = torch.linspace(0.1, 0.9, b, dtype=torch.float64)
    x = path.corrupt(x0, t, context, draws, "noise")
    z = path.space.noise(context, draws, "noise", 0, torch.float64)
    for i in range(b):
        a, s = Cosine()(t[i])
        torch.testing.assert_close(x[i], a * 2.0 + s * z[i])
    end = Sampler(steps=3)(Certain(path, x0), context, draws, dtype=torch.float64).state["x"]
    torch.testing.assert_close(end, x0)
