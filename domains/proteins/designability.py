"""Self-consistency by outside programs: is there a sequence that folds into this backbone?

The protocol of the field (Trippe et al., ICLR 2023): design sequences for a backbone, predict their
structures, and take the best of them:

    scTM = max TM(backbone, prediction),   scRMSD = min RMSD of CA after superposition;

designable are scTM > 0.5 or, stricter, scRMSD < 2 Å. Papers differ in predictor, number of
sequences and lengths, and the same model scores 0.29 to 0.78 accordingly: report all of them.

**None of it can run without programs that this project neither ships nor installs**: a designer
(ProteinMPNN) and a predictor (ESMFold, OmegaFold) with gigabytes of weights. Where they are
installed this module calls them; where they are not it says so, and no other number of ours is a
substitute. Ramachandran statistics, contacts and TM-scores to known folds say that a backbone looks
like a protein, not that a sequence folds into it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from domains.proteins.chain import Chain
from domains.proteins.evaluators.similarity import tm_score
from domains.proteins.evaluators.superposition import rmsd
from domains.proteins.io import read_chains, read_fasta, write_pdb
from sciflow.errors import InputError
from sciflow.files import write_atomically

__all__ = ["Pipeline", "SelfConsistency", "find_pipeline", "self_consistency", "summary"]


@dataclass(frozen=True)
class Pipeline:
    """Two commands, run without a shell; words in braces are filled in.

    Attributes:
        design: ``{pdb}`` in, FASTA files somewhere below ``{out}``, ``{n}`` sequences.
        fold: ``{fasta}`` in, a PDB file for each record, in their order by name, below ``{out}``.
        seconds: after which a command is stopped.
    """

    design: str
    fold: str
    seconds: float = 3600.0


@dataclass(frozen=True)
class SelfConsistency:
    """How well the best of the designed sequences folds back.

    Attributes:
        sc_tm: highest TM-score, normalised by the backbone; NaN where it failed.
        sc_rmsd: lowest RMSD of CA in ångström.
        sequence: of the lowest RMSD.
        failure: why there is none, else empty.
    """

    sc_tm: float = float("nan")
    sc_rmsd: float = float("nan")
    sequence: str = ""
    failure: str = ""


def find_pipeline() -> Pipeline:
    """ProteinMPNN (its clone in ``$PROTEINMPNN``) and ESMFold (``esm-fold``) or OmegaFold.

    Raises:
        InputError: one of them is not on this machine; the message says what to install.
    """
    clone = os.environ.get("PROTEINMPNN", "")
    script = Path(clone) / "protein_mpnn_run.py"
    missing = []
    if not clone or not script.is_file():
        missing.append(
            "ProteinMPNN (clone github.com/dauparas/ProteinMPNN, set PROTEINMPNN to its folder)"
        )
    fold = ""
    if shutil.which("esm-fold"):
        fold = "esm-fold -i {fasta} -o {out}"
    elif shutil.which("omegafold"):
        fold = "omegafold {fasta} {out}"
    else:
        missing.append("ESMFold (esm-fold on the path) or OmegaFold (omegafold on the path)")
    if missing:
        raise InputError(
            f"self-consistency cannot be computed here: {' and '.join(missing)} not found. Or give "
            "commands of your own: Pipeline(design=..., fold=...)"
        )
    design = (
        f"{shlex.quote(sys.executable)} {shlex.quote(str(script))} --pdb_path {{pdb}} "
        "--out_folder {out} --num_seq_per_target {n} --sampling_temp 0.1 --seed 37 --batch_size 1"
    )
    return Pipeline(design, fold)


def self_consistency(
    chains: Sequence[Chain], folder: str | Path, pipeline: Pipeline | None = None, n: int = 8
) -> list[SelfConsistency]:
    """Design, fold and compare each backbone; failures are answers, not exceptions.

    Args:
        chains: complete backbones.
        folder: where the programs' files are kept, a folder for each chain.
        pipeline: the commands; default what is installed.
        n: sequences designed for each backbone.

    Raises:
        InputError: no pipeline is given and none is installed.
    """
    pipeline = pipeline or find_pipeline()
    answers = []
    for i, chain in enumerate(chains):
        try:
            answers.append(_one(chain, Path(folder) / f"{i:05d}", pipeline, n))
        except (InputError, subprocess.SubprocessError, OSError) as error:
            answers.append(SelfConsistency(failure=str(error)))
    return answers


def summary(answers: Sequence[SelfConsistency]) -> dict[str, float]:
    """Shares of backbones with scTM > 0.5 and scRMSD < 2 Å, failures counting as neither."""
    if not answers:
        return {}
    tm = np.array([a.sc_tm for a in answers])
    deviation = np.array([a.sc_rmsd for a in answers])
    return {
        "sc_tm_above_0.5": float((tm > 0.5).mean()),
        "sc_rmsd_below_2": float((deviation < 2.0).mean()),
        "sc_failed": float(np.mean([bool(a.failure) for a in answers])),
    }


def _one(chain: Chain, folder: Path, pipeline: Pipeline, n: int) -> SelfConsistency:
    designed, folded = folder / "designed", folder / "folded"
    for path in (designed, folded):
        path.mkdir(parents=True, exist_ok=True)
    backbone = write_pdb(folder / "backbone.pdb", chain)
    _run(pipeline.design, pipeline.seconds, pdb=backbone, out=designed, n=n)
    found = sorted([*designed.rglob("*.fa"), *designed.rglob("*.fasta")])
    records = [record for path in found for record in read_fasta(path)]
    # ProteinMPNN writes the input's own sequence first, which for a bare backbone is glycine.
    sequences = [s for _, s in records if len(s) == len(chain) and len(set(s)) > 1][:n]
    if not sequences:
        raise InputError(f"the designer wrote no sequence of {len(chain)} residues", designed)
    fasta = folder / "sequences.fasta"
    write_atomically(fasta, "".join(f">{k:03d}\n{s}\n" for k, s in enumerate(sequences)))
    _run(pipeline.fold, pipeline.seconds, fasta=fasta, out=folded)
    structures = sorted(folded.rglob("*.pdb"))
    if len(structures) != len(sequences):
        raise InputError(f"{len(structures)} structures for {len(sequences)} sequences", folded)
    predicted = [read_chains(path).chains[0] for path in structures]
    wrong = [p for p in predicted if len(p) != len(chain)]
    if wrong:
        raise InputError(f"a structure of {len(wrong[0])} residues for {len(chain)}", folded)
    deviations = [rmsd(p.ca, chain.ca) for p in predicted]
    best = int(np.argmin(deviations))
    return SelfConsistency(
        max(tm_score(chain, p)[0] for p in predicted), deviations[best], sequences[best]
    )


def _run(command: str, seconds: float, **values: object) -> None:
    words = [word.format(**values) for word in shlex.split(command)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-300:]
        raise InputError(f"{words[0]} ended with code {done.returncode}: {said}")
