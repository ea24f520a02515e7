"""Time series keep the contract of a domain."""

from __future__ import annotations

from typing import ClassVar

from sciflow.testing.contract import DomainContract


class TestTimeSeries(DomainContract):
    domain_name = "timeseries"
    smaller: ClassVar = {"network": {"dim": 32, "depth": 2, "heads": 2}}
    file_precision = 1e-6
