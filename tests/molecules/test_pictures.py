"""Drawings and the 3-D view: every molecule gets one, whatever is wrong with it."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from domains.molecules.adapter import Molecules
from domains.molecules.molecule import Molecule
from domains.molecules.pictures import svg, viewer_html

EXAMPLES = Molecules().examples(6)
BENZENE = next(m for m in EXAMPLES if m.formula == "C6H6")
WRONG = {
    "three-bonded hydrogens": BENZENE.replace(bonds=(BENZENE.bonds > 0).astype(np.int8) * 3),
    "no bonds at all": BENZENE.replace(bonds=np.zeros_like(BENZENE.bonds)),
    "bonds unknown": BENZENE.replace(bonds=None),
    "no coordinates": BENZENE.replace(positions=None),
    "no atoms": Molecule(np.zeros(0, int), np.zeros((0, 3)), np.zeros((0, 0), int)),
    "a lone atom": Molecule([6], [[0, 0, 0]], [[0]]),
    "aromatic without a ring": Molecule([6, 6], [[0, 0, 0], [1.4, 0, 0]], [[0, 4], [4, 0]]),
    "an unknown element": Molecule([0, 1], [[0, 0, 0], [1, 0, 0]], [[0, 1], [1, 0]]),
}


@pytest.mark.parametrize("molecule", [*EXAMPLES, *WRONG.values()],
                         ids=[*(m.formula for m in EXAMPLES), *WRONG])  # fmt: skip
def test_every_molecule_has_a_drawing_that_is_well_formed(molecule: Molecule) -> None:
    text = svg(molecule)
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg") and len(root) > 0
    # The page's colour for black, so that it can be seen on a dark page too.
    assert "#000000" not in text


def test_hydrogens_on_carbon_are_left_out_of_the_drawing() -> None:
    ethanol = next(m for m in EXAMPLES if m.formula == "C2H6O")
    # Two bonds between three heavy atoms, the one to oxygen drawn in two colours.
    assert len(re.findall("<path[^>]*stroke:", svg(ethanol))) <= 6


def scenes(html: str) -> list[dict[str, object]]:
    found = re.search(r'<script type="application/json">(.*?)</script>', html, re.S)
    assert found
    return list(json.loads(found[1]))


def test_the_view_holds_the_geometry_up_to_rotation() -> None:
    for molecule, scene in zip(EXAMPLES, scenes(viewer_html(EXAMPLES)), strict=True):
        x = np.array(scene["x"])
        given = molecule.positions - molecule.positions.mean(0)
        np.testing.assert_allclose(x @ x.T, given @ given.T, atol=0.02)
        assert len(scene["symbols"]) == len(molecule)
        assert len(scene["bonds"]) == np.count_nonzero(np.triu(molecule.bonds))
        if len(molecule) > 4:
            # The same hand: a proper rotation maps one to the other.
            u, _, v = np.linalg.svd(given.T @ x)
            rotation = u @ v
            spread = np.linalg.svd(given, compute_uv=False)[2]
            assert np.linalg.det(rotation) > 0 or spread < 0.05


def test_the_view_leaves_out_what_has_no_coordinates_and_keeps_places() -> None:
    molecules = [WRONG["no coordinates"], EXAMPLES[0], WRONG["no atoms"], EXAMPLES[1]]
    assert [s["at"] for s in scenes(viewer_html(molecules))] == [1, 3]
    assert viewer_html([WRONG["no coordinates"]]) == viewer_html([]) == ""


def test_broken_molecules_can_be_viewed_too() -> None:
    shown = [m for m in WRONG.values() if m.positions is not None and len(m)]
    assert len(scenes(viewer_html(shown))) == len(shown)
