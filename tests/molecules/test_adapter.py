"""The molecules' side of the contract: data sets, held-out data, reading, annotating."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from domains.molecules.adapter import Molecules
from domains.molecules.io import write_sdf
from domains.molecules.table import MoleculeTable
from sciflow.data import shared_data
from sciflow.errors import InputError

needs_data = pytest.mark.skipif(shared_data() is None, reason="no shared data on this machine")
MOLECULES = Molecules()


@needs_data
def test_smiles_of_the_data_set_are_canonical_identities() -> None:
    """Novelty takes them as they are; canonicalising all of them costs seconds a run."""
    from domains.molecules.datasets import qm9_gfn2
    from domains.molecules.evaluators import Identities

    smiles = (qm9_gfn2().smiles or [])[::60]
    assert len(smiles) > 300 and Identities.of(smiles) == frozenset(smiles)


@needs_data
def test_held_out_molecules_are_real_and_not_of_the_training_set() -> None:
    from domains.molecules.datasets import qm9_gfn2
    from domains.molecules.table import split

    table = qm9_gfn2()
    train = split(table)["train"]
    known = {(table.smiles or [])[int(i)] for i in train}
    held = MOLECULES.held_out(50)
    assert len(held) == 50
    assert not {m.name for m in held} & known
    assert sum(not reason for reason in MOLECULES.verdicts(held)) >= 49


def test_without_data_nothing_is_held_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SCIFLOW_DATA", str(tmp_path / "none"))
    assert MOLECULES.held_out(5) == []


def test_read_collects_what_it_could_not_use(tmp_path: Path) -> None:
    path = write_sdf(tmp_path / "m.sdf", MOLECULES.examples(3))
    path.write_text(path.read_text() + "not\na\nrecord\n$$$$\n")
    dropped: list[InputError] = []
    assert len(MOLECULES.read(path, dropped)) == 3
    assert len(dropped) == 1 and dropped[0].path == path
    assert len(MOLECULES.read(path)) == 3


def test_a_built_table_is_a_data_set(tmp_path: Path) -> None:
    table = MoleculeTable.from_molecules(MOLECULES.examples(4), "four")
    loaded = MOLECULES.dataset(table.save(tmp_path / "four.npz"))
    np.testing.assert_array_equal(loaded.positions, table.positions)
    (tmp_path / "broken.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match="not a table of molecules"):
        MOLECULES.dataset(tmp_path / "broken.npz")


def test_annotations_reach_the_files(tmp_path: Path) -> None:
    (molecule,) = MOLECULES.examples(1)
    marked = MOLECULES.annotate(molecule, "sample 7", {"gap": 5.25})
    assert molecule.properties.get("gap") is None
    (main, *_) = MOLECULES.write([marked], tmp_path)
    (back,) = MOLECULES.read(main)
    assert back.properties["gap"] == 5.25
    assert main.read_text().startswith("sample 7\n")
