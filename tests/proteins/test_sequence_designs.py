"""What is said of designed sequences, against counts done by hand."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from domains.proteins.adapter import Proteins
from domains.proteins.chain import ALPHABET
from domains.proteins.datasets import backbones
from domains.proteins.evaluators.designs import (
    Reference,
    composition_kl,
    design_metrics,
    design_rows,
    gor_of_data,
    kmers,
    low_complexity,
)
from domains.proteins.evaluators.gor import GOR
from domains.proteins.evaluators.secondary_structure import three_states
from domains.proteins.residue_data import are_sequences, sequence_chain
from domains.proteins.table import split
from sciflow.data import shared_data
from sciflow.errors import InputError

needs_data = pytest.mark.skipif(shared_data() is None, reason="the shared data are not here")


def test_low_complexity_is_of_windows():
    """Six pairs of letters hold 2.58 bits, three fours 1.58; shorter ones have no window."""
    assert low_complexity("AACCDDEEFFGG") == 0.0
    assert low_complexity("AAAACCCCDDDD") == 1.0
    assert low_complexity("AAAA") == 0.0
    assert low_complexity(ALPHABET * 3) == 0.0
    # A window with seven G holds 1.95 bits, with six 2.29: five letters count on either side.
    flank = "ACDEFHIKLM"
    assert low_complexity(flank + "G" * 12 + flank) == pytest.approx(22 / 32)


def test_composition_kl_of_two_letters():
    p, q = np.zeros(20), np.zeros(20)
    p[:2], q[:2] = (0.75, 0.25), (0.5, 0.5)
    exact = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert composition_kl(p, q) == pytest.approx(exact)
    assert composition_kl(p, p) == 0
    q[1], q[2] = 0, 0.5
    assert composition_kl(p, q) == math.inf


def test_words_are_distinct_numbers():
    words = ["".join(w) for w in product("ACWY", repeat=3)]
    assert len({int(kmers(w, 3)[0]) for w in words}) == 64
    assert len(kmers("ACXDEFG", 3)) == 2 and len(kmers("AC")) == 0


def test_novelty_counts_words_that_are_known():
    known = Reference.of(["ACDEFGHIKL", "MNPQRSTVWY"])
    assert known.novelty("ACDEFGHIKL") == 0
    assert known.novelty("YYYYYYYY") == 1
    assert known.novelty("ACDEFGY") == pytest.approx(1 / 2)
    assert math.isnan(known.novelty("ACD"))


class TestGor:
    def test_scores_are_counts(self):
        """Every term from its definition, on two short chains."""
        sequences, states = ["ACAC", "CCA"], ["HECH", "HHE"]
        gor = GOR(kappa=2.0).fit(sequences, states)

        def log_p(letter: str, m: int, state: str, centre: str) -> float:
            pairs = [
                (s[i], t[i], s[i + m])
                for s, t in zip(sequences, states, strict=True)
                for i in range(len(s)) if 0 <= i + m < len(s)
            ]  # fmt: skip
            of_state = [b for _, s, b in pairs if s == state]
            single = (of_state.count(letter) + 1) / (len(of_state) + 20)
            of_both = [b for a, s, b in pairs if s == state and a == centre]
            return math.log((of_both.count(letter) + 2 * single) / (len(of_both) + 2))

        own = [(a, s) for q, t in zip(sequences, states, strict=True)
               for a, s in zip(q, t, strict=True)]  # fmt: skip
        text = "CAW"
        scores = gor.scores(text)
        for i, centre in enumerate(text):
            for k, state in enumerate("HEC"):
                total = sum(a == centre for a, _ in own) + 3
                expected = math.log((own.count((centre, state)) + 1) / total)
                for m in range(-8, 9):
                    if m and 0 <= i + m < len(text):
                        expected += log_p(text[i + m], m, state, centre)
                assert scores[i, k] == pytest.approx(expected), (i, state)

    def test_unknown_residues_say_nothing(self):
        gor = GOR().fit(["ACAC"], ["HEHE"])
        assert gor.predict("XXX") == "CCC"
        assert gor.scores("AXA")[1].tolist() == [0, 0, 0]
        assert gor.predict("") == "" and GOR().fit([], []).predict("A") in ("H", "E", "C")

    @needs_data
    def test_on_chains_that_it_did_not_count(self):
        """About what the method's authors and others report: 60 of 100 residues."""
        table = backbones()
        sides = split(table)
        gor = GOR.of_table(table.subset(sides["train"]))
        test = table.subset(sides["test"])
        right = total = 0
        found, true = [], []
        for i, chain in enumerate(test):
            codes = test.dssp[test.offsets[i] : test.offsets[i + 1]]
            states = three_states("".join(" BEGHIST"[c] for c in codes))
            guess = gor.predict(chain.sequence)
            right += sum(a == b for a, b in zip(states, guess, strict=True))
            total += len(states)
            found.append(guess.count("H") / len(guess))
            true.append(states.count("H") / len(states))
        assert right / total > 0.60
        assert np.corrcoef(found, true)[0, 1] > 0.75


class TestRecords:
    CHAINS = [sequence_chain("MKTAYIAKQRQISFVKSHFSRQ", "one"), sequence_chain("ACDEFGHIKL", "two")]  # noqa: RUF012

    def test_a_sequence_is_no_broken_backbone(self):
        domain = Proteins()
        assert are_sequences(self.CHAINS) and not are_sequences([])
        assert not are_sequences([sequence_chain("XXXX")])
        assert not are_sequences(domain.examples(1))
        open_ = sequence_chain("MKXX")
        assert domain.verdicts([*self.CHAINS, open_]) == ["", "", "2 residues are not designed"]

    def test_files(self, tmp_path: Path):
        files = Proteins().write(self.CHAINS, tmp_path)
        assert [f.name for f in files] == ["sequences.fasta"]
        read = Proteins().read(files[0])
        assert [(c.name, c.sequence) for c in read] == [(c.name, c.sequence) for c in self.CHAINS]

    def test_rows_and_metrics(self):
        rows = design_rows(self.CHAINS)
        assert [row["length"] for row in rows] == [22, 10]
        values = design_metrics(self.CHAINS)
        assert values["sequences"] == 2 and values["length"] == 16
        assert values["sequence_unique"] == 1
        assert design_metrics([]) == {}

    def test_an_oracle_of_structures_says_no(self):
        answers = Proteins().oracle(self.CHAINS, ["rg_ratio"])
        assert all("rg_ratio" in a.failure and not a.values for a in answers)
        assert Proteins().oracle(self.CHAINS, ["length"])[0].values == {"length": 22}

    def test_data_that_appear_later_are_found(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ):
        """What was not there once is asked for again where the folder is another."""
        monkeypatch.setenv("SCIFLOW_DATA", str(tmp_path))
        without = Proteins().oracle(self.CHAINS, ["helix", "rg_ratio"])
        assert all("backbones.npz" in a.failure for a in without)
        monkeypatch.undo()
        if gor_of_data() is None:
            pytest.skip("needs shared/data")
        assert not Proteins().oracle(self.CHAINS, ["helix"])[0].failure

    def test_pictures(self):
        domain = Proteins()
        svg = domain.picture(self.CHAINS[0])
        assert svg.count("<text") == 22 and domain.viewer(self.CHAINS) == ""
        assert domain.plots(self.CHAINS)[0][0].count("<rect") == 20

    def test_residues_outside_the_alphabet_are_told(self, tmp_path: Path):
        path = tmp_path / "a.fasta"
        path.write_text(">a\nM1K\n>b\nMKL\n")
        dropped: list[InputError] = []
        assert len(Proteins().read(path, dropped)) == 1
        assert dropped[0].line == 1 and "'1'" in dropped[0].reason
