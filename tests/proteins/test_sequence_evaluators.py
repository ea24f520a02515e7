"""N-gram perplexity, composition and repeats, against sums done by hand."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.proteins.chain import ALPHABET
from domains.proteins.evaluators.sequences import (
    NGram,
    composition,
    composition_distance,
    repeats,
    sequence_metrics,
)
from domains.proteins.io import read_fasta
from sciflow.data import shared_data

TRAIN = ["MAAC", "MACA", "MCAX", "CAAA"]


def by_hand(sequence: str, order: int, kappa: float, start: bool) -> list[float]:
    """Probabilities straight from the recursion, by dictionaries of strings."""
    pad = "^" * (order - 1) if start else ""
    count: Counter[str] = Counter()
    for text in TRAIN:
        text = "." + pad + text
        for n in range(1, order + 1):
            for i in range(len(text) - n + 1):
                word = text[i : i + n]
                if word[-1] in ALPHABET and not set(word) & set(".X"):
                    count[word] += 1

    def p(letter: str, memory: str) -> float:
        lower = p(letter, memory[1:]) if memory else 1 / 20
        if not memory:
            total = sum(count[a] for a in ALPHABET)
        else:
            total = sum(count[memory + a] for a in ALPHABET)
        return (count[memory + letter] + kappa * lower) / (total + kappa)

    values = []
    text = pad + sequence
    for i in range(len(pad), len(text)):
        memory = text[max(0, i - order + 1) : i]
        memory = memory[memory.rfind("X") + 1 :]
        if text[i] != "X":
            values.append(p(text[i], memory))
    return values


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("sequence", ["MACAAC", "ACXCA", "W", "XX"])
def test_probabilities_are_those_of_the_recursion(order, start, sequence):
    model = NGram(order, 2.0, start).fit(TRAIN)
    ours = np.exp(model.log_likelihoods([sequence]))
    assert ours == pytest.approx(by_hand(sequence, order, 2.0, start))
    both = model.log_likelihoods([sequence, "MAC"])
    assert both == pytest.approx(np.log([*ours, *by_hand("MAC", order, 2.0, start)]))


def test_probabilities_sum_to_one():
    for table in NGram(3, 5.0).fit(TRAIN).tables:
        assert table.sum(-1) == pytest.approx(np.ones(table.shape[:-1]))


def test_perplexity_of_what_is_known():
    assert NGram(1).fit([]).perplexity(["ACDEF"]) == pytest.approx(20)
    alternating = ["AC" * 50] * 20
    assert NGram(2, 1e-6).fit(alternating).perplexity(alternating) == pytest.approx(1, abs=1e-3)
    assert NGram(1, 1e-6).fit(alternating).perplexity(alternating) == pytest.approx(2)
    assert math.isnan(NGram(2).fit(TRAIN).perplexity(["XX", ""]))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(ALPHABET + "X", max_size=30), max_size=8))
def test_metrics_of_any_sequences_are_finite(sequences):
    values = sequence_metrics(sequences, NGram(2).fit(TRAIN), TRAIN)
    assert all(math.isfinite(v) for v in values.values())
    if values:
        assert 0 <= values["sequence_entropy"] <= math.log2(20) + 1e-9
        assert 0 <= values["composition_js"] <= 1 + 1e-9


def test_composition_and_repeats():
    assert composition(["AAC", "XD"]) == pytest.approx([0.5, 0.25, 0.25] + [0] * 17)
    assert composition_distance(["AC"], ["CA"]) == pytest.approx(0)
    assert composition_distance(["AA"], ["CC"]) == pytest.approx(1)
    assert repeats("AAAACCDDDDD") == pytest.approx(9 / 11)
    assert repeats("ACAC") == repeats("") == 0


@pytest.mark.skipif(shared_data() is None, reason="the shared data are not on this machine")
def test_natural_sequences_have_the_measured_perplexity():
    """On a held-out tenth of UniRef sequences of 60 to 160 residues; unigram 18.11 (notes)."""
    path = shared_data() / "proteins" / "sequences" / "uniref50_reviewed_len60-160.fasta.gz"
    sequences = [s for _, s in read_fasta(path) if 60 <= len(s) <= 160 and "X" not in s]
    assert (len(sequences), sum(map(len, sequences))) == (31_154, 3_539_618)
    held = sequences[::10]
    train = [s for i, s in enumerate(sequences) if i % 10]
    assert NGram(1).fit(train).perplexity(held) == pytest.approx(18.11, abs=0.05)
    assert NGram(2, start=False).fit(train).perplexity(held) == pytest.approx(17.95, abs=0.1)
    assert NGram(2).fit(train).perplexity(held) == pytest.approx(17.45, abs=0.1)
    assert sequence_metrics(held)["sequence_entropy"] == pytest.approx(math.log2(18.11), abs=0.01)
