"""Proteins keep the contract of a domain: as angles, as frames and as sequences."""

from __future__ import annotations

from typing import ClassVar

import pytest

from sciflow.domain import Domain
from sciflow.errors import InputError
from sciflow.model import Model
from sciflow.testing.contract import DomainContract

_SMALL = {"network": {"dim": 32, "pair_dim": 8, "depth": 2, "heads": 2}}


class TestAngles(DomainContract):
    domain_name = "proteins"
    preset = "angles"
    conditions = ("helix", "rg_ratio")
    smaller: ClassVar = {"network": {**_SMALL["network"], "pair_dim": 0}}
    # Coordinates of 4e-7 Å (float32) and 0.001 Å (PDB) in standard deviations of a bond angle.
    record_precision = 3e-4
    file_precision = 0.1

    def test_a_length_is_kept(self, domain: Domain, model: Model) -> None:
        """Whatever the training lengths; a length is no condition and costs no guidance."""
        calls = model.sample(1, sampler={"steps": 2}).calls
        made = model.sample(3, {"length": 31}, guidance=2.0, sampler={"steps": 2})
        assert made.calls == calls
        lengths = model.sample(20, {"length": (45, 50)}, sampler={"steps": 1}).records
        assert all(45 <= len(r) <= 50 for r in lengths if r is not None)
        assert [len(r) for r in made.records if r is not None] == [31] * len(made.kept)
        with pytest.raises(InputError, match="1 residue or more"):
            model.sample(1, {"length": 0})


class TestFrames(DomainContract):
    domain_name = "proteins"
    preset = "frames"
    conditions = ("strand",)
    smaller: ClassVar = _SMALL
    record_precision = 3e-5
    examples = 8


class TestSequences(DomainContract):
    domain_name = "proteins"
    preset = "sequences"
    conditions = ("helix",)
    smaller: ClassVar = {"network": {"dim": 32, "depth": 2, "heads": 2, "window": 3}}
