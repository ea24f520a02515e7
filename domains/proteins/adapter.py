"""Proteins on the core: backbones of a wanted length, content and size, as angles or as frames.

Sequences are the same records, chains, without a structure.

Heavy imports (torch, mdtraj, Biopython) happen inside methods: asking for the domain's name, its
properties or its data sets costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sciflow.domain import Domain, Option, OracleAnswer, Progress, Property
from sciflow.errors import InputError
from sciflow.targets import Target

if TYPE_CHECKING:
    from torch import Tensor

    from domains.proteins.chain import Chain
    from domains.proteins.residue_data import SequenceTable
    from domains.proteins.table import ChainTable
    from sciflow.denoisers import NetworkDenoiser
    from sciflow.guides import Guide
    from sciflow.model import Model
    from sciflow.objectives import DenoisingObjective
    from sciflow.predictors import PropertyPredictor
    from sciflow.random import Draws
    from sciflow.state import Context, State
    from sciflow.tasks import Task
    from sciflow.training.prepared import PreparedData

__all__ = ["Proteins"]


class Proteins(Domain):
    """Backbones of protein chains, and sequences."""

    name = "proteins"
    summary = "protein backbones and sequences by length, secondary structure and size"
    default_model = "proteins/backbones"
    properties: ClassVar[Mapping[str, Property]] = {
        "length": Property("residues", "number of residues; any model can be asked for it"),
        "helix": Property("", "share of residues in helices (DSSP H, G, I)"),
        "strand": Property("", "share of residues in strands (DSSP E, B)"),
        "rg_ratio": Property("", "radius of gyration of CA atoms over 2.2 N^0.38 Å"),
    }
    datasets: ClassVar[Mapping[str, str]] = {
        "backbones": "5,530 experimental chains, split by clusters at 30 % identity",
        "backbones-alpha": "1,638 of them: helix at least 40 %, strand at most 10 %",
        "backbones-beta": "836 of them: strand at least 30 %, helix at most 10 %",
        "uniref": "31,154 reviewed UniRef50 sequences of 60 to 160 residues",
    }
    packages = ("mdtraj", "biopython", "tmtools")
    requests = ("length",)
    options: ClassVar[Mapping[str, Option]] = {
        "motif": Option("FILE", "PDB or mmCIF file of a motif to build chains around."),
        "contig": Option("TEXT", 'What of it is kept and built, e.g. "10-40/A25-46/10-40".'),
        "redesign": Option("FILE", "PDB or mmCIF file of a chain to make variants of."),
        "backbone": Option("FILE", "PDB or mmCIF file of a chain to find sequences for."),
        "fix": Option("TEXT", 'Residues of it that stay, e.g. "A1-20,A35-60".'),
        "chain": Option("ID", "Which chain of it, where the file has several."),
        "noise": Option("T", "How much of the rest is made anew, above 0 to 1; default 0.5, with "
                        "--fix 1."),
        "symmetry": Option("Cn", "Copies of one chain about an axis, e.g. C3."),
        "template": Option("TEXT", 'A sequence with ? for residues to be found, "MKT???C".'),
    }  # fmt: skip

    # --- training ---------------------------------------------------------------------------

    def presets(self) -> Sequence[str]:
        from domains.proteins.networks import PRESETS

        return list(PRESETS)

    def dataset(
        self, source: str | Path, progress: Progress | None = None
    ) -> ChainTable | SequenceTable:
        from domains.proteins.datasets import LOADERS
        from domains.proteins.own import own_table
        from domains.proteins.residue_data import from_fasta, is_fasta, uniref

        if str(source) == "uniref":
            return uniref()
        if str(source) in LOADERS:
            return LOADERS[str(source)]()
        if is_fasta(source):
            return from_fasta(source)
        allowed = (
            f"data sets: {', '.join(self.datasets)}; files: PDB, mmCIF, a folder of them, a table "
            "(.npz), or FASTA for models of sequences"
        )
        return own_table(self.require_file(source, allowed))

    def build_dataset(
        self, source: Path, out: Path, *, jobs: int = -1, seed: int = 7, limit: int | None = None
    ) -> list[InputError]:
        """Chains of a folder of structures, or of a list of PDB and CATH names."""
        from domains.proteins.collect import build_from

        return build_from(source, out, jobs=jobs, limit=limit).dropped

    def prepare(
        self,
        dataset: Any,
        preset: str,
        conditions: Sequence[str],
        like: Mapping[str, Any] | None = None,
    ) -> tuple[dict[str, Any], PreparedData, PreparedData]:
        from domains.proteins.backbone_data import prepare_backbones
        from domains.proteins.residue_data import SequenceTable
        from domains.proteins.sequence_encoding import is_sequence_model
        from domains.proteins.sequence_encoding import prepare as prepare_sequences
        from domains.proteins.sequence_networks import SEQUENCE_PRESETS

        if like is None:
            self.require_preset(preset)
        if (like is None and preset in SEQUENCE_PRESETS) or (like and is_sequence_model(like)):
            settings = SEQUENCE_PRESETS[preset] if like is None else like
            return prepare_sequences(dataset, settings, conditions, like)
        if isinstance(dataset, SequenceTable):
            raise InputError(
                f"{dataset.name} holds sequences without structures, which preset {preset} needs; "
                f"presets of sequences: {', '.join(SEQUENCE_PRESETS)}"
            )
        return prepare_backbones(dataset, preset, conditions, like)

    def denoiser(self, config: Mapping[str, Any]) -> NetworkDenoiser:
        from domains.proteins.networks import build_denoiser

        return build_denoiser(config)

    def objective(self, config: Mapping[str, Any]) -> DenoisingObjective:
        from domains.proteins.networks import build_objective

        return build_objective(config)

    def predictor_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        from domains.proteins.sequence_encoding import is_sequence_model
        from domains.proteins.sequence_networks import content_config

        return (
            content_config(config)
            if is_sequence_model(config)
            else super().predictor_config(config)
        )

    def predictor(self, config: Mapping[str, Any]) -> PropertyPredictor:
        from domains.proteins.sequence_encoding import is_sequence_model
        from domains.proteins.sequence_networks import content_predictor

        return content_predictor(config) if is_sequence_model(config) else super().predictor(config)

    def guides(self) -> Mapping[str, Guide]:
        from domains.proteins.guides import GUIDES

        return GUIDES

    # --- sampling ---------------------------------------------------------------------------

    def reference(self, data: PreparedData) -> dict[str, Tensor]:
        """Lengths and properties of a fixed random part of the training set."""
        from sciflow.reference import reference_of

        return reference_of(data)

    def context(
        self,
        config: Mapping[str, Any],
        reference: Mapping[str, Tensor],
        draws: Draws,
        targets: Mapping[str, Target],
    ) -> Context:
        """Lengths of training chains near the targets (:mod:`sciflow.reference`), or as asked."""
        from domains.proteins.encoding import empty_context
        from sciflow.reference import rows_near, values_asked

        known = {**reference, "length": reference["lengths"]}
        std = {name: _std(known[name].double()) for name in targets}
        rows = rows_near(known, targets, std, draws, "proteins/row")
        lengths = reference["lengths"].long()[rows]
        if "length" in targets:
            asked = targets["length"]
            lengths = lengths.double().clamp(asked.low, asked.high).round().long()
            if bool((lengths < 1).any()):
                raise InputError(f"a chain has 1 residue or more, not {asked}")
        return empty_context(lengths, values_asked(known, rows, targets, config["conditions"]))

    def task(self, model: Model, options: Mapping[str, Any], targets: Mapping[str, Target]) -> Task:
        from domains.proteins.tasks import make_task

        return make_task(model, options, targets)

    def encode(self, config: Mapping[str, Any], records: Sequence[Chain]) -> State:
        from domains.proteins import sequence_encoding
        from domains.proteins.encoding import Encoding

        conditions = list(config.get("conditions", {}))
        if sequence_encoding.is_sequence_model(config):
            return sequence_encoding.encode(records, conditions)
        return Encoding.from_config(config["encoding"]).encode(records, conditions)

    def decode(self, config: Mapping[str, Any], state: State) -> list[Chain]:
        from domains.proteins import sequence_encoding
        from domains.proteins.encoding import Encoding

        if sequence_encoding.is_sequence_model(config):
            return sequence_encoding.decode(state)
        return Encoding.from_config(config["encoding"]).decode(state)

    # --- files ------------------------------------------------------------------------------

    def read(self, path: str | Path, dropped: list[InputError] | None = None) -> list[Chain]:
        from domains.proteins.ensembles import read_ensemble
        from domains.proteins.residue_data import is_fasta, read_sequences

        if is_fasta(path):
            return read_sequences(path, dropped)
        result = read_ensemble(path)
        if dropped is not None:
            dropped.extend(result.dropped)
        return result.chains

    def write(self, records: Sequence[Chain], folder: Path) -> list[Path]:
        """All backbones as models of ``backbones.pdb``; each in a file of its own in ``pdb/``.

        Sequences without structures are one file, ``sequences.fasta``.
        """
        from domains.proteins.ensembles import write_ensemble
        from domains.proteins.io import write_fasta, write_pdb
        from domains.proteins.residue_data import are_sequences

        if are_sequences(records):
            return [write_fasta(folder / "sequences.fasta", records)]
        files = [write_ensemble(folder / "backbones.pdb", records)]
        single = folder / "pdb"
        single.mkdir(exist_ok=True)
        for old in single.glob("backbone-*.pdb"):
            old.unlink()
        for i, chain in enumerate(records):
            write_pdb(single / f"backbone-{i:04d}.pdb", chain.parts(), chain.name)
        if any(set(c.sequence) - {"X"} for c in records):
            write_fasta(folder / "sequences.fasta", records)
        return files

    def annotate(self, record: Chain, title: str, values: Mapping[str, float]) -> Chain:
        return record.replace(name=title, breaks=record.breaks).with_properties(**values)

    # --- judging ----------------------------------------------------------------------------

    def verdicts(self, records: Sequence[Chain]) -> list[str]:
        from domains.proteins.soundness import verdict

        return [verdict(chain) for chain in records]

    def describe(self, records: Sequence[Chain]) -> list[dict[str, Any]]:
        from domains.proteins.evaluators import rows
        from domains.proteins.evaluators.designs import design_rows
        from domains.proteins.residue_data import are_sequences

        if are_sequences(records):
            return design_rows(records)
        columns = ("length", "helix", "strand", "rg_ratio", "clashes", "contact_order", "dssp")
        return [{k: row[k] for k in columns} for row in rows(records)]

    def oracle(
        self,
        records: Sequence[Chain],
        properties: Sequence[str],
        jobs: int = -1,
        progress: Progress | None = None,
    ) -> list[OracleAnswer]:
        """DSSP and the radius of gyration; of sequences alone what the GOR method guesses."""
        import math
        import time

        from domains.proteins.evaluators import rows
        from domains.proteins.evaluators.designs import guesses
        from domains.proteins.residue_data import are_sequences

        if are_sequences(records):
            return guesses(records, properties)
        answers = []
        for i, chain in enumerate(records):
            begin = time.monotonic()
            if not chain.complete or len(chain) < 2:
                answers.append(OracleAnswer({}, "not a chain of two complete residues or more"))
            else:
                row = rows([chain])[0]
                values = {p: float(row[p]) for p in properties}
                bad = [p for p, v in values.items() if not math.isfinite(v)]
                failure = f"{bad[0]} is not finite" if bad else ""
                seconds = time.monotonic() - begin
                answers.append(OracleAnswer({} if bad else values, failure, seconds))
            if progress is not None:
                progress(i + 1, len(records))
        return answers

    def evaluate(self, records: Sequence[Chain], thorough: bool = False) -> dict[str, float]:
        from domains.proteins.evaluators import evaluate
        from domains.proteins.evaluators.designs import design_metrics
        from domains.proteins.residue_data import are_sequences, held_out_sequences

        if are_sequences(records):
            return design_metrics(records, held_out_sequences(500) if thorough else None)
        return evaluate(list(records), self.held_out(500) if thorough else None, thorough=thorough)

    def held_out(self, n: int) -> list[Chain]:
        """Whole chains of the test clusters that training would take, spread evenly."""
        from sciflow.data import shared_data

        if shared_data() is None:
            return []
        from domains.proteins.datasets import backbones
        from domains.proteins.table import split

        table = backbones()
        table = table.subset(split(table)["test"]).select((40, 128), rg_ratio=1.25, coil=0.6)
        return [table[i] for i in range(0, len(table), max(1, len(table) // max(n, 1)))][:n]

    def picture(self, record: Chain) -> str:
        from domains.proteins.pictures import svg
        from domains.proteins.residue_data import are_sequences
        from domains.proteins.sequence_pictures import sequence_svg

        return sequence_svg(record) if are_sequences([record]) else svg(record)

    def viewer(self, records: Sequence[Chain]) -> str:
        from domains.proteins.pictures import viewer_html
        from domains.proteins.residue_data import are_sequences

        if are_sequences(records):
            return ""
        return viewer_html(records)

    def plots(self, records: Sequence[Chain]) -> list[tuple[str, str]]:
        """Torsions of all chains; contacts of the first few. Of sequences their composition."""
        from domains.proteins.evaluators.ramachandran import RamachandranGrids
        from domains.proteins.pictures import contact_map_svg, ramachandran_svg
        from domains.proteins.residue_data import are_sequences
        from domains.proteins.sequence_pictures import composition_plot

        if are_sequences(records):
            return [composition_plot(records)]
        try:
            grids, behind = RamachandranGrids.load(), "; behind them what is favoured and allowed"
        except InputError:
            grids, behind = None, ""
        torsions = f"φ and ψ of every residue of {len(records)} chains{behind}"
        maps = [
            (contact_map_svg(c), f"contacts of {c.name or f'chain {i + 1}'}: CA within 8 Å")
            for i, c in enumerate(records[:5])
        ]
        return [(ramachandran_svg(records, grids), torsions), *maps]

    # --- contract tests ---------------------------------------------------------------------

    def examples(self, n: int, seed: int = 0) -> list[Chain]:
        from domains.proteins.ideal import helix_bundle

        return [helix_bundle(seed + i) for i in range(n)]


def _std(values: Tensor) -> float:
    """Standard deviation of what is known; never 0, for it is a width."""
    return float(values[~values.isnan()].std().nan_to_num().clamp(min=1e-6))
