"""Data sets of one kind of secondary structure, and models of them as one."""

from __future__ import annotations

import pytest

from domains.proteins.adapter import Proteins
from domains.proteins.datasets import LOADERS, backbones, split
from domains.proteins.evaluators.secondary_structure import secondary_structure
from sciflow.data import shared_data

needs_data = pytest.mark.skipif(shared_data() is None, reason="backbones.npz is not here")


@needs_data
def test_alpha_and_beta_are_what_they_say() -> None:
    domain, whole = Proteins(), backbones()
    assert set(LOADERS) <= set(domain.datasets)
    parts = split(whole).items()
    sides = {text: side for side, rows in parts for text in whole.subset(rows).sequences}
    assert len(sides) == len(whole)
    for name, count, clusters, state in (
        ("backbones-alpha", 1638, 1232, "helix"),
        ("backbones-beta", 836, 374, "strand"),
    ):
        table = domain.dataset(name)
        assert (table.name, len(table), len(set(table.cluster30.tolist()))) == (
            name, count, clusters,
        )  # fmt: skip
        assert f"{count:,}" in domain.datasets[name]
        # By DSSP computed anew, not by the states that the table keeps.
        content = secondary_structure([table[i] for i in range(0, len(table), 40)])
        other = {"helix": "strand", "strand": "helix"}[state]
        assert content[state] > 0.35 and content[other] < 0.1
        # What is held out stays held out.
        for side, rows in split(table).items():
            assert {sides[text] for text in table.subset(rows).sequences} == {side}
    alpha, beta = (set(domain.dataset(n).sequences) for n in ("backbones-alpha", "backbones-beta"))
    assert not alpha & beta
