"""Execute the notebooks' code cells in order, each notebook in a fresh namespace.

A traceback names the notebook and the cell. With ``SCIFLOW_SMALL=1`` notebooks take small sizes.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path


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
        print(f"{notebook.name}: ran in {run(notebook):.1f} s", flush=True)
    sys.exit(0 if notebooks else "no notebooks found")
