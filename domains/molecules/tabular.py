"""Lists of SMILES: CSV with a header, or one SMILES a line with an optional name."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from domains.molecules.molecule import Molecule
from domains.molecules.numbers import finite_number
from domains.molecules.smiles import molecule_from_smiles
from sciflow.errors import InputError

__all__ = ["Row", "csv_rows", "read_csv", "read_smi", "smi_rows"]

_COLUMNS = ("smiles", "canonical_smiles")
_NAMES = ("name", "id", "title", "compound id", "mol_id")


@dataclass(frozen=True)
class Row:
    """One record as written: its SMILES not yet judged.

    Attributes:
        line: where it begins, counted from 1.
        smiles: as given, without the blanks around it.
        name: of the molecule, or empty.
        properties: the cells that are finite numbers, by their column.
    """

    line: int
    smiles: str
    name: str = ""
    properties: dict[str, float] = field(default_factory=dict)


def read_csv(text: str, path: Path, strict: bool = True) -> Iterator[Molecule | InputError]:
    """A molecule a row. Cells of other columns that are finite numbers become its properties.

    Raises:
        InputError: the header has no SMILES column.
    """
    return _molecules(csv_rows(text, path), path, strict)


def read_smi(text: str, path: Path, strict: bool = True) -> Iterator[Molecule | InputError]:
    """A molecule a line: SMILES, then optionally blanks and a name.

    Blank lines, lines that begin with ``#`` and a heading line ``smiles ...`` are no records.
    """
    return _molecules(smi_rows(text), path, strict)


def _molecules(
    rows: Iterable[Row | InputError], path: Path, strict: bool
) -> Iterator[Molecule | InputError]:
    for row in rows:
        if isinstance(row, InputError):
            yield row
            continue
        try:
            molecule = molecule_from_smiles(row.smiles, path=path, line=row.line, strict=strict)
        except InputError as error:
            yield error
            continue
        yield molecule.replace(properties=row.properties, name=row.name)


def smi_rows(text: str) -> Iterator[Row]:
    """The records of a SMILES list."""
    for line, row in enumerate(text.split("\n"), 1):
        row = row.strip()
        if not row or row.startswith("#"):
            continue
        smiles, *rest = row.split(maxsplit=1)
        if line > 1 or smiles.lower() not in _COLUMNS:
            yield Row(line, smiles, rest[0] if rest else "")


def csv_rows(text: str, path: Path) -> Iterator[Row | InputError]:
    """The records of a CSV, or the error of each malformed one.

    Raises:
        InputError: the header has no SMILES column.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text, path))
    try:
        header = [cell.strip() for cell in next(reader)]
    except (StopIteration, csv.Error) as error:
        raise InputError(f"not a CSV file ({error})", path, 1) from None
    lower = [cell.lower() for cell in header]
    column = next((lower.index(name) for name in _COLUMNS if name in lower), None)
    if column is None:
        raise InputError(
            f"no column named smiles or canonical_smiles; the header has: "
            f"{', '.join(repr(cell) for cell in header[:12])}",
            path,
            1,
        )
    title = next((lower.index(name) for name in _NAMES if name in lower), None)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield InputError(f"not a CSV row ({error})", path, line)
            continue
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(header):
            yield InputError(f"{len(row)} cells under {len(header)} headings", path, line)
            continue
        values = {}
        for i, (key, cell) in enumerate(zip(header, row, strict=True)):
            value = finite_number(cell)
            if i not in (column, title) and key and value is not None:
                values[key] = value
        name = row[title].strip() if title is not None else ""
        yield Row(line, row[column].strip(), name, values)


def _delimiter(text: str, path: Path) -> str:
    """The separator that the header uses most."""
    if ".tsv" in path.suffixes:
        return "\t"
    return max(",;\t", key=text.lstrip().splitlines()[0].count)
