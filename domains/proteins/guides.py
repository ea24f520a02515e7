"""Guides of backbones by name, as ``--guide`` asks for them."""

from __future__ import annotations

from domains.proteins.clash_guidance import UNCLASH
from domains.proteins.compact_guidance import COMPACT
from domains.proteins.fold_guidance import FOLD
from domains.proteins.guidance import CONTRACT, SHAPE
from domains.proteins.motif_guidance import MOTIF
from domains.proteins.sheet_guidance import SHEETS
from domains.proteins.symmetry import SYMMETRY

__all__ = ["GUIDES"]

GUIDES = {
    "motif": MOTIF,
    "unclash": UNCLASH,
    "sheets": SHEETS,
    "fold": FOLD,
    "symmetry": SYMMETRY,
    "compact": COMPACT,
    "contract": CONTRACT,
    "shape": SHAPE,
}
