import copy

import lightning as L
import pytest
import torch
from tiny_training import data, denoiser, objective, run

from sciflow.random import Draws
from sciflow.training.data import Batches, BatchModule
from sciflow.training.module import DenoisingModule, learning_rate


def test_the_learning_rate_rises_stays_and_falls() -> None:
    rates = [learning_rate(k, 1.0, warmup=4, decay_start=10, last=14) for k in range(15)]
    assert rates == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0]
    assert learning_rate(0, 1.0, warmup=0, decay_start=10, last=14) == 1


class Weights(L.Callback):
    """The weights after each step."""

    def __init__(self) -> None:
        self.after: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer, module, *_) -> None:
        self.after.append(copy.deepcopy(module.denoiser.network.state_dict()))


def test_the_average_follows_its_formula(tmp_path) -> None:
    weights, model = Weights(), denoiser()
    expected = copy.deepcopy(model.network.state_dict())
    result = run(tmp_path, denoiser=model, callbacks=[weights], steps=12, ema=0.5)
    for k, w in enumerate(weights.after, start=1):
        decay = min(0.5, (1 + k) / (10 + k))
        expected = {n: decay * expected[n] + (1 - decay) * w[n] for n in w}
    averaged = result.denoiser.network.state_dict()
    assert len(weights.after) == 12
    for name in expected:
        torch.testing.assert_close(averaged[name], expected[name], rtol=1e-5, atol=1e-6)
    assert not all(torch.equal(averaged[n], weights.after[-1][n]) for n in averaged)


def test_steps_equal_those_of_a_bare_loop(tmp_path) -> None:
    """Lightning adds nothing: AdamW on the mean loss of the step's batch, clipped."""
    model, loss = denoiser(), objective()
    bare, weights = copy.deepcopy(model), Weights()
    run(tmp_path, denoiser=model, callbacks=[weights], steps=6, seed=4)
    batches = Batches(data(), 8, seed=4)
    decayed = [p for p in bare.parameters() if p.ndim >= 2]
    others = [p for p in bare.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
        fused=True,
    )
    for k in range(6):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, (k + 1) / 3)
        rows = torch.from_numpy(batches.rows(k))
        optimizer.zero_grad()
        loss(bare, data().collate(rows), Draws(4, rows), k).total.mean().backward()
        torch.nn.utils.clip_grad_norm_([*decayed, *others], 1.0)
        optimizer.step()
        for name, p in bare.network.state_dict().items():
            torch.testing.assert_close(weights.after[k][name], p, rtol=1e-4, atol=1e-6)


def test_the_module_works_in_a_trainer_of_ones_own(tmp_path) -> None:
    module = DenoisingModule(denoiser(), objective(), warmup=2)
    trainer = L.Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=BatchModule(data(), 8))
    assert trainer.global_step == 3
    assert torch.isfinite(module.measured).all()
    assert {name.split(".")[0] for name in module.state_dict()} == {"denoiser", "averaged"}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_both_precisions_give_nearly_the_same_loss(tmp_path, precision: str) -> None:
    reference = run(tmp_path / "reference", steps=6, log_every=6)
    result = run(tmp_path / precision, steps=6, log_every=6, precision=precision)
    assert result.row["loss"] == pytest.approx(reference.row["loss"], rel=0.02)
    assert all(p.dtype == torch.float32 for p in result.denoiser.network.parameters())
