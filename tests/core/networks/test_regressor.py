"""A predictor of properties: what it must not see, soft symbols, unknown values, learning."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sciflow.networks.regressor import EquivariantRegressor
from sciflow.objectives import DenoisingObjective, PropertyObjective
from sciflow.paths import CategoricalPath, GaussianPath, Path
from sciflow.predictors import PropertyPredictor
from sciflow.random import Draws
from sciflow.schedules import Rectified
from sciflow.spaces import Tokens, ZeroCoM
from sciflow.state import Context, State

STATISTICS = {"gap": (5.0, 2.0), "dipole": (3.0, 1.5)}


def predictor(dtype: torch.dtype = torch.float64, fresh: bool = False) -> PropertyPredictor:
    paths: dict[str, Path] = {
        "coords": GaussianPath(ZeroCoM(3, "coords"), Rectified()),
        "types": CategoricalPath(Tokens(4), Rectified()),
        "bonds": CategoricalPath(Tokens(3, pairs=True), Rectified()),
    }
    torch.manual_seed(0)
    network = EquivariantRegressor(
        "coords", {"types": (5, 4)}, {"bonds": (4, 3)}, list(STATISTICS), 16, 8, 2, 2, 12
    )
    # Modulations start at zero, and would hide the noise level.
    for p in () if fresh else network.parameters():
        p.data = torch.randn(p.shape) * 0.3
    return PropertyPredictor(network.to(dtype), paths, STATISTICS)


def batch(n: int = 7, pad: int = 0, size: int = 2, dtype: torch.dtype = torch.float64) -> State:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, n, 3, generator=generator, dtype=dtype)
    types = torch.randint(5, (size, n), generator=generator)
    bonds = torch.randint(4, (size, n, n), generator=generator).triu(1)
    bonds = bonds + bonds.transpose(1, 2)
    fields = {"coords": x - x.mean(1, keepdim=True), "types": types, "bonds": bonds}
    widths = {"coords": (0, 0, 0, pad), "types": (0, pad), "bonds": (0, pad, 0, pad)}
    padded = {k: torch.nn.functional.pad(v, widths[k]) for k, v in fields.items()}
    mask = torch.arange(n + pad).expand(size, -1) < n
    return State(padded, Context(mask, {k: torch.zeros(size, dtype=dtype) for k in STATISTICS}))


def answers(model: PropertyPredictor, state: State, t: float = 0.3) -> Tensor:
    with torch.no_grad():
        return torch.stack([torch.stack(v) for v in model(state, t).values()])


def test_turned_mirrored_moved_relabelled_padded_it_says_the_same() -> None:
    model, state = predictor(), batch()
    plain = answers(model, state)
    q = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2)).double()).Q
    for turn in (q, -q):
        turned = state.replace(coords=state["coords"] @ turn.T)
        torch.testing.assert_close(answers(model, turned), plain, rtol=0, atol=1e-10)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    relabelled = State(
        {"coords": state["coords"][:, order], "types": state["types"][:, order],
         "bonds": state["bonds"][:, order][:, :, order]}, state.context,
    )  # fmt: skip
    torch.testing.assert_close(answers(model, relabelled), plain, rtol=0, atol=1e-10)
    torch.testing.assert_close(answers(model, batch(pad=3)), plain, rtol=0, atol=1e-10)
    alone = answers(model, state.index(slice(0, 1)))
    torch.testing.assert_close(alone, plain[:, :, :1], rtol=0, atol=1e-10)


def test_one_atom_and_the_noise_level() -> None:
    model = predictor()
    assert bool(answers(model, batch(1)).isfinite().all())
    assert not torch.allclose(answers(model, batch(), 0.3), answers(model, batch(), 0.6))


def test_weights_of_one_symbol_are_that_symbol() -> None:
    model, state = predictor(), batch(pad=2)
    soft = state.replace(
        types=torch.nn.functional.one_hot(state["types"], 5).double(),
        bonds=torch.nn.functional.one_hot(state["bonds"], 4).double(),
    )
    torch.testing.assert_close(answers(model, soft), answers(model, state), rtol=0, atol=1e-12)


def test_the_likelihood_is_that_of_the_moments_it_tells() -> None:
    model, state = predictor(), batch()
    wanted = {"gap": torch.tensor([4.0, 7.0]).double(), "dipole": torch.tensor([1.0, math.nan])}
    log_p = model.log_prob(state, 0.3, wanted)
    moments = {k: (m / STATISTICS[k][1], v.sqrt() / STATISTICS[k][1])
               for k, (m, v) in model(state, 0.3).items()}  # fmt: skip
    expected = torch.zeros(2, dtype=torch.float64)
    for name, value in wanted.items():
        m, s = moments[name]
        normal = torch.distributions.Normal(m, s, validate_args=False)
        # What is not asked for (NaN) counts nothing.
        expected += normal.log_prob(value.double() / STATISTICS[name][1]).nan_to_num()
    torch.testing.assert_close(log_p, expected)
    (g,) = torch.autograd.grad(log_p[1], model.network.head[2].bias)
    assert bool(g.isfinite().all()) and float(g[2:].abs().max()) == 0.0


@pytest.mark.parametrize("unknown", [False, True])
def test_it_learns_what_a_structure_tells(unknown: bool) -> None:
    """How many atoms are of a kind, and its own error, from clean structures."""
    size = 64
    state = batch(4, size=size, dtype=torch.float32)
    state = state.replace(types=state["types"].clamp(max=3), bonds=state["bonds"].clamp(max=2))
    count = (state["types"] == 0).sum(1).float()
    z = (count - count.mean()) / count.std()
    c = {"gap": 5 + 2 * z, "dipole": torch.full_like(z, torch.nan) if unknown else 3 - z}
    state = State(dict(state.fields), state.context.replace(conditions=c))
    model = predictor(torch.float32, fresh=True)
    objective = PropertyObjective(DenoisingObjective(), clean=1.0)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    draws = Draws(0, torch.arange(size))
    for step in range(60):
        losses = objective(model, state, draws, step)
        optimizer.zero_grad()
        losses.total.mean().backward()
        optimizer.step()
    with torch.no_grad():
        m, v = model(state, 1e-3)["gap"]
    error = float((m - c["gap"]).square().mean().sqrt())
    assert error < 0.5
    assert error**2 / 4 < float(v.mean()) < 2.0
