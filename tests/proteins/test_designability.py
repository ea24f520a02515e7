"""Self-consistency through outside commands, with stubs whose answer is known."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from domains.proteins.chain import Chain
from domains.proteins.designability import Pipeline, find_pipeline, self_consistency, summary
from sciflow.errors import InputError

pytest.importorskip("tmtools")

DESIGN = """
import sys, pathlib
pdb, out, n = sys.argv[1:]
length = sum(line[12:16] == " CA " for line in open(pdb))
folder = pathlib.Path(out) / "seqs"
folder.mkdir()
letters = "ACDEFGHIKLMNPQRSTVWY"
text = ">input\\n" + "G" * length + "\\n"
for k in range(int(n)):
    text += f">T=0.1 sample={k}\\n" + "".join(letters[(i + k) % 20] for i in range(length)) + "\\n"
(folder / "backbone.fa").write_text(text)
"""

FOLD = """
import sys, pathlib
import numpy as np
from domains.proteins.io import read_chains, read_fasta, write_pdb
fasta, out = map(pathlib.Path, sys.argv[1:])
chain = read_chains(fasta.with_name("backbone.pdb")).chains[0]
turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
turn *= np.sign(np.linalg.det(turn))
for k, (name, sequence) in enumerate(read_fasta(fasta)):
    noise = np.zeros((len(chain), 1, 3))
    noise[::2, :, 0], noise[1::2, :, 0] = k, -k  # k ångström away, centre kept
    x = (chain.backbone + noise) @ turn.T + 9
    write_pdb(out / f"{name}.pdb", chain.replace(backbone=x, sequence=sequence))
"""


def helix(n: int) -> Chain:
    turn = np.radians(100) * np.arange(n)[:, None]
    atoms = {"N": (1.55, -0.49, -0.9), "CA": (2.29, 0.0, 0.0), "C": (1.68, 0.46, 1.1),
             "O": (2.0, 0.4, 2.2)}  # fmt: skip
    rise = 1.5 * np.arange(n)[:, None]
    places = [
        np.concatenate([r * np.cos(turn + a), r * np.sin(turn + a), z + rise], 1)
        for r, a, z in atoms.values()
    ]
    x = np.stack(places, 1)
    return Chain(x, breaks=np.zeros(n - 1, bool))


@pytest.fixture
def pipeline(tmp_path, monkeypatch):
    from pathlib import Path

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    for name, text in (("design.py", DESIGN), ("fold.py", FOLD)):
        (tmp_path / name).write_text(text)
    python = f"'{sys.executable}'"
    return Pipeline(
        f"{python} '{tmp_path}/design.py' {{pdb}} {{out}} {{n}}",
        f"{python} '{tmp_path}/fold.py' {{fasta}} {{out}}",
    )


def test_the_best_of_the_sequences_counts(pipeline, tmp_path):
    chains = [helix(30), helix(41)]
    answers = self_consistency(chains, tmp_path / "work", pipeline, n=3)
    for chain, answer in zip(chains, answers, strict=True):
        assert answer.failure == ""
        assert answer.sc_rmsd == pytest.approx(0, abs=2e-3)
        assert answer.sc_tm == pytest.approx(1, abs=1e-3)
        assert answer.sequence == "".join("ACDEFGHIKLMNPQRSTVWY"[i % 20] for i in range(len(chain)))
    assert summary(answers) == {"sc_tm_above_0.5": 1.0, "sc_rmsd_below_2": 1.0, "sc_failed": 0.0}
    assert (tmp_path / "work" / "00001" / "folded" / "002.pdb").is_file()


def test_a_failing_program_is_an_answer_with_its_words(pipeline, tmp_path):
    (tmp_path / "fold.py").write_text("import sys; sys.exit('no weights')")
    answers = self_consistency([helix(30)], tmp_path / "work", pipeline, n=2)
    assert "ended with code 1: no weights" in answers[0].failure
    assert np.isnan(answers[0].sc_tm)
    assert summary(answers) == {"sc_tm_above_0.5": 0.0, "sc_rmsd_below_2": 0.0, "sc_failed": 1.0}
    (tmp_path / "fold.py").write_text("")
    answers = self_consistency([helix(30)], tmp_path / "again", pipeline, n=2)
    assert "0 structures for 2 sequences" in answers[0].failure


def test_what_cannot_run_here_is_said_plainly(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("PROTEINMPNN", raising=False)
    with pytest.raises(InputError, match=r"cannot be computed here.*ProteinMPNN.*ESMFold"):
        find_pipeline()
    with pytest.raises(InputError, match="cannot be computed here"):
        self_consistency([helix(30)], tmp_path)
    (tmp_path / "protein_mpnn_run.py").write_text("")
    monkeypatch.setenv("PROTEINMPNN", str(tmp_path))
    (tmp_path / "esm-fold").write_text("#!/bin/sh\n")
    (tmp_path / "esm-fold").chmod(0o755)
    found = find_pipeline()
    assert "protein_mpnn_run.py" in found.design and found.fold.startswith("esm-fold")
