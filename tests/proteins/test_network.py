"""The backbone network: equivariant, handed, blind to padding; what it makes of frames."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from domains.proteins.adapter import Proteins
from domains.proteins.geometry_inputs import NeighbourGeometry
from domains.proteins.networks import PRESETS, build_denoiser, build_objective
from sciflow.denoisers import NetworkDenoiser, Prediction
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.state import Context, State
from sciflow.testing.probes import randomise

SMALL = {"dim": 32, "pair_dim": 8, "depth": 2, "heads": 2}


def config(preset: str) -> dict[str, Any]:
    own = PRESETS[preset]["network"]
    return {
        **PRESETS[preset],
        "encoding": {"fields": PRESETS[preset]["fields"], "scale": 7.7},
        "conditions": {"helix": [0.4, 0.2]},
        "network": {**SMALL, "pair_dim": own["pair_dim"] and 8, "reach": own.get("reach", 0)},
    }


def denoiser(preset: str, dtype: torch.dtype = torch.float64) -> NetworkDenoiser:
    torch.manual_seed(0)
    model = randomise(build_denoiser(config(preset)))
    return model.to(dtype).requires_grad_(False)  # type: ignore[no-any-return]


def rotation(seed: int, sign: float = 1.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(3, 3, generator=g, dtype=torch.float64))[0]
    q[:, 0] *= sign * torch.linalg.det(q).sign()
    return q


def noisy(model: NetworkDenoiser, preset: str = "frames", dtype: torch.dtype = torch.float64,
          given: bool = False) -> State:  # fmt: skip
    """Examples corrupted at t = 0.5, the first five residues given if asked."""
    cfg = config(preset)
    clean = Proteins().encode(cfg, Proteins().examples(3)).to(torch.float64)
    context = clean.context
    if given:
        marks = torch.zeros_like(context.mask)
        marks[:, :5] = True
        context = context.replace(given=dict.fromkeys(clean, marks))
    draws = Draws(0, torch.arange(3))
    t = torch.full(context.mask.shape, 0.5, dtype=torch.float64)
    t = t.masked_fill(context.given["positions"], 0.0) if given else t
    fields = {
        f: p.corrupt(p.space.anchor(clean[f], context), t, context, draws, f)
        for f, p in model.paths.items()
    }
    return State(fields, context).to(dtype)


def turned(state: State, q: Tensor) -> State:
    q = q.to(state["positions"].dtype)
    return state.replace(positions=state["positions"] @ q.T, rotations=q @ state["rotations"])


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(
    ("dtype", "precision"), [(torch.float64, 1e-9), (torch.float32, 1e-4)], ids=["f64", "f32"]
)
def test_frames_turn_with_their_noise(given: bool, dtype: torch.dtype, precision: float) -> None:
    """Denoising commutes with rotation, self-conditioned and with given residues too."""
    model, q = denoiser("frames", dtype), rotation(3)
    state = noisy(model, dtype=dtype, given=given)
    first = model(state, 0.5)
    again = model(turned(state, q), 0.5)
    second, other = model(state, 0.4, first), model(turned(state, q), 0.4, again)
    real = state.context.mask[..., None]
    for a, b in ((first, again), (second, other)):
        moved = turned(State(a.clean, state.context), q)
        difference = (moved["positions"] - b["positions"]) * real
        assert float(difference.abs().max()) < precision
        turn = (moved["rotations"] - b["rotations"]) * real[..., None]
        assert float(turn.abs().max()) < precision


def test_samples_turn_with_their_noise() -> None:
    model, q = denoiser("frames"), rotation(4)
    state = noisy(model)
    start = {f: p.prior(state.context, Draws(0, torch.arange(3)), f, torch.float64)
             for f, p in model.paths.items()}  # fmt: skip
    sampler, draws = Sampler(steps=5, method="ab2"), Draws(0, torch.arange(3))
    before = turned(State(start, state.context), q)
    end = sampler(model, state.context, draws, start=start, dtype=torch.float64).state
    after = sampler(model, state.context, draws, start=before.fields, dtype=torch.float64).state
    moved = turned(end, q)
    torch.testing.assert_close(after["positions"], moved["positions"], atol=1e-8, rtol=0)


def test_a_reflection_is_not_a_symmetry() -> None:
    """The estimate of a mirrored trace is not the mirrored estimate."""
    model, mirror = denoiser("frames"), rotation(3, -1.0)
    state = noisy(model)
    # The frames of mirrored atoms: two axes mirrored, the third their cross product.
    r = mirror @ state["rotations"]
    r = torch.cat((r[..., :2], torch.linalg.cross(r[..., 0], r[..., 1])[..., None]), -1)
    mirrored = state.replace(positions=state["positions"] @ mirror.T, rotations=r)
    a, b = model(state, 0.5), model(mirrored, 0.5)
    real = state.context.mask[..., None]
    difference = (a["positions"] @ mirror.T - b["positions"]) * real
    assert float(difference.abs().max()) > 0.05


def test_angles_see_their_chain_in_space() -> None:
    """A self-conditioned network of angles answers to distances that its own angles build."""
    model = denoiser("angles-in-space")
    n = 30
    context = Context(torch.ones(1, n, dtype=torch.bool))
    x = Draws(0, [0]).normal((n, 3), "x", dtype=torch.float64)
    state = State({"torsions": x, "bends": x}, context)
    previous = {f: v.clone() for f, v in state.fields.items()}
    a = model(state, 0.5, Prediction(previous))
    turn = previous["torsions"].clone()
    turn[:, 2, 1] += 1.0
    b = model(state, 0.5, Prediction({**previous, "torsions": turn}))
    # One torsion near the start moves what every residue sees of the far end.
    changed = (a["torsions"] - b["torsions"]).abs().amax(-1)[0]
    assert float(changed.min()) > 1e-6


@pytest.mark.parametrize("preset", ["angles", "frames"])
def test_residues_are_told_their_place(preset: str) -> None:
    """A gap in ``extras["index"]`` changes the answer; told as it is assumed, it does not."""
    model = denoiser(preset)
    state = noisy(model, preset)
    index = torch.arange(state.context.mask.shape[1]).expand(3, -1)
    plain = model(state, 0.5)
    same = model(State(state.fields, state.context.replace(extras={"index": index})), 0.5)
    gap = index + 20 * (index > 20)
    broken = model(State(state.fields, state.context.replace(extras={"index": gap})), 0.5)
    name = next(iter(model.paths))
    torch.testing.assert_close(same[name], plain[name])
    assert float((broken[name] - plain[name]).abs().max()) > 1e-3


def test_neighbours_are_those_within_reach_on_one_chain() -> None:
    """A residue answers to frames at most ``reach`` away, not across a break, not to padding."""
    torch.manual_seed(0)
    see = randomise(NeighbourGeometry(8, 2)).double()
    n = 12
    place = Draws(0, [0]).normal((n, 3), "x", dtype=torch.float64) * 4
    frame = torch.stack([rotation(k) for k in range(n)])[None]
    mask, index = torch.arange(n)[None] < 10, torch.arange(n)[None]
    index = index + 20 * (index >= 7)
    before = see((frame, place), mask, index)
    answering = []
    for k in range(n):
        elsewhere = place.clone()
        elsewhere[:, k] += 1.0
        moved = (see((frame, elsewhere), mask, index) - before).abs().amax(-1)[0] > 1e-9
        answering.append(set(moved[:10].nonzero()[:, 0].tolist()))
    first, second = range(7), range(7, 10)
    expected = [{i for i in (first if k < 7 else second) if abs(i - k) <= 2} for k in range(10)]
    assert answering == [*expected, set(), set()]


@pytest.mark.parametrize("preset", ["angles", "angles-by-heat"])
@pytest.mark.parametrize("t", [0.1, 0.5, 0.8, 1.0])
def test_no_angle_is_sent_more_than_half_a_turn(preset: str, t: float) -> None:
    """However large what the network wants: its estimate lies on the side that it names."""
    model = denoiser(preset)
    model.network.out["torsions"].weight.mul_(1e3)
    raw: list[Tensor] = []
    model.network.register_forward_hook(lambda _, __, out: raw.append(out["torsions"]))
    context = Context(torch.ones(2, 30, dtype=torch.bool))
    x = Draws(0, [0, 1]).normal((30, 3), "x", dtype=torch.float64)
    clean = model(State({"torsions": x, "bends": x}, context), t).clean["torsions"]
    assert float(raw[0].abs().max()) > 100
    assert bool((model.paths["torsions"].space.log(x, clean) * raw[0] > 0).all())


@pytest.mark.parametrize("preset", ["angles-in-space", "frames"])
def test_training_gives_motifs(preset: str) -> None:
    """Rules mark whole stretches; a step with and one without them are both finite."""
    objective = build_objective(config(preset))
    context = Context(torch.ones(200, 60, dtype=torch.bool))
    marks = objective.give(context, Draws(0, torch.arange(200)), 0).given
    assert set(marks) == set(PRESETS[preset]["fields"])
    share = next(iter(marks.values())).any(1).double().mean()
    assert 0.1 < float(share) < 0.4
