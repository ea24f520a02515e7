"""Where the shared real data lies: ``$SCIFLOW_DATA``, else ``../shared/data`` beside the clone."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder", "shared_data"]


def shared_data() -> Path | None:
    """The folder of shared data sets, or ``None`` where this machine has none."""
    given = os.environ.get("SCIFLOW_DATA")
    folder = Path(given) if given else Path(__file__).resolve().parents[2] / "shared" / "data"
    return folder if folder.is_dir() else None


def cache_folder() -> Path:
    """Folder of downloads and prepared data: ``$SCIFLOW_CACHE``, else ``~/.cache/sciflow``."""
    return Path(os.environ.get("SCIFLOW_CACHE", Path.home() / ".cache" / "sciflow"))
