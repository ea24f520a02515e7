"""The page part in which records are viewed in 3-D: a canvas, a list to pick from, the script.

What is common (turning, bringing nearer, leafing through) is ``stage.js``; a domain's own script
draws a scene by ``sciflowStage(root, {...})``. It listens for the page's event ``sciflow:show``,
whose ``detail`` is the ``at`` of a scene.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["stage_html"]


def stage_html(
    scenes: Sequence[Mapping[str, Any]], labels: Sequence[str], what: str, script: Path,
    pick: str = "", tools: str = "",
) -> str:  # fmt: skip
    """A self-contained view; needs no network.

    Args:
        scenes: what the script draws: ``at`` (place of the record), ``x`` (points), ``note`` and
            whatever else it reads; plain data.
        labels: of the scenes, in the list to pick from.
        what: is picked, for screen readers.
        script: the domain's.
        pick: further attributes of the list, as HTML.
        tools: further controls beside the list, as HTML.
    """
    # A name could end the script element.
    data = json.dumps(scenes, separators=(",", ":")).replace("<", "\\u003c")
    common = Path(__file__).with_name("stage.js").read_text("utf-8")
    options = "".join(
        f'<option value="{k}">{html.escape(label)}</option>' for k, label in enumerate(labels)
    )
    return (
        '<div class="viewer">'
        '<div class="viewer-bar"><button type="button" data-step="-1" aria-label="previous">‹'
        f'</button><select aria-label="{what}"{pick}>{options}</select>'
        '<button type="button" data-step="1" aria-label="next">›</button>'
        f"{tools}</div>"
        '<canvas tabindex="0" aria-label="3-D view; arrow keys turn, + and - zoom"></canvas>'
        '<p class="viewer-note"></p>'
        f'<script type="application/json">{data}</script>'
        f"<script>{common}{script.read_text('utf-8')}</script></div>"
    )
