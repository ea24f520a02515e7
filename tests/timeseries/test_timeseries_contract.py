"""Time series keep the contract of a domain, whichever the network."""

from __future__ import annotations

from typing import ClassVar

from sciflow.testing.contract import DomainContract


class TestPatches(DomainContract):
    domain_name = "timeseries"
    smaller: ClassVar = {"network": {"dim": 32, "depth": 2, "heads": 2}}
    file_precision = 1e-6


class TestS4D(DomainContract):
    domain_name = "timeseries"
    preset = "s4d"
    smaller: ClassVar = {"network": {"dim": 16, "depth": 2, "states": 4}}
    file_precision = 1e-6


class TestMLP(DomainContract):
    domain_name = "timeseries"
    preset = "mlp"
    smaller: ClassVar = {"network": {"dim": 32, "depth": 2}}
    file_precision = 1e-6
