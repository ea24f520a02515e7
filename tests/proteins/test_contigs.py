"""Contigs: the syntax, what is refused and why, lengths drawn evenly, the published benchmarks."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from domains.proteins.chain import Chain
from domains.proteins.contigs import parse_contig, parse_length
from domains.proteins.motifs import motif_problem, motifbench, rfdiffusion_benchmark
from domains.proteins.pdb import write_pdb
from sciflow.data import shared_data
from sciflow.errors import InputError
from sciflow.random import Draws

needs_data = pytest.mark.skipif(
    shared_data() is None, reason="the shared data are not on this machine"
)


def straight(ids, chain_id="A", sequence="") -> Chain:
    x = np.array([[0.0, 0, 0], [1.2, 0.7, 0], [2.5, 0, 0], [2.6, -1.2, 0]])
    x = x + np.arange(len(ids))[:, None, None] * [3.8, 0, 0]
    return Chain(x, sequence, residue_ids=tuple(map(str, ids)), chain_id=chain_id)


A = straight([*range(20, 53), "52A", "52B", *range(53, 61)])
B = straight([-2, -1, 0, 1, 2, 5, 6], "B", "ACDEFGH")
CHAINS = [A, B]


def test_the_example_of_everyone():
    contig = parse_contig("10-40/A25-46/10-40", CHAINS)
    assert contig.total == (42, 102)
    assert contig.motif.residue_ids == tuple(map(str, range(25, 47)))
    for layout in contig.sample(Draws(0, range(50))):
        first, motif, last = layout.lengths
        assert motif == 22 and 10 <= first <= 40 and 10 <= last <= 40
        assert layout.places.tolist() == list(range(first, first + 22))
        assert str(layout) == f"{first}/A25-46/{last}"
        assert len(layout) == first + 22 + last
        # What is drawn is itself a contig, and gives itself.
        assert parse_contig(str(layout), CHAINS).sample(Draws(9, [3]))[0].lengths == layout.lengths


def test_all_the_forms():
    contig = parse_contig("5,B-2-0,0-3,A52A-53,A60,7", CHAINS)
    assert [s.low for s in contig.segments] == [5, 3, 0, 3, 1, 7]
    assert contig.motif.sequence == "ACD" + "X" * 4
    assert contig.motif.residue_ids == ("-2", "-1", "0", "52A", "52B", "53", "60")
    assert contig.motif.joints.tolist() == [False, False, True, False, False, True]
    two = parse_contig("A20-22/0 4-6/B5-B6", CHAINS)
    layout = two.sample(Draws(0, [0]))[0]
    n = layout.lengths[1]
    assert layout.chains.tolist() == [0] * 3 + [1] * (n + 2)
    assert str(layout) == f"A20-22/0 {n}/B5-B6"
    scaffold = layout.scaffold()
    assert scaffold.joints.tolist() == [False, False, True] + [False] * (n + 1)


def test_the_scaffold_holds_the_motif_and_nothing_else():
    contig = parse_contig("3/B1-2/4", CHAINS)
    scaffold = contig.sample(Draws(0, [0]))[0].scaffold()
    assert scaffold.sequence == "XXXEFXXXX"
    assert scaffold.given.tolist() == [False] * 3 + [True] * 2 + [False] * 4
    assert np.array_equal(scaffold.backbone[3:5], B.backbone[3:5])
    assert np.isnan(scaffold.backbone[~scaffold.given]).all()


@pytest.fixture(scope="module")
def benchmark_problems():
    return rfdiffusion_benchmark()


REFUSED = {
    "": "contig is empty",
    "10_40": "'10_40' is not understood",
    "A": "'A' is not understood",
    "A25-": "'A25-' is not understood",
    "10/ /A25": "a blank is allowed only",
    "5 5": "a blank is allowed only",
    "10//10": "'' is not understood",
    "40-10": "runs backwards; write 10-40",
    "A46-25": "runs backwards; write A25-46",
    "A25-B46": "begins and ends in different chains",
    "C1-5": r"no chain C; it has A \(20 to 60\), B \(-2 to 6\)",
    "A10-25": r"no residue 10; it has 20-52, 52A, 52B, 53-60",
    "A25-99": "no residue 99",
    "B1-6": "residues 3-4 are missing in the motif file",
    "A25-30/5/A28": "residue A28 stands in both 'A25-30' and 'A28'",
    "0": "asks for 0 to 0 residues",
    "20000": "asks for 20000",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_refused_says_why(text):
    with pytest.raises(InputError, match=REFUSED[text]):
        parse_contig(text, CHAINS)


def test_lengths_that_cannot_be():
    assert parse_length(None) is parse_length(" ") is None
    assert parse_length("75") == parse_length(75) == (75, 75)
    assert parse_length(" 50 - 75 ") == (50, 75)
    for bad in ("x", "50-", "0", "75-50", "-5"):
        with pytest.raises(InputError, match="length"):
            parse_length(bad)
    with pytest.raises(InputError, match=r"gives 42 to 102 residues.*120-130; widen"):
        parse_contig("10-40/A25-46/10-40", CHAINS, "120-130")
    with pytest.raises(InputError, match="no motif file is given"):
        parse_contig("10-40/A25-46")
    x = B.backbone.copy()
    x[4, 3] = np.nan
    with pytest.raises(InputError, match="residues 2 lack backbone atoms"):
        parse_contig("B1-2", [B.replace(backbone=x)])


def test_every_allowed_combination_is_as_likely_as_any_other():
    contig = parse_contig("0-2/B0-1/1-3/2-3", CHAINS, "6-8")
    allowed = {
        (a, 2, b, c)
        for a in range(3)
        for b in range(1, 4)
        for c in (2, 3)
        if 6 <= a + b + c + 2 <= 8
    }
    drawn = Counter(layout.lengths for layout in contig.sample(Draws(4, range(6000))))
    assert set(drawn) == allowed
    assert chisquare([drawn[x] for x in sorted(allowed)]).pvalue > 1e-3


def test_a_sample_does_not_depend_on_its_companions():
    contig = parse_contig("0-60/A25-46/0-60", CHAINS, "80")
    together = contig.sample(Draws(5, range(8)))
    assert {len(x) for x in together} == {80}
    assert contig.sample(Draws(5, [6]))[0].lengths == together[6].lengths
    assert contig.sample(Draws(6, range(8))) != together


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=4),
    st.integers(0, 40),
    st.integers(0, 20),
)
def test_drawn_lengths_obey_every_range(ranges, low, width):
    text = "/".join(f"{min(r)}-{max(r)}" for r in ranges)
    try:
        contig = parse_contig(text, length=(max(low, 1), max(low, 1) + width))
    except InputError as error:
        fits = max(sum(map(min, ranges)), 1) <= max(low, 1) + width
        assert not (fits and sum(map(max, ranges)) >= max(low, 1)), error
        return
    for layout in contig.sample(Draws(1, range(5))):
        assert contig.total[0] <= len(layout) <= contig.total[1]
        for (a, b), n in zip(ranges, layout.lengths, strict=True):
            assert min(a, b) <= n <= max(a, b)


@settings(max_examples=100, deadline=None)
@given(st.text("AB0123456789-/, _", max_size=20))
def test_any_text_is_a_contig_or_one_clear_error(text):
    try:
        contig = parse_contig(text, CHAINS)
    except InputError as error:
        assert "contig" in str(error)
        return
    layout = contig.sample(Draws(0, [0]))[0]
    assert len(layout.places) == len(contig.motif)


def test_a_problem_of_ones_own(tmp_path):
    path = write_pdb(tmp_path / "mine.pdb", [A, B])
    problem = motif_problem(path, "5/B-2-0/5-9", "15")
    assert (problem.name, problem.native) == ("mine", ("B-2", "B-1", "B0"))
    assert problem.contig.sample(Draws(0, [0]))[0].lengths == (5, 3, 7)
    with pytest.raises(InputError, match="no chain C"):
        motif_problem(path, "C5")


@needs_data
def test_the_benchmark_of_rfdiffusion_is_found_whole(benchmark_problems):
    problems = benchmark_problems
    assert len(problems) == 26 and len({p.name for p in problems}) == 26
    sizes = {p.name: len(p.contig.motif) for p in problems}
    # Residues of the benchmark's own motif files.
    known = {"1PRW": 40, "1BCF": 32, "5TPN": 19, "5IUS": 42, "3IXT": 24, "5YUI": 11, "1QJG": 3,
             "1YCR": 9, "6X93": 72, "il7ra_gc": 59, "2KL8": 59, "7MRX_60": 22, "4JHW": 24,
             "rsv_site4": 15, "5WN9": 20, "5TRV_med": 21, "6E6R_long": 13}  # fmt: skip
    assert {k: sizes[k] for k in known} == known
    totals = {p.name: p.contig.total for p in problems}
    assert totals["5TPN"] == (50, 75) and totals["7MRX_128"] == (128, 128)
    for p in problems:
        assert set(p.redesign) <= set(p.native) and np.isfinite(p.contig.motif.backbone).all()


@needs_data
def test_motifs_of_the_benchmark_are_those_of_its_motif_files(benchmark_problems):
    from domains.proteins.evaluators.superposition import rmsd
    from domains.proteins.io import read_chains

    targets = shared_data() / "proteins" / "motifs" / "rfdiffusion_benchmark" / "targets"
    problems = {p.name: p for p in benchmark_problems}
    for name in ("2KL8", "3IXT", "1YCR", "5WN9"):
        theirs = read_chains(targets / f"{name}_motif.pdb").chains[0]
        assert rmsd(problems[name].contig.motif.ca, theirs.ca) < 0.01


@needs_data
def test_motifbench_is_found_whole():
    problems = motifbench()
    assert len(problems) == 30 and problems[0].name == "01_1LDB"
    for p in problems:
        assert p.contig.total[0] == p.contig.total[1]
        assert len(p.native) == len(p.contig.motif)
        assert set(p.redesign) <= set(p.native)
    problem = problems[24]
    assert problem.native[:4] == ("A9", "A10", "A11", "A48")
    layout = problem.contig.sample(Draws(0, [0]))[0]
    assert len(layout) == 225 and len(layout.places) == 14
    # The motif's own parts agree with the native names: A9-11 in one piece, A101 alone.
    assert problem.contig.motif.joints.tolist()[:3] == [False, False, True]
