"""The table of chains: rows, filters, splits and files; the real data's known counts."""

from __future__ import annotations

import numpy as np
import pytest

from domains.proteins.chain import Chain
from domains.proteins.datasets import backbones, compact_backbones
from domains.proteins.evaluators.shape import rg_ratio
from domains.proteins.table import DSSP_CODES, ChainTable, split
from sciflow.data import shared_data
from sciflow.errors import InputError

needs_data = pytest.mark.skipif(
    shared_data() is None, reason="the shared data are not on this machine"
)


def chains() -> list[Chain]:
    generator = np.random.default_rng(0)
    return [
        Chain(
            generator.normal(size=(n, 4, 3)),
            "ACDXW"[:n],
            f"c{n}",
            tuple(f"{7 + i}" for i in range(n)),
            "B",
            breaks=np.arange(n - 1) == 1,
        )
        for n in (5, 1, 3)
    ]


@pytest.fixture(scope="module")
def table():
    return backbones()


def test_chains_go_in_and_come_out(tmp_path):
    given = chains()
    codes = [np.arange(len(c), dtype=np.uint8) for c in given]
    made = ChainTable.from_chains(given, codes, [4, 4, 9], ["x", "y", "z"], "mine")
    again = ChainTable.load(made.save(tmp_path / "mine.npz"))
    picked = again.subset([2, 0])
    joined = ChainTable.concatenate([again.subset([0]), again.subset([1, 2])])
    for rows, some in (((0, 1, 2), again), ((2, 0), picked), ((0, 1, 2), joined)):
        for row, chain in zip(rows, some, strict=True):
            for key in ("sequence", "name", "residue_ids", "chain_id"):
                assert getattr(chain, key) == getattr(given[row], key)
            assert np.array_equal(chain.backbone, given[row].backbone)
            assert np.array_equal(chain.joints, given[row].joints)
    assert (again.name, again.cluster30.tolist(), again.source.tolist()) == (
        "mine", [4, 4, 9], ["x", "y", "z"],
    )  # fmt: skip
    assert again.sequences == [c.sequence for c in given]
    assert picked.dssp.tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert again.unbroken.tolist() == [False, True, False]
    assert len(again.subset([])) == 0 and list(again.subset([])) == []
    assert again[-1].name == "c3"
    with pytest.raises(IndexError):
        again[3]


def test_numbers_of_each_chain():
    made = ChainTable.from_chains(chains(), [np.full(len(c), 4, np.uint8) for c in chains()])
    assert DSSP_CODES[4] == "H"
    assert made.helix.tolist() == [1, 1, 1] and made.strand.tolist() == [0, 0, 0]
    assert made.rg_ratio == pytest.approx([rg_ratio(c) for c in chains()], abs=1e-6)
    assert made.lengths.tolist() == [5, 1, 3]


def test_what_is_no_table_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        ChainTable.load(tmp_path / "none.npz")
    (tmp_path / "bad.npz").write_bytes(b"PK garbage")
    with pytest.raises(InputError, match="not a table of chains"):
        ChainTable.load(tmp_path / "bad.npz")
    np.savez(tmp_path / "other.npz", a=1)
    with pytest.raises(InputError, match="not a table of chains"):
        ChainTable.load(tmp_path / "other.npz")
    with pytest.raises(InputError, match="no chains"):
        ChainTable.from_chains([])
    broken = chains()
    broken[1].backbone[0, 0, 0] = np.nan
    with pytest.raises(InputError, match=r"chain 2 \(c1\)"):
        ChainTable.from_chains(broken)


def test_missing_data_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("SCIFLOW_DATA", str(tmp_path))
    with pytest.raises(InputError, match=r"backbones\.npz"):
        backbones()


def test_a_cluster_is_never_on_two_sides_and_stays_where_it_is():
    generator = np.random.default_rng(1)
    clusters = generator.integers(0, 400, 1000)
    one = Chain(np.zeros((1, 4, 3)))
    made = ChainTable.from_chains([one] * 1000, cluster30=clusters)
    sides = split(made)
    assert np.array_equal(np.sort(np.concatenate(list(sides.values()))), np.arange(1000))
    sets = [set(clusters[rows].tolist()) for rows in sides.values()]
    assert sum(map(len, sets)) == len(set(clusters.tolist()))
    assert 0.02 < len(sides["valid"]) / 1000 < 0.09 and 0.02 < len(sides["test"]) / 1000 < 0.09
    part = np.arange(0, 1000, 3)
    fewer = split(made.subset(part))
    for side in sides:
        assert set(part[fewer[side]].tolist()) <= set(sides[side].tolist())
    assert not np.array_equal(split(made, seed=1)["test"], sides["test"])


@needs_data
def test_the_real_data_have_their_known_counts(table):
    assert (len(table), len(table.backbone)) == (5530, 905_780)
    assert int(table.unbroken.sum()) == 4509
    medium = table.select(rg_ratio=None)
    assert (len(medium), len(set(medium.cluster30.tolist()))) == (2326, 1600)
    compact = table.select()
    assert (len(compact), len(set(compact.cluster30.tolist()))) == (1763, 1186)
    folded = compact_backbones()
    assert (len(folded), len(set(folded.cluster30.tolist()))) == (1356, 958)
    assert folded.lengths.min() >= 40 and folded.lengths.max() <= 128
    assert folded.rg_ratio.max() <= 1.35 and folded.unbroken.all()
    assert all(chain.unbroken and chain.complete for chain in folded.subset(range(20)))


@needs_data
def test_stored_breaks_are_where_the_chain_is_apart(table):
    long = table.subset(np.flatnonzero(~table.unbroken)[:40])
    for chain in long:
        away = np.linalg.norm(chain.backbone[1:, 0] - chain.backbone[:-1, 2], axis=-1)
        assert (away[~chain.joints] < 2.0).all()
        assert (away[chain.joints] > 1.79).all()
