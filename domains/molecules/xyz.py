"""XYZ: a count, a comment and one ``element x y z`` line an atom, frame after frame.

The extended form puts ``key=value`` pairs in the comment and may name its columns with
``Properties=species:S:1:pos:R:3``; both are understood, lattices are ignored. The format knows no
bonds: :func:`domains.molecules.perceive.perceive_bonds` finds them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from rdkit import Chem

from domains.molecules.molecule import Molecule
from domains.molecules.numbers import finite_number
from sciflow.errors import InputError
from sciflow.files import write_atomically

__all__ = ["element_number", "read_xyz", "write_xyz"]

MAX_ATOMS = 1000
"""Atoms that a molecule read from a structure file may have."""

_PAIR = re.compile(r"""([\w.-]+)=("[^"]*"|'[^']*'|\S+)""")
_SYMBOLS = {Chem.GetPeriodicTable().GetElementSymbol(z).lower(): z for z in range(1, 119)}


def element_number(text: str) -> int:
    """The atomic number of a symbol (any case) or a number; 0 if there is no such element."""
    if text.isascii() and text.isdigit():
        return int(text) if len(text) <= 3 and 1 <= int(text) <= 118 else 0
    return _SYMBOLS.get(text.lower(), 0)


def read_xyz(text: str, path: Path, strict: bool = True) -> Iterator[Molecule | InputError]:
    """Molecules of the frames of an XYZ text, or the error of each bad frame.

    A bad atom line costs its frame; a bad count ends the reading, for the next frame cannot be
    found.
    """
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        if not lines[at].strip():
            at += 1
            continue
        head = lines[at].split()[0]
        if not (head.isascii() and head.isdigit()):
            yield InputError(
                f"expected the number of atoms of a frame, found {lines[at][:40]!r}; "
                "the rest of the file is not read",
                path,
                at + 1,
            )
            return
        count = int(head) if len(head) < 10 else 10**9
        body = lines[at + 2 : at + 2 + count]
        try:
            if not 1 <= count <= MAX_ATOMS:
                raise InputError(f"{head} atoms; allowed: 1 to {MAX_ATOMS}", path, at + 1)
            if len(body) < count:
                raise InputError(f"{count} atoms promised, {len(body)} lines left", path, at + 1)
            yield _frame(lines[at + 1], body, path, at + 3)
        except InputError as error:
            yield error
        at += 2 + count


def _frame(comment: str, body: list[str], path: Path, first: int) -> Molecule:
    pairs = {key: value.strip("\"'") for key, value in _PAIR.findall(comment)}
    species, start = _columns(pairs.pop("Properties", ""))
    numbers = np.zeros(len(body), np.int64)
    positions = np.zeros((len(body), 3))
    for i, line in enumerate(body):
        words = line.split()
        if len(words) < max(species + 1, start + 3):
            raise InputError(f"expected 'element x y z', found {line[:60]!r}", path, first + i)
        numbers[i] = element_number(words[species])
        if not numbers[i]:
            raise InputError(f"no element {words[species][:20]!r}", path, first + i)
        for k, word in enumerate(words[start : start + 3]):
            value = finite_number(word)
            if value is None:
                raise InputError(
                    f"coordinate {word[:20]!r} is not a finite number", path, first + i
                )
            positions[i, k] = value
    properties = {}
    for key, word in pairs.items():
        value = finite_number(word)
        if value is not None:
            properties[key] = value
    name = pairs.get("name", "") if pairs else comment.strip()
    return Molecule(numbers, positions, properties=properties, name=name)


def _columns(layout: str) -> tuple[int, int]:
    """Where the element and the first coordinate stand in an atom line."""
    species, start, column = 0, 1, 0
    words = layout.split(":")
    for name, width in zip(words[::3], words[2::3], strict=False):
        if name in ("species", "Z"):
            species = column
        if name == "pos":
            start = column
        column += int(width) if width.isdigit() else 0
    return species, start


def write_xyz(path: str | Path, molecules: Iterable[Molecule]) -> Path:
    """Every molecule as one frame; name and properties go to the comment as ``key=value``.

    Raises:
        InputError: a molecule without positions, or with one that is not finite.
    """
    symbol = Chem.GetPeriodicTable().GetElementSymbol
    out = []
    for i, molecule in enumerate(molecules):
        if molecule.positions is None or not np.isfinite(molecule.positions).all():
            raise InputError(f"molecule {i + 1} has no finite positions; XYZ is nothing else")
        name = " ".join(molecule.name.replace('"', "'").split())
        pairs = [f'name="{name}"'] if name else []
        pairs += [f"{key}={value:.10g}" for key, value in molecule.properties.items()]
        out.append(f"{len(molecule)}\n{' '.join(pairs)}\n")
        for number, (x, y, z) in zip(molecule.numbers, molecule.positions, strict=True):
            out.append(f"{symbol(int(number)):<2} {x:14.8f} {y:14.8f} {z:14.8f}\n")
    return write_atomically(path, "".join(out))
