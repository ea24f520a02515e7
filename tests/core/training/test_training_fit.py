import csv
import io
import math
from contextlib import redirect_stderr

import lightning as L
import pytest
import torch
from tiny_training import data, denoiser, objective, run

from sciflow.denoisers import Network, NetworkDenoiser
from sciflow.errors import InputError, NonFiniteError
from sciflow.objectives import DenoisingObjective
from sciflow.training.checkpoints import read_checkpoint


def test_four_molecules_are_learned_by_heart(tmp_path) -> None:
    """Random tokens cannot be guessed, only remembered.

    A token is masked with probability t, E[t] = 1/(1 + β) under Beta(1, β), and guessing one of K
    equal symbols costs ln K: without memory the loss is ln K / (1 + β) at best.
    """
    many, beta = data(200, largest=5, conditions=False), 3.0
    four = torch.stack([(many.lengths == n).nonzero()[0, 0] for n in (2, 3, 4, 5)])
    result = run(
        tmp_path, denoiser=denoiser(dim=32), data=many.subset(four.repeat(8)), batch_size=32,
        objective=DenoisingObjective(beta=beta, drop_all=0.0, feedback=0.0), steps=150, lr=1e-2,
        warmup=20, decay_start=100, log_every=50,
    )  # fmt: skip
    assert result.row["loss/types"] < 0.5 * math.log(4) / (1 + beta)
    assert result.row["loss/bonds"] < 0.5 * math.log(3) / (1 + beta)


class Poison(DenoisingObjective):
    """NaN coordinates for one sample from step 5 on."""

    def __call__(self, denoiser, batch, draws, step):
        if step >= 5 and bool((draws.samples == 7).any()):
            x = batch["coords"].clone()
            x[draws.samples == 7] = math.nan
            batch = batch.replace(coords=x)
        return super().__call__(denoiser, batch, draws, step)


def test_nan_stops_with_step_field_sample_seed_and_keeps_the_checkpoint(tmp_path) -> None:
    with pytest.raises(NonFiniteError) as error:
        run(tmp_path, objective=Poison(), steps=40, checkpoint_every=2, seed=3)
    text = str(error.value)
    assert "field coords" in text
    assert "sample 7" in text
    assert "seed 3" in text
    step = int(text.split("at step ")[1].split(",")[0])
    last = tmp_path / "checkpoints" / f"step-{step // 2 * 2:08d}.ckpt"
    assert str(last) in text
    assert all(torch.isfinite(v).all() for v in read_checkpoint(last)["state_dict"].values())


class BadGradient(L.Callback):
    """A finite loss with an infinite gradient."""

    def on_after_backward(self, trainer, module) -> None:
        if trainer.global_step == 4:
            next(module.denoiser.parameters()).grad.view(-1)[0] = math.inf


def test_an_infinite_gradient_stops_before_it_reaches_the_weights(tmp_path) -> None:
    model = denoiser()
    name, _ = next(model.named_parameters())
    with pytest.raises(NonFiniteError, match=f"gradient of {name} is not finite, at step 4"):
        run(tmp_path, denoiser=model, callbacks=[BadGradient()])
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_the_log_holds_means_over_the_steps_between_rows(tmp_path) -> None:
    each = run(tmp_path / "each", log_every=1, steps=7)
    pairs = run(tmp_path / "pairs", log_every=3, steps=7)
    with each.log.open() as f, pairs.log.open() as g:
        fine, coarse = list(csv.DictReader(f)), list(csv.DictReader(g))
    assert [int(r["step"]) for r in coarse] == [3, 6, 7]
    assert [int(r["samples"]) for r in coarse] == [24, 48, 56]
    for column in ("loss", "loss/coords", "loss/types", "loss/bonds", "gradient"):
        values = [float(r[column]) for r in fine]
        expected = [sum(values[:3]) / 3, sum(values[3:6]) / 3, values[6]]
        assert [float(r[column]) for r in coarse] == pytest.approx(expected, rel=1e-5)
    total = sum(float(fine[0][f"loss/{n}"]) for n in ("coords", "types", "bonds"))
    assert float(fine[0]["loss"]) == pytest.approx(total, rel=1e-5)
    assert [float(r["lr"]) for r in fine[:4]] == pytest.approx([1e-3, 2e-3, 3e-3, 3e-3])


def test_validation_is_the_same_number_for_the_same_weights(tmp_path) -> None:
    held_out = data(10, seed=5)
    frozen = {"lr": 1e-30, "weight_decay": 1e-30, "validation": held_out, "validate_every": 3}
    a = run(tmp_path / "a", steps=6, **frozen)
    b = run(tmp_path / "b", steps=6, seed=9, **frozen)
    with a.log.open() as f, b.log.open() as g:
        runs = [list(csv.DictReader(f)), list(csv.DictReader(g))]
    values = [r["validation"] for rows in runs for r in rows if r["validation"]]
    assert [int(r["step"]) for r in runs[0] if r["validation"]] == [3, 6]
    assert len(values) == 4
    assert len(set(values)) == 1
    fields = [float(runs[0][-1][f"validation/{n}"]) for n in ("coords", "types", "bonds")]
    assert float(values[0]) == pytest.approx(sum(fields), rel=1e-5)


def test_validation_does_not_disturb_training(tmp_path) -> None:
    plain = run(tmp_path / "plain", steps=6)
    watched = run(tmp_path / "watched", steps=6, validation=data(10, seed=5), validate_every=2)
    for a, b in zip(plain.denoiser.parameters(), watched.denoiser.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_bar_counts_steps_and_knows_where_it_was_resumed(tmp_path) -> None:
    run(tmp_path, steps=4)
    with redirect_stderr(io.StringIO()) as told:
        run(tmp_path, steps=9, progress=True)
    assert "4/9" in told.getvalue()
    assert "9/9" in told.getvalue()
    assert "loss" in told.getvalue()


@pytest.mark.parametrize("changed, reason", [
    ({"steps": 0}, "steps must be positive"),
    ({"batch_size": -1}, "batch_size must be positive"),
    ({"lr": math.nan}, "lr must be positive"),
    ({"precision": "16-true"}, "use 32-true or bf16-mixed"),
    ({"devices": 3}, "shared equally by 3 processes"),
    ({"data": data().subset(torch.arange(0))}, "training set is empty"),
])  # fmt: skip
def test_what_cannot_be_done_is_said(tmp_path, changed: dict, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        run(tmp_path, **changed)
    assert not (tmp_path / "log.csv").exists()


def test_a_batch_larger_than_the_data_is_the_data(tmp_path) -> None:
    assert run(tmp_path, batch_size=100, steps=2).row["samples"] == 2 * 37


class Dropping(Network):
    """A network whose training draws from torch's own generator."""

    def __init__(self, network: Network):
        super().__init__()
        self.network = network

    def forward(self, inputs, levels, context, previous):
        outputs = self.network(inputs, levels, context, previous)
        return {k: torch.nn.functional.dropout(v, 0.5, self.training) for k, v in outputs.items()}


def test_networks_with_dropout_resume_exactly_too(tmp_path) -> None:
    def dropping() -> NetworkDenoiser:
        whole = denoiser()
        return NetworkDenoiser(Dropping(whole.network), whole.paths, whole.self_conditioning)

    run(tmp_path / "at once", denoiser=dropping(), steps=6)
    run(tmp_path / "parts", denoiser=dropping(), steps=3)
    run(tmp_path / "parts", denoiser=dropping().eval(), steps=6)
    a, b = (
        read_checkpoint(tmp_path / d / "checkpoints" / "step-00000006.ckpt")["state_dict"]
        for d in ("at once", "parts")
    )
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_the_objective_is_part_of_the_fingerprint_as_plain_data() -> None:
    from sciflow.training.fingerprint import fingerprint

    mark = fingerprint(denoiser(), objective(), data(), 8, 0)
    assert mark == fingerprint(denoiser(seed=1), objective(), data(), 8, 0)
    assert mark["objective"]["groups"] == [["types", "bonds"]]
