"""Every bad input of ../shared/notes/style.md §6.3: one clear InputError or one counted drop."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domains.molecules.io import read_molecules
from domains.molecules.molecule import Molecule
from domains.molecules.smiles import canonical_smiles, molecule_from_smiles, to_rdkit
from sciflow.errors import InputError

BAD_SMILES = {
    "nothing": ("", "empty"),
    "blanks": ("   ", "empty"),
    "a word": ("hello", "not SMILES: syntax error"),
    "open ring": ("C1CC", "unclosed ring"),
    "open branch": ("CC(C", "open parentheses"),
    "five-valent carbon": ("C(C)(C)(C)(C)C", "valence"),
    "no Kekulé form": ("c1cccn1", "kekulize"),
    "zero byte": ("C\0C", "not printable ASCII"),
    "unknown element": ("Ccl", "not SMILES: syntax error"),
    "reaction": ("CC>>CO", "not SMILES"),
    "impossible charge": ("[N+5]", "formal charge"),
    "dummy atom": ("*CC", "dummy"),
    "bare metal": ("[Fe]", "valence"),
    "radical": ("[CH3]", "radical"),
    "isotope": ("[13CH4]", "isotope"),
    "two fragments": ("CCO.CC", "2 fragments"),
    "name behind": ("CCO ethanol", "a blank"),
    "line break": ("CC\nO", "a blank"),
    "umlaut": ("CCÖ", "not printable ASCII"),
    "None": (None, "text, got NoneType"),
    "number": (7, "text, got int"),
    "stack overflow of RDKit": ("C" * 20000, "20000 characters"),
    "too many atoms": ("C" * 400, "atoms"),
    "deep branches": ("C(" * 600 + "C" + ")" * 600, "characters"),
}


@pytest.mark.parametrize(("smiles", "reason"), BAD_SMILES.values(), ids=list(BAD_SMILES))
def test_bad_smiles_is_one_clear_error(smiles, reason, capfd):
    with pytest.raises(InputError, match=reason) as caught:
        molecule_from_smiles(smiles, path="given.smi", line=3)
    assert (caught.value.path, caught.value.line) == ("given.smi", 3)
    assert str(caught.value).startswith("given.smi:3: ")
    assert len(str(caught.value)) < 400
    assert capfd.readouterr() == ("", "")  # RDKit's own lines stay off the terminal


@pytest.mark.parametrize(("smiles", "reason"), BAD_SMILES.values(), ids=list(BAD_SMILES))
def test_bad_smiles_in_a_csv_is_one_counted_drop(smiles, reason, tmp_path):
    path = tmp_path / "list.csv"
    cell = "" if smiles is None else str(smiles)
    path.write_text(f'n,smiles\n1,CCO\n2,"{cell}"\n3,CC\n', "utf-8")
    result = read_molecules(path)
    assert [m.properties["n"] for m in result] == [1.0, 3.0]
    assert len(result.dropped) == 1
    assert result.dropped[0].line == 3
    assert result.dropped[0].path == path


def test_a_list_of_nothing_but_bad_smiles_is_one_error_with_the_first_reason(tmp_path):
    path = tmp_path / "bad.smi"
    path.write_text("C1CC\nhello\n")
    with pytest.raises(InputError, match=r"bad\.smi:1: .*2 refused.*unclosed ring"):
        read_molecules(path)


def test_latin1_byte_costs_one_record(tmp_path):
    path = tmp_path / "old.smi"
    path.write_bytes(b"CC\nCC\xd6\nCCO\n")
    result = read_molecules(path)
    assert len(result) == 2
    assert [error.line for error in result.dropped] == [2]


FILES = {
    "empty.sdf": (b"", "empty"),
    "blank.smi": (b" \n\n", "empty"),
    "page.sdf": (b"<!DOCTYPE html>\n<html><body>404</body></html>", "web page"),
    "page.csv": (b"  <html>\n404", "web page"),
    "binary.xyz": (bytes(range(256)) * 8, "binary"),
    "cut.smi.gz": (gzip.compress(b"CCO\n" * 500)[:-12], "gzip"),
    "plain.smi.gz": (b"CCO\n", "gzip"),
    "hidden.smi": (gzip.compress(b"CCO\n"), "gz"),
    "wide.csv": ("smiles\nCC\n".encode("utf-16"), "UTF-16"),
    "no_column.csv": (b"a,b\n1,2\n", "no column named smiles"),
    "header.csv": (b"smiles,a\n", "no molecules"),
    "notes.doc": (b"CCO", "unknown kind"),
    "text.sdf": (b"just some words\n", "M  END"),
    "words.xyz": (b"just some words\n", "number of atoms"),
}


@pytest.mark.parametrize("name", FILES)
def test_bad_file_is_one_clear_error(name, tmp_path, capfd):
    content, reason = FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        read_molecules(path)
    assert caught.value.path == path
    assert capfd.readouterr() == ("", "")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_molecules(tmp_path / "none.sdf")
    folder = tmp_path / "folder.sdf"
    folder.mkdir()
    with pytest.raises(InputError, match="folder"):
        read_molecules(folder)


def _sdf(x: str = "0.0000", symbol: str = "C", bond: str = "  1  2  1  0", end: bool = True) -> str:
    return "\n".join(
        [
            "methanol",
            "  test              3D",
            "",
            f"  6  {5 if bond else 0}  0  0  0  0  0  0  0  0999 V2000",
            f"{x:>10}    0.0000    0.0000 {symbol:<3} 0  0",
            "    1.4000    0.0000    0.0000 O   0  0",
            "   -0.3600    1.0000    0.0000 H   0  0",
            "   -0.3600   -0.5000    0.8700 H   0  0",
            "   -0.3600   -0.5000   -0.8700 H   0  0",
            "    1.7000    0.9000    0.0000 H   0  0",
            *(
                [bond, "  1  3  1  0", "  1  4  1  0", "  1  5  1  0", "  2  6  1  0"]
                if bond
                else []
            ),
            *(["M  END"] if end else []),
            "$$$$",
            "",
        ]
    )


BAD_RECORDS = {
    "NaN coordinate": (_sdf(x="nan"), "finite"),
    "infinite coordinate": (_sdf(x="inf"), "finite"),
    "text coordinate": (_sdf(x="here"), "'here' is not a finite number"),
    "unknown element": (_sdf(symbol="Xx"), "no element 'Xx'"),
    "dummy atom": (_sdf(symbol="*"), "dummy"),
    "four bonds to oxygen": (_sdf(bond="  1  2  3  0"), "valence"),
    "bond to nowhere": (_sdf(bond="  1 99  1  0"), "not an SDF record"),
    "cut off": (_sdf(end=False), "M  END"),
    "isotope": (_sdf().replace("M  END", "M  ISO  1   1  13\nM  END"), "isotope"),
    "no atoms": ("\n\n\n  0  0  0  0  0  0  0  0  0  0999 V2000\nM  END\n$$$$\n", "0 atoms"),
}


@pytest.mark.parametrize(("record", "reason"), BAD_RECORDS.values(), ids=list(BAD_RECORDS))
def test_bad_sdf_record_is_one_counted_drop(record, reason, tmp_path, capfd):
    path = tmp_path / "some.sdf"
    good = _sdf()
    path.write_text(good + record + good)
    result = read_molecules(path)
    assert len(result) == 2
    assert [error.line for error in result.dropped] == [good.count("\n") + 1]
    assert reason in result.dropped[0].reason
    assert capfd.readouterr() == ("", "")


def test_sanitisation_failure_is_kept_as_written_when_judging(tmp_path):
    path = tmp_path / "generated.sdf"
    path.write_text(_sdf(bond="  1  2  3  0"))
    (molecule,) = read_molecules(path, strict=False)
    assert molecule.bonds[0, 1] == 3
    assert len(molecule) == 6
    assert canonical_smiles(molecule) is None


BAD_FRAMES = {
    "NaN": ("2\n\nH 0 0 nan\nH 0 0 1\n", "finite", 2),
    "overflow": ("2\n\nH 0 0 1e999\nH 0 0 1\n", "finite", 2),
    "text": ("2\n\nH 0 0 here\nH 0 0 1\n", "finite", 2),
    "short line": ("2\n\nH 0 0\nH 0 0 1\n", "element x y z", 2),
    "unknown element": ("2\n\nXx 0 0 0\nH 0 0 1\n", "no element", 2),
    "zero atoms": ("0\n\n", "allowed", 2),
    "negative count": ("-3\n\n", "number of atoms", 1),
    "cut off": ("9\n\nH 0 0 0\n", "promised", 1),
    "huge count": ("99999999999\n\n", "allowed", 1),
}


@pytest.mark.parametrize(("frame", "reason", "left"), BAD_FRAMES.values(), ids=list(BAD_FRAMES))
def test_bad_xyz_frame_is_one_counted_drop(frame, reason, left, tmp_path):
    path = tmp_path / "some.xyz"
    good = "2\nhydrogen\nH 0 0 0\nH 0 0 0.74\n"
    path.write_text(good + frame + (good if left == 2 else ""))
    result = read_molecules(path)
    assert len(result) == left
    assert len(result.dropped) == 1
    assert reason in result.dropped[0].reason


def test_to_rdkit_refuses_what_is_no_graph():
    hydrogen = np.array([1, 1])
    with pytest.raises(InputError, match="no bonds"):
        to_rdkit(Molecule(hydrogen))
    with pytest.raises(InputError, match="symmetric"):
        to_rdkit(Molecule(hydrogen, bonds=np.array([[0, 1], [0, 0]])))
    with pytest.raises(InputError, match="bond code 7"):
        to_rdkit(Molecule(hydrogen, bonds=np.array([[0, 7], [7, 0]])))
    with pytest.raises(InputError, match="atomic numbers"):
        to_rdkit(Molecule(np.array([0, 1]), bonds=np.array([[0, 1], [1, 0]])))


def test_a_chain_that_overflows_rdkit_has_no_smiles_and_does_not_crash():
    n = 20000
    bare = Molecule(np.full(n, 6), bonds=np.zeros((n, n), np.int8))
    assert canonical_smiles(bare) is None


SEEDS = {
    ".sdf": (_sdf() + _sdf()).encode(),
    ".xyz": b"3\nwater\nO 0 0 0\nH 0.96 0 0\nH -0.24 0.93 0\n2\nx=1\nH 0 0 0\nH 0 0 0.7\n",
    ".csv": b'smiles,gap\nCCO,1.5\n"c1ccccc1",2\nC[N+](C)(C)C,\n',
    ".smi": b"CCO ethanol\nc1ccccc1\tbenzene\nO=C=O\n",
}


def test_half_a_character_in_a_column(tmp_path):
    """RDKit's message quoted a byte that no text can hold."""
    text = SEEDS[".sdf"] if isinstance(SEEDS[".sdf"], bytes) else SEEDS[".sdf"].encode()
    path = tmp_path / "file.sdf"
    path.write_bytes(text[:263] + b"\x80" + text[264:])
    path_alone = tmp_path / "whole.sdf"
    path_alone.write_bytes(text)
    result, whole = (read_molecules(p, strict=False) for p in (path, path_alone))
    assert len(result.molecules) + len(result.dropped) == len(whole.molecules)


@pytest.mark.parametrize("suffix", SEEDS)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(edits=st.lists(st.tuples(st.integers(0, 900), st.binary(max_size=4)), max_size=6))
def test_damaged_files_give_molecules_or_an_input_error(suffix, edits, tmp_path):
    content = bytearray(SEEDS[suffix])
    for at, replacement in edits:
        at %= len(content)
        content[at : at + len(replacement)] = replacement
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(bytes(content))
    for strict in (True, False):
        try:
            result = read_molecules(path, strict=strict)
        except InputError:
            continue
        for molecule in result:
            assert len(molecule)
            assert (molecule.numbers > 0).all()
            assert molecule.positions is None or np.isfinite(molecule.positions).all()
