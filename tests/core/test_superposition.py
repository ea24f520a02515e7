"""SuperDiff against exact densities: OR is the mixture, AND keeps models equally likely."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.guidance.epsilon_scaling import EpsilonScaling
from sciflow.guidance.particles.steering import sample_particles
from sciflow.guidance.several import spread
from sciflow.guidance.several.superposition import Superposed, Superposition
from sciflow.paths import CategoricalPath, GaussianPath
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.schedules import Cosine, Rectified, VarianceExploding
from sciflow.spaces import Euclidean, Tokens
from sciflow.state import Context, State, Times
from sciflow.testing.targets import GaussianMixture, NamedMixture, all_real

EYE = torch.eye(2, dtype=torch.float64)
FORMS = {"sde": "ddpm", "ode": "ab3"}


def gaussians(
    means: Sequence[Sequence[float]], variances: Sequence[float], weights: Sequence[float],
    path: GaussianPath | None = None,
) -> GaussianMixture:  # fmt: skip
    path = path or GaussianPath(Euclidean(2), Rectified())
    covariances = torch.tensor(variances, dtype=torch.float64)[:, None, None] * EYE
    return GaussianMixture(path, torch.tensor(means, dtype=torch.float64), covariances, weights)


def models(count: int = 2, path: GaussianPath | None = None) -> list[GaussianMixture]:
    every = [
        gaussians([[1.5, 0.0], [-1.0, 1.0]], [0.1, 0.3], [0.6, 0.4], path),
        gaussians([[0.5, 1.0], [-0.5, -1.5]], [0.2, 0.15], [0.3, 0.7], path),
        gaussians([[0.0, -0.5], [1.0, 0.8]], [0.4, 0.2], [0.5, 0.5], path),
    ]
    return every[:count]


class Watched(Superposition):
    """Keeps the exact log q_i beside the estimated, at every call."""

    def __init__(self, denoisers: Sequence[GaussianMixture], *args: Any, **kwargs: Any):
        super().__init__(denoisers, *args, **kwargs)
        self.targets = list(denoisers)
        self.exact: list[Tensor] = []
        self.estimated: list[Tensor] = []

    def forward(self, state: State, t: Times | float,
                previous: Prediction | None = None) -> Superposed:  # fmt: skip
        answer = super().forward(state, t, previous)
        a, s = self.targets[0].path.schedule(torch.tensor(t, dtype=torch.float64))
        logs = [g.log_density(state["x"], a, s).sum(1) for g in self.targets]
        self.exact.append(torch.stack(logs, 1))
        self.estimated.append(answer.log_density)
        return answer

    def gap(self) -> float:
        """Distance of the exact log q_i at the last call, of the median sample."""
        return float((self.exact[-1] - self.exact[-1].mean(1, keepdim=True)).abs().median())


def run(
    model: Denoiser, n: int, steps: int, form: str, first: int = 0, elements: int = 1
) -> Tensor:
    sampler = Sampler(steps, method=FORMS[form])
    draws = Draws(1, torch.arange(first, first + n))
    return sampler(model, all_real(n, elements), draws, dtype=torch.float64).state["x"]


@pytest.mark.parametrize(("form", "few", "many", "gain", "last"),
                         [("sde", 40, 160, 1.5, 0.8), ("ode", 20, 60, 4.0, 0.2)])  # fmt: skip
def test_densities_along_the_way_are_the_exact_ones(
    form: Any, few: int, many: int, gain: float, last: float
) -> None:
    errors = []
    for steps in (few, many):
        model = Watched(models(), "or", form=form)
        run(model, 60, steps, form)
        errors.append(float(((model.estimated[-1] - model.exact[-1]) ** 2).mean().sqrt()))
    assert errors[1] < last
    assert errors[0] > gain * errors[1]


@pytest.mark.parametrize("schedule", [Cosine(), VarianceExploding()])
def test_densities_under_other_schedules(schedule: Any) -> None:
    path = GaussianPath(Euclidean(2), schedule)
    model = Watched(models(2, path), "or", form="ode")
    run(model, 20, 50, "ode")
    error = (model.estimated[-1] - model.exact[-1]) ** 2
    assert float(error.mean().sqrt()) < 0.3
    probed = Watched(models(2, path), "or", form="ode", draws=Draws(5, torch.arange(20)))
    run(probed, 20, 50, "ode")
    error = (probed.estimated[-1] - model.exact[-1]).abs()
    assert float(error.mean()) < 0.5


def moments(x: Tensor) -> Tensor:
    """First and second moments and a crossed third, ``[n, 6]``."""
    u, v = x[..., 0], x[..., 1]
    return torch.stack((u, v, u * u, u * v, v * v, u * u * v), -1)


@pytest.mark.parametrize(("form", "steps"), [("sde", 100), ("ode", 40)])
def test_or_samples_the_mixture(form: Any, steps: int) -> None:
    n, weights = 1200, [0.3, 0.7]
    pair = models()
    whole = gaussians([[1.5, 0.0], [-1.0, 1.0], [0.5, 1.0], [-0.5, -1.5]], [0.1, 0.3, 0.2, 0.15],
                      [0.18, 0.12, 0.21, 0.49])  # fmt: skip
    exact = moments(whole.sample(200_000))
    distances = {}
    for rule in ("or", "average"):
        offsets = [math.log(w) for w in weights]
        x = run(Superposition(pair, rule, offsets=offsets, form=form), n, steps, form)  # type: ignore[arg-type]
        m = moments(x[:, 0])
        z = (m.mean(0) - exact.mean(0)) / (m.std(0) / math.sqrt(n))
        distances[rule] = float(z.abs().max())
    assert distances["or"] < 4.5
    assert distances["average"] > 10


@pytest.mark.parametrize(("count", "form", "gain", "last"),
                         [(2, "sde", 1.4, 0.25), (2, "ode", 4.0, 0.03),
                          (3, "sde", 1.2, 0.6), (3, "ode", 3.0, 0.12)])  # fmt: skip
def test_and_keeps_models_equally_likely(count: int, form: Any, gain: float, last: float) -> None:
    """Of three models in six dimensions: a pair leaves a line in the plane, three a point."""
    gaps, elements = [], 1 if count == 2 else 3
    for steps in (20, 70):
        model = Watched(models(count), "and", form=form)
        run(model, 40, steps, form, elements=elements)
        gaps.append(model.gap())
        if form == "sde":
            # What was estimated is equal to rounding, at every call.
            spread = torch.stack(model.estimated).diff(dim=-1).abs()
            assert float(spread.max()) < 1e-7
    assert gaps[1] < last
    assert gaps[0] > gain * gaps[1]
    average = Watched(models(count), "average")
    run(average, 40, 20, form, elements=elements)
    assert average.gap() > 4 * gaps[1]


def test_superdiff_overlooks_the_noise_that_it_takes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published κ keeps its own estimates equal, but not the densities, at any step."""
    ours, published = Watched(models(), "and"), Watched(models(), "and")
    run(ours, 60, 120, "sde")

    def none(paths: object, state: State, *_: object) -> Tensor:
        return torch.zeros(state.batch_size, dtype=torch.float64)

    monkeypatch.setattr(spread, "curvature", none)
    for steps in (40, 120):
        run(published, 60, steps, "sde")
        assert published.gap() > 0.2
    assert ours.gap() < 0.45 * published.gap()


def test_and_may_hold_any_difference() -> None:
    model = Watched(models(), "and", form="ode", offsets=[0.0, 0.5])
    run(model, 20, 60, "ode")
    gap = model.exact[-1][:, 0] - model.exact[-1][:, 1]
    torch.testing.assert_close(gap, torch.full_like(gap, 0.5), rtol=0, atol=0.1)


def test_one_model_is_itself_bit_for_bit() -> None:
    one = models(1)
    bare = run(one[0], 6, 9, "ode")
    for rule in ("or", "and", "average"):
        assert torch.equal(run(Superposition(one, rule), 6, 9, "ode"), bare)  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", ["or", "and", "average"])
def test_the_same_model_twice_is_that_model(rule: Any) -> None:
    one = models(1)[0]
    x = run(Superposition([one, one], rule), 6, 12, "sde")
    torch.testing.assert_close(x, run(one, 6, 12, "sde"), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", ["sde", "ode"])
@pytest.mark.parametrize("rule", ["or", "and"])
def test_a_sample_depends_on_its_number_alone(rule: Any, form: Any) -> None:
    """Also when one object has served other runs, and another batch stopped half-way."""
    model = Superposition(models(), rule, form=form)
    together = run(model, 6, 12, form)

    def stop(done: int, _: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Sampler(12)(model, all_real(3), Draws(9, [7, 8, 9]), dtype=torch.float64, progress=stop)
    for i in (0, 4):
        alone = run(model, 1, 12, form, first=i)
        torch.testing.assert_close(alone[0], together[i], rtol=1e-9, atol=1e-9)


def test_memory_that_is_lost_is_an_error() -> None:
    for rule in ("or", "and", "average"):
        model = EpsilonScaling(Superposition(models(), rule), 1.01)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="outermost"):
            run(model, 2, 5, "sde")

    class Bare(Denoiser):
        """Hands the answer on, but hides ``after_step``."""

        def __init__(self, inner: Superposition):
            super().__init__()
            self.inner, self.paths = inner, inner.paths

        def forward(self, state: State, t: Times | float,
                    previous: Prediction | None = None) -> Prediction:  # fmt: skip
            answer: Prediction = self.inner(state, t, previous)
            return answer

    run(Bare(Superposition(models(), "or")), 2, 5, "sde")
    with pytest.raises(InputError, match="outermost"):
        run(Bare(Superposition(models(), "and")), 2, 5, "sde")


def test_particles_take_the_memory_with_them() -> None:
    model = Superposition(models(), "or", form="ode")

    def reward(clean: State) -> Tensor:
        return -40 * clean["x"][:, 0, 0] ** 2

    report = sample_particles(Sampler(11), model, all_real(6), Draws(1, torch.arange(6)), reward, 4,
                              dtype=torch.float64)  # fmt: skip
    assert int(report.resampled.sum()) > 3
    roots = (report.roots + 4 * torch.arange(6)[:, None]).flatten()
    expected = run(model, 24, 11, "ode")[roots]
    torch.testing.assert_close(report.particles["x"], expected, rtol=1e-9, atol=1e-9)


class Correlated(Euclidean):
    """White noise that is not known to be white."""

    def inner(self, x: Tensor, y: Tensor, context: Context) -> Tensor:
        return super().inner(x, y, context)


def test_curvatures_without_whiteness() -> None:
    x = [run(Superposition(models(2, GaussianPath(space, Rectified())), "and"), 8, 15, "sde")
         for space in (Euclidean(2), Correlated(2))]  # fmt: skip
    torch.testing.assert_close(x[0], x[1], rtol=1e-9, atol=1e-9)


def named(weights: Sequence[float], accuracy: float) -> NamedMixture:
    tokens = CategoricalPath(Tokens(3), Cosine(), "absorbing")
    means = torch.tensor([[1.5, 0.0], [-1.0, 1.0], [-0.5, -1.5]], dtype=torch.float64)
    return NamedMixture(GaussianPath(Euclidean(2), Rectified()), tokens, means, 0.15, weights,
                        accuracy)  # fmt: skip


def test_or_of_mixed_states() -> None:
    """One model names its components right, the other wrong: the mixture must not mix that up."""
    n, pair = 1200, [named([0.7, 0.2, 0.1], 0.95), named([0.1, 0.3, 0.6], 0.05)]
    sampler = Sampler(80, method="ddpm", greedy=False)
    model = Superposition(pair, "or")
    state = sampler(model, all_real(n), Draws(2, torch.arange(n)), dtype=torch.float64).state
    where = pair[0].component(state["x"][:, 0])
    counts = torch.zeros(3, 3, dtype=torch.float64)
    counts.index_put_((where, state["token"][:, 0]), torch.ones(n).double(), accumulate=True)
    exact = (pair[0].joint() + pair[1].joint()) / 2
    error = (exact * (1 - exact) / n).sqrt()
    assert bool(((counts / n - exact).abs() < 4 * error + 0.015).all())


def test_weights_of_every_field() -> None:
    pair = [named([0.7, 0.2, 0.1], 0.9), named([0.1, 0.3, 0.6], 0.9)]
    model = Superposition(pair, "or", per_field=True, temperature=0.5, offsets=[0.2, 0.0])
    sampler = Sampler(20, method="ddpm")
    sampler(model, all_real(5), Draws(2, torch.arange(5)), dtype=torch.float64)
    latest = model.latest
    assert latest is not None and model.calls == 40
    for name in ("x", "token"):
        logs = 0.5 * latest.log_ratio[name] + torch.tensor([0.2, 0.0])
        torch.testing.assert_close(latest.kappa[name], logs.softmax(1))
    assert not torch.allclose(latest.kappa["x"], latest.kappa["token"])


def test_given_elements_have_no_say() -> None:
    context = all_real(4, 3).replace(given={"x": torch.tensor([True, False, False]).expand(4, 3)})
    values = torch.full((4, 3, 2), 0.7, dtype=torch.float64)
    for rule, form in (("or", "ode"), ("and", "sde"), ("and", "ode")):
        model = Superposition(models(), rule, form=form)  # type: ignore[arg-type]
        sampler = Sampler(12, method=FORMS[form])
        report = sampler(model, context, Draws(0, torch.arange(4)), given={"x": values},
                         dtype=torch.float64)  # fmt: skip
        assert torch.equal(report.state["x"][:, 0], values[:, 0])
        assert not bool(report.broken.any())
        assert model.latest is not None
        assert bool((model.latest.seen["x"].clean[:, :, 0] == 0).all())


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"rule": "xor"}, "or, and, average"), ({"offsets": [1.0]}, "give one each"),
     ({"temperature": math.inf}, "finite"), ({"form": "pde"}, "sde, ode")],
)  # fmt: skip
def test_settings_that_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Superposition(models(), **wrong)


def test_models_that_do_not_fit() -> None:
    with pytest.raises(InputError, match="same path and schedule"):
        Superposition([models()[0], models(1, GaussianPath(Euclidean(2), Cosine()))[0]])
    with pytest.raises(InputError, match="same fields"):
        Superposition([models()[0], named([0.3, 0.3, 0.4], 0.9)])
    with pytest.raises(InputError, match="at least one"):
        Superposition([])
