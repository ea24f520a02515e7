"""Contrastive flow matching: which minimum it has, what its negatives are, how it is undone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Network, NetworkDenoiser, Prediction
from sciflow.errors import InputError
from sciflow.objectives import DenoisingObjective
from sciflow.objectives.contrast import Contrast, Uncontrasted, corrected
from sciflow.paths import CategoricalPath, GaussianPath
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.schedules import Cosine, Rectified, Schedule, VPLinear
from sciflow.spaces import Euclidean, Tokens
from sciflow.state import Context, State, Times, field_times
from sciflow.testing.targets import GaussianMixture, all_real

MEANS = (-1.0, 3.0)
SPREAD = 0.5
LAMBDA = 0.2


def classes(n: int, seed: int = 0) -> tuple[Tensor, Context, Draws]:
    """Numbers N(m_c, 0.25) of two classes, a third of them of the second."""
    draws = Draws(seed, torch.arange(n))
    c = (torch.arange(n) % 3 == 2).double()
    x0 = SPREAD * draws.normal((1, 1), "data", dtype=torch.float64)
    x0 = x0 + torch.where(c == 0, *MEANS)[:, None, None]
    return x0, Context(torch.ones(n, 1, dtype=torch.bool), {"c": c}), draws


def fit(path: GaussianPath, contrast: Contrast | None, u: float, steps: int = 20) -> Tensor:
    """The best F = w_c + v_c x_t of each class at time ``u``, ``[2, 2]``.

    The loss is quadratic: its gradient at 0 and at the unit vectors says where the minimum is.
    """
    points = torch.cat([torch.zeros(1, 4), torch.eye(4)]).double()
    gradients = torch.zeros(5, 4, dtype=torch.float64)
    for step in range(steps):
        x0, context, draws = classes(900, step)
        t = torch.full((900,), u, dtype=torch.float64)
        x_t = path.corrupt(x0, t, context, draws, "noise", step)
        if contrast is not None:
            rows, has = contrast.partners(context.mask, context, draws, step)
            assert bool(has.all())
            pair = (x0[rows], path.noise(x0, context, draws, "noise", step)[rows])
        for i, point in enumerate(points):
            w = point.clone().requires_grad_(True)
            row = w.view(2, 2)[context.conditions["c"].long()][:, None]
            clean = path.clean(row[..., :1] + row[..., 1:] * x_t, x_t, t, context)
            loss = path.loss(clean, x0, x_t, t, context)
            if contrast is not None:
                loss = loss - contrast.penalty(path, clean, pair, x_t, t, context)
            gradients[i] += torch.autograd.grad(loss.mean(), w)[0]
    hessian = gradients[1:] - gradients[0]
    return -torch.linalg.solve(hessian, gradients[0]).view(2, 2)


@pytest.mark.parametrize("prediction", ["velocity", "edm"])
@pytest.mark.parametrize("different", [None, "c"])
def test_the_minimiser_and_its_correction(prediction: str, different: str | None) -> None:
    """F° = (E[F*|x,c] − λ E[F*])/(1 − λ), by an exact fit; corrected, it is the plain fit."""
    path = GaussianPath(Euclidean(1), Cosine(), prediction, 1.5)  # type: ignore[arg-type]
    u, x = 0.4, torch.linspace(-2, 3, 9, dtype=torch.float64)[:, None, None]
    t = torch.full((9,), u, dtype=torch.float64)
    a, s = (float(y) for y in path.schedule(t[0]))
    plain, found = fit(path, None, u), fit(path, Contrast(LAMBDA, different), u)
    overall = (2 * MEANS[0] + MEANS[1]) / 3
    for c in (0, 1):
        m = overall if different is None else MEANS[1 - c]
        mean = torch.full((1, 1, 1), m, dtype=torch.float64)
        f_mean = path.output(mean, a * mean, t[:1])
        f, f_found = (w[c, 0] + w[c, 1] * x for w in (plain, found))
        # Both fits saw the same data; the negatives of 18,000 samples have a scatter of their own.
        torch.testing.assert_close(f_found, (f - LAMBDA * f_mean) / (1 - LAMBDA), atol=0.05, rtol=0)
        d, d_found = (path.clean(y, x, t, all_real(9)) for y in (f, f_found))
        true = corrected(path, d_found, x, t, m, LAMBDA)
        torch.testing.assert_close(true, d, atol=0.05, rtol=0)
        v = SPREAD**2
        bayes = MEANS[c] + a * v / (a**2 * v + s**2) * (x - a * MEANS[c])
        assert float((d_found - bayes).abs().max()) > 3 * float((true - bayes).abs().max())


@pytest.mark.parametrize("schedule", [Rectified(), Cosine(), VPLinear()], ids=str)
@pytest.mark.parametrize("prediction", ["x0", "eps", "v", "score", "velocity", "edm"])
def test_the_correction_undoes_the_overshoot(schedule: Schedule, prediction: str) -> None:
    path = GaussianPath(Euclidean(3), schedule, prediction, 1.3)  # type: ignore[arg-type]
    g = torch.Generator().manual_seed(0)
    x, d = torch.randn(2, 5, 4, 3, generator=g, dtype=torch.float64)
    t = torch.tensor([0.01, 0.2, 0.5, 0.9, 0.99], dtype=torch.float64)
    m = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    a = path.schedule(t)[0][:, None, None]
    mean = m.expand_as(x)
    f, f_mean = path.output(d, x, t), path.output(mean, a * mean, t)
    over = path.clean((f - LAMBDA * f_mean) / (1 - LAMBDA), x, t, all_real(5, 4))
    torch.testing.assert_close(corrected(path, over, x, t, m, LAMBDA), d, rtol=1e-8, atol=1e-8)
    # Without a mean it is a network scaled by 1/(1 − λ), and no contrast.
    scaled = path.clean(f / (1 - LAMBDA), x, t, all_real(5, 4))
    torch.testing.assert_close(corrected(path, scaled, x, t, 0.0, LAMBDA), d, rtol=1e-8, atol=1e-8)
    given = torch.zeros(5, 4, dtype=torch.float64)
    assert torch.equal(corrected(path, d, x, given, m, LAMBDA), d)


class Overshot(Denoiser):
    """An exact denoiser as a contrast against the mean ``m`` would have it."""

    def __init__(self, exact: GaussianMixture, m: Tensor):
        super().__init__()
        self.exact, self.paths, self.m = exact, exact.paths, m

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        path, x, u = self.exact.path, state["x"], field_times(t, state)["x"]
        mean = self.m.expand_as(x)
        a = path.schedule(u)[0][:, None, None]
        f, f_mean = path.output(self.exact(state, u)["x"], x, u), path.output(mean, a * mean, u)
        return Prediction({"x": path.clean((f - LAMBDA * f_mean) / (1 - LAMBDA), x, u,
                                           state.context)})  # fmt: skip


def test_corrected_samples_are_those_of_the_true_flow() -> None:
    means = torch.tensor([[-1.0, 0.0], [3.0, 1.0]])
    path = GaussianPath(Euclidean(2), Rectified())
    exact = GaussianMixture(path, means, 0.2 * torch.eye(2).expand(2, 2, 2), [2.0, 1.0])
    m = (2 * means[0] + means[1]).double() / 3
    over = Overshot(exact, m)

    def sample(denoiser: Denoiser) -> Tensor:
        context, draws = all_real(50), Draws(0, torch.arange(50))
        return Sampler(steps=8)(denoiser, context, draws, dtype=torch.float64).state["x"]

    true = sample(exact)
    torch.testing.assert_close(sample(Uncontrasted(over, {"x": m}, LAMBDA)), true)
    assert float((sample(over) - true).abs().max()) > 0.3
    with pytest.raises(InputError, match="'y' is no Gaussian field"):
        Uncontrasted(over, {"y": 0.0})


class Fixed(Network):
    """F = ½ x̂ (+ token logits of zero)."""

    def forward(self, inputs: dict[str, Tensor], levels: dict[str, Tensor], context: Context,
                previous: dict[str, Tensor] | None) -> dict[str, Tensor]:  # fmt: skip
        return {n: 0.5 * x if x.is_floating_point() else torch.zeros(*x.shape, 3)
                for n, x in inputs.items()}  # fmt: skip


def mixed(n: int, coupling: str = "independent") -> tuple[NetworkDenoiser, State, Draws]:
    x0, context, draws = classes(n)
    paths = {"x": GaussianPath(Euclidean(1), Rectified(), "velocity", coupling=coupling),
             "token": CategoricalPath(Tokens(3), Rectified())}  # fmt: skip
    state = State({"x": x0, "token": torch.zeros(n, 1, dtype=torch.int64)}, context)
    return NetworkDenoiser(Fixed(), paths), state, draws


@pytest.mark.parametrize("coupling", ["independent", "immiscible"])
def test_negatives_are_the_data_and_the_noise_of_another_sample(coupling: str) -> None:
    """By hand: with the straight line F* = ε − x_0, whatever the negative's own time."""
    model, state, draws = mixed(48, coupling)
    contrast = Contrast(LAMBDA)
    without = {"drop_all": 0.0, "t_min": 0.05}
    plain = DenoisingObjective(**without)(model, state, draws, 7)  # type: ignore[arg-type]
    found = DenoisingObjective(**without, contrast={"x": contrast})(model, state, draws, 7)  # type: ignore[arg-type]
    t, path = plain.t.double()[:, None, None], model.paths["x"]
    x_t = path.corrupt(state["x"], plain.t, state.context, draws, "objective/x", 7)
    noise = (x_t - (1 - t) * state["x"]) / t
    rows, _ = contrast.partners(state.context.mask, state.context, draws, 7)
    f = 0.5 * path.network_input(x_t, plain.t)  # type: ignore[attr-defined]
    negative = (f - (noise - state["x"])[rows]).square().mean((1, 2))
    torch.testing.assert_close(found.fields["x"], plain.fields["x"] - LAMBDA * negative,
                               rtol=1e-5, atol=1e-5)  # fmt: skip
    assert torch.equal(found.fields["token"], plain.fields["token"])
    off = DenoisingObjective(**without, contrast={"x": Contrast(0.0)})(model, state, draws, 7)  # type: ignore[arg-type]
    assert torch.equal(off.total, plain.total)


def test_partners_are_others_of_the_same_size() -> None:
    n = 40
    mask = torch.arange(3) < 1 + (torch.arange(n)[:, None] > 0) * (1 + torch.arange(n)[:, None] % 2)
    y = torch.tensor([0.0, 1.0, torch.nan, 1.0]).repeat(n // 4)
    context, draws = Context(mask, {"y": y}), Draws(0, torch.arange(n))
    rows, has = Contrast().partners(mask, context, draws, 3)
    assert has.tolist() == [False] + [True] * (n - 1)
    assert torch.equal(mask[rows][has], mask[has])
    assert not bool((rows == torch.arange(n))[has].any())
    assert sorted(rows[has].tolist()) == list(range(1, n))
    again, _ = Contrast().partners(mask, context, draws, 3)
    other, _ = Contrast().partners(mask, context, draws, 4)
    assert torch.equal(rows, again) and not torch.equal(rows, other)
    rows, has = Contrast(different="y").partners(mask, context, draws, 3)
    assert not bool(has[y.isnan()].any())
    assert bool((y[rows][has] != y[has]).all()) and not bool(y[rows][has].isnan().any())


def test_partners_are_equally_likely() -> None:
    n, steps = 5, 1500
    context, draws = all_real(n), Draws(1, torch.arange(n))
    counts = torch.zeros(n, n, dtype=torch.float64)
    for step in range(steps):
        counts[torch.arange(n), Contrast().partners(context.mask, context, draws, step)[0]] += 1
    off = counts[~torch.eye(n, dtype=torch.bool)] / steps
    p = 1 / (n - 1)
    assert float(counts.diagonal().sum()) == 0
    assert float((off - p).abs().max()) < 4.5 * math.sqrt(p * (1 - p) / steps)


def test_given_elements_have_no_negative() -> None:
    path, context = GaussianPath(Euclidean(1), Rectified(), "score"), all_real(4, 3)
    draws = Draws(0, torch.arange(4))
    x0 = draws.normal((3, 1), "data", dtype=torch.float64)
    t = torch.tensor([[0.0, 0.5, 0.9]] * 4, dtype=torch.float64)
    x_t = path.corrupt(x0, t, context, draws, "noise")
    f = torch.zeros(4, 3, 1, dtype=torch.float64, requires_grad=True)
    pair = (x0.flip(0), draws.normal((3, 1), "other", dtype=torch.float64))
    clean = path.clean(f, x_t, t, context)
    Contrast().penalty(path, clean, pair, x_t, t, context).sum().backward()
    assert f.grad is not None and bool(f.grad.isfinite().all())
    assert not bool(f.grad[:, 0].any()) and bool(f.grad[:, 1:].all())


def test_what_is_refused() -> None:
    with pytest.raises(InputError, match=r"must lie in \[0, 1\), not 1.0: .* no minimum"):
        Contrast(1.0)
    model, state, draws = mixed(4)
    with pytest.raises(InputError, match="no condition 'y' to tell negatives by; conditions: c"):
        DenoisingObjective(contrast={"x": Contrast(different="y")})(model, state, draws, 0)
    with pytest.raises(InputError, match="contrast: field 'token' is not Gaussian"):
        DenoisingObjective(contrast={"token": Contrast()})(model, state, draws, 0)
    with pytest.raises(InputError, match="contrast: there is no field 'z'"):
        DenoisingObjective(contrast={"z": Contrast()})(model, state, draws, 0)
