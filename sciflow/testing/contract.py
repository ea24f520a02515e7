"""The contract of a domain as a test suite: an adapter is in when a ten-line subclass passes.

    from sciflow.testing.contract import DomainContract

    class TestMolecules(DomainContract):
        domain_name = "molecules"
        conditions = ("gap",)
        smaller = {"network": {"dim": 32, "depth": 2}}
        symmetries = ("translation", "rotation", "reflection", "permutation")
        vectors = ("coords",)

The model under test has random weights everywhere, also in the layers that training starts at zero:
what a network is not allowed to do must hold whatever it has learned. Symmetries are checked by
transforming the state and, for sampling, the random numbers alike.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from sciflow.denoisers import Denoiser, NetworkDenoiser, Prediction
from sciflow.domain import Domain, get_domain
from sciflow.errors import InputError
from sciflow.model import Model
from sciflow.paths import CategoricalPath, GaussianPath, coupled_fields
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.state import State
from sciflow.targets import Target
from sciflow.testing.probes import (
    PRECISION,
    Move,
    MovedDraws,
    assert_close,
    assert_same,
    corrupted,
    denoise,
    denoise_twice,
    double,
    element_axes,
    even,
    merged,
    one_element,
    padded,
    randomise,
)

__all__ = ["DomainContract"]

SAMPLERS = (
    Sampler(steps=4, method="ab2", greedy=False, token_eta=0.5),
    Sampler(steps=3, method="ddim", eta=0.7, greedy=False),
)


def samplers_of(denoiser: Denoiser) -> list[Sampler]:
    """Those that serve it: noise that was coupled with the data cannot be drawn anew."""
    return [s for s in SAMPLERS if not (s.fresh_noise and coupled_fields(denoiser.paths))]


class DomainContract:
    """What every domain promises; subclass it in a test module.

    Class attributes:
        domain_name: name under which the domain is found.
        preset: network preset; default the domain's first.
        conditions: properties on which the model under test is conditioned; the domain's files must
            be able to carry them (:meth:`Domain.annotate`).
        smaller: changes merged into the configuration, to keep the network small.
        symmetries: of "translation", "rotation", "reflection", "permutation".
        vectors: fields whose last axis is a vector in space.
        record_precision: largest error of a field that went through a record.
        file_precision: largest error of a field after a round trip through the main file.
        examples: how many records.
    """

    domain_name: ClassVar[str]
    preset: ClassVar[str] = ""
    conditions: ClassVar[Sequence[str]] = ()
    smaller: ClassVar[Mapping[str, Any]] = {}
    symmetries: ClassVar[Sequence[str]] = ()
    vectors: ClassVar[Sequence[str]] = ()
    record_precision: ClassVar[float] = 1e-5
    file_precision: ClassVar[float] = 1e-3
    examples: ClassVar[int] = 24

    # --- what is tested ---------------------------------------------------------------------

    @pytest.fixture(scope="class")
    @classmethod
    def domain(cls) -> Domain:
        """The domain, found by its name."""
        return get_domain(cls.domain_name)

    @pytest.fixture(scope="class")
    @classmethod
    def records(cls, domain: Domain) -> list[Any]:
        """The domain's examples, with made-up values of the properties asked for."""
        records = []
        for i, record in enumerate(domain.examples(cls.examples)):
            values = {c: math.sin(i + k) for k, c in enumerate(cls.conditions)}
            records.append(domain.annotate(record, f"example {i}", values))
        return records

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls, domain: Domain, records: list[Any],
              tmp_path_factory: pytest.TempPathFactory) -> Model:  # fmt: skip
        """A model of the domain made the user's way, from a file, with random weights."""
        file = domain.write(records, tmp_path_factory.mktemp("data"))[0]
        preset = cls.preset or domain.presets()[0]
        config, data, _ = domain.prepare(domain.dataset(file), preset, cls.conditions)
        config = merged(config, cls.smaller)
        torch.manual_seed(0)
        denoiser = randomise(domain.denoiser(config))
        return Model(domain, denoiser, config, domain.reference(data))

    @pytest.fixture(scope="class")
    @classmethod
    def clean(cls, domain: Domain, model: Model, records: list[Any]) -> State:
        """A few records as a batch."""
        return domain.encode(model.config, records[:5])

    @pytest.fixture(scope="class")
    @classmethod
    def noisy(cls, clean: State, model: Model) -> State:
        """The same, corrupted at t = 0.5, in float64."""
        return corrupted(model, clean.to(torch.float64))

    # --- records, files ---------------------------------------------------------------------

    def test_is_found_by_its_name(self, domain: Domain) -> None:
        """Name, presets, properties with units."""
        assert domain.name == self.domain_name and domain.summary and "\n" not in domain.summary
        assert len(domain.presets()) == len(set(domain.presets())) > 0
        assert domain.default_model.startswith(f"{domain.name}/")
        assert all(p.summary for p in domain.properties.values())
        assert set(self.conditions) <= set(domain.properties)

    def test_examples_are_sound_and_repeatable(self, domain: Domain, model: Model) -> None:
        """Examples pass the domain's own judgement; a seed gives the same ones."""
        some = domain.examples(3, seed=1)
        assert len(some) == 3 and domain.verdicts(some) == ["", "", ""]
        again = domain.examples(3, seed=1)
        a, b = domain.encode(model.config, some), domain.encode(model.config, again)
        assert all(torch.equal(a[f], b[f]) for f in a)

    def test_encode_then_decode(self, domain: Domain, model: Model, records: list[Any]) -> None:
        """Nothing is lost, and a record's tensors do not depend on its companions."""
        state = domain.encode(model.config, records)
        assert set(state) == set(model.denoiser.paths)
        assert bool((state.context.lengths > 0).all())
        decoded = domain.decode(model.config, state)
        assert len(decoded) == len(records)
        back = domain.encode(model.config, decoded)
        assert torch.equal(back.context.mask, state.context.mask)
        for f in state:
            assert_close(back[f], state[f], self.record_precision, f)
        alone = domain.encode(model.config, records[1:2])
        sizes = alone.context.mask.shape
        for f, axes in element_axes(model.denoiser.paths, state.context).items():
            part = state[f][1:2]
            for axis in range(1, axes + 1):
                # Of pairs both axes are as long as the one of points.
                part = part.narrow(axis, 0, sizes[min(axis, len(sizes) - 1)])
            assert_close(alone[f], part, 1e-6, f)

    def test_clean_data_is_legal(self, model: Model, clean: State) -> None:
        """Encoded records are what their spaces call a legal value."""
        for f, path in model.denoiser.paths.items():
            assert_close(path.space.project(clean[f], clean.context), clean[f], 1e-5, f)

    def test_write_then_read(self, domain: Domain, model: Model, records: list[Any],
                             tmp_path: Path) -> None:  # fmt: skip
        """Every format gives back every record; the main one everything about it."""
        files = domain.write(records, tmp_path)
        assert files and all(f.is_file() and f.parent == tmp_path for f in files)
        for i, file in enumerate(files):
            dropped: list[InputError] = []
            read = domain.read(file, dropped)
            assert len(read) == len(records) and not dropped, file.name
            if i == 0:
                a, b = (domain.encode(model.config, r) for r in (records, read))
                for f in a:
                    assert_close(b[f], a[f], self.file_precision, f)
                for name, values in a.context.conditions.items():
                    assert_close(b.context.conditions[name], values, 1e-4, name)

    def test_nothing_to_encode(self, domain: Domain, model: Model) -> None:
        """No records are an empty batch, or refused in words."""
        try:
            state = domain.encode(model.config, [])
        except InputError as error:
            assert str(error)
        else:
            assert state.batch_size == 0

    # --- the model --------------------------------------------------------------------------

    def test_training_loss(self, domain: Domain, model: Model, clean: State) -> None:
        """Finite, one a sample, and every parameter learns from it."""
        denoiser = copy.deepcopy(model.denoiser).train()
        assert isinstance(denoiser, NetworkDenoiser)
        objective = domain.objective(model.config)
        draws = Draws(0, torch.arange(clean.batch_size))
        for step in range(4):
            losses = objective(denoiser, clean, draws, step)
            assert losses.total.shape == (clean.batch_size,)
            assert bool(losses.total.isfinite().all())
            losses.total.mean().backward()
        for name, p in denoiser.named_parameters():
            assert p.grad is None or bool(p.grad.isfinite().all()), name
        unused = [n for n, p in denoiser.named_parameters() if p.requires_grad and p.grad is None]
        assert not unused, f"parameters that no loss reaches: {unused}"

    def test_same_input_same_output(self, model: Model, noisy: State) -> None:
        """Bit for bit."""
        state = noisy.to(torch.float32)
        a, b = model.denoiser(state, 0.5), model.denoiser(state, 0.5)
        assert all(torch.equal(a[f], b[f]) for f in state)

    def test_float64_agrees_with_float32(self, model: Model, noisy: State) -> None:
        """And stays float64 all through."""
        double, single = denoise(model, noisy), denoise(model, noisy.to(torch.float32))
        for f in noisy:
            assert double[f].dtype == torch.float64 and single[f].dtype == torch.float32
            assert_close(single[f].double(), double[f], 1e-3, f)

    def test_save_then_load(self, model: Model, noisy: State, tmp_path: Path) -> None:
        """The loaded model answers and samples bit for bit as the one that was saved."""
        again = Model.from_folder(model.save(tmp_path / "model"))
        state = noisy.to(torch.float32)
        a, b = model.denoiser(state, 0.5), again.denoiser(state, 0.5)
        assert all(torch.equal(a[f], b[f]) for f in state)
        assert again.properties == model.properties and again.config == model.config
        settings: dict[str, Any] = {"seed": 3, "sampler": {"steps": 3}}
        first, second = model.sample(3, **settings), again.sample(3, **settings)
        assert first.dropped == second.dropped
        if first.kept:
            x, y = (model.domain.encode(model.config, s.kept) for s in (first, second))
            assert all(torch.equal(x[f], y[f]) for f in x)

    def test_padding_changes_nothing(self, model: Model, noisy: State) -> None:
        """Neither of an estimate nor of a sample."""
        longer, precision = padded(model, noisy, 3), PRECISION[torch.float64]
        for estimate in (denoise, denoise_twice):
            assert_same(model, noisy, estimate(model, longer), estimate(model, noisy), precision)
        draws, denoiser = Draws(2, torch.arange(noisy.batch_size)), double(model)
        for sampler in samplers_of(denoiser):
            a, b = (sampler(denoiser, s.context, draws, dtype=torch.float64).state
                    for s in (noisy, longer))  # fmt: skip
            assert_same(model, a, b, a, precision)

    def test_companions_change_nothing(self, model: Model, noisy: State) -> None:
        """Row i of a batch is what it would be alone."""
        draws, denoiser = Draws(2, torch.arange(noisy.batch_size)), double(model)
        precision, sampler = PRECISION[torch.float64], SAMPLERS[0]
        whole = [estimate(model, noisy) for estimate in (denoise, denoise_twice)]
        whole.append(sampler(denoiser, noisy.context, draws, dtype=torch.float64).state.fields)
        for i in range(noisy.batch_size):
            row = slice(i, i + 1)
            part = noisy.index(row)
            alone = [estimate(model, part) for estimate in (denoise, denoise_twice)]
            sample = sampler(denoiser, part.context, draws.rows(row), dtype=torch.float64).state
            for found, expected in zip([*alone, sample.fields], whole, strict=True):
                of_row = {f: x[row] for f, x in expected.items()}
                assert_same(model, part, found, of_row, precision)

    def test_an_empty_batch(self, model: Model, noisy: State) -> None:
        """Is an empty batch."""
        out = denoise(model, noisy.index(slice(0, 0)))
        assert all(len(out[f]) == 0 for f in noisy)

    def test_times_of_elements(self, model: Model, noisy: State) -> None:
        """Given elements answer with themselves, at equal times all agree, padding is silent."""
        mask = noisy.context.mask
        half = {f: torch.full((noisy.batch_size,), 0.5, dtype=torch.float64) for f in noisy}
        every = {f: t[:, None].expand(mask.shape[:2]) for f, t in half.items()}
        assert_same(model, noisy, denoise(model, noisy, half), denoise(model, noisy, every),
                 PRECISION[torch.float64])  # fmt: skip
        given = {f: p.space.mask(noisy.context) & even(p.space.mask(noisy.context))
                 for f, p in model.denoiser.paths.items()}  # fmt: skip
        state = State(noisy.fields, noisy.context.replace(given=given))
        out = denoise(model, state)
        for f, path in model.denoiser.paths.items():
            known = given[f]
            value = out[f].argmax(-1) if isinstance(path, CategoricalPath) else out[f]
            limit = getattr(path, "classes", None)
            x = noisy[f] if limit is None else noisy[f].clamp(max=limit - 1)
            assert torch.equal(value[known], x[known]), f
        longer = padded(model, state, 3)
        assert_same(model, state, out, denoise(model, longer), PRECISION[torch.float64])

    # --- symmetries -------------------------------------------------------------------------

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
    @pytest.mark.parametrize("symmetry", ["rotation", "reflection", "permutation"])
    def test_symmetry(self, model: Model, noisy: State, symmetry: str, dtype: torch.dtype) -> None:
        """Denoising and sampling commute with the operation."""
        self._declared(symmetry)
        state, paths = noisy.to(dtype), model.denoiser.paths
        axes, move = element_axes(paths, noisy.context), self._move(symmetry, noisy)
        moved = State(
            {f: move.field(f, x, axes[f], self.vectors) for f, x in state.fields.items()},
            state.context,
        )
        first = Prediction(denoise(model, state))
        for t in (None, {f: 0.2 + 0.1 * i for i, f in enumerate(state)}):
            out = denoise(model, state, t, first)
            back = Prediction({f: move.field(f, first[f], axes[f], self.vectors) for f in state})
            other = denoise(model, moved, t, back)
            for f in state:
                expected = move.field(f, out[f], axes[f], self.vectors)
                real = paths[f].space.expand(paths[f].space.mask(state.context), expected)
                assert_close(
                    other[f] * real, expected * real, PRECISION[dtype], f"{symmetry} of {f}"
                )
        draws = Draws(5, torch.arange(state.batch_size))
        moved_draws = MovedDraws(draws, move, paths, state.context, self.vectors)
        denoiser = double(model) if dtype == torch.float64 else model.denoiser
        for sampler in samplers_of(denoiser):
            end = sampler(denoiser, state.context, draws, dtype=dtype).state
            after = sampler(denoiser, state.context, moved_draws, dtype=dtype).state
            for f in state:
                expected = move.field(f, end[f], axes[f], self.vectors)
                assert_close(after[f], expected, PRECISION[dtype], f"{symmetry} of sampled {f}")

    def test_translation(self, model: Model, noisy: State) -> None:
        """A shifted state has the same estimate, up to the shift that its space takes away."""
        self._declared("translation")
        shift = torch.tensor([1.5, -0.7, 0.4], dtype=torch.float64)
        changes = {f: noisy[f] + shift[: noisy[f].shape[-1]] for f in self.vectors}
        for f in changes:
            changes[f] = changes[f] * noisy.context.mask[..., None]
        a, b = denoise(model, noisy), denoise(model, noisy.replace(**changes))
        for f, path in model.denoiser.paths.items():
            if isinstance(path, GaussianPath):
                a[f], b[f] = (path.space.project(x[f], noisy.context) for x in (a, b))
        assert_same(model, noisy, a, b, PRECISION[torch.float64])

    # --- sampling ---------------------------------------------------------------------------

    def test_sizes_and_targets(self, domain: Domain, model: Model) -> None:
        """Sizes are positive, wishes are kept, row i depends on (seed, i) alone."""
        draws = Draws(1, torch.arange(40))
        wanted = {}
        for c in self.conditions[:1]:
            known = model.reference[c].sort().values
            wanted[c] = Target(float(known[len(known) // 5]), float(known[len(known) // 2]))
        for targets in ({}, wanted):
            context = domain.context(model.config, model.reference, draws, targets)
            assert len(context) == 40 and bool((context.lengths > 0).all())
            for name, values in context.conditions.items():
                if name in targets:
                    assert bool((values >= targets[name].low - 1e-5).all())
                    assert bool((values <= targets[name].high + 1e-5).all())
                else:
                    assert bool(values.isnan().all())
            rows = torch.tensor([31, 4])
            part = domain.context(model.config, model.reference, draws.rows(rows), targets)
            assert torch.equal(part.lengths, context.lengths[rows])
            for name, values in context.conditions.items():
                torch.testing.assert_close(part.conditions[name], values[rows], equal_nan=True)

    def test_none_are_refused(self, model: Model) -> None:
        """Zero samples is a mistake, and said to be one."""
        with pytest.raises(InputError, match="at least 1"):
            model.sample(0)

    def test_an_unknown_target_is_refused(self, model: Model) -> None:
        """With the list of those there are."""
        with pytest.raises(InputError, match="no-such-property"):
            model.sample(1, target={"no-such-property": 1.0})

    def test_shards_are_the_whole(self, domain: Domain, model: Model) -> None:
        """Samples 2 and 3 are the same in any run with the same seed."""
        settings: dict[str, Any] = {"seed": 7, "sampler": {"steps": 3}}
        whole = model.sample(4, batch_size=3, **settings)
        shard = model.sample(2, first=2, **settings)
        pairs = zip(whole.records[2:], shard.records, strict=True)
        both = [(a, b) for a, b in pairs if a is not None and b is not None]
        assert [a is None for a in whole.records[2:]] == [b is None for b in shard.records]
        for a, b in both:
            x, y = (domain.encode(model.config, [r]) for r in (a, b))
            for f in x:
                assert_close(y[f], x[f], PRECISION[torch.float32], f)

    # --- judging ----------------------------------------------------------------------------

    def test_garbage_is_judged(self, domain: Domain, model: Model, tmp_path: Path,
                               monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
        """What an untrained model makes, and one element alone, is described and drawn."""
        monkeypatch.setenv("SCIFLOW_DATA", str(tmp_path / "no data"))
        sampler = replace(model.sampler, steps=2)
        one = one_element(model)
        alone = sampler(model.denoiser, one, Draws(0, [0])).state
        garbage = [*model.sample(3, sampler={"steps": 2}).kept, *domain.decode(model.config, alone)]
        assert garbage and len(domain.verdicts(garbage)) == len(garbage)
        assert all(isinstance(v, str) for v in domain.verdicts(garbage))
        columns = domain.describe(garbage)
        assert len(columns) == len(garbage) and len({tuple(c) for c in columns}) == 1
        metrics = domain.evaluate(garbage)
        assert metrics and all(isinstance(v, int | float) for v in metrics.values())
        assert all("<svg" in domain.picture(r) for r in garbage)
        assert isinstance(domain.viewer(garbage), str)
        assert all(svg.startswith("<svg") for svg, _ in domain.plots(garbage))

    def test_examples_score_well(self, domain: Domain, records: list[Any], tmp_path: Path,
                                 monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
        """Metrics of sound records are numbers, and identified."""
        monkeypatch.setenv("SCIFLOW_DATA", str(tmp_path / "no data"))
        assert not any(domain.verdicts(records))
        metrics = domain.evaluate(records)
        assert metrics and all(math.isfinite(v) for v in metrics.values())

    def test_oracle_failures_are_answers(self, domain: Domain, model: Model,
                                         records: list[Any]) -> None:  # fmt: skip
        """One answer a record, in order: numbers, or why not."""
        names = list(self.conditions)[:1] or list(domain.properties)[:1]
        one = domain.decode(
            model.config, replace(model.sampler, steps=2)(model.denoiser, one_element(model),
                                                          Draws(0, [0])).state)  # fmt: skip
        told: list[tuple[int, int]] = []
        answers = domain.oracle([*records[:2], *one], names, jobs=1,
                                progress=lambda i, n: told.append((i, n)))  # fmt: skip
        assert len(answers) == 3 and told[-1] == (3, 3)
        for answer in answers:
            assert bool(answer.failure) != (set(names) <= set(answer.values))
            assert answer.failure or all(math.isfinite(answer.values[k]) for k in names)
        assert not answers[0].failure and not answers[1].failure

    # --- helpers ----------------------------------------------------------------------------

    def _declared(self, symmetry: str) -> None:
        if symmetry not in self.symmetries:
            pytest.skip(f"{self.domain_name} does not declare {symmetry} a symmetry")

    def _move(self, symmetry: str, state: State) -> Move:
        g = torch.Generator().manual_seed(11)
        if symmetry == "permutation":
            mask = state.context.mask
            keys = torch.rand(mask.shape, generator=g)
            return Move(order=torch.where(mask, keys, 2 + torch.arange(mask.shape[1])).argsort(1))
        d = state[self.vectors[0]].shape[-1]
        q = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64))[0]
        sign = -1.0 if symmetry == "reflection" else 1.0
        q[:, 0] *= sign * torch.linalg.det(q).sign()
        return Move(matrix=q)
