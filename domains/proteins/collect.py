"""From a folder of structure files to a table of chains, resumably.

Of each file the first model is used; residues without all of N, CA, C and O are left out, which
breaks the chain there; chains shorter than twenty residues, and sequences that are there already,
are dropped. DSSP states are computed and sequences clustered (:mod:`domains.proteins.clusters`).
Whatever is left out is listed with its reason.

The files are cut into parts. A part is written whole when it is done, under a name made of its
files' names, sizes and times; a run that was killed goes on with the parts that are missing.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from joblib import Parallel, delayed

from domains.proteins.chain import Chain
from domains.proteins.clusters import cluster
from domains.proteins.evaluators.secondary_structure import dssp_codes
from domains.proteins.fetch import fetch
from domains.proteins.io import SUFFIXES, complete_residues, read_chains
from domains.proteins.table import ChainTable
from sciflow.errors import InputError
from sciflow.files import write_json

__all__ = [
    "BuildResult",
    "build",
    "build_from",
    "structure_files",
    "table_from_chains",
    "table_from_folder",
]

_PART = 64
_RECIPE = "chains/1"


@dataclass(frozen=True)
class BuildResult:
    """What a run gave.

    Attributes:
        table: the chains, in the order of the files.
        dropped: why each file, chain or residue that is not among them was left out.
        path: where the table lies.
    """

    table: ChainTable
    dropped: list[InputError]
    path: Path


def structure_files(folder: str | Path) -> list[Path]:
    """Every file below ``folder`` whose suffix is one of a structure, sorted by path.

    Raises:
        InputError: no such folder, or none in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError("no such folder", folder)
    names = tuple(s + z for s in SUFFIXES for z in ("", ".gz"))
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name.lower().endswith(names))
    if not files:
        raise InputError(f"no structures in this folder; looked for {', '.join(SUFFIXES)}", folder)
    return files


def table_from_folder(
    folder: str | Path, min_length: int = 20, jobs: int = 1
) -> tuple[ChainTable, list[InputError]]:
    """Every usable chain of a folder of PDB or mmCIF files, and what was left out.

    Args:
        folder: searched with all its folders.
        min_length: fewest residues of a chain.
        jobs: worker processes, -1 for every core.

    Raises:
        InputError: no such folder, no structures, or no usable chain.
    """
    files = structure_files(folder)
    parts = Parallel(n_jobs=jobs)(
        delayed(_chains)(files[i : i + _PART], {}, min_length) for i in range(0, len(files), _PART)
    )
    chains = [chain for part, _ in parts for chain in part]
    dropped = [error for _, errors in parts for error in errors]
    return _distinct([_table(chains)] if chains else [], dropped, Path(folder))


def table_from_chains(
    chains: Sequence[Chain], path: Path, min_length: int = 1
) -> tuple[ChainTable, list[InputError]]:
    """The usable ones of chains that were read from ``path``, and what was left out.

    Raises:
        InputError: none is usable.
    """
    dropped: list[InputError] = []
    kept = _whole(chains, path, min_length, dropped)
    return _distinct([_table(kept)] if kept else [], dropped, path)


def build(
    files: Sequence[Path],
    out: str | Path,
    *,
    wanted: Mapping[str, str] | None = None,
    min_length: int = 20,
    jobs: int = -1,
) -> BuildResult:
    """Read structure files into ``out``, a table that :meth:`ChainTable.load` reads.

    Args:
        files: in the order that the table shall have.
        out: the ``.npz`` to write; parts lie in a folder beside it until it is whole.
        wanted: ``{file name: what is used of it}``: a chain ("A"), or a chain's residues
            ("A:10-85"); every chain of files that are not named.
        min_length: fewest residues of a chain.
        jobs: worker processes, -1 for every core.

    Raises:
        InputError: no usable chain.
    """
    out = Path(out)
    folder = out.with_name(f".{out.name}.parts")
    parts = [files[i : i + _PART] for i in range(0, len(files), _PART)]
    names = [folder / f"{i:05d}-{_fingerprint(p, wanted or {}, min_length)}" for i, p in
             enumerate(parts)]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    Parallel(n_jobs=jobs)(
        delayed(_part)(part, name, dict(wanted or {}), min_length)
        for part, name in zip(parts, names, strict=True)
        if not name.with_suffix(".json").is_file()
    )
    tables, dropped = [], []
    for name in names:
        if name.with_suffix(".npz").is_file():
            tables.append(ChainTable.load(name.with_suffix(".npz")))
        for row in json.loads(name.with_suffix(".json").read_text()):
            dropped.append(InputError(*row))
    table, dropped = _distinct(tables, dropped, out)
    table.save(out)
    shutil.rmtree(folder)
    return BuildResult(table, dropped, out)


def _fingerprint(part: Sequence[Path], wanted: Mapping[str, str], min_length: int) -> str:
    rows = [(str(p), p.stat().st_size, p.stat().st_mtime_ns, wanted.get(p.name, "")) for p in part]
    return hashlib.sha256(repr((_RECIPE, min_length, rows)).encode()).hexdigest()[:16]


def _part(part: Sequence[Path], name: Path, wanted: Mapping[str, str], min_length: int) -> None:
    chains, dropped = _chains(part, wanted, min_length)
    if chains:
        _table(chains).save(name.with_suffix(".npz"))
    # Written last: a part is done when this is there.
    rows = [(e.reason, None if e.path is None else str(e.path), e.line) for e in dropped]
    write_json(name.with_suffix(".json"), rows)


def _chains(
    files: Sequence[Path], wanted: Mapping[str, str], min_length: int
) -> tuple[list[Chain], list[InputError]]:
    chains: list[Chain] = []
    dropped: list[InputError] = []
    for path in files:
        try:
            result = read_chains(path)
            asked = wanted.get(path.name, "")
            kept = [chain for chain in result if not re.search(r"_m\d+$", chain.name)]
            if len(kept) < len(result):
                more = len(result) - len(kept)
                dropped.append(InputError(f"{more} chains of further models are not used", path))
            dropped += result.dropped
            if asked:
                kept = [_part_of(kept, asked, path)]
        except InputError as error:
            dropped.append(error if error.path else InputError(error.reason, path))
            continue
        chains += _whole(kept, path, min_length, dropped)
    return chains, dropped


def _whole(
    chains: Sequence[Chain], path: Path, min_length: int, dropped: list[InputError]
) -> list[Chain]:
    """The chains without incomplete residues, if they are long enough then."""
    kept = []
    for chain in chains:
        whole, lost = complete_residues(chain)
        if lost:
            reason = f"chain {chain.chain_id}: residues without all atoms: {', '.join(lost)}"
            dropped.append(InputError(reason, path))
        if len(whole) < min_length:
            reason = f"chain {chain.chain_id}: {len(whole)} residues, fewer than {min_length}"
            dropped.append(InputError(reason, path))
        else:
            kept.append(whole)
    return kept


def _part_of(chains: Sequence[Chain], asked: str, path: Path) -> Chain:
    name, _, span = asked.partition(":")
    chain = next((c for c in chains if c.chain_id == name), None)
    if chain is None:
        raise InputError(f"no chain {name}; it has {', '.join(c.chain_id for c in chains)}", path)
    if not span:
        return chain
    match = re.fullmatch(r"(-?\d+[A-Za-z]?)-(-?\d+[A-Za-z]?)", span)
    ids = list(chain.residue_ids)
    if match is None or match[1] not in ids or match[2] not in ids:
        raise InputError(f"chain {name} has no residues {span}", path)
    return chain.take(slice(ids.index(match[1]), ids.index(match[2]) + 1))


def _table(chains: Sequence[Chain]) -> ChainTable:
    return ChainTable.from_chains(chains, dssp_codes(chains), source=[c.name for c in chains])


def _distinct(
    tables: Sequence[ChainTable], dropped: list[InputError], path: Path
) -> tuple[ChainTable, list[InputError]]:
    """One table without repeated sequences, clustered."""
    if not tables:
        reason = f"no usable chain; the first reason: {dropped[0]}" if dropped else "no files"
        raise InputError(reason, path)
    table = ChainTable.concatenate(tables)
    first: dict[str, int] = {}
    keep = []
    for row, sequence in enumerate(table.sequences):
        known = first.setdefault(sequence, row)
        # Backbones without a sequence are no copies of each other.
        if known == row or set(sequence) <= {"X"}:
            keep.append(row)
        else:
            reason = f"{table.names[row]}: the same sequence as {table.names[known]}"
            dropped.append(InputError(reason, path))
    table = table.subset(keep, path.stem)
    clusters = cluster(table.sequences)
    return ChainTable.concatenate([table], clusters, path.stem), dropped


def build_from(
    source: str | Path, out: str | Path, *, jobs: int = -1, limit: int | None = None
) -> BuildResult:
    """A table from a folder of structures, or from a list of PDB and CATH names.

    Args:
        source: the folder, or the list (see :mod:`domains.proteins.fetch`); what a list names is
            fetched into ``sources/`` beside ``out``, once.
        out: the ``.npz`` to write.
        jobs: worker processes, -1 for every core.
        limit: only the first so many files.

    Raises:
        InputError: nothing of that name, nothing usable in it, or nothing could be fetched.
    """
    source, out = Path(source), Path(out)
    if source.is_dir():
        return build(structure_files(source)[:limit], out, jobs=jobs)
    got = fetch(source, out.parent / "sources", limit=limit)
    if not got.files:
        raise InputError(f"nothing could be fetched; the first: {got.dropped[0].reason}", source)
    made = build(got.files, out, wanted=got.wanted, jobs=jobs)
    return BuildResult(made.table, [*got.dropped, *made.dropped], made.path)
