"""Motif-scaffolding problems: two published benchmarks, and a user's own file.

* RFdiffusion's (Watson et al., Nature 620, 1089, 2023): contigs on 24 native structures.
* MotifBench (Zheng et al., arXiv:2502.12479, 2025): 30 motifs, of which only the residues and the
  total length are given; where they go in the chain is free, as long as their order is kept.

A design solves a problem when its motif lies within 1 Å of the native one; both benchmarks also ask
for self-consistency, which no predictor here can judge.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from domains.proteins.chain import Chain
from domains.proteins.contigs import Contig, parse_contig
from domains.proteins.io import read_chains
from sciflow.data import shared_data
from sciflow.errors import InputError

__all__ = ["MotifProblem", "motif_problem", "motifbench", "rfdiffusion_benchmark"]


@dataclass(frozen=True)
class MotifProblem:
    """One motif to scaffold.

    Attributes:
        name: of the problem.
        contig: with its residues found; its layouts are drawn with :meth:`Contig.sample`.
        source: file of the motif.
        redesign: native residues ("A19") whose amino acid may change; their backbone is kept.
        native: names of the motif's residues in the native structure, in the contig's order.
    """

    name: str
    contig: Contig
    source: Path
    redesign: tuple[str, ...] = ()
    native: tuple[str, ...] = ()


def motif_problem(
    path: str | Path, contig: str, length: str | int | tuple[int, int] | None = None
) -> MotifProblem:
    """A problem of one's own: a PDB or mmCIF file and a contig.

    Raises:
        InputError: the file cannot be read, or the contig does not fit it.
    """
    path = Path(path)
    found = parse_contig(contig, read_chains(path).chains, length)
    return MotifProblem(path.name.split(".")[0], found, path, native=_names(found))


def rfdiffusion_benchmark(folder: str | Path | None = None) -> list[MotifProblem]:
    """The problems of ``benchmark.csv``, in its order.

    Args:
        folder: holds ``benchmark.csv`` and ``targets/``; default the shared data.

    Raises:
        InputError: the files are not there.
    """
    root = _folder(folder, "rfdiffusion_benchmark")
    problems = []
    read: dict[Path, list[Chain]] = {}
    for line, row in _rows(root / "benchmark.csv"):
        source = root / "targets" / Path(row["motif_path"]).name
        try:
            if source not in read:
                read[source] = read_chains(source).chains
            found = parse_contig(row["contig"], read[source], row["length"])
        except InputError as error:
            raise InputError(error.reason, root / "benchmark.csv", line) from error
        redesign = _listed(row["idcs_to_redesign"].replace(",", ";"))
        problems.append(MotifProblem(row["target"], found, source, redesign, _names(found)))
    return problems


def motifbench(folder: str | Path | None = None) -> list[MotifProblem]:
    """The problems of ``test_cases.csv``, named "01_1LDB" and so on as their files are.

    The files hold the motif alone, renumbered: part k of the list is chain k.

    Args:
        folder: holds ``test_cases.csv`` and the motif files; default the shared data.

    Raises:
        InputError: the files are not there, or do not fit the list.
    """
    root = _folder(folder, "motifbench")
    problems = []
    for place, (line, row) in enumerate(_rows(root / "test_cases.csv"), start=1):
        name = f"{place:02d}_{row['pdb_id']}"
        source = next((p for p in sorted(root.glob(f"{name}.pdb*"))), root / f"{name}.pdb.gz")
        chains = read_chains(source).chains
        parts = [_listed(part) for part in row["motif_residues"].split(";")]
        if [len(c) for c in chains] != [len(part) for part in parts]:
            raise InputError(
                f"{name}: the list has parts of {[len(p) for p in parts]} residues, the file "
                f"chains of {[len(c) for c in chains]}",
                root / "test_cases.csv",
                line,
            )
        total = int(row["length"])
        free = f"0-{total - sum(map(len, chains))}"
        kept = [f"{c.chain_id}{c.residue_ids[0]}-{c.residue_ids[-1]}" for c in chains]
        text = f"/{free}/".join(["", *kept, ""]).strip("/")
        found = parse_contig(text, chains, total)
        native = tuple(residue for part in parts for residue in part)
        problems.append(MotifProblem(name, found, source, _listed(row["redesign_idcs"]), native))
    return problems


def _names(contig: Contig) -> tuple[str, ...]:
    parts = [s.motif for s in contig.segments if s.motif is not None]
    return tuple(f"{part.chain_id}{i}" for part in parts for i in part.residue_ids)


def _listed(text: str) -> tuple[str, ...]:
    """Every residue of "A7-8;A70"."""
    names: list[str] = []
    for part in filter(None, (p.strip() for p in text.split(";"))):
        first, _, last = part[1:].partition("-")
        names += [f"{part[0]}{n}" for n in range(int(first), int(last or first) + 1)]
    return tuple(names)


def _folder(folder: str | Path | None, name: str) -> Path:
    if folder is not None:
        return Path(folder)
    root = shared_data()
    if root is None or not (root / "proteins" / "motifs" / name).is_dir():
        raise InputError(
            f"the motifs of {name} are not on this machine: set SCIFLOW_DATA to the folder of the "
            "shared data, or give a folder"
        )
    return root / "proteins" / "motifs" / name


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """(line, row) of a CSV file."""
    if not path.is_file():
        raise InputError("no such file", path)
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        return [(reader.line_num, row) for row in reader]
