"""A file is fetched once, held to its checksum, and nothing else is kept."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sciflow.downloads import Downloads
from sciflow.errors import InputError


class Mirror:
    """Serves ``files`` and remembers what it was asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        mirror = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path[1:]
                mirror.asked.append(name)
                self.send_response(200 if name in mirror.files else 404)
                self.end_headers()
                self.wfile.write(mirror.files.get(name, b"not here"))

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    mirror = Mirror()
    thread = threading.Thread(target=mirror.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield mirror
    mirror.server.shutdown()
    mirror.server.server_close()
    thread.join()


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_the_first_download_is_the_measure_of_later_ones(
    mirror: Mirror, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mirror.files |= {"b": b"first", "a": b"other"}
    folder = tmp_path / "new"
    for name in ("b", "a"):
        path = Downloads(folder).fetch(mirror.url + name, f"{name}.txt")
        assert path == folder / f"{name}.txt" and path.read_bytes() == mirror.files[name]
    written = (folder / "checksums.txt").read_text()
    assert written == f"{sha(b'other')}  a.txt\n{sha(b'first')}  b.txt\n"
    # What is there and unaltered is not asked for; what was altered here is fetched anew.
    mirror.asked.clear()
    (folder / "a.txt").write_text("damaged")
    downloads = Downloads(folder)
    assert downloads.fetch(mirror.url + "b", "b.txt").read_bytes() == b"first"
    assert downloads.fetch(mirror.url + "a", "a.txt").read_bytes() == b"other"
    assert mirror.asked == ["a"]
    # What was altered there is refused.
    (folder / "b.txt").unlink()
    mirror.files["b"] = b"second"
    with pytest.raises(InputError, match=f"another checksum .*{sha(b'first')}; nothing was kept"):
        downloads.fetch(mirror.url + "b", "b.txt")
    assert sorted(p.name for p in folder.iterdir()) == ["a.txt", "checksums.txt"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("algorithm", ["", "sha256:", "md5:"])
def test_a_published_checksum_has_the_last_word(
    mirror: Mirror, tmp_path: Path, algorithm: str
) -> None:
    mirror.files["a"] = b"old"
    Downloads(tmp_path).fetch(mirror.url + "a", "a")
    mirror.files["a"] = b"new"
    hashed = hashlib.md5 if algorithm == "md5:" else hashlib.sha256
    wrong, right = (algorithm + hashed(text).hexdigest() for text in (b"newer", b"new"))
    with pytest.raises(InputError, match="another checksum"):
        Downloads(tmp_path).fetch(mirror.url + "a", "a", wrong)
    assert (tmp_path / "checksums.txt").read_text() == f"{sha(b'old')}  a\n"
    assert Downloads(tmp_path).fetch(mirror.url + "a", "a", right).read_bytes() == b"new"
    assert (tmp_path / "checksums.txt").read_text() == f"{sha(b'new')}  a\n"


def test_what_cannot_be_had_says_where_it_belongs(mirror: Mirror, tmp_path: Path) -> None:
    for url in (mirror.url + "nothing", "http://127.0.0.1:9/nothing"):
        with pytest.raises(InputError, match=r"cannot be downloaded .*put it at .*x\.zip"):
            Downloads(tmp_path / "none").fetch(url, "x.zip")
    assert not list(tmp_path.rglob("*.*"))


def test_an_address_of_no_protocol(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be downloaded"):
        Downloads(tmp_path).fetch("nowhere/x.zip", "x.zip")


def test_a_damaged_record_is_refused_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "checksums.txt").write_text(f"{'0' * 64}  a\nbroken\n")
    with pytest.raises(InputError, match=r"checksums\.txt:2: not a line of sha256sum"):
        Downloads(tmp_path)
