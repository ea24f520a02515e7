"""FASTA: one header line that begins with ">", then the sequence in one-letter code."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path

from domains.proteins.chain import ALPHABET, Chain
from sciflow.errors import InputError
from sciflow.files import read_text, write_atomically

__all__ = ["read_fasta", "write_fasta"]

_AMBIGUOUS = "BZXJUO"


def read_fasta(path: str | Path, dropped: list[InputError] | None = None) -> list[tuple[str, str]]:
    """(header, sequence) of every record; letters in capitals, a stop "*" at the end left out.

    B, J, Z (ambiguous), U, O (rare) and X (unknown) all come as "X".

    Args:
        path: the file, plain or ``.gz``.
        dropped: collects the error of each record that cannot be used.

    Raises:
        InputError: no such file, not FASTA, or no usable record.
    """
    path = Path(path)
    text = read_text(path, "sequences")
    records: list[tuple[str, str]] = []
    refused: list[InputError] = []
    header, first, parts = "", 0, list[str]()

    def close() -> None:
        sequence = "".join(parts).upper().removesuffix("*")
        strange = sorted(set(sequence) - set(ALPHABET) - set(_AMBIGUOUS))
        if not sequence:
            refused.append(InputError(f"{header!r} has no sequence", path, first))
        elif strange:
            reason = f"{header!r} has {''.join(strange)!r}, no amino acids in one-letter code"
            refused.append(InputError(reason, path, first))
        else:
            records.append((header, "".join(c if c in ALPHABET else "X" for c in sequence)))

    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith(">"):
            if first:
                close()
            header, first, parts = line[1:].strip(), number, []
        elif first:
            parts.append("".join(line.split()))
        elif line.strip():
            raise InputError(f"not FASTA: the first line must begin with '>', not {line[:40]!r}",
                             path, number)  # fmt: skip
    if first:
        close()
    if not records:
        reason = f"no usable sequence; the first: {refused[0].reason}" if refused else "no records"
        raise InputError(reason, path, refused[0].line if refused else None)
    if dropped is not None:
        dropped.extend(refused)
    return records


def write_fasta(path: str | Path, chains: Iterable[Chain]) -> Path:
    """The chains' sequences, 80 letters a line; chains without a designed one are left out.

    Raises:
        InputError: no chain has a sequence.
    """
    lines: list[str] = []
    for i, chain in enumerate(chains):
        if set(chain.sequence) <= {"X"}:
            continue
        name = " ".join(chain.name.split()) or f"chain{i + 1}"
        lines += [f">{name}", *textwrap.wrap(chain.sequence, 80)]
    if not lines:
        raise InputError("no chain has a sequence (backbones without one are not designed yet)")
    return write_atomically(path, "\n".join([*lines, ""]))
