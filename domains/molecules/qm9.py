"""QM9 as published: 133,885 molecules at B3LYP/6-31G(2df,p).

Ramakrishnan, Dral, Rupp, von Lilienfeld, Sci. Data 1, 140022 (2014), figshare collection 978904.
Its files are XYZ of a kind: a count; a line ``gdb <index>`` with fifteen properties; an atom a line
with its Mulliken charge; the harmonic frequencies; SMILES; InChI. Small numbers are written as
Mathematica does (``2.1*^-6``). 3,054 molecules whose geometry does not match their identity
(the authors' ``uncharacterized.txt``) are left out, as everybody does.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from domains.molecules.molecule import Molecule
from domains.molecules.numbers import finite_number
from domains.molecules.table import MoleculeTable
from sciflow.data import cache_folder
from sciflow.downloads import Downloads
from sciflow.errors import InputError

__all__ = ["parse_qm9", "qm9_original"]

URL = "https://ndownloader.figshare.com/files/3195389"
HASH = "md5:ad1ebd51ee7f5b3a6e32e974e5d54012"
EXCLUDED_URL = "https://ndownloader.figshare.com/files/3195404"
EXCLUDED_HASH = "md5:a361887bacb427b8a0ce7903d92a53b4"
EXCLUDED_COUNT = 3054

_ELEMENTS = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}
_HARTREE = 27.211386245988
# Position on the property line after "gdb <index>", and the factor to this project's units.
_PROPERTIES = {
    "dipole": (3, 1.0),
    "alpha": (4, 1.0),
    "homo": (5, _HARTREE),
    "lumo": (6, _HARTREE),
    "gap": (7, _HARTREE),
    "zpve": (9, _HARTREE),
    "energy": (10, 1.0),
    "cv": (14, 1.0),
}
_EXCLUDED = re.compile(r"\s*(\d+)\s+[^\s\d]")
_EXCLUDED_HEAD = 9


def qm9_original(
    folder: str | Path | None = None,
    *,
    url: str = URL,
    known_hash: str = HASH,
    excluded_url: str = EXCLUDED_URL,
    excluded_hash: str = EXCLUDED_HASH,
    n_jobs: int = -1,
    progress: bool = True,
) -> MoleculeTable:
    """Download, check, parse and keep QM9; later calls read the prepared table.

    Bonds and charges are perceived from the geometry; molecules without a closed-shell Lewis
    structure are left out. Properties: ``gap``, ``homo``, ``lumo``, ``zpve`` (eV), ``dipole`` (D),
    ``alpha`` (bohr³), ``energy`` (U0, Eh), ``cv`` (cal/mol/K), at the B3LYP level.

    Args:
        folder: keeps the download and the table; default the cache.
        url: of ``dsgdb9nsd.xyz.tar.bz2``, for a mirror.
        known_hash: its checksum as ``algorithm:hex``; anything else is refused and not kept.
        excluded_url: of ``uncharacterized.txt``.
        excluded_hash: its checksum.
        n_jobs: processes that perceive bonds.
        progress: show bars.

    Raises:
        InputError: no connection, a wrong checksum, or a broken archive.
    """
    home = Path(folder) if folder is not None else cache_folder() / "molecules"
    digests = f"{known_hash.split(':')[-1][:8]}-{excluded_hash.split(':')[-1][:8]}"
    prepared = home / f"qm9-{digests}.npz"
    if prepared.is_file():
        return MoleculeTable.load(prepared)
    downloads = Downloads(home)
    archive = downloads.fetch(url, "dsgdb9nsd.xyz.tar.bz2", known_hash, progress)
    listing = downloads.fetch(excluded_url, "uncharacterized.txt", excluded_hash, progress)
    lines = listing.read_text("utf-8").splitlines()[_EXCLUDED_HEAD:]
    excluded = {int(found[1]) for found in map(_EXCLUDED.match, lines) if found}
    if excluded_hash == EXCLUDED_HASH and len(excluded) != EXCLUDED_COUNT:
        raise InputError(f"{len(excluded)} exclusions found, {EXCLUDED_COUNT} expected", listing)
    table = _prepare(archive, excluded, n_jobs, progress)
    table.save(prepared)
    return table


def _prepare(archive: Path, excluded: set[int], n_jobs: int, progress: bool) -> MoleculeTable:
    from joblib import Parallel, delayed
    from tqdm import tqdm

    texts = tqdm(_members(archive), desc="QM9", unit="mol", disable=not progress)
    results = Parallel(n_jobs=n_jobs, return_as="generator", batch_size=200)(
        delayed(_parse_and_perceive)(text, name) for name, text in texts
    )
    found = [(i, *rest) for i, *rest in results if i not in excluded and rest[0] is not None]
    if not found:
        raise InputError("no usable molecule in the archive", archive)
    found.sort(key=lambda item: item[0])
    return MoleculeTable.from_molecules([f[1] for f in found], "qm9", [f[2] for f in found])


def _members(archive: Path) -> Iterator[tuple[str, str]]:
    """Name and text of every file, read in place: nothing is unpacked onto the disk."""
    try:
        with tarfile.open(archive, "r|bz2") as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isfile() else None
                if file is not None and member.name.endswith(".xyz"):
                    yield member.name, file.read().decode("ascii")
    except (tarfile.TarError, OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"a broken archive ({error})", archive) from error


def _parse_and_perceive(text: str, name: str) -> tuple[int, Molecule | None, str]:
    from domains.molecules.perceive import perceive_bonds
    from domains.molecules.smiles import canonical_smiles

    index, molecule = parse_qm9(text, name)
    try:
        joined = perceive_bonds(molecule)
    except InputError:
        return index, None, ""
    return index, joined, canonical_smiles(joined) or ""


def parse_qm9(text: str, name: str = "") -> tuple[int, Molecule]:
    """Index (from 1) and molecule of one QM9 file; no bonds, which the file does not hold.

    Raises:
        InputError: not of that format, with the line.
    """
    lines = text.splitlines()
    try:
        count = int(lines[0])
        tag, *words = lines[1].split()
        atoms = [line.split() for line in lines[2 : 2 + count]]
    except (IndexError, ValueError):
        raise InputError("not a QM9 file: no count and property line", name, 1) from None
    if tag != "gdb" or len(words) < 16 or len(atoms) < count:
        raise InputError("not a QM9 file: 'gdb', an index and 15 properties expected", name, 2)
    values = [finite_number(word) for word in words]
    numbers, positions = [], []
    for i, atom in enumerate(atoms):
        point = [finite_number(word) for word in atom[1:4]]
        number = _ELEMENTS.get(atom[0], 0) if atom else 0
        if not number or len(point) < 3 or None in point:
            raise InputError("expected 'element x y z charge'", name, 3 + i)
        numbers.append(number)
        positions.append(point)
    properties = {}
    for key, (place, unit) in _PROPERTIES.items():
        value = values[place + 1]
        if value is None:
            raise InputError(f"{words[place + 1]!r} is not a number", name, 2)
        properties[key] = value * unit
    return int(words[0]), Molecule(
        np.array(numbers), np.array(positions, np.float64), properties=properties
    )
