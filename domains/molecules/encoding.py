"""Molecules as states: coordinates, atom types, formal charges and bonds, generated jointly.

=========  ===================  ==========================================================
field      shape                meaning
=========  ===================  ==========================================================
coords     float ``[B, N, 3]``  positions / ``scale``, centred
types      int ``[B, N]``       index into ``elements``
charges    int ``[B, N]``       index into ``charges`` (most frequent charge 0 first)
bonds      int ``[B, N, N]``    0 none, 1, 2, 3 order, 4 aromatic
=========  ===================  ==========================================================

``scale`` is the data's standard deviation in ångström, the one place where coordinates are scaled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from domains.molecules.molecule import Molecule
from domains.molecules.table import MoleculeTable
from sciflow.errors import InputError
from sciflow.state import Context, State
from sciflow.training.prepared import PreparedData

__all__ = ["AXES", "BOND_CLASSES", "Encoding", "empty_context"]

BOND_CLASSES = 5
AXES = {"coords": 1, "types": 1, "charges": 1, "bonds": 2}


@dataclass(frozen=True)
class Encoding:
    """The vocabulary and scale of a model.

    Attributes:
        elements: atomic numbers that the model knows.
        charges: formal charges that it knows.
        scale: ångström per unit of the coords field.
    """

    elements: tuple[int, ...]
    charges: tuple[int, ...]
    scale: float

    @classmethod
    def of(cls, table: MoleculeTable) -> Encoding:
        """The vocabulary and scale of a data set."""
        real = np.arange(table.numbers.shape[1]) < table.n_atoms[:, None]
        elements = tuple(int(z) for z in np.unique(table.numbers[real]))
        seen = {int(q) for q in np.unique(table.charges[real])} | {-1, 0, 1}
        charges = tuple(sorted(seen, key=lambda q: (abs(q), q)))
        centred = _centre(table.positions.astype(np.float64), real)
        scale = float(np.sqrt((centred[real] ** 2).mean()))
        if not scale > 0:
            raise InputError("all positions coincide; a data set of 3-D structures is needed")
        return cls(elements, charges, round(scale, 4))

    def prepare(self, table: MoleculeTable, conditions: Sequence[str] = ()) -> PreparedData:
        """Training tensors of a data set, in small types."""
        real = np.arange(table.numbers.shape[1]) < table.n_atoms[:, None]
        unknown = set(np.unique(table.numbers[real]).tolist()) - set(self.elements)
        if unknown:
            raise InputError(
                f"elements with atomic numbers {sorted(unknown)} are not in this model's alphabet "
                f"{list(self.elements)}; remove those molecules or train a new model"
            )
        strange = set(np.unique(table.charges[real]).tolist()) - set(self.charges)
        if strange:
            raise InputError(
                f"formal charges {sorted(strange)} are not in this model's alphabet "
                f"{sorted(self.charges)}; remove those molecules or train a new model"
            )
        missing = [c for c in conditions if c not in table.properties]
        if missing:
            raise InputError(
                f"the data set has no property {', '.join(missing)}; it has: "
                f"{', '.join(table.properties) or 'none'}"
            )
        types = np.searchsorted(self.elements, table.numbers) * real
        charge_index = np.zeros_like(table.charges)
        for i, q in enumerate(self.charges):
            charge_index[table.charges == q] = i
        coords = _centre(table.positions, real) / self.scale
        fields = {
            "coords": torch.from_numpy(coords.astype(np.float32)),
            "types": torch.from_numpy(types.astype(np.uint8)),
            "charges": torch.from_numpy((charge_index * real).astype(np.uint8)),
            "bonds": torch.from_numpy(table.bonds.astype(np.uint8)),
        }
        values = {c: torch.from_numpy(table.properties[c].astype(np.float32)) for c in conditions}
        return PreparedData(fields, AXES, torch.from_numpy(table.n_atoms.astype(np.int64)), values)

    def encode(self, molecules: Sequence[Molecule], conditions: Sequence[str] = ()) -> State:
        """A batch of molecules that have coordinates and bonds."""
        for i, m in enumerate(molecules):
            if m.positions is None or m.bonds is None:
                raise InputError(f"molecule {i} ({m.name or 'unnamed'}) lacks coordinates or bonds")
        data = self.prepare(MoleculeTable.from_molecules(list(molecules)))
        state = data.collate(torch.arange(len(molecules)))
        values = {
            c: torch.tensor([m.properties.get(c, float("nan")) for m in molecules])
            for c in conditions
        }
        return State(state.fields, state.context.replace(conditions=values))

    def decode(self, state: State) -> list[Molecule]:
        """The molecules of a state; numbers that are not finite are passed on for the caller."""
        arrays: dict[str, np.ndarray[Any, Any]] = {
            name: _numpy(state[name]) for name in ("coords", "types", "charges", "bonds")
        }
        elements, charges = np.array(self.elements), np.array(self.charges)
        molecules = []
        for i, n in enumerate(state.context.lengths.tolist()):
            molecules.append(
                Molecule(
                    numbers=elements[arrays["types"][i, :n]],
                    positions=arrays["coords"][i, :n].astype(np.float64) * self.scale,
                    bonds=arrays["bonds"][i, :n, :n],
                    charges=charges[arrays["charges"][i, :n]],
                )
            )
        return molecules

    def config(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        return {
            "elements": list(self.elements),
            "charges": list(self.charges),
            "scale": self.scale,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Encoding:
        """Rebuild from :meth:`config`."""
        return cls(tuple(config["elements"]), tuple(config["charges"]), float(config["scale"]))


def _numpy(x: Tensor) -> np.ndarray[Any, Any]:
    return x.detach().cpu().numpy()


def _centre(x: np.ndarray[Any, Any], real: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    n = np.maximum(real.sum(1), 1)[:, None, None]
    x = x * real[..., None]
    return (x - x.sum(1, keepdims=True) / n) * real[..., None]


def empty_context(lengths: Tensor, conditions: dict[str, Tensor]) -> Context:
    """The context of molecules to be generated: their sizes and wanted properties."""
    n = int(lengths.max()) if len(lengths) else 0
    return Context(torch.arange(n, device=lengths.device) < lengths[:, None], conditions)
