"""Ramachandran favoured, allowed and outlier residues by the Top8000 grids.

The grids are percentiles of (φ, ψ) in 8,000 crystal structures (Lovell et al., Proteins 50, 437,
2003; Chen et al., MolProbity, Acta Cryst. D 66, 12, 2010): 2° cells for six classes of residue,
each value belonging to its cell's centre, between which it is interpolated linearly, around the
torus. A residue is favoured at 0.02 or more (98 % of the reference are) and an outlier below 0.0005
(general), 0.002 (cis-proline) or 0.001 (the others).

The grids are third parties' data (rlabduke/reference_data, CC BY 4.0): they are read from the
shared data or from a folder of the user's, never shipped.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from domains.proteins.chain import Chain
from domains.proteins.evaluators.geometry import Array, torsions
from sciflow.data import shared_data
from sciflow.errors import InputError

__all__ = ["CLASSES", "Ramachandran", "RamachandranGrids", "residue_classes"]

CLASSES = {
    "general": ("general-noGPIVpreP", 0.0005),
    "glycine": ("gly-sym", 0.001),
    "cis-proline": ("cispro", 0.002),
    "trans-proline": ("transpro", 0.001),
    "pre-proline": ("prepro-noGP", 0.001),
    "isoleucine-valine": ("ileval-nopreP", 0.001),
}
"""Class of residue: (name of its grid, value below which a residue is an outlier)."""

FAVOURED = 0.02
_NAMES = tuple(CLASSES)
_CELLS, _WIDTH = 180, 2.0
_CIS = 30.0


@dataclass(frozen=True)
class Ramachandran:
    """One chain's residues that have both φ and ψ.

    Attributes:
        rows: which residues, ``[K]``.
        phi, psi: degrees ``[K]``.
        classes: place of each in :data:`CLASSES`, ``[K]``.
        value: of the grid, ``[K]``.
        favoured, outlier: bool ``[K]``; allowed is neither.
    """

    rows: NDArray[np.int64]
    phi: Array
    psi: Array
    classes: NDArray[np.int64]
    value: Array
    favoured: NDArray[np.bool_]
    outlier: NDArray[np.bool_]


@dataclass(frozen=True)
class RamachandranGrids:
    """The six grids, float64 ``[6, 180, 180]`` in the order of :data:`CLASSES`, axes (φ, ψ)."""

    grids: Array

    @classmethod
    def load(cls, path: str | Path | None = None) -> RamachandranGrids:
        """Read them.

        Args:
            path: ``rama8000_grids.npz``, or a folder of ``rama8000-*.data`` as in
                github.com/rlabduke/reference_data; default the shared data.

        Raises:
            InputError: they are not there, or not whole.
        """
        if path is None:
            root = shared_data()
            path = Path() if root is None else root / "proteins" / "rama" / "rama8000_grids.npz"
            if not path.is_file():
                raise InputError(
                    "Ramachandran scores need the Top8000 grids, which are not on this machine and "
                    "not ours to ship: clone github.com/rlabduke/reference_data (CC BY 4.0) and "
                    "give its folder Top8000/Top8000_ramachandran_pct_contour_grids"
                )
        path = Path(path)
        try:
            grids = _from_folder(path) if path.is_dir() else _from_npz(path)
        except FileNotFoundError as error:
            raise InputError(f"no such file: {error.filename or error}", path) from None
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise InputError(f"not the Top8000 grids ({error})", path) from error
        if grids.shape != (len(CLASSES), _CELLS, _CELLS) or not np.isfinite(grids).all():
            raise InputError(f"not the Top8000 grids (shape {grids.shape})", path)
        return cls(grids)

    def value(self, classes: NDArray[np.int64], phi: Array, psi: Array) -> Array:
        """Percentile at (φ, ψ) in degrees, bilinear between centres of cells."""
        u, v = ((a + 180.0) / _WIDTH - 0.5 for a in (phi, psi))
        i, j = np.floor(u).astype(np.int64), np.floor(v).astype(np.int64)
        f, g = u - i, v - j
        total = np.zeros(len(phi))
        for di, wi in ((0, 1 - f), (1, f)):
            for dj, wj in ((0, 1 - g), (1, g)):
                total += wi * wj * self.grids[classes, (i + di) % _CELLS, (j + dj) % _CELLS]
        return total

    def score(self, chain: Chain, general: bool = False) -> Ramachandran:
        """Every residue of a chain that has φ and ψ.

        Args:
            chain: backbone and sequence; an unknown residue ("X") counts as general.
            general: judge every residue by the general grid, as is done for backbones whose
                sequence is not designed; natural chains then have 2 % outliers, their glycines.
        """
        t = torsions(chain)
        rows = np.flatnonzero(np.isfinite(t.phi) & np.isfinite(t.psi))
        classes = residue_classes(chain)[rows] * (not general)
        value = self.value(classes, t.phi[rows], t.psi[rows])
        limit = np.array([cut for _, cut in CLASSES.values()])[classes]
        return Ramachandran(
            rows, t.phi[rows], t.psi[rows], classes, value, value >= FAVOURED, value < limit
        )

    def shares(self, chains: Sequence[Chain], general: bool = False) -> dict[str, float]:
        """``favoured``, ``allowed`` and ``outlier`` of all residues together."""
        scores = [self.score(chain, general) for chain in chains]
        total = sum(len(s.rows) for s in scores)
        if not total:
            return {}
        favoured = sum(int(s.favoured.sum()) for s in scores)
        outlier = sum(int(s.outlier.sum()) for s in scores)
        counts = {
            "favoured": favoured,
            "allowed": total - favoured - outlier,
            "outlier": outlier,
        }
        return {key: count / total for key, count in counts.items()}


def residue_classes(chain: Chain) -> NDArray[np.int64]:
    """Place of each residue in :data:`CLASSES`, ``[N]``.

    Glycine and proline before pre-proline, that before isoleucine and valine, as MolProbity has it.
    A proline is cis where the ω before it is within 30° of 0.
    """
    text = np.array(list(chain.sequence))
    codes = np.zeros(len(chain), np.int64)
    codes[np.isin(text, ["I", "V"])] = _NAMES.index("isoleucine-valine")
    before = np.zeros(len(chain), bool)
    before[:-1] = (text[1:] == "P") & ~chain.joints
    codes[before] = _NAMES.index("pre-proline")
    codes[text == "P"] = _NAMES.index("trans-proline")
    cis = np.zeros(len(chain), bool)
    cis[1:] = np.abs(torsions(chain).omega) < _CIS
    codes[(text == "P") & cis] = _NAMES.index("cis-proline")
    codes[text == "G"] = _NAMES.index("glycine")
    return codes


def _from_npz(path: Path) -> Array:
    with np.load(path, allow_pickle=False) as file:
        return np.stack([file[grid].astype(np.float64) for grid, _ in CLASSES.values()])


def _from_folder(folder: Path) -> Array:
    grids = np.zeros((len(CLASSES), _CELLS, _CELLS))
    for k, (grid, _) in enumerate(CLASSES.values()):
        rows = np.loadtxt(folder / f"rama8000-{grid}.data", comments="#", ndmin=2)
        i, j = (((rows[:, a] + 180.0) // _WIDTH).astype(np.int64) % _CELLS for a in (0, 1))
        grids[k, i, j] = rows[:, 2]
    return grids
