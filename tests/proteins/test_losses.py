"""The structure loss and the shape energy: zero on the data, blind to motions, right gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from domains.proteins.adapter import Proteins
from domains.proteins.encoding import Encoding
from domains.proteins.guidance import Contracted, ShapeEnergy, rg_ratio, shape_guidance
from domains.proteins.losses import StructureLoss
from domains.proteins.networks import PRESETS, build_denoiser
from sciflow.errors import InputError
from sciflow.guides import find_guide
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.state import Context, State

ANGLES = Encoding(("torsions", "bends"))
FRAMES = Encoding(("positions", "rotations"), 7.7)


def clean(encoding: Encoding) -> State:
    return encoding.encode(Proteins().examples(3)).to(torch.float64)


def times(state: State, t: float) -> dict[str, Tensor]:
    return {f: torch.full((3,), t, dtype=torch.float64) for f in state}


@pytest.mark.parametrize("encoding", [ANGLES, FRAMES], ids=["angles", "frames"])
def test_the_data_have_no_loss(encoding: Encoding) -> None:
    """Nor has the data moved in space; an error counts less the more noise there is."""
    loss, x = StructureLoss(encoding), clean(encoding)
    # Coincident atoms have a distance of 1e-4 Å, so that gradients exist.
    assert float(loss(x, x, times(x, 0.1)).abs().max()) < 1e-12
    if "positions" in x:
        q = torch.linalg.qr(Draws(0, [0]).normal((3, 3), "q", dtype=torch.float64)[0])[0]
        q[:, 0] *= torch.linalg.det(q)
        moved = x.replace(positions=x["positions"] @ q.T, rotations=q @ x["rotations"])
        assert float(loss(moved, x, times(x, 0.1)).abs().max()) < 1e-9
        wrong = x.replace(positions=1.1 * x["positions"])
    else:
        wrong = x.replace(torsions=x["torsions"] + 0.05)
    low, high, none = (loss(wrong, x, times(x, t)) for t in (0.05, 0.3, 0.6))
    assert bool((low > high).all() and (high > 0).all() and (none == 0).all())


def test_padding_and_companions_do_not_count() -> None:
    loss, x = StructureLoss(ANGLES), clean(ANGLES)
    wrong = x.replace(torsions=x["torsions"] + 0.05)
    whole = loss(wrong, x, times(x, 0.1))
    n = int(x.context.lengths[0])
    alone = State({f: v[:1, :n] for f, v in x.items()}, Context(x.context.mask[:1, :n]))
    bad = State({f: v[:1, :n] for f, v in wrong.items()}, alone.context)
    one = loss(bad, alone, {f: t[:1] for f, t in times(x, 0.1).items()})
    torch.testing.assert_close(one, whole[:1])


def test_gradients_through_the_rebuilding_are_right() -> None:
    x = clean(ANGLES)
    x = State({f: v[:1, :8] for f, v in x.items()}, Context(x.context.mask[:1, :8]))
    loss, t = StructureLoss(ANGLES), {f: torch.full((1,), 0.1).double() for f in x}

    def of(torsions: Tensor) -> Tensor:
        return loss(x.replace(torsions=torsions), x, t)

    assert torch.autograd.gradcheck(of, ((x["torsions"] + 0.2).requires_grad_(),))


def test_the_ratio_is_that_of_the_evaluators() -> None:
    from domains.proteins.evaluators.shape import rg_ratio as measured

    chains = Proteins().examples(3)
    state = FRAMES.encode(chains)
    found = rg_ratio(FRAMES.backbone(state)[:, :, 1], state.context.mask)
    for value, chain in zip(found.tolist(), chains, strict=True):
        assert value == pytest.approx(measured(chain), abs=1e-4)


def test_the_energy_is_what_its_formula_says() -> None:
    """Of a straight rod, whose size is known, and of two atoms that are too near."""
    n = 20
    rod = torch.zeros(1, n, 3, dtype=torch.float64)
    rod[0, :, 0] = 3.8 * torch.arange(n)
    one = torch.eye(3, dtype=torch.float64).expand(1, n, 3, 3)
    plain = Encoding(("positions", "rotations"), 1.0)
    state = State({"positions": rod, "rotations": one},
                  Context(torch.ones(1, n, dtype=torch.bool)))  # fmt: skip
    size = 3.8 * math.sqrt((n**2 - 1) / 12) / (2.2 * n**0.38)
    value = float(ShapeEnergy(plain, 1.0, 0.0)(state))
    assert value == pytest.approx(-0.5 * ((size - 1) / 0.05) ** 2, rel=1e-6)
    assert float(ShapeEnergy(plain, 0.0, 1.0)(state)) == 0
    near = rod.clone()
    near[0, 10] = near[0, 0] + torch.tensor([0.0, 3.2, 0.0])
    value = float(ShapeEnergy(plain, 0.0, 1.0)(state.replace(positions=near)))
    pairs = (near[0, 10] - near[0]).norm(dim=-1)
    expected = sum(((4.2 - d) / 0.5) ** 2 for j, d in enumerate(pairs.tolist())
                   if d < 4.2 and abs(j - 10) > 2)  # fmt: skip
    assert value == pytest.approx(-0.5 * expected, rel=1e-4)


def test_guided_chains_are_compact() -> None:
    """Of an untrained model: smaller, still whole, and the unguided sample at strength 0."""
    preset = PRESETS["angles"]
    config = {**preset, "encoding": ANGLES.config(), "conditions": {},
              "network": {"dim": 16, "pair_dim": 0, "depth": 1, "heads": 2}}  # fmt: skip
    torch.manual_seed(0)
    model = build_denoiser(config).eval()
    context, draws = Context(torch.ones(6, 40, dtype=torch.bool)), Draws(0, torch.arange(6))
    sampler = Sampler(steps=12, method="ab1")

    def sizes(denoiser: object) -> tuple[Tensor, State]:
        state = sampler(denoiser, context, draws).state  # type: ignore[arg-type]
        return rg_ratio(ANGLES.backbone(state)[:, :, 1], context.mask), state

    free, plain = sizes(model)
    small, _ = sizes(shape_guidance(model, config, 0.9, 0.0, strength=4.0, iterations=4))
    assert bool((small <= free).all()) and bool((small[free > 1] < 0.95).all())
    off, same = sizes(shape_guidance(model, config, 0.9, 1.0, strength=0.0))
    assert torch.equal(off, free) and torch.equal(same["torsions"], plain["torsions"])


def test_contraction_leaves_the_estimate_of_other_fields() -> None:
    """log_x D grows by 1 + w, up to half a turn; at weight 0 nothing changes, bit for bit."""
    config = {**PRESETS["angles"], "encoding": ANGLES.config(), "conditions": {},
              "network": {"dim": 16, "pair_dim": 0, "depth": 1, "heads": 2}}  # fmt: skip
    torch.manual_seed(0)
    model = build_denoiser(config).eval()
    torch.nn.init.normal_(model.network.out["torsions"].weight)  # type: ignore[union-attr,index]
    context = Context(torch.ones(2, 20, dtype=torch.bool))
    x = model.paths["torsions"].prior(context, Draws(0, torch.arange(2)), "x", torch.float32)
    state = State({"torsions": x, "bends": x}, context)
    plain = model(state, 0.3)
    same, far = Contracted(model, 0.0)(state, 0.3), Contracted(model, 0.5)(state, 0.3)
    space = model.paths["torsions"].space
    v, w = (space.log(x, p["torsions"]) for p in (plain, far))  # type: ignore[attr-defined]
    assert torch.equal(same["torsions"], plain["torsions"])
    assert torch.equal(far["bends"], plain["bends"]) and float(v.abs().max()) > 0.1
    torch.testing.assert_close(w, (1.5 * v).clamp(-3.1, 3.1), atol=1e-5, rtol=0)


def test_nothing_to_guide_by_is_refused() -> None:
    config = {**PRESETS["angles"], "encoding": ANGLES.config(), "conditions": {},
              "network": {"dim": 16, "pair_dim": 0, "depth": 1, "heads": 2}}  # fmt: skip
    with pytest.raises(InputError, match="nothing to guide by"):
        shape_guidance(build_denoiser(config), config, 0.0, 0.0)
    assert find_guide("shape", Proteins().guides()).settings["clash"] == 3.0
