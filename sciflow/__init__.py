"""One diffusion and flow-matching core for molecules, proteins, trajectories, series and fields.

import sciflow
model = sciflow.load("molecules/qm9-gfn2")
model.sample(100, target={"gap": 6.0}, seed=0).save("run/")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Model", "Samples", "__version__", "load"]

if TYPE_CHECKING:
    from sciflow.model import Model, Samples, load


def __getattr__(name: str) -> Any:
    # Torch takes a second to import: the command's --help and --version must not pay for it.
    if name in ("Model", "Samples", "load"):
        from sciflow import model

        return getattr(model, name)
    raise AttributeError(f"module 'sciflow' has no attribute {name!r}")
