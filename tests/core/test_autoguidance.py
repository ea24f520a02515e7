"""Guidance by a weak model: exact where models are, honest in calls, refused where nothing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from benchmarks.autoguidance_tree import experiment
from sciflow.denoisers import Denoiser, Network, NetworkDenoiser, Prediction
from sciflow.errors import InputError
from sciflow.guidance import ClassifierFree
from sciflow.guidance.weak.away import MoveAway, logsnr_interval
from sciflow.guidance.weak.estimates import IndependentCondition, Instead, PerturbedTime, Unasked
from sciflow.guidance.weak.perturbed import PerturbedAttention, attention_blocks
from sciflow.networks.equivariant import EquivariantTransformer
from sciflow.networks.sparse import SparseMessagePassing
from sciflow.networks.transformer import AugmentedTransformer
from sciflow.paths import CategoricalPath, GaussianPath, GeodesicPath, Path
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.schedules import Cosine, Rectified, VPLinear
from sciflow.spaces import Euclidean, Tokens, Torus, ZeroCoM
from sciflow.state import Context, State, Times, field_times
from sciflow.testing.targets import DiagonalGaussian, all_real
from tests.core.networks.cases import build

PATH = GaussianPath(Euclidean(2), Cosine(), "v")
V = torch.tensor([0.3, 0.7], dtype=torch.float64)
NAMES = ("gap", "dipole")


class Asked(Denoiser):
    """Number i of x is N(c_i, v_i), or N(−½, 2 v_i) where condition i is not asked for."""

    def __init__(self, same_variance: bool = False) -> None:
        super().__init__()
        self.paths: dict[str, Path] = {"x": PATH}
        self.calls, self.factor = 0, 1.0 if same_variance else 2.0

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        self.calls += 1
        x = state["x"]
        a, s = (PATH.space.expand(y, x) for y in PATH.schedule(field_times(t, state)["x"]))
        c = torch.stack([state.context.conditions[n] for n in NAMES], -1)[:, None].double()
        asked = ~c.isnan()
        m = torch.where(asked, c.nan_to_num(), torch.full_like(c, -0.5))
        v = torch.where(asked, V, self.factor * V)
        return Prediction({"x": m + a * v / (a**2 * v + s**2) * (x - a * m)})


def asked(n: int = 8) -> Context:
    """The second half is not asked for a dipole."""
    c = torch.linspace(0.0, 1.0, n, dtype=torch.float64)
    dipole = (c + 1).where(torch.arange(n) < n // 2, torch.nan)
    numbers = {"sample": torch.arange(n)}
    return all_real(n).replace(conditions={"gap": c, "dipole": dipole}, extras=numbers)


def noisy(n: int = 8) -> State:
    x = Draws(1, torch.arange(n)).normal((1, 2), "x", dtype=torch.float64)
    return State({"x": x}, asked(n))


def test_on_gaussians_guidance_samples_the_closed_form() -> None:
    """For N(m, v) against N(m', v) it is the model of N(m + w (m − m'), v), at every noise."""
    n, w = 8, 1.5
    context = all_real(n).replace(conditions={k: torch.full((n,), 0.7) for k in NAMES})
    moved = DiagonalGaussian(PATH, torch.full((2,), 0.7 + w * 1.2, dtype=torch.float64), V)
    draws = Draws(0, torch.arange(n))
    for method in ("ab3", "ddpm", "dpmpp2m"):
        sampler = Sampler(steps=6, method=method)
        guided = sampler(ClassifierFree(Asked(True), w), context, draws, dtype=torch.float64)
        exact = sampler(moved, context, draws, dtype=torch.float64)
        torch.testing.assert_close(guided.state["x"], exact.state["x"], rtol=0, atol=1e-7)


def test_autoguidance_removes_a_blur() -> None:
    """Strong N(m, v + β²) against weak N(m, v + 2β²): w = 1 lands nearer to N(m, v) than w = 0."""
    n, blur = 400, 0.2
    m = torch.zeros(2, dtype=torch.float64)
    strong, weak = (DiagonalGaussian(PATH, m, V + k * blur) for k in (1, 2))
    spread = []
    for w in (0.0, 1.0):
        report = Sampler(steps=20)(MoveAway(strong, weak, w), all_real(n),
                                   Draws(0, torch.arange(n)), dtype=torch.float64)  # fmt: skip
        spread.append(report.state["x"].var(0)[0])
    assert bool(((spread[1] - V).abs() < 0.6 * (spread[0] - V).abs()).all())


def test_the_tree_of_karras() -> None:
    """Autoguidance removes outliers and keeps coverage; classifier-free guidance loses it."""
    weights = {"unguided": (0.0,), "autoguidance": (2.0,), "classifier-free": (2.0,),
               "classifier-free, weak": (2.0,)}  # fmt: skip
    plain, auto, free, weak = experiment(400, 16, weights)
    print(*(plain, auto, free, weak), sep="\n")
    assert plain.outliers > 0.2 and auto.outliers < 0.03
    assert auto.coverage > 0.95 * plain.coverage and auto.coverage > 0.95
    assert free.coverage < 0.8 and free.outliers > 0.2
    assert weak.outliers < 0.05 and weak.coverage < 0.8
    assert (plain.calls, auto.calls) == (16, 32)


SETTINGS = {
    "unasked": lambda d: Unasked(d),
    "another": lambda d: DiagonalGaussian(PATH, 0 * V, 3 * V),
    "negative": lambda d: Instead(d, {"gap": 4.0}),
    "independent": lambda d: IndependentCondition(d, {"gap": torch.tensor([2.0, 3.0])}),
    "time": lambda d: PerturbedTime(d, 0.3),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_weight_zero_is_the_model_bit_for_bit_at_one_call_a_step(name: str) -> None:
    draws, sampler = Draws(0, torch.arange(8)), Sampler(steps=6)
    plain, model = Asked(), Asked()
    x = sampler(plain, asked(), draws, dtype=torch.float64).state["x"]
    off = MoveAway(model, SETTINGS[name](model), 0.0)
    report = sampler(off, asked(), draws, dtype=torch.float64)
    assert torch.equal(report.state["x"], x)
    assert model.calls == off.calls == report.calls == 6
    on = MoveAway(Asked(), SETTINGS[name](Asked()), 0.7)
    moved = sampler(on, asked(), draws, dtype=torch.float64).state["x"]
    assert float((moved - x).abs().max()) > 0.01 and on.calls == 12


@pytest.mark.parametrize("name", SETTINGS)
def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    draws, sampler = Draws(0, torch.arange(8)), Sampler(steps=5)
    model = MoveAway(Asked(), SETTINGS[name](Asked()), 1.3)
    whole = sampler(model, asked(), draws, dtype=torch.float64).state["x"]
    rows = torch.tensor([5, 2])
    part = asked().apply(lambda y: y[rows])
    again = sampler(model, part, draws.rows(rows), dtype=torch.float64).state["x"]
    torch.testing.assert_close(again, whole[rows], rtol=0, atol=1e-13)


def test_a_weight_for_each_condition() -> None:
    """Each condition's weight moves what depends on it, and nothing else."""
    state = noisy()
    scalar = {w: ClassifierFree(Asked(), w)(state, 0.6)["x"] for w in (0.0, 1.0, 0.3)}
    each = ClassifierFree(Asked(), {"gap": 1.0, "dipole": 0.3})
    x = each(state, 0.6)["x"]
    torch.testing.assert_close(x[..., 0], scalar[1.0][..., 0])
    torch.testing.assert_close(x[..., 1], scalar[0.3][..., 1])
    equal = ClassifierFree(Asked(), {"gap": 1.0, "dipole": 1.0})(state, 0.6)["x"]
    torch.testing.assert_close(equal, scalar[1.0])
    model = Asked()
    ClassifierFree(model, {"gap": 1.0, "dipole": 0.0})(state, 0.6)
    assert model.calls == 2 and each.calls == 3
    off = ClassifierFree(Asked(), {"gap": 0.0, "dipole": 0.0})(state, 0.6)["x"]
    assert torch.equal(off, scalar[0.0])
    with pytest.raises(InputError, match="no condition 'gep'"):
        ClassifierFree(Asked(), {"gep": 1.0})(state, 0.6)


def test_a_weight_that_depends_on_time() -> None:
    state = noisy()
    by_time = ClassifierFree(Asked(), lambda t: 2 * t)
    constant = ClassifierFree(Asked(), 1.2)
    assert torch.equal(by_time(state, 0.6)["x"], constant(state, 0.6)["x"])
    assert torch.equal(by_time(state, 0.0)["x"], Asked()(state, 0.0)["x"])
    mixed = ClassifierFree(Asked(), {"gap": lambda t: t, "dipole": 0.5})
    fixed = ClassifierFree(Asked(), {"gap": 0.6, "dipole": 0.5})
    assert torch.equal(mixed(state, 0.6)["x"], fixed(state, 0.6)["x"])
    with pytest.raises(InputError, match="must be finite"):
        ClassifierFree(Asked(), lambda t: math.inf)(state, 0.6)


def test_intervals_in_logsnr_and_the_calls_they_cost() -> None:
    model = Asked()
    guided = ClassifierFree(model, 1.0, logsnr=(-1.0, 2.0))
    sampler = Sampler(steps=15)
    times = sampler.plan(model).start
    inside = (PATH.schedule.logsnr(times) >= -1) & (PATH.schedule.logsnr(times) <= 2)
    assert 3 < int(inside.sum()) < 12
    sampler(guided, asked(), Draws(0, torch.arange(8)))
    assert guided.extra_calls(times.tolist()) == int(inside.sum())
    assert model.calls == guided.calls == 15 + int(inside.sum())
    assert logsnr_interval({"x": PATH}, -100.0, 100.0) == pytest.approx((0.0, 1.0), abs=1e-9)
    with pytest.raises(InputError, match="not both"):
        ClassifierFree(model, 1.0, (0.1, 0.5), logsnr=(-1.0, 2.0))


def test_samples_at_their_own_times_are_guided_each_at_its_own() -> None:
    state = noisy()
    times = torch.linspace(0.1, 0.9, 8, dtype=torch.float64)
    guided = ClassifierFree(Asked(), lambda t: 3 * t, (0.3, 0.8))
    together = guided(state, times)["x"]
    for i, t in enumerate(times.tolist()):
        alone = guided(state.index(torch.tensor([i])), t)["x"]
        torch.testing.assert_close(together[i], alone[0], rtol=0, atol=1e-13)
    named = guided(state, {"x": torch.full((8,), 0.5, dtype=torch.float64)})["x"]
    torch.testing.assert_close(named, guided(state, 0.5)["x"], rtol=0, atol=1e-13)


class Fixed(Denoiser):
    """Says the same whatever it sees."""

    def __init__(self, paths: dict[str, Path], **clean: Tensor) -> None:
        super().__init__()
        self.paths, self.clean = paths, clean

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        return Prediction(self.clean)


def test_several_weak_models_act_as_their_mean_in_each_geometry() -> None:
    paths: dict[str, Path] = {
        "x": PATH,
        "k": CategoricalPath(Tokens(3), Rectified()),
        "r": GeodesicPath(Torus(), Rectified()),
    }
    draws = Draws(0, torch.arange(4))

    def answer(i: int) -> dict[str, Tensor]:
        return {
            "x": draws.normal((1, 2), "x", i, torch.float64),
            "k": draws.normal((1, 3), "k", i, torch.float64),
            "r": 0.3 * draws.normal((1,), "r", i, torch.float64),
        }

    d, u, v = (answer(i) for i in range(3))
    state = State({"x": d["x"], "k": torch.full((4, 1), 3), "r": 0 * d["r"]}, all_real(4))
    models = [Fixed(paths, **y) for y in (d, u, v)]
    y = MoveAway(models[0], models[1:], [0.8, 0.4])(state, 0.5)
    torch.testing.assert_close(y["x"], d["x"] + 0.8 * (d["x"] - u["x"]) + 0.4 * (d["x"] - v["x"]))
    log = [z["k"].log_softmax(-1) for z in (d, u, v)]
    expected = 2.2 * log[0] - 0.8 * log[1] - 0.4 * log[2]
    torch.testing.assert_close(y["k"].softmax(-1), expected.softmax(-1))
    r = 2.2 * d["r"] - 0.8 * u["r"] - 0.4 * v["r"]
    torch.testing.assert_close(Torus().log(r, y["r"]), 0 * r, rtol=0, atol=1e-12)


def test_negative_conditions() -> None:
    state = noisy()
    y = MoveAway(Asked(), Instead(Asked(), {"gap": 4.0}), 0.5)(state, 0.6)["x"]
    conditions = {**state.context.conditions, "gap": torch.full((8,), 4.0, dtype=torch.float64)}
    d, u = Asked()(state, 0.6)["x"], Asked()(
        State(state.fields, state.context.replace(conditions=conditions)), 0.6)["x"]  # fmt: skip
    torch.testing.assert_close(y, d + 0.5 * (d - u))
    assert torch.equal(y[..., 1], d[..., 1])


def test_independent_conditions_come_from_the_pool_anew_at_each_time() -> None:
    pool = torch.tensor([5.0, 6.0, 7.0])
    seen: list[Tensor] = []

    class Watch(Asked):
        def forward(self, state: State, t: Times | float, previous: Prediction | None = None
                    ) -> Prediction:  # fmt: skip
            seen.append(torch.stack(list(state.context.conditions.values())))
            return super().forward(state, t, previous)

    weak = IndependentCondition(Watch(), {"gap": pool, "dipole": 10 * pool}, seed=3)
    n = 600
    for t in (0.5, 0.50001, 0.5):
        weak(noisy(n), t)
    gap, dipole = seen[0]
    for value in pool.tolist():
        assert float((gap == value).double().mean()) == pytest.approx(1 / 3, abs=0.08)
    # Rows of the pool stay together; who is not asked is not asked.
    assert torch.equal(dipole[: n // 2], 10 * gap[: n // 2])
    assert bool(dipole[n // 2 :].isnan().all())
    assert torch.equal(seen[2][0], gap) and not torch.equal(seen[1][0], gap)
    with pytest.raises(InputError, match="number of each sample"):
        weak(State(noisy().fields, asked().replace(extras={})), 0.5)
    with pytest.raises(InputError, match="same number of rows"):
        IndependentCondition(Asked(), {"gap": pool, "dipole": pool[:2]})


def test_a_perturbed_time_stays_between_data_and_noise() -> None:
    told: list[Tensor] = []

    class Watch(Asked):
        def forward(self, state: State, t: Times | float, previous: Prediction | None = None
                    ) -> Prediction:  # fmt: skip
            told.append(torch.as_tensor(t))
            return super().forward(state, t, previous)

    for t in (0.01, 0.5, 1.0):
        PerturbedTime(Watch(), 0.8, seed=1)(noisy(500), t)
        PerturbedTime(Watch(), 0.1, seed=None)(noisy(), t)
    assert all(bool(((u >= 0.001) & (u <= 1)).all()) for u in told)
    middle = told[2]
    assert float(middle.std()) > 0.1 and float(middle.median()) == pytest.approx(0.5, abs=0.05)
    assert torch.equal(told[3], torch.full((8,), 0.55, dtype=torch.float64))
    elements = torch.tensor([[0.0], [0.5]], dtype=torch.float64).expand(2, 1)
    PerturbedTime(Watch(), 0.5, seed=None)(noisy(2), elements)
    assert told[-1][0] == 0 and told[-1][1] == 0.75


@pytest.mark.parametrize(
    ("weak", "message"),
    [
        (DiagonalGaussian(PATH.with_schedule(VPLinear()), V, V), "noised by another schedule"),
        (DiagonalGaussian(PATH, V, V, field="y"), "the weak model has the fields y"),
    ],
)
def test_a_weak_model_of_other_states_is_refused(weak: Denoiser, message: str) -> None:
    with pytest.raises(InputError, match=message):
        MoveAway(DiagonalGaussian(PATH, V, V), weak, 1.0)


# Perturbed attention, on the networks of molecules.


def molecule(kind: type[Network]) -> NetworkDenoiser:
    paths = {
        "coords": GaussianPath(ZeroCoM(3), Cosine(), "edm"),
        "types": CategoricalPath(Tokens(5), Rectified()),
        "charges": CategoricalPath(Tokens(3), Rectified()),
        "bonds": CategoricalPath(Tokens(5, pairs=True), Rectified()),
    }
    return NetworkDenoiser(build(kind), paths)


def molecules(sizes: Sequence[int] = (5, 7), width: int = 7) -> State:
    n = len(sizes)
    mask = torch.arange(width) < torch.tensor(sizes)[:, None]
    context = Context(mask, extras={"sample": torch.arange(n)})
    draws = Draws(4, torch.arange(n))
    fields = {
        "coords": ZeroCoM(3).noise(context, draws, "x", dtype=torch.float64),
        "types": Tokens(5).noise(context, draws, "t"),
        "charges": Tokens(3).noise(context, draws, "c"),
        "bonds": Tokens(5, pairs=True).noise(context, draws, "b"),
    }
    return State(fields, context)


TRANSFORMERS = [EquivariantTransformer, AugmentedTransformer]
KINDS = ["identity", "blur", "shuffle"]


def difference(a: Prediction, b: Prediction, mask: Tensor) -> float:
    return max(
        float((a[f] - b[f]).detach()[mask].abs().max()) for f in ("coords", "types", "charges")
    )


@pytest.mark.parametrize(("kind", "network"), list(itertools.product(KINDS, TRANSFORMERS)))
def test_perturbed_attention(kind: str, network: type[Network]) -> None:
    """It changes the answer while it is asked for, sample by sample, and leaves no trace."""
    model, state = molecule(network), molecules()
    before = model(state, 0.6)
    weak = PerturbedAttention(model, kind, layers=[0, 1])  # type: ignore[arg-type]
    perturbed = weak(state, 0.6)
    assert difference(before, perturbed, state.context.mask) > 1e-3
    after = model(state, 0.6)
    assert all(torch.equal(after[f], before[f]) for f in before.clean)
    for i, n in enumerate((5, 7)):
        alone = State(
            {f: x[i : i + 1, :n, :n] if f == "bonds" else x[i : i + 1, :n]
             for f, x in state.items()},
            state.context.apply(lambda y, i=i: y[i : i + 1]).replace(
                mask=torch.ones(1, n, dtype=torch.bool)),
        )  # fmt: skip
        own = weak(alone, 0.6)
        for f in ("coords", "types"):
            torch.testing.assert_close(own[f][0], perturbed[f][i, :n], rtol=0, atol=1e-10)


def test_perturbed_attention_under_a_sampler() -> None:
    model, state = molecule(AugmentedTransformer), molecules()
    guided = MoveAway(model, PerturbedAttention(model, "identity"), 0.5)
    report = Sampler(steps=3)(guided, state.context, Draws(0, torch.arange(2)), dtype=torch.float64)
    # Two a step, and once the unperturbed network beside the perturbed one, to compare.
    assert not bool(report.broken.any()) and guided.calls == 7


@pytest.mark.parametrize("kind", ["identity", "blur"])
def test_what_needs_no_order_commutes_with_permutations(kind: str) -> None:
    state = molecules((7, 7))
    p = torch.tensor([3, 1, 6, 0, 2, 5, 4])
    turned = State(
        {f: x[:, p][:, :, p] if f == "bonds" else x[:, p] for f, x in state.items()}, state.context
    )
    weak = PerturbedAttention(molecule(EquivariantTransformer), kind)  # type: ignore[arg-type]
    a, b = weak(state, 0.6), weak(turned, 0.6)
    for f in ("coords", "types"):
        torch.testing.assert_close(a[f][:, p], b[f], rtol=0, atol=1e-10)


class Block(nn.Module):
    """Attention that knows tokens by their features alone."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(h).chunk(3, -1)
        return h + self.out((q @ k.mT).softmax(-1) @ v)


class Sets(Network):
    """A network of sets: it commutes with permutations, and no positions stay behind."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(2, dim), nn.Linear(dim, 2)
        self.blocks = nn.ModuleList([Block(dim), Block(dim)])

    def forward(self, inputs: dict[str, Tensor], levels: dict[str, Tensor], context: Context,
                previous: dict[str, Tensor] | None) -> dict[str, Tensor]:  # fmt: skip
        h = self.enter(inputs["x"])
        for block in self.blocks:
            h = block(h)
        return {"x": self.leave(h)}


def sets(elements: int = 5) -> tuple[NetworkDenoiser, State]:
    torch.manual_seed(0)
    model = NetworkDenoiser(Sets().double(), {"x": PATH})
    context = all_real(3, elements).replace(extras={"sample": torch.arange(3)})
    x = Euclidean(2).noise(context, Draws(0, torch.arange(3)), "x", dtype=torch.float64)
    return model, State({"x": x}, context)


def test_shuffling_a_set_is_refused_instead_of_doing_nothing() -> None:
    model, state = sets()
    assert len(attention_blocks(model)) == 2
    shuffled = MoveAway(model, PerturbedAttention(model, "shuffle", [0, 1]), 1.0)
    with pytest.raises(InputError, match="commutes with permutations"):
        shuffled(state, 0.5)
    for kind in ("identity", "blur"):
        weak = PerturbedAttention(model, kind)  # type: ignore[arg-type]
        assert not torch.allclose(weak(state, 0.5)["x"], model(state, 0.5)["x"])


def test_a_blur_is_a_gaussian_over_an_ordered_sequence() -> None:
    """Narrow, it changes nothing; wide, it is the mean."""
    model, state = sets()
    wide = PerturbedAttention(model, "blur", sigma=1e6)(state, 0.5)["x"]
    mean = PerturbedAttention(model, "blur")(state, 0.5)["x"]
    torch.testing.assert_close(wide, mean, rtol=0, atol=1e-9)
    some = PerturbedAttention(model, "blur", sigma=1.0)(state, 0.5)["x"]
    assert not torch.allclose(some, mean)
    with pytest.raises(InputError, match="leaves this network's answer as it is"):
        PerturbedAttention(model, "blur", sigma=1e-3)(state, 0.5)


def test_networks_without_attention_are_refused() -> None:
    with pytest.raises(InputError, match="no block of attention"):
        PerturbedAttention(molecule(SparseMessagePassing))
    with pytest.raises(InputError, match="layers are numbers from 0 to 1"):
        PerturbedAttention(molecule(EquivariantTransformer), layers=[2])
