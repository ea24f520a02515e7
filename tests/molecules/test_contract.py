"""Molecules keep the contract of a domain."""

from __future__ import annotations

from typing import ClassVar

from sciflow.testing.contract import DomainContract


class TestMolecules(DomainContract):
    domain_name = "molecules"
    conditions = ("gap", "dipole")
    smaller: ClassVar = {"network": {"dim": 32, "pair_dim": 16, "depth": 2, "heads": 4}}
    symmetries = ("translation", "rotation", "reflection", "permutation")
    vectors = ("coords",)
