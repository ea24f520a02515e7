"""Structures by name from the RCSB PDB and from CATH, each file checked against its sha256.

A list has one name a line, anything behind a blank is a sha256 of the file or is not read::

    1ubq                 every chain of the PDB entry
    1a2x_B               chain B of it
    2kl8  5f0a…          the entry, only with this checksum
    1cukA01              a CATH domain

Entries come as mmCIF (files.rcsb.org), domains as PDB (cathdb.info). What is fetched for the first
time without a checksum is written down in ``checksums.txt`` beside the files; from then on a file
that differs is refused. Downloads go through pooch: to a temporary file first, then renamed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sciflow.domain import Progress
from sciflow.errors import InputError
from sciflow.files import read_text, write_atomically

__all__ = ["ADDRESSES", "Entry", "Fetched", "fetch", "read_list"]

ADDRESSES = {
    "rcsb": "https://files.rcsb.org/download/{id}.cif.gz",
    "cath": "https://www.cathdb.info/version/v4_3_0/api/rest/id/{id}.pdb",
}
"""Where each kind of name is fetched from; a mirror has the same form."""

_CATH = re.compile(r"(\d[a-z0-9]{3})([A-Za-z0-9])(\d\d)")
_PDB = re.compile(r"(\d[a-z0-9]{3})(?:[_.:]?([A-Za-z0-9]{1,4}))?", re.IGNORECASE)
_SUM = re.compile(r"[0-9a-f]{64}")
_CHECKSUMS = "checksums.txt"


@dataclass(frozen=True)
class Entry:
    """One line of a list: where it comes from, its id there, the chain asked for, its sha256."""

    source: str
    id: str
    chain: str = ""
    sha256: str = ""
    line: int = 0

    @property
    def file(self) -> str:
        """Name of its file: "1ubq.cif.gz", "1cukA01.pdb"."""
        return f"{self.id}.cif.gz" if self.source == "rcsb" else f"{self.id}.pdb"


@dataclass(frozen=True)
class Fetched:
    """What is there after a run.

    Attributes:
        files: in the order of the list, each once.
        wanted: ``{file name: chain}`` where the list asks for one chain.
        dropped: why each of the others could not be had.
    """

    files: list[Path]
    wanted: dict[str, str]
    dropped: list[InputError]


def read_list(path: str | Path) -> list[Entry]:
    """The names of a list; lines that begin with "#" are comments.

    Raises:
        InputError: no such file, no names, or a line that is no name of a structure.
    """
    path = Path(path)
    entries = []
    for number, line in enumerate(read_text(path, "a list of names").splitlines(), start=1):
        words = line.split("#")[0].split()
        if not words:
            continue
        checksum = next((w.lower() for w in words[1:] if _SUM.fullmatch(w.lower())), "")
        cath, pdb = _CATH.fullmatch(words[0]), _PDB.fullmatch(words[0])
        if cath is not None:
            entries.append(Entry("cath", words[0], "", checksum, number))
        elif pdb is not None:
            entries.append(Entry("rcsb", pdb[1].lower(), pdb[2] or "", checksum, number))
        else:
            raise InputError(
                f"{words[0][:40]!r} is no PDB code (1ubq, 1a2x_B) and no CATH domain (1cukA01)",
                path,
                number,
            )
    if not entries:
        raise InputError("the list holds no names", path)
    return entries


def fetch(
    path: str | Path,
    folder: str | Path,
    addresses: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    limit: int | None = None,
) -> Fetched:
    """Fetch what a list names, once; files that are there and unaltered stay.

    Args:
        path: the list.
        folder: where files and ``checksums.txt`` lie.
        addresses: instead of :data:`ADDRESSES`, e.g. of a mirror.
        progress: told how many files are done.
        limit: only the first so many names.

    Raises:
        InputError: the list cannot be read.
    """
    import pooch

    path, folder = Path(path), Path(folder)
    addresses = {**ADDRESSES, **(addresses or {})}
    entries = read_list(path)[:limit]
    known = _read_checksums(folder)
    # pooch reports every unknown checksum on the terminal; they are kept in a file here.
    pooch.get_logger().setLevel(logging.WARNING)
    files: dict[str, Path] = {}
    wanted: dict[str, str] = {}
    dropped: list[InputError] = []
    for done, entry in enumerate(entries, start=1):
        if entry.file in files:
            if wanted.get(entry.file, "") != entry.chain:
                reason = f"{entry.id} is on the list before; one chain of an entry, or all, is used"
                dropped.append(InputError(reason, path, entry.line))
            continue
        recorded = known.get(entry.file, "")
        if entry.sha256 and recorded and entry.sha256 != recorded:
            recorded = ""  # the list has the last word: fetch anew and compare with that
        expected = entry.sha256 or recorded
        address = addresses[entry.source].format(id=entry.id)
        try:
            got = pooch.retrieve(
                address, f"sha256:{expected}" if expected else None, entry.file, folder
            )
        except Exception as error:
            reason = f"{entry.id} cannot be had from {address}: {str(error).splitlines()[0][:200]}"
            dropped.append(InputError(reason, path, entry.line))
            continue
        files[entry.file] = Path(got)
        if entry.chain:
            wanted[entry.file] = entry.chain
        checksum = expected or pooch.file_hash(got)
        if known.get(entry.file) != checksum:
            known[entry.file] = checksum
            lines = [f"{value}  {name}\n" for name, value in sorted(known.items())]
            write_atomically(folder / _CHECKSUMS, "".join(lines))
        if progress is not None:
            progress(done, len(entries))
    return Fetched(list(files.values()), wanted, dropped)


def _read_checksums(folder: Path) -> dict[str, str]:
    """{file: sha256} of lines as ``sha256sum`` writes them."""
    path = folder / _CHECKSUMS
    if not path.is_file():
        return {}
    known = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        words = line.split()
        if len(words) != 2 or not _SUM.fullmatch(words[0]):
            raise InputError("not a line of sha256sum; repair or remove this file", path, number)
        known[words[1]] = words[0]
    return known
