"""Files are whole or absent, and come back as they were written."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from sciflow.errors import InputError
from sciflow.files import (
    file_kind,
    read_text,
    reading_arrays,
    write_atomically,
    write_csv,
    write_json,
    writing,
)


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_text_comes_back(tmp_path: Path, name: str) -> None:
    path = write_atomically(tmp_path / "new folder" / name, "Å and \n lines\n")
    assert path.read_bytes()[:2] == (b"\x1f\x8b" if name.endswith(".gz") else "Å".encode())
    assert read_text(path) == "Å and \n lines\n"


def test_equal_texts_are_equal_archives(tmp_path: Path) -> None:
    made = [write_atomically(tmp_path / f"{k}.gz", "text\n").read_bytes() for k in range(2)]
    assert made[0] == made[1]
    assert gzip.decompress(made[0]) == b"text\n"


def test_bytes_are_written_as_they_are(tmp_path: Path) -> None:
    packed = gzip.compress(b"text")
    assert write_atomically(tmp_path / "a.gz", packed).read_bytes() == packed


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", {"x": 1})
    before = path.read_text()
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"x": float("nan")})
    with pytest.raises(KeyboardInterrupt), writing(path) as f:
        f.write(b"half")
        raise KeyboardInterrupt
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("name", ["x.SDF", "x.sdf.gz", "a.b.sdf", "x.Sdf.GZ"])
def test_the_suffix_tells_the_kind(name: str) -> None:
    assert file_kind(name, (".sdf", ".xyz")) == ".sdf"


@pytest.mark.parametrize("name", ["x.pdb", "x", "x.gz", ".sdf"])
def test_another_suffix_is_refused_with_those_allowed(name: str) -> None:
    with pytest.raises(InputError, match=r"unknown kind of file .*allowed: \.sdf, \.xyz"):
        file_kind(name, (".sdf", ".xyz"))


def test_a_table_comes_back(tmp_path: Path) -> None:
    rows = [{"b": 1, "a": 'x, "y"'}, {"c": 2.5, "b": 3}]
    path = write_csv(tmp_path / "t.csv", iter(rows))
    assert path.read_text() == 'b,a,c\n1,"x, ""y""",\n3,,2.5\n'
    assert write_csv(path, [], ("b", "a")).read_text() == "b,a\n"
    with pytest.raises(ValueError, match="'c'"):
        write_csv(path, rows, ("a", "b"))
    assert path.read_text() == "b,a\n"


def test_arrays_come_back_and_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with writing(path) as f:
        np.savez(f, x=np.arange(500.0))
    with reading_arrays(path, "a table") as file:
        np.testing.assert_array_equal(file["x"], np.arange(500.0))
    with (
        pytest.raises(InputError, match=r"a\.npz: not a table .*y is not a file"),
        reading_arrays(path, "a table") as file,
    ):
        file["y"]
    with (
        pytest.raises(InputError, match="none: no such file"),
        reading_arrays(tmp_path / "none", "a table"),
    ):
        pass
    whole = path.read_bytes()
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, x=np.array([{}], object))
    for content in (whole[:-40], b"", b"text", pickled.read_bytes()):
        path.write_bytes(content)
        with (
            pytest.raises(InputError, match="not a table"),
            reading_arrays(path, "a table") as file,
        ):
            file["x"]
