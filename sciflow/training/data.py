"""Training batches whose content is a pure function of (seed, step).

Batch k does not depend on how training got there, so resuming at step k repeats nothing and
skips nothing, and R processes that share a batch see together exactly what one would see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from sciflow.errors import InputError
from sciflow.state import State
from sciflow.training.prepared import PreparedData, TrainingData, statistics

__all__ = ["Batch", "BatchModule", "Batches", "PreparedData", "TrainingData", "statistics"]


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

    def __init__(self, data: TrainingData, batch_size: int, seed: int = 0,
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

    def __init__(self, data: TrainingData, batch_size: int, seed: int = 0):
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
