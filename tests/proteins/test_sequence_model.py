"""Models of sequences: their data, their network, and bounds against what is known exactly."""

from __future__ import annotations

import gzip
import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from domains.proteins.adapter import Proteins
from domains.proteins.chain import ALPHABET
from domains.proteins.letters import FIELD
from domains.proteins.perplexity import baselines, perplexity
from domains.proteins.residue_data import (
    SequenceTable,
    from_fasta,
    held_out_sequences,
    side_of,
    uniref,
)
from domains.proteins.sequence_encoding import encode, prepare, template
from domains.proteins.sequence_networks import (
    SEQUENCE_PRESETS,
    content_config,
    content_predictor,
    sequence_denoiser,
    sequence_paths,
)
from sciflow.data import shared_data
from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.guidance import ClassifierGuidance
from sciflow.model import Model
from sciflow.networks.tokens import TokenTransformer, rotary, turned
from sciflow.predictors import PropertyPredictor
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.state import Context, State, Times

SETTINGS = SEQUENCE_PRESETS["sequences"]
SMALL = {"dim": 16, "depth": 2, "heads": 2, "window": 2}
needs_data = pytest.mark.skipif(shared_data() is None, reason="the shared data are not here")


def config(**changes: Any) -> dict[str, Any]:
    base = {"encoding": {"fields": [FIELD]}, "conditions": {}, "informed": [], **SETTINGS}
    return {**base, "network": SMALL, **changes}


class Exact(Denoiser):
    """E[x_0 | x_t] of a distribution over a handful of sequences of one length."""

    def __init__(self, law: Mapping[str, float]):
        super().__init__()
        self.paths = sequence_paths(config())
        self.words = torch.tensor([[ALPHABET.index(c) for c in word] for word in law])
        self.p = torch.tensor(list(law.values()), dtype=torch.float64)

    def forward(self, state: State, t: Times | float, previous: Prediction | None = None):
        x = state[FIELD][:, None]
        fits = ((x == self.words) | (x == len(ALPHABET))).all(-1) * self.p
        weight = fits / fits.sum(1, keepdim=True)
        one_hot = torch.nn.functional.one_hot(self.words, len(ALPHABET)).double()
        p = torch.einsum("bw,wnk->bnk", weight, one_hot)
        return Prediction({FIELD: p.clamp(min=1e-300).log()})


class TestPerplexity:
    LAW = {"MAC": 0.5, "MCA": 0.2, "WAC": 0.2, "MAA": 0.1}  # noqa: RUF012

    def test_of_an_enumerable_law(self):
        """Where the conditionals are those of one joint law the bound is its log-likelihood."""
        copies = 64
        found = perplexity(Exact(self.LAW), [*self.LAW] * copies, strata=30, batch_size=256)
        logs = [math.log(p) for p in self.LAW.values()]
        exact = math.exp(-sum(logs) / (3 * len(logs)))
        assert found.residues == 3 * copies * len(logs)
        assert found.error < 0.01 * exact
        assert abs(found.value - exact) < 4 * found.error
        each = np.reshape(found.per_sequence, (copies, -1)).mean(0)
        assert each == pytest.approx(logs, abs=0.06)

    def test_of_letters_without_memory(self):
        """Nothing is random there: of one letter it is 1/p, of all at random 20."""
        law = dict.fromkeys((a + b for a, b in itertools.product(ALPHABET, repeat=2)), 1 / 400)
        found = perplexity(Exact(law), ["AC", "YY"], strata=3)
        assert found.value == pytest.approx(20) and found.error == pytest.approx(0, abs=1e-9)
        skewed = {a + b: p * q for (a, p), (b, q) in
                  itertools.product([("A", 0.8), ("C", 0.2)], repeat=2)}  # fmt: skip
        assert perplexity(Exact(skewed), ["CC"], strata=2).value == pytest.approx(5)

    def test_no_batch_nor_order_changes_it(self):
        denoiser = sequence_denoiser(config()).eval()
        texts = ["MKTAYIAKQR", "ACDEF", "WWYVMKLLAG", "GG"]
        whole = perplexity(denoiser, texts, strata=3).per_sequence
        single = perplexity(denoiser, texts, strata=3, batch_size=1).per_sequence
        assert single == pytest.approx(whole, rel=1e-5)

    def test_nothing_to_predict(self):
        with pytest.raises(InputError, match="at least one"):
            perplexity(Exact(self.LAW), [])
        with pytest.raises(InputError, match="none of the twenty"):
            perplexity(Exact(self.LAW), ["AXB"])

    def test_n_grams_know_the_start_or_not(self):
        """Sequences that begin with M and then hold one letter: only the start's M is a choice."""
        found = baselines(["MA" + "A" * 20] * 400, ["MA" + "A" * 20])
        assert found["bigram"] < found["bigram_no_start"] < found["unigram"]
        assert found["bigram"] == pytest.approx(1, abs=0.03)


@pytest.fixture(scope="module")
def table() -> SequenceTable:
    return uniref()


class TestData:
    FASTA = ">one\nMKTAYIAK\nQRQ\n>two\nMKXA\n>again\nMKTAYIAKQRQ\n>three\nACDE*\n>four\nAC1\n"

    def test_a_users_file(self, tmp_path: Path, caplog: pytest.LogCaptureFixture):
        """Every sequence that is left out is counted, and the first reason told."""
        path = tmp_path / "own.fa.gz"
        path.write_bytes(gzip.compress(self.FASTA.encode()))
        table = Proteins().dataset(path)
        assert table.sequences == ("MKTAYIAKQRQ", "ACDE") and table.names == ("one", "three")
        assert "3 sequences left out" in caplog.text

    def test_nothing_usable(self, tmp_path: Path):
        path = tmp_path / "own.fasta"
        path.write_text(">a\nMXX\n")
        with pytest.raises(InputError, match="no usable sequence"):
            from_fasta(path)

    def test_sides_are_of_the_letters_alone(self):
        rng = np.random.default_rng(0)
        texts = ["".join(rng.choice([*ALPHABET], 30)) for _ in range(4000)]
        sides = [side_of(text) for text in texts]
        assert sides == [side_of(text) for text in texts]
        share = {side: sides.count(side) / len(sides) for side in ("train", "valid", "test")}
        assert share["test"] == pytest.approx(0.1, abs=0.02)
        assert share["valid"] == pytest.approx(0.025, abs=0.01)

    def test_structures_are_asked_for_by_name(self, tmp_path: Path):
        path = tmp_path / "own.fasta"
        path.write_text("".join(f">{i}\n{'ACDEFGHIKL' * (4 + i)}\n" for i in range(12)))
        domain = Proteins()
        with pytest.raises(InputError, match=r"without structures.*sequences"):
            domain.prepare(domain.dataset(path), "frames", [])
        with pytest.raises(InputError, match="without 'helix'"):
            domain.prepare(domain.dataset(path), "sequences", ["helix"])

    @needs_data
    def test_uniref(self, table: SequenceTable):
        assert len(table) == len(set(table.sequences)) == 31_154
        assert all(60 <= len(s) <= 160 and not set(s) - set(ALPHABET) for s in table.sequences)
        test = {c.sequence for c in held_out_sequences(200)}
        assert len(test) == 200 and not test & set(table.part("train").sequences)
        config, data, valid = prepare(table, SETTINGS, [])
        assert len(data) + len(valid) + len(table.part("test")) == len(table)
        row = data.collate(torch.tensor([5]))
        letters = "".join(ALPHABET[i] for i in row[FIELD][0].tolist())
        assert letters == table.part("train").sequences[5]
        assert config["conditions"] == {}

    @needs_data
    def test_n_grams_of_uniref(self, table: SequenceTable):
        """The figures that the documentation quotes."""
        found = baselines(table.part("train").sequences, table.part("test").sequences)
        expected = {"unigram": 18.10, "bigram": 17.44, "trigram": 17.31, "bigram_no_start": 17.96}
        assert {k: found[k] for k in expected} == pytest.approx(expected, abs=0.01)


class TestNetwork:
    def test_attention_sees_distances_alone(self):
        """⟨R_i q, R_j k⟩ = ⟨R_{i+s} q, R_{j+s} k⟩, and a turn keeps lengths."""
        q, k = torch.randn(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        places = turned(torch.stack((q, k))[:, None, None].expand(2, 1, 12, 8), rotary(12, 8, q))
        a, b = places[:, 0]
        products = a @ b.mT
        for shift in (1, 4):
            assert torch.allclose(products[shift:, shift:], products[:-shift, :-shift])
        assert not torch.allclose(products[0], products[1])
        assert torch.allclose(a.norm(dim=-1), q.norm().expand(12))

    def test_weights_of_symbols_are_symbols(self):
        network = TokenTransformer((FIELD, 21, 20), {}, **SMALL)
        x = torch.arange(14).view(2, 7)
        mask = torch.arange(7) < torch.tensor([[7], [4]])
        weights = torch.nn.functional.one_hot(x, 21).float()
        a, b = (network({FIELD: y}, {}, Context(mask), None)[FIELD] for y in (x, weights))
        assert torch.allclose(a, b, atol=1e-6)

    def test_the_window_marks_the_ends(self):
        """Without attention the same letters answer otherwise at an end, and alike inside."""
        network = TokenTransformer((FIELD, 21, 20), {}, dim=16, depth=0, heads=2, window=2)
        y = network({FIELD: torch.full((1, 9), 3)}, {}, Context(torch.ones(1, 9) > 0), None)
        y = y[FIELD][0]
        assert torch.allclose(y[3], y[4]) and not torch.allclose(y[0], y[4])
        assert not torch.allclose(y[8], y[0])

    def test_it_learns_words(self):
        """Sixty steps teach that W follows M, which letters' frequencies cannot tell."""
        torch.manual_seed(0)
        network = TokenTransformer((FIELD, 21, 20), {}, **SMALL)
        optimizer = torch.optim.Adam(network.parameters(), 1e-2)
        rng = np.random.default_rng(0)
        m, w = ALPHABET.index("M"), ALPHABET.index("W")
        for _ in range(60):
            x0 = torch.from_numpy(rng.integers(0, 10, (16, 12)))
            at = torch.from_numpy(rng.integers(0, 11, 16))
            x0[range(16), at], x0[range(16), at + 1] = m, w
            x = x0.clone()
            x[range(16), at + 1] = 20
            out = network({FIELD: x}, {}, Context(torch.ones(16, 12) > 0), None)[FIELD]
            loss = torch.nn.functional.cross_entropy(out[range(16), at + 1], x0[range(16), at + 1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert loss.item() < 0.1


class TestSampling:
    def test_an_exact_denoiser_gives_its_law(self):
        """With a call for every residue the samples are distributed as the law is."""
        law, n = TestPerplexity.LAW, 1500
        sampler = Sampler(steps=60, grid="time", greedy=False)
        context = Context(torch.ones(n, 3, dtype=torch.bool))
        state = sampler(Exact(law), context, Draws(0, torch.arange(n))).state
        words = ["".join(ALPHABET[i] for i in row) for row in state[FIELD].tolist()]
        for word, p in law.items():
            sd = math.sqrt(p * (1 - p) / n)
            assert words.count(word) / n == pytest.approx(p, abs=4 * sd + 0.01)
        # Two residues found in one of the 60 intervals do not know of each other.
        assert sum(words.count(word) for word in law) > 0.97 * n

    def test_given_residues_stay(self):
        """And what is found fits them: after W the law has one word."""
        row = template("W??", 50)
        sampler = Sampler(steps=12, grid="time", greedy=False)
        given = {FIELD: row[FIELD]}
        state = sampler(Exact(TestPerplexity.LAW), row.context, Draws(1, torch.arange(50)), given)
        expected = [ALPHABET.index(c) for c in "WAC"]
        assert state.state[FIELD].tolist() == [expected] * 50

    def test_a_template_by_name(self):
        """As the command line asks for it; a model of backbones, or a length, is refused."""
        domain = Proteins()
        full = config(domain="proteins", dataset="")
        reference = {"lengths": torch.tensor([60, 70])}
        model = Model(domain, domain.denoiser(full), full, reference)
        given = [True, True, False, False, True, False, False, False]
        made = model.sample(4, sampler={"steps": 5}, task={"template": "MK??W???"})
        for chain in made.kept:
            assert len(chain) == 8 and chain.sequence[:2] + chain.sequence[4] == "MKW"
            assert chain.given is not None and chain.given.tolist() == given
        assert len({chain.sequence for chain in made.kept}) == 4
        again = model.sample(2, first=2, sampler={"steps": 5}, task={"template": "MK??W???"})
        assert [c.sequence for c in again.kept] == [c.sequence for c in made.kept[2:]]
        with pytest.raises(InputError, match="leave --length out"):
            model.sample(1, {"length": 9}, task={"template": "MK?"})
        with pytest.raises(InputError, match="makes sequences"):
            model.sample(1, task={"motif": "a.pdb", "contig": "3/A1-2/3"})

    def test_templates(self):
        row = template("mk?x. C", 2)
        assert row[FIELD].tolist() == [[10, 8, 20, 20, 20, 1]] * 2
        assert row.context.given[FIELD].tolist() == [[True, True, False, False, False, True]] * 2
        with pytest.raises(InputError, match="left open"):
            template("MKT")
        with pytest.raises(InputError, match="'B' is none of the twenty"):
            template("MB?")

    def test_encode_needs_known_residues(self):
        chain = Proteins().examples(1)[0]
        with pytest.raises(InputError, match="'X' is none"):
            encode([chain.replace(sequence="X" * len(chain))])


class TestContent:
    STATISTICS = {"helix": [0.4, 0.2], "strand": [0.2, 0.15]}  # noqa: RUF012

    def predictor(self) -> PropertyPredictor:
        full = content_config({**config(domain="proteins", dataset=""), "labels": self.STATISTICS})
        torch.manual_seed(0)
        return content_predictor({**full, "network": SMALL}).eval()

    def test_contents_are_means_of_residues(self):
        predictor = self.predictor()
        state = encode(Proteins().examples(2))
        p, _ = predictor.network.probabilities(state[FIELD], state.context)
        found = predictor(state, 1e-3)
        for k, name in enumerate(self.STATISTICS):
            for i, n in enumerate(state.context.lengths.tolist()):
                assert float(found[name][0][i]) == pytest.approx(
                    float(p[i, :n, k].mean()), abs=1e-5
                )

    def test_data_without_labels_are_refused(self):
        with pytest.raises(InputError, match="--data backbones"):
            content_config(config(domain="proteins", dataset=""))

    def test_guidance_moves_what_is_asked_for(self):
        """Of a predictor that takes alanine for helix and a denoiser of uniform letters."""

        class Alanine(torch.nn.Module):
            def forward(self, inputs: dict[str, Tensor], levels: Any, context: Any, previous: Any):
                x = inputs[FIELD]
                weights = torch.nn.functional.one_hot(x, 21).float() if x.ndim == 2 else x
                content = weights[..., 0].mean(1) + weights[..., 20].mean(1) / 20
                m = (content - 0.4) / 0.2
                return {"helix": torch.stack((m, torch.full_like(m, -4.0)), -1)}

        paths = sequence_paths(config())

        class Uniform(Denoiser):
            def forward(self, state: State, t: Times | float, previous: Any = None):
                return Prediction({FIELD: torch.zeros(*state[FIELD].shape, 20)})

        uniform = Uniform()
        uniform.paths = paths
        predictor = PropertyPredictor(Alanine(), paths, {"helix": (0.4, 0.2)})  # type: ignore[arg-type]
        context = Context(torch.ones(40, 50) > 0, {"helix": torch.full((40,), 0.5)})
        sampler = Sampler(steps=50, grid="time", greedy=False)

        def share(weight: float) -> float:
            guided = ClassifierGuidance(uniform, predictor, tokens=weight)
            state = sampler(guided, context, Draws(0, torch.arange(40))).state
            return float((state[FIELD] == 0).double().mean())

        assert share(0.0) == pytest.approx(0.05, abs=0.02)
        assert share(1.0) == pytest.approx(0.5, abs=0.06)
