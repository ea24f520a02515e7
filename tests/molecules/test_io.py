"""Readers and writers: what goes out comes back, and chemistry survives the journey."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domains.molecules.builder import embed
from domains.molecules.io import read_molecules, write_sdf, write_smiles, write_xyz
from domains.molecules.molecule import AROMATIC, Molecule
from domains.molecules.numbers import finite_number
from domains.molecules.perceive import keeps_graph, perceive_bonds
from domains.molecules.smiles import (
    canonical_smiles,
    from_rdkit,
    molecule_from_smiles,
    parse_smiles,
    to_rdkit,
)
from sciflow.data import shared_data
from sciflow.errors import InputError

DATA = shared_data()
needs_data = pytest.mark.skipif(DATA is None, reason="no shared data on this machine")

SMILES = [
    "C",
    "[H][H]",
    "O=C=O",
    "c1ccccc1",
    "c1cc[nH]c1",
    "CC(=O)[O-]",
    "C[N+](C)(C)C",
    "[NH3+]CC(=O)[O-]",
    "O=[N+]([O-])c1ccncc1",
    "C#CC12CC1O2",
    "[C-]#[O+]",
    "CS(=O)(=O)N",
    "c1ccc2c(c1)[nH]c1ccccc12",
    "FC(F)(F)Br",
    "[Na+]",
]


def _same(a: Molecule, b: Molecule, tolerance: float = 1e-4) -> None:
    assert (a.numbers == b.numbers).all()
    assert (a.bonds == b.bonds).all()
    assert (a.charges == b.charges).all()
    assert a.properties == b.properties
    if a.positions is None:
        assert b.positions is None
    else:
        assert np.abs(a.positions - b.positions).max() <= tolerance


@pytest.mark.parametrize("smiles", SMILES)
def test_smiles_to_graph_and_back(smiles):
    molecule = molecule_from_smiles(smiles)
    assert molecule.positions is None
    assert (molecule.bonds == molecule.bonds.T).all()
    canonical = canonical_smiles(molecule)
    again = molecule_from_smiles(canonical)
    assert sorted(again.numbers) == sorted(molecule.numbers)
    assert canonical_smiles(again) == canonical


def test_hydrogens_are_atoms_and_written_order_is_kept():
    assert molecule_from_smiles("CO").numbers.tolist() == [6, 8, 1, 1, 1, 1]
    assert molecule_from_smiles("[H]OC([H])([H])[H]").numbers.tolist() == [1, 8, 6, 1, 1, 1]
    assert molecule_from_smiles("CO", add_hydrogens=False).numbers.tolist() == [6, 8]


def test_aromatic_bonds_have_code_four_and_charges_are_kept():
    benzene = molecule_from_smiles("C1=CC=CC=C1")
    assert (benzene.bonds == AROMATIC).sum() == 12
    acetate = molecule_from_smiles("CC(=O)[O-]")
    assert acetate.charges.sum() == -1
    assert acetate.charges[acetate.numbers == 8].tolist() == [0, -1]


def test_no_hydrogen_is_ever_implied():
    methyl = molecule_from_smiles("[CH3]", strict=False)
    mol = to_rdkit(methyl)
    assert mol.GetNumAtoms() == 4
    assert mol.GetAtomWithIdx(0).GetNumRadicalElectrons() == 1
    assert mol.GetAtomWithIdx(0).GetTotalNumHs(includeNeighbors=False) == 0


def test_unsanitisable_is_a_clean_error_and_unsanitised_is_possible():
    bonds = np.zeros((6, 6), np.int8)
    bonds[0, 1:] = bonds[1:, 0] = 1
    broken = Molecule(np.array([6, 1, 1, 1, 1, 1]), bonds=bonds)
    with pytest.raises(InputError, match=r"valence for atom # 0 C, 5"):
        to_rdkit(broken)
    assert to_rdkit(broken, sanitize=False).GetNumBonds() == 5
    assert canonical_smiles(broken) is None


def test_canonical_smiles_ignores_atom_order():
    molecule = molecule_from_smiles("O=[N+]([O-])c1ccncc1")
    order = np.random.default_rng(0).permutation(len(molecule))
    shuffled = Molecule(
        molecule.numbers[order],
        bonds=molecule.bonds[np.ix_(order, order)],
        charges=molecule.charges[order],
    )
    assert canonical_smiles(shuffled) == canonical_smiles(molecule)


def test_rdkit_round_trip_keeps_positions():
    molecule = molecule_from_smiles("CO").replace(
        positions=np.random.default_rng(0).normal(size=(6, 3)), name="methanol"
    )
    again = from_rdkit(to_rdkit(molecule))
    _same(molecule, again, 0.0)
    assert again.name == "methanol"


def test_stereochemistry_is_not_in_the_graph_but_is_in_what_the_builder_parses():
    left, right = "C[C@H](O)F", "C[C@@H](O)F"
    assert canonical_smiles(molecule_from_smiles(left)) == canonical_smiles(
        molecule_from_smiles(right)
    )
    tags = [str(parse_smiles(s).GetAtomWithIdx(1).GetChiralTag()) for s in (left, right)]
    assert len(set(tags)) == 2


@needs_data
def test_real_sdf_is_read_whole():
    result = read_molecules(DATA / "molecules" / "qm9_mini.sdf")
    assert len(result) == 21
    assert not result.dropped
    assert [m.name for m in result][:2] == ["gdb_1", "gdb_2"]
    methane = result.molecules[0]
    assert methane.numbers.tolist() == [6, 1, 1, 1, 1]
    assert methane.positions[0] == pytest.approx([-0.0127, 1.0858, 0.0080])
    assert all(keeps_graph(molecule) for molecule in result)


@needs_data
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_sdf_round_trip_of_real_molecules(real_molecules, tmp_path, data):
    molecule = data.draw(st.sampled_from(real_molecules))
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(molecule))
    scale = data.draw(st.sampled_from([1e-3, 1.0, 100.0]))
    keys = st.text(st.characters(codec="ascii", categories=("L", "N", "P")), min_size=1, max_size=8)
    numbers = st.floats(allow_nan=False, allow_infinity=False)
    properties = data.draw(st.dictionaries(keys, numbers, max_size=4))
    properties = {k: v for k, v in properties.items() if not set(k) & set("<>")}
    given_one = Molecule(
        molecule.numbers[order],
        molecule.positions[order] * scale + rng.normal(size=(len(molecule), 3)),
        molecule.bonds[np.ix_(order, order)],
        molecule.charges[order],
        properties,
        "a name",
    )
    path = tmp_path / "one.sdf"
    write_sdf(path, [given_one, given_one])
    result = read_molecules(path)
    assert len(result) == 2
    for again in result:
        _same(given_one, again)
        assert again.name == "a name"


@needs_data
def test_sdf_is_readable_by_rdkit_itself_as_kekule(real_molecules, tmp_path):
    from rdkit import Chem

    path = tmp_path / "all.sdf"
    write_sdf(path, real_molecules)
    text = path.read_text()
    bonds = [line for line in text.splitlines() if len(line) == 12 and line.endswith("  0")]
    assert bonds
    assert not any(line[6:9] == "  4" for line in bonds)
    read = list(Chem.SDMolSupplier(str(path), removeHs=False))
    for mol in read:
        Chem.RemoveStereochemistry(mol)
    found = [Chem.MolToSmiles(Chem.RemoveHs(mol)) for mol in read]
    assert found == [canonical_smiles(m) for m in real_molecules]


@pytest.mark.parametrize("smiles", SMILES)
def test_sdf_keeps_charges_and_graphs_without_coordinates(smiles, tmp_path):
    molecule = molecule_from_smiles(smiles)
    write_sdf(tmp_path / "g.sdf", [molecule])
    (again,) = read_molecules(tmp_path / "g.sdf")
    if len(molecule) > 1:
        _same(molecule, again)
    assert (molecule.charges == again.charges).all()


def test_broken_molecules_come_back_as_they_are(tmp_path):
    rng = np.random.default_rng(0)
    star = np.zeros((4, 4), np.int8)
    star[0, 1:] = star[1:, 0] = 1
    methyl = Molecule(np.array([6, 1, 1, 1]), rng.normal(size=(4, 3)), star)
    five = np.zeros((6, 6), np.int8)
    five[0, 1:] = five[1:, 0] = 1
    overfull = Molecule(np.array([6, 1, 1, 1, 1, 1]), rng.normal(size=(6, 3)), five)
    ring = AROMATIC * (np.eye(5, k=1) + np.eye(5, k=-1) + np.eye(5, k=4) + np.eye(5, k=-4))
    no_kekule = Molecule(np.full(5, 6), rng.normal(size=(5, 3)), ring.astype(np.int8))
    apart = Molecule(np.array([6, 8]), rng.normal(size=(2, 3)), np.zeros((2, 2)))
    broken = [methyl, overfull, no_kekule, apart]
    write_sdf(tmp_path / "b.sdf", broken)
    for molecule, again in zip(
        broken, read_molecules(tmp_path / "b.sdf", strict=False), strict=True
    ):
        _same(molecule, again)


def test_v3000_is_read(tmp_path):
    from rdkit import Chem

    molecule = molecule_from_smiles("CC(=O)[O-]")
    positions = np.random.default_rng(0).normal(size=(len(molecule), 3)).round(4)
    block = Chem.MolToV3KMolBlock(to_rdkit(molecule.replace(positions=positions)))
    (tmp_path / "v3.sdf").write_text(block + ">  <gap>\n5.5\n\n>  <note>\nwords\n\n$$$$\n")
    (again,) = read_molecules(tmp_path / "v3.sdf")
    _same(molecule.replace(positions=positions, properties={"gap": 5.5}), again)


def test_drawings_are_not_taken_for_structures(tmp_path):
    from rdkit import Chem
    from rdkit.Chem import AllChem

    flat = Chem.MolFromSmiles("CCO")
    AllChem.Compute2DCoords(flat)
    (tmp_path / "flat.sdf").write_text(Chem.MolToMolBlock(flat) + "$$$$\n")
    (molecule,) = read_molecules(tmp_path / "flat.sdf")
    assert molecule.positions is None
    assert len(molecule) == 9
    water = "water\n\n\n  3  2  0  0  0  0  0  0  0  0999 V2000\n"
    for x, y, symbol in ((0, 0, "O"), (0.96, 0, "H"), (-0.24, 0.93, "H")):
        water += f"{x:10.4f}{y:10.4f}    0.0000 {symbol:<3} 0  0\n"
    water += "  1  2  1  0\n  1  3  1  0\nM  END\n$$$$\n"
    (tmp_path / "water.sdf").write_text(water)
    assert read_molecules(tmp_path / "water.sdf").molecules[0].positions is not None


def test_xyz_round_trip_and_extended_comments(tmp_path):
    water = Molecule(
        np.array([8, 1, 1]),
        np.array([[0, 0, 0.117], [0, 0.757, -0.467], [0, -0.757, -0.467]]),
        properties={"gap": 14.5, "dipole": 1.85},
        name="water",
    )
    write_xyz(tmp_path / "w.xyz", [water, water])
    result = read_molecules(tmp_path / "w.xyz")
    assert len(result) == 2
    for again in result:
        assert again.bonds is None
        assert again.name == "water"
        assert again.properties == water.properties
        assert np.abs(again.positions - water.positions).max() < 1e-7
    (tmp_path / "e.extxyz").write_text(
        '2\nLattice="9 0 0 0 9 0 0 0 9" Properties=id:I:1:pos:R:3:species:S:1 energy=-1.5\n'
        "1 0 0 0 H\n2 0 0 0.74 H\n"
    )
    (hydrogen,) = read_molecules(tmp_path / "e.extxyz")
    assert hydrogen.numbers.tolist() == [1, 1]
    assert hydrogen.positions[1, 2] == 0.74
    assert hydrogen.properties == {"energy": -1.5}


@needs_data
def test_bonds_perceived_from_geometry_are_the_known_ones(real_molecules):
    assert any(molecule.charges.any() for molecule in real_molecules)
    for molecule in real_molecules[:60]:
        found = perceive_bonds(Molecule(molecule.numbers, molecule.positions))
        assert canonical_smiles(found) == canonical_smiles(molecule)
        if not molecule.charges.any():  # else which oxygen of a nitro group is charged is free
            assert (found.bonds == molecule.bonds).all()


@pytest.mark.parametrize(
    ("smiles", "charge"),
    [
        ("CC(=O)[O-]", -1),
        ("C[N+](C)(C)C", 1),
        ("CC(N)=[NH2+]", 1),
        ("[NH3+]CC(=O)[O-]", 0),
        ("CN=[N+]=[N-]", 0),
        ("[O-][n+]1ccccc1", 0),
        ("O=[N+]([O-])c1cocn1", 0),
        ("CS(N)(=O)=O", 0),
        ("CP(=O)(O)O", 0),
        ("[C-]#[O+]", 0),
        ("c1ccc2c(c1)[nH]c1ccccc12", 0),
        ("O=C1C=CC(=O)C=C1", 0),
    ],
)
def test_lewis_structures_are_the_textbook_ones(smiles, charge):
    molecule = embed(smiles)
    found = perceive_bonds(Molecule(molecule.numbers, molecule.positions), charge)
    assert canonical_smiles(found) == canonical_smiles(molecule)
    assert found.charges.sum() == charge


def test_perception_refuses_what_has_no_lewis_structure():
    methyl = Molecule(
        np.array([6, 1, 1, 1]), np.array([[0, 0, 0], [1.08, 0, 0], [-0.5, 0.9, 0], [-0.5, -0.9, 0]])
    )
    with pytest.raises(InputError):
        perceive_bonds(methyl)
    with pytest.raises(InputError, match="positions"):
        perceive_bonds(Molecule(np.array([6])))
    with pytest.raises(InputError, match="no valence rule for element 26"):
        perceive_bonds(Molecule(np.array([26]), np.zeros((1, 3))))


def test_stretched_bond_loses_the_graph():
    water = molecule_from_smiles("O").replace(
        positions=np.array([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    )
    assert keeps_graph(water)
    assert not keeps_graph(water.replace(positions=water.positions * 1.5))


def test_csv_columns_in_any_case_and_numbers_become_properties(tmp_path):
    (tmp_path / "a.csv").write_text(
        "Name,gap,Canonical_SMILES,note,empty\nethanol,5.5,CCO,good,\n,1e-3,CC,nan,nan\n"
    )
    first, second = read_molecules(tmp_path / "a.csv")
    assert (first.name, first.properties) == ("ethanol", {"gap": 5.5})
    assert (second.name, second.properties) == ("", {"gap": 1e-3})
    (tmp_path / "b.csv").write_text("SMILES;gap\nCCO;1\n")
    assert read_molecules(tmp_path / "b.csv").molecules[0].properties == {"gap": 1.0}


def test_ragged_csv_row_is_dropped_with_its_line(tmp_path):
    (tmp_path / "a.csv").write_text('smiles,a\nCC,1\nCCO\n"CCN",2\nCCF,3,4\n')
    result = read_molecules(tmp_path / "a.csv")
    assert len(result) == 2
    assert [error.line for error in result.dropped] == [3, 5]
    assert "2 dropped" in result.summary()


def test_smiles_list_round_trip_gzipped(tmp_path):
    molecules = [molecule_from_smiles(s).replace(name=f"mol {i}") for i, s in enumerate(SMILES)]
    path = write_smiles(tmp_path / "a.smi.gz", molecules)
    assert gzip.decompress(path.read_bytes()).decode().splitlines()[0] == "C mol 0"
    again = read_molecules(path)
    assert [m.name for m in again] == [m.name for m in molecules]
    assert [canonical_smiles(m) for m in again] == [canonical_smiles(m) for m in molecules]


@pytest.mark.parametrize("write", [write_sdf, write_xyz, write_smiles])
def test_a_failed_write_leaves_the_old_file_and_no_other(write, tmp_path):
    path = tmp_path / "kept.sdf"
    path.write_text("old")
    bad = Molecule(np.array([6, 1]), np.full((2, 3), np.nan))
    with pytest.raises(InputError):
        write(path, [bad])
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["kept.sdf"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1.0),
        (" -2.5e3 ", -2500.0),
        ("1.0D-3", 1e-3),
        ("2.1*^-6", 2.1e-6),
        (".5", 0.5),
        ("nan", None),
        ("inf", None),
        ("1e999", None),
        ("1_000", None),
        ("٣", None),
        ("", None),
        ("1,5", None),
        ("0x10", None),
    ],
)
def test_numbers_as_people_write_them(text, value):
    assert finite_number(text) == value


@pytest.fixture(scope="module")
def real_molecules() -> list[Molecule]:
    """160 relaxed molecules of QM9 with nitro groups and zwitterions among them."""
    if DATA is None:
        pytest.skip("no shared data on this machine")
    with np.load(DATA / "molecules" / "qm9_gfn2.npz", allow_pickle=False) as file:
        rows = np.flatnonzero(file["graph_ok"])[:4000:25]
        numbers, n_atoms = file["numbers"], file["n_atoms"]
        positions = file["positions_q"][rows] * float(file["quantum_A"])
        source = file["smiles_row"]
    with gzip.open(DATA / "molecules" / "qm9_smiles.txt.gz", "rt") as text:
        written = [line.split("\t")[0] for line in text.read().splitlines()[1:]]
    molecules = []
    for row, xyz in zip(rows, positions, strict=True):
        molecule = molecule_from_smiles(written[source[row]])
        assert (molecule.numbers == numbers[row, : n_atoms[row]]).all()
        molecules.append(molecule.replace(positions=xyz[: len(molecule)]))
    return molecules
