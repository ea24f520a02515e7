"""Pictures of sequences for a page: letters coloured by kind, and composition beside known ones."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from domains.proteins.chain import ALPHABET, Chain
from domains.proteins.evaluators.designs import reference_of_data
from domains.proteins.evaluators.sequences import composition

__all__ = ["composition_plot", "composition_svg", "sequence_svg"]

_KINDS = {
    "AVLIMC": "#3d6fb5",
    "FWY": "#7a4fb0",
    "STNQ": "#3a9a63",
    "DE": "#c8483c",
    "KRH": "#c07a1e",
    "GP": "#8a8f98",
}
"""Aliphatic, aromatic, polar, acidic, basic, special."""

_COLOUR = {letter: colour for letters, colour in _KINDS.items() for letter in letters}
_ROW, _WIDTH, _LINE = 20, 220, 13


def sequence_svg(chain: Chain) -> str:
    """The sequence in rows of 20 letters, coloured by kind; given residues are underlined."""
    text = chain.sequence
    if not text:
        return _frame(_WIDTH, 40, '<text x="10" y="24" fill="currentColor">no residues</text>')
    step = (_WIDTH - 20) / _ROW
    parts = []
    for i, letter in enumerate(text):
        x, y = 10 + step * (i % _ROW + 0.5), _LINE * (i // _ROW + 1)
        given = chain.given is not None and bool(chain.given[i])
        line = ' text-decoration="underline" font-weight="bold"' if given else ""
        parts.append(
            f'<text x="{x:.1f}" y="{y}" text-anchor="middle" font-family="monospace" '
            f'font-size="10" fill="{_COLOUR.get(letter, "#8a8f98")}"{line}>{letter}</text>'
        )
    rows = -(-len(text) // _ROW)
    return _frame(_WIDTH, _LINE * rows + 6, "".join(parts), chain.name)


def composition_plot(chains: Sequence[Chain]) -> tuple[str, str]:
    """(SVG, caption) of the composition, beside that of the training set where it is known."""
    known = reference_of_data()
    beside = "" if known is None else "; lines mark those of UniRef sequences"
    svg = composition_svg(chains, None if known is None else known.letters)
    return svg, f"shares of amino acids in {len(chains)} sequences{beside}"


def composition_svg(chains: Sequence[Chain], known: NDArray[np.float64] | None = None) -> str:
    """Share of each amino acid as bars; a line marks the share ``known [20]`` of the reference."""
    share = composition([chain.sequence for chain in chains])
    top = max(float(share.max()), 0.0 if known is None else float(known.max()), 1e-6)
    width, height, pad = 420, 150, 20
    step = (width - 2 * pad) / len(ALPHABET)
    parts = []
    for i, letter in enumerate(ALPHABET):
        x, full = pad + step * i, height - 2 * pad
        bar = full * share[i] / top
        parts.append(
            f'<rect x="{x + 2:.1f}" y="{height - pad - bar:.1f}" width="{step - 4:.1f}" '
            f'height="{bar:.1f}" fill="{_COLOUR[letter]}"><title>{letter} {share[i]:.1%}</title>'
            f'</rect><text x="{x + step / 2:.1f}" y="{height - 6}" text-anchor="middle" '
            f'font-size="10" fill="currentColor">{letter}</text>'
        )
        if known is not None:
            y = height - pad - full * known[i] / top
            parts.append(
                f'<path d="M{x:.1f} {y:.1f}h{step:.1f}" stroke="currentColor" stroke-width="1.5"/>'
            )
    return _frame(width, height, "".join(parts), "composition")


def _frame(w: float, h: float, body: str, title: str = "") -> str:
    named = f"<title>{html.escape(title)}</title>" if title else ""
    return (
        f'<svg viewBox="0 0 {w} {h}" xmlns="http://www.w3.org/2000/svg" role="img">'
        f"{named}{body}</svg>"
    )
