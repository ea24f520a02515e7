"""Noise that is chosen: toward a condition by refinement, for an energy by optimisation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.guidance.editing.differentiable import differentiable_sample
from sciflow.guidance.editing.initial_noise import optimise_noise, refine_noise
from sciflow.paths import CategoricalPath, GaussianPath
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.schedules import Rectified, VPLinear
from sciflow.spaces import Euclidean, Tokens, ZeroCoM
from sciflow.state import Context, State, Times
from sciflow.testing.targets import DiagonalGaussian, GaussianMixture, NamedMixture, all_real
from sciflow.training.gaussian_fit import GaussianDenoiser

MEANS = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [-1.0, -1.5]], dtype=torch.float64)
FEW = Sampler(steps=4, method="ab2")


def draws(n: int, seed: int = 0) -> Draws:
    return Draws(seed, torch.arange(n))


def mixture(weights: list[float], schedule: Any = None) -> GaussianMixture:
    path = GaussianPath(Euclidean(2), schedule or Rectified())
    return GaussianMixture(path, MEANS, 0.3 * torch.eye(2).expand(3, 2, 2), weights)


def mixed(variance: float = 0.1, power: float = 1.0) -> NamedMixture:
    paths = GaussianPath(Euclidean(2), Rectified()), CategoricalPath(Tokens(3), Rectified(power))
    return NamedMixture(*paths, MEANS, variance, [1.0] * 3)


def near(y: Tensor, variance: float) -> Any:
    """log f: a point is wanted near y."""
    return lambda clean: -((clean["x"] - y) ** 2).flatten(1).sum(1) / (2 * variance)


class Asked(Denoiser):
    """All components, or where a condition asks for it the first alone."""

    def __init__(self) -> None:
        super().__init__()
        self.free, self.bound = mixture([1.0, 1.0, 1.0]), mixture([1.0, 0.0, 0.0])
        self.paths = self.free.paths

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        asked = ~state.context.conditions["c"].isnan()[:, None, None]
        bound, free = self.bound(state, t)["x"], self.free(state, t)["x"]
        return Prediction({"x": torch.where(asked, bound, free)})


def test_the_direction_is_the_gradient_of_the_condition() -> None:
    """(a/s²)(D_c − D) = ∇ log p(c | x_t), and one small round goes there."""
    schedule, t = VPLinear(), 0.6
    free, bound = mixture([1.0, 1.0, 1.0], schedule), mixture([1.0, 0.0, 0.0], schedule)
    a, s = schedule(torch.tensor(t, dtype=torch.float64))
    x = draws(5).normal((1, 2), "x", dtype=torch.float64).requires_grad_(True)
    log_c = (bound.log_density(x, a, s) - free.log_density(x, a, s)).sum()
    (gradient,) = torch.autograd.grad(log_c, x)
    context = all_real(5)
    away = bound(State({"x": x}, context), t)["x"] - free(State({"x": x}, context), t)["x"]
    torch.testing.assert_close(a / s**2 * away.detach(), gradient)
    x = x.detach()
    step = 1e-4
    found = refine_noise(bound, context, draws(5), free, 1, step, most=1e9, jitter=0.0,
                         start={"x": x}, begin=t).start["x"]  # fmt: skip
    moved = x + step * away.detach()
    moved = moved * (x.norm(dim=-1) / moved.norm(dim=-1))[..., None]
    torch.testing.assert_close(found, moved)


def test_refined_noise_leads_to_the_condition_without_guidance() -> None:
    """A third of the free model's samples are of the component asked for; afterwards most are."""
    n, model = 300, Asked()
    context = all_real(n).replace(conditions={"c": torch.ones(n)})
    report = refine_noise(model, context, draws(n), rounds=20, step=0.3, dtype=torch.float64)
    plain = model.free.path.prior(context, draws(n), "x/prior", torch.float64)
    shares = []
    for start in (plain, report.start["x"]):
        x = Sampler(steps=12)(model.free, context, draws(n), start={"x": start}).state["x"]
        r = model.free.components(x, *Rectified()(torch.tensor(0.01).double()))[0]
        shares.append(float((r.argmax(-1) == 0).double().mean()))
    assert shares[0] == pytest.approx(1 / 3, abs=0.09) and shares[1] > 0.8
    assert report.calls == 40
    # Norms are those that were drawn.
    torch.testing.assert_close(report.start["x"].norm(dim=-1), plain.norm(dim=-1))


def test_off_is_the_samplers_own_noise_bit_for_bit() -> None:
    n, model = 5, mixed()
    plain = Sampler(steps=5)(model, all_real(n, 2), draws(n)).state
    nothing = near(torch.zeros(2), 1.0)
    for report in (refine_noise(model, all_real(n, 2), draws(n), mixed(), step=0.0),
                   optimise_noise(FEW, mixed(), all_real(n, 2), draws(n), nothing, 0)):  # fmt: skip
        state = Sampler(steps=5)(model, all_real(n, 2), draws(n), start=report.start).state
        assert all(torch.equal(plain[f], state[f]) for f in plain)
    assert model.calls == 15


def test_the_graph_is_that_of_the_samplers_run() -> None:
    """Same bits as the sampler; the gradient is that of finite differences, recomputed or not."""
    n, target = 3, mixture([0.5, 0.3, 0.2])
    context = all_real(n, 2)
    for sampler in (FEW, Sampler(steps=3, method="ddpm"), Sampler(steps=5, method="heun"),
                    Sampler(steps=2, method="dpmpp2m", recurrence=2)):  # fmt: skip
        x = target.path.prior(context, draws(n), "x/prior", torch.float64).requires_grad_(True)
        plain = sampler(target, context, draws(n), start={"x": x.detach()}).state["x"]
        gradients, calls = [], []
        for recompute in (True, False):
            clean, used = differentiable_sample(sampler, target, context, draws(n), {"x": x},
                                                recompute=recompute)  # fmt: skip
            assert torch.equal(clean["x"].detach(), plain)
            (g,) = torch.autograd.grad(clean["x"].sin().sum(), x)
            gradients.append(g)
            calls.append(used())
        torch.testing.assert_close(*gradients)
        assert calls[0] == 2 * calls[1] == 2 * len(sampler.plan(target))
        h = 1e-5 * torch.ones_like(x).cumsum(1)
        up, down = (sampler(target, context, draws(n), start={"x": x.detach() + d}).state["x"]
                    for d in (h, -h))  # fmt: skip
        slope = (up.sin().sum((1, 2)) - down.sin().sum((1, 2))) / 2
        torch.testing.assert_close((gradients[0] * h).sum((1, 2)), slope, rtol=1e-5, atol=1e-11)


def test_the_optimum_of_a_gaussian_is_found() -> None:
    """x_0 = α x_T + β is a line: the best x_T lies along y − β, at a length known from a grid."""
    n, count = 4, 3
    path = GaussianPath(Euclidean(2), Rectified())
    target = DiagonalGaussian(path, torch.tensor([0.5, -1.0]), torch.full((2,), 0.6))
    context = all_real(n, count)
    y = 1.5 * draws(n).normal((count, 2), "y", dtype=torch.float64)
    zero = torch.zeros(n, count, 2, dtype=torch.float64)
    beta, unit = (
        FEW(target, context, draws(n), start={"x": z}).state["x"] for z in (zero, 1 + zero)
    )
    alpha = (unit - beta)[0, 0, 0]
    report = optimise_noise(FEW, target, context, draws(n), near(y, 0.2), 90, 0.05,
                            dtype=torch.float64)  # fmt: skip
    x, d = report.start["x"], 2 * count
    toward = (y - beta).flatten(1)
    size = toward.norm(dim=1, keepdim=True)
    torch.testing.assert_close(x.flatten(1) / x.flatten(1).norm(dim=1, keepdim=True),
                               toward / size, rtol=0, atol=0.02)  # fmt: skip
    r = torch.linspace(0.01, 30, 20000, dtype=torch.float64)
    value = -((alpha * r - size) ** 2) / 0.4 + (d - 1) * r.log() - r**2 / 2
    torch.testing.assert_close(x.flatten(1).norm(dim=1), r[value.argmax(1)], rtol=0, atol=0.12)
    assert report.log_f is not None and report.log_f.shape == (91, n)
    assert report.calls == 4 * (2 * 90 + 1)


def test_the_norm_stays_plausible() -> None:
    """A reward without bound drives the noise away for ever; its norm's density holds it."""
    n, count = 3, 20
    path = GaussianPath(Euclidean(2), Rectified())
    target = DiagonalGaussian(path, torch.zeros(2), torch.ones(2))
    norms = []
    for weight in (0.0, 1.0):
        start = optimise_noise(FEW, target, all_real(n, count), draws(n),
                               lambda c: 2 * c["x"].sum((1, 2)), 40, 0.3, weight,
                               dtype=torch.float64).start["x"]  # fmt: skip
        norms.append(start.flatten(1).norm(dim=1))
    # With x_0 = α x_T the reward is 2 α √40 r along the best line: r − 39/r = 2 α √40.
    one = torch.ones(1, count, 2, dtype=torch.float64)
    alpha = float(FEW(target, all_real(1, count), draws(1), start={"x": one}).state["x"].mean())
    pull = 2 * alpha * 40**0.5
    best = (pull + (pull**2 + 4 * 39) ** 0.5) / 2
    torch.testing.assert_close(norms[1], torch.full((n,), best).double(), rtol=0.03, atol=0)
    assert bool((norms[0] > 3 * best).all())


def test_log_f_never_ends_lower_and_is_that_of_the_sample() -> None:
    n, target = 40, mixture([0.5, 0.3, 0.2])
    log_f = near(MEANS[1], 0.1)
    report = optimise_noise(FEW, target, all_real(n), draws(n), log_f, 25, 0.1, dtype=torch.float64)
    state = FEW(target, all_real(n), draws(n), start=report.start).state
    assert report.log_f is not None
    found = log_f(state)
    seen = (report.log_f - found).abs().amin(0)
    assert float(seen.max()) < 1e-12
    assert float(found.mean()) > float(report.log_f[0].mean()) / 4
    assert float((state["x"][:, 0] - MEANS[1]).norm(dim=-1).mean()) < 0.4


def test_tokens_are_seen_as_probabilities() -> None:
    """Points move to where the token asked for is probable, as long as it is not drawn."""
    n, model = 50, mixed(0.6, power=0.1)

    def log_f(clean: State) -> Tensor:
        torch.testing.assert_close(clean["token"].sum(-1), torch.ones(n, 1).double())
        return 4 * clean["token"][:, 0, 2].clamp(min=1e-12).log()

    report = optimise_noise(FEW, model, all_real(n), draws(n), log_f, 20, 0.1, dtype=torch.float64)
    plain, moved = (FEW(model, all_real(n), draws(n), start=s, dtype=torch.float64).state
                    for s in (None, report.start))  # fmt: skip
    shares = [float((model.component(s["x"]) == 2).double().mean()) for s in (plain, moved)]
    assert shares[1] > shares[0] + 0.15, shares


def test_steps_turn_with_the_sample() -> None:
    """Adam's second moment a number would tie the way to the axes."""
    path = GaussianPath(Euclidean(2), Rectified())
    target = DiagonalGaussian(path, torch.zeros(2), torch.full((2,), 0.6))
    turn = torch.linalg.qr(draws(1).normal((2, 2), "turn", dtype=torch.float64)[0])[0]
    x, y = (draws(4).normal((3, 2), k, dtype=torch.float64) for k in "xy")
    found = [
        optimise_noise(FEW, target, all_real(4, 3), draws(4), near(y @ r, 0.1), 8, 0.1,
                       start={"x": x @ r}).start["x"]
        for r in (torch.eye(2).double(), turn)
    ]  # fmt: skip
    torch.testing.assert_close(found[0] @ turn, found[1], rtol=0, atol=1e-10)


def test_neither_companions_nor_padding_matter() -> None:
    mask = torch.arange(4) < torch.tensor([4, 2, 3])[:, None]
    y = torch.tensor([0.5, -1.0], dtype=torch.float64)

    def wanted(clean: State) -> Tensor:
        far = ((clean["x"] - y) ** 2).sum(-1)
        return -far.masked_fill(~clean.context.mask, 0).sum(1)

    def run(mask: Tensor, d: Draws) -> tuple[Tensor, Tensor]:
        context = Context(mask, {"c": torch.ones(len(mask))})
        optimised = optimise_noise(FEW, mixed(), context, d, wanted, 5, dtype=torch.float64)
        refined = refine_noise(Asked(), context, d, rounds=4, dtype=torch.float64)
        return optimised.start["x"], refined.start["x"]

    whole = run(mask, draws(3))
    part = run(mask[1:2, :2], draws(3).rows(torch.tensor([1])))
    for a, b in zip(whole, part, strict=True):
        torch.testing.assert_close(b, a[1:2, :2], rtol=0, atol=1e-11)
        assert not bool(a[~mask].any())


def test_centred_noise_stays_centred() -> None:
    path = GaussianPath(ZeroCoM(1, "x"), Rectified())
    model = GaussianDenoiser(path, torch.zeros(4, 1), torch.eye(4) - 0.25)
    y = torch.tensor([3.0, 1.0, 0.0, 5.0]).double()[:, None]
    found = optimise_noise(FEW, model, all_real(3, 4), draws(3), near(y, 0.1), 10,
                           dtype=torch.float64).start["x"]  # fmt: skip
    torch.testing.assert_close(found.sum(1), torch.zeros(3, 1).double(), rtol=0, atol=1e-10)


def test_given_elements_stay_and_inform() -> None:
    n, model = 4, mixed()
    given = torch.tensor([[True, False]]).expand(n, 2)
    context = all_real(n, 2).replace(given={"x": given})
    value = {"x": torch.full((n, 2, 2), 0.3, dtype=torch.float64)}
    report = optimise_noise(FEW, model, context, draws(n), near(MEANS[0], 0.1), 3, given=value,
                            dtype=torch.float64)  # fmt: skip
    state = FEW(model, context, draws(n), given=value, start=report.start).state
    assert bool((state["x"][:, 0] == 0.3).all())


def test_an_energy_that_breaks_leaves_its_sample_where_it_was() -> None:
    """One sample's NaN: it ends at its own noise, and its companions do not notice."""
    n, target = 3, mixture([0.5, 0.3, 0.2])

    def broken(clean: State) -> Tensor:
        return near(MEANS[0], 0.1)(clean) * torch.tensor([1.0, torch.nan, 1.0])

    found = optimise_noise(FEW, target, all_real(n), draws(n), broken, 5, dtype=torch.float64)
    whole = optimise_noise(FEW, target, all_real(n), draws(n), near(MEANS[0], 0.1), 5,
                           dtype=torch.float64)  # fmt: skip
    plain = target.path.prior(all_real(n), draws(n), "x/prior", torch.float64)
    assert torch.equal(found.start["x"][1], plain[1])
    assert torch.equal(found.start["x"][::2], whole.start["x"][::2])


def test_what_cannot_be() -> None:
    context, log_f = all_real(2), near(MEANS[0], 0.1)
    for settings in ({"rounds": -1}, {"step": -0.1}, {"most": 0.0}, {"jitter": -1.0}):
        with pytest.raises(InputError, match="refinement needs"):
            refine_noise(mixed(), context, draws(2), mixed(), **settings)  # type: ignore[arg-type]
    for settings in ({"rounds": -1}, {"learning_rate": 0.0}, {"norm_weight": -1.0}):
        with pytest.raises(InputError, match="optimisation needs"):
            optimise_noise(FEW, mixed(), context, draws(2), log_f, **settings)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="one number a sample"):
        optimise_noise(FEW, mixed(), context, draws(2), lambda c: c["x"])
