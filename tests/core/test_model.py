"""What a model promises: sample i depends on (seed, i) alone, guidance 0 is none, calls count."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sciflow
from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.model import Model, Samples, SamplingInterrupted
from sciflow.samplers import Sampler
from sciflow.state import State, Times

WANTED = {"gap": 4.0, "dipole": (1.0, 2.0)}


@pytest.fixture(scope="module")
def model(tiny_model_folder: Path) -> Model:
    return sciflow.load(tiny_model_folder)


@pytest.fixture
def in_float64(tiny_model_folder: Path) -> Iterator[Model]:
    torch.set_default_dtype(torch.float64)
    try:
        model = sciflow.load(tiny_model_folder)
        model.denoiser.double()
        yield model
    finally:
        torch.set_default_dtype(torch.float32)


def same(a: list[Any], b: list[Any], atol: float) -> None:
    """Equal graphs, positions within ``atol`` ångström."""
    assert len(a) == len(b) > 0
    for x, y in zip(a, b, strict=True):
        assert (x.numbers == y.numbers).all() and (x.charges == y.charges).all()
        assert (x.bonds == y.bonds).all()
        np.testing.assert_allclose(x.positions, y.positions, rtol=0, atol=atol)


@pytest.mark.parametrize("target", [None, WANTED], ids=["free", "targeted"])
@pytest.mark.parametrize("method", ["ab2", "unipc2", "heun"])
def test_a_sample_depends_on_seed_and_number_alone(
    in_float64: Model, target: Any, method: str
) -> None:
    settings = {"method": method, "steps": 5}
    draw = in_float64.sample
    whole = draw(6, target, seed=3, sampler=settings)
    shards = [draw(3, target, seed=3, sampler=settings, first=k) for k in (0, 3)]
    singly = draw(6, target, seed=3, sampler=settings, batch_size=1)
    same(whole.records, shards[0].records + shards[1].records, atol=1e-10)
    same(whole.records, singly.records, atol=1e-10)
    for name, values in whole.targets.items():
        assert values == shards[0].targets[name] + shards[1].targets[name]


def test_the_same_in_single_precision(model: Model) -> None:
    same(
        model.sample(8, WANTED, seed=1).records,
        model.sample(8, WANTED, seed=1, batch_size=3).records,
        atol=1e-4,
    )


def test_the_same_seed_gives_the_same_bits_and_another_does_not(model: Model) -> None:
    a, b, c = (model.sample(4, WANTED, seed=s) for s in (5, 5, 6))
    same(a.records, b.records, atol=0)
    assert not np.array_equal(a.records[0].positions, c.records[0].positions)


def test_guidance_zero_is_the_unguided_sample_bit_for_bit(model: Model) -> None:
    from sciflow.guidance import ClassifierFree

    guided = model.guided(lambda denoiser: ClassifierFree(denoiser, 0.0))
    plain = model.sample(5, WANTED, seed=2, guidance=0.0)
    same(plain.records, guided.sample(5, WANTED, seed=2, guidance=0.0).records, atol=0)
    strong = model.sample(5, WANTED, seed=2, guidance=3.0)
    assert any(not np.array_equal(a.positions, b.positions)
               for a, b in zip(plain.records, strong.records, strict=True))  # fmt: skip


def test_guidance_without_targets_costs_nothing(model: Model) -> None:
    free, guided = model.sample(3, seed=1), model.sample(3, seed=1, guidance=2.0)
    same(free.records, guided.records, atol=0)
    assert free.calls == guided.calls and guided.settings["guidance"] == 0.0


@pytest.mark.parametrize(
    ("settings", "guidance", "promised"),
    [
        ({"steps": 1}, 0.0, 1),
        ({"steps": 7}, 0.0, 7),
        ({"steps": 7, "method": "ddim"}, 0.0, 7),
        ({"steps": 7, "method": "heun"}, 0.0, 7),
        ({"steps": 7}, 1.5, 14),
    ],
)
def test_network_calls_are_as_promised(
    model: Model, settings: dict[str, Any], guidance: float, promised: int
) -> None:
    counted = []
    hook = model.denoiser.network.register_forward_hook(lambda *_: counted.append(1))
    try:
        samples = model.sample(6, WANTED, guidance=guidance, sampler=settings, batch_size=3)
    finally:
        hook.remove()
    assert samples.calls == promised and len(counted) == 2 * promised


def test_point_targets_are_asked_of_every_sample_and_ranges_kept(model: Model) -> None:
    samples = model.sample(20, WANTED)
    assert samples.targets["gap"] == [4.0] * 20
    assert all(1 <= v <= 2 for v in samples.targets["dipole"])
    assert len(set(samples.targets["dipole"])) > 1


def test_same_size_error_is_that_of_training_samples_of_the_same_sizes(model: Model) -> None:
    samples = model.sample(12, {"gap": 4.0}, seed=9)
    sizes, values = model.reference["lengths"].long(), model.reference["gap"].double()
    by_hand = [float((values[sizes == len(r)] - 4.0).abs().mean()) for r in samples.records]
    assert samples.same_size["gap"] == pytest.approx(np.mean(by_hand), rel=1e-12)


def test_what_is_saved_samples_the_same(model: Model, tmp_path: Path) -> None:
    again = sciflow.load(model.save(tmp_path / "copy"))
    same(model.sample(4, WANTED).records, again.sample(4, WANTED).records, atol=0)
    assert again.digest == model.digest and again.card == model.card


def test_progress_rises_to_the_number_of_samples(model: Model) -> None:
    told: list[tuple[int, int]] = []
    model.sample(5, batch_size=2, progress=lambda done, n: told.append((done, n)))
    done = [d for d, _ in told]
    assert done == sorted(done) and told[-1] == (5, 5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"n": 0}, "at least 1, not 0"),
        ({"n": 2, "batch_size": 0}, "at least 1 sample, not 0"),
        ({"n": 2, "target": {"colour": 1.0}}, "no property 'colour'; it has: gap, dipole"),
        ({"n": 2, "target": {"gap": (6.0, 5.0)}}, "rising range"),
        ({"n": 2, "target": {"gap": math.nan}}, "rising range"),
        ({"n": 2, "guidance": -1.0}, "0 .none. or more, not -1"),
        ({"n": 2, "guidance": math.nan}, "not nan"),
        ({"n": 2, "sampler": {"stepz": 3}}, "unknown sampler setting 'stepz'; known: steps"),
        ({"n": 2, "sampler": {"steps": 0}}, "at least 1 network call"),
        ({"n": 2, "sampler": {"method": "rk4"}}, "unknown method 'rk4'; known: ab1"),
        (
            {"n": 2, "sampler": {"grid": "cosine"}},
            "unknown time grid 'cosine'; known: fine-u, uniform-u",
        ),
    ],
)
def test_bad_arguments_say_what_is_allowed(
    model: Model, arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        model.sample(**arguments)


class Spoilt(Denoiser):
    """Puts a NaN into the estimate of the batch's first samples at call ``when``."""

    def __init__(self, denoiser: Denoiser, when: int, rows: int = 1):
        super().__init__()
        self.denoiser, self.paths, self.when, self.calls = denoiser, denoiser.paths, when, 0
        self.rows = rows

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        prediction = self.denoiser(state, t, previous)
        self.calls += 1
        if self.calls == self.when:
            prediction.clean["coords"] = prediction["coords"].clone()
            prediction["coords"][: self.rows, 0, 0] = math.nan
        return prediction


def test_each_broken_sample_is_named_by_its_own_number(model: Model) -> None:
    spoilt = model.guided(lambda d: Spoilt(d, when=2, rows=3)).sample(6, seed=4, first=10)
    assert len(spoilt.dropped) == 3
    assert all(f"sample {i}, seed 4" in reason for i, reason in spoilt.dropped.items())


def test_a_broken_sample_is_dropped_by_name_and_spoils_no_other(model: Model) -> None:
    whole = model.sample(6, seed=4)
    spoilt = model.guided(lambda d: Spoilt(d, when=3)).sample(6, seed=4)
    (number,) = spoilt.dropped
    assert spoilt.records[number] is None and len(spoilt.kept) == 5
    reason = spoilt.dropped[number]
    assert reason.startswith("not finite: step 2 ")
    assert f"field coords, sample {number}, seed 4" in reason
    others = [i for i in range(6) if i != number]
    same([whole.records[i] for i in others], [spoilt.records[i] for i in others], atol=0)


def test_an_interrupt_hands_over_what_was_done(model: Model) -> None:
    def stop(done: int, total: int) -> None:
        if done > 2:
            raise KeyboardInterrupt

    with pytest.raises(SamplingInterrupted) as caught:
        model.sample(6, seed=8, batch_size=2, progress=stop)
    samples = caught.value.samples
    assert isinstance(samples, Samples) and len(samples) == 6
    done = [i for i, r in enumerate(samples.records) if r is not None]
    assert len(done) == 2 and set(samples.dropped) == set(range(6)) - set(done)
    assert set(samples.dropped.values()) == {"interrupted"}
    whole = model.sample(6, seed=8)
    same([whole.records[i] for i in done], samples.kept, atol=1e-4)


def test_a_domain_without_bundled_model_names_what_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sciflow.model.bundled_models", dict)
    with pytest.raises(InputError, match=r"no model 'molecules': .*\(none\)"):
        sciflow.load("molecules")


def test_guidance_acts_in_its_interval_and_is_counted_there(model: Model) -> None:
    counted = []
    hook = model.denoiser.network.register_forward_hook(lambda *_: counted.append(1))
    settings = {"steps": 10, "grid": "time", "restarts": 1, "restart_share": 0.3}
    try:
        samples = model.sample(3, WANTED, guidance=1.5, guidance_interval=(0.5, 1.0),
                               sampler=settings)  # fmt: skip
    finally:
        hook.remove()
    starts = Sampler(**settings).plan(model.denoiser).start
    assert samples.calls == len(counted) == 10 + int((starts >= 0.5).sum()) < 20
    nowhere = model.sample(3, WANTED, guidance=1.5, guidance_interval=(0.999999, 0.9999995),
                           sampler=settings)  # fmt: skip
    same(nowhere.records, model.sample(3, WANTED, guidance=0.0, sampler=settings).records, atol=0)
    with pytest.raises(InputError, match="first <= last"):
        model.sample(1, WANTED, guidance=1.0, guidance_interval=(0.5, 0.1))


def test_a_model_may_weigh_each_property(model: Model) -> None:
    own = Model(model.domain, model.denoiser, {**model.config, "guidance": {"gap": 2.0}},
                model.reference)  # fmt: skip
    assert own.sample(1, {"gap": 4.0}).settings["guidance"] == 2.0
    assert own.sample(1, WANTED).settings["guidance"] == 2.0 / len(WANTED)
    assert own.sample(1).settings["guidance"] == 0.0
    assert own.sample(1, WANTED, guidance=0.5).settings["guidance"] == 0.5
