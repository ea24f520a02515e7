"""Prior means: noise or residual, any prediction, schedule, sampler and guidance, one law."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sciflow.denoisers import Network, NetworkDenoiser, Prediction
from sciflow.errors import InputError
from sciflow.guidance import ClassifierFree
from sciflow.objectives import DenoisingObjective
from sciflow.paths import CategoricalPath, GaussianPath
from sciflow.prior_mean import PriorMeanDenoiser
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.schedules import Cosine, Rectified, Schedule, SubVP, VarianceExploding, VPLinear
from sciflow.spaces import Euclidean, Tokens, ZeroCoM
from sciflow.state import Context, State
from sciflow.testing.targets import DiagonalGaussian, all_real

F64 = torch.float64
SCHEDULES = [Rectified(), Cosine(), VPLinear(), SubVP(), VarianceExploding(0.01, 3.0)]
PREDICTIONS = ["x0", "eps", "v", "score", "velocity", "edm"]
KINDS = ["noise", "residual"]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)
every_kind = pytest.mark.parametrize("kind", KINDS)
VARIANCE = torch.tensor([0.3, 0.05], dtype=F64)


def mean_of(context: Context) -> Tensor:
    """A prior mean that moves with the condition, and is none without one; ``[B, 1, 2]``."""
    c = context.conditions["c"].nan_to_num(0.0)
    return torch.stack((1 + 2 * c, -3 * c), -1)[:, None]


def truth_of(context: Context) -> Tensor:
    """The data's mean, which the prior mean misses by some way."""
    return mean_of(context) + torch.tensor([0.4, -0.2], dtype=F64)


def asked(n: int) -> Context:
    c = torch.linspace(-1, 1, n, dtype=F64)
    return all_real(n).replace(conditions={"c": c})


class Exact(Network):
    """What a network learns that sees the data N(truth(c), V) relative to a prior mean.

    It knows no more than a network does: inputs of its path, levels and the context.
    """

    def __init__(self, path: GaussianPath, kind: str, mean: Callable[[Context], Tensor]):
        super().__init__()
        self.path, self.kind, self.mean = path, kind, mean

    def forward(self, inputs: dict[str, Tensor], levels: dict[str, Tensor], context: Context,
                previous: dict[str, Tensor] | None) -> dict[str, Tensor]:  # fmt: skip
        path, level = self.path, levels["x"].double()
        t = path.schedule.invert(lambda a, s: s.log() - a.log(), level)
        a, s = (y[:, None, None] for y in path.schedule(t))
        x = inputs["x"] * (a**2 * path.data_std**2 + s**2).sqrt()
        truth, mu = truth_of(context), self.mean(context)
        y = {"noise": x - s * mu, "residual": x + a * mu, "none": x}[self.kind]
        clean = truth + a * VARIANCE / (a**2 * VARIANCE + s**2) * (y - a * truth)
        return {"x": path.output(clean - mu if self.kind == "residual" else clean, x, t)}


def exact(
    path: GaussianPath, kind: str, mean: Callable[[Context], Tensor] = mean_of
) -> NetworkDenoiser:
    network = Exact(path, kind, mean)
    if kind == "none":
        return NetworkDenoiser(network, {"x": path})
    return PriorMeanDenoiser(network, {"x": path}, {"x": mean}, kind)  # type: ignore[arg-type]


def path_of(schedule: Schedule, prediction: str = "edm") -> GaussianPath:
    return GaussianPath(Euclidean(2), schedule, prediction, 0.7)  # type: ignore[arg-type]


@every_schedule
@every_kind
def test_the_network_sees_the_process_of_the_formula(schedule: Schedule, kind: str) -> None:
    """x_t = a x_0 + s (μ + ε), or a (x_0 − μ) + s ε, from the noise of a plain path."""
    path, context, draws = path_of(schedule), asked(5), Draws(0, torch.arange(5))
    denoiser = exact(path, kind)
    assert isinstance(denoiser, PriorMeanDenoiser)
    x0, t = truth_of(context), torch.linspace(0.1, 1, 5, dtype=F64)
    y = denoiser.paths["x"].corrupt(x0, t, context, draws, "n", 2)
    noise = path.space.noise(context, draws, "n", 2, F64)
    a, s = (c[:, None, None] for c in schedule(t))
    mu = mean_of(context)
    expected = a * x0 + s * (mu + noise) if kind == "noise" else a * (x0 - mu) + s * noise
    torch.testing.assert_close(denoiser.seen(State({"x": y}, context), t)["x"], expected)


@every_schedule
@every_prediction
@every_kind
def test_every_kind_gives_one_trajectory(schedule: Schedule, prediction: str, kind: str) -> None:
    """From where the clamped level of a network is still its time."""
    path, context, draws = path_of(schedule, prediction), asked(4), Draws(0, torch.arange(4))
    start = {"x": path.space.noise(context, draws, "x", 0, F64)}

    def run(denoiser: NetworkDenoiser, method: str) -> Tensor:
        sampler = Sampler(steps=8, method=method)
        return sampler(denoiser, context, draws, dtype=F64, start=start, begin=0.9).state["x"]

    for method in ("ab2", "ddpm"):
        plain = run(exact(path, "none"), method)
        torch.testing.assert_close(run(exact(path, kind), method), plain, rtol=1e-7, atol=1e-7)
    other = exact(path_of(Rectified(), prediction), kind)
    network = other.network
    assert isinstance(network, Exact)
    network.path = path
    again = other.reschedule({"x": schedule})
    assert isinstance(again, PriorMeanDenoiser) and again.kind == kind
    torch.testing.assert_close(run(again, "ddpm"), plain, rtol=1e-7, atol=1e-7)


@every_schedule
@every_kind
def test_the_flow_ends_where_that_of_the_gaussian_ends(schedule: Schedule, kind: str) -> None:
    path, context, draws = path_of(schedule), asked(6), Draws(3, torch.arange(6))
    denoiser = exact(path, kind)
    start = denoiser.paths["x"].prior(context, draws, "x/prior", F64)
    found = Sampler(steps=60, method="ab3")(denoiser, context, draws, dtype=F64).state["x"]
    one, zero = torch.ones((), dtype=F64), torch.zeros((), dtype=F64)
    for i in range(6):
        target = DiagonalGaussian(path, truth_of(context)[i, 0], VARIANCE)
        expected = target.flow(start[i], one, zero)
        torch.testing.assert_close(found[i], expected, rtol=0, atol=4e-3)


@pytest.mark.parametrize(
    ("prediction", "schedule"), [("velocity", SCHEDULES[0]), ("edm", SCHEDULES[-1])], ids=str
)
@every_kind
def test_samples_have_the_law_of_the_data(prediction: str, schedule: Schedule, kind: str) -> None:
    """By a stochastic method, whose fresh noise would carry the mean again and again."""
    n = 2000
    context = all_real(n).replace(conditions={"c": torch.full((n,), 0.8, dtype=F64)})
    denoiser = exact(path_of(schedule, prediction), kind)
    # The prior of a schedule that keeps all signal starts at the prior mean, 0.4 from the truth.
    # Many steps: of the plain model too, ancestral sampling loses 5 % of the variance at 200.
    sampler = Sampler(steps=250, method="ddpm")
    x = sampler(denoiser, context, Draws(0, torch.arange(n)), dtype=F64).state["x"][:, 0]
    truth = truth_of(context)[0, 0]
    assert float((x.mean(0) - truth).abs().max()) < 4 * math.sqrt(0.3 / n) + 0.01
    torch.testing.assert_close(x.var(0), VARIANCE, rtol=0.12, atol=0)


def test_a_short_variance_exploding_schedule_starts_at_the_mean() -> None:
    """With a(1) = 1 the noise at t = 1 need not drown the data, only what the mean leaves open."""
    path, n = path_of(VarianceExploding(0.01, 3.0)), 4000
    context = all_real(n).replace(conditions={"c": torch.ones(n, dtype=F64)})
    draws = Draws(0, torch.arange(n))
    for kind in KINDS:
        prior = exact(path, kind).paths["x"].prior(context, draws, "p", F64)
        centre = prior[:, 0].mean(0) - mean_of(context)[0, 0]
        assert float(centre.abs().max()) < 4 * 3.1 / math.sqrt(n)
        assert float(prior.std(0).mean()) == pytest.approx(math.hypot(3.0, 0.7), rel=0.03)


@every_kind
def test_guidance_combines_models_whose_means_differ(kind: str) -> None:
    """The mean moves when the condition is dropped; the state of both estimates does not."""
    path, context, draws = path_of(Rectified()), asked(4), Draws(0, torch.arange(4))
    start = {"x": path.space.noise(context, draws, "x", 0, F64)}
    found = {
        k: Sampler(steps=10)(ClassifierFree(exact(path, k), 1.5), context, draws, dtype=F64,
                             start=start, begin=0.9).state["x"]
        for k in ("none", kind)
    }  # fmt: skip
    torch.testing.assert_close(found[kind], found["none"], rtol=0, atol=1e-9)
    unguided = Sampler(steps=10)(exact(path, kind), context, draws, dtype=F64, start=start,
                                 begin=0.9).state["x"]  # fmt: skip
    assert float((found[kind] - unguided).abs().max()) > 0.1


class Nothing(Network):
    """Answers with zeros; remembers what it saw."""

    def forward(self, inputs: dict[str, Tensor], levels: dict[str, Tensor], context: Context,
                previous: dict[str, Tensor] | None) -> dict[str, Tensor]:  # fmt: skip
        self.inputs, self.previous = inputs, previous
        return {name: torch.zeros_like(x) for name, x in inputs.items()}


class Affine(nn.Module):
    """A learned mean: linear in the condition."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 2, dtype=F64)

    def forward(self, context: Context) -> Tensor:
        return self.linear(context.conditions["c"][:, None])[:, None]


def learner(prediction: str = "x0", **settings: Any) -> PriorMeanDenoiser:
    path = path_of(Rectified(), prediction)
    return PriorMeanDenoiser(Nothing(), {"x": path}, {"x": Affine()}, "residual", **settings)


def test_a_learned_mean_is_trained_to_the_mean_of_the_data() -> None:
    """With a network that says nothing the objective is a regression: its minimum is known."""
    torch.manual_seed(0)
    denoiser, context = learner(), asked(64)
    draws = Draws(0, torch.arange(64))
    batch = State({"x": truth_of(context)}, context)
    objective = DenoisingObjective(drop_all=0.0)
    optimizer = torch.optim.LBFGS(denoiser.parameters(), max_iter=50)

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = objective(denoiser, batch, draws, 0).total.mean()  # type: ignore[arg-type]
        total.backward()
        return total

    optimizer.step(loss)  # type: ignore[arg-type]
    found = denoiser.mean("x", context, batch["x"])
    torch.testing.assert_close(found, truth_of(context), rtol=0, atol=1e-5)


def test_a_learned_mean_is_part_of_the_network() -> None:
    """So it is averaged, saved and loaded with it, and a copy of the network has its own."""
    denoiser, context = learner(), asked(3)
    assert "prior_means.x.linear.weight" in denoiser.network.state_dict()
    averaged = copy.deepcopy(denoiser.network)
    with torch.no_grad():
        for p in averaged.parameters():
            p.add_(1.0)
    other = denoiser.remake(network=averaged)
    like = torch.zeros(3, 1, 2, dtype=F64)
    shift = other.mean("x", context, like) - denoiser.mean("x", context, like)
    torch.testing.assert_close(shift, (1 + context.conditions["c"])[:, None, None].expand(3, 1, 2))
    path = other.paths["x"]
    assert isinstance(path, GaussianPath) and path.data_mean is not None
    assert torch.equal(path.data_mean(context, like), other.mean("x", context, like))
    assert len(list(denoiser.parameters())) == 2


def test_means_from_extras_and_constants() -> None:
    context = Context(torch.arange(4) < torch.tensor([4, 2])[:, None])
    template = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    context = context.replace(extras={"template": template})
    path = GaussianPath(ZeroCoM(3), Rectified())
    state = State({"x": torch.zeros(2, 4, 3, dtype=F64)}, context)
    means: list[Any] = ["template", template, template[0], lambda c: c.extras["template"]]
    for mean in means:
        denoiser = PriorMeanDenoiser(Nothing(), {"x": path}, {"x": mean})
        given = template[:1].expand(2, 4, 3) if mean is means[2] else template
        seen = denoiser.seen(state, 0.5)["x"]
        # A legal value: centred over the real points, zero in padding.
        torch.testing.assert_close(seen, 0.5 * ZeroCoM(3).project(given, context))


@every_kind
def test_what_is_given_is_its_own_estimate(kind: str) -> None:
    context = all_real(2, 3).replace(given={"x": torch.tensor([[True, False, False]] * 2)})
    mean = torch.tensor([0.1, 0.7], dtype=F64)
    denoiser = PriorMeanDenoiser(Nothing(), {"x": path_of(Cosine())}, {"x": mean}, kind)  # type: ignore[arg-type]
    x = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    clean = denoiser(State({"x": x}, context), 0.6)["x"]
    assert torch.equal(clean[:, 0], x[:, 0]) and not torch.equal(clean[:, 1], x[:, 1])


def test_self_conditioning_speaks_of_the_residual() -> None:
    denoiser, context = learner(self_conditioning=True), asked(3)
    x = torch.randn(3, 1, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    mu = denoiser.mean("x", context, x)
    denoiser(State({"x": x}, context), 0.5, Prediction({"x": x}))
    network = denoiser.network
    assert isinstance(network, Nothing) and network.previous is not None
    torch.testing.assert_close(network.previous["x"] * 0.7, x - mu)
    torch.testing.assert_close(network.inputs["x"] * math.hypot(0.35, 0.5), x - 0.5 * mu)


def test_other_fields_are_left_alone() -> None:
    tokens = CategoricalPath(Tokens(3), Rectified())
    plain = path_of(Rectified())
    paths = {"x": plain, "token": tokens}
    denoiser = PriorMeanDenoiser(Nothing(), paths, {"x": torch.ones(2)})
    assert denoiser.paths["token"] is tokens and plain.data_mean is None
    state = State({"x": torch.zeros(1, 1, 2), "token": torch.ones(1, 1, dtype=torch.long)},
                  all_real(1))  # fmt: skip
    assert denoiser.seen(state, 0.5)["token"] is state["token"]


def test_what_is_refused() -> None:
    paths = {"x": path_of(Rectified()), "token": CategoricalPath(Tokens(3), Rectified())}
    with pytest.raises(InputError, match="no continuous field; those are: x"):
        PriorMeanDenoiser(Nothing(), paths, {"token": torch.ones(2)})
    with pytest.raises(InputError, match="noise, residual"):
        PriorMeanDenoiser(Nothing(), paths, {"x": torch.ones(2)}, "shift")  # type: ignore[arg-type]
    state = State({"x": torch.zeros(1, 1, 2)}, all_real(1))
    with pytest.raises(InputError, match=r"extras\['mu'\], which is missing; given: none"):
        PriorMeanDenoiser(Nothing(), {"x": paths["x"]}, {"x": "mu"}).seen(state, 0.5)
    with pytest.raises(InputError, match=r"\[5\], which cannot be broadcast"):
        PriorMeanDenoiser(Nothing(), {"x": paths["x"]}, {"x": torch.ones(5)}).seen(state, 0.5)
