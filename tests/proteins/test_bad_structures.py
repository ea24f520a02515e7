"""Every bad structure file of ../shared/notes/style.md §6.3: one clear error or a counted drop."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domains.proteins.chain import Chain
from domains.proteins.ideal import helix_bundle
from domains.proteins.io import read_chains
from domains.proteins.pdb import pdb_text, write_pdb
from sciflow.errors import InputError


def straight(n: int, **more) -> Chain:
    """Residues in a row, 1.3 Å from C to N."""
    x = np.array([[0.0, 0, 0], [1.2, 0.7, 0], [2.5, 0, 0], [2.6, -1.2, 0]])
    return Chain(x + np.arange(n)[:, None, None] * [3.8, 0, 0], "ACDEFGHIKLMNPQRSTVWY"[:n], **more)


LINES = pdb_text(straight(4)).splitlines()
ATOMS = [k for k, line in enumerate(LINES) if line.startswith("ATOM")]


def edited(k: int, **columns: str) -> str:
    """The file with columns of its k-th atom overwritten; keys like c31 are where they begin."""
    lines = list(LINES)
    line = lines[ATOMS[k]]
    for key, text in columns.items():
        a = int(key[1:]) - 1
        line = line[:a] + text + line[a + len(text) :]
    lines[ATOMS[k]] = line
    return "\n".join(lines)


def cut(k: int, column: int) -> str:
    return "\n".join([*LINES[: ATOMS[k]], LINES[ATOMS[k]][:column]])


CA_ONLY = "\n".join(line for line in LINES if line[12:16].strip() == "CA")
HETERO = "\n".join(
    f"HETATM{i:5d}  O   HOH A{i:4d}    {i:8.3f}{0:8.3f}{0:8.3f}  1.00  0.00" for i in range(1, 9)
)
REPEATED = "\n".join(LINES[: ATOMS[8]] + LINES[ATOMS[4] : ATOMS[8]] + ["END"])

REFUSED = {
    "empty": ("", "empty", None),
    "blank": (" \n\n", "empty", None),
    "page": ("<!DOCTYPE html>\n<html><body>404</body></html>", "web page", None),
    "header only": ("HEADER    HYDROLASE\nEND\n", "no atoms.*HEADER", None),
    "words": ("just some words\n", "no atoms.*just some words", None),
    "NaN": (edited(5, c31="     NaN"), "coordinate x is 'NaN'.*finite", ATOMS[5] + 1),
    "infinity": (edited(5, c39="     inf"), "coordinate y", ATOMS[5] + 1),
    "blank coordinate": (edited(5, c47="        "), "coordinate z.*not a number", ATOMS[5] + 1),
    "text coordinate": (edited(5, c31="  1.2x45"), "coordinate x", ATOMS[5] + 1),
    "stars": (edited(5, c31="********"), "coordinate x", ATOMS[5] + 1),
    "residue number": (edited(5, c23="  xx"), "residue number '  xx'", ATOMS[5] + 1),
    "short line": (cut(6, 45), "column 45.*was the file cut", ATOMS[6] + 1),
    "very short line": (cut(6, 8), "column 8.*was the file cut", ATOMS[6] + 1),
    "water alone": (HETERO, "only hetero atoms.*8 × water", 1),
    "CA alone": (CA_ONLY, "trace of CA alone.*4 residues", 1),
    "residue twice": (REPEATED, "residue 2 stands twice", None),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_file_is_one_clear_error(name, tmp_path, capfd):
    content, reason, line = REFUSED[name]
    path = tmp_path / "given.pdb"
    path.write_text(content)
    with pytest.raises(InputError, match=reason) as caught:
        read_chains(path)
    assert caught.value.path == path
    if line is not None:
        assert caught.value.line == line
    assert len(str(caught.value)) < 500
    assert capfd.readouterr() == ("", "")  # no library's warning reaches the terminal


@pytest.mark.parametrize(
    "name", ["NaN", "residue number", "short line", "CA alone", "residue twice"]
)
def test_one_bad_chain_is_one_counted_drop(name, tmp_path):
    content, _, line = REFUSED[name]
    sound = pdb_text(straight(3, chain_id="B")).replace("END\n", "")
    path = tmp_path / "two.pdb"
    path.write_text(sound + content)
    result = read_chains(path)
    assert [(c.chain_id, len(c), c.name) for c in result] == [("B", 3, "two")]
    assert len(result.dropped) == 1
    assert "chain A" in result.dropped[0].reason
    if line is not None:
        assert result.dropped[0].line == line + len(sound.splitlines())


def test_files_that_are_no_text(tmp_path):
    cases = {
        "cut.pdb.gz": (gzip.compress("\n".join(LINES).encode())[:-9], "gzip"),
        "plain.cif.gz": (b"data_x\n", "gzip"),
        "hidden.pdb": (gzip.compress(b"ATOM"), "gz"),
        "binary.pdb": (bytes(range(256)) * 8, "binary"),
        "notes.doc": (b"ATOM", "unknown kind"),
    }
    for name, (content, reason) in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(InputError, match=reason):
            read_chains(path)
    with pytest.raises(InputError, match="no such file"):
        read_chains(tmp_path / "none.pdb")


CIF_COLUMNS = """group_PDB id label_atom_id label_alt_id label_comp_id label_asym_id label_seq_id
    pdbx_PDB_ins_code Cartn_x Cartn_y Cartn_z occupancy B_iso_or_equiv auth_seq_id auth_asym_id
    pdbx_PDB_model_num"""


def cif(rows: list[str], columns: str = "") -> str:
    names = (columns or CIF_COLUMNS).split()
    return "\n".join(["data_x", "loop_", *(f"_atom_site.{n}" for n in names), *rows, "#"])


def cif_rows(chain: Chain) -> list[str]:
    from Bio.Data.PDBData import protein_letters_1to3

    rows = []
    for i, (one, number) in enumerate(zip(chain.sequence, chain.residue_ids, strict=True)):
        for k, atom in enumerate(("N", "CA", "C", "O")):
            x = " ".join(f"{v:.3f}" for v in chain.backbone[i, k])
            name3 = protein_letters_1to3[one].upper()
            rows.append(
                f"ATOM {4 * i + k + 1} {atom} . {name3} A {i + 1} ? {x} 1.0 9.0 {number} A 1"
            )
    return rows


def test_bad_mmcif_is_one_clear_error(tmp_path):
    rows = cif_rows(straight(4))
    good = tmp_path / "good.cif"
    good.write_text(cif(rows))
    assert read_chains(good).chains[0].sequence == "ACDE"
    nan = [*rows[:5], rows[5].replace(rows[5].split()[8], "nan"), *rows[6:]]
    cases = {
        "not cif": ("just some words\n", "mmCIF"),
        "no atoms": ("data_x\n_entry.id x\n", "no table of atoms"),
        "columns": (cif(["1 2"], "id Cartn_x"), "no column group_PDB"),
        "cut off": (cif([*rows[:-1], "ATOM 16 O ."]).removesuffix("#"), "cut|whole"),
        "NaN": (cif(nan), "atom row 6: coordinate x is 'nan'"),
        "open quote": (cif([*rows[:-1], "ATOM 16 'O . GLU"]), "whole mmCIF|cut"),
    }
    for content, reason in cases.values():
        path = tmp_path / "bad.cif"
        path.write_text(content)
        with pytest.raises(InputError, match=reason) as caught:
            read_chains(path)
        assert caught.value.path == path


def residues_told(path) -> tuple[set[str], str]:
    """Ids of residues that came through, and all that was said of the others."""
    try:
        result = read_chains(path)
    except InputError as error:
        return set(), str(error)
    said = " ".join(map(str, [*result.dropped, *result.notes]))
    return {i for chain in result for i in chain.residue_ids}, said


@settings(max_examples=80, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(st.data())
def test_any_damage_is_told(tmp_path, data):
    """Bytes overwritten, cut or doubled at random: never a crash, never a loss without a word."""
    text = "\n".join(LINES) + "\n"
    kind = data.draw(st.sampled_from(["overwrite", "cut", "double", "drop"]))
    if kind == "overwrite":
        at = data.draw(st.integers(0, len(text) - 1))
        new = data.draw(st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=12))
        text = text[:at] + new + text[at + len(new) :]
    elif kind == "cut":
        text = text[: data.draw(st.integers(0, len(text)))]
    else:
        k = data.draw(st.sampled_from(ATOMS))
        lines = list(LINES)
        lines[k : k + 1] = [lines[k]] * (2 if kind == "double" else 0)
        text = "\n".join(lines)
    path = tmp_path / "fuzzed.pdb"
    path.write_text(text, "utf-8", newline="")
    there, said = residues_told(path)
    whole = {line[22:26].strip() for line in text.split("\n") if line.startswith("ATOM  ")}
    for residue in whole - there:
        assert said, f"residue {residue} was lost without a word"
    try:
        chains = read_chains(path).chains
    except InputError:
        return
    for chain in chains:
        assert not np.isinf(chain.backbone).any()
        assert len(chain.sequence) == len(chain) == len(chain.residue_ids)


@settings(max_examples=60, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(st.binary(max_size=300), st.sampled_from(["x.pdb", "x.cif", "x.pdb.gz"]))
def test_garbage_never_crashes(tmp_path, content, name):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError):
        read_chains(path)


@pytest.mark.parametrize("value", [math.inf, 1e5])
def test_writing_refuses_what_does_not_fit_and_leaves_no_file(tmp_path, value):
    chain = straight(3)
    x = chain.backbone.copy()
    x[1, 2, 0] = value
    path = tmp_path / "out.pdb"
    with pytest.raises(InputError, match="residue 2"):
        write_pdb(path, chain.replace(backbone=x))
    assert not path.exists()
    with pytest.raises(InputError, match="no chains"):
        write_pdb(path, [])


@settings(max_examples=50, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(st.data())
def test_any_damage_to_mmcif_is_told(tmp_path, data):
    text = cif(cif_rows(straight(4)))
    at = data.draw(st.integers(0, len(text) - 1))
    kind = data.draw(st.sampled_from(["overwrite", "cut", "remove"]))
    more = data.draw(st.text("aZ9. '\"\n_;#-", max_size=6)) if kind == "overwrite" else ""
    behind = len(text) if kind == "cut" else at + max(len(more), data.draw(st.integers(0, 5)))
    path = tmp_path / "fuzzed.cif"
    path.write_text(text[:at] + more + text[behind:], "utf-8", newline="")
    try:
        result = read_chains(path)
    except InputError as error:
        assert error.path == path
        return
    for chain in result:
        assert not np.isinf(chain.backbone).any()
    atoms = sum(int(np.isfinite(c.backbone[..., 0]).sum()) for c in result)
    # Fewer atoms than a whole file has are told of, unless whole rows are gone with their traces.
    rows = sum(line.startswith("ATOM ") for line in path.read_text().splitlines())
    assert atoms >= rows or result.dropped or result.notes


def test_an_insertion_code_that_is_no_letter_costs_its_chain_by_name(tmp_path: Path) -> None:
    for code in ("\b", "1", "é"):
        lines = pdb_text(helix_bundle(1).take(slice(0, 8))).split("\n")
        first = next(i for i, line in enumerate(lines) if line.startswith("ATOM"))
        lines[first] = lines[first][:26] + code + lines[first][27:]
        path = tmp_path / "code.pdb"
        path.write_text("\n".join(lines))
        with pytest.raises(InputError, match=r"insertion code .* \(column 27\)") as caught:
            read_chains(path)
        assert caught.value.line == first + 1
