"""What the benchmark of backbones does itself: resuming, the row that shows what is for nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.proteins import chosen, judged, sampled, shuffled
from domains.proteins.adapter import Proteins
from domains.proteins.chain import Chain
from domains.proteins.evaluators import evaluate
from domains.proteins.evaluators.geometry import torsions
from domains.proteins.ideal import helix_bundle
from sciflow.model import Samples


class Counted:
    """Stands in for a model: sample i is a bundle of number i; the third is dropped."""

    digest, guides = "d", ("shape",)

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.sampler = self

    def config(self) -> dict[str, Any]:
        return {"steps": 1}

    def sample(self, n: int, targets: Any, seed: int, *, first: int, sampler: Any) -> Samples:
        self.asked.append((first, n))
        records = [None if i == 2 else helix_bundle(i) for i in range(first, first + n)]
        dropped = {i: "not finite" for i in range(first, first + n) if i == 2}
        return Samples(records, {}, dropped, 1, 0.0, {}, Proteins())


def test_an_interrupted_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Counted()
    some = sampled(model, 20, {"length": 40}, 1, tmp_path)  # type: ignore[arg-type]
    every = sampled(model, 45, {"length": 40}, 1, tmp_path)  # type: ignore[arg-type]
    assert model.asked == [(0, 20), (20, 20), (40, 5)]
    assert (len(some), len(every)) == (19, 44)
    assert "sample 2 dropped: not finite" in capsys.readouterr().err
    for found, number in zip(every, [0, 1, *range(3, 45)], strict=True):
        np.testing.assert_allclose(found.backbone, helix_bundle(number).backbone, atol=6e-4)
    # Another seed, length or model is another run.
    sampled(model, 20, {"length": 41}, 1, tmp_path)  # type: ignore[arg-type]
    sampled(model, 20, {"length": 40}, 2, tmp_path)  # type: ignore[arg-type]
    model.digest = "e"
    sampled(model, 20, {"length": 40}, 1, tmp_path)  # type: ignore[arg-type]
    assert model.asked[3:] == [(0, 20)] * 3


def test_residues_in_random_order_keep_their_torsions_and_lose_the_fold() -> None:
    chains = [helix_bundle(i) for i in range(6)]
    mixed = shuffled(chains)
    assert [len(c) for c in mixed] == [len(c) for c in chains]
    assert all(c.unbroken and c.complete for c in mixed)

    def angles(some: list[Chain]) -> np.ndarray[Any, Any]:
        t = [torsions(c) for c in some]
        pairs = np.stack([np.concatenate([getattr(u, k) for u in t]) for k in ("phi", "psi")], 1)
        return pairs[np.isfinite(pairs).all(1)]

    real, drawn = angles(chains), angles(mixed)
    apart = np.abs((drawn[:, None] - real[None] + 180) % 360 - 180).max(-1).min(1)
    assert apart.max() < 0.1
    before, after = evaluate(chains), evaluate(mixed)
    assert after["helix"] < before["helix"] - 0.1
    assert after["rg_ratio"] > before["rg_ratio"] + 0.1


def test_rows_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bundled models and a user's; two of them are composed where both are there."""
    shipped = {"proteins/backbones": Path("a"), "proteins/beta": Path("b")}
    monkeypatch.setattr("benchmarks.proteins.bundled_models", lambda: shipped)
    known = {"angles": "proteins/backbones", "beta": "proteins/beta"}
    assert chosen({}, None, []) == (known, [])
    models, made = chosen({"alpha": "runs/alpha"}, None, [])
    assert models == {**known, "alpha": "runs/alpha"}
    assert made == ["or=alpha+beta", "and=alpha+beta", "average=alpha+beta"]
    assert chosen({"alpha": "x"}, "alpha,beta", ["or=alpha+beta"])[1] == ["or=alpha+beta"]
    assert list(chosen({"mine": "x"}, "mine,angles", [])[0]) == ["mine", "angles"]
    with pytest.raises(SystemExit, match=r"no model frames.*of angles, beta"):
        chosen({}, "frames", [])
    shipped.clear()
    with pytest.raises(SystemExit, match="no model is bundled"):
        chosen({}, None, [])


def test_what_was_asked_of_a_model() -> None:
    real = {"helix": 0.35, "helix_sd": 0.2, "strand": 0.26, "strand_sd": 0.15}
    good = {
        "rama_general_favoured": 0.93, "rama_general_outlier": 0.02, "bond_C-N": 1.33,
        "bond_C-N_sd": 0.01, "clashes_per_100": 0.1, "helix": 0.3, "strand": 0.2, "rg_ratio": 1.1,
        "tm_pairwise": 0.3,
    }  # fmt: skip
    assert all(judged(good, real).values())
    for key, value in {
        "rama_general_favoured": 0.8, "rama_general_outlier": 0.05, "bond_C-N_sd": 0.1,
        "clashes_per_100": 1.0, "strand": 0.05, "rg_ratio": 1.3, "tm_pairwise": 0.7,
    }.items():  # fmt: skip
        missed = [
            name for name, reached in judged({**good, key: value}, real).items() if not reached
        ]
        assert len(missed) == (2 if key == "strand" else 1)
