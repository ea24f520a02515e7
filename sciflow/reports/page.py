"""``report.html``: one page that holds everything and asks the network for nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sciflow.reports.plots import histogram, scatter
from sciflow.targets import Target, parse_targets

if TYPE_CHECKING:
    from sciflow.reports.run import Run

__all__ = ["page"]

_PICTURES = 96
_TABLE = 1000
_LONG = "oracle_failure", "reason"


def page(run: Run) -> str:
    """The HTML of a run: headline, targets against the oracle, pictures, table, settings."""
    here = Path(__file__)
    css = here.with_name("page.css").read_text("utf-8")
    js = here.with_name("page.js").read_text("utf-8")
    title = _title(run)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>\n<style>{css}</style></head>\n<body>\n"
        f"{_head(run, title)}\n{_plots(run)}\n{_look(run)}\n{_field_plots(run)}\n"
        f"{_table(run)}\n{_judged(run)}\n"
        f"{_made(run)}\n<script>{js}</script>\n</body></html>\n"
    )


def _title(run: Run) -> str:
    n = run.metrics["samples"]["requested"]
    asked = [f"{k} {_in_words(_target(k, v), _unit(run, k))}"
             for k, v in run.settings.get("targets", {}).items()]  # fmt: skip
    what = run.domain.name if n != 1 else run.domain.name.removesuffix("s")
    return f"{n} {what} asked for " + " and ".join(asked) if asked else f"{n} {what}"


def _head(run: Run, title: str) -> str:
    counts, cost = run.metrics["samples"], run.metrics["cost"]
    tiles = [(f"{counts['valid']} of {counts['requested']}", "valid", _dropped(run))]
    for name, e in run.metrics["targets"].items():
        error = e["mean_absolute_error"]
        if error is None:
            tiles.append(("–", f"{name}: nothing measured", ""))
            continue
        base = e["same_size_training_samples_error"]
        beside = (
            ""
            if base is None
            else f"{base:.3g} {_unit(run, name)} for training data of the same sizes"
        )
        what = f"mean |{name} − asked|, by the oracle"
        tiles.append((f"{error:.3g} {_unit(run, name)}", what, beside))
    per = cost["cpu_seconds_per_valid"]
    tiles.append((
        f"{cost['network_calls']}", "network calls a sample",
        "" if per is None else f"{per:.2g} CPU seconds a valid sample",
    ))  # fmt: skip
    cells = "".join(
        f'<div class="tile"><b>{escape(big)}</b><span>{escape(what)}</span>'
        f"<span>{escape(more)}</span></div>"
        for big, what, more in tiles
    )
    lead = f"Model {run.settings.get('model') or '?'}, seed {run.settings.get('seed')}, " \
           f"written {run.settings.get('written', '')[:16].replace('T', ' ')} UTC"  # fmt: skip
    return (
        f'<header><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>'
        f'<div class="tiles">{cells}</div></header>'
    )


def _dropped(run: Run) -> str:
    counts = sorted(run.dropped.items(), key=lambda item: -item[1])
    if not counts:
        return "none dropped"
    n = sum(count for _, count in counts)
    return f"{n} dropped, most often: {counts[0][0]} ({counts[0][1]})"


def _plots(run: Run) -> str:
    figures = []
    for name, errors in run.metrics["targets"].items():
        pairs = [(row[f"target_{name}"], row[name]) for row in run.rows
                 if row["valid"] and row.get(name) is not None
                 and row.get(f"target_{name}") is not None]  # fmt: skip
        if not pairs:
            continue
        label = f"{name} [{_unit(run, name)}]"
        target = _target(name, errors["asked"])
        values = [got for _, got in pairs]
        if target is None or not target.is_point:
            figures.append((scatter(pairs, label), _caption(run, name, errors)))
        if target is not None and math.isfinite(max(target.low, -target.high)):
            drawn = histogram(values, target.low, target.high, f"measured {label}")
            figures.append((drawn, _caption(run, name, errors)))
    if not figures:
        return ""
    body = "".join(
        f"<figure>{svg}<figcaption>{text}</figcaption></figure>" for svg, text in figures
    )
    return f'<section><h2>Asked for, and measured</h2><div class="plots">{body}</div></section>'


def _field_plots(run: Run) -> str:
    """What the science itself plots of a set: a Ramachandran plot, say."""
    figures = run.domain.plots(run.records) if run.records else []
    body = "".join(
        f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"
        for svg, caption in figures
    )
    return f'<section><h2>In plots</h2><div class="plots">{body}</div></section>' if body else ""


def _caption(run: Run, name: str, e: Mapping[str, Any]) -> str:
    error = f"{e['mean_absolute_error']:.3g} {_unit(run, name)}"
    about = f"{run.domain.properties[name].summary}; {e['measured']} measured"
    text = f"<b>{escape(name)}</b>: {escape(about)}, mean absolute error {escape(error)}"
    if e.get("inside_range") is not None:
        text += f", {100 * e['inside_range']:.0f} % inside the range"
    return text


def _target(name: str, text: str | None) -> Target | None:
    if text is None:
        return None
    (value,) = parse_targets([f"{name}={text}"]).values()
    return value if isinstance(value, Target) else None


def _in_words(target: Target | None, unit: str) -> str:
    if target is None or math.inf == target.high == -target.low:
        return "as in the training data"
    if target.is_point:
        return f"= {target.low:g} {unit}"
    if math.inf in (target.high, -target.low):
        return (
            f"≥ {target.low:g} {unit}" if target.high == math.inf else f"≤ {target.high:g} {unit}"
        )
    return f"{target.low:g} to {target.high:g} {unit}"


def _look(run: Run) -> str:
    if not run.records:
        return "<section><h2>Samples</h2><p>No sample is valid; the table says why.</p></section>"
    valid = [row for row in run.rows if row["valid"]][:_PICTURES]
    records = run.records[:_PICTURES]
    titled = [run.domain.annotate(record, f"sample {row['sample']}", _numbers(run, row))
              for row, record in zip(valid, records, strict=True)]  # fmt: skip
    cards = "".join(
        f'<button type="button" class="card" data-at="{i}">{run.domain.picture(record)}'
        f"{_identity(row)}{_measures(run, row)}</button>"
        for i, (row, record) in enumerate(zip(valid, records, strict=True))
    )
    viewer = run.domain.viewer(titled)
    hint = '<p class="hint">Drag to turn, scroll to zoom, double-click to reset; click a picture ' \
           "to see it here.</p>"  # fmt: skip
    stage = f'<div class="stage">{viewer}{hint}</div>' if viewer else ""
    gallery = f'<div class="gallery">{cards}</div>'
    more = len(run.records) - len(records)
    note = f"The first {len(records)} are shown; {more} more are in the files."
    rest = f'<p class="hint">{note}</p>' if more else ""
    body = f'<div class="look">{stage}{gallery}</div>' if viewer else gallery
    return f"<section><h2>Samples</h2>{body}{rest}</section>"


def _numbers(run: Run, row: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: row[name] for name in run.domain.properties if isinstance(row.get(name), int | float)
    }


def _identity(row: Mapping[str, Any]) -> str:
    """The row's first column of text, e.g. its SMILES."""
    for key, value in row.items():
        if isinstance(value, str) and value and key not in _LONG:
            return f'<code title="{escape(value)}">{escape(value)}</code>'
    return f"<code>sample {row['sample']}</code>"


def _measures(run: Run, row: Mapping[str, Any]) -> str:
    texts = [
        f"{k.replace('_', ' ')} {v:.3g} {_unit(run, k)}" for k, v in _numbers(run, row).items()
    ]
    return "".join(f"<span>{escape(t)}</span>" for t in (*texts, f"sample {row['sample']}"))


def _table(run: Run) -> str:
    columns = list(dict.fromkeys(key for row in run.rows for key in row))
    used = [c for c in columns
            if c != "valid" and any(row.get(c) not in (None, "") for row in run.rows)]  # fmt: skip
    used.sort(key=lambda c: c in _LONG)
    head = "".join(f"<th>{escape(_heading(run, c))}</th>" for c in used)
    rows = "".join(
        f"<tr{'' if row['valid'] else ' class=bad'}>{''.join(_td(row.get(c)) for c in used)}</tr>"
        for row in run.rows[:_TABLE]
    )
    more = len(run.rows) - _TABLE
    rest = f'<p class="hint">{more} more rows are in samples.csv.</p>' if more > 0 else ""
    return (
        '<section><h2>All samples</h2><div class="scroll"><table class="sortable"><thead><tr>'
        f"{head}</tr></thead><tbody>{rows}</tbody></table></div>{rest}"
        '<p class="hint">Click a heading to sort. Dropped samples are in red with their reason; '
        "they are not in the files.</p></section>"
    )


def _heading(run: Run, column: str) -> str:
    name = column.removeprefix("target_")
    if name not in run.domain.properties:
        return column.replace("_", " ")
    asked = "asked " if column.startswith("target_") else ""
    unit = _unit(run, name)
    return f"{asked}{name.replace('_', ' ')}" + (f" [{unit}]" if unit else "")


def _td(value: Any) -> str:
    if isinstance(value, bool) or value is None or value == "":
        return '<td data-v=""></td>'
    if isinstance(value, int | float):
        return f'<td class="number" data-v="{value!r}">{value:.5g}</td>'
    text = str(value)
    if len(text) <= 40:
        return f"<td>{escape(text)}</td>"
    # What has no spaces is code, a sequence say: letters stand below letters on one line.
    return f"<td class={'long' if ' ' in text else 'code'}>{escape(text)}</td>"


def _judged(run: Run) -> str:
    numbers = run.metrics.get("evaluation") or {}
    if not numbers:
        return ""
    return (
        "<section><h2>Judged by the rules of the field</h2>"
        f'<div class="columns">{_pairs(_shares(numbers))}</div>'
        '<p class="hint">Over all finite samples, dropped ones included. For the same numbers of '
        f"real data: sciflow evaluate {escape(run.domain.name)} FILE.</p></section>"
    )


def _shares(numbers: Mapping[str, Any]) -> list[list[tuple[str, str]]]:
    items = [
        (name.replace("_", " "), "–" if v is None else f"{v:.4g}") for name, v in numbers.items()
    ]
    half = (len(items) + 1) // 2
    return [items[:half], items[half:]]


def _made(run: Run) -> str:
    s = run.settings
    settings = {k: v for k, v in s.items()
                if k not in ("versions", "sampler", "command", "files", "targets")}  # fmt: skip
    settings |= {f"target {k}": v for k, v in s.get("targets", {}).items()}
    settings |= {f"sampler {k}": v for k, v in s.get("sampler", {}).items()}
    settings |= {k: f"{v:.3g}" for k, v in run.metrics["cost"].items() if isinstance(v, float)}
    halves = [
        [(k.replace("_", " "), v if isinstance(v, str) else json.dumps(v)) for k, v in part.items()]
        for part in (settings, s.get("versions", {}))
    ]
    return (
        f"<section><h2>How this was made</h2><pre>{escape(s.get('command', ''))}</pre>"
        f'<div class="columns">{_pairs(halves)}</div></section>'
    )


def _pairs(groups: Iterable[Iterable[tuple[str, str]]]) -> str:
    return "".join(
        "<table>"
        + "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in group)
        + "</table>"
        for group in groups
    )


def _unit(run: Run, name: str) -> str:
    known = run.domain.properties.get(name)
    return known.unit.replace("^2", "²").replace("^3", "³") if known else ""
