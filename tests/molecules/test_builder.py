"""The builder: real structures, honest failures, the same bytes after an interruption."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from domains.molecules.builder import BuildError, build, build_molecule, embed
from domains.molecules.perceive import keeps_graph
from domains.molecules.smiles import canonical_smiles, to_rdkit
from domains.molecules.table import MoleculeTable
from sciflow.errors import InputError

LIST = ["O", "C1CC", "CO", "C" * 20000, "C#N", "N"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "tiny.npz"
    return build(LIST, out, n_jobs=1, part_size=2, progress=False)


def test_good_ones_are_built_and_bad_ones_reported(built):
    assert built.rows.tolist() == [0, 2, 4, 5]
    assert built.table.smiles == ["O", "CO", "C#N", "N"]
    assert [(row, smiles) for row, smiles, _ in built.failures] == [(1, "C1CC"), (3, "C" * 20000)]
    assert "unclosed ring" in built.failures[0][2]
    assert "20000 characters" in built.failures[1][2]
    with Path(f"{built.path}.failures.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(int(r["row"]), r["reason"]) for r in rows] == [(f[0], f[2]) for f in built.failures]


def test_structures_are_gfn2_minima_with_the_right_graph(built):
    from domains.molecules.xtb import single_point

    for molecule in built.table:
        assert keeps_graph(molecule)
        assert canonical_smiles(molecule) == molecule.name
        values = single_point(molecule, alpha=True, forces=True)
        assert np.abs(values["forces"]).max() < 5.5e-4
        for key, value in molecule.properties.items():
            assert values[key] == pytest.approx(value, rel=2e-3, abs=2e-3)
    water = built.table[0]
    bond = np.linalg.norm(water.positions[0] - water.positions[1])
    assert bond == pytest.approx(0.96, abs=0.01)


def test_the_table_on_disk_is_the_table(built):
    again = MoleculeTable.load(built.path)
    assert (again.positions == built.table.positions).all()
    assert again.smiles == built.table.smiles


def test_finished_parts_are_not_built_again(built, tmp_path, monkeypatch):
    import domains.molecules.builder as module

    parts = sorted(Path(f"{built.path}.parts").glob("*.npz"))
    assert len(parts) == 3
    bytes_before = built.path.read_bytes()
    parts[1].unlink()
    built.path.unlink()
    calls = []
    original = module._build_part
    monkeypatch.setattr(module, "_build_part", lambda *a: calls.append(a) or original(*a))
    build(LIST, built.path, n_jobs=1, part_size=2, progress=False)
    assert len(calls) == 1
    assert built.path.read_bytes() == bytes_before


def test_another_list_does_not_reuse_parts(built):
    other = build([*LIST[:5], "F"], built.path.with_name("tiny.npz"), n_jobs=1, part_size=2,
                  progress=False)  # fmt: skip
    assert other.table.smiles == ["O", "CO", "C#N", "F"]
    assert len(list(Path(f"{built.path}.parts").glob("*.npz"))) == 4


def test_killed_run_goes_on_to_the_same_bytes(built, tmp_path):
    out = tmp_path / "killed.npz"
    script = textwrap.dedent(
        f"""
        from domains.molecules.builder import build
        build({LIST!r}, {str(out)!r}, n_jobs=1, part_size=2, progress=False)
        """
    )
    process = subprocess.Popen([sys.executable, "-c", script], env=os.environ)
    parts = Path(f"{out}.parts")
    limit = time.monotonic() + 60
    while not list(parts.glob("*.npz")) and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    build(LIST, out, n_jobs=1, part_size=2, progress=False)
    again, first = MoleculeTable.load(out), built.table
    assert again.smiles == first.smiles
    assert (again.positions == first.positions).all()
    for key, value in first.properties.items():
        assert (again.properties[key] == value).all()


def test_two_workers_give_the_same(built, tmp_path):
    two = build(["O", "CO"], tmp_path / "two.npz", n_jobs=2, part_size=1, progress=False)
    assert (two.table.positions[1, :6] == built.table.positions[1, :6]).all()


def test_limit_and_file_input(tmp_path):
    (tmp_path / "list.csv").write_text("id,smiles\na,O\nb,N,extra\nc,CC\n")
    result = build(tmp_path / "list.csv", tmp_path / "x.npz", limit=2, n_jobs=1, progress=False)
    assert result.rows.tolist() == [0]
    assert [row for row, _, _ in result.failures] == [1]
    assert "cells" in result.failures[0][2]


def test_nothing_to_build_is_one_error(tmp_path):
    with pytest.raises(InputError, match="no SMILES"):
        build([], tmp_path / "x.npz")
    with pytest.raises(InputError, match=r"no molecule could be built; the first \('C1CC'\)"):
        build(["C1CC"], tmp_path / "x.npz", n_jobs=1, progress=False)
    with pytest.raises(InputError, match="npz"):
        build(["C"], tmp_path / "x.sdf")
    with pytest.raises(InputError, match="no such file"):
        build(tmp_path / "none.smi", tmp_path / "x.npz")


def test_a_molecule_that_takes_too_long_is_a_failure_and_the_others_go_on(tmp_path):
    big = "C" * 120  # minutes of xTB
    result = build(["O", big, "N"], tmp_path / "x.npz", n_jobs=1, timeout=1.5, progress=False)
    assert result.table.smiles == ["O", "N"]
    assert "no answer within 1.5 s" in result.failures[0][2]


def test_embedding_is_seeded_and_keeps_stereochemistry():
    from rdkit import Chem

    first, second = embed("C[C@H](O)F"), embed("C[C@H](O)F")
    assert (first.positions == second.positions).all()
    assert (first.positions != embed("C[C@H](O)F", seed=8).positions).any()
    for smiles in ("C[C@H](O)F", "C[C@@H](O)F"):
        mol = to_rdkit(embed(smiles))
        Chem.AssignStereochemistryFrom3D(mol)
        assert Chem.MolToSmiles(Chem.RemoveHs(mol)) == Chem.CanonSmiles(smiles)


def test_a_rearranged_molecule_is_refused():
    with pytest.raises((BuildError, InputError)):
        build_molecule("[H][He][H]")


def test_a_structure_that_cannot_exist_is_not_kept():
    # Two bridgeheads of a cage that no embedding can close.
    with pytest.raises(BuildError):
        build_molecule("C12=C3C4=C1C1=C2C3=C41")
