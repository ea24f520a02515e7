"""Backbones as states. A model has some of these fields:

=========  ========================  ==========================================================
field      shape                     meaning
=========  ========================  ==========================================================
positions  float ``[B, N, 3]``       CA atoms / ``scale``, centred
rotations  float ``[B, N, 3, 3]``    frames of the residues
torsions   float ``[B, N, 3]``       φ, ψ, ω in radians
bends      float ``[B, N, 3]``       angles τ, α, β in standard deviations from their means
residues   int ``[B, N]``            amino acids, beside positions and rotations
=========  ========================  ==========================================================

Torsions and bends are the chain up to a motion in space; positions and rotations are it in space;
positions with torsions and bends say it twice, coarsely and finely. ``scale`` is the data's
standard deviation in ångström, the one place where coordinates are scaled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from domains.proteins.chain import Chain
from domains.proteins.frames import atoms_from_frames, frames_from_atoms
from domains.proteins.letters import FIELD, codes, letters_of
from domains.proteins.rebuild import (
    bends_in_radians,
    internal_coordinates,
    rebuild,
    standard_bends,
)
from sciflow.errors import InputError
from sciflow.state import Context, State
from sciflow.training.prepared import PreparedData

__all__ = ["FIELDS", "Encoding", "empty_context", "in_single_precision", "known_properties"]

FIELDS = ("positions", "rotations", "torsions", "bends", FIELD)
_KINDS = (("torsions", "bends"), ("positions", "rotations"), ("positions", "rotations", FIELD))


@dataclass(frozen=True)
class Encoding:
    """The fields and scale of a model.

    Attributes:
        fields: see the module's text.
        scale: ångström per unit of positions.
    """

    fields: tuple[str, ...]
    scale: float = 1.0

    def __post_init__(self) -> None:
        if tuple(self.fields) not in _KINDS:
            allowed = " or ".join(" and ".join(kind) for kind in _KINDS)
            raise InputError(f"fields of a backbone are {allowed}, not {', '.join(self.fields)}")

    @property
    def structure(self) -> tuple[str, ...]:
        """The fields but ``residues``."""
        return tuple(f for f in self.fields if f != FIELD)

    @property
    def sequence(self) -> bool:
        """Whether residues are among the fields."""
        return FIELD in self.fields

    @classmethod
    def of(cls, fields: Sequence[str], chains: Sequence[np.ndarray[Any, Any]]) -> Encoding:
        """With the scale of the data.

        Args:
            fields: of the model.
            chains: backbones ``[n, 4, 3]`` in ångström.
        """
        centred = [x[:, 1] - x[:, 1].mean(0) for x in chains]
        scale = float(np.sqrt(np.mean(np.concatenate(centred) ** 2)))
        if not scale > 0:
            raise InputError("all residues coincide; a data set of 3-D chains is needed")
        return cls(tuple(fields), round(scale, 4))

    def tensors(self, backbone: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """The structure of padded backbones ``[B, N, 4, 3]`` in ångström, in their type."""
        fields = {}
        if "torsions" in self.fields:
            torsions, bends = internal_coordinates(backbone, mask)
            real = mask[..., None]
            fields = {
                "torsions": torsions.masked_fill(~real, 0),
                "bends": standard_bends(bends).masked_fill(~real, 0),
            }
        if "positions" in self.fields:
            n, ca, c, _ = backbone.unbind(-2)
            rotations, _ = frames_from_atoms(n, ca, c)
            real = mask[..., None].to(ca)
            centre = (ca * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)
            one = torch.eye(3, dtype=ca.dtype)
            fields |= {
                "positions": (ca - centre) * real / self.scale,
                "rotations": torch.where(mask[..., None, None], rotations, one),
            }
        return {f: fields[f] for f in self.structure}

    def prepare(
        self,
        chains: Sequence[np.ndarray[Any, Any]],
        conditions: Mapping[str, np.ndarray[Any, Any]],
        residues: Sequence[np.ndarray[Any, Any]] = (),
    ) -> PreparedData:
        """Training tensors.

        Args:
            chains: backbones ``[n, 4, 3]`` in ångström.
            conditions: values of each property, one a chain.
            residues: tokens ``[n]`` of each chain, where the model has them.
        """
        # Of no chains at all (a small set has none to validate with) one empty batch.
        starts = range(0, max(len(chains), 1), 512)
        parts = [self.batch(chains[i : i + 512], residues[i : i + 512]) for i in starts]
        longest = max((len(c) for c in chains), default=0)
        fields = {}
        for f in self.fields:
            wide = [torch.nn.functional.pad(
                        p[0][f], (0, 0) * (p[0][f].ndim - 2) + (0, longest - p[0][f].shape[1]))
                    for p in parts]  # fmt: skip
            fields[f] = torch.cat(wide).to(torch.uint8 if f == FIELD else torch.float32)
        lengths = torch.tensor([len(c) for c in chains], dtype=torch.long)
        values = {k: torch.as_tensor(np.asarray(v), dtype=torch.float32)
                  for k, v in conditions.items()}  # fmt: skip
        return PreparedData(fields, dict.fromkeys(self.fields, 1), lengths, values)

    def encode(self, chains: Sequence[Chain], conditions: Sequence[str] = ()) -> State:
        """A batch of chains that have all their atoms."""
        for i, chain in enumerate(chains):
            if not len(chain) or not chain.complete:
                raise InputError(f"chain {i} ({chain.name or 'unnamed'}) lacks residues or atoms")
        residues = [codes(c.sequence) for c in chains] if self.sequence else ()
        fields, mask = self.batch([c.backbone for c in chains], residues)
        context = Context(mask, known_properties(chains, conditions))
        return State(in_single_precision(fields), context)

    def decode(self, state: State) -> list[Chain]:
        """The chains of a state; numbers that are not finite are passed on for the caller."""
        backbone = self.backbone(state).detach().cpu().numpy()
        given = next((state.context.given[f] for f in self.structure if f in state.context.given),
                     torch.zeros_like(state.context.mask)).cpu().numpy()  # fmt: skip
        tokens = state[FIELD].cpu().numpy() if self.sequence else None
        chains = []
        for i, n in enumerate(state.context.lengths.tolist()):
            letters = "" if tokens is None else letters_of(tokens[i, :n])
            marks = given[i, :n] if given[i, :n].any() else None
            breaks = None if np.isfinite(backbone[i, :n]).all() else np.zeros(max(n - 1, 0), bool)
            chains.append(Chain(backbone[i, :n], letters, given=marks, breaks=breaks))
        return chains

    def backbone(self, state: State, dtype: torch.dtype | None = torch.float64) -> Tensor:
        """N, CA, C, O ``[B, N, 4, 3]`` in ångström, centred; differentiable.

        Args:
            state: clean fields, or estimates of them.
            dtype: to compute in; ``None`` keeps the state's.
        """
        fields = {f: state[f].to(dtype or state[f].dtype) for f in self.structure}
        mask = state.context.mask
        if "torsions" in fields:
            x = rebuild(fields["torsions"], bends_in_radians(fields["bends"]))
        else:
            x = atoms_from_frames(fields["rotations"], fields["positions"] * self.scale, mask)
        real = mask[..., None, None].to(x)
        centre = (x[:, :, 1:2] * real).sum(1, keepdim=True)
        return (x - centre / real.sum(1, keepdim=True).clamp(min=1)) * real

    def config(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        return {"fields": list(self.fields), "scale": self.scale}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Encoding:
        """Rebuild from :meth:`config`."""
        return cls(tuple(config["fields"]), float(config["scale"]))

    def batch(
        self, chains: Sequence[np.ndarray[Any, Any]], residues: Sequence[np.ndarray[Any, Any]] = ()
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Fields in float64 and the mask of some backbones.

        Args:
            chains: ``[n, 4, 3]`` in ångström.
            residues: tokens ``[n]`` of each, where the model has them.
        """
        n = max((len(c) for c in chains), default=0)
        backbone = torch.zeros(len(chains), n, 4, 3, dtype=torch.float64)
        mask = torch.zeros(len(chains), n, dtype=torch.bool)
        for i, chain in enumerate(chains):
            backbone[i, : len(chain)] = torch.from_numpy(np.asarray(chain, np.float64))
            mask[i, : len(chain)] = True
        fields = self.tensors(backbone, mask)
        if self.sequence:
            fields[FIELD] = torch.zeros(len(chains), n, dtype=torch.long)
            for row, tokens in zip(fields[FIELD], residues, strict=True):
                row[: len(tokens)] = torch.from_numpy(tokens.astype(np.int64))
        return fields, mask


def in_single_precision(fields: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is computed in float64 as networks take it; tokens as they are."""
    return {f: x.float() if x.is_floating_point() else x for f, x in fields.items()}


def known_properties(chains: Sequence[Chain], names: Sequence[str]) -> dict[str, Tensor]:
    """Properties of chains, ``[B]`` each; NaN where one is not known."""
    return {k: torch.tensor([c.properties.get(k, float("nan")) for c in chains]) for k in names}


def empty_context(lengths: Tensor, conditions: dict[str, Tensor]) -> Context:
    """The context of chains to be generated: their lengths and wanted properties."""
    n = int(lengths.max()) if len(lengths) else 0
    return Context(torch.arange(n, device=lengths.device) < lengths[:, None], conditions)
