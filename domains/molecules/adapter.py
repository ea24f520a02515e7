"""Molecules on the core: small organic molecules in 3-D with bonds, judged by GFN2-xTB.

Heavy imports (torch, RDKit, tblite) happen inside methods: asking for the domain's name, its
properties or its data sets costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sciflow.domain import Domain, OracleAnswer, Progress, Property, Relaxed
from sciflow.errors import InputError
from sciflow.targets import Target

if TYPE_CHECKING:
    from torch import Tensor

    from domains.molecules.molecule import Molecule
    from domains.molecules.table import MoleculeTable
    from sciflow.denoisers import NetworkDenoiser
    from sciflow.guides import Guide
    from sciflow.objectives import DenoisingObjective
    from sciflow.predictors import PropertyPredictor
    from sciflow.random import Draws
    from sciflow.state import Context, State
    from sciflow.training.prepared import PreparedData

__all__ = ["Molecules"]


class Molecules(Domain):
    """Molecules with coordinates, types, charges and bonds, generated jointly."""

    name = "molecules"
    summary = "3-D molecules with bonds; targets checked by GFN2-xTB"
    default_model = "molecules/qm9-gfn2"
    properties: ClassVar[Mapping[str, Property]] = {
        "gap": Property("eV", "HOMO-LUMO gap"),
        "homo": Property("eV", "energy of the highest occupied orbital"),
        "lumo": Property("eV", "energy of the lowest empty orbital"),
        "dipole": Property("D", "dipole moment"),
        "alpha": Property("bohr^3", "isotropic polarisability"),
    }
    datasets: ClassVar[Mapping[str, str]] = {
        "qm9-gfn2": "QM9's molecules rebuilt at GFN2-xTB (a random third of them)",
        "qm9-b3lyp-subset": "4,015 original QM9 geometries, at most 14 atoms",
        "qm9": "the original QM9, downloaded from figshare",
    }
    packages = ("rdkit", "tblite")

    # --- training ---------------------------------------------------------------------------

    def presets(self) -> Sequence[str]:
        from domains.molecules.networks import PRESETS

        return list(PRESETS)

    def dataset(self, source: str | Path, progress: Progress | None = None) -> MoleculeTable:
        from domains.molecules import datasets

        loaders = {
            "qm9-gfn2": datasets.qm9_gfn2,
            "qm9-b3lyp-subset": datasets.qm9_b3lyp_subset,
            "qm9": datasets.qm9_original,
        }
        if str(source) in loaders:
            return loaders[str(source)]()
        allowed = f"data sets: {', '.join(loaders)}; files: SDF, XYZ, CSV or SMILES"
        path = self.require_file(source, allowed)
        if path.suffix == ".npz":
            return datasets.MoleculeTable.load(path)
        return datasets.table_from_file(path)

    def build_dataset(
        self, source: Path, out: Path, *, jobs: int = -1, seed: int = 7, limit: int | None = None
    ) -> list[InputError]:
        """Structures and GFN2-xTB properties of a list of SMILES (CSV, .smi)."""
        from domains.molecules.builder import build

        result = build(source, out, n_jobs=jobs, seed=seed, limit=limit)
        return [InputError(f"{reason} ({text})", source, row + 1)
                for row, text, reason in result.failures]  # fmt: skip

    def prepare(
        self,
        dataset: Any,
        preset: str,
        conditions: Sequence[str],
        like: Mapping[str, Any] | None = None,
    ) -> tuple[dict[str, Any], PreparedData, PreparedData]:
        from domains.molecules.encoding import Encoding
        from domains.molecules.networks import PRESETS
        from domains.molecules.table import split
        from sciflow.training.prepared import statistics

        parts = split(dataset)
        train, held_out = dataset.subset(parts["train"]), dataset.subset(parts["valid"])
        if like is not None:
            encoding = Encoding.from_config(like["encoding"])
            data, valid = (
                encoding.prepare(part.with_missing(like["conditions"]), list(like["conditions"]))
                for part in (train, held_out)
            )
            return {**like, "dataset": dataset.name}, data, valid
        self.require_preset(preset)
        encoding = Encoding.of(train)
        data, valid = (encoding.prepare(part, conditions) for part in (train, held_out))
        config = {
            "domain": self.name,
            "dataset": dataset.name,
            "encoding": encoding.config(),
            "conditions": statistics(data.conditions),
            **PRESETS[preset],
        }
        return config, data, valid

    def denoiser(self, config: Mapping[str, Any]) -> NetworkDenoiser:
        from domains.molecules.networks import build_denoiser

        return build_denoiser(dict(config))

    def predictor_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        from domains.molecules.networks import PREDICTOR

        kept = {k: config[k] for k in ("domain", "dataset", "encoding")}
        return {**kept, "predicts": config["conditions"], **PREDICTOR}

    def predictor(self, config: Mapping[str, Any]) -> PropertyPredictor:
        from domains.molecules.networks import build_predictor

        return build_predictor(dict(config))

    def guides(self) -> Mapping[str, Guide]:
        from domains.molecules.forces import GUIDES

        return GUIDES

    def objective(self, config: Mapping[str, Any]) -> DenoisingObjective:
        from sciflow.objectives import DenoisingObjective

        return DenoisingObjective(
            weights={"coords": 3.0, "types": 1.0, "charges": 0.2, "bonds": 2.0},
            beta=1.5,
            drift=0.7,
            groups=(("types", "charges", "bonds"),),
            drop_all=0.3,
            drop_each=0.55,
        )

    # --- sampling ---------------------------------------------------------------------------

    def reference(self, data: PreparedData) -> dict[str, Tensor]:
        """Sizes and properties of a fixed random part of the training set, ``[≤ 4096]`` each."""
        from sciflow.reference import reference_of

        return reference_of(data)

    def context(
        self,
        config: Mapping[str, Any],
        reference: Mapping[str, Tensor],
        draws: Draws,
        targets: Mapping[str, Target],
    ) -> Context:
        """Sizes of training molecules near the targets; see :mod:`sciflow.reference`."""
        from domains.molecules.encoding import empty_context
        from sciflow.reference import rows_near, values_asked

        statistics = config["conditions"]
        std = {name: statistics[name][1] for name in targets}
        rows = rows_near(reference, targets, std, draws, "molecules/row")
        asked = values_asked(reference, rows, targets, statistics)
        return empty_context(reference["lengths"].long()[rows], asked)

    def encode(self, config: Mapping[str, Any], records: Sequence[Molecule]) -> State:
        from domains.molecules.encoding import Encoding

        conditions = list(config.get("conditions", {}))
        return Encoding.from_config(dict(config["encoding"])).encode(records, conditions)

    def decode(self, config: Mapping[str, Any], state: State) -> list[Molecule]:
        from domains.molecules.encoding import Encoding

        return Encoding.from_config(dict(config["encoding"])).decode(state)

    # --- files ------------------------------------------------------------------------------

    def read(self, path: str | Path, dropped: list[InputError] | None = None) -> list[Molecule]:
        from domains.molecules.io import read_molecules

        result = read_molecules(path, strict=False)
        if dropped is not None:
            dropped.extend(result.dropped)
        return result.molecules

    def write(self, records: Sequence[Molecule], folder: Path) -> list[Path]:
        from domains.molecules.io import write_smiles
        from domains.molecules.sdf import write_sdf
        from domains.molecules.xyz import write_xyz

        return [
            write_sdf(folder / "molecules.sdf", records),
            write_xyz(folder / "molecules.xyz", records),
            write_smiles(folder / "molecules.smi", records),
        ]

    def annotate(self, record: Molecule, title: str, values: Mapping[str, float]) -> Molecule:
        return record.replace(name=title, properties={**record.properties, **values})

    # --- judging ----------------------------------------------------------------------------

    def verdicts(self, records: Sequence[Molecule]) -> list[str]:
        from domains.molecules.evaluators import is_valid

        return [is_valid(m).reason for m in records]

    def describe(self, records: Sequence[Molecule]) -> list[dict[str, Any]]:
        from domains.molecules.evaluators import is_valid

        return [
            {"smiles": is_valid(m).smiles, "formula": m.formula, "atoms": len(m)} for m in records
        ]

    def oracle(
        self,
        records: Sequence[Molecule],
        properties: Sequence[str],
        jobs: int = -1,
        progress: Progress | None = None,
    ) -> list[OracleAnswer]:
        from domains.molecules.oracle import XtbOracle

        answers = []
        oracle, chunk = XtbOracle(), 64
        for i in range(0, len(records), chunk):
            for r in oracle.evaluate(records[i : i + chunk], tuple(properties), n_jobs=jobs):
                answers.append(OracleAnswer(r.values, r.error or "", r.seconds))
            if progress is not None:
                progress(len(answers), len(records))
        return answers

    def relax(
        self, records: Sequence[Molecule], jobs: int = -1, progress: Progress | None = None
    ) -> list[Relaxed]:
        """By GFN2-xTB; a molecule whose bonds break or form on the way has failed."""
        from domains.molecules.evaluators.relaxation import KCAL_PER_HARTREE
        from domains.molecules.oracle import XtbOracle
        from domains.molecules.perceive import keeps_graph

        relaxed: list[Relaxed] = []
        oracle, chunk = XtbOracle(), 64
        for i in range(0, len(records), chunk):
            for r in oracle.relax(records[i : i + chunk], n_jobs=jobs):
                if r.molecule is None:
                    relaxed.append(Relaxed(None, {}, f"not relaxed: {r.error}"))
                    continue
                values = {
                    "relax_rmsd": r.values["rmsd"],
                    "relax_drop": r.values["energy_drop"] * KCAL_PER_HARTREE,
                }
                kept = keeps_graph(r.molecule)
                relaxed.append(
                    Relaxed(r.molecule, values)
                    if kept
                    else Relaxed(None, values, "bonds broke or formed in relaxation")
                )
            if progress is not None:
                progress(len(relaxed), len(records))
        return relaxed

    def evaluate(self, records: Sequence[Molecule], thorough: bool = False) -> dict[str, float]:
        """All evaluators; geometry and novelty where the training data is at hand."""
        from domains.molecules.evaluators import DEFAULT, NAMES, Identities, evaluate
        from sciflow.data import shared_data

        reference, training = None, None
        if shared_data() is not None:
            from domains.molecules.datasets import qm9_gfn2
            from domains.molecules.table import split

            table = qm9_gfn2()
            train = table.subset(split(table)["train"])
            # The table's SMILES are canonical constitutions already (a test holds that).
            training = Identities(train.smiles or ())
            reference = [train[i] for i in range(0, len(train), max(1, len(train) // 2000))]
        return evaluate(records, reference, training, NAMES if thorough else DEFAULT)

    def held_out(self, n: int) -> list[Molecule]:
        """From the test part of ``qm9-gfn2``, spread evenly."""
        from sciflow.data import shared_data

        if shared_data() is None:
            return []
        from domains.molecules.datasets import qm9_gfn2
        from domains.molecules.table import split

        table = qm9_gfn2()
        rows = split(table)["test"]
        rows = rows[:: max(1, len(rows) // max(n, 1))][:n]
        return [table[int(i)] for i in rows]

    def picture(self, record: Molecule) -> str:
        from domains.molecules.pictures import svg

        return svg(record)

    def viewer(self, records: Sequence[Molecule]) -> str:
        from domains.molecules.pictures import viewer_html

        return viewer_html(records)

    # --- contract tests ---------------------------------------------------------------------

    def examples(self, n: int, seed: int = 0) -> list[Molecule]:
        from domains.molecules.builder import embed

        smiles = ["C", "CCO", "c1ccccc1", "CC#N", "NCC(=O)O", "O", "C1CC1", "CC(C)=O", "FC=C", "CO"]
        return [embed(smiles[(seed + i) % len(smiles)], seed=seed + i) for i in range(n)]
