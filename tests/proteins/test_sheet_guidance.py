"""Plans build sheets that DSSP sees; guided chains follow them, and only they."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

import sciflow
from domains.proteins.adapter import Proteins
from domains.proteins.chain import Chain
from domains.proteins.closure import Links, _Chains
from domains.proteins.encoding import Encoding
from domains.proteins.evaluators import evaluate, rows
from domains.proteins.evaluators.secondary_structure import dssp
from domains.proteins.ideal import helix_bundle
from domains.proteins.networks import PRESETS
from domains.proteins.rebuild import BEND_MEAN, rebuild
from domains.proteins.sheet_guidance import Sheets
from domains.proteins.sheets import Meander, draw_shares, meanders, plan_sheets
from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.model import Model
from sciflow.paths import GaussianPath, GeodesicPath
from sciflow.random import Draws
from sciflow.samplers.hooks import Step
from sciflow.schedules import Rectified
from sciflow.spaces import Euclidean, Torus
from sciflow.state import State, Times

ENCODING = Encoding(("torsions", "bends"))
SHAPES = [Meander(3, n, turns) for n, turns in itertools.product(
    (4, 6), [(2,), (4, 2), (2, 2, 2), (4, 2, 4, 2)])]  # fmt: skip


def model() -> Model:
    config = {
        **PRESETS["angles"],
        "domain": "proteins",
        "encoding": ENCODING.config(),
        "conditions": {"helix": [0.3, 0.2], "strand": [0.25, 0.2]},
        "network": {"dim": 16, "pair_dim": 0, "depth": 1, "heads": 2},
        "sampler": {"steps": 6, "method": "ab1", "grid": "uniform-u"},
    }
    torch.manual_seed(0)
    domain = Proteins()
    reference = {"lengths": torch.tensor([36, 44, 40]), "strand": torch.tensor([0.1, 0.3, 0.4]),
                 "helix": torch.tensor([0.5, 0.2, 0.1])}  # fmt: skip
    return Model(domain, domain.denoiser(config), config, reference)


class Fixed(Denoiser):
    """Has the fields of a model of angles and one answer."""

    def __init__(self, answer: State) -> None:
        super().__init__()
        self.paths = {"torsions": GeodesicPath(Torus(3), Rectified()),
                      "bends": GaussianPath(Euclidean(3), Rectified())}  # fmt: skip
        self.answer = answer

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        return Prediction(dict(self.answer.fields))


def built(m: Meander) -> Chain:
    """A meander with three extended residues before and behind it."""
    torsions = torch.full((1, m.first + m.size + 3, 3), math.radians(179.0), dtype=torch.float64)
    torsions[..., 0], torsions[..., 1] = math.radians(-120), math.radians(130)
    torsions[0, m.first : m.first + m.size, :2] = m.torsions()
    return Chain(rebuild(torsions, torsions.new_tensor(BEND_MEAN).expand_as(torsions))[0].numpy())


@pytest.mark.parametrize("m", SHAPES, ids=str)
def test_the_torsions_of_a_plan_build_its_sheet(m: Meander) -> None:
    import mdtraj

    from domains.proteins.evaluators.secondary_structure import _topology

    chain = built(m)
    text = dssp([chain])[0]
    inner = range(1, len(m.starts) - 1)
    for k in inner:
        assert text[m.starts[k] : m.starts[k] + m.strand] == "E" * m.strand
    planned = {i for s in m.starts for i in range(s, s + m.strand)}
    assert sum(text[i] == "E" for i in planned) >= len(planned) - 4
    row = rows([chain])[0]
    assert row["clashes"] == 0 and row["backbone_clashes"] <= 1
    # Both N-H···O of every narrow pair, by DSSP's energy.
    frame = mdtraj.Trajectory(chain.backbone.reshape(1, -1, 3) / 10, _topology("." * len(chain)))
    energy = mdtraj.kabsch_sander(frame)[0].toarray()
    for (a, b), t in zip(itertools.pairwise(m.starts), m.turns, strict=True):
        assert b == a + m.strand + t
        for j in range(0, m.strand, 2):
            i, partner = a + m.strand - 1 - j, b + j
            assert energy[i, partner] < -0.5 and energy[partner, i] < -0.5


def test_meanders_fit_their_chain() -> None:
    u = np.random.default_rng(0).random((300, 64))
    total, wanted = 0, 0.0
    for n, share, numbers in zip(u[:, 0] * 100 + 20, u[:, 1] * 0.5, u.tolist(), strict=True):
        n = int(n)
        end = 3
        for m in meanders(n, share, numbers):
            assert m.first >= end and m.strand % 2 == 0
            assert set(m.turns) <= {2, 4} and (4, 4) not in itertools.pairwise(m.turns)
            end = m.first + m.size + 6
            total += m.strand * (len(m.turns) + 1)
        assert end - 6 <= n - 3
        wanted += share * n
    assert abs(total / wanted - 1) < 0.1
    assert meanders(12, 0.9, u[0].tolist()) == [] and meanders(80, 0.0, u[0].tolist()) == []


def test_drawn_shares_are_those_of_known_chains() -> None:
    share = draw_shares(Draws(0, torch.arange(4000)))
    assert abs(float((share == 0).double().mean()) - 0.2) < 0.02
    assert abs(float(share.mean()) - 0.24) < 0.01 and float(share.max()) <= 0.5


def test_plans_do_not_depend_on_the_batch() -> None:
    lengths, shares = torch.tensor([60, 40, 90]), torch.full((3,), 0.4, dtype=torch.float64)
    together = plan_sheets(lengths, 90, shares, Draws(0, [5, 6, 7]))
    assert together.strand.any(1).all()
    for i, n in enumerate(lengths.tolist()):
        alone = plan_sheets(lengths[i : i + 1], n, shares[:1], Draws(0, [5 + i]))
        assert torch.equal(alone.torsions[0], together.torsions[i, :n])
        assert torch.equal(alone.strand[0], together.strand[i, :n])
        q = int((alone.links.weight > 0).sum())
        assert q == int((together.links.weight[i] > 0).sum())
        assert torch.equal(alone.links.atoms[0, :q], together.links.atoms[i, :q])


def links_at_random() -> tuple[Tensor, Tensor, Links]:
    g = torch.Generator().manual_seed(0)
    torsions = (torch.rand(2, 14, 3, generator=g, dtype=torch.float64) - 0.5) * 4
    bends = torch.tensor(BEND_MEAN, dtype=torch.float64).expand(2, 14, 3)
    atoms = torch.randint(0, 56, (2, 20, 2), generator=g)
    atoms[..., 1] = (atoms[..., 0] + 5 + atoms[..., 1] % 40) % 56
    length = 3 + 5 * torch.rand(2, 20, generator=g, dtype=torch.float64)
    weight = torch.rand(2, 20, generator=g, dtype=torch.float64)
    return torsions, bends, Links(atoms, length, weight)


def test_slopes_of_distances_are_their_derivatives() -> None:
    torsions, bends, links = links_at_random()
    b, n = torsions.shape[:2]
    chains = _Chains(torsions, bends, torsions.new_zeros(b, n, 3, 3),
                     torch.zeros(b, n, dtype=torch.bool), torch.ones(b, n, 2, dtype=torch.bool),
                     1.0, 2.0, links)  # fmt: skip
    turned = torsions.new_zeros(b, 2 * n)
    x, misfit, cost = chains(turned)
    j, residual = chains.slopes(x, misfit)
    assert torch.allclose(residual.square().sum(1), cost)
    gradient = 2 * (j.mT @ residual[..., None])[..., :-6, 0]
    step = 1e-6
    for k in range(2 * n):
        moved = turned.clone()
        moved[:, k] = step
        up, down = chains(moved)[2], chains(-moved)[2]
        assert torch.allclose(gradient[:, k], (up - down) / (2 * step), rtol=1e-5, atol=1e-5)


def test_distances_do_not_feel_a_motion() -> None:
    torsions, bends, links = links_at_random()
    x = rebuild(torsions, bends)
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1),
                                       dtype=torch.float64))  # fmt: skip
    assert torch.allclose(links.residual(x @ q + 7), links.residual(x), atol=1e-10)


def test_what_is_asked_for_is_made() -> None:
    bundled = sciflow.load("proteins/backbones").guided("none").guided("contract", weight=0.4)
    settings = {"target": {"strand": 0.4, "length": 48}, "seed": 3, "sampler": {"steps": 30}}
    out = bundled.guided("sheets").sample(3, **settings)
    metrics = evaluate([c for c in out.records if c is not None])
    plain = evaluate([c for c in bundled.sample(3, **settings).records if c is not None])
    assert metrics["chains"] == 3 and metrics["strand"] > 0.25 > plain["strand"] + 0.15


def test_no_strand_asked_for_is_no_sheet() -> None:
    settings = {"target": {"strand": 0.0}, "seed": 3}
    none, plain = model().guided("sheets").sample(2, **settings), model().sample(2, **settings)
    for a, b in zip(none.records, plain.records, strict=True):
        assert (a.backbone == b.backbone).all()


def test_weight_0_is_the_model() -> None:
    plain, off = model().sample(3, seed=1), model().guided("sheets", weight=0).sample(3, seed=1)
    on = model().guided("sheets", share="0.4").sample(3, seed=1)
    for a, b, c in zip(plain.records, off.records, on.records, strict=True):
        assert (a.backbone == b.backbone).all() and (a.backbone != c.backbone).any()
    assert on.calls == plain.calls


def test_a_sample_does_not_depend_on_its_companions() -> None:
    guided = model().guided("sheets", share="0.4")
    together = guided.sample(3, seed=2)
    for i, whole in enumerate(together.records):
        alone = guided.sample(1, seed=2, first=i).records[0]
        assert len(alone) == len(whole)
        assert np.abs(alone.backbone - whole.backbone).max() < 1e-2


def test_seeds_have_plans_of_their_own() -> None:
    guide = Sheets(Fixed(ENCODING.encode([helix_bundle(0)])), share=0.4)
    noise = ENCODING.encode([helix_bundle(k) for k in range(8)])
    angles = torch.rand(noise["torsions"].shape, generator=torch.Generator().manual_seed(0)) * 6 - 3
    plan = guide.plan(noise.replace(torsions=angles))
    assert len({tuple(row.tolist()) for row in plan.strand}) > 4


def test_helix_asked_for_leaves_room() -> None:
    guide = Sheets(Fixed(ENCODING.encode([helix_bundle(0)])))
    state = ENCODING.encode([helix_bundle(k) for k in range(50)])
    angles = torch.rand(state["torsions"].shape, generator=torch.Generator().manual_seed(0)) * 6 - 3
    conditions = {"helix": torch.full((50,), 0.7), "strand": torch.full((50,), torch.nan)}
    context = state.context.replace(conditions=conditions)
    state = State({**state.fields, "torsions": angles}, context)
    share = guide.plan(state).strand.sum(1) / state.context.lengths
    assert float(share.max()) < 0.2


@pytest.mark.parametrize("kind", ["motif", "given", "begins in the middle"])
def test_chains_that_are_given_in_part_keep_what_they_have(kind: str) -> None:
    state = ENCODING.encode([helix_bundle(1), helix_bundle(2)])
    context = state.context
    if kind == "motif":
        context = context.replace(extras={"piece": torch.zeros_like(context.mask).long()})
    if kind == "given":
        given = context.mask.clone()
        given[:, 20:] = False
        context = context.replace(given={"torsions": given})
    state = State(state.fields, context)
    guide = Sheets(Fixed(state), share=0.5)
    answer = guide(state, torch.tensor(0.5 if kind == "begins in the middle" else 1.0))
    assert torch.equal(answer["torsions"], state["torsions"])
    step = Step(0, 0.1, 0.0, state, answer, state)
    assert torch.equal(guide.after_step(step)["torsions"], state["torsions"])


def test_only_planned_residues_follow_and_the_end_closes_them() -> None:
    state = ENCODING.encode([helix_bundle(1), helix_bundle(2)])
    guide = Sheets(Fixed(state), share=0.4)
    answer = guide(state, torch.tensor(1.0))
    plan = guide.plan(state)
    assert torch.equal(answer["torsions"][~plan.planned], state["torsions"][~plan.planned])
    assert (answer["torsions"][plan.planned] != state["torsions"][plan.planned]).any()
    step = Step(0, 0.5, 0.3, state, answer, state)
    assert guide.after_step(step) is state
    off = plan.links.residual(ENCODING.backbone(state)).square().mean()
    done = guide.after_step(Step(0, 0.1, 0.0, state, answer, state))
    assert plan.links.residual(ENCODING.backbone(done)).square().mean() < 0.2 * off


WRONG = ("spread", 0.0), ("tolerance", 0.0), ("clash", -1.0), ("share", 1.5), ("weight", -1.0)


@pytest.mark.parametrize("wrong", [{k: x} for k, x in (*WRONG, ("iterations", 0))])
def test_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError):
        Sheets(Fixed(ENCODING.encode([helix_bundle(0)])), **wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="share"):
        model().guided("sheets", share="much").sample(1)


def test_a_model_of_positions_is_refused() -> None:
    denoiser = Fixed(ENCODING.encode([helix_bundle(0)]))
    denoiser.paths = {"positions": GaussianPath(Euclidean(3), Rectified())}
    with pytest.raises(InputError, match="positions"):
        Sheets(denoiser)
