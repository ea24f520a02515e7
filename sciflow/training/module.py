"""The Lightning module: loss, averaged weights, learning rate as a function of the step, NaN stop."""

from __future__ import annotations

import copy
from typing import Any

import lightning as L
import torch
from torch import Tensor

from sciflow.denoisers import NetworkDenoiser
from sciflow.errors import NonFiniteError
from sciflow.objectives import DenoisingObjective, Losses
from sciflow.random import Draws
from sciflow.training.data import Batch

__all__ = ["DenoisingModule", "learning_rate"]


def learning_rate(step: int, peak: float, warmup: int, decay_start: int, last: int) -> float:
    """Linear warm-up, a plateau, then a linear fall to zero at ``last`` (warmup-stable-decay).

    A plateau lets training go on from any checkpoint before ``decay_start`` with more steps.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if step < decay_start:
        return peak
    return peak * max(last - step, 0) / max(last - decay_start, 1)


class DenoisingModule(L.LightningModule):
    """Trains a denoiser; step k is a function of (seed, k).

    Args:
        denoiser: the model; its exponential moving average is kept in ``averaged``.
        objective: the loss.
        seed: of noise, times and dropped conditions.
        lr: peak learning rate; see :func:`learning_rate`.
        warmup: steps of warm-up.
        decay_start: first step of the decay.
        max_steps: where the decay ends.
        weight_decay: of AdamW.
        ema: decay of the average per step, with warm-up (1 + k)/(10 + k).
    """

    def __init__(self, denoiser: NetworkDenoiser, objective: DenoisingObjective, seed: int = 0,
                 lr: float = 1e-3, warmup: int = 200, decay_start: int = 10**9,
                 max_steps: int = 10**9, weight_decay: float = 0.01, ema: float = 0.999):  # fmt: skip
        super().__init__()
        self.denoiser, self.objective, self.seed = denoiser, objective, seed
        self.lr, self.warmup, self.decay_start, self.last = lr, warmup, decay_start, max_steps
        self.weight_decay, self.ema = weight_decay, ema
        self.averaged = copy.deepcopy(denoiser.network).requires_grad_(False)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; vectors (norms, biases, embeddings' nulls) are not decayed."""
        parameters = [p for p in self.denoiser.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.lr, betas=(0.9, 0.98))

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set the learning rate of this step."""
        lr = learning_rate(self.global_step, self.lr, self.warmup, self.decay_start, self.last)
        optimizer = self.optimizers(use_pl_optimizer=False)
        for group in optimizer.param_groups:  # type: ignore[union-attr]
            group["lr"] = lr

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean loss of this rank's part of the batch."""
        draws = Draws(self.seed, batch.samples)
        losses = self.objective(self.denoiser, batch.state, draws, self.global_step)
        self._check(losses, batch)
        loss = losses.total.mean()
        values = {f"loss/{k}": v.detach().mean() for k, v in losses.fields.items()}
        self.log_dict({"loss": loss.detach(), **values}, prog_bar=False,
                      sync_dist=self.trainer.world_size > 1, batch_size=len(batch.samples))  # fmt: skip
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Update the average after the optimizer's step."""
        k = self.global_step
        decay = min(self.ema, (1 + k) / (10 + k))
        with torch.no_grad():
            pairs = list(zip(self.averaged.parameters(), self.denoiser.network.parameters(), strict=True))
            torch._foreach_lerp_([a for a, _ in pairs], [p.detach() for _, p in pairs], 1 - decay)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device,
                                 dataloader_idx: int) -> Batch:  # fmt: skip
        """Lightning does not look into our batch type."""
        return batch.to(device)

    def averaged_denoiser(self) -> NetworkDenoiser:
        """The denoiser with averaged weights: what is evaluated and saved as a model."""
        d = self.denoiser
        return NetworkDenoiser(self.averaged, d.paths, d.self_conditioning).eval()

    def _check(self, losses: Losses, batch: Batch) -> None:
        if bool(torch.isfinite(losses.total).all()):
            return
        bad = int((~torch.isfinite(losses.total)).nonzero()[0])
        fields = [k for k, v in losses.fields.items() if not bool(torch.isfinite(v[bad]))]
        raise NonFiniteError(
            f"the loss of field {', '.join(fields)} is {float(losses.total[bad].detach())} at step "
            f"{self.global_step}, sample {int(batch.samples[bad])}, t = {float(losses.t[bad]):.4g}, "
            f"seed {self.seed}; the last checkpoint before it is intact: resume from it with a "
            "smaller learning rate or higher precision"
        )
