"""Structures by name from the RCSB PDB and from CATH, each file checked against its sha256.

A list has one name a line, anything behind a blank is a sha256 of the file or is not read::

    1ubq                 every chain of the PDB entry
    1a2x_B               chain B of it
    2kl8  5f0a…          the entry, only with this checksum
    1cukA01              a CATH domain

Entries come as mmCIF (files.rcsb.org), domains as PDB (cathdb.info); see :mod:`sciflow.downloads`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sciflow.domain import Progress
from sciflow.downloads import Downloads
from sciflow.errors import InputError
from sciflow.files import read_text

__all__ = ["ADDRESSES", "Entry", "Fetched", "fetch", "read_list"]

ADDRESSES = {
    "rcsb": "https://files.rcsb.org/download/{id}.cif.gz",
    "cath": "https://www.cathdb.info/version/v4_3_0/api/rest/id/{id}.pdb",
}
"""Where each kind of name is fetched from; a mirror has the same form."""

_CATH = re.compile(r"(\d[a-z0-9]{3})([A-Za-z0-9])(\d\d)")
_PDB = re.compile(r"(\d[a-z0-9]{3})(?:[_.:]?([A-Za-z0-9]{1,4}))?", re.IGNORECASE)
_SUM = re.compile(r"[0-9a-f]{64}")


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
        InputError: the list, or the record of checksums, cannot be read.
    """
    path = Path(path)
    addresses = {**ADDRESSES, **(addresses or {})}
    entries = read_list(path)[:limit]
    downloads = Downloads(folder)
    files: dict[str, Path] = {}
    wanted: dict[str, str] = {}
    dropped: list[InputError] = []
    for done, entry in enumerate(entries, start=1):
        if entry.file in files:
            if wanted.get(entry.file, "") != entry.chain:
                reason = f"{entry.id} is on the list before; one chain of an entry, or all, is used"
                dropped.append(InputError(reason, path, entry.line))
            continue
        address = addresses[entry.source].format(id=entry.id)
        try:
            # The list has the last word: a checksum of its own outweighs the recorded one.
            got = downloads.fetch(address, entry.file, entry.sha256)
        except InputError as error:
            reason = f"{entry.id} cannot be had from {address}: {error.reason.splitlines()[0]}"
            dropped.append(InputError(reason, path, entry.line))
            continue
        files[entry.file] = got
        if entry.chain:
            wanted[entry.file] = entry.chain
        if progress is not None:
            progress(done, len(entries))
    return Fetched(list(files.values()), wanted, dropped)
