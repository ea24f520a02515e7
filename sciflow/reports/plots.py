"""Two plots as inline SVG in the page's own colours: a histogram and a scatter against targets.

Made by hand rather than by a plotting library: they follow the page's light and dark colours, print
as vectors, and cost nothing to import.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

__all__ = ["histogram", "scatter", "ticks"]

_W, _H = 460, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 22, 40


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from ``low`` to ``high``."""
    span = high - low
    if not span > 0:
        return [low]
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def histogram(values: Sequence[float], low: float, high: float, label: str) -> str:
    """Counts of ``values``, with what was asked for (``low``..``high``) marked.

    Args:
        values: finite numbers.
        low: the value asked for, or the lower end of the range; may be infinite.
        high: the same value, or the upper end.
        label: of the axis, with unit.
    """
    left, right = _limits([*values, *(end for end in (low, high) if math.isfinite(end))])
    low, high = max(low, left), min(high, right)
    bins = min(max(round(2 * math.sqrt(len(values))), 8), 30)
    width = (right - left) / bins
    counts = [0] * bins
    for v in values:
        counts[min(int((v - left) / width), bins - 1)] += 1
    x = _scale(left, right, _LEFT, _W - _RIGHT)
    y = _scale(0, max(counts, default=0) or 1, _H - _BOTTOM, _TOP)
    bars = "".join(
        f'<rect class="bar" x="{x(left + i * width) + 0.5:.1f}" y="{y(c):.1f}" '
        f'width="{max(x(left + width) - x(left) - 1, 1):.1f}" height="{y(0) - y(c):.1f}">'
        f"<title>{c}: {left + i * width:.3g} to {left + (i + 1) * width:.3g}</title></rect>"
        for i, c in enumerate(counts)
        if c
    )
    if low == high:
        mark = (
            f'<line class="asked" x1="{x(low):.1f}" x2="{x(low):.1f}" y1="{_TOP - 4}" y2="{y(0)}"/>'
        )
    else:
        mark = (
            f'<rect class="asked" x="{x(low):.1f}" y="{_TOP}" width="{x(high) - x(low):.1f}" '
            f'height="{y(0) - _TOP:.1f}"/>'
        )
    middle = (x(low) + x(high)) / 2
    said = f'<text class="asked-label" x="{middle:.1f}" y="{_TOP - 8}">asked for</text>'
    axis = _x_axis(left, right, x, label) + _y_axis(ticks(0, max(counts, default=1), 4), y)
    return _frame(f"distribution of {label}", axis + bars + mark + said)


def scatter(pairs: Sequence[tuple[float, float]], label: str) -> str:
    """Points (asked for, measured) with the diagonal on which a perfect model would lie."""
    left, right = _limits([a for a, _ in pairs])
    bottom, top = _limits([v for pair in pairs for v in pair])
    x = _scale(left, right, _LEFT, _W - _RIGHT)
    y = _scale(bottom, top, _H - _BOTTOM, _TOP)
    low, high = max(left, bottom), min(right, top)
    diagonal = (
        f'<line class="asked" x1="{x(low):.1f}" y1="{y(low):.1f}" x2="{x(high):.1f}" '
        f'y2="{y(high):.1f}"/>'
    )
    points = "".join(
        f'<circle class="point" cx="{x(a):.1f}" cy="{y(b):.1f}" r="3.5">'
        f"<title>asked {a:.4g}, measured {b:.4g}</title></circle>"
        for a, b in pairs
    )
    axis = _x_axis(left, right, x, f"asked for: {label}") + _y_axis(ticks(bottom, top, 5), y)
    return _frame(f"measured {label} against the value asked for", axis + points + diagonal)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = 0.05 * (high - low) or max(0.05 * abs(high), 0.5)
    return low - pad, high + pad


class _scale:
    """An affine map from data to the picture."""

    def __init__(self, a: float, b: float, at_a: float, at_b: float):
        self.slope = (at_b - at_a) / (b - a)
        self.offset = at_a - a * self.slope

    def __call__(self, v: float) -> float:
        return v * self.slope + self.offset


def _x_axis(left: float, right: float, x: _scale, label: str) -> str:
    base = _H - _BOTTOM
    parts = [f'<line class="axis" x1="{_LEFT}" x2="{_W - _RIGHT}" y1="{base}" y2="{base}"/>']
    parts += [
        f'<line class="axis" x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{base}" y2="{base + 4}"/>'
        f'<text class="x" x="{x(t):.1f}" y="{base + 16}">{t:g}</text>'
        for t in ticks(left, right)
    ]
    parts.append(
        f'<text class="x" x="{(_LEFT + _W - _RIGHT) / 2}" y="{_H - 5}">{escape(label)}</text>'
    )
    return "".join(parts)


def _y_axis(at: Sequence[float], y: _scale) -> str:
    return "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{_W - _RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
        f'<text class="y" x="{_LEFT - 6}" y="{y(t) + 4:.1f}">{t:g}</text>'
        for t in at
    )


def _frame(title: str, body: str) -> str:
    return (
        f'<svg class="plot" viewBox="0 0 {_W} {_H}" role="img" aria-label="{escape(title)}">'
        f"{body}</svg>"
    )
