"""Metrics of backbones: exact small cases, and the measured values of real chains and of peers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from domains.proteins.chain import Chain
from domains.proteins.datasets import backbones
from domains.proteins.evaluators import evaluate, rows
from domains.proteins.evaluators.bonds import bonds
from domains.proteins.evaluators.clashes import backbone_clashes, ca_clashes, clashes
from domains.proteins.evaluators.geometry import angle, dihedral, torsions
from domains.proteins.evaluators.ramachandran import CLASSES, RamachandranGrids, residue_classes
from domains.proteins.evaluators.secondary_structure import (
    dssp,
    dssp_codes,
    secondary_structure,
    three_states,
)
from domains.proteins.evaluators.shape import contact_order, contacts, rg_ratio, shape
from domains.proteins.evaluators.similarity import diversity, novelty, tm_score
from domains.proteins.evaluators.superposition import motif_rmsd, rmsd, superimpose
from domains.proteins.io import read_chains
from domains.proteins.table import DSSP_CODES
from sciflow.data import shared_data
from sciflow.errors import InputError

DATA = shared_data()
needs_data = pytest.mark.skipif(DATA is None, reason="the shared data are not on this machine")
GENERATOR = np.random.default_rng


@pytest.fixture(scope="module")
def real():
    """300 compact natural chains of 40 to 128 residues, spread over the table."""
    table = backbones().select()
    return table.subset(np.linspace(0, len(table) - 1, 300).astype(int))


@pytest.fixture(scope="module")
def grids():
    return RamachandranGrids.load()


def random_chain(n: int, seed: int = 0, spread: float = 8.0) -> Chain:
    return Chain(GENERATOR(seed).normal(size=(n, 4, 3)) * spread, breaks=np.zeros(n - 1, bool))


def test_angles_and_torsions_are_the_known_ones():
    a, b, c = np.array([1.0, 0, 0]), np.zeros(3), np.array([0, 1.0, 0])
    assert angle(a, b, c) == pytest.approx(90)
    for degrees in (-179.0, -60.0, 0.0, 35.0, 120.0, 179.5):
        turn = np.radians(degrees)
        d = np.array([np.cos(turn), 1, -np.sin(turn)])  # right-handed about b → c = +y
        assert dihedral(a, b, c, d) == pytest.approx(degrees, abs=1e-9)


@needs_data
def test_torsions_agree_with_mdtraj(real):
    import mdtraj

    from domains.proteins.evaluators.secondary_structure import _topology

    chain = real[3]
    frame = mdtraj.Trajectory(chain.backbone.reshape(1, -1, 3) / 10, _topology("." * len(chain)))
    ours = torsions(chain)
    for name, cut in (("phi", slice(1, None)), ("psi", slice(None, -1)), ("omega", slice(None))):
        theirs = np.degrees(getattr(mdtraj, f"compute_{name}")(frame)[1][0])
        away = (getattr(ours, name)[cut] - theirs + 180) % 360 - 180
        assert np.abs(away).max() < 0.02
    assert np.isnan(ours.phi[0]) and np.isnan(ours.psi[-1])


def test_nothing_is_measured_across_a_break():
    chain = random_chain(4)
    broken = chain.replace(backbone=chain.backbone, breaks=np.array([False, True, False]))
    t = torsions(broken)
    assert np.isnan(t.phi[2]) and np.isnan(t.psi[1]) and np.isnan(t.omega[1])
    assert np.isfinite(t.phi[[1, 3]]).all() and np.isfinite(t.omega[[0, 2]]).all()


@needs_data
def test_grids_are_interpolated_between_centres_around_the_torus(grids):
    general = np.zeros(3, np.int64)
    centres = np.array([-179.0, 1.0, 179.0])
    at = grids.value(general, centres, centres[::-1])
    assert at == pytest.approx(grids.grids[0, [0, 90, 179], [179, 90, 0]], abs=1e-15)
    # Halfway between the last centre and the first is the mean of both.
    edge = grids.value(general[:1], np.array([180.0]), np.array([-65.0]))
    assert edge == pytest.approx(grids.grids[0, [0, 179], 57].mean(), abs=1e-12)
    for phi in (-180.0, 180.0, 540.0):
        assert grids.value(general[:1], np.array([phi]), np.array([-65.0])) == pytest.approx(edge)


@needs_data
def test_a_uniform_torus_scores_what_the_grid_covers(grids):
    u = (np.arange(360) - 179.75) % 360 - 180
    phi, psi = (a.ravel() for a in np.meshgrid(u, u))
    value = grids.value(np.zeros(phi.size, np.int64), phi, psi)
    assert (value >= 0.02).mean() == pytest.approx(0.163, abs=0.003)
    assert (value < 0.0005).mean() == pytest.approx(0.61, abs=0.01)


def test_classes_of_residues():
    names = list(CLASSES)
    chain = Chain(np.zeros((8, 4, 3)), "AGVPIPGP", breaks=np.array([0, 0, 0, 0, 0, 0, 1], bool))
    found = [names[k] for k in residue_classes(chain)]
    # All torsions of coincident atoms are 0: each joined proline is cis.
    assert found == [
        "general", "glycine", "pre-proline", "cis-proline",
        "pre-proline", "cis-proline", "glycine", "trans-proline",
    ]  # fmt: skip


@needs_data
def test_real_chains_have_the_measured_ramachandran_values(real, grids):
    general = grids.shares(list(real), general=True)
    assert general["favoured"] == pytest.approx(0.925, abs=0.01)
    assert general["outlier"] == pytest.approx(0.020, abs=0.004)
    own = grids.shares(list(real))
    assert own["favoured"] == pytest.approx(0.955, abs=0.01)
    assert own["outlier"] == pytest.approx(0.0087, abs=0.003)
    assert sum(own.values()) == pytest.approx(1)
    mirrored = [c.replace(backbone=c.backbone * [1, 1, -1]) for c in real.subset(range(50))]
    # Helices of a mirror image lie in the small left-handed region; its strands lie nowhere.
    bad = grids.shares(mirrored, general=True)
    assert bad["favoured"] < 0.5 and bad["outlier"] > 0.2


@needs_data
def test_grids_from_the_original_text_files(grids, tmp_path):
    centres = -179.0 + 2 * np.arange(180)
    phi, psi = np.meshgrid(centres, centres, indexing="ij")
    for k, (name, _) in enumerate(CLASSES.values()):
        rows_ = np.stack([phi.ravel(), psi.ravel(), grids.grids[k].ravel()], 1)
        np.savetxt(tmp_path / f"rama8000-{name}.data", rows_, fmt="%.17g", header="table")
    again = RamachandranGrids.load(tmp_path)
    assert np.array_equal(again.grids, grids.grids)
    (tmp_path / "rama8000-cispro.data").unlink()
    with pytest.raises(InputError, match="no such file"):
        RamachandranGrids.load(tmp_path)
    (tmp_path / "x.npz").write_bytes(b"no")
    with pytest.raises(InputError, match="not the Top8000 grids"):
        RamachandranGrids.load(tmp_path / "x.npz")


def test_missing_grids_say_where_they_are(monkeypatch, tmp_path):
    monkeypatch.setenv("SCIFLOW_DATA", str(tmp_path))
    with pytest.raises(InputError, match="rlabduke/reference_data"):
        RamachandranGrids.load()
    values = evaluate([random_chain(12)])
    assert "rama_favoured" not in values and "helix" in values


@needs_data
def test_real_chains_have_canonical_geometry(real):
    values = bonds(list(real))
    expected = {
        "bond_N-CA": (1.4597, 0.003), "bond_CA-C": (1.5245, 0.003), "bond_C-N": (1.3299, 0.002),
        "bond_C-N_sd": (0.0097, 0.002), "angle_N-CA-C": (111.0, 0.3), "angle_CA-C-N": (116.6, 0.3),
        "angle_C-N-CA": (121.6, 0.3), "omega_cis": (0.0033, 0.002), "omega_trans": (0.9965, 0.002),
        "peptide_bond_ok": (0.998, 0.002), "omega_spread": (4.9, 0.5),
    }  # fmt: skip
    for key, (value, margin) in expected.items():
        assert values[key] == pytest.approx(value, abs=margin), key
    assert values["breaks_per_100"] == 0


def brute_backbone_clashes(chain: Chain) -> int:
    radii, count = [1.55, 1.7, 1.7, 1.52], 0
    x = chain.backbone.astype(float)
    for i in range(len(chain)):
        for j in range(i + 3, len(chain)):
            for a in range(4):
                for b in range(4):
                    slack = 0.7 if {a, b} == {0, 3} else 0.4
                    count += np.linalg.norm(x[i, a] - x[j, b]) < radii[a] + radii[b] - slack
    return int(count)


@pytest.mark.parametrize("seed", range(3))
def test_clashes_are_those_of_all_pairs(seed):
    chain = random_chain(30, seed, spread=5.0)
    away = np.linalg.norm(chain.ca[:, None] - chain.ca, axis=-1)
    i, j = np.triu_indices(30, 3)
    assert ca_clashes(chain) == (away[i, j] < 3.6).sum() > 0
    assert backbone_clashes(chain) == brute_backbone_clashes(chain) > 0
    x = chain.backbone.copy()
    x[4] = np.nan
    bare = chain.replace(backbone=x, breaks=chain.breaks)
    assert backbone_clashes(bare) == brute_backbone_clashes(bare)


@needs_data
def test_real_chains_hardly_clash(real):
    values = clashes(list(real))
    assert values["clashes_per_100"] < 0.1
    assert values["backbone_clashes_per_100"] < 0.4


@needs_data
def test_dssp_is_that_of_the_data(real):
    chains = list(real.subset(range(60)))
    ours = np.concatenate(dssp_codes(chains))
    assert (ours == real.subset(range(60)).dssp).mean() > 0.998  # stored at 0.005 Å
    assert [dssp([c])[0] for c in chains[:5]] == dssp(chains)[:5]  # alone as in a batch
    assert three_states(DSSP_CODES) == "CEEHHHCC"


@needs_data
def test_real_chains_have_the_measured_content_and_size(real):
    content = secondary_structure(list(real))
    assert content["helix"] == pytest.approx(0.34, abs=0.05)
    assert content["strand"] == pytest.approx(0.25, abs=0.04)
    size = shape(list(real))
    assert size["rg_ratio"] == pytest.approx(1.04, abs=0.02)
    assert size["rg_ratio_p10"] == pytest.approx(0.96, abs=0.02)
    assert size["rg_ratio_p90"] == pytest.approx(1.21, abs=0.03)
    assert np.allclose([rg_ratio(c) for c in real], real.rg_ratio, rtol=1e-5)


@needs_data
def test_an_incomplete_residue_is_coil(real):
    chain = real[3]
    x = chain.backbone.copy()
    x[10] = np.nan
    text = dssp([chain.replace(backbone=x)])[0]
    assert len(text) == len(chain) and text[10] == " "
    assert dssp([chain.take([])]) == [""]


def test_shape_of_a_ring():
    t = 2 * np.pi * np.arange(40) / 40
    ring = np.stack([10 * np.cos(t), 10 * np.sin(t), 0 * t], 1)
    chain = Chain(np.repeat(ring[:, None], 4, 1), breaks=np.zeros(39, bool))
    assert rg_ratio(chain) == pytest.approx(10 / (2.2 * 40**0.38), rel=1e-6)
    pairs = contacts(chain)
    # 8 Å on that ring is five steps: |i - j| of 3, 4, 5 and of 35 to 39 across the closure.
    steps = pairs[:, 1] - pairs[:, 0]
    assert sorted(set(steps.tolist())) == [3, 4, 5, 35, 36, 37, 38, 39]
    assert contact_order(chain) == pytest.approx(steps.mean() / 40)


def test_superposition_is_the_inverse_of_a_motion_and_never_mirrors():
    generator = GENERATOR(1)
    x = generator.normal(size=(9, 3))
    turn, shift = Rotation.random(random_state=2).as_matrix(), np.array([3.0, -1, 2])
    rotation, back = superimpose(x, x @ turn.T + shift)
    assert rotation == pytest.approx(turn) and back == pytest.approx(shift)
    assert rmsd(x, x @ turn.T + shift) == pytest.approx(0, abs=1e-12)
    assert rmsd(x, x * [1, 1, -1]) > 0.3
    ours = Rotation.align_vectors(x - x.mean(0), (y := generator.normal(size=(9, 3))) - y.mean(0))
    assert rmsd(y, x) == pytest.approx(ours[1] / 3)


def test_motif_rmsd_looks_at_the_motif_alone():
    chain = random_chain(20)
    places = np.array([3, 4, 11])
    motif = chain.backbone[places] @ Rotation.random(random_state=0).as_matrix().T + 7
    motif[:, 3] += 50  # the oxygen is not compared
    assert motif_rmsd(chain, places, motif) == pytest.approx(0, abs=1e-5)
    assert motif_rmsd(chain, places + 1, motif) > 1
    assert motif_rmsd(chain, places, motif, ca_only=True) == pytest.approx(0, abs=1e-5)


@needs_data
def test_tm_scores(real):
    pytest.importorskip("tmtools")
    a, b = real[0], real[1]
    moved = a.replace(backbone=a.backbone @ Rotation.random(random_state=1).as_matrix().T + 5)
    assert tm_score(a, moved) == pytest.approx((1, 1), abs=1e-4)
    part = a.take(slice(0, len(a) // 2))
    whole, own = tm_score(a, part)
    assert own == pytest.approx(1, abs=1e-3) and whole == pytest.approx(0.5, abs=0.02)
    ab = np.mean(tm_score(a, b))
    assert ab < 0.5
    copies = diversity([a, moved, a], pairs=10)
    assert copies["tm_pairwise"] == pytest.approx(1, abs=1e-3)
    assert copies["clusters"] == pytest.approx(1 / 3)
    assert diversity([a, b], pairs=10) == {
        "tm_pairwise": pytest.approx(ab), "tm_pairwise_mean": pytest.approx(ab), "clusters": 1.0,
    }  # fmt: skip
    best = novelty([moved, b], [a], window=0.15)
    assert best[0] == pytest.approx(1, abs=1e-4)
    assert novelty([moved], list(real), most=3)[0] == pytest.approx(1, abs=1e-4)
    alike = abs(len(a) - len(b)) <= 0.15 * len(b)
    assert best[1] == pytest.approx(tm_score(b, a)[0]) if alike else np.isnan(best[1])


PEERS = {
    # folder: (favoured, outlier, helix, strand, rg ratio, C-N, its spread) of proteins.md section 4
    "foldflow": ((0.833,), (0.083,), 0.08, 0.40, 1.02, 1.28, 0.14),
    "scaffoldlab_demo": ((0.91, 0.94), (0.025, 0.045), None, None, (0.91, 0.96), 1.275, 0.145),
    "rfdiffusion_binders": ((0.944, 1.0), (0.0, 0.036), None, 0.0, (0.96, 1.33), 1.315, 0.05),
}


@needs_data
@pytest.mark.parametrize("name", PEERS)
def test_samples_of_peers_have_their_measured_values(name, grids):
    favoured, outlier, helix, strand, ratio, bond, spread = PEERS[name]
    files = sorted((DATA / "proteins" / "peer_samples" / name).glob("*.pdb"))
    chains = [read_chains(f).chains[0] for f in files]
    shares = [grids.shares([c], general=True) for c in chains]
    for key, limits in (("favoured", favoured), ("outlier", outlier)):
        found = [s[key] for s in shares]
        assert min(found) == pytest.approx(limits[0], abs=0.005)
        assert max(found) == pytest.approx(limits[-1], abs=0.005)
    content = secondary_structure(chains)
    if helix is not None:
        assert content["helix"] == pytest.approx(helix, abs=0.005)
    if strand is not None:
        assert content["strand"] == pytest.approx(strand, abs=0.005)
    found = [rg_ratio(c) for c in chains]
    low, high = ratio if isinstance(ratio, tuple) else (ratio, ratio)
    assert min(found) == pytest.approx(low, abs=0.006)
    assert max(found) == pytest.approx(high, abs=0.006)
    values = bonds(chains)
    assert values["bond_C-N"] == pytest.approx(bond, abs=0.006)
    assert values["bond_C-N_sd"] == pytest.approx(spread, abs=0.02)


@needs_data
def test_rows_and_evaluate_agree(real, grids):
    chains = list(real.subset(range(12)))
    table = rows(chains, grids)
    values = evaluate(chains, grids=grids)
    n = np.array([row["length"] for row in table])
    assert values["length"] == n.mean()
    assert values["helix"] == pytest.approx(np.mean([row["helix"] for row in table]))
    assert values["clashes_per_100"] == pytest.approx(
        100 * sum(row["clashes"] for row in table) / n.sum()
    )
    weights = n - 2  # residues that have both torsions
    favoured = np.average([row["rama_general_favoured"] for row in table], weights=weights)
    assert values["rama_general_favoured"] == pytest.approx(favoured)
    assert all(len(row["dssp"]) == row["length"] for row in table)
    assert evaluate([]) == {}


@needs_data
def test_metrics_do_not_depend_on_the_frame(real, grids):
    chains = list(real.subset(range(6)))
    turn = Rotation.random(random_state=3).as_matrix()
    moved = [c.replace(backbone=c.backbone @ turn.T + [30, -20, 10]) for c in chains]
    a, b = evaluate(chains, grids=grids), evaluate(moved, grids=grids)
    for key, value in a.items():
        assert b[key] == pytest.approx(value, rel=1e-3, abs=2e-3), key
