"""Chains follow the fold that another model draws, as closely as it is known, and only they."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from domains.proteins.adapter import Proteins
from domains.proteins.closure import Links, deviation
from domains.proteins.encoding import Encoding, empty_context
from domains.proteins.fold_guidance import Folded, largest, plan_of
from domains.proteins.guidance import Contracted
from domains.proteins.ideal import helix_bundle
from domains.proteins.networks import PRESETS, build_denoiser
from domains.proteins.rebuild import BEND_MEAN, rebuild
from domains.proteins.sheet_guidance import Sheets
from domains.proteins.sheets import SheetPlan
from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.model import Model
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.state import Context, State, Times
from sciflow.testing.probes import randomise

FRAMES = Encoding(("positions", "rotations"), 7.7)
ANGLES = Encoding(("torsions", "bends"))
LENGTHS = torch.tensor([40, 33, 40])
SAMPLER = Sampler(steps=12, method="ab1", grid="uniform-u")


def config(preset: str) -> dict[str, object]:
    network = {"dim": 16, "depth": 1, "heads": 2, "pair_dim": 8 if preset == "frames" else 0}
    return {
        **PRESETS[preset],
        "domain": "proteins",
        "encoding": (FRAMES if preset == "frames" else ANGLES).config(),
        "conditions": {},
        "network": network,
        "sampler": SAMPLER.config(),
    }


def network(preset: str) -> Denoiser:
    torch.manual_seed(0)
    return randomise(build_denoiser(config(preset))).requires_grad_(False)  # type: ignore[no-any-return]


class Known(Denoiser):
    """A model of frames that knows what it makes: bundles of helices, moved if asked."""

    def __init__(self, turn: Tensor | None = None, broken: int | None = None):
        super().__init__()
        self.paths, self.rows = network("frames").paths, list[int]()
        chains = [helix_bundle(k) for k in range(len(LENGTHS))]
        self.chains = [c.backbone[: int(n)] for c, n in zip(chains, LENGTHS, strict=True)]
        fields, _ = FRAMES.batch(self.chains)
        if turn is not None:
            fields["positions"] = fields["positions"] @ turn.mT
            fields["rotations"] = turn @ fields["rotations"]
        if broken is not None:
            fields["positions"][broken] = torch.nan
        self.fields = {f: x.float() for f, x in fields.items()}

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        n = state.context.mask.shape[1]
        at = [int((k == LENGTHS).nonzero()[-1]) for k in state.context.lengths]
        return Prediction({f: x[at][:, :n] for f, x in self.fields.items()})


def sampled(denoiser: Denoiser, rows: list[int], given: bool = False) -> State:
    context = empty_context(LENGTHS[rows], {})
    if given:
        context = context.replace(extras={"piece": torch.full_like(context.mask, -1).long()})
    return SAMPLER(denoiser, context, Draws(0, torch.tensor(rows))).state


def apart(state: State, known: Known, row: int, at: int) -> float:
    """Å between the CA atoms of a sample and those of a fold."""
    chain = ANGLES.backbone(state)[row : row + 1, :, 1]
    fold = torch.as_tensor(known.chains[at])[None, :, 1].double()
    n = fold.shape[1]
    return float(deviation(chain[:, :n], fold, torch.ones(1, n)))


def folded(known: Denoiser, tolerance: float = 1.0, **settings: object) -> Folded:
    return Folded(
        network("angles"), known, FRAMES, SAMPLER, tolerance, clash=0, iterations=8, **settings
    )  # type: ignore[arg-type]


def test_a_chain_follows_its_fold_as_closely_as_it_is_known() -> None:
    known = Known()
    alone = sampled(network("angles"), [0, 1])
    far = [apart(alone, known, 0, 2), apart(alone, known, 1, 1)]
    assert min(far) > 6
    near = []
    for tolerance in (0.3, 3.0, 1e9):
        state = sampled(folded(known, tolerance), [0, 1])
        near.append([apart(state, known, 0, 2), apart(state, known, 1, 1)])
    assert max(near[0]) < 1.5
    assert all(a < b < c for a, b, c in zip(*near, strict=True))
    # A fold of which nothing is known is none.
    assert near[2] == pytest.approx(far, abs=1e-3)


def test_it_does_not_matter_how_a_fold_lies_and_what_is_drawn_beside_it() -> None:
    turn = torch.linalg.qr(Draws(0, [0]).normal((3, 3), "q", dtype=torch.float64)[0])[0]
    turn[:, 0] *= torch.det(turn).sign()
    together = sampled(folded(Known()), [0, 1])
    turned = sampled(folded(Known(turn)), [0, 1])
    alone = sampled(folded(Known()), [1])
    for other, mine in ((turned, together["torsions"]), (alone, together["torsions"][1:, :33])):
        d = (other["torsions"] - mine + torch.pi) % (2 * torch.pi) - torch.pi
        assert float(d.abs().max()) < 2e-3


def test_chains_with_a_motif_and_those_whose_fold_broke_are_the_models_own() -> None:
    """Runs in which no chain has a fold are those of another guide, if there is one."""
    own = sampled(network("angles"), [0, 1], given=True)
    assert torch.equal(sampled(folded(Known()), [0, 1], given=True)["torsions"], own["torsions"])
    instead = Contracted(network("angles"), 0.5)
    other = sampled(instead, [0, 1], given=True)["torsions"]
    found = sampled(folded(Known(), otherwise=instead), [0, 1], given=True)["torsions"]
    assert torch.equal(found, other) and not torch.equal(other, own["torsions"])
    context = empty_context(LENGTHS[:2], {})
    middle = [SAMPLER(d, context, Draws(0, [0, 1]), start=dict(own), begin=0.5).state["torsions"]
              for d in (folded(Known(), otherwise=instead), instead)]  # fmt: skip
    assert torch.equal(*middle)
    one = sampled(folded(Known(broken=1)), [0, 1])
    assert torch.equal(one["torsions"][1], own["torsions"][1])
    assert not torch.equal(one["torsions"][0], own["torsions"][0])


def test_by_name_with_a_model_of_frames(tmp_path: Path) -> None:
    """Its calls count, its folds depend on the sample alone."""
    domain = Proteins()
    models = {}
    for preset in ("angles", "frames"):
        made = Model(domain, network(preset), config(preset), {"lengths": LENGTHS})
        models[preset] = Model.from_folder(made.save(tmp_path / preset))
    guided = models["angles"].guided("fold", model=str(tmp_path / "frames"), steps=0)
    out = guided.sample(3, {"length": (20, 24)}, batch_size=2)
    assert out.calls == 2 * SAMPLER.steps
    last = guided.sample(1, {"length": (20, 24)}, first=2)
    d = out.records[2].backbone - last.records[0].backbone
    assert float(abs(d).max()) < 5e-2
    with pytest.raises(InputError, match="this model has positions"):
        models["frames"].guided("fold", model=str(tmp_path / "frames")).sample(1)
    with pytest.raises(InputError, match="has the fields torsions, bends"):
        models["angles"].guided("fold", model=str(tmp_path / "angles")).sample(1)
    few = models["angles"].guided("fold", model=str(tmp_path / "frames"), steps=5)
    assert few.sample(1, {"length": 20}).calls == SAMPLER.steps + 5
    with pytest.raises(InputError, match=r"not 0, 0\.002, 0 and 8"):
        folded(Known(), 0.0)


def test_a_fold_is_drawn_around_the_largest_sheet_that_is_planned() -> None:
    """Its residues lie in the fold as in the plan; the model of frames sees them at every call."""
    sheets = Sheets(network("angles"), share=0.4)
    guided = Folded(sheets, network("frames"), FRAMES, SAMPLER)
    noise = State(SAMPLER.prior(sheets, empty_context(LENGTHS, {}), Draws(3, torch.arange(3))),
                  empty_context(LENGTHS, {}))  # fmt: skip
    guided(noise, 1.0)
    plan, folds = plan_of(guided), guided.draw(noise)
    assert plan is not None
    inside = largest(plan)
    assert int(inside.sum(1).min()) >= 10
    bends = torch.tensor(BEND_MEAN).double().expand(*plan.torsions.shape[:2], 3)
    torsions = torch.nn.functional.pad(plan.torsions, (0, 1), value=torch.pi)
    planned = rebuild(torsions, bends)[:, :, :3]
    weight = inside[..., None].expand(*inside.shape, 3).flatten(1).double()
    # Frames have one shape of residue, the chain of angles bends a little at each.
    assert float(deviation(folds.flatten(1, 2), planned.flatten(1, 2), weight).max()) < 0.05


def test_the_largest_sheet() -> None:
    def plan(text: str) -> SheetPlan:
        x = torch.tensor([[c == "S" for c in row] for row in text.split()])
        empty = torch.zeros(len(x), 1)
        links = Links(torch.zeros(len(x), 1, 2).long(), empty, empty)
        return SheetPlan(torch.zeros(*x.shape, 2), x, torch.zeros_like(x), links)

    found = largest(plan("--SS--SSS- SSSS--SSSS ---------- --------SS"))
    wanted = ["------SSS-", "SSSS------", "----------", "--------SS"]
    assert ["".join("S" if k else "-" for k in row) for row in found.tolist()] == wanted


def test_fold_is_drawn_for_the_context_of_the_run() -> None:
    """Lengths are those of the run; what is given to it is not given to the model of frames."""
    seen: list[Context] = []
    known = Known()
    known.register_forward_pre_hook(lambda _, args: seen.append(args[0].context))
    sampled(folded(known), [0, 1])
    assert len(seen) == SAMPLER.steps
    assert seen[0].lengths.tolist() == [40, 33] and not seen[0].given
