"""Data sets from folders and lists: nothing lost, resumed where stopped, checked on fetching."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import threading
from pathlib import Path

import numpy as np
import pytest

from domains.proteins import collect
from domains.proteins.chain import Chain
from domains.proteins.clusters import cluster_by_words
from domains.proteins.collect import build, build_from, structure_files, table_from_folder
from domains.proteins.fetch import ADDRESSES, fetch, read_list
from domains.proteins.pdb import pdb_text, write_pdb
from domains.proteins.table import ChainTable
from sciflow.data import shared_data
from sciflow.errors import InputError

LETTERS = "ACDEFGHIKLMNPQRSTVWY"


def straight(n: int, seed: int = 0, **more) -> Chain:
    x = np.array([[0.0, 0, 0], [1.2, 0.7, 0], [2.5, 0, 0], [2.6, -1.2, 0]])
    x = x + np.arange(n)[:, None, None] * [3.8, 0, 0]
    sequence = "".join(np.random.default_rng(seed).choice(list(LETTERS), n))
    return Chain(x, sequence, **more)


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "mine"
    (root / "deep").mkdir(parents=True)
    write_pdb(root / "a.pdb", [straight(30, 1), straight(25, 2)])
    (root / "deep" / "b.PDB.gz").write_bytes(gzip.compress(pdb_text(straight(40, 3)).encode()))
    x = straight(50, 4).backbone.copy()
    x[20, 2] = np.nan
    write_pdb(root / "c.pdb", straight(50, 4).replace(backbone=x))
    write_pdb(root / "d.pdb", straight(30, 1))
    write_pdb(root / "e.pdb", straight(6, 5))
    (root / "f.pdb").write_text("<html>404</html>")
    one = pdb_text(straight(21, 6)).replace("END\n", "")
    (root / "g.ent").write_text("MODEL 1\n" + one + "ENDMDL\nMODEL 2\n" + one + "ENDMDL\n")
    (root / "notes.txt").write_text("not a structure")
    return root


def test_a_folder_becomes_a_table_and_nothing_is_lost(folder):
    table, dropped = table_from_folder(folder)
    assert list(zip(table.names.tolist(), table.lengths.tolist(), strict=True)) == [
        ("a_A", 30), ("a_B", 25), ("c", 49), ("b", 40), ("g", 21),
    ]  # fmt: skip
    assert table.unbroken.tolist() == [True, True, False, True, True]
    said = " | ".join(map(str, dropped))
    for reason in (
        "c.pdb: chain A: residues without all atoms: 21",
        "d: the same sequence as a_A",
        "e.pdb: chain A: 6 residues, fewer than 20",
        "f.pdb: a web page",
        "g.ent: 1 chains of further models are not used",
    ):
        assert reason in said
    assert len(dropped) == 5
    assert table[0].sequence == straight(30, 1).sequence
    assert len(set(table.cluster30.tolist())) == 5


def test_the_adapter_says_what_it_leaves_out(folder, tmp_path, caplog):
    from domains.proteins.adapter import Proteins

    domain = Proteins()
    assert len(domain.dataset(folder)) == 5
    assert "5 left out; the first:" in caplog.text
    caplog.clear()
    # Backbones without a sequence are no copies of each other; an incomplete one is told of.
    bare = [straight(n).replace(sequence="X" * n, backbone=straight(n).backbone) for n in (9, 9)]
    x = bare[0].backbone.copy()
    x[4, 0] = np.nan
    domain.write([*bare, bare[0].replace(backbone=x)], tmp_path)
    table = domain.dataset(tmp_path / "backbones.pdb")
    assert table.lengths.tolist() == [9, 9, 8]
    assert "residues without all atoms: 5" in caplog.text
    dropped = domain.build_dataset(folder, tmp_path / "built.npz", jobs=1)
    assert len(dropped) == 5 and len(domain.dataset(tmp_path / "built.npz")) == 5


def test_folders_without_structures_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        structure_files(tmp_path / "none")
    with pytest.raises(InputError, match="no structures"):
        structure_files(tmp_path)
    (tmp_path / "x.pdb").write_text("nothing")
    with pytest.raises(InputError, match=r"no usable chain.*no atoms"):
        table_from_folder(tmp_path)


def test_a_run_that_was_killed_goes_on_and_ends_the_same(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "_PART", 2)
    files = structure_files(folder)
    once = build(files, tmp_path / "once.npz", jobs=1)
    read, seen = collect.read_chains, []

    def killed(path):
        seen.append(path.name)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return read(path)

    monkeypatch.setattr(collect, "read_chains", killed)
    with pytest.raises(KeyboardInterrupt):
        build(files, tmp_path / "again.npz", jobs=1)
    assert not (tmp_path / "again.npz").exists()
    again = build(files, tmp_path / "again.npz", jobs=1)
    # The first part was done; the one that was under way is done anew.
    assert seen[:4] == [f.name for f in files[:4]]
    assert seen[4:] == [f.name for f in files[2:]]
    assert [p.name for p in tmp_path.iterdir() if "parts" in p.name] == []
    ours, theirs = ChainTable.load(tmp_path / "again.npz"), once.table
    for key in ("backbone", "sequence", "joined", "dssp", "offsets", "cluster30", "names"):
        assert np.array_equal(getattr(ours, key), getattr(theirs, key)), key
    assert [str(e) for e in again.dropped] == [
        str(e).replace("once.npz", "again.npz") for e in once.dropped
    ]


def test_one_chain_or_a_part_of_it(folder, tmp_path):
    files = [folder / "a.pdb"]
    result = build(files, tmp_path / "b.npz", wanted={"a.pdb": "B"}, jobs=1)
    assert result.table.names.tolist() == ["a_B"]
    result = build(files, tmp_path / "b.npz", wanted={"a.pdb": "A:3-24"}, jobs=1)
    assert result.table[0].residue_ids == tuple(map(str, range(3, 25)))
    with pytest.raises(InputError, match="no chain C; it has A, B"):
        build(files, tmp_path / "b.npz", wanted={"a.pdb": "C"}, jobs=1)


def test_clusters_join_relatives_and_no_strangers():
    generator = np.random.default_rng(0)

    def mutated(s: str, share: float) -> str:
        letters = np.array(list(s))
        hit = generator.random(len(s)) < share
        letters[hit] = generator.choice(list(LETTERS), hit.sum())
        return "".join(letters)

    parents = ["".join(generator.choice(list(LETTERS), 120)) for _ in range(40)]
    family = [mutated(p, 0.25) for p in parents]
    pieces = [p[30:90] for p in parents]
    found = cluster_by_words([*parents, *family, *pieces, "", "ACD", "A" * 60, "A" * 80])
    assert (found[:40] == found[40:80]).mean() > 0.95
    assert (found[:40] == found[80:120]).all()
    assert len(set(found[:40].tolist())) == 40
    assert len(set(found[120:].tolist())) == 4


@pytest.mark.skipif(shared_data() is None, reason="the shared data are not on this machine")
def test_clusters_of_real_chains_hold_what_is_alike():
    with np.load(shared_data() / "proteins" / "backbones.npz") as file:
        seq, offsets, known = file["seq"], file["offsets"], file["cluster95"]
    shared = np.flatnonzero(np.bincount(known) > 1)[:150]
    rows = np.flatnonzero(np.isin(known, shared))
    letters = np.array(list(LETTERS))
    sequences = ["".join(letters[seq[offsets[i] : offsets[i + 1]]]) for i in rows]
    found = cluster_by_words(sequences)
    for label in set(known[rows].tolist()):
        assert len(set(found[known[rows] == label].tolist())) == 1


@pytest.fixture
def mirror(tmp_path):
    """A stub of both servers on this machine, and what was asked of it."""
    root = tmp_path / "served"
    root.mkdir()
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *a, **k):
            super().__init__(*a, directory=str(root), **k)

        def do_GET(self):
            asked.append(self.path.lstrip("/"))
            super().do_GET()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    base = f"http://127.0.0.1:{server.server_port}"
    yield root, {"rcsb": f"{base}/{{id}}.cif.gz", "cath": f"{base}/{{id}}.pdb"}, asked
    server.shutdown()
    thread.join()


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_lists_are_read(tmp_path):
    path = tmp_path / "list.txt"
    digest = "ab" * 32
    path.write_text(f"# mine\n1UBQ\n1a2x_B  100 2.0\n\n2kl8 {digest}\n1cukA01\n1abcA # note\n")
    found = [(e.source, e.id, e.chain, e.sha256, e.line) for e in read_list(path)]
    assert found == [
        ("rcsb", "1ubq", "", "", 2),
        ("rcsb", "1a2x", "B", "", 3),
        ("rcsb", "2kl8", "", digest, 5),
        ("cath", "1cukA01", "", "", 6),
        ("rcsb", "1abc", "A", "", 7),
    ]
    path.write_text("1ubq\nubiquitin\n")
    with pytest.raises(InputError, match=r"list\.txt:2: 'ubiquitin' is no PDB code"):
        read_list(path)
    path.write_text("# nothing\n")
    with pytest.raises(InputError, match="no names"):
        read_list(path)
    assert ADDRESSES["rcsb"].format(id="1ubq") == "https://files.rcsb.org/download/1ubq.cif.gz"


def test_files_are_fetched_once_and_checked(mirror, tmp_path, capfd):
    root, addresses, asked = mirror
    write_pdb(root / "1cukA01.pdb", straight(30, 1))
    write_pdb(root / "2cukA01.pdb", straight(31, 2))
    path = tmp_path / "list.txt"
    path.write_text("1cukA01\n9zzz\n2cukA01\n1cukA01\n")
    got = fetch(path, tmp_path / "data", addresses)
    assert [f.name for f in got.files] == ["1cukA01.pdb", "2cukA01.pdb"]
    assert len(got.dropped) == 1 and got.dropped[0].line == 2
    assert "9zzz cannot be had from" in got.dropped[0].reason and "404" in got.dropped[0].reason
    written = (tmp_path / "data" / "checksums.txt").read_text()
    assert written == "".join(f"{sha(root / n)}  {n}\n" for n in ("1cukA01.pdb", "2cukA01.pdb"))
    # Nothing is asked for again; an altered file on this side is fetched anew.
    asked.clear()
    (tmp_path / "data" / "2cukA01.pdb").write_text("altered")
    path.write_text("1cukA01\n2cukA01\n")
    assert not fetch(path, tmp_path / "data", addresses).dropped
    assert asked == ["2cukA01.pdb"]
    assert sha(tmp_path / "data" / "2cukA01.pdb") == sha(root / "2cukA01.pdb")
    table, _ = table_from_folder(tmp_path / "data")
    assert table.names.tolist() == ["1cukA01", "2cukA01"]
    assert capfd.readouterr() == ("", "")


def test_a_file_that_differs_from_its_checksum_is_refused(mirror, tmp_path):
    root, addresses, _ = mirror
    write_pdb(root / "1cukA01.pdb", straight(30, 1))
    path = tmp_path / "list.txt"
    path.write_text(f"1cukA01 {'0' * 64}\n")
    got = fetch(path, tmp_path / "data", addresses)
    assert not got.files and "1cukA01 cannot be had" in got.dropped[0].reason
    assert not (tmp_path / "data" / "1cukA01.pdb").exists()
    path.write_text(f"1cukA01 {sha(root / '1cukA01.pdb')}\n")
    assert len(fetch(path, tmp_path / "data", addresses).files) == 1
    # The server's file changes behind our back: what was recorded still holds.
    (tmp_path / "data" / "1cukA01.pdb").unlink()
    write_pdb(root / "1cukA01.pdb", straight(30, 9))
    path.write_text("1cukA01\n")
    got = fetch(path, tmp_path / "data", addresses)
    assert not got.files and "another checksum" in got.dropped[0].reason


def test_from_names_to_a_table(mirror, tmp_path, monkeypatch):
    root, addresses, asked = mirror
    monkeypatch.setitem(ADDRESSES, "cath", addresses["cath"])
    for k in (1, 2, 3):
        write_pdb(root / f"{k}cukA01.pdb", straight(30 + k, k))
    path = tmp_path / "list.txt"
    path.write_text("1cukA01\n9cukA01\n2cukA01\n3cukA01\n")
    result = build_from(path, tmp_path / "out" / "table.npz", jobs=1, limit=3)
    assert ChainTable.load(result.path).names.tolist() == ["1cukA01", "2cukA01"]
    assert [e.line for e in result.dropped] == [2]
    assert asked == ["1cukA01.pdb", "9cukA01.pdb", "2cukA01.pdb"]
    path.write_text("9cukA01\n")
    with pytest.raises(InputError, match="nothing could be fetched"):
        build_from(path, tmp_path / "out" / "none.npz", jobs=1)
    result = build_from(root, tmp_path / "folder.npz", jobs=1, limit=2)
    assert len(result.table) == 2


def test_a_chain_of_an_entry(mirror, tmp_path):
    root, addresses, _ = mirror
    write_pdb(root / "1abc.pdb", [straight(30, 1), straight(25, 2)])
    addresses["rcsb"] = addresses["cath"]  # this stub has PDB files only
    path = tmp_path / "list.txt"
    path.write_text("1abc_B\n1abc_A\n")
    got = fetch(path, tmp_path / "data", addresses)
    assert got.wanted == {"1abc.cif.gz": "B"}
    assert got.dropped[0].line == 2 and "on the list before" in got.dropped[0].reason
