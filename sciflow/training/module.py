"""The Lightning module: loss, averaged weights, learning rate by step, stop where not finite."""

from __future__ import annotations

import copy
import hashlib
import math
from typing import Any, NoReturn

import lightning as L
import torch
from torch import Tensor

from sciflow.denoisers import NetworkDenoiser
from sciflow.errors import NonFiniteError
from sciflow.objectives import DenoisingObjective, Losses, PropertyObjective
from sciflow.predictors import PropertyPredictor
from sciflow.random import Draws
from sciflow.training.data import Batch

__all__ = ["AnyObjective", "DenoisingModule", "Trainee", "learning_rate"]

Trainee = NetworkDenoiser | PropertyPredictor
"""What can be trained: a network under the paths of its fields."""
AnyObjective = DenoisingObjective | PropertyObjective
"""The loss of each."""


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
        denoiser: the trainee; its exponential moving average is kept in ``averaged``.
        objective: the loss; what it learns itself (its uncertainty) is trained along.
        seed: of noise, times and dropped conditions.
        lr: peak learning rate; see :func:`learning_rate`.
        warmup: steps of warm-up.
        decay_start: first step of the decay.
        max_steps: where the decay ends.
        weight_decay: of AdamW.
        ema: decay of the average per step, with warm-up (1 + k)/(10 + k).
    """

    def __init__(self, denoiser: Trainee, objective: AnyObjective, seed: int = 0,
                 lr: float = 1e-3, warmup: int = 200, decay_start: int = 10**9,
                 max_steps: int = 10**9, weight_decay: float = 0.01,
                 ema: float = 0.999):  # fmt: skip
        super().__init__()
        self.denoiser, self.seed = denoiser, seed
        # Which objective goes with which trainee is the caller's promise.
        self.objective: Any = objective
        self.lr, self.warmup, self.decay_start, self.last = lr, warmup, decay_start, max_steps
        self.weight_decay, self.ema = weight_decay, ema
        self.averaged = copy.deepcopy(denoiser.network).requires_grad_(False)
        if objective.uncertainty is not None:
            self.uncertainty = objective.uncertainty

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the entries of ``measured``, which each step leaves behind on the device."""
        names = self.objective.names(self.denoiser)
        return ("loss", *(f"loss/{name}" for name in names), "gradient")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; vectors (norms, biases, embeddings' nulls) and the loss are not decayed."""
        parameters = [p for p in self.denoiser.parameters() if p.requires_grad]
        learned = self.objective.uncertainty
        free = [p for p in parameters if p.ndim < 2]
        free += [] if learned is None else list(learned.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": free, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.lr, betas=(0.9, 0.98), fused=True)

    def on_train_start(self) -> None:
        """A resumed optimizer brings its former weight decay along; the one asked for holds."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        for group, decay in zip(optimizer.param_groups, (self.weight_decay, 0.0), strict=True):  # type: ignore[union-attr]
            group["weight_decay"] = decay
        self._average: list[Tensor] = list(self.averaged.parameters())
        self._weights: list[Tensor] = list(self.denoiser.network.parameters())

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set the learning rate of this step, and torch's own generator (networks with dropout)."""
        step = self.global_step
        self.current_lr = learning_rate(step, self.lr, self.warmup, self.decay_start, self.last)
        optimizer = self.optimizers(use_pl_optimizer=False)
        for group in optimizer.param_groups:  # type: ignore[union-attr]
            group["lr"] = self.current_lr
        digest = hashlib.sha256(f"{self.seed}/{step}/{self.global_rank}".encode()).digest()
        # torch.manual_seed would visit every kind of device, which costs milliseconds a step.
        number = int.from_bytes(digest[:7], "little")
        torch.default_generator.manual_seed(number)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(number)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean loss of this rank's part of the batch."""
        draws = Draws(self.seed, batch.samples)
        losses = self.objective(self.denoiser, batch.state, draws, self.global_step)
        fields = {k: v.detach() for k, v in losses.fields.items()}
        self._step = (Losses(losses.total.detach(), fields, losses.t), batch.samples)
        loss = losses.total.mean()
        if self.trainer.loggers:
            values = {f"loss/{k}": v.mean() for k, v in fields.items()}
            self.log_dict({"loss": loss.detach(), **values}, batch_size=len(batch.samples),
                          sync_dist=self.trainer.world_size > 1)  # fmt: skip
        return loss

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient's norm; stop before the optimizer's step where anything is not finite.

        This is the step's one wait for the device, at a point where all its work is queued.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val or math.inf)
        losses, samples = self._step
        self.measured = torch.stack(
            [losses.total.mean(), *(v.mean() for v in losses.fields.values()), norm]
        ).float()
        if not bool(torch.isfinite(losses.total).all() & torch.isfinite(norm)):
            self._stop(losses, samples, norm)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The optimizer's step, then the average's: no callback can save one without the other."""
        super().optimizer_step(*args, **kwargs)
        k = self.global_step + 1
        decay = min(self.ema, (1 + k) / (10 + k))
        with torch.no_grad():
            torch._foreach_lerp_(self._average, self._weights, 1 - decay)

    def averaged_denoiser(self) -> Trainee:
        """The trainee with averaged weights: what is evaluated and saved as a model."""
        return self.denoiser.remake(network=self.averaged).eval()

    def _stop(self, losses: Losses, samples: Tensor, norm: Tensor) -> NoReturn:
        found = self._describe(losses, samples)
        if self.trainer.world_size > 1 and not bool(norm.isfinite()):
            # The gradient is the sum over processes, so all of them are here; one knows the sample.
            told: list[str | None] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(told, found)
            found = next((t for t in told if t is not None), None)
        if found is None:
            bad = [n for n, p in self.denoiser.named_parameters()
                   if p.grad is not None and not bool(p.grad.isfinite().all())]  # fmt: skip
            found = f"the gradient of {bad[0] if bad else 'the loss'} is not finite"
        raise NonFiniteError(
            f"{found}, at step {self.global_step}, seed {self.seed}; the weights are those of the "
            "step before: resume from the last checkpoint with a smaller learning rate or higher "
            "precision"
        )

    def _describe(self, losses: Losses, samples: Tensor) -> str | None:
        bad = (~torch.isfinite(losses.total)).nonzero().flatten().tolist()
        if not bad:
            return None
        i = bad[0]
        fields = [k for k, v in losses.fields.items() if not bool(torch.isfinite(v[i]))]
        return (
            f"the loss of field {', '.join(fields)} is {float(losses.total[i])} for sample "
            f"{int(samples[i])} at t = {float(losses.t[i]):.4g}"
        )
