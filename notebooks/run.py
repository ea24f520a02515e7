"""Execute the notebooks' code cells in order, each notebook in a fresh namespace.

A traceback names the notebook and the cell. With ``SCIFLOW_SMALL=1`` notebooks take small sizes. A
notebook whose metadata names bundled models (``{"sciflow": {"models": [...]}}``) that this clone
lacks is left out, and that is said.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from sciflow.bundled import bundled_models


def missing(path: Path) -> list[str]:
    """Bundled models that a notebook needs and that are not there."""
    needed = json.loads(path.read_text())["metadata"].get("sciflow", {}).get("models", [])
    return [name for name in needed if name not in bundled_models()]


def run(path: Path) -> float:
    """Run one notebook in a temporary folder; the seconds it took."""
    begin = time.monotonic()
    names: dict[str, object] = {"__name__": "__main__"}
    cells = json.loads(path.read_text())["cells"]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for i, cell in enumerate(c for c in cells if c["cell_type"] == "code"):
            source = "".join(cell["source"])
            exec(compile(source, f"{path.name}#cell{i}", "exec"), names)
    return time.monotonic() - begin


if __name__ == "__main__":
    os.environ.setdefault("MPLBACKEND", "Agg")
    notebooks = sorted(Path(__file__).parent.glob("*.ipynb"))
    for notebook in notebooks:
        if lacking := missing(notebook):
            print(f"{notebook.name}: left out, there is no model {', '.join(lacking)}", flush=True)
            continue
        print(f"{notebook.name}: ran in {run(notebook):.1f} s", flush=True)
    sys.exit(0 if notebooks else "no notebooks found")
