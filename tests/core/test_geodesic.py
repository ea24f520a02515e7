"""Geodesic paths and their steppers against exact posteriors of angles and rotations."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sciflow.denoisers import Network, NetworkDenoiser
from sciflow.errors import InputError
from sciflow.objectives import DenoisingObjective
from sciflow.paths import GaussianPath, GeodesicPath
from sciflow.random import Draws
from sciflow.samplers import Plan, Sampler
from sciflow.samplers.geodesic import GeodesicStepper
from sciflow.schedules import Cosine, Rectified, Schedule, VarianceExploding, VPLinear
from sciflow.spaces import SO3, Euclidean, Torus
from sciflow.spaces.so3 import rotation
from sciflow.state import Context, State
from sciflow.testing.manifold_targets import AngleMixture, RotationMixture
from sciflow.testing.targets import ExactDenoiser, all_real

PI = math.pi
METHODS = ["ab1", "ab2", "ab3", "heun", "ddim", "ddpm"]
every_method = pytest.mark.parametrize("method", METHODS)
Target = AngleMixture | RotationMixture


def angles(kind: str = "flow", schedule: Schedule | None = None) -> AngleMixture:
    path = GeodesicPath(Torus(), schedule or Rectified(), kind)  # type: ignore[arg-type]
    return AngleMixture(path, [-2.0, 0.5, 2.8], [0.4, 0.6, 0.5], [0.3, 0.5, 0.2])


def rotations(
    kind: str = "flow", k: int = 5, schedule: Schedule | None = None, turn: Tensor | None = None
) -> RotationMixture:
    """``k`` unequal rotations, points for a flow, ``turn``ed from the left."""
    path = GeodesicPath(SO3(), schedule or Rectified(), kind)  # type: ignore[arg-type]
    centres = SO3().noise(all_real(k), Draws(1, torch.arange(k)), "centres", dtype=torch.float64)
    centres = centres[:, 0] if turn is None else turn @ centres[:, 0]
    weights = 1 + torch.arange(k, dtype=torch.float64) % 5
    return RotationMixture(path, centres, weights, 0.0 if kind == "flow" else 0.4)


TARGETS: dict[str, Callable[[], Target]] = {
    "angle-flow": lambda: angles("flow"),
    "angle-diffusion": lambda: angles("diffusion"),
    "rotation-flow": lambda: rotations("flow"),
    "rotation-diffusion": lambda: rotations("diffusion"),
}
every_target = pytest.mark.parametrize("make", TARGETS.values(), ids=TARGETS)


def prior(target: Target, n: int, elements: int = 1) -> Tensor:
    draws = Draws(3, torch.arange(n))
    return target.path.prior(all_real(n, elements), draws, "start", torch.float64)


@every_target
def test_training_targets_average_to_the_exact_field(make: Callable[[], Target]) -> None:
    """E[(F(x_t|x_0) − F(x_t)) φ(x_t)] = 0 for every φ: what a network with this loss learns."""
    n, target = 6000, make()
    path, context, draws = target.path, all_real(n), Draws(5, torch.arange(n))
    x0 = target.sample(n, 2)[:, None]
    for u in (0.25, 0.6, 0.9):
        t = torch.full((n,), u, dtype=torch.float64)
        x = path.corrupt(x0, t, context, draws, "noise")
        f = path.target(x0, x, t)
        c = path.scale(t)[:, None]
        error = (f - target.tangent(x, c)).reshape(n, -1)
        if isinstance(path.space, Torus):
            tests = torch.stack([x.cos(), x.sin(), (2 * x).cos(), torch.ones_like(x)], -1)
        else:
            tests = torch.cat((x.flatten(-2), torch.ones(n, 1, 1)), -1)
        moments = error[:, None, :] * tests[:, 0, :, None]
        z = moments.mean(0) / (moments.std(0) / math.sqrt(n)).clamp(min=1e-6)
        assert float(z.abs().max()) < 4.5
        # And it explains something: φ alone would not do.
        assert float(error.square().mean()) < float(f.square().mean())


def histogram_excess(x: Tensor, target: AngleMixture, bins: int = 30) -> float:
    """χ² of angles against the exact density, in standard deviations above its mean."""
    edges = torch.linspace(-PI, PI, bins * 40 + 1, dtype=torch.float64)
    p = target.log_components((edges[1:] + edges[:-1]) / 2).logsumexp(-1).exp()
    expected = p.view(bins, 40).mean(1) * 2 * PI / bins * len(x)
    counts = torch.histc(x, bins, -PI, PI)
    return float((((counts - expected) ** 2 / expected).sum() - bins + 1) / math.sqrt(2 * bins - 2))


@pytest.mark.parametrize(
    ("kind", "method", "steps"),
    [("flow", "ab2", 24), ("flow", "heun", 31), ("diffusion", "ab2", 60),
     ("diffusion", "heun", 61), ("diffusion", "ddpm", 100)],
)  # fmt: skip
def test_angles_have_the_law_of_the_data(kind: str, method: str, steps: int) -> None:
    n, target = 1000, angles(kind)
    sampler = Sampler(steps=steps, method=method)
    context, draws = all_real(n), Draws(0, torch.arange(n))
    x = sampler(target, context, draws, dtype=torch.float64).state["x"][:, 0]
    assert abs(histogram_excess(x, target)) < 3.5
    assert abs(histogram_excess(target.sample(n), target)) < 3.5
    # The test can tell: four steps are too few.
    few = Sampler(steps=4, method="ab1")(target, context, draws, dtype=torch.float64).state["x"]
    assert histogram_excess(few[:, 0], target) > 6


def energy_p_value(x: Tensor, y: Tensor, permutations: int = 300) -> float:
    """Of the energy distance of two samples of rotations, by relabelling them."""
    z = torch.cat((x, y)).flatten(1)
    d = torch.cdist(z, z)
    g = torch.Generator().manual_seed(0)
    label = torch.cat((torch.ones(len(x)) / len(x), -torch.ones(len(y)) / len(y))).double()
    order = torch.rand(permutations, len(z), generator=g).argsort(-1)
    labels = torch.cat((label[None], label[order]))
    energy = -((labels @ d) * labels).sum(-1)
    return float((energy[1:] >= energy[0] - 1e-12).double().mean())


@pytest.mark.parametrize(
    ("kind", "method", "steps"),
    [("flow", "ab2", 24), ("flow", "heun", 31), ("diffusion", "ab2", 30),
     ("diffusion", "heun", 31), ("diffusion", "ddpm", 40)],
)  # fmt: skip
def test_rotations_have_the_law_of_the_data(kind: str, method: str, steps: int) -> None:
    n, target = 400, rotations(kind, k=10)
    context, draws = all_real(n), Draws(0, torch.arange(n))
    sampler = Sampler(steps=steps, method=method)
    x = sampler(target, context, draws, dtype=torch.float64).state["x"][:, 0]
    exact = target.sample(n, 7)
    assert energy_p_value(x, exact) > 0.01
    equal = RotationMixture(target.path, target.rotations, [1.0] * 10, target.spread)
    assert energy_p_value(equal.sample(n, 8), exact) < 0.01


def test_a_flow_to_points_ends_in_them_with_their_weights() -> None:
    n, target = 4000, rotations("flow")
    report = Sampler(steps=40)(target, all_real(n), Draws(0, torch.arange(n)), dtype=torch.float64)
    distance = SO3().distance(report.state["x"], target.rotations)
    nearest = distance.min(-1)
    assert float(nearest.values.max()) < 1e-12
    counts = torch.bincount(nearest.indices, minlength=5)
    excess = (((counts / n - target.weights) ** 2) / target.weights).sum() * n
    assert float(excess) < 18.5  # χ² with 4 degrees of freedom, p = 1e-3


class Whirl(ExactDenoiser):
    """A smooth field on SO(3) that commutes nowhere and depends on c: a test of order alone."""

    def exact(self, state: State, times: object) -> dict[str, Tensor]:
        x, path = state["x"], self.paths["x"]
        c = path.scale(times["x"])[:, None, None]  # type: ignore[index, attr-defined]
        f = x[..., 0] + 2 * (3 * c).sin() * x[..., 1] + torch.tensor([0.5, -1.0, 1.5]) * x[..., 2]
        return {"x": f}


SMOOTH: dict[str, Callable[[], ExactDenoiser]] = {
    "angle-flow": lambda: angles("flow"),
    "angle-diffusion": lambda: angles("diffusion"),
    "rotation-diffusion": lambda: rotations("diffusion"),
    "whirl": lambda: Whirl({"x": GeodesicPath(SO3(), Rectified())}),
}


def integrate(target: ExactDenoiser, steps: int, x: Tensor, high: float, heun: bool = False,
              order: int = 2) -> Tensor:  # fmt: skip
    """Equal steps of κ from ``high`` to 0.05."""
    path = target.paths["x"]
    assert isinstance(path, GeodesicPath)
    times = torch.linspace(high, 0.05, steps + 1, dtype=torch.float64)
    plan = Plan.along(torch.cat((times, torch.zeros(1, dtype=torch.float64))))
    plan = plan.doubled() if heun else plan
    stepper = GeodesicStepper(path, plan, order, heun)
    context, draws = all_real(*x.shape[:2]), Draws(0, torch.arange(len(x)))
    for i in range(len(plan) - 1):
        clean = target(State({"x": x}, context), float(plan.start[i]))["x"]
        x = stepper.step(i, x, clean, context, draws)
    return x


@pytest.mark.parametrize("name", SMOOTH)
def test_order(name: str) -> None:
    """Adams–Bashforth keeps order 2 on curved spaces, by parallel transport."""
    target = SMOOTH[name]()
    path = target.paths["x"]
    assert isinstance(path, GeodesicPath)
    high = 1.0 if path.kind == "flow" else 0.8
    n = 12
    x = path.prior(all_real(n), Draws(3, torch.arange(n)), "start", torch.float64)
    fine = integrate(target, 220, x, high, heun=True)
    last = {}
    for order, heun in ((1, False), (2, False), (2, True)):
        ends = [integrate(target, k, x, high, heun, order) for k in (28, 70)]
        errors = [float(path.space.log(fine, end).norm()) for end in ends]
        slope = math.log(errors[0] / errors[1]) / math.log(2.5)
        assert slope == pytest.approx(order, abs=0.25)
        last[order, heun] = errors[1]
    assert last[2, False] < 0.2 * last[1, False]


@every_method
@every_target
def test_equivariance(make: Callable[[], Target], method: str) -> None:
    """Data and start moved by one isometry: the samples move along, fresh noise and all."""
    target, n = make(), 6
    x, draws = prior(target, n), Draws(0, torch.arange(n))
    sampler = Sampler(steps=7, method=method)
    end = sampler(target, all_real(n), draws, dtype=torch.float64, start={"x": x}).state["x"]
    path = target.path
    if isinstance(target, AngleMixture):
        turn = torch.tensor(0.7, dtype=torch.float64)
        moved: Target = AngleMixture(path, (target.means + turn).tolist(),
                                     target.spreads.tolist(), target.weights.tolist())  # fmt: skip
        start, expected = path.space.exp(x, turn), path.space.exp(end, turn)
    else:
        q = rotation(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
        moved = rotations(path.kind, turn=q)
        start, expected = q @ x, q @ end
    found = sampler(moved, all_real(n), draws, dtype=torch.float64, start={"x": start}).state["x"]
    assert float(path.space.log(found, expected).abs().max()) < 1e-9


def test_right_translations_too() -> None:
    """Bi-invariance: the field does not know in which frame its vectors are written."""
    q = rotation(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    for kind in ("flow", "diffusion"):
        target, n = rotations(kind), 6
        moved = RotationMixture(target.path, target.rotations @ q, target.weights, target.spread)
        x, draws = prior(target, n), Draws(0, torch.arange(n))
        for method in ("ab2", "heun"):
            sampler = Sampler(steps=7, method=method)
            ends = [
                sampler(d, all_real(n), draws, dtype=torch.float64, start={"x": y}).state["x"]
                for d, y in ((target, x), (moved, x @ q))
            ]
            torch.testing.assert_close(ends[1], ends[0] @ q, rtol=0, atol=1e-9)


@every_target
def test_one_step_is_the_estimate_and_calls_are_as_promised(make: Callable[[], Target]) -> None:
    for method in METHODS:
        for steps in (1, 2, 5):
            target = make()
            report = Sampler(steps=steps, method=method)(
                target, all_real(3), Draws(0, [0, 1, 2]), dtype=torch.float64
            )
            expected = steps if method != "heun" else steps - (steps % 2 == 0)
            assert target.calls == report.calls == expected and not report.where
            if steps == 1:
                x = target.path.prior(all_real(3), Draws(0, [0, 1, 2]), "x/prior", torch.float64)
                clean = target(State({"x": x}, all_real(3)), 1.0)["x"]
                error = target.path.space.log(clean, report.state["x"])
                assert float(error.abs().max()) < 1e-12


@every_method
@every_target
def test_a_sample_depends_on_its_number_alone(make: Callable[[], Target], method: str) -> None:
    """Bit for bit: not on its companions, nor on padding, which stays empty."""
    target, sampler = make(), Sampler(steps=5, method=method)
    mask = torch.arange(3) < torch.tensor([3, 1, 2])[:, None]
    draws = Draws(4, [10, 11, 12])
    whole = sampler(target, Context(mask), draws).state["x"]
    alone = sampler(target, Context(mask[1:2]), draws.rows(slice(1, 2))).state["x"]
    assert torch.equal(alone[0], whole[1])
    padded = sampler(target, Context(torch.nn.functional.pad(mask, (0, 2))), draws).state["x"]
    assert torch.equal(padded[:, :3], whole)
    empty = torch.zeros(()) if isinstance(target, AngleMixture) else torch.eye(3)
    for pad in (padded[:, 3:].flatten(0, 1), whole[~mask]):
        assert torch.equal(pad, empty.expand_as(pad))


@every_method
@every_target
def test_given_elements_do_not_move(make: Callable[[], Target], method: str) -> None:
    target, n = make(), 3
    draws, context = Draws(4, torch.arange(n)), all_real(n, 3)
    given = torch.tensor([[True, False, False], [False] * 3, [False, True, True]])
    x = prior(target, n, 3).float()
    seen = []
    exact = target.exact

    def watched(state: State, times: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(state["x"])
        assert not bool(times["x"][given].any()) and bool((times["x"][~given] > 0).all())
        return exact(state, times)

    target.exact = watched  # type: ignore[method-assign, assignment]
    marked = context.replace(given={"x": given})
    end = Sampler(steps=4, method=method)(target, marked, draws, given={"x": x}).state["x"]
    for y in seen:
        assert torch.equal(y[given], x[given])
    torch.testing.assert_close(end[given], x[given], rtol=0, atol=1e-6)
    assert not torch.equal(end[~given], x[~given])


@pytest.mark.parametrize("space", [Torus(2), SO3()], ids=["torus", "so3"])
@pytest.mark.parametrize("kind", ["flow", "diffusion"])
def test_output_and_clean_are_inverses_and_the_loss_is_their_error(
    space: Torus | SO3, kind: str
) -> None:
    path = GeodesicPath(space, Cosine(), kind)  # type: ignore[arg-type]
    context = Context(torch.arange(4) < torch.tensor([4, 2])[:, None])
    draws = Draws(0, [0, 1])
    t = torch.tensor([[0.0, 0.3, 0.8, 0.999], [0.1, 0.0, 0.5, 0.5]], dtype=torch.float64)
    x0 = space.noise(context, draws, "x0", dtype=torch.float64)
    x = path.corrupt(x0, t, context, draws, "noise")
    assert torch.equal(x[0, 0], x0[0, 0]) and torch.equal(x[1, 1], x0[1, 1])
    real, unknown = context.mask, t > 0
    f = path.target(x0, x, t)
    wrong = 0.4 * f + 0.05
    clean = path.clean(wrong, x, t, context)
    free = real & unknown
    torch.testing.assert_close(path.output(clean, x, t)[free], wrong[free], rtol=1e-9, atol=1e-9)
    assert torch.equal(clean[0, 0], x[0, 0])
    if kind == "flow":
        exact = path.clean(f, x, t, context)
        assert float(space.log(exact, x0).abs()[free].max()) < 1e-9
    loss = path.loss(clean, x0, x, t, context)
    error = (wrong - f) ** 2
    expected = torch.stack([error[b][free[b]].mean() for b in range(2)])
    torch.testing.assert_close(loss, expected, rtol=1e-7, atol=1e-9)
    # Padding and given elements carry nothing, NaN included.
    dirty = torch.where(free.view(2, 4, *(1,) * (clean.ndim - 2)), clean, torch.nan)
    assert torch.equal(path.loss(dirty.nan_to_num(0.3), x0, x, t, context), loss)
    dirty[0, 0] = clean[0, 0]
    dirty[1, 1] = clean[1, 1]
    assert torch.equal(path.loss(dirty, x0, x, t, context), loss)
    output = wrong.clone()
    output[1, 2:] = torch.nan
    assert torch.equal(path.clean(output, x, t, context)[1, 2:], x[1, 2:])


@pytest.mark.parametrize("kind", ["flow", "diffusion"])
def test_points_may_be_predicted(kind: str) -> None:
    """A clean point in, the same estimate out as from its tangent vector."""
    for space in (Torus(), SO3()):
        point = GeodesicPath(space, Rectified(), kind, "x0")  # type: ignore[arg-type]
        vector = GeodesicPath(space, Rectified(), kind)  # type: ignore[arg-type]
        context, draws = all_real(4), Draws(0, torch.arange(4))
        x0 = space.noise(context, draws, "x0", dtype=torch.float64)
        t = torch.tensor([0.1, 0.4, 0.7, 0.95], dtype=torch.float64)
        x = point.corrupt(x0, t, context, draws, "noise")
        stretched = 2.5 * x0 if isinstance(space, SO3) else x0 + 4 * PI
        clean = point.clean(stretched, x, t, context)
        expected = vector.clean(vector.target(x0, x, t), x, t, context)
        assert float(space.log(clean, expected).abs().max()) < 1e-9
        assert float(point.loss(clean, x0, x, t, context).max()) < 1e-12


@pytest.mark.parametrize("kind", ["flow", "diffusion"])
@pytest.mark.parametrize("space", [Torus(3), SO3()], ids=["angles", "rotations"])
def test_a_bounded_vector_leads_no_farther_than_half_a_turn(space: Torus | SO3, kind: str) -> None:
    """However large y: beyond, the estimate would be another winding and its gradient wrong."""
    context, draws = all_real(4), Draws(0, torch.arange(4))
    t = torch.tensor([0.1, 0.4, 0.7, 0.95], dtype=torch.float64)
    free, kept = (GeodesicPath(space, Rectified(), kind, p)  # type: ignore[arg-type]
                  for p in ("tangent", "bounded"))  # fmt: skip
    x = space.noise(context, draws, "x", dtype=torch.float64)
    y = Draws(1, torch.arange(4)).normal((1, 3), "y", dtype=torch.float64)
    c = space.expand(kept.scale(t), y)
    most = PI if kind == "flow" else PI / c
    for size in (1e-4, 1.0, 1e3, 1e6):
        v = space.log(x, kept.clean(size * y, x, t, context))
        far = v.abs() if isinstance(space, Torus) else v.norm(dim=-1, keepdim=True)
        assert bool((far < c * most + 1e-9).all())
        assert bool((v * y > 0).all())
        length = size * (y.abs() if isinstance(space, Torus) else y.norm(dim=-1, keepdim=True))
        torch.testing.assert_close(
            far.expand_as(length), c * length / (1 + (length / most) ** 2).sqrt(),
            rtol=1e-6, atol=1e-9,
        )  # fmt: skip
    # The free vector of that length does come round, which is what the bound is for.
    v = space.log(x, free.clean(1e3 * y, x, t, context))
    assert bool((v * y < 0).any())
    x0 = space.noise(context, draws, "x0", dtype=torch.float64)
    near = [path.loss(path.clean(1e-6 * y, x, t, context), x0, x, t, context)
            for path in (kept, free)]  # fmt: skip
    torch.testing.assert_close(*near)


@pytest.mark.parametrize("schedule", [Rectified(), VPLinear(), VarianceExploding(0.01, 9.0)],
                         ids=str)  # fmt: skip
def test_corruption_has_its_law(schedule: Schedule) -> None:
    """Flow: log_{x_0} x_t is that of uniform noise times κ; diffusion: heat, also in two parts."""
    n = 4000
    context, draws = all_real(n), Draws(0, torch.arange(n))
    t = torch.full((n,), 0.5, dtype=torch.float64)
    for space in (Torus(), SO3()):
        x0 = space.noise(context, draws, "x0", dtype=torch.float64)
        flow = GeodesicPath(space, schedule)
        v = space.log(x0, flow.corrupt(x0, t, context, draws, "noise"))
        free = space.log(x0, space.noise(context, draws, "noise", dtype=torch.float64))
        a, s = schedule(t[:1])
        torch.testing.assert_close(v, s / (a + s) * free, rtol=0, atol=1e-9)
        heat = GeodesicPath(space, schedule, "diffusion")
        later = 0.6
        once = heat.corrupt(x0, t * 0 + later, context, draws, "once")
        x = heat.corrupt(x0, t, context, draws, "noise")
        twice = heat.renoise(x, 0.5, later, context, draws, "again", 1)
        p = [space.log(x0, y)[:, 0].reshape(n, -1) for y in (once, twice)]
        assert float((p[0].cos().mean(0) - p[1].cos().mean(0)).abs().max()) < 6 / math.sqrt(n)
        assert float((p[0].square().mean() - p[1].square().mean()).abs()) < 12 / math.sqrt(n)
        assert torch.equal(
            heat.renoise(x0, 0.0, 0.5, context, draws, "noise"), x
        )  # fmt: skip


def test_restarts_and_churn() -> None:
    """From clean data both kinds restart; in mid-trajectory a flow says why it cannot."""
    for make in TARGETS.values():
        target = make()
        report = Sampler(steps=9, restarts=1, restart_time=0.4)(
            target, all_real(3), Draws(0, [0, 1, 2])
        )
        assert report.calls == 9 and not report.where
    flow = GeodesicPath(SO3(), Rectified())
    x = SO3().noise(all_real(1), Draws(0, [0]), "x")
    with pytest.raises(InputError, match=r"cannot be noised from time 0\.2 to 0\.4"):
        flow.renoise(x, 0.2, 0.4, all_real(1), Draws(0, [0]), "again")


class Linear(Network):
    """Tangent vectors from a field's entries."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.layer = torch.nn.Linear(width, out)

    def forward(self, inputs, levels, context, previous):  # type: ignore[no-untyped-def]
        x = inputs["x"].unflatten(1, (-1,))
        return {"x": self.layer(x.flatten(2)).reshape(*x.shape[:2], -1)}


def test_a_network_trains_and_samples_in_float32() -> None:
    context = Context(torch.arange(4) < torch.tensor([4, 2])[:, None])
    draws = Draws(0, [0, 1])
    for space, width, out in ((Torus(2), 2, 2), (SO3(), 9, 3)):
        for kind in ("flow", "diffusion"):
            path = GeodesicPath(space, Rectified(), kind)  # type: ignore[arg-type]
            denoiser = NetworkDenoiser(Linear(width, out), {"x": path}, self_conditioning=True)
            batch = State({"x": space.noise(context, draws, "data")}, context)
            for step in range(6):
                losses = DenoisingObjective()(denoiser, batch, draws, step)
                losses.total.sum().backward()
            for p in denoiser.parameters():
                assert p.grad is not None and bool(p.grad.isfinite().all()) and bool(p.grad.any())
            other = denoiser.reschedule({"x": Cosine()})
            report = Sampler(steps=4)(other, context, draws)
            assert report.state["x"].dtype == torch.float32 and not report.where


def test_a_sample_that_breaks_breaks_no_other() -> None:
    for make in TARGETS.values():
        good = make()
        context, draws = all_real(3), Draws(9, [40, 41, 42])
        clean = Sampler(steps=5)(good, context, draws).state["x"]

        class Failing(ExactDenoiser):
            def exact(self, state: State, times: object, good: Target = good) -> dict[str, Tensor]:
                f = good.exact(state, times)["x"]  # type: ignore[arg-type]
                f[1] = torch.nan
                return {"x": f}

        report = Sampler(steps=5)(Failing({"x": good.path}), context, draws)
        assert report.broken.tolist() == [False, True, False] and "sample 41" in report.where
        assert torch.equal(report.state["x"][[0, 2]], clean[[0, 2]])


def test_mixed_with_a_flat_field() -> None:
    """Angles beside points, one clock: the angles move as if they were alone."""
    target = angles()

    class Both(ExactDenoiser):
        def exact(self, state: State, times: object) -> dict[str, Tensor]:
            return {"p": 0.5 * state["p"], **target.exact(state, times)}  # type: ignore[arg-type]

    both = Both({"p": GaussianPath(Euclidean(2), Rectified()), "x": target.path})
    args = (all_real(4), Draws(0, torch.arange(4)))
    sampler = Sampler(steps=6, grid="uniform-u")
    mixed = sampler(both, *args, dtype=torch.float64).state["x"]
    times = sampler.plan(both).start
    torch.testing.assert_close(times, 1 - torch.arange(6).double() / 6)
    alone = sampler(target, *args, dtype=torch.float64).state["x"]
    torch.testing.assert_close(mixed, alone, rtol=0, atol=1e-9)


def test_configuration_and_refusals() -> None:
    path = GeodesicPath(SO3(), Cosine(), "diffusion", "x0")
    assert path.config() == {"kind": "geodesic-diffusion", "space": "so3",
                             "schedule": Cosine().config(), "prediction": "x0"}  # fmt: skip
    other = path.with_schedule(Rectified(2.0))
    assert (other.kind, other.prediction, other.schedule) == ("diffusion", "x0", Rectified(2.0))
    assert GeodesicPath(Torus(), Cosine()).config()["space"] == "torus"
    with pytest.raises(InputError, match="not Euclidean"):
        GeodesicPath(Euclidean(3), Cosine())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="'bridge'; known: flow, diffusion"):
        GeodesicPath(SO3(), Cosine(), "bridge")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="'eps'; known: tangent, bounded, x0"):
        GeodesicPath(SO3(), Cosine(), "flow", "eps")  # type: ignore[arg-type]
