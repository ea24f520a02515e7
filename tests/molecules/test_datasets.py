"""Data sets as tables: real rows, the published format, downloads that are checked, user files."""

from __future__ import annotations

import hashlib
import http.server
import io
import logging
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest

from domains.molecules.datasets import (
    MoleculeTable,
    qm9_gfn2,
    qm9_original,
    split,
    table_from_file,
)
from domains.molecules.io import read_molecules, write_sdf, write_xyz
from domains.molecules.molecule import Molecule
from domains.molecules.perceive import keeps_graph
from domains.molecules.qm9 import parse_qm9
from domains.molecules.smiles import canonical_smiles, molecule_from_smiles
from sciflow.data import shared_data
from sciflow.errors import InputError

DATA = shared_data()
needs_data = pytest.mark.skipif(DATA is None, reason="no shared data on this machine")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SCIFLOW_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    """The first 300 rows of the real source, as a source folder of its own."""
    if DATA is None:
        pytest.skip("no shared data on this machine")
    folder = tmp_path_factory.mktemp("source")
    with np.load(DATA / "molecules" / "qm9_gfn2.npz", allow_pickle=False) as file:
        rows = np.r_[np.arange(297), np.flatnonzero(~file["graph_ok"])[:3]]
        cut = {k: file[k][rows] if file[k].ndim else file[k] for k in file.files}
    np.savez_compressed(folder / "qm9_gfn2.npz", **cut)
    (folder / "qm9_smiles.txt.gz").write_bytes(
        (DATA / "molecules" / "qm9_smiles.txt.gz").read_bytes()
    )
    return folder


@pytest.fixture
def table(few) -> MoleculeTable:
    return qm9_gfn2(few)


@needs_data
def test_qm9_gfn2_rows_are_chemistry(table, few):
    with np.load(few / "qm9_gfn2.npz", allow_pickle=False) as source:
        kept = np.flatnonzero(source["graph_ok"])
        assert len(table) == len(kept) < 300
        gap = source["lumo_eV"][kept].astype(float) - source["homo_eV"][kept]
        assert table.properties["gap"] == pytest.approx(gap, abs=1e-5)
        assert table.properties["energy"] == pytest.approx(source["energy_Eh"][kept], abs=1e-5)
        assert (table.numbers == source["numbers"][kept]).all()
    assert set(table.properties) == {"gap", "homo", "lumo", "dipole", "alpha", "energy"}
    for i in range(0, len(table), 5):
        molecule = table[i]
        assert keeps_graph(molecule)
        assert canonical_smiles(molecule) == table.smiles[i] == molecule.name
        assert molecule.charges.sum() == 0


@needs_data
def test_padding_is_zero(table):
    pad = np.arange(table.numbers.shape[1]) >= table.n_atoms[:, None]
    assert pad.any()
    for value in (table.numbers, table.positions, table.bonds, table.charges):
        assert not value[pad].any()
    assert not table.bonds.transpose(0, 2, 1)[pad].any()
    assert (table.numbers[~pad] > 0).all()


@needs_data
def test_table_is_prepared_once(table, few, tmp_path, monkeypatch):
    cached = list((tmp_path / "cache" / "molecules").glob("qm9-gfn2-*.npz"))
    assert len(cached) == 1
    import domains.molecules.datasets as module

    monkeypatch.setattr(module, "_graphs", None)
    again = qm9_gfn2(few)
    assert (again.bonds == table.bonds).all()
    assert again.smiles == table.smiles


@needs_data
def test_whole_data_set_has_the_documented_size():
    with np.load(DATA / "molecules" / "qm9_gfn2.npz", allow_pickle=False) as file:
        assert file["graph_ok"].sum() == 32527
        assert len(file["smiles_row"]) == len(set(file["smiles_row"].tolist())) == 32795


def test_missing_source_is_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        qm9_gfn2(tmp_path)


@needs_data
def test_save_load_is_exact(table, tmp_path):
    path = table.save(tmp_path / "t.npz")
    again = MoleculeTable.load(path)
    for key in ("numbers", "positions", "bonds", "charges", "n_atoms"):
        assert (getattr(again, key) == getattr(table, key)).all()
        assert getattr(again, key).dtype == getattr(table, key).dtype
    assert again.smiles == table.smiles
    assert again.name == table.name
    for key, value in table.properties.items():
        assert (again.properties[key] == value).all()
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"] == []


def test_load_refuses_what_is_no_table(tmp_path):
    path = tmp_path / "t.npz"
    with pytest.raises(InputError, match="no such file"):
        MoleculeTable.load(path)
    path.write_bytes(b"PK not a zip")
    with pytest.raises(InputError, match="not a table"):
        MoleculeTable.load(path)
    np.savez(path, numbers=np.zeros((1, 1)))
    with pytest.raises(InputError, match="not a table"):
        MoleculeTable.load(path)
    np.savez(path, numbers=np.array([{"a": 1}], object))
    with pytest.raises(InputError, match="not a table"):
        MoleculeTable.load(path)
    whole = _pair().save(tmp_path / "whole.npz").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a table"):
        MoleculeTable.load(path)


def _pair() -> MoleculeTable:
    water = molecule_from_smiles("O").replace(positions=np.eye(3), properties={"gap": 1.0})
    methanol = molecule_from_smiles("CO").replace(positions=np.ones((6, 3)))
    return MoleculeTable.from_molecules([water, methanol], "pair", ["O", "CO"])


def test_molecules_to_table_and_back():
    table = _pair()
    assert table.numbers.shape == (2, 6)
    assert len(table[0]) == 3
    assert table[0].properties == {"gap": 1.0}
    assert table[1].properties == {}
    assert np.isnan(table.properties["gap"][1])
    assert (table[0].bonds == molecule_from_smiles("O").bonds).all()
    assert [m.name for m in table] == ["O", "CO"]
    assert table.subset([1]).smiles == ["CO"]
    assert len(table.subset(np.array([True, False]))) == 1
    joined = MoleculeTable.concatenate([table, MoleculeTable.empty(), table.subset([0])])
    assert joined.smiles == ["O", "CO", "O"]
    assert (joined.bonds[2] == table.bonds[0]).all()


def test_table_refuses_what_cannot_be_trained_on():
    with pytest.raises(InputError, match="no molecules"):
        MoleculeTable.from_molecules([])
    with pytest.raises(InputError, match="molecule 1 has no positions"):
        MoleculeTable.from_molecules([molecule_from_smiles("C")])
    with pytest.raises(InputError, match="no bonds"):
        MoleculeTable.from_molecules([Molecule(np.array([1]), np.zeros((1, 3)))])
    with pytest.raises(ValueError, match="bonds must be"):
        MoleculeTable(
            np.ones((1, 2)), np.ones((1, 2, 3)), np.ones((1, 3, 3)), np.ones((1, 2)), np.ones(1)
        )


@pytest.mark.parametrize("size", [1, 19, 20, 1000])
def test_split_is_a_seeded_partition(size):
    table = _pair().subset(np.zeros(size, int))
    parts = split(table, seed=3)
    rows = np.concatenate(list(parts.values()))
    assert sorted(rows.tolist()) == list(range(size))
    assert len(parts["valid"]) == len(parts["test"]) == size // 20
    again = split(table, seed=3)
    assert all((parts[key] == again[key]).all() for key in parts)
    if size == 1000:
        assert any((parts[key] != split(table, seed=4)[key]).any() for key in parts)
        assert parts["valid"][:5].tolist() == [58, 85, 87, 128, 180]


def test_tables_need_neither_rdkit_nor_torch():
    code = (
        "import sys, domains.molecules.datasets;"
        "print([m for m in ('rdkit', 'torch', 'tblite') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


METHANE = (
    "5\n"
    "gdb {index}\t157.7118\t157.70997\t157.70699\t0.\t13.21\t-0.3877\t0.1171\t0.5048\t35.3641\t"
    "0.044749\t-40.47893\t-40.476062\t-40.475117\t-40.498597\t6.469\t\n"
    "C\t-0.0126981359\t 1.0858041578\t 0.0080009958\t-0.535689\n"
    "H\t 2.1997*^-3\t-0.0060313176\t 0.0019761204\t 0.133921\n"
    "H\t 1.0117308433\t 1.4637511618\t 2.765748*^-4\t 0.133922\n"
    "H\t-0.540815069\t 1.4475266138\t-0.8766437152\t 0.133923\n"
    "H\t-0.5238136345\t 1.4379326443\t 0.9063972942\t 0.133923\n"
    "1341.307\t1341.3284\t1341.365\t1562.6731\t1562.7453\t3038.3205\t3151.6034\t3151.6788\t3151.7078\n"
    "C\tC\t\nInChI=1S/CH4/h1H4\tInChI=1S/CH4/h1H4\n"
)

UNCHARACTERIZED = (
    "#" * 60
    + "\n# 1 of 4 molecules\n"
    + "#\n" * 4
    + "2014 a line of text\n#Index Smiles\n"
    + "#" * 60
    + "\n     2   C   C   C\n"
    + "#" * 60
    + "\n"
)


def test_published_format_is_parsed_in_this_projects_units():
    index, methane = parse_qm9(METHANE.format(index=1))
    assert index == 1
    assert methane.numbers.tolist() == [6, 1, 1, 1, 1]
    assert methane.positions[1] == pytest.approx([2.1997e-3, -0.0060313176, 0.0019761204])
    assert methane.positions[2, 2] == pytest.approx(2.765748e-4)
    assert methane.properties["gap"] == pytest.approx(0.5048 * 27.211386, abs=1e-5)
    assert methane.properties["gap"] == pytest.approx(
        methane.properties["lumo"] - methane.properties["homo"], abs=1e-9
    )
    assert methane.properties["energy"] == -40.47893
    assert methane.properties["alpha"] == 13.21
    assert methane.properties["cv"] == 6.469


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [("5\n", "x\n", 1), ("gdb", "abc", 2), ("13.21", "?", 2), ("C\t-0.01", "Q\t-0.01", 3)],
)
def test_a_damaged_published_file_is_named_with_its_line(old, new, line):
    with pytest.raises(InputError) as caught:
        parse_qm9(METHANE.format(index=1).replace(old, new, 1), "dsgdb9nsd_000001.xyz")
    assert caught.value.line == line


@pytest.fixture
def server(tmp_path):
    """A file server on this machine with a small archive in the published format."""
    folder = tmp_path / "served"
    folder.mkdir()
    with tarfile.open(folder / "dsgdb9nsd.xyz.tar.bz2", "w:bz2") as tar:
        for index in (3, 1, 2, 4):
            data = METHANE.format(index=index).encode()
            if index == 4:  # a methyl radical has no closed-shell graph
                data = data.replace(b"5\n", b"4\n", 1).replace(b"H\t-0.5238", b"#\t-0.5238")
                data = b"\n".join(r for r in data.split(b"\n") if not r.startswith(b"#"))
            info = tarfile.TarInfo(f"dsgdb9nsd_{index:06d}.xyz")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (folder / "uncharacterized.txt").write_text(UNCHARACTERIZED)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def _arguments(folder: Path, root: str) -> dict[str, str]:
    def digest(name: str) -> str:
        return "md5:" + hashlib.md5((folder / name).read_bytes()).hexdigest()

    return {
        "url": f"{root}/dsgdb9nsd.xyz.tar.bz2",
        "known_hash": digest("dsgdb9nsd.xyz.tar.bz2"),
        "excluded_url": f"{root}/uncharacterized.txt",
        "excluded_hash": digest("uncharacterized.txt"),
    }


def test_original_qm9_is_downloaded_checked_and_kept(server, tmp_path, monkeypatch):
    arguments = _arguments(*server)
    home = tmp_path / "home"
    table = qm9_original(home, **arguments, n_jobs=1, progress=False)
    assert table.smiles == ["C", "C"]  # 2 is excluded, 4 is a radical, 1 comes before 3
    assert (table.bonds[0].sum(1) == [4, 1, 1, 1, 1]).all()
    assert (server[0] / "dsgdb9nsd.xyz.tar.bz2").unlink() is None
    again = qm9_original(home, **arguments, n_jobs=1, progress=False)
    assert (again.positions == table.positions).all()


def test_wrong_checksum_is_refused_and_nothing_is_kept(server, tmp_path):
    arguments = _arguments(*server) | {"known_hash": "md5:" + "0" * 32}
    home = tmp_path / "home"
    with pytest.raises(InputError, match="checksum"):
        qm9_original(home, **arguments, progress=False)
    assert list(home.iterdir()) == []


def test_no_connection_is_a_clear_error(tmp_path):
    with pytest.raises(InputError, match="cannot be downloaded"):
        qm9_original(
            tmp_path, url="http://127.0.0.1:9/x", known_hash="md5:" + "0" * 32, progress=False
        )


def test_a_users_sdf_is_kept_as_it_is(tmp_path):
    table = _pair()
    molecules = [m.replace(positions=np.eye(len(m), 3) + i) for i, m in enumerate(table)]
    write_sdf(tmp_path / "mine.sdf", molecules)
    again = table_from_file(tmp_path / "mine.sdf")
    assert again.name == "mine"
    assert again.smiles == ["O", "CO"]
    assert again.properties["gap"][0] == 1.0
    assert np.abs(again.positions[0, :3] - np.eye(3)).max() < 1e-4


@needs_data
def test_a_users_xyz_gets_its_bonds(tmp_path):
    real = read_molecules(DATA / "molecules" / "qm9_mini.sdf").molecules
    write_xyz(tmp_path / "mine.xyz", real)
    table = table_from_file(tmp_path / "mine.xyz")
    assert len(table) == 21
    assert all((a.bonds == b.bonds).all() for a, b in zip(table, real, strict=True))


def test_a_users_csv_is_built_in_3d_and_keeps_its_own_properties(tmp_path, caplog):
    path = tmp_path / "mine.csv"
    path.write_text("smiles,solubility,gap\nO,1.5,99\nC1CC,2.5,1\nC,,\n")
    with caplog.at_level(logging.WARNING):
        table = table_from_file(path, n_jobs=1, progress=False)
    assert table.smiles == ["O", "C"]
    assert table.properties["solubility"][0] == 1.5
    assert np.isnan(table.properties["solubility"][1])
    assert table.properties["gap"][0] == 99
    assert table.properties["dipole"][0] == pytest.approx(2.2, abs=0.3)  # water
    assert table.properties["dipole"][1] < 0.01  # methane
    assert "1 of 3 records dropped" in caplog.text
    assert "unclosed ring" in caplog.text
