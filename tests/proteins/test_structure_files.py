"""Chains from and to PDB, mmCIF and FASTA: what the formats allow, and back again."""

from __future__ import annotations

import gzip
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domains.proteins.chain import ALPHABET, Chain, find_breaks, parse_residue_id
from domains.proteins.io import complete_residues, read_chains, read_fasta, write_fasta
from domains.proteins.pdb import pdb_text, write_pdb
from sciflow.data import shared_data
from sciflow.errors import InputError

DATA = shared_data()
needs_data = pytest.mark.skipif(DATA is None, reason="the shared data are not on this machine")


def straight(n: int, **more) -> Chain:
    x = np.array([[0.0, 0, 0], [1.2, 0.7, 0], [2.5, 0, 0], [2.6, -1.2, 0]])
    return Chain(x + np.arange(n)[:, None, None] * [3.8, 0, 0], **more)


def atom(name, residue, x, *, name3="ALA", alt=" ", occ=1.0, kind="ATOM  ", chain="A", code=" "):
    return (
        f"{kind}    1  {name:<3s}{alt}{name3} {chain}{residue:4d}{code}   "
        f"{x:8.3f}{0:8.3f}{0:8.3f}{occ:6.2f}{10:6.2f}"
    )


def residue(number, x, **more):
    places = {"N": 0.0, "CA": 1.2, "C": 2.5, "O": 2.9}
    return [atom(name, number, x + d, **more) for name, d in places.items()]


def read(tmp_path, lines, name="given.pdb"):
    path = tmp_path / name
    path.write_text("\n".join(map(str, lines)))
    return read_chains(path)


def test_alternates_take_the_highest_occupancy_then_a(tmp_path):
    lines = [
        *residue(1, 0.0),
        *residue(2, 3.8, alt="A", occ=0.3),
        *residue(2, 3.9, alt="B", occ=0.7),
        *residue(3, 7.6, alt="B", occ=0.5),
        *residue(3, 7.7, alt="A", occ=0.5),
    ]
    result = read(tmp_path, lines)
    chain = result.chains[0]
    assert chain.backbone[1, 0, 0] == pytest.approx(3.9)
    assert chain.backbone[2, 0, 0] == pytest.approx(7.7)
    assert not result.dropped
    assert [e.reason for e in result.notes] == [
        "chain A: residue 2 has alternates A, B; B is taken",
        "chain A: residue 3 has alternates A, B; A is taken",
    ]


def test_two_amino_acids_at_one_number_are_alternates_too(tmp_path):
    lines = [
        *residue(1, 0.0, name3="SER", alt="A", occ=0.4),
        *residue(1, 0.0, name3="THR", alt="B", occ=0.6),
        *residue(2, 3.8),
    ]
    assert read(tmp_path, lines).chains[0].sequence == "TA"


def test_insertion_codes_are_residues_of_their_own(tmp_path):
    lines = [
        *residue(52, 0.0),
        *residue(52, 3.8, code="A"),
        *residue(52, 7.6, code="B"),
        *residue(53, 11.4),
    ]
    chain = read(tmp_path, lines).chains[0]
    assert chain.residue_ids == ("52", "52A", "52B", "53")
    assert chain.unbroken


def test_modified_residues_count_as_their_parent(tmp_path):
    lines = [
        *residue(1, 0.0),
        *residue(2, 3.8, name3="MSE", kind="HETATM"),
        *residue(3, 7.6, name3="SEP", kind="HETATM"),
        *residue(4, 11.4, name3="XYZ", kind="HETATM"),
        *residue(5, 15.2),
    ]
    result = read(tmp_path, lines)
    assert result.chains[0].sequence == "AMSXA"
    assert result.chains[0].unbroken
    assert [e.line for e in result.notes] == [5, 9, 13]


def test_hetero_groups_are_named_and_left_out(tmp_path):
    lines = [
        *residue(1, 0.0),
        *residue(2, 3.8),
        "TER",
        *residue(201, 50.0, name3="GLY", kind="HETATM"),
        atom("CA", 202, 60.0, name3=" CA", kind="HETATM"),
        *[atom("O", 300 + i, 70.0, name3="HOH", kind="HETATM") for i in range(3)],
        *residue(5, 80.0, name3="LIG", kind="HETATM", chain="B"),
    ]
    result = read(tmp_path, lines)
    assert [len(c) for c in result] == [2]
    said = " | ".join(e.reason for e in result.dropped)
    assert "3 × water" in said and "1 × GLY" in said and "1 × CA" in said
    assert "hetero group 5 is not bonded" in said


def test_nucleic_acids_are_named(tmp_path):
    lines = [*residue(1, 0.0), *[atom("P", i, 9.0 * i, name3=" DA", chain="D") for i in (1, 2)]]
    result = read(tmp_path, lines)
    assert result.dropped[0].reason == "chain D: no amino acids: 2 × DA"


def test_missing_atoms_are_nan_and_noted(tmp_path):
    lines = [*residue(1, 0.0), *residue(2, 3.8)[:3], *residue(3, 7.6)[1:], *residue(4, 11.4)]
    result = read(tmp_path, lines)
    chain = result.chains[0]
    assert np.isnan(chain.backbone[1, 3]).all() and np.isnan(chain.backbone[2, 0]).all()
    assert [e.reason for e in result.notes] == [
        "chain A: residue 2 lacks O",
        "chain A: residue 3 lacks N",
    ]
    whole, lost = complete_residues(chain)
    assert (whole.residue_ids, lost) == (("1", "4"), ["2", "3"])
    assert whole.joints.tolist() == [True]


def test_models_and_chains_have_names_of_their_own(tmp_path):
    one = [*residue(1, 0.0), *residue(1, 0.0, chain="B")]
    lines = ["MODEL        1", *one, "ENDMDL", "MODEL        1", *one]  # same number, not closed
    result = read(tmp_path, lines, "1abc.pdb")
    assert [c.name for c in result] == ["1abc_A", "1abc_B", "1abc_A_m2", "1abc_B_m2"]
    assert [c.chain_id for c in result] == ["A", "B", "A", "B"]


def test_blank_chain_names_do_not_meet_others(tmp_path):
    lines = [*residue(1, 0.0, chain=" "), *residue(1, 9.0, chain="A")]
    assert [c.chain_id for c in read(tmp_path, lines)] == ["B", "A"]
    assert [c.chain_id for c in read(tmp_path, residue(1, 0.0, chain=" "))] == ["A"]


def test_breaks_by_bond_else_trace_else_number():
    chain = straight(5)
    assert chain.unbroken
    x = chain.backbone.copy()
    x[3:] += [0, 3, 0]
    assert chain.replace(backbone=x).joints.tolist() == [False, False, True, False]
    # A gap in the numbers is none where the bond is there.
    assert straight(3, residue_ids=("1", "2", "9")).unbroken
    x = chain.backbone.copy()
    x[2, 2] = np.nan
    assert not find_breaks(x, chain.residue_ids).any()  # CA to CA still says they are joined
    x[2, 1] = np.nan
    assert find_breaks(x, ("1", "2", "3", "5", "6")).tolist() == [False, False, True, False]
    assert not find_breaks(x, ("1", "2", "3", "3A", "4")).any()


def test_chain_checks_its_shapes():
    with pytest.raises(ValueError, match=r"\[N, 4, 3\]"):
        Chain(np.zeros((5, 3, 3)))
    with pytest.raises(ValueError, match="sequence"):
        straight(3, sequence="AA")
    with pytest.raises(ValueError, match="confidence"):
        straight(3, confidence=np.zeros(2))
    with pytest.raises(ValueError, match="not a number"):
        parse_residue_id("12AB")
    part = straight(6, sequence="ACDEFG", confidence=np.arange(6)).take([0, 1, 4, 5])
    assert (part.sequence, part.joints.tolist()) == ("ACFG", [False, True, False])
    assert part.segments() == [(0, 2), (2, 4)]


@st.composite
def chains(draw):
    n = draw(st.integers(1, 12))
    x = draw(st.lists(st.integers(-99_999, 999_999), min_size=12 * n, max_size=12 * n))
    start = draw(st.integers(-50, 9000))
    sequence = draw(st.one_of(st.just("X" * n), st.text(ALPHABET, min_size=n, max_size=n)))
    confidence = draw(st.none() | st.lists(st.integers(0, 100), min_size=n, max_size=n))
    given_ = draw(st.none() | st.lists(st.booleans(), min_size=n, max_size=n))
    return Chain(
        np.array(x).reshape(n, 4, 3) / 1000,
        sequence,
        "given",
        tuple(str(start + i) for i in range(n)),
        draw(st.sampled_from("AbZ9")),
        confidence,
        given=given_ if given_ and any(given_) else None,
        properties={"rg_ratio": 1.25},
    )


@settings(max_examples=40, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(chains())
def test_what_is_written_is_read_again(tmp_path, chain):
    path = write_pdb(tmp_path / "given.pdb", chain)
    assert max(map(len, path.read_text().splitlines())) <= 80
    (again,) = read_chains(path).chains
    assert np.allclose(again.backbone, chain.backbone, atol=6e-4)
    for key in ("sequence", "residue_ids", "chain_id", "name", "properties"):
        assert getattr(again, key) == getattr(chain, key)
    for key in ("confidence", "given"):
        ours, theirs = getattr(chain, key), getattr(again, key)
        assert (ours is None) == (theirs is None)
        assert ours is None or np.allclose(ours, theirs)


def test_a_backbone_without_a_sequence_says_so(tmp_path):
    text = pdb_text(straight(3))
    assert "REMARK 999 CHAIN A: SEQUENCE NOT DESIGNED" in text and text.count(" GLY A") == 13
    assert "B FACTORS: NOT USED" in text
    path = tmp_path / "bare.pdb"
    path.write_text(text)
    assert read_chains(path).chains[0].sequence == "XXX"
    glycine = write_pdb(tmp_path / "gly.pdb", straight(12, sequence="G" * 12))
    result = read_chains(glycine)
    assert result.chains[0].sequence == "G" * 12
    assert "every residue is GLY" in result.notes[0].reason
    some = write_pdb(tmp_path / "some.pdb", straight(3, sequence="AXG"))
    assert read_chains(some).chains[0].sequence == "AXG"


def test_b_factors_of_strangers_are_no_confidence(tmp_path):
    lines = [
        s for s in pdb_text(straight(3, confidence=[1, 2, 3])).splitlines() if s[:6] != "REMARK"
    ]
    assert read(tmp_path, lines).chains[0].confidence is None


def test_many_chains_get_letters_of_their_own(tmp_path):
    path = write_pdb(tmp_path / "three.pdb", [straight(2), straight(3), straight(4, chain_id="AB")])
    assert [(c.chain_id, len(c)) for c in read_chains(path)] == [("A", 2), ("B", 3), ("C", 4)]


def test_fasta_round_trip_and_bad_records(tmp_path):
    sequence = "ACDEFGHIKLMNPQRSTVWY" * 6
    path = write_fasta(
        tmp_path / "a.fasta", [straight(120, sequence=sequence, name="one"), straight(2)]
    )
    assert read_fasta(path) == [("one", sequence)]
    with pytest.raises(InputError, match="no chain has a sequence"):
        write_fasta(tmp_path / "b.fasta", [straight(2)])
    path.write_text(">a x\nACD\nefB*\n>b\nAC1\n>c\n\n>d\nWW\n")
    dropped: list[InputError] = []
    assert read_fasta(path, dropped) == [("a x", "ACDEFX"), ("d", "WW")]
    assert [(e.line, "'1'" in e.reason) for e in dropped] == [(4, True), (6, False)]
    path.write_text("ACD\n")
    with pytest.raises(InputError, match="not FASTA"):
        read_fasta(path)


@needs_data
def test_agrees_with_biopython_on_real_files(tmp_path):
    """Same chains, residues, letters and coordinates, as PDB and as the mmCIF that it writes."""
    from Bio.PDB import MMCIFIO, PDBParser
    from Bio.PDB.Polypeptide import is_aa

    targets = DATA / "proteins" / "motifs" / "rfdiffusion_benchmark" / "targets"
    for name in ("1PRW", "1YCR", "2W0Z"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            structure = PDBParser(QUIET=True).get_structure(name, targets / f"{name}.pdb")
            writer = MMCIFIO()
            writer.set_structure(structure)
            writer.save(str(tmp_path / f"{name}.cif"))
        (tmp_path / f"{name}.cif.gz").write_bytes(
            gzip.compress((tmp_path / f"{name}.cif").read_bytes())
        )
        ours = read_chains(targets / f"{name}.pdb").chains
        for chain in ours:
            theirs = [r for r in structure[0][chain.chain_id] if is_aa(r) and "CA" in r]
            assert chain.residue_ids == tuple(f"{r.id[1]}{r.id[2].strip()}" for r in theirs)
            x = np.array([r["CA"].coord for r in theirs])
            assert np.allclose(chain.ca, x, atol=1e-3)
        for path in (f"{name}.cif", f"{name}.cif.gz"):
            again = read_chains(tmp_path / path).chains
            assert [c.sequence for c in again] == [c.sequence for c in ours]
            for a, b in zip(again, ours, strict=True):
                assert a.residue_ids == b.residue_ids
                assert np.allclose(a.backbone, b.backbone, atol=1e-3, equal_nan=True)
