"""Pictures of chains for pages: the trace in SVG, plots of torsions and contacts, a 3-D view.

All are made by hand and not by a plotting library: they follow the page's light and dark colours,
print as vectors and need no network. Helices are red, strands blue, the rest grey.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from domains.proteins.chain import Chain
from domains.proteins.evaluators.ramachandran import CLASSES, FAVOURED, RamachandranGrids
from domains.proteins.evaluators.secondary_structure import dssp, three_states
from domains.proteins.evaluators.shape import CONTACT, contacts
from sciflow.reports.stage import stage_html
from sciflow.subsets import evenly_spread

__all__ = ["contact_map_svg", "ramachandran_svg", "svg", "viewer_html"]

_W, _H, _PAD = 220, 150, 10
_COLOURS = {"H": "#d0453c", "E": "#2f6fd0", "C": "#8a8f98"}
_WIDTHS = {"H": 5.0, "E": 4.2, "C": 2.2}
_STEPS = 4
"""Points of the curve a residue."""


def svg(chain: Chain) -> str:
    """The CA trace as an ``<svg>`` element without fixed size, far parts paler.

    Seen along its shortest axis; the first residue has a dot.
    """
    states, x = _states([chain])[0], _trace(chain)
    here: NDArray[np.bool_] = np.isfinite(x.sum(1))
    if here.sum() < 2:
        return _text(f"{len(chain)} residues" if len(chain) else "no residues")
    x = _facing(x)
    flat, depth = x[:, :2] * [1, -1], x[:, 2]
    low, high = np.nanmin(flat, 0), np.nanmax(flat, 0)
    scale = min((np.array([_W, _H]) - 2 * _PAD) / np.maximum(high - low, 1e-3))
    flat = (flat - (low + high) / 2) * scale + [_W / 2, _H / 2]
    near = (depth - np.nanmin(depth)) / max(np.nanmax(depth) - np.nanmin(depth), 1e-3)
    pieces = []
    for first, behind in chain.segments():
        rows = np.flatnonzero(here[first:behind]) + first
        if len(rows) < 2:
            continue
        curve = _spline(flat[rows], _STEPS)
        for k, row in enumerate(rows[:-1]):
            # Each residue draws from half-way before to half-way behind it.
            a, b = max(_STEPS * k - _STEPS // 2, 0), _STEPS * k + _STEPS // 2
            end = len(curve) - 1 if k == len(rows) - 2 else b
            pieces.append((float(near[row]), _polyline(curve[a : end + 1], states[row], near[row])))
    pieces.sort(key=lambda piece: piece[0])
    start = flat[np.flatnonzero(here)[0]]
    dot = f'<circle cx="{start[0]:.1f}" cy="{start[1]:.1f}" r="3" fill="currentColor"/>'
    return _frame(_W, _H, "".join(text for _, text in pieces) + dot)


def _polyline(points: NDArray[np.float64], state: str, near: float) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return (
        f'<polyline points="{path}" fill="none" stroke="{_COLOURS[state]}" '
        f'stroke-width="{_WIDTHS[state]}" stroke-linejoin="round" '
        f'opacity="{0.35 + 0.65 * near:.2f}"/>'
    )


def ramachandran_svg(
    chains: Sequence[Chain], grids: RamachandranGrids | None = None, most: int = 4000
) -> str:
    """φ and ψ of every residue; behind them the favoured and allowed regions of the general grid.

    Args:
        chains: whose residues.
        grids: Top8000; without them there are points alone.
        most: points that are drawn at most, evenly chosen.
    """
    from domains.proteins.evaluators.geometry import torsions

    size, pad = 300, 34
    inner = size - 2 * pad
    body = ""
    if grids is not None:
        general = grids.grids[0]
        for level, opacity in ((CLASSES["general"][1], 0.12), (FAVOURED, 0.25)):
            runs = _runs(general >= level, pad, inner)
            body += f'<path d="{runs}" fill="#2f6fd0" opacity="{opacity}"/>'
    angles = [torsions(chain) for chain in chains]
    points = np.concatenate([np.stack((t.phi, t.psi), 1) for t in angles] or [np.zeros((0, 2))])
    points = points[np.isfinite(points).all(1)]
    points = points[evenly_spread(len(points), most)]
    at = pad + (points * [1, -1] + 180.0) / 360.0 * inner
    dots = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in at)
    body += (
        f'<path d="{dots}" stroke="currentColor" stroke-width="2" stroke-linecap="round" '
        f'opacity="{min(1.0, 60 / max(len(points), 1) ** 0.5 * 0.25 + 0.2):.2f}"/>'
    )
    body += _axes(size, pad, ("φ / °", "ψ / °"), (-180, -90, 0, 90, 180), flip=True)
    return _frame(size, size, body, "Ramachandran plot")


def contact_map_svg(chain: Chain) -> str:
    """Pairs of CA within 8 Å, both halves; helices and strands along the diagonal."""
    size, pad, n = 300, 34, max(len(chain), 1)
    cell = (size - 2 * pad) / n
    pairs = contacts(chain)
    squares = "".join(
        f"M{pad + a * cell:.1f} {pad + b * cell:.1f}h{cell:.1f}v{cell:.1f}h{-cell:.1f}z"
        for i, j in pairs.tolist()
        for a, b in ((i, j), (j, i))
    )
    body = f'<path d="{squares}" fill="currentColor" opacity="0.75"/>'
    states = _states([chain])[0]
    for state in "HE":
        diagonal = "".join(
            f"M{pad + i * cell:.1f} {pad + i * cell:.1f}l{cell:.1f} {cell:.1f}"
            for i, s in enumerate(states)
            if s == state
        )
        body += f'<path d="{diagonal}" stroke="{_COLOURS[state]}" stroke-width="4" fill="none"/>'
    marks = [k for k in range(0, n + 1, 10 if n <= 64 else 20 if n <= 160 else 50)]
    body += _axes(size, pad, ("residue", "residue"), marks, upper=n)
    return _frame(size, size, body, f"contacts within {CONTACT:g} Å")


def viewer_html(chains: Sequence[Chain]) -> str:
    """A self-contained 3-D view: pick a chain, turn it, bring it nearer, colour it.

    Listens for the page's event ``sciflow:show`` whose ``detail`` is the place in ``chains``.
    Chains without coordinates are left out; empty if none is left.
    """
    states = _states(chains)
    shown = [(i, c) for i, c in enumerate(chains) if np.isfinite(_trace(c)).all(1).sum() >= 2]
    if not shown:
        return ""
    colours = '<option value="state">structure</option><option value="place">position</option>'
    if any(c.confidence is not None for _, c in shown):
        colours += '<option value="confidence">confidence</option>'
    if any(c.given is not None and c.given.any() for _, c in shown):
        colours += '<option value="given">motif</option>'
    return stage_html(
        [_scene(i, c, states[i]) for i, c in shown],
        [f"{c.name or f'chain {i + 1}'} · {len(c)} aa" for i, c in shown],
        "chain",
        Path(__file__).with_name("viewer.js"),
        ' data-pick="chain"',
        f'<select aria-label="colour" data-pick="colour">{colours}</select>',
    )


def _scene(place: int, chain: Chain, states: str) -> dict[str, Any]:
    """What the script draws: CA of joined pieces, with a state and a shade for each residue."""
    x = _facing(_trace(chain))
    here: NDArray[np.bool_] = np.isfinite(x.sum(1))
    pieces = []
    for first, behind in chain.segments():
        rows = np.flatnonzero(here[first:behind]) + first
        if len(rows) > 1:
            pieces.append(rows.tolist())
    confidence = None if chain.confidence is None else np.nan_to_num(chain.confidence)
    said = ("sample", "length", "helix", "strand")
    values = {k: v for k, v in chain.properties.items() if k not in said}
    helix, strand = (states.count(s) / max(len(states), 1) for s in "HE")
    note = [f"{len(chain)} residues", f"helix {helix:.0%}, strand {strand:.0%}"]
    return {
        "at": place,
        "x": np.round(np.nan_to_num(x), 2).tolist(),
        "pieces": pieces,
        "state": states,
        "confidence": None if confidence is None else np.round(confidence, 2).tolist(),
        "given": None if chain.given is None else chain.given.astype(int).tolist(),
        "note": ", ".join([*note, *(f"{k.replace('_', ' ')} {v:.3g}" for k, v in values.items())]),
    }


def _states(chains: Sequence[Chain]) -> list[str]:
    return [three_states(text) for text in dssp(chains)]


def _trace(chain: Chain) -> NDArray[np.float64]:
    """CA positions; what is not finite or absurdly far is NaN."""
    x = chain.ca.astype(np.float64)
    return np.where(np.abs(x) < 1e5, x, np.nan)


def _facing(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centred, the widest direction across and the narrowest towards the eye; never mirrored."""
    x = x - np.nanmean(x, 0)
    axes = np.linalg.svd(x[np.isfinite(x).all(1)], full_matrices=True)[2]
    axes[2] *= np.sign(np.linalg.det(axes))
    return np.asarray(x @ axes.T)


def _spline(x: NDArray[np.float64], steps: int) -> NDArray[np.float64]:
    """Catmull-Rom curve through points, ``steps`` pieces between neighbours."""
    ends = np.concatenate((2 * x[:1] - x[1:2], x, 2 * x[-1:] - x[-2:-1]))
    p, q, r, s = ends[:-3], ends[1:-2], ends[2:-1], ends[3:]
    t = (np.arange(steps) / steps)[None, :, None]
    p, q, r, s = (a[:, None] for a in (p, q, r, s))
    curve = 0.5 * (
        2 * q + (r - p) * t + (2 * p - 5 * q + 4 * r - s) * t**2 + (3 * q - p - 3 * r + s) * t**3
    )
    return np.concatenate((curve.reshape(-1, x.shape[1]), x[-1:]))


def _runs(mask: NDArray[np.bool_], pad: float, inner: float) -> str:
    """The cells of a mask (φ, ψ) as one path, each column's runs joined."""
    cell = inner / len(mask)
    path = []
    for i, column in enumerate(mask):
        edges = np.flatnonzero(np.diff(np.concatenate(([0], column.astype(np.int8), [0]))))
        for a, b in edges.reshape(-1, 2).tolist():
            top = pad + inner - b * cell
            path.append(
                f"M{pad + i * cell:.1f} {top:.1f}h{cell:.1f}v{(b - a) * cell:.1f}h-{cell:.1f}z"
            )
    return "".join(path)


def _axes(
    size: int,
    pad: int,
    labels: tuple[str, str],
    marks: Sequence[int],
    upper: float = 360.0,
    flip: bool = False,
) -> str:
    inner = size - 2 * pad
    low = -180.0 if flip else 0.0
    parts = [
        f'<rect x="{pad}" y="{pad}" width="{inner}" height="{inner}" fill="none" '
        'stroke="currentColor" opacity="0.5"/>'
    ]
    style = 'font-size="10" fill="currentColor"'
    for mark in marks:
        u = pad + (mark - low) / upper * inner
        v = size - u if flip else u
        parts.append(
            f'<text x="{u:.1f}" y="{size - pad + 12}" text-anchor="middle" {style}>{mark}</text>'
            f'<text x="{pad - 4}" y="{v + 3:.1f}" text-anchor="end" {style}>{mark}</text>'
        )
    parts.append(
        f'<text x="{size / 2}" y="{size - 4}" text-anchor="middle" {style}>{labels[0]}</text>'
        f'<text x="10" y="{size / 2}" text-anchor="middle" {style} '
        f'transform="rotate(-90 10 {size / 2})">{labels[1]}</text>'
    )
    return "".join(parts)


def _text(text: str) -> str:
    return _frame(
        _W,
        _H,
        f'<text x="{_W // 2}" y="{_H // 2}" text-anchor="middle" fill="currentColor">'
        f"{html.escape(text)}</text>",
    )


def _frame(w: int, h: int, body: str, title: str = "") -> str:
    named = f"<title>{html.escape(title)}</title>" if title else ""
    return (
        f'<svg viewBox="0 0 {w} {h}" xmlns="http://www.w3.org/2000/svg" role="img">'
        f"{named}{body}</svg>"
    )
