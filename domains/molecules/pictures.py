"""Pictures of molecules for pages: a drawing in SVG, and a 3-D view that needs no network.

The view is a canvas of our own (``viewer.js`` on :mod:`sciflow.reports.stage`): balls and sticks
in CPK colours, painted back to front, turned with the mouse, a finger or the arrow keys.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from rdkit.Chem import rdDepictor
from rdkit.Chem.Draw import rdMolDraw2D

from domains.molecules.molecule import SYMBOLS, Molecule
from domains.molecules.smiles import canonical_smiles, to_rdkit
from sciflow.errors import InputError
from sciflow.reports.stage import stage_html

__all__ = ["svg", "viewer_html"]

_SIZE = (220, 150)
_BOND_LENGTH = 24.0
# Readable on white and on black alike; carbon takes the colour of the text around the picture.
_PALETTE = {
    -1: (0.0, 0.0, 0.0),
    1: (0.55, 0.55, 0.55),
    6: (0.0, 0.0, 0.0),
    7: (0.25, 0.45, 0.95),
    8: (0.90, 0.22, 0.20),
    9: (0.10, 0.60, 0.35),
    15: (0.85, 0.50, 0.10),
    16: (0.72, 0.58, 0.05),
    17: (0.10, 0.60, 0.35),
    35: (0.65, 0.25, 0.15),
    53: (0.55, 0.15, 0.65),
}


def svg(molecule: Molecule) -> str:
    """A structural formula as an ``<svg>`` element without fixed size.

    Hydrogens are left out; what RDKit cannot sanitise is drawn as it stands. Where no bonds are
    known the formula stands for the drawing.
    """
    try:
        mol = _drawable(molecule)
    except InputError:
        return _text(molecule.formula or "no atoms")
    drawer = rdMolDraw2D.MolDraw2DSVG(*_SIZE)
    options: Any = drawer.drawOptions()
    options.clearBackground = False
    options.fixedBondLength = _BOND_LENGTH
    options.padding = 0.06
    options.setAtomPalette(_PALETTE)
    options.bondLineWidth = 1.6
    options.prepareMolsBeforeDrawing = False
    with rdBase.BlockLogs():
        try:
            drawer.DrawMolecule(mol)
        except (RuntimeError, ValueError):
            return _text(molecule.formula)
    drawer.FinishDrawing()
    return _compact(drawer.GetDrawingText())


def _drawable(molecule: Molecule) -> Chem.Mol:
    if not len(molecule):
        raise InputError("no atoms")
    bare = molecule.replace(positions=None)
    with rdBase.BlockLogs():
        try:
            mol = Chem.RemoveHs(to_rdkit(bare))
            Chem.Kekulize(mol)
        except (InputError, ValueError, RuntimeError):
            mol = to_rdkit(bare, sanitize=False)
            mol.UpdatePropertyCache(strict=False)
        rdDepictor.Compute2DCoords(mol)
    return mol


def _compact(text: str) -> str:
    """RDKit's drawing with the page's text colour for black, and without what repeats."""
    body = text[text.index("<!-- END OF HEADER -->") + 22 :]
    body = re.sub(r" class='[^']*'", "", body)
    body = re.sub(r"fill-rule:evenodd;|stroke-linecap:butt;|stroke-linejoin:miter;", "", body)
    body = re.sub(r"stroke-opacity:1;?|(?<=;)stroke:none;?", "", body)
    body = body.replace("#000000", "currentColor").replace("\n", "")
    w, h = _SIZE
    return f'<svg viewBox="0 0 {w} {h}" xmlns="http://www.w3.org/2000/svg" role="img">{body}'


def _text(text: str) -> str:
    w, h = _SIZE
    return (
        f'<svg viewBox="0 0 {w} {h}" xmlns="http://www.w3.org/2000/svg" role="img">'
        f'<text x="{w // 2}" y="{h // 2}" text-anchor="middle" fill="currentColor">'
        f"{html.escape(text)}</text></svg>"
    )


def viewer_html(molecules: Sequence[Molecule]) -> str:
    """A self-contained 3-D view: pick a molecule, turn it, bring it nearer.

    Listens for the page's event ``sciflow:show`` whose ``detail`` is the place in ``molecules``.
    Molecules without coordinates are left out; empty if none is left.
    """
    shown = [(place, m) for place, m in enumerate(molecules) if m.positions is not None and len(m)]
    if not shown:
        return ""
    return stage_html(
        [_scene(place, m) for place, m in shown], [_label(m) for _, m in shown], "molecule",
        Path(__file__).with_name("viewer.js"),
    )  # fmt: skip


def _label(molecule: Molecule) -> str:
    smiles = canonical_smiles(molecule) if molecule.bonds is not None else None
    return " · ".join(part for part in (molecule.name, smiles or molecule.formula) if part)


def _scene(place: int, molecule: Molecule) -> dict[str, Any]:
    """What the script draws: symbols, coordinates in ångström, bonds as (i, j, code)."""
    assert molecule.positions is not None
    bonds: list[list[int]] = []
    if molecule.bonds is not None:
        pairs = np.argwhere(np.triu(molecule.bonds))
        bonds = [[int(i), int(j), int(molecule.bonds[i, j])] for i, j in pairs]
    values = {
        k: v
        for k, v in molecule.properties.items()
        if k != "sample" and not k.startswith("target_")
    }
    return {
        "at": place,
        "symbols": [SYMBOLS[z] for z in molecule.numbers.tolist()],
        "x": np.round(_facing(molecule.positions), 3).tolist(),
        "bonds": bonds,
        "note": ", ".join([molecule.formula, *(f"{k} {v:.4g}" for k, v in values.items())]),
    }


def _facing(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centred, the widest direction across and the narrowest towards the eye; never mirrored."""
    x = x - x.mean(0)
    axes = np.linalg.svd(x, full_matrices=True)[2]
    axes[2] *= np.sign(np.linalg.det(axes))
    return np.asarray(x @ axes.T)
