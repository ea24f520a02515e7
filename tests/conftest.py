"""A tiny model with random weights, made once, on which command line and runs are tried."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

CONDITIONS = ("gap", "dipole")


def make_tiny_model(folder: Path) -> Path:
    from domains.molecules.adapter import Molecules
    from domains.molecules.table import MoleculeTable
    from sciflow.model import Model

    domain = Molecules()
    molecules = [
        m.with_properties(gap=3.0 + 0.5 * i, dipole=1.0 + 0.2 * i)
        for i, m in enumerate(domain.examples(30))
    ]
    table = MoleculeTable.from_molecules(molecules, "tiny")
    config, data, _ = domain.prepare(table, "small", CONDITIONS)
    config = copy.deepcopy(config)
    config["network"] |= {"dim": 32, "pair_dim": 16, "depth": 2, "heads": 4}
    config["sampler"] = {"steps": 6}
    torch.manual_seed(0)
    denoiser = domain.denoiser(config)
    with torch.no_grad():
        # Fresh networks begin with layers of zeros, which would hide what their inputs are.
        for p in denoiser.parameters():
            p.add_(0.1 * torch.randn_like(p))
    card = "# tiny\n\nRandom weights.\n"
    return Model(domain, denoiser, config, domain.reference(data), card).save(folder)


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model of molecules, 2 layers, random weights, conditions gap and dipole."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
