"""Prepared tensors and batches whose content is a pure function of (seed, step).

A domain turns its files into :class:`PreparedData` once; training then needs torch and lightning
only. Batch k does not depend on how training got there, so resuming at step k repeats nothing and
skips nothing, and R processes that share a batch see together exactly what one would see.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from sciflow.errors import InputError
from sciflow.state import Context, State

__all__ = ["Batch", "BatchModule", "Batches", "PreparedData"]


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


class Batch:
    """One rank's part of the training batch of one step.

    Not a dataclass: Lightning's mixed precision would take it apart and refuse what is frozen.

    Args:
        state: the clean samples.
        samples: their rows in the data set, int64 ``[B]``: with the step, what noise is keyed by.
    """

    def __init__(self, state: State, samples: Tensor):
        self.state, self.samples = state, samples

    def to(self, device: torch.device | str) -> Batch:
        """Move to a device; from pinned memory without waiting for it."""
        return self._apply(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Copy to page-locked memory (the data loader asks for it)."""
        return self._apply(torch.Tensor.pin_memory)

    def _apply(self, f: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(self.state.apply(f), f(self.samples))


class Batches(IterableDataset[Batch]):
    """The endless sequence of training batches from step ``start()`` on.

    An epoch is shuffled, cut into pools of ``pool`` batches, and each pool sorted by length before
    it is cut into batches, so that little is padding; the order of batches is shuffled again.

    Args:
        data: the prepared tensors.
        batch_size: samples a step, over all ranks.
        seed: of the order.
        start: tells the first step, asked lazily when iteration begins.
        rank: this process and the number of processes; rank r takes samples r, r + world, ...
        world: see ``rank``.
        pool: batches that are sorted together.
    """

    def __init__(self, data: PreparedData, batch_size: int, seed: int = 0,
                 start: Callable[[], int] = lambda: 0, rank: int = 0, world: int = 1,
                 pool: int = 32):  # fmt: skip
        if len(data) == 0:
            raise InputError("the training set is empty")
        self.data, self.batch_size, self.seed = data, min(batch_size, len(data)), seed
        self.start, self.rank, self.world, self.pool = start, rank, world, pool
        self._epoch: tuple[int, np.ndarray] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in one pass over the data; the remainder changes from epoch to epoch."""
        return len(self.data) // self.batch_size

    def rows(self, step: int) -> np.ndarray:
        """Row numbers of the whole batch of ``step``."""
        epoch, k = divmod(step, self.steps_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self._order(epoch))
        return self._epoch[1][k]

    def _order(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, epoch))
        used = self.steps_per_epoch * self.batch_size
        order = rng.permutation(len(self.data))[:used]
        lengths = self.data.lengths.numpy()
        width = self.pool * self.batch_size
        pools = [order[i : i + width] for i in range(0, used, width)]
        pools = [p[np.argsort(lengths[p], kind="stable")] for p in pools]
        batches = np.concatenate(pools).reshape(-1, self.batch_size)
        return batches[rng.permutation(len(batches))]

    def __iter__(self) -> Iterator[Batch]:
        step = self.start()
        while True:
            rows = torch.from_numpy(self.rows(step)[self.rank :: self.world].copy())
            yield Batch(self.data.collate(rows), rows)
            step += 1


class BatchModule(L.LightningDataModule):
    """Feeds :class:`Batches` to Lightning, starting where the trainer stands."""

    def __init__(self, data: PreparedData, batch_size: int, seed: int = 0):
        super().__init__()
        self.data, self.batch_size, self.seed = data, batch_size, seed

    def train_dataloader(self) -> DataLoader[Batch]:
        """A loader without workers: prepared tensors are only indexed."""
        trainer = self.trainer
        assert trainer is not None
        batches = Batches(
            self.data, self.batch_size, self.seed, lambda: trainer.global_step,
            trainer.global_rank, trainer.world_size,
        )  # fmt: skip
        pin = trainer.strategy.root_device.type == "cuda"
        return DataLoader(batches, batch_size=None, num_workers=0, pin_memory=pin)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device,
                                 dataloader_idx: int) -> Batch:  # fmt: skip
        """Lightning does not look into our batch type."""
        return batch.to(device)


def statistics(values: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """(mean, std) of each condition over the samples where it is known."""
    result = {}
    for name, v in values.items():
        known = v[~v.isnan()].double()
        if len(known) < 2:
            raise InputError(f"property {name!r} is known for {len(known)} samples; it needs 2")
        result[name] = [float(known.mean()), max(float(known.std()), 1e-6)]
    return result
