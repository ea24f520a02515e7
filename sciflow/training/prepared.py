"""A data set as tensors, ready to train on.

A domain turns its files into :class:`PreparedData` once; training then needs torch and lightning
only, and what samples from a model needs not even lightning.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sciflow.errors import InputError
from sciflow.state import Context, State

__all__ = ["PreparedData", "TrainingData", "statistics"]


class TrainingData(Protocol):
    """What training asks of a data set: :class:`PreparedData`, or whatever makes its samples.

    Row i must be the same sample whenever it is asked for: a training step is a function of (seed,
    step), and resumes on that.
    """

    @property
    def lengths(self) -> Tensor:
        """Real elements of each sample, int64 ``[M]``; samples of like length share batches."""

    def __len__(self) -> int: ...

    def digest(self) -> str:
        """Hexadecimal SHA-256 of all that the samples depend on."""

    def collate(self, rows: Tensor) -> State:
        """The samples ``rows`` as a batch."""


@dataclass(frozen=True)
class PreparedData:
    """Padded tensors of a whole data set.

    Attributes:
        fields: ``{name: [M, *elements, *event]}``, any integer or floating type.
        axes: ``{name: how many element axes}`` (1 for atoms, 2 for pairs of atoms).
        lengths: int64 ``[M]``, real elements of each sample.
        conditions: ``{name: float32 [M]}``, NaN where unknown.
        meta: plain data that the domain wants to keep beside them.

    Raises:
        InputError: the tensors do not fit together.
    """

    fields: dict[str, Tensor]
    axes: dict[str, int]
    lengths: Tensor
    conditions: dict[str, Tensor] = field(default_factory=dict)
    meta: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if set(self.axes) != set(self.fields):
            raise InputError(
                f"element axes are told for {', '.join(self.axes)}; the fields are "
                f"{', '.join(self.fields)}"
            )
        longest = int(self.lengths.max()) if len(self.lengths) else 0
        for name, x in {**self.fields, **self.conditions}.items():
            if len(x) != len(self.lengths):
                raise InputError(f"{name} has {len(x)} rows, lengths {len(self.lengths)}")
            if any(size < longest for size in x.shape[1 : 1 + self.axes.get(name, 0)]):
                raise InputError(
                    f"a sample of {longest} elements is longer than {name}, {tuple(x.shape)}"
                )

    def __len__(self) -> int:
        return len(self.lengths)

    def digest(self) -> str:
        """Hexadecimal SHA-256 of names, shapes, types and content."""
        h = hashlib.sha256()
        tensors = {f"condition/{k}": v for k, v in self.conditions.items()}
        tensors |= {"lengths": self.lengths, **self.fields}
        for name in sorted(tensors):
            x = tensors[name].contiguous()
            h.update(f"{name} {tuple(x.shape)} {x.dtype} ".encode())
            if x.numel():
                h.update(x.numpy().view(np.uint8).data)
        return h.hexdigest()

    def collate(self, rows: Tensor) -> State:
        """The samples ``rows`` as a batch, padded to the longest of them."""
        lengths = self.lengths[rows]
        n = int(lengths.max()) if len(rows) else 0
        fields = {}
        for name, x in self.fields.items():
            x = x[rows]
            for axis in range(1, 1 + self.axes[name]):
                x = x.narrow(axis, 0, n)
            fields[name] = x.float() if x.is_floating_point() else x.long()
        mask = torch.arange(n) < lengths[:, None]
        return State(fields, Context(mask, {k: v[rows] for k, v in self.conditions.items()}))

    def subset(self, rows: Tensor) -> PreparedData:
        """Some of the samples."""
        return PreparedData(
            {k: v[rows] for k, v in self.fields.items()},
            self.axes,
            self.lengths[rows],
            {k: v[rows] for k, v in self.conditions.items()},
            self.meta,
        )

    def save(self, path: str | Path) -> Path:
        """Write as one safetensors file (atomically); plain tensors and JSON, nothing pickled."""
        from safetensors.torch import save

        from sciflow.files import write_atomically

        tensors = {f"field/{k}": v.contiguous() for k, v in self.fields.items()}
        tensors |= {f"condition/{k}": v.contiguous() for k, v in self.conditions.items()}
        tensors["lengths"] = self.lengths
        meta = json.dumps({"axes": self.axes, "meta": self.meta, "sha256": self.digest()})
        return write_atomically(path, save(tensors, {"sciflow": meta}))

    @classmethod
    def load(cls, path: str | Path) -> PreparedData:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: not such a file, or its content was altered.
        """
        from safetensors import SafetensorError, safe_open

        advice = "make one with `sciflow data build`"
        try:
            with safe_open(str(path), "pt") as f:
                meta = json.loads((f.metadata() or {})["sciflow"])
                tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
            part = {
                prefix: {k.split("/", 1)[1]: v for k, v in tensors.items() if k.startswith(prefix)}
                for prefix in ("field/", "condition/")
            }
            data = cls(
                part["field/"], meta["axes"], tensors["lengths"], part["condition/"], meta["meta"]
            )
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise InputError(f"not a file of prepared tensors ({error}); {advice}", path) from error
        # Files of the first days carry no digest.
        if "sha256" in meta and meta["sha256"] != data.digest():
            raise InputError(f"the content does not have its checksum; {advice}", path)
        return data


def statistics(values: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """(mean, std) of each condition over the samples where it is known."""
    result = {}
    for name, v in values.items():
        known = v[~v.isnan()].double()
        if len(known) < 2:
            raise InputError(f"property {name!r} is known for {len(known)} samples; it needs 2")
        result[name] = [float(known.mean()), max(float(known.std()), 1e-6)]
    return result
