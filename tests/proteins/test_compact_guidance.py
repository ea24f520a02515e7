"""Chains as compact as is asked, by least turns; the derivatives that this takes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from domains.proteins.closure import _Chains, close
from domains.proteins.compact_guidance import Compact
from domains.proteins.encoding import Encoding, empty_context
from domains.proteins.guidance import rg_ratio
from domains.proteins.motif_guidance import free_bonds
from domains.proteins.networks import PRESETS, build_denoiser
from domains.proteins.rebuild import BEND_MEAN, rebuild
from sciflow.denoisers import NetworkDenoiser
from sciflow.errors import InputError
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.state import State
from sciflow.testing.probes import randomise

ANGLES = Encoding(("torsions", "bends"))
LENGTHS = torch.tensor([50, 40])
SAMPLER = Sampler(steps=12, method="ab1", grid="uniform-u")


def model() -> NetworkDenoiser:
    torch.manual_seed(0)
    config = {
        **PRESETS["angles"],
        "encoding": ANGLES.config(),
        "conditions": {},
        "network": {"dim": 16, "pair_dim": 0, "depth": 1, "heads": 2},
    }
    return randomise(build_denoiser(config)).requires_grad_(False)  # type: ignore[no-any-return]


def chains() -> tuple[Tensor, Tensor, Tensor]:
    """Loose torsions, bends and mask of two chains of different length."""
    mask = torch.arange(50) < LENGTHS[:, None]
    noise = Draws(0, [0, 1]).normal((50, 3), "theta", dtype=torch.float64)
    theta = torch.tensor([-1.2, 2.0, torch.pi]) + 0.3 * noise * torch.tensor([1.0, 1.0, 0.0])
    bends = torch.tensor(BEND_MEAN, dtype=torch.float64).expand(2, 50, 3)
    return theta, bends, mask


def ratio(torsions: Tensor, bends: Tensor, mask: Tensor) -> Tensor:
    return rg_ratio(rebuild(torsions, bends)[:, :, 1], mask)


def test_the_size_has_the_right_slope() -> None:
    """The row of the size is the derivative of its residual by every bond that turns."""
    theta, bends, mask = chains()
    free = mask[..., None].expand(2, 50, 2)
    size = torch.tensor([0.9, 50.0], dtype=torch.float64)
    nothing = torch.zeros(2, 50, 3, 3, dtype=torch.float64)
    f = _Chains(theta, bends, nothing, torch.zeros_like(mask), free, 1.0, 0.0, None, size)
    zero = torch.zeros(2, f.bonds.shape[1], dtype=torch.float64)
    x, misfit, cost = f(zero)
    j, residual = f.slopes(x, misfit)
    expected = torch.stack([(ratio(theta, bends, mask)[0] - 0.9) / 0.02, torch.tensor(0.0)])
    torch.testing.assert_close(residual[:, -1], expected)
    torch.testing.assert_close(cost, expected**2)
    for k in (0, 30, 77, 99):
        step = torch.zeros_like(zero)
        step[:, k] = 1e-5
        slope = ((f(step)[2].sqrt() - f(-step)[2].sqrt()) / 2e-5)[0]
        assert float(j[0, -1, k]) == pytest.approx(float(slope), rel=1e-5, abs=1e-5)
    # A chain that is small enough is left alone, and padding turns nothing.
    assert not j[1, -1].any()


def test_chains_get_the_size_that_is_asked_by_small_turns() -> None:
    theta, bends, mask = chains()
    free = mask[..., None].expand(2, 50, 2)
    v = torch.full((2,), 0.05, dtype=torch.float64)
    size = torch.tensor([1.0, 1.2], dtype=torch.float64)
    assert float(ratio(theta, bends, mask).min()) > 1.5
    moved = close(theta, bends, None, None, free, v, 1.0, 60, size=size)
    found = ratio(moved, bends, mask)
    torch.testing.assert_close(found, size, rtol=0, atol=0.08)
    turned = (moved - theta)[..., :2][free]
    assert float(turned.abs().mean()) < 0.3
    # One chain alone is the same.
    alone = close(theta[1:, :40], bends[1:, :40], None, None, free[1:, :40], v[1:], 1.0, 60,
                  size=size[1:])  # fmt: skip
    torch.testing.assert_close(alone, moved[1:, :40], rtol=0, atol=1e-6)


def sampled(guided: object, rows: list[int], **conditions: Tensor) -> State:
    context = empty_context(LENGTHS[rows], dict(conditions))
    return SAMPLER(guided, context, Draws(0, torch.tensor(rows))).state  # type: ignore[arg-type]


def test_samples_are_as_large_as_is_asked() -> None:
    """By the setting, or by the condition of the chain; where neither acts they are the model's."""
    network = model()

    def size(state: State) -> Tensor:
        return rg_ratio(ANGLES.backbone(state)[:, :, 1], state.context.mask)

    own = sampled(network, [0, 1])
    assert float(size(own).min()) > 0.75
    asked = torch.tensor([torch.nan, 0.7])
    guided = Compact(network, 0.6, clash=0.0, iterations=8)
    found = size(sampled(guided, [0, 1], rg_ratio=asked))
    torch.testing.assert_close(found, torch.tensor([0.6, 0.7]).double(), rtol=0, atol=0.06)
    untouched = sampled(Compact(network, 50.0, clash=0.0), [0, 1])
    assert torch.equal(untouched["torsions"], own["torsions"])
    early = sampled(Compact(network, interval=(1.0, 1.0)), [0])
    assert early["torsions"].isfinite().all()


def test_the_batch_does_not_matter() -> None:
    """Steps that overshoot would amplify rounding until another chain came out."""
    guided = Compact(model(), 1.0)
    both, alone = sampled(guided, [0, 1]), sampled(guided, [1])
    d = (both["torsions"][1:, :40] - alone["torsions"] + torch.pi) % (2 * torch.pi) - torch.pi
    assert float(d.abs().max()) < 2e-3


def test_given_residues_and_motifs_do_not_turn() -> None:
    context = empty_context(LENGTHS[:1], {})
    given = torch.zeros(1, 50, dtype=torch.bool)
    given[:, 10:20] = True
    piece = torch.where(given, 0, -1)
    assert not free_bonds(context.replace(given={"torsions": given}))[0, 10:20].any()
    free = free_bonds(context.replace(extras={"piece": piece}))[0]
    # φ of a piece's first residue and ψ of its last lie outside.
    assert free[10].tolist() == [True, False] and free[19].tolist() == [False, True]
    assert not free[11:19].any() and free[:10].all() and free[20:].all()


def test_settings_are_refused() -> None:
    with pytest.raises(InputError, match=r"iterations 1 or more, not 0\.95, 0\.02, 1 and 0"):
        Compact(model(), iterations=0)
